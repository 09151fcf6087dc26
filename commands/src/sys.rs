//! System calls for processes that this program starts, such as those of submissions and make.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::process::Child;
use std::time::Duration;

/// The number of files that this process may have open. `None` if the system does not tell.
pub fn open_files() -> Option<u64> {
    // SAFETY: an all-zero rlimit is valid. It outlives the call, which fills it.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        (libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0).then_some(limit.rlim_cur)
    }
}

/// The user of this process.
pub fn user() -> u32 {
    // SAFETY: the call takes no memory.
    unsafe { libc::geteuid() }
}

/// Lets the children of this process write to the terminal from process groups of their own. Otherwise `stty tostop` stops them.
pub fn keep_background_writers() {
    // SAFETY: no handler runs. Children inherit that the signal is ignored.
    unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
}

/// The process group of a child that was started with one of its own.
fn group(child: &Child) -> Option<libc::pid_t> {
    libc::pid_t::try_from(child.id()).ok().filter(|id| *id > 1)
}

/// Kills a child and all processes of its group. The child must not have been waited for: then its number cannot belong to
/// another process.
pub fn kill_group(child: &Child) {
    if let Some(group) = group(child) {
        // SAFETY: the call takes no memory.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

/// True if a child has ended. It can still be waited for.
pub fn has_ended(child: &Child) -> bool {
    // SAFETY: an all-zero siginfo_t is valid, and outlives the call.
    let (answer, found) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let answer = libc::waitid(libc::P_PID, child.id(), &raw mut info, flags);
        (answer, info.si_pid())
    };
    answer != 0 || found != 0
}

/// Waits until one of these files can be read or has no writer any more, for at most `limit`. Missing files are left out. Returns
/// which of them it is.
///
/// # Errors
/// The host cannot wait.
pub fn wait_readable<const N: usize>(files: [Option<RawFd>; N], limit: Duration) -> io::Result<[bool; N]> {
    // poll(2) skips negative numbers.
    let mut polled =
        files.map(|file| libc::pollfd { fd: file.unwrap_or(-1), events: libc::POLLIN, revents: 0 });
    let count = libc::nfds_t::try_from(N).unwrap_or(0);
    let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the array has N elements, and outlives the call.
    let answer = unsafe { libc::poll(polled.as_mut_ptr(), count, limit) };
    match (answer, io::Error::last_os_error()) {
        (-1, error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        (-1, _) => Ok([false; N]),
        _ => Ok(polled.map(|file| file.revents != 0)),
    }
}

/// The number of a file, for [`wait_readable`].
pub fn number(file: &Option<impl AsRawFd>) -> Option<RawFd> {
    file.as_ref().map(AsRawFd::as_raw_fd)
}

/// Makes the kernel kill this process when its parent ends, even if the parent is killed. `parent` is the number that the parent
/// says it has. Other hosts than Linux lack this.
///
/// # Errors
/// The parent has ended already.
pub fn die_with(parent: u32) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes no memory.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    match std::os::unix::process::parent_id() == parent {
        true => Ok(()),
        false => Err(io::Error::other("the process that started this one has ended")),
    }
}
