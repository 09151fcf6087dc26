//! The PID namespace of a captive program, in which this process and all others have no number: the program cannot signal,
//! stop or trace them (pid_namespaces(7)).
//!
//! The child that [`Command`] makes leaves its namespace, starts two processes there, and ends. The first one is the init
//! process, with number 1: if it ends, the kernel ends all others, and it ends with this process. The second one becomes
//! the program. Both are children of this process. Users who are not root need a user namespace, too. Where the system does not
//! permit this, a [filter](fence) keeps the program from this process.
#![allow(unsafe_code)]

mod fence;

use crate::ptrace::install_filter;
use jail::Child;
use std::ffi::CStr;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};

/// The message of the first child: its number, and those of the init process and of the program. Without a namespace, they are 0,
/// and the first one is [`FENCED`] if there is a filter.
const MESSAGE: usize = 12;
const FENCED: i32 = -1;
/// The largest descriptor that is closed one by one, before Linux 5.9.
const MOST_FILES: RawFd = 4096;

/// The namespaces that the child of a command has left for new ones. Only the child sets it.
static NAMESPACES: AtomicI32 = AtomicI32::new(0);

/// The new namespaces of this process, in the child of a command.
pub(crate) fn namespaces() -> libc::c_int {
    NAMESPACES.load(Ordering::Relaxed)
}

/// The way in which other processes are protected from a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// By nothing: it can signal all processes of its user.
    None,
    /// By a filter: it cannot signal this process.
    Filter,
    /// By a PID namespace: it can signal no other process.
    Namespace,
}

/// The namespace of a program.
#[derive(Debug)]
pub(crate) struct Isolation {
    reader: PipeReader,
    /// The other end of the pipe that this process reads, until the program is started.
    writer: Option<PipeWriter>,
    /// The init process ends when this closes.
    life: Option<PipeWriter>,
}

/// The numbers of the processes, as this one sees them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pids {
    pub(crate) init: i32,
    pub(crate) program: i32,
}

impl Isolation {
    /// Lets a command run in a session of its own, without the right to trace processes of others, and in a PID namespace if
    /// the system permits that, and otherwise with a filter. Call this before another function is registered that runs before the
    /// program. Without `is_alone` it stays in the session. A program in a jail gets more namespaces.
    ///
    /// # Errors
    /// The host has no pipe.
    pub(crate) fn prepare(command: &mut Command, is_alone: bool, is_jailed: bool) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let (ending, life) = io::pipe()?;
        // The observer reads `/proc` with its own numbers.
        let has_proc = outer_pid() == Some(std::process::id().cast_signed());
        let to = writer.as_raw_fd();
        let fence = fence::filter();
        let more = if is_jailed { Child::NAMESPACES } else { 0 };
        let isolate = move || {
            enter(has_proc, more, &fence, to, ending.as_raw_fd())?;
            if is_alone { alone() } else { Ok(()) }
        };
        // SAFETY: the function only makes system calls, which are allowed between fork and exec.
        unsafe { command.pre_exec(isolate) };
        Ok(Self { reader, writer: Some(writer), life: Some(life) })
    }

    /// The protection, and the processes of a namespace, after the command was started.
    pub(crate) fn started(&mut self) -> (Protection, Option<Pids>) {
        drop(self.writer.take());
        let mut message = [0; MESSAGE];
        if self.reader.read_exact(&mut message).is_err() {
            return (Protection::None, None);
        }
        let word = |at: usize| {
            let word = message.get(at..).and_then(|rest| rest.first_chunk());
            word.map_or(0, |word| i32::from_ne_bytes(*word))
        };
        match (word(0), word(4), word(8)) {
            (first @ 1.., init @ 1.., program @ 1..) => {
                // It ends by itself.
                wait(first);
                (Protection::Namespace, Some(Pids { init, program }))
            }
            (FENCED, ..) => (Protection::Filter, None),
            _ => (Protection::None, None),
        }
    }

    /// Ends the processes of a program that could not be started.
    pub(crate) fn give_up(mut self) {
        let (_, pids) = self.started();
        drop(self.life.take());
        if let Some(Pids { init, program }) = pids {
            // The end of the init process is that of the program.
            wait(program);
            wait(init);
        }
    }
}

/// Reaps a child that ends soon.
fn wait(pid: i32) {
    // SAFETY: the call writes no status.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
}

/// The number of this process in the namespace that `/proc` belongs to. Only makes system calls.
pub(crate) fn outer_pid() -> Option<i32> {
    let mut text = [0u8; 16];
    // SAFETY: the path ends with a zero, and the text has as many bytes as the call may write.
    let size = unsafe { libc::readlink(c"/proc/self".as_ptr(), text.as_mut_ptr().cast(), text.len()) };
    let digits = text.get(..usize::try_from(size).ok()?)?;
    digits.iter().try_fold(0i32, |number, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        number.checked_mul(10)?.checked_add(digit.cast_signed())
    })
}

/// Runs in the child before the program. Returns in the program's process. Only makes system calls.
fn enter(
    has_proc: bool,
    more: libc::c_int,
    fence: &[libc::sock_filter],
    to: RawFd,
    ending: RawFd,
) -> io::Result<()> {
    // SAFETY: the calls take no memory. This process was not made dumpable, but its tracer must be able to trace it.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
        libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0);
    }
    let mut pids = [0; 3];
    if has_proc && unshare(more) {
        let [first, init, program] = &mut pids;
        // SAFETY: the call takes no memory, and cannot fail.
        *first = unsafe { libc::getpid() };
        *init = fork_sibling()?;
        if *init == 0 {
            be_init(ending);
        }
        *program = fork_sibling()?;
        if *program == 0 {
            return Ok(());
        }
    } else if install_filter(fence).is_ok() {
        pids = [FENCED, 0, 0];
    }
    let has_namespace = pids.iter().all(|pid| *pid > 0);
    let [first, init, program] = pids.map(i32::to_ne_bytes);
    let mut message = [0; MESSAGE];
    for (to, from) in message.iter_mut().zip([first, init, program].as_flattened()) {
        *to = *from;
    }
    // SAFETY: the message has this size.
    let written = unsafe { libc::write(to, message.as_ptr().cast(), MESSAGE) };
    if has_namespace {
        // SAFETY: the call does not return.
        unsafe { libc::_exit(if written == MESSAGE.cast_signed() { 0 } else { 1 }) };
    }
    Ok(())
}

/// The capability to trace processes of others (capabilities(7)).
const CAP_SYS_PTRACE: libc::c_int = 19;

/// Leaves the session, so that the terminal and the process group are not those of the observer.
fn alone() -> io::Result<()> {
    // SAFETY: the call takes no memory.
    if unsafe { libc::setsid() } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets the next children of this process begin a PID namespace, and leaves `more` namespaces for new ones if the system permits
/// all of them. Returns false if it does not permit a PID namespace.
fn unshare(more: libc::c_int) -> bool {
    // SAFETY: the calls take no memory, and cannot fail.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let few = libc::CLONE_NEWPID;
    let all = few | more;
    let tries = [all, all | libc::CLONE_NEWUSER, few, few | libc::CLONE_NEWUSER];
    // SAFETY: the call takes no memory. One that fails changes nothing.
    let Some(flags) = tries.into_iter().find(|flags| unsafe { libc::unshare(*flags) } == 0) else {
        return false;
    };
    NAMESPACES.store(flags, Ordering::Relaxed);
    if flags & libc::CLONE_NEWUSER == 0 {
        return true;
    }
    // The new namespace has taken this, and with it the files below.
    // SAFETY: the call takes no memory.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    // If one of these fails, the program only sees other numbers.
    write_file(c"/proc/self/setgroups", b"deny");
    write_map(c"/proc/self/gid_map", group);
    write_map(c"/proc/self/uid_map", user);
    true
}

/// Maps a number of a user or group to itself: `ID ID 1`.
fn write_map(path: &CStr, id: u32) {
    let mut text = [0u8; 32];
    let mut digits = [0u8; 10];
    let (mut rest, mut first) = (id, digits.len());
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0'.saturating_add((rest % 10) as u8);
        (rest, first) = (rest / 10, at);
        if rest == 0 {
            break;
        }
    }
    let digits = digits.get(first..).unwrap_or_default();
    let line = digits.iter().chain(b" ").chain(digits).chain(b" 1");
    let size = line.clone().count();
    for (to, from) in text.iter_mut().zip(line) {
        *to = *from;
    }
    write_file(path, text.get(..size).unwrap_or_default());
}

fn write_file(path: &CStr, text: &[u8]) {
    // SAFETY: the path ends with a zero, and the text has this size.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, text.as_ptr().cast(), text.len());
            libc::close(fd);
        }
    }
}

/// Forks a child of the parent of this process. Returns 0 in it.
fn fork_sibling() -> io::Result<i32> {
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: without a new stack and CLONE_VM, the call is a fork. The child only makes system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(pid).unwrap_or_default()) }
}

/// The init process: it reaps orphans, and ends with the observer. It has the observer's memory, so no process of the
/// namespace may trace it.
fn be_init(ending: RawFd) -> ! {
    // SAFETY: the calls only take the byte.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        libc::setsid();
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::dup2(ending, 0);
        if libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) != 0 {
            for fd in 1..MOST_FILES {
                libc::close(fd);
            }
        }
        let mut byte = 0u8;
        // No process writes to the pipe, so this returns when the observer has ended.
        while libc::read(0, (&raw mut byte).cast(), 1) != 0 {}
        libc::_exit(0)
    }
}

/// Hides the memory of this process from other processes of its user: they cannot trace it, and cannot read or write
/// `/proc/PID/mem` (PR_SET_DUMPABLE, ptrace(2)).
pub fn hide_this_process() {
    // SAFETY: the call takes no memory.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_number_of_this_process_is_known() {
        assert_eq!(outer_pid(), Some(std::process::id().cast_signed()));
    }

    #[test]
    fn a_program_sees_no_number_but_its_own() {
        let mut command = Command::new("sh");
        // Signal 0 only asks whether a process could be signalled.
        command.args(["-c", "echo $$; kill -0 \"$0\" 2>/dev/null && echo seen; exit 7"]);
        command.arg(std::process::id().to_string());
        let mut isolation = Isolation::prepare(&mut command, true, false).unwrap();
        let (mut output, writer) = io::pipe().unwrap();
        command.stdout(writer);
        // The isolation reaps it.
        #[allow(clippy::zombie_processes)]
        command.spawn().unwrap();
        drop(command);
        let (_, Some(Pids { init, program })) = isolation.started() else {
            return;
        };
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        let mut status = 0;
        // SAFETY: the status outlives the call.
        assert_eq!(unsafe { libc::waitpid(program, &mut status, 0) }, program);
        assert_eq!((text.as_str(), libc::WEXITSTATUS(status)), ("2\n", 7));
        drop(isolation.life.take());
        wait(init);
        assert!(fs::metadata(format!("/proc/{init}")).is_err());
    }

    #[test]
    fn a_program_that_cannot_be_started_leaves_no_process() {
        let mut command = Command::new("/no/such/program");
        let isolation = Isolation::prepare(&mut command, true, false).unwrap();
        assert!(command.spawn().is_err());
        isolation.give_up();
        let own = std::process::id().cast_signed();
        // Other tests may run beside this one.
        let left = crate::descendants::of(own).into_iter().filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("no/such"))
        });
        assert_eq!(left.count(), 0);
    }
}
