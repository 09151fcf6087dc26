//! Tests of the setup as a whole.

use super::*;
use crate::engine::{Record, Stop, Target};

const VCPU: VcpuId = VcpuId { vm: 1, vcpu: 0 };
const SET_REGION: u32 = 0x4020_ae46;

fn call(target: Target, request: u32, argument: u64, data: Vec<u8>, result: i32) -> Call {
    Call { process: 7, target, request, argument, data, result }
}

fn region(number: u32, gpa: u64, size: u64, address: u64, result: i32) -> Call {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(0u32.to_ne_bytes());
    [gpa, size, address].iter().for_each(|word| data.extend(word.to_ne_bytes()));
    call(Target::Vm(1), SET_REGION, 0x1234, data, result)
}

/// The setup after these events, and its lines.
fn told(events: &[Event]) -> (Setup, Vec<String>) {
    let (mut setup, mut memory) = (Setup::default(), ObservedMemory::default());
    for event in events {
        if let Event::Called(call) = event {
            memory.follow(call);
        }
        setup.take(event, &memory);
    }
    let lines = setup.text().lines().map(|line| line.trim().to_string()).collect();
    (setup, lines)
}

fn assert_has(lines: &[String], text: &str) {
    assert!(lines.iter().any(|line| line == text), "{text:?} is not in {lines:#?}");
}

#[test]
fn a_machine_is_told_in_order() {
    let events = [
        call(Target::System, 0xae00, 0, vec![], 12),
        call(Target::System, 0xae03, 3, vec![], 1),
        call(Target::System, 0xae03, 10, vec![], 32764),
        call(Target::System, 0xae01, 0, vec![], 5),
        region(0, 0, 0x1_0000, 0x7000_0000, 0),
        call(Target::Vm(1), 0xae47, 0xfffb_d000, vec![], 0),
        call(Target::Vm(1), 0xae41, 0, vec![], 6),
        call(Target::Vcpu(VCPU), 0x4138_ae84, 1, vec![0; 312], 0),
        call(Target::Vcpu(VCPU), 0x4090_ae82, 1, vec![0; 144], 0),
    ];
    let (setup, lines) = told(&events.map(Event::Called));
    assert_eq!(
        lines[..11],
        [
            "vmm: calls on /dev/kvm:",
            "KVM_GET_API_VERSION: 12",
            "KVM_CHECK_EXTENSION, 2 times: USER_MEMORY 1, NR_MEMSLOTS 32764",
            "KVM_CREATE_VM",
            "vmm: calls on VM 1:",
            "KVM_SET_USER_MEMORY_REGION: slot 0: 0x0 to 0xffff (64 KiB) from 0x70000000",
            "KVM_SET_TSS_ADDR: 0xfffbd000",
            "KVM_CREATE_VCPU: vCPU 0",
            "vCPU 0: KVM_SET_SREGS: real mode, CS 0x0",
            "vCPU 0: KVM_SET_REGS: rip 0x0, rsp 0x0, rflags 0x0 (bit 1 is 0, and KVM sets it)",
            "vmm: memory of VM 1:",
        ]
    );
    assert!(!setup.has_died());
}

/// KVM's largest number of slots, each of them made, moved and refused once. Each step looks only at the slot that it changes.
#[test]
fn as_many_slots_as_kvm_has_are_told() {
    const SLOTS: u32 = 32_764;
    let place = |number: u32| u64::from(number) * 0x2000;
    let (mut setup, mut memory) = (Setup::default(), ObservedMemory::default());
    let mut see = |call: Call| {
        memory.follow(&call);
        setup.take(&Event::Called(call), &memory);
    };
    // The last slot has the lowest address.
    for number in 0..SLOTS {
        see(region(number, place(SLOTS - number), 0x1000, 0x7000_0000 + place(number), 0));
    }
    for number in 0..SLOTS {
        see(region(SLOTS, place(SLOTS - number) + 0x800, 0x1000, 0x7000_0000, -libc::EEXIST));
        see(region(number, place(SLOTS - number) + 0x1000, 0x1000, 0x7000_0000 + place(number), 0));
    }
    let text = setup.text();
    assert!(text.contains("it overlaps slot 0 at 0xfff8000 to 0xfff8fff\n"), "{text}");
    assert!(text.contains("and 32716 more\n") && !text.contains("share memory"), "{text}");
    let saved = setup.saved().unwrap();
    let ends = (saved.memory.first().unwrap().slot, saved.memory.last().unwrap().slot);
    assert_eq!((saved.memory.len(), ends), (4096, (SLOTS - 1, SLOTS - 4096)));
    assert_eq!(saved.remarks[0], "VM 1: 28668 more memory slots not shown.");
}

/// The setup in a profile has the rows of the text.
#[test]
fn the_setup_of_a_profile_is_that_of_the_text() {
    let events = [
        call(Target::System, 0xae01, 0, vec![], 5),
        region(0, 0, 0x1_0000, 0x7000_0000, 0),
        region(1, 0x8000, 0x1_0000, 0x7100_0000, -libc::EEXIST),
        call(Target::Vm(1), 0xae41, 0, vec![], 6),
        call(Target::Vm(1), 0xae41, 1, vec![], 7),
        call(Target::Vcpu(VCPU), 0x4090_ae82, 1, vec![0; 144], 0),
        call(Target::Vcpu(VcpuId { vm: 1, vcpu: 1 }), 0x4090_ae82, 1, vec![0; 144], 0),
    ];
    let (setup, lines) = told(&events.map(Event::Called));
    let saved = setup.saved().unwrap();
    let rows: Vec<_> =
        saved.calls.iter().map(|call| (call.vm, call.object.as_str(), call.call.as_str())).collect();
    assert_eq!(
        rows,
        [
            (None, "/dev/kvm", "KVM_CREATE_VM"),
            (Some(1), "VM", "KVM_SET_USER_MEMORY_REGION"),
            (Some(1), "VM", "KVM_SET_USER_MEMORY_REGION"),
            (Some(1), "VM", "KVM_CREATE_VCPU"),
            (Some(1), "VM", "KVM_CREATE_VCPU"),
            (Some(1), "vCPU 0", "KVM_SET_REGS"),
        ]
    );
    assert_eq!(saved.calls[1].words, "slot 0: 0x0 to 0xffff (64 KiB) from 0x70000000");
    assert_eq!(saved.calls[2].failure.as_deref(), Some("EEXIST: it overlaps slot 0 at 0x0 to 0xffff"));
    assert_eq!(saved.remarks, ["VM 1: vCPU 1: the same calls as vCPU 0."]);
    assert_has(&lines, "vCPU 1: the same calls as vCPU 0");
    assert_eq!(
        (saved.memory[0].first, saved.memory[0].size, saved.memory[0].host),
        (0, 0x1_0000, 0x7000_0000)
    );
    assert_eq!(Setup::default().saved(), None);
}

#[test]
fn failures_have_their_meaning() {
    let (einval, eexist) = (-libc::EINVAL, -libc::EEXIST);
    let failing = |request, argument, result| call(Target::Vm(1), request, argument, vec![], result);
    let events = [
        region(0, 0, 0x1_0000, 0x7000_0000, 0),
        region(1, 0x8000, 0x1_0000, 0x7100_0000, eexist),
        region(1, 0x8001, 0x1000, 0x7100_0000, einval),
        region(1, 0x2_0000, 0x1001, 0x7100_0000, einval),
        region(1, 0x2_0000, 0x1000, 0x7100_0010, einval),
        region(0, 0, 0x2_0000, 0x7000_0000, einval),
        region(5, 0, 0, 0, einval),
        failing(0xae41, 0, eexist),
        failing(0xae80, 0, -libc::ENOTTY),
        failing(0xaeff, 0, -libc::ENOTTY),
        failing(0x4048_ae9b, 1, einval),
        failing(0xc008_aeba, 1, -libc::ENOTTY),
        failing(0x4090_ae84, 1, -libc::ENOTTY),
        failing(0x4040_ae77, 1, -libc::ENOENT),
        failing(0x4008_ae6a, 0, -libc::EFAULT),
        failing(0x4008_ae6a, 0, -133),
    ];
    let (_, lines) = told(&events.map(Event::Called));
    for line in [
        "KVM_SET_USER_MEMORY_REGION: slot 1: 0x8000 to 0x17fff (64 KiB) from 0x71000000; failed, EEXIST: it overlaps \
         slot 0 at 0x0 to 0xffff",
        "KVM_SET_USER_MEMORY_REGION: slot 1: 0x8001 to 0x9000 (4 KiB) from 0x71000000; failed, EINVAL: the guest \
         address 0x8001 is no multiple of 4096",
        "KVM_SET_USER_MEMORY_REGION: slot 1: 0x20000 to 0x21000 (4097 bytes) from 0x71000000; failed, EINVAL: the size \
         0x1001 is no multiple of 4096",
        "KVM_SET_USER_MEMORY_REGION: slot 1: 0x20000 to 0x20fff (4 KiB) from 0x71000010; failed, EINVAL: the host \
         address 0x71000010 is no multiple of 4096",
        "KVM_SET_USER_MEMORY_REGION: slot 0: 0x0 to 0x1ffff (128 KiB) from 0x70000000; failed, EINVAL: the size of a \
         slot cannot change: delete it first, with size 0",
        "KVM_SET_USER_MEMORY_REGION: slot 5: deleted; failed, EINVAL: there is no such slot to delete",
        "KVM_CREATE_VCPU: vCPU 0; failed, EEXIST: the VM has a vCPU with this number already",
        "KVM_RUN; failed, ENOTTY: this is a call on a vCPU",
        "KVM_SET_GUEST_DEBUG; failed, EINVAL: this is a call on a vCPU",
        "KVM_MEMORY_ENCRYPT_OP; failed, ENOTTY: this descriptor, or this kernel, does not have the call",
        "request 0xaeff; failed, ENOTTY: KVM does not know this request",
        "request 0x4090ae84 (KVM_SET_SREGS is 0x4138ae84; its structure has 312 bytes, not 144); failed, ENOTTY: KVM does \
         not know this request",
        "KVM_CREATE_PIT2; failed, ENOENT: the timer (PIT) needs KVM_CREATE_IRQCHIP first",
        "KVM_SET_GSI_ROUTING; failed, EFAULT: the argument is not the address of memory that the program may read and \
         write",
        "KVM_SET_GSI_ROUTING; failed, errno 133",
    ] {
        assert_has(&lines, line);
    }
}

#[test]
fn vcpus_that_are_alike_have_one_line() {
    let mut events: Vec<_> = (0..4).map(|id| call(Target::Vm(1), 0xae41, id, vec![], 6)).collect();
    for id in 0..4 {
        let mut regs = vec![0; 144];
        regs[128] = u8::from(id == 3);
        regs[136] = 2;
        let target = Target::Vcpu(VcpuId { vm: 1, vcpu: id });
        events.push(call(target, 0x4090_ae82, 1, regs, 0));
    }
    let (_, lines) = told(&events.into_iter().map(Event::Called).collect::<Vec<_>>());
    assert_has(&lines, "vCPU 0: KVM_SET_REGS: rip 0x0, rsp 0x0, rflags 0x2");
    assert_has(&lines, "vCPUs 1 to 2: the same calls as vCPU 0");
    assert_has(&lines, "vCPU 3: KVM_SET_REGS: rip 0x1, rsp 0x0, rflags 0x2");
}

#[test]
fn the_first_entry_shows_the_registers_and_missing_calls() {
    let memory = [0u8; 0x1000];
    let process = std::process::id().cast_signed();
    let registers = Some(Box::default());
    let stop = Stop { vcpu: VCPU, process, cause: StopCause::FirstEntry, registers };
    let slot = region(0, 0, 0x1000, memory.as_ptr() as u64, 0);
    let (_, lines) = told(&[Event::Called(slot), Event::Stopped(Box::new(stop))]);
    assert_has(
        &lines,
        "vCPU 0 first entered in real mode, CS 0x0, rip 0x0, rsp 0x0, rflags 0x0 (bit 1 is 0, and KVM sets it)",
    );
    assert_has(
        &lines,
        "vCPU 0 was entered without KVM_SET_SREGS, so in real mode at the reset vector, and without KVM_SET_REGS, and \
         without KVM_SET_CPUID2, so CPUID returns zeroes",
    );
    assert!(lines.last().unwrap().ends_with("0  only zeroes"), "{lines:?}");
}

#[test]
fn a_guest_that_runs_again_is_not_dead() {
    let record = |reason| Record { reason, ..Record::default() };
    let returned = |record| Event::Returned(VCPU, record);
    assert!(told(&[returned(record(2)), returned(record(8))]).0.has_died());
    assert!(!told(&[returned(record(8)), returned(record(2))]).0.has_died());
    let interrupted = Record { result: -libc::EINTR, ..record(10) };
    assert!(told(&[returned(record(8)), returned(interrupted)]).0.has_died());
    let failed = Record { result: -libc::EFAULT, ..record(0) };
    assert!(told(&[returned(failed)]).0.has_died());
    let refused = call(Target::Vcpu(VCPU), 0x4138_ae84, 1, vec![0; 312], -libc::EINVAL);
    let stop = Stop { vcpu: VCPU, process: 0, cause: StopCause::Refused(refused), registers: None };
    let (setup, lines) = told(&[Event::Stopped(Box::new(stop))]);
    assert!(setup.has_died());
    assert_has(
        &lines,
        "vCPU 0: KVM_SET_SREGS: real mode, CS 0x0; failed, EINVAL: KVM refuses this combination of registers",
    );
}

/// Whatever the structures hold, there is a text, and its size has a limit.
#[test]
fn hostile_calls_have_a_limited_text() {
    let mut events = Vec::new();
    let mut seed = 1u32;
    for number in 0..20_000u32 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let target = match seed >> 13 & 3 {
            0 => Target::System,
            1 => Target::Vm(seed >> 20),
            _ => Target::Vcpu(VcpuId { vm: seed >> 21, vcpu: seed >> 8 }),
        };
        let data = vec![(seed >> 24) as u8; (seed >> 9 & 0x1ff) as usize];
        let request = 0xae00 | (number & 0xff) | (seed & 0xffff_0000);
        let known = requests::tests::ALL[number as usize % requests::tests::ALL.len()].0;
        let request = if number % 2 == 0 { known } else { request };
        let result = (seed >> 3 & 0xff).cast_signed() - 128;
        events.push(Event::Called(call(target, request, u64::MAX - u64::from(seed), data, result)));
    }
    let (_, lines) = told(&events);
    assert!(lines.len() < 20_000 && lines.iter().all(|line| line.len() < 1000));
}
