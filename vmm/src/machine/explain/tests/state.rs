//! The broken rules in an explanation, beside its other parts.

use super::*;
use crate::exit::Instruction as Bytes;
use crate::machine::Processor;
use std::time::Duration;

/// UD2, and NOP.
const UNDEFINED: &[u8] = &[0x0f, 0x0b];
const NOP: &[u8] = &[0x90];

/// The suspicion and the lines with broken rules, of a long-mode guest in a changed state.
fn told(
    code: &[u8],
    stop: &Stop,
    change: impl FnOnce(&mut Regs, &mut Sregs, &GuestMemory),
) -> (String, String) {
    let memory = GuestMemory::new(&[(Gpa(0), 0x10_0000), (TABLES, TABLES_SIZE)]).unwrap();
    let tables = Gpa(TABLES.0 + PAGE);
    memory.write(tables, &modes::bytes(&modes::identity_map(tables))).unwrap();
    memory.write(Gpa(0x1000), code).unwrap();
    let (mut regs, mut sregs) = (Regs { rflags: 2, ..at_code() }, right_sregs());
    change(&mut regs, &mut sregs, &memory);
    let location = Location::At { mode: Mode::Long, cs: sregs.cs.selector, rip: regs.rip };
    let explanation = Explanation::new(location, regs, sregs, &memory, &DIED).unwrap();
    let explanation = explanation.with_state_check(stop, Processor::Soft, &memory, None);
    let text = explanation.to_string();
    let lines: Vec<_> =
        text.lines().filter(|line| line.starts_with("  broken") || line.starts_with("  hint")).collect();
    (explanation.suspicion().unwrap_or("none").into(), lines.join("\n"))
}

/// The registers of a guest in long mode, which break no rule.
fn right_sregs() -> Sregs {
    let mut sregs = modes::sregs(Mode::Long, Sregs::default(), TABLES, modes::VcpuIndex::ALONE);
    (sregs.tr.type_, sregs.tr.present) = (0xb, 1);
    sregs
}

fn both_widths(_: &mut Regs, sregs: &mut Sregs, _: &GuestMemory) {
    sregs.cs.db = 1;
}

const BOTH: &str = "CS.L and CS.D are both 1: 64-bit code has CS.D 0 (Intel SDM vol. 3, 28.3.1.2)";

#[test]
fn a_broken_rule_is_the_cause_only_if_there_is_no_other() {
    let line = format!("  broken rule  {BOTH}");
    for (code, stop, suspicion, lines) in [
        (NOP, Stop::TripleFault, BOTH, ""),
        (NOP, Stop::EmulationFailure(Bytes::default()), BOTH, ""),
        (NOP, Stop::FailedEntry(7), BOTH, ""),
        (NOP, Stop::UnknownExit(17), "none", &line),
        (UNDEFINED, Stop::TripleFault, "#UD: an undefined instruction", &line),
        // The guest did not execute this instruction.
        (UNDEFINED, Stop::FailedEntry(7), BOTH, ""),
        (NOP, Stop::Timeout(Duration::ZERO), "none", ""),
    ] {
        assert_eq!(told(code, &stop, both_widths), (suspicion.into(), lines.into()), "{stop}");
    }
}

/// Some hosts repeat an access through page tables that are nowhere for ever, so that the guest does not end.
#[test]
fn a_timeout_is_explained_by_page_tables_outside_of_memory() {
    const LOST: &str = "PML4[0] is 0x40000003, which points outside of every memory slot (Intel SDM vol. 3, 5.2): some hosts repeat \
                        this access for ever";
    let lose = |_: &mut Regs, _: &mut Sregs, memory: &GuestMemory| {
        memory.write(Gpa(TABLES.0 + PAGE), &0x4000_0003u64.to_le_bytes()).unwrap();
    };
    for stop in [Stop::Timeout(Duration::ZERO), Stop::WallTimeout(Duration::ZERO)] {
        assert_eq!(told(NOP, &stop, lose), (LOST.into(), String::new()), "{stop}");
        assert_eq!(told(NOP, &stop, |_, _, _| {}), ("none".into(), String::new()));
    }
    // Only the stack is lost, which the guest may not use.
    let stack = |regs: &mut Regs, _: &mut Sregs, memory: &GuestMemory| {
        memory.write(Gpa(TABLES.0 + PAGE + 8), &0x4000_0003u64.to_le_bytes()).unwrap();
        regs.rsp = 1 << 39 | 0x1000;
    };
    let (suspicion, lines) = told(NOP, &Stop::Timeout(Duration::ZERO), stack);
    assert_eq!(suspicion, "none");
    assert!(lines.starts_with("  hint         PML4[1] is 0x40000003, which points outside"), "{lines}");
}

#[test]
fn a_right_state_adds_nothing() {
    for stop in [Stop::TripleFault, Stop::FailedEntry(7)] {
        assert_eq!(told(NOP, &stop, |_, _, _| {}), ("none".into(), String::new()));
    }
    let undefined = told(UNDEFINED, &Stop::FailedEntry(7), |_, _, _| {});
    assert_eq!(undefined.0, "none", "a guest that was not entered did not execute it");
}

/// XORPS.
const SSE: &[u8] = &[0x0f, 0x57, 0xc0];

#[test]
fn the_bit_beside_osfxsr_is_named_only_if_the_guest_needs_sse() {
    let count_cycles = |_: &mut Regs, sregs: &mut Sregs, _: &GuestMemory| sregs.cr4 |= 1 << 8;
    assert_eq!(told(UNDEFINED, &Stop::TripleFault, count_cycles).1, "");
    let (suspicion, lines) = told(SSE, &Stop::TripleFault, count_cycles);
    assert!(suspicion.starts_with("#UD: SSE is not enabled"), "{suspicion}");
    assert!(lines.starts_with("  hint         CR4.OSFXSR is bit 9, not 8"), "{lines}");
}

#[test]
fn a_rule_that_the_mapping_tells_is_left_out() {
    let jumped = told(NOP, &Stop::TripleFault, |regs, _, _| regs.rip = 1 << 62);
    assert_eq!(jumped, ("#GP: a jump to an address that is not canonical".into(), String::new()));
    let table = |rsp: u64| {
        move |regs: &mut Regs, _: &mut Sregs, memory: &GuestMemory| {
            let at = PAGE + TABLES.0 + 8 * (rsp >> 39);
            memory.write(Gpa(at), &0x20_0003u64.to_le_bytes()).unwrap();
            regs.rsp = rsp;
        }
    };
    let (suspicion, lines) = told(NOP, &Stop::TripleFault, table(0xf_fff0));
    assert!(suspicion.starts_with("#PF: the instruction's address is not mapped"), "{suspicion}");
    assert_eq!(lines, "");
    // The stack has another way.
    let (_, lines) = told(NOP, &Stop::TripleFault, table(1 << 39 | 0x1000));
    assert!(lines.starts_with("  hint         PML4[1] is 0x200003, which points outside"), "{lines}");
}
