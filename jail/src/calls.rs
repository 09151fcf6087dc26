//! The system calls that each kind of thread may make in the jail. docs/security.md shows this table, and a test compares both.

use libc::c_long;

/// A kind of thread. Each may make the calls of its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The first thread: it runs the first vCPU, and then writes the results.
    Main = 1,
    /// The thread of another vCPU.
    Vcpu = 2,
    /// The thread of a device.
    Device = 4,
    /// A thread that serves the host's terminal.
    Console = 8,
    /// A thread of the server for gdb, or one that writes the cores of a running guest.
    Debugger = 16,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Main, Self::Vcpu, Self::Device, Self::Console, Self::Debugger];

    /// The name in messages and in the documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vcpu",
            Self::Device => "device",
            Self::Console => "console",
            Self::Debugger => "debugger",
        }
    }

    /// The kind with this bit.
    pub(crate) fn of(bit: u8) -> Self {
        Self::ALL.into_iter().find(|kind| *kind as u8 == bit).unwrap_or(Self::Main)
    }
}

/// A limit of a call to some values of its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Any arguments.
    Any,
    /// `ioctl` with a request of KVM (type 0xAE), or one that asks or sets a terminal.
    Requests,
    /// `ioctl` with a request that asks or sets a terminal.
    Terminal,
    /// A mapping whose memory cannot be executed.
    NotExecutable,
    /// A new thread of this process, and no new process.
    Thread,
    /// The name of a thread, and no_new_privs, which the filter of a thread needs.
    ThreadName,
    /// A signal to a thread of this process.
    OwnProcess,
    /// Questions about a limit, and no change.
    Question,
}

impl Limit {
    /// The text in the documentation.
    pub fn text(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Requests => "requests of KVM (type 0xAE) and of a terminal",
            Self::Terminal => {
                "requests of a terminal: its mode, size, process group, and the bytes that wait"
            }
            Self::NotExecutable => "without PROT_EXEC",
            Self::Thread => "with CLONE_THREAD: a thread of this process",
            Self::ThreadName => "PR_SET_NAME, PR_SET_NO_NEW_PRIVS",
            Self::OwnProcess => "this process",
            Self::Question => "without new limits",
        }
    }
}

/// A system call that some kinds of threads may make.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number.
    pub number: c_long,
    /// The bits of the kinds.
    pub kinds: u8,
    /// The limit to its arguments.
    pub limit: Limit,
}

const M: u8 = Kind::Main as u8;
const V: u8 = Kind::Vcpu as u8;
const D: u8 = Kind::Device as u8;
const C: u8 = Kind::Console as u8;
const G: u8 = Kind::Debugger as u8;
const ALL: u8 = M | V | D | C | G;
/// The threads that write files.
const FILES: u8 = M | G;

const fn call(number: c_long, kinds: u8) -> Call {
    Call { number, kinds, limit: Limit::Any }
}

const fn limited(number: c_long, kinds: u8, limit: Limit) -> Call {
    Call { number, kinds, limit }
}

/// The calls, those of the inner loops first. All others end the program.
pub const CALLS: &[Call] = &[
    limited(libc::SYS_ioctl, M | V | C | G, Limit::Requests),
    // A signal that ends the program gives the terminal back, on any thread.
    limited(libc::SYS_ioctl, D, Limit::Terminal),
    call(libc::SYS_read, ALL),
    call(libc::SYS_write, ALL),
    call(libc::SYS_futex, ALL),
    call(libc::SYS_ppoll, ALL),
    call(libc::SYS_poll, ALL),
    call(libc::SYS_sched_yield, ALL),
    call(libc::SYS_rt_sigreturn, ALL),
    call(libc::SYS_close, ALL),
    call(libc::SYS_dup, M | C | G),
    call(libc::SYS_fcntl, ALL),
    call(libc::SYS_readv, ALL),
    call(libc::SYS_writev, ALL),
    call(libc::SYS_preadv, M | V | D),
    call(libc::SYS_pwritev, M | V | D),
    call(libc::SYS_pread64, M | V | D | G),
    call(libc::SYS_pwrite64, M | V | D | G),
    call(libc::SYS_fsync, M | V | D | G),
    call(libc::SYS_fdatasync, M | V | D | G),
    call(libc::SYS_sync_file_range, M | V | D),
    call(libc::SYS_lseek, M | V | D | G),
    // Memory.
    call(libc::SYS_brk, ALL),
    limited(libc::SYS_mmap, ALL, Limit::NotExecutable),
    limited(libc::SYS_mprotect, ALL, Limit::NotExecutable),
    call(libc::SYS_munmap, ALL),
    call(libc::SYS_mremap, ALL),
    call(libc::SYS_madvise, ALL),
    // Signals, timers and threads.
    call(libc::SYS_rt_sigaction, ALL),
    call(libc::SYS_rt_sigprocmask, ALL),
    call(libc::SYS_sigaltstack, ALL),
    limited(libc::SYS_tgkill, ALL, Limit::OwnProcess),
    limited(libc::SYS_kill, ALL, Limit::OwnProcess),
    call(libc::SYS_getpid, ALL),
    call(libc::SYS_gettid, ALL),
    call(libc::SYS_timer_create, M | V),
    call(libc::SYS_timer_settime, M | V),
    call(libc::SYS_timer_delete, M | V),
    call(libc::SYS_setitimer, ALL),
    call(libc::SYS_nanosleep, ALL),
    call(libc::SYS_clock_nanosleep, ALL),
    call(libc::SYS_clock_gettime, ALL),
    call(libc::SYS_gettimeofday, ALL),
    call(libc::SYS_restart_syscall, ALL),
    call(libc::SYS_set_robust_list, ALL),
    call(libc::SYS_rseq, ALL),
    limited(libc::SYS_prctl, ALL, Limit::ThreadName),
    // A filter can only take more away.
    call(libc::SYS_seccomp, ALL),
    call(libc::SYS_getrandom, ALL),
    call(libc::SYS_exit, ALL),
    call(libc::SYS_exit_group, ALL),
    limited(libc::SYS_clone, M | G, Limit::Thread),
    call(libc::SYS_sched_getaffinity, ALL),
    // Events and sockets that are open.
    call(libc::SYS_eventfd2, M | V | D | C),
    call(libc::SYS_epoll_create1, M | V | D),
    call(libc::SYS_epoll_ctl, M | V | D),
    call(libc::SYS_epoll_wait, M | D),
    call(libc::SYS_epoll_pwait, M | D),
    call(libc::SYS_accept4, G),
    call(libc::SYS_recvfrom, G),
    call(libc::SYS_sendto, M | G),
    call(libc::SYS_shutdown, M | G),
    call(libc::SYS_setsockopt, G),
    // Files: Landlock limits them to those of the policy.
    call(libc::SYS_openat, FILES),
    call(libc::SYS_fstat, ALL),
    call(libc::SYS_newfstatat, FILES),
    call(libc::SYS_statx, FILES),
    call(libc::SYS_rename, FILES),
    call(libc::SYS_unlink, FILES),
    call(libc::SYS_ftruncate, FILES),
    call(libc::SYS_fallocate, FILES),
    call(libc::SYS_fchmod, FILES),
    call(libc::SYS_copy_file_range, FILES),
    call(libc::SYS_sendfile, FILES),
    call(libc::SYS_getdents64, FILES),
    call(libc::SYS_getcwd, FILES),
    call(libc::SYS_readlink, FILES),
    call(libc::SYS_readlinkat, FILES),
    call(libc::SYS_access, FILES),
    call(libc::SYS_faccessat2, FILES),
    // Facts about this process and the host.
    call(libc::SYS_geteuid, ALL),
    call(libc::SYS_getegid, ALL),
    call(libc::SYS_getuid, ALL),
    call(libc::SYS_getgid, ALL),
    call(libc::SYS_getgroups, FILES),
    call(libc::SYS_getpgrp, M | C | G),
    call(libc::SYS_uname, M),
    call(libc::SYS_getrusage, M),
    limited(libc::SYS_prlimit64, M | G, Limit::Question),
];

/// The system calls that are refused with ENOSYS instead of ending the program: the C library then uses another one.
pub const REPLACED: [c_long; 1] = [libc::SYS_clone3];

/// The calls of a kind of thread.
pub fn of(kind: Kind) -> impl Iterator<Item = &'static Call> {
    CALLS.iter().filter(move |call| call.kinds & kind as u8 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_in_the_table_once_and_has_a_name() {
        for kind in Kind::ALL {
            let mut numbers: Vec<_> = of(kind).map(|call| call.number).chain(REPLACED).collect();
            let count = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), count, "{kind:?}");
            for number in numbers {
                assert!(crate::names::name(i32::try_from(number).unwrap()).is_some(), "{number}");
            }
        }
    }

    /// A thread inherits the filter of the first one, so a call that is missing there is missing everywhere.
    #[test]
    fn the_first_thread_may_do_what_the_others_may() {
        let first: Vec<_> = of(Kind::Main).map(|call| call.number).collect();
        for call in CALLS.iter().filter(|call| !first.contains(&call.number)) {
            assert_eq!(call.kinds, G, "{}", call.number);
        }
    }
}
