//! The seccomp filters: an allow-list for each kind of thread.

use crate::calls::{self, Kind, Limit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use std::collections::BTreeMap;
use std::io;
use std::mem::offset_of;

/// The requests of KVM have this type in the second byte.
const KVM_REQUESTS: u64 = 0xae00;
const TYPE_MASK: u64 = 0xff00;
/// The requests of a terminal: its mode, its process group, its size, and the bytes that wait.
const TERMINAL: [u64; 7] = [0x5401, 0x5402, 0x5403, 0x5404, 0x540f, 0x5413, 0x541b];

/// A filter that cannot be built is a mistake in the table, which the tests find.
fn wrong<E>(_: E) -> io::Error {
    io::ErrorKind::InvalidInput.into()
}

/// The filter of a kind of thread. `debugs` adds what the server for gdb needs to the first thread, because its threads inherit
/// the filter.
pub(crate) fn program(kind: Kind, debugs: bool) -> io::Result<BpfProgram> {
    let kinds = kind as u8 | if debugs && kind == Kind::Main { Kind::Debugger as u8 } else { 0 };
    let (mut rules, mut free) = (BTreeMap::new(), Vec::new());
    // The first row of a call is the one with most rights.
    for call in calls::CALLS.iter().rev().filter(|call| call.kinds & kinds != 0) {
        match call.limit {
            Limit::Any => free.push(call.number),
            limit => drop(rules.insert(call.number, conditions(limit).map_err(wrong)?)),
        }
    }
    free.reverse();
    let mut program = start(&free, &mut rules.keys().copied()).ok_or_else(|| wrong(()))?;
    let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64);
    let checked: BpfProgram = filter.map_err(wrong)?.try_into().map_err(wrong)?;
    program.extend(checked);
    Ok(program)
}

/// Installs a filter for this thread.
pub(crate) fn install(program: &[sock_filter]) -> io::Result<()> {
    seccompiler::apply_filter(program).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        error => wrong(error),
    })
}

/// The rules of a call: it is allowed if one of them holds, or if there are none.
fn conditions(limit: Limit) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let word = |argument, operator, value| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    let equal = |argument, value: u64| word(argument, SeccompCmpOp::Eq, value);
    match limit {
        Limit::Any => Ok(Vec::new()),
        Limit::Requests => {
            let kvm = word(1, SeccompCmpOp::MaskedEq(TYPE_MASK), KVM_REQUESTS);
            [kvm].into_iter().chain(TERMINAL.map(|request| equal(1, request))).collect()
        }
        Limit::Terminal => TERMINAL.map(|request| equal(1, request)).into_iter().collect(),
        Limit::NotExecutable => {
            let executable = libc::PROT_EXEC.cast_unsigned().into();
            Ok(vec![word(2, SeccompCmpOp::MaskedEq(executable), 0)?])
        }
        Limit::Thread => {
            let thread = libc::CLONE_THREAD.cast_unsigned().into();
            Ok(vec![word(0, SeccompCmpOp::MaskedEq(thread), thread)?])
        }
        Limit::ThreadName => [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS]
            .map(|option| equal(0, option.cast_unsigned().into()))
            .into_iter()
            .collect(),
        Limit::OwnProcess => Ok(vec![equal(0, std::process::id().into())?]),
        Limit::Question => {
            let null = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
            Ok(vec![SeccompRule::new(vec![null])?])
        }
    }
}

/// The start of a filter: it allows the `free` calls, with one instruction for each, and gives ENOSYS for calls that the C library
/// replaces by others. The rest, which seccompiler builds, looks at the arguments of the `checked` calls, at the architecture, and
/// has five instructions for each call. Jumps are relative, so both can stand one after the other. `None` if a jump is too long.
fn start(free: &[libc::c_long], checked: &mut dyn Iterator<Item = libc::c_long>) -> Option<BpfProgram> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const ARCHITECTURE: u32 = 0xc000_003e;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    // The ends, behind the comparisons.
    let (allow, replace, rest) = (1usize, 2, 3);
    let mut targets: Vec<(u32, usize)> = Vec::new();
    let checked = checked.map(|call| (call, rest));
    let replaced = calls::REPLACED.map(|call| (call, replace));
    for (call, to) in checked.chain(free.iter().map(|call| (*call, allow))).chain(replaced) {
        targets.push((u32::try_from(call).ok()?, to));
    }
    let count = targets.len();
    // From the instruction `at` of the comparisons to an end: one of them leads to the rest without a comparison.
    let jump =
        |at: usize, to: usize| u8::try_from(count.checked_sub(at)?.checked_add(to)?.checked_sub(1)?).ok();
    let mut program = vec![
        instruction(LOAD, 0, 0, offset_of!(libc::seccomp_data, arch) as u32),
        // Over the next instruction and all of these.
        instruction(EQUAL, 0, jump(0, rest)?.checked_add(2)?, ARCHITECTURE),
        instruction(LOAD, 0, 0, offset_of!(libc::seccomp_data, nr) as u32),
    ];
    for (at, (call, to)) in targets.into_iter().enumerate() {
        program.push(instruction(EQUAL, jump(at, to)?, 0, call));
    }
    program.extend([
        instruction((libc::BPF_JMP | libc::BPF_JA) as u16, 0, 0, 2),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned()),
    ]);
    Some(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_are_small_enough_for_the_kernel() {
        for kind in Kind::ALL {
            let length = program(kind, true).unwrap().len();
            assert!((50..1000).contains(&length), "{kind:?}: {length}");
        }
        assert!(program(Kind::Main, true).unwrap().len() > program(Kind::Main, false).unwrap().len());
    }
}
