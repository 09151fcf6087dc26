//! A seccomp filter that protects this process where the system permits no PID namespace: the program cannot signal it, change
//! its limits, or slow it down. It can still do so to other processes of its user.

use libc::{c_long, sock_filter};
use std::fs;
use std::mem::offset_of;

/// AUDIT_ARCH_X86_64, and the bit of the system calls of x32.
const X86_64: u32 = 0xc000_003e;
const X32: u32 = 0x4000_0000;
/// The largest number of threads of this process that are protected.
const MOST_THREADS: usize = 32;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JUMP_FROM: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const FORBID: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();

const NUMBER: u32 = offset_of!(libc::seccomp_data, nr) as u32;
const ARCHITECTURE: u32 = offset_of!(libc::seccomp_data, arch) as u32;
const ARGUMENTS: u32 = offset_of!(libc::seccomp_data, args) as u32;

/// The requests of `ioctl` that name the process for the signals of a file (FIOSETOWN, SIOCSPGRP), and that of `fcntl`.
const OWNERS: [u32; 2] = [0x8901, 0x8902];
const F_SETOWN_EX: u32 = 15;

/// The system calls whose argument with this index names a process or a thread.
const CALLS: [(c_long, u32); 14] = [
    (libc::SYS_kill, 0),
    (libc::SYS_tkill, 0),
    (libc::SYS_tgkill, 0),
    (libc::SYS_rt_sigqueueinfo, 0),
    (libc::SYS_rt_tgsigqueueinfo, 0),
    (libc::SYS_pidfd_open, 0),
    (libc::SYS_prlimit64, 0),
    (libc::SYS_sched_setparam, 0),
    (libc::SYS_sched_setscheduler, 0),
    (libc::SYS_sched_setaffinity, 0),
    (libc::SYS_sched_setattr, 0),
    (libc::SYS_setpriority, 1),
    (libc::SYS_ioprio_set, 1),
    (libc::SYS_ptrace, 1),
];

const fn instruction(code: u32, operand: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k: operand }
}

/// Skips so many instructions if the loaded word is not this one.
const fn unless(operand: u32, skip: u8) -> sock_filter {
    sock_filter { code: JUMP_EQUAL as u16, jt: 0, jf: skip, k: operand }
}

/// The filter that protects this process (Linux `Documentation/userspace-api/seccomp_filter.rst`).
pub(super) fn filter() -> Vec<sock_filter> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let threads = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    let mut threads: Vec<i32> = threads.take(MOST_THREADS).collect();
    threads.push(std::process::id().cast_signed());
    // SAFETY: the call takes no memory, and cannot fail.
    #[allow(unsafe_code)]
    let group = unsafe { libc::getpgrp() };
    filter_for(&threads, group)
}

/// The filter that protects a process with these threads and this process group.
fn filter_for(threads: &[i32], group: i32) -> Vec<sock_filter> {
    let own = threads.iter().copied().chain([group, group.saturating_neg(), -1]);
    let own: Vec<u32> = own.map(i32::cast_unsigned).collect();
    let set_owner = [libc::F_SETOWN.cast_unsigned(), F_SETOWN_EX];
    let named = CALLS.iter().map(|(number, index)| (*number, *index, own.as_slice()));
    let owners = [(libc::SYS_fcntl, 1, &set_owner[..]), (libc::SYS_ioctl, 1, &OWNERS[..])];
    let mut code = vec![
        instruction(LOAD, ARCHITECTURE),
        unless(X86_64, 2),
        instruction(LOAD, NUMBER),
        sock_filter { code: JUMP_FROM as u16, jt: 0, jf: 1, k: X32 },
        instruction(RETURN, FORBID),
        // A descriptor of `/proc/PID` may stand for any process.
        unless(number(libc::SYS_pidfd_send_signal), 1),
        instruction(RETURN, FORBID),
    ];
    for (call, index, values) in named.chain(owners) {
        let skip = values.len().saturating_mul(2).saturating_add(2);
        code.push(unless(number(call), u8::try_from(skip).unwrap_or(u8::MAX)));
        code.push(instruction(LOAD, ARGUMENTS.saturating_add(index.saturating_mul(8))));
        for value in values {
            code.extend([unless(*value, 1), instruction(RETURN, FORBID)]);
        }
        code.push(instruction(RETURN, libc::SECCOMP_RET_ALLOW));
    }
    code.push(instruction(RETURN, libc::SECCOMP_RET_ALLOW));
    code
}

fn number(call: c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    /// Runs a filter on a system call.
    fn run(code: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 2]) -> u32 {
        let mut data = [0; size_of::<libc::seccomp_data>()];
        data[NUMBER as usize..][..4].copy_from_slice(&number.to_ne_bytes());
        data[ARCHITECTURE as usize..][..4].copy_from_slice(&architecture.to_ne_bytes());
        for (index, argument) in arguments.iter().enumerate() {
            data[ARGUMENTS as usize + index * 8..][..8].copy_from_slice(&argument.to_ne_bytes());
        }
        let (mut at, mut word) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = code[at];
            at += 1;
            match u32::from(code) {
                LOAD => word = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap()),
                JUMP_EQUAL => at += usize::from(if word == k { jt } else { jf }),
                JUMP_FROM => at += usize::from(if word >= k { jt } else { jf }),
                RETURN => return k,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn only_the_protected_process_cannot_be_named() {
        let code = filter_for(&[700, 701], 690);
        assert!(code.len() < 4096, "the kernel's limit");
        let negative = |pid: i32| u64::from((-pid).cast_unsigned());
        for (call, arguments, is_forbidden) in [
            (libc::SYS_kill, [700, 9], true),
            (libc::SYS_kill, [701, 19], true),
            (libc::SYS_kill, [negative(690), 9], true),
            (libc::SYS_kill, [negative(1), 9], true),
            (libc::SYS_kill, [u64::MAX, 9], true),
            (libc::SYS_kill, [0, 9], false),
            (libc::SYS_kill, [702, 9], false),
            (libc::SYS_kill, [negative(702), 9], false),
            (libc::SYS_tgkill, [700, 701], true),
            (libc::SYS_tgkill, [702, 702], false),
            (libc::SYS_tkill, [701, 9], true),
            (libc::SYS_prlimit64, [0, 0], false),
            (libc::SYS_prlimit64, [700, 0], true),
            (libc::SYS_setpriority, [0, 700], true),
            (libc::SYS_setpriority, [0, 0], false),
            (libc::SYS_pidfd_open, [700, 0], true),
            (libc::SYS_pidfd_send_signal, [3, 9], true),
            (libc::SYS_fcntl, [3, 8], true),
            (libc::SYS_fcntl, [3, 3], false),
            (libc::SYS_ioctl, [3, 0x8901], true),
            (libc::SYS_ioctl, [3, 0xae80], false),
            (libc::SYS_read, [700, 0], false),
        ] {
            let right = if is_forbidden { FORBID } else { libc::SECCOMP_RET_ALLOW };
            assert_eq!(run(&code, X86_64, number(call), arguments), right, "{call} {arguments:?}");
        }
        // The same calls by other numbers: those of x32 and of i386.
        assert_eq!(run(&code, X86_64, number(libc::SYS_kill) | X32, [700, 9]), FORBID);
        assert_eq!(run(&code, 0x4000_0003, 37, [700, 9]), FORBID);
    }

    #[test]
    fn the_longest_filter_can_be_installed() {
        let threads: Vec<i32> = (1..=MOST_THREADS as i32 + 1).collect();
        let code = filter_for(&threads, 5);
        let longest = code.iter().map(|one| one.jf).max().unwrap();
        assert!(longest < u8::MAX && code.len() < 4096, "{longest} {}", code.len());
    }
}
