//! Bytes between files and guest memory, without a copy in between.

use super::{Gpa, GuestMemory};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use vm_memory::GuestMemoryBackend;

/// A part of guest memory, as a guest names it: not yet checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it starts.
    pub start: Gpa,
    /// Its length in bytes.
    pub len: u32,
}

impl GuestMemory {
    /// Fills `spans`, one after the other, from what `file` has at `offset`, without a copy in between.
    /// Returns how many bytes came: fewer than the spans hold only where the file has no more.
    ///
    /// # Errors
    /// A span is not all memory, or the file cannot be read there.
    pub(crate) fn read_from_file_at(&self, file: &File, offset: u64, spans: &[Span]) -> io::Result<u64> {
        self.transfer(offset, spans, |vectors, at| {
            // SAFETY: each entry is a mapped range of guest memory, which `self` keeps and nobody in this
            // process has a reference into.
            unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), vectors.count(), at) }
        })
    }

    /// Writes what is in `spans`, one after the other, into `file` at `offset`, without a copy in between.
    /// Returns how many bytes went: fewer than the spans hold only where the file takes no more.
    ///
    /// # Errors
    /// A span is not all memory, or the file cannot be written there.
    pub(crate) fn write_to_file_at(&self, file: &File, offset: u64, spans: &[Span]) -> io::Result<u64> {
        self.transfer(offset, spans, |vectors, at| {
            // SAFETY: as for `read_from_file_at`; the guest may change the bytes meanwhile, which only it
            // will see.
            unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), vectors.count(), at) }
        })
    }

    /// Calls until all is done, or the file's end is reached: a call may do a part only.
    fn transfer(
        &self,
        offset: u64,
        spans: &[Span],
        call: impl Fn(&Vectors, libc::off_t) -> libc::ssize_t,
    ) -> io::Result<u64> {
        let all: u64 = spans.iter().map(|span| u64::from(span.len)).sum();
        let mut done = 0;
        while done < all {
            let vectors = self.vectors(spans, done)?;
            let at = offset.checked_add(done).and_then(|at| libc::off_t::try_from(at).ok());
            match call(&vectors, at.ok_or(io::ErrorKind::InvalidInput)?) {
                0 => break,
                moved @ 1.. => done += moved as u64,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(done)
    }

    /// Where `spans` are in this process, from their byte `skip` on, as far as there is place.
    fn vectors(&self, spans: &[Span], mut skip: u64) -> io::Result<Vectors> {
        let mut vectors = Vectors::new();
        for span in spans {
            for slice in self.slots.get_slices(span.start, span.len as usize) {
                let slice = slice.map_err(io::Error::other)?;
                let passed = skip.min(slice.len() as u64);
                skip -= passed;
                let rest = slice.offset(passed as usize).map_err(io::Error::other)?;
                let vector =
                    libc::iovec { iov_base: rest.ptr_guard_mut().as_ptr().cast(), iov_len: rest.len() };
                if !rest.is_empty() && !vectors.push(vector) {
                    return Ok(vectors);
                }
            }
        }
        Ok(vectors)
    }
}

/// Ranges of this process's memory for one vectored call: as many as the largest request of a disk has, on the
/// stack and not cleared.
struct Vectors {
    entries: [MaybeUninit<libc::iovec>; 256],
    /// So many entries are filled in.
    len: usize,
}

impl Vectors {
    fn new() -> Self {
        Self { entries: [const { MaybeUninit::uninit() }; 256], len: 0 }
    }

    /// Returns whether there was place.
    fn push(&mut self, vector: libc::iovec) -> bool {
        let Some(entry) = self.entries.get_mut(self.len) else { return false };
        entry.write(vector);
        self.len += 1;
        true
    }

    fn as_ptr(&self) -> *const libc::iovec {
        self.entries.as_ptr().cast()
    }

    fn count(&self) -> libc::c_int {
        self.len as libc::c_int
    }
}

#[cfg(test)]
mod tests {
    use super::super::PAGE;
    use super::*;

    #[test]
    fn files_and_scattered_memory_exchange_bytes() {
        let file = tempfile::tempfile().unwrap();
        // Two slots side by side, so that a span may cross from one into the other.
        let memory = GuestMemory::new(&[(Gpa(0), PAGE), (Gpa(PAGE), PAGE)]).unwrap();
        let data: Vec<u8> = (0..600).map(|byte| (byte % 251) as u8).collect();
        memory.write(Gpa(PAGE - 300), &data).unwrap();
        // More spans than go into one call.
        let bytes: Vec<Span> = (0..600).map(|at| Span { start: Gpa(PAGE - 300 + at), len: 1 }).collect();
        assert_eq!(memory.write_to_file_at(&file, 7, &bytes).unwrap(), 600);
        let spans = [Span { start: Gpa(0), len: 0 }, Span { start: Gpa(PAGE - 100), len: 900 }];
        assert_eq!(memory.read_from_file_at(&file, 7, &spans).unwrap(), 600, "the file ends there");
        let mut read = [0; 600];
        assert!(memory.read(Gpa(PAGE - 100), &mut read));
        assert_eq!(read.as_slice(), data);
    }

    #[test]
    fn files_reach_only_memory() {
        let file = tempfile::tempfile().unwrap();
        let memory = GuestMemory::new(&[(Gpa(0), PAGE)]).unwrap();
        for (start, len) in [(PAGE, 1), (PAGE - 1, 2), (u64::MAX, 2), (0, u32::MAX)] {
            let spans = [Span { start: Gpa(0), len: 1 }, Span { start: Gpa(start), len }];
            assert!(memory.read_from_file_at(&file, 0, &spans).is_err());
            assert!(memory.write_to_file_at(&file, 0, &spans).is_err());
        }
        assert_eq!(file.metadata().unwrap().len(), 0, "nothing of a wrong request is written");
        let span = [Span { start: Gpa(0), len: 1 }];
        assert!(memory.write_to_file_at(&file, u64::MAX, &span).is_err());
        assert!(memory.write_to_file_at(&File::open("/dev/null").unwrap(), 0, &span).is_err());
    }
}
