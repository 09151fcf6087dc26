//! Int 11h, 12h and 15h: the machine.
//!
//! IBM PS/2 and Personal Computer BIOS Interface Technical Reference, "Interrupt 15h"; ACPI specification, section 15
//! (address map, E820h); Microsoft and Intel, APM BIOS Interface Specification 1.2.

use super::Bios;
use super::call::{CARRY, Call};
use super::stubs::{CONFIGURATION, EXTENDED_DATA, LOW_KIB};
use crate::exit::Stop;
use std::ops::ControlFlow;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// "SMAP", in EAX and EDX of E820h.
const SMAP: u32 = 0x534d_4150;
/// The types of ranges: usable, reserved.
const USABLE: u32 = 1;
const RESERVED: u32 = 2;
/// There is no such function.
const MISSING: u8 = 0x86;
/// The most words of a block move.
const MOST_WORDS: u64 = 0x8000;

/// The answer to a call: the stub returns, or waits and calls again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Wait,
    /// The call is for a device that is not there, and has its status.
    NoDevice,
    /// There is no such function.
    Missing,
}

/// The map of memory of `ram` bytes: address, size, type.
pub(super) fn memory_map(ram: u64) -> [(u64, u64, u32); 4] {
    let low = u64::from(LOW_KIB) << 10;
    [
        (0, low, USABLE),
        (low, 1 << 10, RESERVED),
        (0xe_0000, 0x2_0000, RESERVED),
        (MIB, ram.saturating_sub(MIB), USABLE),
    ]
}

impl Bios {
    /// Answers int 15h.
    pub(super) fn system_call(&mut self, call: &mut Call<'_>) -> ControlFlow<Stop, Answer> {
        match call.ax() {
            0xe820 => self.e820(call),
            0xe801 => {
                let above = self.ram.saturating_sub(MIB) >> 10;
                let low = above.min(15 << 10) as u16;
                let high = u16::try_from(above.saturating_sub(15 << 10) >> 6).unwrap_or(u16::MAX);
                call.set_ax(low);
                call.set_cx(low);
                call.set_bx(high);
                call.set_dx(high);
                call.set_flag(CARRY, false);
            }
            // A20 is always on.
            0x2401 => call.succeed(),
            0x2402 => {
                call.succeed();
                call.set_al(1);
            }
            0x2403 => {
                call.succeed();
                call.set_bx(2);
            }
            0x2400 => call.fail(MISSING),
            0x5300 => {
                call.set_ax(0x0102);
                call.set_bx(u16::from_be_bytes(*b"PM"));
                call.set_cx(1);
                call.set_flag(CARRY, false);
            }
            0x5301 | 0x5304 | 0x5308 | 0x530d | 0x530f => call.succeed(),
            0x530e => {
                call.set_ax(0x0102);
                call.set_flag(CARRY, false);
            }
            0x5307 if call.cx() == 3 => return ControlFlow::Break(Stop::PoweredOff),
            _ => return ControlFlow::Continue(self.old_system_call(call)),
        }
        ControlFlow::Continue(Answer::Done)
    }

    /// The functions of AH.
    fn old_system_call(&mut self, call: &mut Call<'_>) -> Answer {
        match call.ah() {
            // The keyboard's hook: the scan code is used as it is.
            0x4f => call.set_flag(CARRY, true),
            0x86 => return self.wait(call),
            0x87 => block_move(call),
            0x88 => {
                let above = self.ram.saturating_sub(MIB) >> 10;
                call.set_ax(above.min(63 << 10) as u16);
                call.set_flag(CARRY, false);
            }
            // A device is busy, or has ended.
            0x90 | 0x91 => call.succeed(),
            0xc0 => {
                call.succeed();
                call.set_es(CONFIGURATION.0);
                call.set_bx(CONFIGURATION.1);
            }
            0xc1 => {
                call.succeed();
                call.set_es(EXTENDED_DATA);
            }
            _ => {
                call.fail(MISSING);
                return Answer::Missing;
            }
        }
        Answer::Done
    }

    /// Function E820h: the range with the number in EBX, to ES:DI.
    fn e820(&self, call: &mut Call<'_>) {
        let map = memory_map(self.ram);
        let index = usize::try_from(call.regs.rbx as u32).unwrap_or(usize::MAX);
        let range = map.get(index).filter(|_| call.regs.rdx as u32 == SMAP && call.regs.rcx as u32 >= 20);
        let Some((start, size, kind)) = range else { return call.fail(MISSING) };
        let mut bytes = Vec::with_capacity(24);
        bytes.extend(start.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        if call.regs.rcx as u32 >= 24 {
            bytes.extend(1u32.to_le_bytes());
        }
        if !call.store(call.in_es(call.di()), &bytes) {
            return call.fail(MISSING);
        }
        let next = index.saturating_add(1);
        call.regs.rbx = if next < map.len() { next as u64 } else { 0 };
        call.regs.rcx = bytes.len() as u64;
        call.regs.rax = SMAP.into();
        call.set_flag(CARRY, false);
    }

    /// Function 86h: waits CX:DX microseconds. The longer part of the wait is in the stub, so that interrupts are served.
    fn wait(&mut self, call: &mut Call<'_>) -> Answer {
        let now = self.now();
        let micros = u64::from(call.cx()) << 16 | u64::from(call.dx());
        let end = *self.wait_end.get_or_insert_with(|| now.saturating_add(Duration::from_micros(micros)));
        let left = end.saturating_sub(now);
        if left > super::time::TICK {
            return Answer::Wait;
        }
        self.sleep(left);
        if self.now() < end {
            // A signal ended the sleep.
            return Answer::Wait;
        }
        self.wait_end = None;
        call.succeed();
        Answer::Done
    }
}

/// Function 87h: moves CX words between the segments of the table in ES:SI.
fn block_move(call: &mut Call<'_>) {
    const FROM: u64 = 0x10;
    const TO: u64 = 0x18;
    /// The call failed for another reason than those of the hardware.
    const FAILED: u8 = 2;
    let table = call.in_es(call.si());
    let base = |call: &Call<'_>, descriptor: u64| {
        let at = table.wrapping_add(descriptor);
        let low = u64::from(call.word(at.wrapping_add(2))) | u64::from(call.byte(at.wrapping_add(4))) << 16;
        low | u64::from(call.byte(at.wrapping_add(7))) << 24
    };
    let (from, to) = (base(call, FROM), base(call, TO));
    let words = u64::from(call.cx());
    if words > MOST_WORDS {
        return call.fail(FAILED);
    }
    let mut bytes = vec![0; words.wrapping_mul(2) as usize];
    if call.load(from, &mut bytes) && call.store(to, &bytes) {
        call.succeed();
        call.set_flag(super::call::ZERO, true);
    } else {
        call.fail(FAILED);
    }
}
