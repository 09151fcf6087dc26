//! The socket on which the library hands over KVM's counters of each vCPU.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use vmm::KvmCounters;

/// The first word of a message.
const MAGIC: u32 = 0x7362_6f31;

/// KVM's counters of a vCPU, which live as long as this.
#[derive(Debug)]
pub(super) struct Counters {
    file: File,
    /// Before Linux 6.5 the counters are gone with the vCPU, but their file is not.
    _vcpu: OwnedFd,
}

impl Counters {
    /// Reads the counters.
    pub(super) fn read(&self) -> Option<KvmCounters> {
        KvmCounters::read(&self.file).ok()
    }

    /// Takes the two files of a message. Returns `None` for others, because reading them might wait for ever.
    fn of(mut files: Vec<OwnedFd>) -> Option<Self> {
        let (vcpu, file) = (files.pop()?, files.pop()?);
        let is = |fd: &OwnedFd, name: &str| {
            let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            path.is_ok_and(|path| path.to_str().is_some_and(|path| path.starts_with(name)))
        };
        let right = is(&file, "anon_inode:kvm-vcpu-stats") && is(&vcpu, "anon_inode:kvm-vcpu:");
        right.then(|| Self { file: file.into(), _vcpu: vcpu })
    }
}

/// The socket.
#[derive(Debug)]
pub(super) struct Link(UnixDatagram);

impl Link {
    /// Creates the socket.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Receives a message: the number of a ring, and the counters of its vCPU. Returns `None` if there is no message.
    pub(super) fn receive(&self) -> Option<(usize, Option<Counters>)> {
        let mut text = [0u32; 2];
        // Room for more files than a message has, so that all of them are seen and closed.
        let mut room = [0u64; 16];
        let mut vector = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: size_of_val(&text) };
        // SAFETY: all zeroes are a valid header.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &mut vector;
        header.msg_iovlen = 1;
        header.msg_control = room.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&room) as _;
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: the header describes memory that outlives the call.
        let size = unsafe { libc::recvmsg(self.0.as_raw_fd(), &mut header, flags) };
        if size < 0 {
            return None;
        }
        let files = files(&header);
        let known = size as usize == size_of_val(&text) && text[0] == MAGIC;
        let ring = if known { text[1] as usize } else { usize::MAX };
        Some((ring, Counters::of(files)))
    }
}

/// Takes the files of a message.
fn files(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut files = Vec::new();
    // SAFETY: the kernel has filled the header and its control messages.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: the message lies in the room of the header.
        let control = unsafe { &*message };
        if control.cmsg_level == libc::SOL_SOCKET && control.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: the calls only compute places in the message.
            let (data, empty) = unsafe { (libc::CMSG_DATA(message), libc::CMSG_LEN(0)) };
            let bytes = (control.cmsg_len as usize).saturating_sub(empty as usize);
            for index in 0..bytes.checked_div(size_of::<libc::c_int>()).unwrap_or(0) {
                // SAFETY: the message has this many descriptors. They are new, and nothing else owns them.
                files.push(unsafe {
                    OwnedFd::from_raw_fd(data.cast::<libc::c_int>().add(index).read_unaligned())
                });
            }
        }
        // SAFETY: as above.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_without_counters_is_harmless() {
        let folder = tempfile::tempdir().unwrap();
        let link = Link::new(&folder.path().join("link")).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(folder.path().join("link")).unwrap();
        sender.send(&[0; 100]).unwrap();
        sender.send(&[MAGIC.to_ne_bytes(), 7u32.to_ne_bytes()].concat()).unwrap();
        assert!(matches!(link.receive(), Some((usize::MAX, None))));
        assert!(matches!(link.receive(), Some((7, None))));
        assert!(link.receive().is_none());
    }

    #[test]
    fn other_files_are_not_counters() {
        let file = || File::open("/dev/null").unwrap().into();
        assert!(Counters::of(vec![file(), file()]).is_none());
        assert!(Counters::of(vec![file()]).is_none());
    }
}
