//! The system calls of the engine: ptrace(2), and the calls that look into another process.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::time::Duration;

/// The registers of a thread.
pub(super) type Registers = libc::user_regs_struct;

/// The size of the part of a vCPU's mapping that is read: `kvm_run`, and the data of port I/O.
const MAPPED: usize = 2 * 4096;
/// The place of RAX in `struct user`, in bytes.
const RAX: usize = mem::offset_of!(libc::user_regs_struct, rax);
/// The size of the kernel's signal sets in bytes.
const SIGNAL_SET: usize = 8;
/// PIDFD_THREAD, since Linux 6.9.
const PIDFD_THREAD: libc::c_int = libc::O_EXCL;
/// The types of kcmp(2).
const KCMP_FILE: libc::c_long = 0;
const KCMP_VM: libc::c_long = 1;

/// A way in which a stopped thread goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resume {
    /// Until the next event.
    Continue,
    /// Until the start or the end of the next system call, or the next event.
    ToSystemCall,
    /// It stays stopped, as its whole process is.
    Listen,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Calls ptrace with addresses that it does not use as memory of this process.
fn ptrace(request: libc::c_long, tid: i32, address: usize, data: usize) -> io::Result<libc::c_long> {
    // SAFETY: the callers give no address of this process.
    check(unsafe { libc::ptrace(request as _, tid, address, data) })
}

/// Begins to trace a process. It is killed when this process ends.
pub(super) fn seize(pid: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACESECCOMP
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_EXITKILL;
    ptrace(libc::PTRACE_SEIZE.into(), pid, 0, options as usize).map(drop)
}

/// Begins to trace a thread for a moment. It goes on when this process ends.
pub(super) fn seize_briefly(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SEIZE.into(), tid, 0, libc::PTRACE_O_TRACESYSGOOD as usize).map(drop)
}

/// Lets a stopped thread go on with a signal, or with none (0). A thread that has been killed meanwhile is no error.
pub(super) fn resume(tid: i32, how: Resume, signal: i32) {
    let request = match how {
        Resume::Continue => libc::PTRACE_CONT.into(),
        Resume::ToSystemCall => libc::PTRACE_SYSCALL.into(),
        Resume::Listen => libc::PTRACE_LISTEN.into(),
    };
    let _ = ptrace(request, tid, 0, signal as usize);
}

/// Makes a running thread stop soon.
pub(super) fn interrupt(tid: i32) {
    let _ = ptrace(libc::PTRACE_INTERRUPT.into(), tid, 0, 0);
}

/// Ends the tracing of a stopped thread, which goes on with a signal or with none (0).
pub(super) fn detach(tid: i32, signal: i32) {
    let _ = ptrace(libc::PTRACE_DETACH.into(), tid, 0, signal as usize);
}

/// Returns the registers of a stopped thread.
pub(super) fn registers(tid: i32) -> io::Result<Registers> {
    // SAFETY: all zeroes are valid registers.
    let mut registers: Registers = unsafe { mem::zeroed() };
    // SAFETY: the registers outlive the call.
    check(unsafe { libc::ptrace(libc::PTRACE_GETREGS as _, tid, 0usize, &raw mut registers) })?;
    Ok(registers)
}

/// Changes the registers of a stopped thread.
pub(super) fn set_registers(tid: i32, registers: &Registers) -> io::Result<()> {
    // SAFETY: the registers outlive the call.
    check(unsafe { libc::ptrace(libc::PTRACE_SETREGS as _, tid, 0usize, &raw const *registers) }).map(drop)
}

/// Returns the result of the system call that a thread has ended.
pub(super) fn result(tid: i32) -> io::Result<i64> {
    // The C library returns the word, so that only errno tells of an error.
    // SAFETY: the location of errno is valid.
    unsafe { *libc::__errno_location() = 0 };
    // SAFETY: the request reads no memory of this process.
    let word = unsafe { libc::ptrace(libc::PTRACE_PEEKUSER as _, tid, RAX, 0usize) };
    let error = io::Error::last_os_error();
    if word == -1 && error.raw_os_error() != Some(0) { Err(error) } else { Ok(word) }
}

/// Returns the message of an event: the number of a new thread, or the former number of one that has called `execve`.
pub(super) fn message(tid: i32) -> io::Result<libc::c_ulong> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the message outlives the call.
    check(unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG as _, tid, 0usize, &raw mut message) })?;
    Ok(message)
}

/// Returns the child or thread that a thread has made, if it stopped for that.
pub(super) fn new_child(tid: i32, status: i32) -> Option<i32> {
    const MAKES: [i32; 3] = [libc::PTRACE_EVENT_FORK, libc::PTRACE_EVENT_VFORK, libc::PTRACE_EVENT_CLONE];
    let makes = libc::WIFSTOPPED(status) && MAKES.contains(&(status >> 16));
    makes.then(|| message(tid).ok()).flatten().and_then(|child| i32::try_from(child).ok())
}

/// Returns the blocked signals of a stopped thread.
pub(super) fn signal_mask(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    // SAFETY: the mask outlives the call, and has the size that is given.
    check(unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK as _, tid, SIGNAL_SET, &raw mut mask) })?;
    Ok(mask)
}

/// Changes the blocked signals of a stopped thread.
pub(super) fn set_signal_mask(tid: i32, mask: u64) -> io::Result<()> {
    // SAFETY: as above.
    check(unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK as _, tid, SIGNAL_SET, &raw const mask) }).map(drop)
}

/// Returns true if a thread has stopped, and false if it has ended, within a time. The state is left for [`stopped`], or for
/// waitpid(2).
pub(super) fn wait_for_stop(tid: i32, blocks: bool) -> io::Result<Option<bool>> {
    // SAFETY: all zeroes are a valid value.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let mut flags = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT | libc::__WALL;
    if !blocks {
        flags |= libc::WNOHANG;
    }
    // SAFETY: the information outlives the call.
    check(unsafe { libc::waitid(libc::P_PID, tid.cast_unsigned(), &mut info, flags) }.into())?;
    // SAFETY: the kernel has filled the members for SIGCHLD, or left all zeroes.
    let who = unsafe { info.si_pid() };
    Ok((who != 0).then_some(matches!(info.si_code, libc::CLD_TRAPPED | libc::CLD_STOPPED)))
}

/// Takes the state of a thread that [`wait_for_stop`] has seen.
pub(super) fn stopped(tid: i32) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: the status outlives the call.
    check(unsafe { libc::waitpid(tid, &mut status, libc::WNOHANG | libc::__WALL) }.into())?;
    Ok(status)
}

/// Takes the next state of any child or traced thread; `None` if there is none now, and an error if there are no children.
pub(super) fn any_stopped() -> io::Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: the status outlives the call.
    let pid = check(unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) }.into())?;
    Ok(i32::try_from(pid).ok().filter(|pid| *pid > 0).map(|pid| (pid, status)))
}

/// Opens a thread or, before Linux 6.9, its process.
pub(super) fn open_thread(tid: i32, tgid: i32) -> io::Result<OwnedFd> {
    let open = |pid: i32, flags: libc::c_int| {
        // SAFETY: the call takes no memory.
        let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })?;
        // SAFETY: the descriptor is new.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    };
    open(tid, PIDFD_THREAD).or_else(|_: io::Error| open(tgid, 0))
}

/// Takes a duplicate of a descriptor of another process (pidfd_getfd(2)).
pub(super) fn take_descriptor(process: &OwnedFd, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no memory.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })?;
    // SAFETY: the descriptor is new.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Kills a process that is open.
pub(super) fn kill(process: &OwnedFd) {
    let none = ptr::null::<libc::siginfo_t>();
    // SAFETY: without information about the signal, the call takes no memory.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, none, 0) };
}

fn kcmp(tid: i32, other: i32, kind: libc::c_long, fd: i32, other_fd: i32) -> io::Result<bool> {
    // SAFETY: the call takes no memory.
    check(unsafe { libc::syscall(libc::SYS_kcmp, tid, other, kind, fd, other_fd) }).map(|order| order == 0)
}

/// True if a descriptor of a thread, and one of this process, are of one open file (kcmp(2)).
pub(super) fn is_same_file(tid: i32, fd: i32, own: BorrowedFd<'_>) -> io::Result<bool> {
    kcmp(tid, std::process::id().cast_signed(), KCMP_FILE, fd, own.as_raw_fd())
}

/// True if two threads have the same memory.
pub(super) fn is_same_memory(tid: i32, other: i32) -> bool {
    kcmp(tid, other, KCMP_VM, 0, 0).unwrap_or(false)
}

/// Reads the memory of another process. Returns the number of bytes that could be read.
pub(super) fn read_memory(pid: i32, address: u64, into: &mut [u8]) -> usize {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: the buffer outlives the call. The address is one of the other process, and the kernel checks it.
    let read = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
    usize::try_from(read).unwrap_or(0)
}

/// The mapping of a vCPU. It is read, except for one flag.
#[derive(Debug)]
pub(super) struct Mapping(*const u8);

impl Mapping {
    /// Maps a vCPU.
    pub(super) fn new(vcpu: BorrowedFd<'_>) -> io::Result<Self> {
        let none = ptr::null_mut();
        // SAFETY: a new mapping changes no memory of this process.
        let at = unsafe { libc::mmap(none, MAPPED, libc::PROT_READ, libc::MAP_SHARED, vcpu.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(at.cast())) }
    }

    /// Reads a word; 0 if it is outside. KVM and the program may write it at the same time.
    pub(super) fn long(&self, at: usize) -> u64 {
        if at > MAPPED - 8 {
            return 0;
        }
        // SAFETY: the place is in the mapping, which lives as long as this. Its pages are the kernel's, so that they are
        // always there. The type needs no alignment, and all of its values are valid.
        u64::from_ne_bytes(unsafe { self.0.add(at).cast::<[u8; 8]>().read_volatile() })
    }
}

impl Mapping {
    /// Sets bits of a byte while the program does not run. Returns false if the mapping cannot be written.
    pub(super) fn set_bits(&self, at: usize, bits: u8) -> bool {
        let protect = |protection| {
            // SAFETY: the range is this mapping. Its protection does not matter to the reads of it.
            unsafe { libc::mprotect(self.0.cast_mut().cast(), MAPPED, protection) == 0 }
        };
        if at >= MAPPED || !protect(libc::PROT_READ | libc::PROT_WRITE) {
            return false;
        }
        // SAFETY: the place is in the mapping, which is writable now, and lives as long as this. The kernel and the program may
        // write it at the same time, so the access is volatile, as the reads are. There are no references to it.
        unsafe {
            let place = self.0.cast_mut().add(at);
            place.write_volatile(place.read_volatile() | bits);
        }
        protect(libc::PROT_READ)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing else uses the mapping.
        unsafe { libc::munmap(self.0.cast_mut().cast(), MAPPED) };
    }
}

/// True if KVM can report the general registers at each exit without a call (KVM_CAP_SYNC_REGS).
pub(super) fn syncs_registers() -> bool {
    const CHECK_EXTENSION: libc::Ioctl = 0xae03;
    const SYNC_REGS: libc::c_ulong = 74;
    let Ok(kvm) = std::fs::File::open("/dev/kvm") else { return false };
    // SAFETY: the call takes a number, and no memory.
    let sets = unsafe { libc::ioctl(kvm.as_raw_fd(), CHECK_EXTENSION, SYNC_REGS) };
    sets > 0 && sets & 1 == 1
}

/// Lets a function run in the child between fork and exec. It may only make system calls.
pub(super) fn before_exec(
    command: &mut Command,
    function: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the functions of this engine only make system calls.
    unsafe { command.pre_exec(function) };
}

/// Installs a seccomp filter in this thread, and in the programs that it executes. Without the privilege to do so, it gives
/// up all privileges that a program could gain first. Only makes system calls.
pub(crate) fn install_filter(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_ptr().cast_mut(),
    };
    let install = |flags: libc::c_ulong| {
        let operation = libc::SECCOMP_SET_MODE_FILTER;
        // SAFETY: the filter outlives the call, which only reads it.
        check(unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) }).map(drop)
    };
    // Before Linux 5.16, programs with filters otherwise run with costly mitigations.
    let install = || install(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW).or_else(|_| install(0));
    install().or_else(|_| {
        // SAFETY: the call takes no memory.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
        install()
    })
}

/// The kernel's `struct sigaction`: the handler, the flags, the restorer, and the blocked signals.
type Action = [u64; 4];
/// The signal with which the C library changes the user of all threads. It installs a handler with the first thread.
const SIGSETXID: libc::c_int = 33;

/// True if the signal that the C library uses for threads is ignored. The C library's own functions do not tell.
pub(super) fn ignores_setxid() -> bool {
    let (none, mut action) = (ptr::null::<Action>(), [0; 4]);
    // SAFETY: the action outlives the call.
    let got = unsafe { libc::syscall(libc::SYS_rt_sigaction, SIGSETXID, none, &raw mut action, SIGNAL_SET) };
    got == 0 && action.first() == Some(&(libc::SIG_IGN as u64))
}

/// Ignores this signal again, between fork and exec.
pub(super) fn ignore_setxid() {
    let (none, action): (*mut Action, Action) = (ptr::null_mut(), [libc::SIG_IGN as u64, 0, 0, 0]);
    // SAFETY: the action outlives the call.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, SIGSETXID, &raw const action, none, SIGNAL_SET) };
}

/// Closes a descriptor by its number, between fork and exec.
pub(super) fn close(fd: RawFd) {
    // SAFETY: the caller is a child that uses the descriptor no more.
    unsafe { libc::close(fd) };
}

/// Writes to a descriptor by its number, between fork and exec.
pub(super) fn write(fd: RawFd, bytes: &[u8]) -> bool {
    // SAFETY: the bytes outlive the call.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(written).is_ok_and(|written| written == bytes.len())
}

/// Reads from a descriptor by its number, between fork and exec.
pub(super) fn read(fd: RawFd, bytes: &mut [u8]) -> bool {
    // SAFETY: the bytes outlive the call.
    let read = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) };
    usize::try_from(read).is_ok_and(|read| read == bytes.len())
}

/// The number of this process.
pub(super) fn own_pid() -> i32 {
    // SAFETY: the call takes no memory, and cannot fail.
    unsafe { libc::getpid() }
}

/// Raises the limit of open files of this process up to `most`, and returns the limit of before. Each vCPU needs some.
pub(super) fn raise_file_limit(most: u64) -> Option<libc::rlimit> {
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut before) }.into()).ok()?;
    set_file_limit(&libc::rlimit { rlim_cur: before.rlim_max.min(most).max(before.rlim_cur), ..before });
    Some(before)
}

/// Sets the limit of open files of this process.
pub(super) fn set_file_limit(limit: &libc::rlimit) {
    // SAFETY: the limit outlives the call.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) };
}

/// A timer that interrupts the blocking system calls of this thread again and again while it lives.
#[derive(Debug)]
pub(super) struct Ticks {
    timer: libc::timer_t,
    signal: i32,
    before: libc::sigaction,
}

impl Ticks {
    /// Starts the timer.
    pub(super) fn new(period: Duration) -> io::Result<Self> {
        extern "C" fn nothing(_: libc::c_int) {}
        let signal = libc::SIGRTMIN().saturating_add(4);
        let period =
            libc::timespec { tv_sec: period.as_secs().cast_signed(), tv_nsec: period.subsec_nanos().into() };
        // SAFETY: all zeroes are valid values of these structures. The handler does nothing. All values outlive their calls.
        unsafe {
            let (mut action, mut before): (libc::sigaction, libc::sigaction) = (mem::zeroed(), mem::zeroed());
            action.sa_sigaction = nothing as *const () as libc::sighandler_t;
            check(libc::sigaction(signal, &action, &mut before).into())?;
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigaddset(&mut set, signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
            let mut event: libc::sigevent = mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = libc::syscall(libc::SYS_gettid) as libc::c_int;
            let mut timer: libc::timer_t = mem::zeroed();
            check(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer).into())?;
            let ticks = Self { timer, signal, before };
            let times = libc::itimerspec { it_interval: period, it_value: period };
            check(libc::timer_settime(timer, 0, &times, ptr::null_mut()).into())?;
            Ok(ticks)
        }
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        // SAFETY: the timer is this one's, and the action is the one of before.
        unsafe {
            libc::timer_delete(self.timer);
            libc::sigaction(self.signal, &self.before, ptr::null_mut());
        }
    }
}
