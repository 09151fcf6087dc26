//! Calls of the BIOS, without a processor.
#![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

mod limits;

use super::stubs::offset;
use super::*;
use crate::console::output::Captured;
use crate::controller::FakeVcpu;
use crate::device::pc::medium::Content;
use crate::host::event;
use crate::x86::registers::{Regs, Sregs};
use std::sync::Arc;

const RAM: u64 = 4 << 20;
/// The stack of the caller.
const STACK: u64 = 0x7000;
/// The flags of the caller: interrupts are on.
const FLAGS: u16 = 0x0202;

/// A caller of the BIOS.
struct Caller {
    bios: Bios,
    vcpu: FakeVcpu,
    captured: Captured,
}

impl Caller {
    fn new(disk: usize) -> Self {
        Self::with_input(disk, b"")
    }

    fn with_input(disk: usize, input: &[u8]) -> Self {
        let memory = GuestMemory::new(&[(Gpa(0), RAM)]).unwrap();
        let bytes: Vec<u8> = (0..disk).map(|at| ((at / 512) as u8).wrapping_add(1)).collect();
        let disk: Content = Arc::new(bytes.into());
        memory.write(Gpa(video::SCREEN), &video::blank_page()).unwrap();
        let drives = Drives::new(&disk);
        for (start, bytes) in super::memory(&drives) {
            memory.write(start, &bytes).unwrap();
        }
        let (output, captured) = Output::captured();
        let parts = Parts {
            memory: memory.clone(),
            ram: RAM,
            drives,
            output,
            prints: true,
            screen: None,
            input: Input::bytes(input),
            keyboard: Some(event().unwrap()),
            has_keys: false,
            times_keys: false,
        };
        Self { bios: Bios::new(parts), vcpu: FakeVcpu { memory, ..Default::default() }, captured }
    }

    /// Calls a vector with these registers. Returns the registers and the flags that the caller sees.
    fn call(&mut self, vector: u8, regs: Regs) -> (Regs, u16) {
        let (outcome, regs, flags) = self.outcome(vector, regs);
        assert!(matches!(outcome, Outcome::Resume), "{outcome:?}");
        (regs, flags)
    }

    fn outcome(&mut self, vector: u8, regs: Regs) -> (Outcome, Regs, u16) {
        // int vector; the frame.
        self.vcpu.memory.write(Gpa(0x600), &[0xcd, vector]).unwrap();
        let frame = [0x602u16, 0, FLAGS].map(u16::to_le_bytes).concat();
        let stack = self.vcpu.sregs.ss.base + (regs.rsp & 0xffff);
        let _ = self.vcpu.memory.write(Gpa(stack), &frame);
        self.vcpu.regs =
            Regs { rip: u64::from(offset(vector)) + if vector == 9 { 3 } else { 0 }, rflags: 2, ..regs };
        self.vcpu.sregs.cs.base = 0xf_0000;
        let exit = Exit::PioOut { port: PORT, size: 1, data: 0 };
        let outcome = self.bios.handle(&exit, &mut self.vcpu);
        let mut flags = [0; 2];
        self.vcpu.memory.read(Gpa(stack + 4), &mut flags);
        (outcome, self.vcpu.regs, u16::from_le_bytes(flags))
    }

    fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert!(self.vcpu.memory.read(Gpa(at), &mut bytes));
        bytes
    }
}

fn ax(value: u64) -> Regs {
    Regs { rax: value, rsp: STACK, ..Default::default() }
}

#[test]
fn a_teletype_prints_to_the_output_and_to_the_screen() {
    let mut caller = Caller::new(512);
    for byte in *b"Hi\r\n\xc9!" {
        caller.call(0x10, ax(0x0e00 | u64::from(byte)));
    }
    assert_eq!(caller.captured.bytes(), "Hi\r\n╔!".as_bytes());
    assert_eq!(caller.bytes(0xb8000), *b"H\x07i\x07 \x07");
    assert_eq!(caller.bytes(0xb80a0), *b"\xc9\x07!\x07");
    let (regs, _) = caller.call(0x10, ax(0x0300));
    assert_eq!((regs.rdx & 0xffff, regs.rcx & 0xffff), (0x0102, 0x0607));
}

#[test]
fn the_screen_scrolls_at_its_end() {
    let mut caller = Caller::new(512);
    for line in 0..30u8 {
        for byte in [b'a' + line % 26, b'\r', b'\n'] {
            caller.call(0x10, ax(0x0e00 | u64::from(byte)));
        }
    }
    assert_eq!(caller.bytes(0xb8000), [b'g', 7], "six lines have left the screen");
    let whole = Regs { rax: 0x0600, rbx: 0x1f00, rcx: 0, rdx: 0xffff, rsp: STACK, ..Default::default() };
    caller.call(0x10, whole);
    assert_eq!((caller.bytes(0xb8000), caller.bytes(0xb8f9e)), ([b' ', 0x1f], [b' ', 0x1f]));
}

#[test]
fn a_string_is_printed_with_its_attributes() {
    let mut caller = Caller::new(512);
    caller.vcpu.memory.write(Gpa(0x2000), b"a\x1eb\x2e").unwrap();
    let regs = Regs { rax: 0x1303, rcx: 2, rdx: 0x0501, rbp: 0x2000, rsp: STACK, ..Default::default() };
    caller.call(0x10, regs);
    assert_eq!(caller.bytes(0xb8000 + 5 * 160 + 2), *b"a\x1eb\x2e");
    assert_eq!(caller.captured.bytes(), b"ab");
    caller.call(0x10, Regs { rdx: 0x0600, ..regs });
    assert_eq!(caller.captured.bytes(), b"ab\r\nab", "another row is another line");
}

#[test]
fn sectors_are_read_by_place_and_by_number() {
    let mut caller = Caller::new(1_474_560);
    let read = |ax: u64, cx: u64, dx: u64, bx: u64| Regs {
        rax: ax,
        rcx: cx,
        rdx: dx,
        rbx: bx,
        rsp: STACK,
        ..Default::default()
    };
    // Two sectors from cylinder 0, head 1, sector 1: the 19th.
    let (regs, flags) = caller.call(0x13, read(0x0202, 0x0001, 0x0100, 0x2000));
    assert_eq!((regs.rax & 0xffff, flags & CARRY), (2, 0));
    assert_eq!((caller.bytes(0x2000), caller.bytes(0x2200)), ([19], [20]));
    for (name, regs, code) in [
        ("no sectors", read(0x0200, 1, 0, 0x2000), 0x01),
        ("too many", read(0x0281, 1, 0, 0x2000), 0x01),
        ("sector 0", read(0x0201, 0, 0, 0x2000), 0x04),
        ("past the last cylinder", read(0x0201, 0x5001, 0, 0x2000), 0x04),
        ("past the last head", read(0x0201, 1, 0x0200, 0x2000), 0x04),
        ("no such drive", read(0x0201, 1, 0x81, 0x2000), 0x01),
    ] {
        let (regs, flags) = caller.call(0x13, regs);
        assert_eq!((regs.rax >> 8 & 0xff, flags & CARRY), (code, CARRY), "{name}");
    }
    let (regs, _) = caller.call(0x13, read(0x0800, 0, 0, 0));
    assert_eq!((regs.rcx & 0xffff, regs.rdx & 0xffff, regs.rbx), (0x4f12, 0x0101, 4));
    let (regs, flags) = caller.call(0x13, read(0x4100, 0, 0, 0x55aa));
    assert_eq!((regs.rax >> 8, flags & CARRY), (1, CARRY), "a diskette has no extensions");
}

#[test]
fn packets_name_sectors_of_a_hard_disk() {
    let mut caller = Caller::new(4 << 20);
    let packet = |count: u16, offset: u16, segment: u16, first: u64| {
        let mut packet = vec![16, 0];
        packet.extend([count, offset, segment].map(u16::to_le_bytes).concat());
        packet.extend(first.to_le_bytes());
        packet
    };
    let regs = Regs { rax: 0x4200, rdx: 0x80, rsi: 0x1000, rsp: STACK, ..Default::default() };
    for (packet, code, moved) in [
        (packet(3, 0x2000, 0, 5), 0, 3),
        (packet(1, 0xffff, 0xffff, 5), 0x01, 1),
        (packet(0, 0x2000, 0, 5), 0x01, 0),
        (packet(129, 0x2000, 0, 5), 0x01, 129),
        (packet(1, 0x2000, 0, u64::MAX), 0x04, 0),
        (packet(128, 0x4000, 0, 9 * 1008 - 2), 0x04, 2),
        (packet(16, 0xffff, 0xf000, 5), 0, 16),
    ] {
        caller.vcpu.memory.write(Gpa(0x1000), &packet).unwrap();
        let (answer, flags) = caller.call(0x13, regs);
        assert_eq!(answer.rax >> 8 & 0xff, code, "{packet:x?}");
        assert_eq!((flags & CARRY != 0, caller.bytes(0x1002)), (code != 0, [moved]), "{packet:x?}");
    }
    assert_eq!(caller.bytes(0x2000), [6]);
    // A write stays in memory.
    caller.vcpu.memory.write(Gpa(0x1000), &packet(1, 0x2000, 0, 7)).unwrap();
    caller.call(0x13, Regs { rax: 0x4300, ..regs });
    caller.vcpu.memory.write(Gpa(0x1000), &packet(1, 0x3000, 0, 7)).unwrap();
    caller.call(0x13, regs);
    assert_eq!(caller.bytes(0x3000), [6]);
    caller.vcpu.memory.write(Gpa(0x5000), &[26, 0]).unwrap();
    caller.call(0x13, Regs { rax: 0x4800, rsi: 0x5000, ..regs });
    assert_eq!(u64::from_le_bytes(caller.bytes(0x5010)), 9 * 1008, "filled up to a cylinder");
}

#[test]
fn a_buffer_outside_of_memory_is_an_error() {
    let memory = GuestMemory::new(&[(Gpa(0), 0x10_0000)]).unwrap();
    let mut caller = Caller::new(1_474_560);
    (caller.bios.memory, caller.vcpu.memory) = (memory.clone(), memory);
    caller.vcpu.sregs.es.base = 0xf_fff0;
    let regs = Regs { rax: 0x0202, rcx: 1, rbx: 0, rsp: STACK, ..Default::default() };
    let (answer, flags) = caller.call(0x13, regs);
    assert_eq!((answer.rax & 0xffff, flags & CARRY), (0x0900, CARRY));
}

#[test]
fn the_memory_map_lists_all_memory() {
    let mut caller = Caller::new(512);
    let mut next = 0;
    let mut ranges = Vec::new();
    loop {
        let regs = Regs {
            rax: 0xe820,
            rbx: next,
            rcx: 20,
            rdx: 0x534d_4150,
            rdi: 0x2000,
            rsp: STACK,
            ..Default::default()
        };
        let (regs, flags) = caller.call(0x15, regs);
        assert_eq!((flags & CARRY, regs.rax, regs.rcx), (0, 0x534d_4150, 20));
        ranges.push((u64::from_le_bytes(caller.bytes(0x2000)), u64::from_le_bytes(caller.bytes(0x2008))));
        next = regs.rbx;
        if next == 0 {
            break;
        }
    }
    assert_eq!(ranges, [(0, 0x9_fc00), (0x9_fc00, 0x400), (0xe_0000, 0x2_0000), (1 << 20, RAM - (1 << 20))]);
    let (regs, _) = caller.call(0x15, ax(0x8800));
    assert_eq!(regs.rax, 3 << 10);
    let (regs, _) = caller.call(0x15, ax(0xe801));
    assert_eq!((regs.rax, regs.rbx), (3 << 10, 0));
    let (_, flags) = caller.call(0x15, Regs { rbx: 99, rdx: 0x534d_4150, rcx: 20, ..ax(0xe820) });
    assert_eq!(flags & CARRY, CARRY);
    assert_eq!(caller.call(0x12, ax(0)).0.rax, 639);
}

#[test]
fn a_key_is_awaited_and_taken() {
    let mut caller = Caller::with_input(512, b"a\x1b[A\n");
    let (regs, flags) = caller.call(0x16, ax(0x0100));
    assert_eq!((regs.rax, flags & call::ZERO), (0x1e61, 0), "the key stays");
    for key in [0x1e61, 0x4800, 0x1c0d] {
        assert_eq!(caller.call(0x16, ax(0)).0.rax, key);
    }
    let (regs, flags) = caller.call(0x16, ax(0x0100));
    assert_eq!((regs.rax, flags & call::ZERO), (0x0100, call::ZERO));
    let (outcome, ..) = caller.outcome(0x16, ax(0));
    assert!(matches!(outcome, Outcome::Stop(Stop::Halted)), "the input has ended: {outcome:?}");
    // A handler of the guest's own may still make a key.
    caller.vcpu.memory.write(Gpa(0x1c * 4), &[0, 0x7c, 0, 0]).unwrap();
    let (regs, _) = caller.call(0x16, ax(0));
    assert_eq!(regs.rflags & u64::from(CARRY), 1, "the stub waits");
}

/// A guest that polls the keyboard is in a stub, with interrupts off, nearly whenever its time slice ends.
#[test]
fn a_key_interrupts_a_guest_at_the_end_of_a_call() {
    let mut caller = Caller::new(512);
    let press = |caller: &Caller| caller.bios.keyboard.as_ref().unwrap().write(1).unwrap();
    press(&caller);
    let (regs, _) = caller.call(0x16, ax(0x0100));
    assert_eq!((regs.rip, regs.rsp), (u64::from(offset(9)), STACK - 6), "it is in the handler of int 9");
    let [low, high] = (offset(0x16) + 2).to_le_bytes();
    assert_eq!(caller.bytes(STACK - 6), [low, high, 0, 0, 2, 0], "which returns to the end of the call");
    let (regs, _) = caller.call(0x16, ax(0x0100));
    assert_eq!(regs.rip, u64::from(offset(0x16)), "the key interrupts once");
    // The caller has interrupts off, or the machine has interrupt controllers.
    press(&caller);
    caller.bios.has_controllers = true;
    let (regs, _) = caller.call(0x16, ax(0x0100));
    assert_eq!(regs.rip, u64::from(offset(0x16)));
}

#[test]
fn an_exception_ends_the_run_and_a_call_of_its_vector_does_not() {
    let mut caller = Caller::new(512);
    caller.vcpu.memory.write(Gpa(0x602), &[0xf7, 0xf1]).unwrap();
    let (outcome, ..) = caller.outcome(6, ax(0));
    assert!(matches!(outcome, Outcome::Resume), "int 6: {outcome:?}");
    // A fault: the frame has the instruction itself.
    caller.vcpu.memory.write(Gpa(0x600), &[0x90, 0x90]).unwrap();
    caller.vcpu.regs = Regs { rip: offset(0).into(), rflags: 2, ..ax(0) };
    caller.vcpu.sregs.cs.base = 0xf_0000;
    let exit = Exit::PioOut { port: PORT, size: 1, data: 0 };
    let outcome = caller.bios.handle(&exit, &mut caller.vcpu);
    let Outcome::Stop(stop) = outcome else { panic!("{outcome:?}") };
    assert!(stop.to_string().starts_with("#DE (a division by zero"), "{stop}");
    assert!(stop.to_string().contains("at 0000:0602"), "{stop}");
    assert_eq!((caller.vcpu.regs.rip, caller.vcpu.regs.rsp), (0x602, STACK + 6));
}

#[test]
fn a_missing_function_is_named_once_and_returns_carry() {
    let mut caller = Caller::new(512);
    for (vector, function) in [(0x21, 0x4c00), (0x13, 0x5500), (0x15, 0x1234), (0x10, 0x1400), (0x60, 0)] {
        for _ in 0..2 {
            let (_, flags) = caller.call(vector, Regs { rdx: 0x80, ..ax(function) });
            assert_eq!(flags & CARRY, CARRY, "{vector:#x}");
        }
    }
    assert_eq!(caller.bios.missing.len(), 5);
}

#[test]
fn serial_ports_and_printers_time_out() {
    let mut caller = Caller::new(512);
    for (vector, ax, ah) in [
        (0x14, 0x00e3, 0x80),
        (0x14, 0x0141, 0x80),
        (0x14, 0x0300, 0x80),
        (0x17, 0x0041, 1),
        (0x17, 0x0200, 1),
    ] {
        let (regs, flags) = caller.call(vector, self::ax(ax));
        assert_eq!((regs.rax >> 8, flags & CARRY), (ah, 0), "{vector:#x} {ax:#x}");
    }
    // What is sent is lost, which is told once.
    assert_eq!(caller.bios.missing.len(), 2);
}

#[test]
fn the_port_of_the_stubs_is_free_for_the_guest() {
    let mut caller = Caller::new(512);
    caller.vcpu.sregs.cs.base = 0;
    caller.vcpu.regs.rip = 0x7c10;
    let exit = Exit::PioOut { port: PORT, size: 1, data: 0 };
    assert!(matches!(caller.bios.handle(&exit, &mut caller.vcpu), Outcome::Unclaimed));
    caller.vcpu.sregs = Sregs { cr0: CR0_PE, ..Default::default() };
    caller.vcpu.regs.rip = 0xf_4100;
    assert!(matches!(caller.bios.handle(&exit, &mut caller.vcpu), Outcome::Unclaimed));
}

/// Random calls: whatever the registers, the stack, the data area and the packets are, a call is answered.
#[test]
fn random_calls_are_answered() {
    let mut caller = Caller::with_input(700_000, &[b'x'; 100]);
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let calls = if cfg!(miri) { 50 } else { 5_000 };
    for _ in 0..calls {
        let vector = [0x08, 0x09, 0x10, 0x11, 0x12, 0x13, 0x15, 0x16, 0x19, 0x1a, random() as u8]
            [(random() % 11) as usize];
        let mut regs = Regs {
            rax: random(),
            rbx: random(),
            rcx: random(),
            rdx: random() & if random() % 2 == 0 { u64::MAX } else { 0xff80 },
            rsi: random(),
            rdi: random(),
            rbp: random(),
            rsp: random(),
            ..Default::default()
        };
        match random() % 8 {
            // A wait would take its time.
            0 => {
                regs.rax = regs.rax & 0xff
                    | [0x02, 0x03, 0x42, 0x43, 0x48, 0x13, 0x87, 0x06][(random() % 8) as usize] << 8;
            }
            1 => regs.rsp = random() % 6,
            2 => regs.rax = 0xe820,
            _ => {}
        }
        if vector == 0x15 && regs.rax >> 8 & 0xff == 0x86 {
            continue;
        }
        let segment = |random: u64| (random & 0xffff) << 4;
        caller.vcpu.sregs.ss.base = segment(random());
        caller.vcpu.sregs.es.base = segment(random());
        caller.vcpu.sregs.ds.base = segment(random());
        if random() % 16 == 0 {
            let at = 0x400 + random() % 0x100;
            caller.vcpu.memory.write(Gpa(at), &random().to_le_bytes()).unwrap();
        }
        let (outcome, ..) = caller.outcome(vector, regs);
        assert!(!matches!(outcome, Outcome::Unclaimed), "{vector:#x} {regs:x?}");
    }
}

#[test]
fn the_bytes_after_an_escape_are_keys_unless_they_are_those_of_a_key() {
    let mut caller = Caller::with_input(512, b"\x1b[B\x1bcd\x1b[3\x1b");
    let keys = std::iter::from_fn(|| match caller.outcome(0x16, ax(0x1000)) {
        (Outcome::Resume, regs, _) => Some(regs.rax as u16),
        _ => None,
    });
    assert_eq!(
        keys.take(9).collect::<Vec<_>>(),
        [0x50e0, 0x011b, 0x2e63, 0x2064, 0x011b, 0x1a5b, 0x0433, 0x011b]
    );
}
