//! Deaths that are made up, with the memory of this process as that of the guest.
#![allow(clippy::arithmetic_side_effects)]

use super::start::{RESET_RIP, reset_sregs};
use super::*;
use std::io::Write;
use vmm::DETAILS;
use vmm::x86::Segment;

const SHUTDOWN: u32 = 8;
const FAIL_ENTRY: u32 = 9;
const INTERNAL_ERROR: u32 = 17;
const VCPU: VcpuId = VcpuId { vm: 1, vcpu: 0 };

fn process() -> i32 {
    std::process::id().cast_signed()
}

/// The memory of a guest at address 0, in this process.
struct Guest {
    memory: ObservedMemory,
    bytes: Vec<u8>,
}

impl Guest {
    /// A guest of 64 KiB with this code at 0x1000.
    fn new(code: &[u8]) -> Self {
        let mut bytes = vec![0; 0x1_0000];
        (&mut bytes[0x1000..]).write_all(code).unwrap();
        let mut guest = Self { memory: ObservedMemory::default(), bytes };
        let address = guest.bytes.as_ptr() as u64;
        guest.slot(0, 0, 0x1_0000, address);
        guest
    }

    fn slot(&mut self, number: u32, gpa: u64, size: u64, address: u64) {
        let halves = [number, 0].map(u32::to_ne_bytes).concat();
        let data = [halves, [gpa, size, address].map(u64::to_ne_bytes).concat()].concat();
        let target = Target::Vm(1);
        let region = Call { process: process(), target, request: 0x4020_ae46, argument: 0, data, result: 0 };
        self.memory.follow(&region);
    }

    /// The death of a vCPU that is stopped for this reason with these registers.
    fn death(&self, cause: StopCause, registers: Option<(Regs, Sregs)>) -> Death {
        let mut deaths = Deaths::default();
        self.stop(&mut deaths, VCPU, cause, registers);
        deaths.iter().next().unwrap().clone()
    }

    fn stop(&self, to: &mut Deaths, vcpu: VcpuId, cause: StopCause, registers: Option<(Regs, Sregs)>) {
        let stop = Stop { vcpu, process: process(), cause, registers: registers.map(Box::new) };
        to.see(&Event::Stopped(Box::new(stop)), &self.memory);
    }
}

fn exit(reason: u32, details: &[u8]) -> StopCause {
    let mut all = [0; DETAILS];
    all[..details.len()].copy_from_slice(details);
    StopCause::Exit(Record { reason, details: all, ..Record::default() })
}

/// The description of an internal error.
fn internal(suberror: u32, data: &[u64]) -> StopCause {
    let mut details = [suberror, data.len() as u32].map(u32::to_ne_bytes).concat();
    details.extend(data.iter().flat_map(|word| word.to_ne_bytes()));
    exit(INTERNAL_ERROR, &details)
}

fn failed_run(errno: i32) -> StopCause {
    StopCause::Exit(Record { result: -errno, ..Record::default() })
}

/// A call that sets registers.
fn set(request: u32, data: Vec<u8>, result: i32) -> Call {
    Call { process: process(), target: Target::Vcpu(VCPU), request, argument: 0x40, data, result }
}

/// The structure of KVM_SET_REGS with this RIP.
fn regs_data(rip: u64) -> Vec<u8> {
    let mut data = vec![0; layout::REGS];
    data[128..136].copy_from_slice(&rip.to_ne_bytes());
    data[136] = 2;
    data
}

/// The structure of KVM_SET_SREGS with these control registers. Segments are missing.
fn sregs_data(cr0: u64, cr4: u64, efer: u64) -> Vec<u8> {
    let mut data = vec![0; layout::SREGS];
    for (at, value) in [(224, cr0), (248, cr4), (264, efer)] {
        data[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }
    data
}

/// Protected mode without paging, and code at 0x1000.
fn flat() -> (Regs, Sregs) {
    let data = Segment { limit: 0xffff_ffff, type_: 3, present: 1, s: 1, db: 1, g: 1, ..Segment::default() };
    let mut sregs = reset_sregs();
    sregs.cs = Segment { selector: 8, type_: 0xb, ..data };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = Segment { selector: 0x10, ..data };
    }
    sregs.cr0 = 0x11;
    (Regs { rip: 0x1000, rsp: 0x8000, rflags: 2, ..Regs::default() }, sregs)
}

const UNDEFINED: &[u8] = &[0x0f, 0x0b];

#[test]
fn a_triple_fault_is_explained_from_the_memory_of_the_program() {
    let guest = Guest::new(UNDEFINED);
    let death = guest.death(exit(SHUTDOWN, &[]), Some(flat()));
    assert_eq!(
        death.to_string(),
        "triple fault (an exception without a working handler), in protected mode at 0008:00001000: probably #UD: an \
         undefined instruction"
    );
    let details = death.details("");
    assert!(
        details.starts_with("  instruction  0f 0b  ud2\n  mapping      0x1000 is a physical"),
        "{details}"
    );
    assert!(details.contains("  handler      none: the IDT at 0x0, with the limit 0x0,"), "{details}");
    assert!(!details.contains("remark"), "{details}");
}

#[test]
fn the_kinds_of_death_in_words() {
    let guest = Guest::new(UNDEFINED);
    let what = |cause| {
        let death = guest.death(cause, Some(flat()));
        (death.what, death.kind)
    };
    let emulation = what(internal(1, &[1, u64::from_le_bytes([15, 0x0f, 0x0b, 1, 2, 3, 4, 5]), 0]));
    assert_eq!(emulation, ("KVM could not emulate a guest instruction: 0f 0b".into(), DeathKind::Fault));
    let refused =
        "the processor refused to enter the guest (hardware reason 0x80000021: invalid guest state)";
    assert_eq!(what(exit(FAIL_ENTRY, &0x8000_0021u64.to_ne_bytes())), (refused.into(), DeathKind::Entry));
    assert_eq!(what(internal(2, &[])).0, "KVM found two exceptions at once");
    let delivery = what(internal(3, &[0x8000_0b0e, 0x31, 0]));
    assert!(delivery.0.starts_with("KVM could not deliver vector 14 to the guest"), "{}", delivery.0);
    assert_eq!(delivery.1, DeathKind::Fault);
    let unknown = what(internal(4, &[0x77]));
    assert_eq!(
        unknown,
        (
            "the processor left the guest for a reason that KVM does not know (0x77)".into(),
            DeathKind::Unknown
        )
    );
    assert_eq!(what(internal(9, &[])).0, "KVM failed with an internal error (suberror 9)");
    for (errno, meaning) in [
        (libc::EINVAL, "KVM_RUN failed: Invalid argument (os error 22): its argument is not 0, or "),
        (libc::EIO, "KVM_RUN failed: Input/output error (os error 5): another process made the VM, or "),
        (libc::EBADF, "KVM_RUN failed: Bad file descriptor (os error 9)"),
    ] {
        assert!(what(failed_run(errno)).0.starts_with(meaning), "{}", what(failed_run(errno)).0);
    }
}

#[test]
fn exits_after_which_a_guest_goes_on_are_no_deaths() {
    let guest = Guest::new(UNDEFINED);
    let mut deaths = Deaths::default();
    let queue = set(0x1234, Vec::new(), -libc::EINVAL);
    for cause in [
        exit(2, &[]),
        exit(5, &[]),
        failed_run(libc::EINTR),
        failed_run(libc::EAGAIN),
        StopCause::FirstEntry,
        StopCause::Refused(queue),
    ] {
        guest.stop(&mut deaths, VCPU, cause, Some(flat()));
    }
    assert_eq!((deaths.iter().count(), deaths.more()), (0, 0));
}

#[test]
fn memory_that_is_not_mapped_is_named() {
    let mut guest = Guest::new(UNDEFINED);
    guest.slot(3, 0x10_0000, 0x2000, 0x1000);
    let death = guest.death(failed_run(libc::EFAULT), Some(flat()));
    assert!(
        death.to_string().ends_with(
            ": probably the program has not mapped all of the memory of slot 3: 0x2000 bytes at 0x1000"
        ),
        "{death}"
    );
    // A slot that the guest did not touch is no cause of a fault.
    let death = guest.death(exit(SHUTDOWN, &[]), Some(flat()));
    assert!(death.to_string().ends_with(": probably #UD: an undefined instruction"), "{death}");
    let (mut regs, sregs) = flat();
    regs.rip = 0x10_0000;
    let death = guest.death(exit(SHUTDOWN, &[]), Some((regs, sregs)));
    assert!(death.to_string().contains("the memory of slot 3"), "{death}");
    assert!(!death.details("").contains("slot"), "{}", death.details(""));
    let mut guest = Guest::new(UNDEFINED);
    guest.slot(0, 0, 0, 0);
    let death = guest.death(exit(SHUTDOWN, &[]), Some(flat()));
    assert!(death.to_string().ends_with(": probably the VM has no memory slot"), "{death}");
}

#[test]
fn a_process_that_has_ended_leaves_its_registers() {
    let guest = Guest::new(UNDEFINED);
    let mut deaths = Deaths::default();
    let registers = Some(Box::new(flat()));
    let stop = Stop { vcpu: VCPU, process: i32::MAX, cause: exit(SHUTDOWN, &[]), registers };
    deaths.see(&Event::Stopped(Box::new(stop)), &guest.memory);
    let details = deaths.iter().next().unwrap().details("");
    assert!(details.starts_with("  eax 00000000"), "{details}");
    assert!(
        details.contains("remark       the memory of the guest could not be read: the process has ended")
    );

    let death = guest.death(exit(SHUTDOWN, &[]), None);
    assert_eq!(death.to_string(), "triple fault (an exception without a working handler)");
    assert_eq!(death.details(""), "  remark       KVM did not return the registers of the vCPU\n");
}

#[test]
fn refused_registers_are_those_of_the_call() {
    let guest = Guest::new(UNDEFINED);
    let refused = |call| guest.death(StopCause::Refused(call), Some(flat()));
    // EFER.LME and LMA, CR0.PE, and no paging.
    let death = refused(set(end::SET_SREGS, sregs_data(0x11, 0x20, 0x500), -libc::EINVAL));
    assert!(
        death.to_string().starts_with(
            "KVM_SET_SREGS failed: Invalid argument (os error 22): EFER.LMA is 1 but CR0.PG is 0 (Intel SDM vol. 3, "
        ),
        "{death}"
    );
    assert!(death.details("").starts_with("  rflags 2  cr0 11 "), "{}", death.details(""));
    let death = refused(set(end::SET_REGS, regs_data(0x1000), -libc::EFAULT));
    assert_eq!(
        death.to_string(),
        "KVM_SET_REGS failed: Bad address (os error 14): its argument, 0x40, is not the address of a structure"
    );
    // A call without data, and registers without a broken rule.
    let death = refused(set(end::SET_SREGS, Vec::new(), -libc::EINVAL));
    assert!(death.explanation.is_none() && death.details("").contains("they break no rule"), "{death:?}");
}

/// AMD's KVM resets the vCPU. The registers of the start are known from the calls that set them.
#[test]
fn a_lost_state_is_explained_by_its_start() {
    let guest = Guest::new(&[]);
    let lost = (Regs { rip: RESET_RIP, rflags: 2, ..Regs::default() }, reset_sregs());
    let mut deaths = Deaths::default();
    for call in [
        set(end::SET_SREGS, sregs_data(0x11, 0, 0), 0),
        set(end::SET_REGS, regs_data(0x1000), 0),
        set(end::SET_REGS, regs_data(0x2000), -libc::EINVAL),
    ] {
        deaths.see(&Event::Called(call), &guest.memory);
    }
    guest.stop(&mut deaths, VCPU, exit(SHUTDOWN, &[]), Some(lost));
    let death = deaths.iter().next().unwrap().clone();
    assert!(
        death.to_string().starts_with(
            "triple fault (an exception without a working handler), at an unknown address, because this host resets a \
             vCPU that triple-faults: probably CS is "
        ),
        "{death}"
    );
    let details = death.details("");
    assert!(
        details.contains("hint         the entry point 0x1000 holds only zeros: was the guest copied there?")
    );
    assert!(
        details.ends_with("remark       the registers are those with which the vCPU started\n"),
        "{details}"
    );

    // The first death is told. The second one is that of a vCPU that was reset.
    let mut deaths = Deaths::default();
    guest.stop(&mut deaths, VCPU, exit(SHUTDOWN, &[]), Some(flat()));
    deaths.see(&Event::Called(set(end::SET_REGS, regs_data(0x1000), 0)), &guest.memory);
    guest.stop(&mut deaths, VCPU, exit(SHUTDOWN, &[]), Some(lost));
    let death = deaths.iter().next().unwrap();
    assert!(death.to_string().contains("in protected mode at 0008:00001000"), "{death}");
    assert_eq!((deaths.iter().count(), deaths.later(death)), (1, 1));
}

/// Some hosts correct the registers, or run on without a fault.
#[test]
fn mistakes_at_the_start_are_told_once() {
    // nop
    let guest = Guest::new(&[0x90]);
    let mut deaths = Deaths::default();
    let (regs, sregs) = flat();
    let mut wrong = sregs;
    wrong.ss.dpl = 3;
    guest.stop(&mut deaths, VCPU, StopCause::FirstEntry, Some((regs, wrong)));
    guest.stop(&mut deaths, VCPU, exit(SHUTDOWN, &[]), Some((regs, sregs)));
    let death = deaths.iter().next().unwrap();
    assert!(death.to_string().contains(": probably CS.DPL is 0 but SS.DPL is 3 ("), "{death}");
    assert!(death.to_string().ends_with("), at the start"), "{death}");
    guest.stop(&mut deaths, VCPU, exit(SHUTDOWN, &[]), Some((regs, wrong)));
    let death = deaths.iter().next().unwrap();
    assert_eq!(format!("{death}{}", death.details("")).matches("CS.DPL is 0").count(), 1, "{death:?}");
    let (guest, mut deaths) = (Guest::new(UNDEFINED), Deaths::default());
    guest.stop(&mut deaths, VCPU, StopCause::FirstEntry, Some((regs, wrong)));
    guest.stop(&mut deaths, VCPU, exit(SHUTDOWN, &[]), Some((regs, sregs)));
    let death = deaths.iter().next().unwrap();
    assert!(death.to_string().ends_with(": probably #UD: an undefined instruction"), "{death}");
    assert!(
        death
            .details("")
            .contains("  remark       the vCPU started with a mistake: CS.DPL is 0 but SS.DPL is 3 (")
    );
}

#[test]
fn deaths_are_limited() {
    let guest = Guest::new(UNDEFINED);
    let mut deaths = Deaths::default();
    for vcpu in 0..70 {
        guest.stop(&mut deaths, VcpuId { vm: 1, vcpu }, exit(SHUTDOWN, &[]), Some(flat()));
    }
    assert_eq!((deaths.iter().count(), deaths.more()), (MOST_DEATHS, 6));
    for _ in 0..2000 {
        guest.stop(&mut deaths, VCPU, exit(SHUTDOWN, &[]), Some(flat()));
    }
    assert_eq!((deaths.iter().count(), deaths.more()), (MOST_DEATHS, 6 + 2000 - 930));
    let first = deaths.iter().next().unwrap();
    assert_eq!((first.vcpu, deaths.later(first)), (VCPU, 930));
}

/// Engines may hand over the stops of several vCPUs in another order.
#[test]
fn the_first_death_by_time_comes_first() {
    let guest = Guest::new(UNDEFINED);
    let mut deaths = Deaths::default();
    let died = |left| StopCause::Exit(Record { reason: SHUTDOWN, left, ..Record::default() });
    for (vcpu, left) in [(4, 500), (2, 300), (7, 400), (2, 900)] {
        guest.stop(&mut deaths, VcpuId { vm: 1, vcpu }, died(left), Some(flat()));
    }
    let refused = StopCause::Refused(set(end::SET_SREGS, sregs_data(0x11, 0x20, 0x500), -libc::EINVAL));
    guest.stop(&mut deaths, VcpuId { vm: 1, vcpu: 9 }, refused, None);
    let order: Vec<_> = deaths.iter().map(|death| (death.vcpu.vcpu, deaths.later(death))).collect();
    assert_eq!(order, [(9, 0), (2, 1), (7, 0), (4, 0)]);
}

#[test]
fn the_last_exits_of_the_vcpu_stand_in_the_details() {
    let guest = Guest::new(UNDEFINED);
    let mut deaths = Deaths::default();
    let other = VcpuId { vm: 1, vcpu: 1 };
    let returned = |deaths: &mut Deaths, vcpu, cause| {
        let StopCause::Exit(record) = cause else { panic!("an exit") };
        deaths.see(&Event::Returned(vcpu, record), &guest.memory);
    };
    returned(&mut deaths, VCPU, exit(5, &[]));
    returned(&mut deaths, other, exit(2, &[1, 1, 0xe9, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x41]));
    guest.stop(&mut deaths, other, exit(SHUTDOWN, &[]), Some(flat()));
    // An exit before the death, of which the engine has told later.
    returned(&mut deaths, other, exit(5, &[]));
    returned(&mut deaths, other, exit(SHUTDOWN, &[]));
    returned(&mut deaths, other, exit(5, &[]));
    returned(&mut deaths, other, exit(SHUTDOWN, &[]));
    let death = deaths.iter().next().unwrap();
    assert!(death.details("").contains("\n  last exits   out8 0xe9 0x41, hlt\n"), "{}", death.details(""));
    assert_eq!(deaths.later(death), 1);
}

/// The program may write anything into its memory and its calls.
#[test]
fn hostile_details_and_registers_are_explained() {
    let mut guest = Guest::new(&[0xff; 0x1000]);
    guest.slot(5, u64::MAX - 0xfff, u64::MAX, u64::MAX);
    for fill in [0, 1, 3, 17, 0x7f, 0xff] {
        for reason in [SHUTDOWN, FAIL_ENTRY, INTERNAL_ERROR, u32::MAX] {
            let mut sregs = layout::sregs(&[fill; layout::SREGS]).unwrap();
            let regs = layout::regs(&[fill; layout::REGS]).unwrap();
            for cr0 in [0, 1, u64::MAX] {
                sregs.cr0 = cr0;
                let mut deaths = Deaths::default();
                guest.stop(&mut deaths, VCPU, exit(reason, &[fill; DETAILS]), Some((regs, sregs)));
                let call = set(end::SET_SREGS, vec![fill; 300], i32::MIN);
                guest.stop(&mut deaths, VCPU, StopCause::Refused(call), None);
                guest.stop(&mut deaths, VCPU, failed_run(i32::MAX), Some((regs, sregs)));
                deaths.iter().for_each(|death| drop(format!("{death}{}", death.details(""))));
            }
        }
    }
}
