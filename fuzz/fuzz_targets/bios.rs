//! Fuzzes the BIOS with calls: any registers, any memory, and disks of each shape. A call is answered, the disk is changed
//! only by writes, and no call changes the registers of the processor that it must keep.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::{Arc, Mutex};
use vmm::controller::FakeVcpu;
use vmm::exit::{Exit, Outcome};
use vmm::internals::{
    BIOS_PORT, Bios, BiosParts, Content, CopiedDisk, Drives, SECTOR, bios_memory, bios_stub,
};
use vmm::memory::{Gpa, GuestMemory};
use vmm::x86::{Regs, Sregs};
use vmm::{ExitController, Input, Output};
use vmm_fuzz::Script;

/// The size of memory. Some addresses of real mode are outside.
const RAM: u64 = 0x10_0000;
/// The sectors of the second disk, whose content no call but a write changes.
const SECTORS: usize = 100;

/// Creates the BIOS, its memory, and the second disk.
fn bios(script: &mut Script) -> (Bios, GuestMemory, Arc<Mutex<CopiedDisk>>) {
    let memory = GuestMemory::new(&[(Gpa(0), RAM)]).expect("1 MiB");
    let size = script.pick(&[512usize, 1000, 163_840, 1_474_560, 3_000_000]);
    let mut drives = Drives::new(&Arc::new(vec![7u8; size].into()));
    let content: Content = Arc::new(vec![9u8; SECTORS * SECTOR].into());
    let second = Arc::new(Mutex::new(CopiedDisk::new(content, SECTORS as u64)));
    drives.add(second.clone());
    for (start, bytes) in bios_memory(&drives) {
        memory.write(start, &bytes).expect("below 1 MiB");
    }
    let keyboard = script
        .one_in(2)
        .then(|| vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).expect("a descriptor"));
    let parts = BiosParts {
        memory: memory.clone(),
        ram: RAM,
        drives,
        output: Output::captured().0,
        prints: script.one_in(2),
        input: Input::bytes(b"ab\x1b[A\x1bc"),
        screen: None,
        keyboard,
        has_keys: script.one_in(4),
        times_keys: script.one_in(4),
    };
    (Bios::new(parts), memory, second)
}

/// A register: any value, or one that calls have.
fn register(script: &mut Script) -> u64 {
    match script.below(4) {
        0 => script.any(),
        1 => script.below(0x1_0000),
        _ => script.below(0x100) << 8 | u64::from(script.pick(&[0u8, 1, 2, 0x80, 0x81, 0xff])),
    }
}

fn segment(script: &mut Script) -> u64 {
    u64::from(script.pick(&[0u16, 0, 0x40, 0x7c0, 0x1000, 0xb800, 0xf000, 0xffff])) << 4
}

/// Makes one call. Returns true if it was a write to the disk, or may have been.
fn call(script: &mut Script, bios: &mut Bios, memory: &GuestMemory) -> bool {
    let vector = script
        .pick(&[0x13u8, 0x10, 0x16, 0x15, 0x1a, 0x08, 0x09, 0x14, 0x17, 0x11, 0x12, 0x19, 0x00, 0x06, 0x60]);
    if script.one_in(4) {
        let (at, bytes) = (script.below(0x500), script.any::<u64>());
        memory.write(Gpa(at), &bytes.to_le_bytes()).expect("below 1 MiB");
    }
    let mut regs = Regs { rip: u64::from(bios_stub(vector)), rflags: 2, ..Regs::default() };
    if vector == 9 {
        regs.rip += 3;
    }
    let [ax, bx, cx, dx, si, di, bp, sp] = std::array::from_fn(|_| register(script));
    (regs.rax, regs.rbx, regs.rcx, regs.rdx) = (ax, bx, cx, dx);
    (regs.rsi, regs.rdi, regs.rbp, regs.rsp) = (si, di, bp, sp);
    // A wait takes its time.
    if (vector, regs.rax >> 8 & 0xff) == (0x15, 0x86) {
        return false;
    }
    let mut sregs = Sregs::default();
    sregs.cs.base = 0xf_0000;
    (sregs.ss.base, sregs.es.base, sregs.ds.base) = (segment(script), segment(script), segment(script));
    let mut vcpu = FakeVcpu { memory: memory.clone(), ..FakeVcpu::default() };
    (vcpu.regs, vcpu.sregs) = (regs, sregs);
    let outcome =
        bios.handle(&Exit::PioOut { port: BIOS_PORT, size: 1, data: script.any::<u8>().into() }, &mut vcpu);
    match outcome {
        Outcome::Resume => {
            assert_eq!(vcpu.regs.rip, regs.rip, "the guest continues in its stub");
            assert_eq!(vcpu.sregs.cr0, sregs.cr0);
        }
        Outcome::Stop(_) => {}
        other => panic!("{vector:#x}: {other:?}"),
    }
    vector == 0x13 && matches!(regs.rax >> 8 & 0xff, 0x03 | 0x43)
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script::new(input);
    let (mut bios, memory, second) = bios(&mut script);
    let mut may_differ = false;
    for _ in 0..64 {
        if script.is_empty() {
            break;
        }
        may_differ |= call(&mut script, &mut bios, &memory);
    }
    let mut content = vec![0; SECTORS * SECTOR];
    vmm::internals::Medium::read(&mut *second.lock().expect("no panic"), 0, &mut content)
        .expect("the sectors are there");
    assert!(may_differ || content.iter().all(|byte| *byte == 9), "a disk changes without a write");
});
