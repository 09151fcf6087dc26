//! Fuzzes the BIOS with calls: any registers, any memory, and disks of each shape. A call is answered, the disk is changed
//! only by writes, and no call changes the registers of the processor that it must keep.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use vmm::controller::FakeVcpu;
use vmm::exit::{Exit, Outcome};
use vmm::internals::{
    BIOS_PORT, Bios, BiosParts, Content, CopiedDisk, Drives, Medium, SECTOR, bios_memory, bios_stub,
};
use vmm::memory::{Gpa, GuestMemory};
use vmm::x86::{Regs, Sregs};
use vmm::{ExitController, Input, Output};
use vmm_fuzz::Script;

/// The size of memory. Some addresses of real mode are outside.
const RAM: u64 = 0x10_0000;
/// The sectors of the second disk, whose content no call but a write changes.
const SECTORS: usize = 100;

/// The content of a disk of this size. It is created once, because megabytes take longer than the calls.
fn content(size: usize) -> Content {
    static CONTENTS: Mutex<BTreeMap<usize, Content>> = Mutex::new(BTreeMap::new());
    let mut contents = CONTENTS.lock().expect("no panic");
    contents.entry(size).or_insert_with(|| Arc::new(vec![7u8; size].into())).clone()
}

/// Creates the BIOS, its memory, and the second disk.
fn bios(script: &mut Script) -> (Bios, GuestMemory, Arc<Mutex<CopiedDisk>>) {
    let memory = GuestMemory::new(&[(Gpa(0), RAM)]).expect("1 MiB");
    let size = script.pick(&[512usize, 1000, 163_840, 1_474_560, 3_000_000]);
    let mut drives = Drives::new(&content(size));
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

/// The functions of int 13h (docs/abi.md, section 13), and one that does not exist.
const DISK_FUNCTIONS: [u8; 14] =
    [0x00, 0x01, 0x02, 0x03, 0x04, 0x08, 0x0c, 0x10, 0x15, 0x41, 0x42, 0x43, 0x44, 0x48];

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

/// Makes a call of int 13h one for sectors that are there: by place, and by a packet in memory.
fn aim_at_disk(script: &mut Script, memory: &GuestMemory, regs: &mut Regs, sregs: &mut Sregs) {
    const PACKET: u64 = 0x600;
    regs.rax = u64::from(script.pick(&DISK_FUNCTIONS)) << 8 | script.below(4);
    regs.rcx = script.below(2) << 8 | script.below(64);
    regs.rdx = script.below(3) << 8 | u64::from(script.pick(&[0u8, 0x80, 0x81]));
    (regs.rsi, sregs.ds.base) = (PACKET, 0);
    let count = script.below(4) << 16;
    let (buffer, sector) = (script.below(0x1_0000) << 32 | script.below(0x1000) << 48, script.below(0x80));
    memory.write(Gpa(PACKET), &(0x10 | count | buffer).to_le_bytes()).expect("below 1 MiB");
    memory.write(Gpa(PACKET + 8), &sector.to_le_bytes()).expect("below 1 MiB");
}

/// Makes one call. Returns true if it was a write to the disk, or may have been.
fn call(script: &mut Script, bios: &mut Bios, memory: &GuestMemory) -> bool {
    let vector = script.pick(&[
        0x13u8, 0x13, 0x13, 0x13, 0x10, 0x16, 0x15, 0x1a, 0x08, 0x09, 0x14, 0x17, 0x11, 0x12, 0x19, 0x00,
        0x06, 0x60,
    ]);
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
    if vector == 0x13 && !script.one_in(4) {
        aim_at_disk(script, memory, &mut regs, &mut sregs);
    }
    let mut vcpu = FakeVcpu { memory: memory.clone(), ..FakeVcpu::default() };
    (vcpu.regs, vcpu.sregs) = (regs, sregs);
    let outcome =
        bios.handle(&Exit::PioOut { port: BIOS_PORT, size: 1, data: script.any::<u8>().into() }, &mut vcpu);
    match outcome {
        Outcome::Resume => {
            // Or a timer's tick, or a key, has interrupted it.
            let handler = |vector: u64| {
                let mut offset = [0; 2];
                memory.read(Gpa(vector * 4), &mut offset).then(|| u64::from(u16::from_le_bytes(offset)))
            };
            let places = [Some(regs.rip), handler(8), handler(9)];
            assert!(places.contains(&Some(vcpu.regs.rip)), "the guest continues in its stub");
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
    let mut before = vec![9; SECTORS * SECTOR];
    let mut after = before.clone();
    for _ in 0..64 {
        if script.is_empty() {
            break;
        }
        let may_write = call(&mut script, &mut bios, &memory);
        Medium::read(&mut *second.lock().expect("no panic"), 0, &mut after).expect("the sectors are there");
        assert!(may_write || before == after, "a disk changes without a write");
        before.clone_from(&after);
    }
});
