//! The limits of a run in the BIOS: long calls, and waits for a key.
#![allow(clippy::arithmetic_side_effects, clippy::panic)]

use super::*;

#[test]
fn each_call_ends_at_the_deadline_also_in_the_middle_of_a_string() {
    let mut caller = Caller::new(512);
    caller.bios.begin_run(Deadline::after(Some(Duration::ZERO)));
    // A string of line feeds scrolls the screen with each character.
    let text = Regs { rax: 0x1301, rcx: 0xffff, rdx: 0x1800, rbp: 0x2000, rsp: STACK, ..Default::default() };
    caller.vcpu.memory.write(Gpa(0x2000), &[b'\n'; 0x1000]).unwrap();
    let wait = Regs { rax: 0x8600, rdx: 1, rsp: STACK, ..Default::default() };
    for (vector, regs) in [(0x10, text), (0x15, wait), (0x16, ax(0x0100)), (0x13, ax(0)), (0x19, ax(0))] {
        let (outcome, ..) = caller.outcome(vector, regs);
        assert!(matches!(outcome, Outcome::Stop(Stop::Timeout(_))), "{vector:#x}: {outcome:?}");
    }
    assert_eq!(caller.captured.bytes(), b"\n", "the string stops at its first character");
}

/// A guest with a handler of its own goes on after the end of its input, and waits for ever.
#[test]
fn a_wait_for_a_key_counts_towards_the_limit_if_no_key_can_come() {
    let mut caller = Caller::new(512);
    caller.vcpu.memory.write(Gpa(0x20), &[0, 0x60, 0, 0]).unwrap();
    caller.bios.has_controllers = true;
    caller.bios.begin_run(Deadline::after(Some(Duration::from_millis(20))));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if let (Outcome::Stop(stop), ..) = caller.outcome(0x16, ax(0)) {
            return assert!(matches!(stop, Stop::Timeout(_)), "{stop:?}");
        }
    }
    panic!("the wait does not end");
}

/// A guest may ask for a key, and compute or halt elsewhere instead of the wait.
#[test]
fn only_a_wait_in_the_stub_moves_the_limit() {
    let mut caller = Caller::new(512);
    (caller.bios.input, caller.bios.has_controllers) = (Input::none(), true);
    for (rip, waits) in [(u64::from(offset(0x16)) + 7, true), (0x6001, false)] {
        caller.call(0x16, ax(0));
        caller.vcpu.regs.rip = rip;
        caller.vcpu.sregs.cs.base = if waits { 0xf_0000 } else { 0 };
        caller.bios.handle(&Exit::Interrupted, &mut caller.vcpu);
        assert_eq!(caller.bios.awaits_key.is_some(), waits, "{rip:#x}");
    }
    // The same without interrupt controllers: the BIOS itself waits at a halt.
    caller.bios.has_controllers = false;
    caller.bios.begin_run(Deadline::after(Some(Duration::from_millis(20))));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        let (asked, ..) = caller.outcome(0x16, ax(0));
        caller.vcpu.regs = Regs { rip: 0x6001, rflags: 0x202, ..ax(0) };
        caller.vcpu.sregs.cs.base = 0;
        let halted = caller.bios.handle(&Exit::Hlt, &mut caller.vcpu);
        for outcome in [asked, halted] {
            if let Outcome::Stop(stop) = outcome {
                return assert!(matches!(stop, Stop::Timeout(_)), "{stop:?}");
            }
        }
    }
    panic!("the guest does not end");
}
