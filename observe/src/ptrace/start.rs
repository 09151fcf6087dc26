//! The start of a program that is traced from its first instruction, with the filter of its system calls.

use super::filter::FILTER;
use super::inject::filters;
use super::sys::{self, Resume};
use crate::Error;
use crate::isolation::outer_pid;
use crate::program::Program;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// The message of the child: its number, and the error of the filter or 0.
const MESSAGE: usize = 8;
/// The longest wait for the message.
const PATIENCE: Duration = Duration::from_secs(20);
/// The time between two looks at the child while it executes the program.
const PAUSE: Duration = Duration::from_micros(50);

/// The connection between this process and its child until the child executes the program.
#[derive(Debug)]
pub(super) struct Handshake {
    observer: UnixStream,
    program: UnixStream,
}

impl Handshake {
    /// Lets the child of a command install the filter, and wait until it is traced.
    pub(super) fn prepare(command: &mut Command) -> io::Result<Self> {
        let (observer, program) = UnixStream::pair()?;
        observer.set_read_timeout(Some(PATIENCE))?;
        // The thread that starts the program changes this.
        let ignores_setxid = sys::ignores_setxid();
        let (theirs, fd) = (observer.as_raw_fd(), program.as_raw_fd());
        sys::before_exec(command, move || {
            // If the observer ends now, the child must see it.
            sys::close(theirs);
            if ignores_setxid {
                sys::ignore_setxid();
            }
            let filtered = sys::install_filter(&FILTER);
            let error = filtered.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0);
            let mut message = [0; MESSAGE];
            let (pid, errno) = message.split_at_mut(MESSAGE / 2);
            // The observer may see another number than this process does.
            let own = outer_pid().unwrap_or_else(sys::own_pid);
            pid.copy_from_slice(&own.to_ne_bytes());
            errno.copy_from_slice(&error.to_ne_bytes());
            let mut answer = [0];
            let is_traced = sys::write(fd, &message) && sys::read(fd, &mut answer) && answer == [1];
            filtered?;
            if is_traced { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
        });
        Ok(Self { observer, program })
    }

    /// Starts the program. Returns its number, and the number of seccomp filters with which it starts, if that is known.
    ///
    /// # Errors
    /// It cannot be started, or not be traced.
    pub(super) fn start(self, command: &mut Command, of: &Program) -> Result<(i32, Option<u32>), Error> {
        let Self { mut observer, program } = self;
        let failed = AtomicBool::new(false);
        thread::scope(|scope| {
            let failed = &failed;
            // `spawn` returns when the child executes the program. Until then this thread must trace the child.
            let spawner = scope.spawn(move || {
                let spawned = command.spawn().map(drop);
                failed.store(spawned.is_err(), Ordering::SeqCst);
                drop(program);
                spawned
            });
            let mut message = [0; MESSAGE];
            if let Err(error) = observer.read_exact(&mut message) {
                let _ = observer.shutdown(std::net::Shutdown::Both);
                join(spawner)?;
                return Err(Error::host(Error::STARTING)(error));
            }
            let word = |at: usize| {
                message.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
            };
            let (pid, errno) = (i32::from_ne_bytes(word(0)), i32::from_ne_bytes(word(4)));
            let seized = if errno == 0 { sys::seize(pid) } else { Ok(()) };
            let is_traced = errno == 0 && seized.is_ok();
            let answered = observer.write_all(&[is_traced.into()]);
            if errno != 0 || seized.is_err() {
                let _ = join(spawner);
                return Err(of.untraceable(if errno != 0 { NO_FILTER } else { untraceable() }));
            }
            answered.map_err(Error::host(Error::STARTING))?;
            let child = sys::open_thread(pid, pid);
            let is_executing = follow(pid, &spawner, failed);
            if let Err(error) = join(spawner) {
                let _ = child.map(|child| sys::kill(&child));
                return Err(error);
            }
            // The program has not begun, so all filters are those with which it starts.
            let filters = if is_executing { filters(pid) } else { None };
            if is_executing {
                sys::resume(pid, Resume::Continue, 0);
            }
            Ok((pid, filters))
        })
    }
}

fn join(spawner: ScopedJoinHandle<'_, io::Result<()>>) -> Result<(), Error> {
    let spawned = spawner.join().unwrap_or_else(|_| Err(io::Error::other("the thread failed")));
    spawned.map_err(Error::host(Error::STARTING))
}

/// Traces the child until it has executed the program, or has failed to. Returns true if it waits after the execution.
fn follow(pid: i32, spawner: &ScopedJoinHandle<'_, io::Result<()>>, failed: &AtomicBool) -> bool {
    let began = Instant::now();
    loop {
        // `spawn` returns a little before the child stops after the execution.
        let is_over = spawner.is_finished() && (failed.load(Ordering::SeqCst) || began.elapsed() > PATIENCE);
        let stopped = sys::wait_for_stop(pid, false);
        if let Ok(Some(true)) = stopped
            && let Ok(status) = sys::stopped(pid)
        {
            match status >> 16 {
                libc::PTRACE_EVENT_EXEC => return true,
                0 => sys::resume(pid, Resume::Continue, libc::WSTOPSIG(status)),
                _ => sys::resume(pid, Resume::Continue, 0),
            }
        } else if is_over || matches!(stopped, Ok(Some(false))) {
            return false;
        } else {
            thread::sleep(PAUSE);
        }
    }
}

const NO_FILTER: &str = "this system permits no seccomp filter, as in some containers, and the engine ptrace needs one; \
                         --engine preload does without";

/// The reason why a child cannot be traced.
fn untraceable() -> &'static str {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).map(str::trim);
    match (scope.trim(), tracer) {
        ("2" | "3", _) => {
            "this system permits no tracing (/proc/sys/kernel/yama/ptrace_scope is 2 or 3); --engine preload does without"
        }
        (_, Some(pid)) if pid != "0" => {
            "vmm is itself traced, by strace or a debugger, and a program has only one tracer; run vmm without it"
        }
        _ => {
            "the system does not permit vmm to trace it (ptrace(2)), as in some containers; --engine preload does without"
        }
    }
}

/// Checks that the kernel has the calls that look into another process.
///
/// # Errors
/// The reason, and advice.
pub(super) fn check_kernel() -> Result<(), &'static str> {
    let own = sys::own_pid();
    let looks = || {
        let byte = 1u8;
        if sys::read_memory(own, (&raw const byte) as u64, &mut [0]) != 1 {
            return Ok(false);
        }
        let file = sys::open_thread(own, own)?;
        let duplicate = sys::take_descriptor(&file, file.as_raw_fd())?;
        sys::is_same_file(own, file.as_raw_fd(), duplicate.as_fd())
    };
    match looks() {
        Ok(true) => Ok(()),
        _ => Err(
            "the engine ptrace needs pidfd_getfd(2), kcmp(2) and process_vm_readv(2), which Linux has since 5.6, but some \
             containers do not permit; --engine preload does without",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_can_look_into_processes() {
        assert_eq!(check_kernel(), Ok(()));
    }
}
