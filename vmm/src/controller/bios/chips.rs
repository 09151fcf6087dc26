//! Interrupts of a machine without interrupt controllers: the timer's tick, and a small part of the chips' ports.
//!
//! The software processor has no interrupt controllers. So the BIOS interrupts the guest itself, in real mode only: it
//! pushes the frame and jumps to the handler, as the processor does (Intel SDM volume 3, section 22.1.4). It does so
//! when the guest halts, and at the end of a slice.

use super::call::INTERRUPTS;
use super::stubs;
use super::time::TICK;
use crate::controller::VcpuState;
use crate::error::Error;
use crate::memory::{Gpa, GuestMemory};
use crate::x86::modes::CR0_PE;
use std::time::Duration;

/// The frequency of the timer, in Hz.
const FREQUENCY: u64 = 1_193_182;
/// The shortest time between two ticks. A guest may ask for a shorter one.
const SHORTEST: Duration = Duration::from_micros(500);
/// FLAGS: single step.
const TRAP: u16 = 1 << 8;
/// The requests of the timer and of the keyboard in the mask.
const TIMER_LINE: u8 = 1;
const KEYBOARD_LINE: u8 = 1 << 1;

/// The ports of the chips.
const CONTROLLER: u16 = 0x20;
const MASK: u16 = 0x21;
const SECOND: [u16; 2] = [0xa0, 0xa1];
const COUNTERS: std::ops::RangeInclusive<u16> = 0x40..=0x43;
const SPEAKER: u16 = 0x61;

/// The chips.
#[derive(Debug)]
pub(super) struct Chips {
    mask: u8,
    /// The counter's start value; 0 stands for 0x1_0000.
    count: u16,
    /// The low byte of a count whose high byte follows.
    low: Option<u8>,
    /// Set if the next read of the counter is its high byte.
    reads_high: bool,
    latched: Option<u16>,
    speaker: u8,
    /// The time of the next tick.
    next_tick: Duration,
}

impl Chips {
    /// Chips after power-on, at this time.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            mask: 0,
            count: 0,
            low: None,
            reads_high: false,
            latched: None,
            speaker: 0,
            next_tick: now.saturating_add(TICK),
        }
    }

    /// The time between two ticks.
    fn period(&self) -> Duration {
        let count = if self.count == 0 { 0x1_0000 } else { u64::from(self.count) };
        Duration::from_nanos(count.saturating_mul(1_000_000_000) / FREQUENCY).max(SHORTEST)
    }

    /// The time until the next tick; zero if it is due. `None` if ticks are masked.
    pub(super) fn until_tick(&self, now: Duration) -> Option<Duration> {
        (self.mask & TIMER_LINE == 0).then(|| self.next_tick.saturating_sub(now))
    }

    /// True if keys interrupt the guest.
    pub(super) fn takes_keys(&self) -> bool {
        self.mask & KEYBOARD_LINE == 0
    }

    /// Takes the tick that is due. Ticks that were not taken in time are lost, as on a PC.
    pub(super) fn take_tick(&mut self, now: Duration) {
        let period = self.period();
        self.next_tick = self.next_tick.saturating_add(period);
        if self.next_tick < now {
            self.next_tick = now.saturating_add(period);
        }
    }

    /// The value of a port. `None` if the port is not one of the chips'.
    pub(super) fn read(&mut self, port: u16, now: Duration) -> Option<u8> {
        Some(match port {
            MASK => self.mask,
            CONTROLLER => 0,
            _ if SECOND.contains(&port) => 0,
            0x40 => self.read_counter(now),
            // The bit that changes with each refresh of memory, and the output of the third counter.
            SPEAKER => {
                self.speaker ^= 0x30;
                self.speaker
            }
            _ if COUNTERS.contains(&port) => 0,
            _ => return None,
        })
    }

    /// The next byte of the first counter.
    fn read_counter(&mut self, now: Duration) -> u8 {
        let left = u64::try_from(self.next_tick.saturating_sub(now).as_nanos()).unwrap_or(0);
        let counter = left.saturating_mul(FREQUENCY) / 1_000_000_000;
        let [low, high] = self.latched.unwrap_or(counter as u16).to_le_bytes();
        self.reads_high = !self.reads_high;
        if !self.reads_high {
            self.latched = None;
            high
        } else {
            low
        }
    }

    /// Writes a port. False if the port is not one of the chips'.
    pub(super) fn write(&mut self, port: u16, value: u8, now: Duration) -> bool {
        match port {
            MASK => self.mask = value,
            0x40 => match self.low.take() {
                None => self.low = Some(value),
                Some(low) => {
                    self.count = u16::from_le_bytes([low, value]);
                    self.next_tick = now.saturating_add(self.period());
                }
            },
            0x43 if value >> 6 == 0 => {
                (self.low, self.reads_high) = (None, false);
                if value & 0x30 == 0 {
                    let [low, high] = [self.read_counter(now), self.read_counter(now)];
                    self.latched = Some(u16::from_le_bytes([low, high]));
                }
            }
            SPEAKER => self.speaker = self.speaker & 0x30 | value & 0x0f,
            _ => return port == CONTROLLER || SECOND.contains(&port) || COUNTERS.contains(&port),
        }
        true
    }
}

/// True if the vCPU takes an interrupt now: in real mode, with interrupts on, and not just after a load of SS.
pub(super) fn takes_interrupts(vcpu: &mut dyn VcpuState) -> Result<bool, Error> {
    Ok(vcpu.regs()?.rflags & u64::from(INTERRUPTS) != 0
        && vcpu.sregs()?.cr0 & CR0_PE == 0
        && !vcpu.is_in_shadow())
}

/// Interrupts the guest, which takes interrupts.
///
/// # Errors
/// The kernel refused.
pub(super) fn interrupt(vcpu: &mut dyn VcpuState, vector: u8) -> Result<(), Error> {
    let (mut regs, mut sregs) = (vcpu.regs()?, vcpu.sregs()?);
    let entry = u64::from(vector).wrapping_mul(4).wrapping_add(sregs.idt.base);
    let mut handler = [0; 4];
    if !vcpu.memory().read(Gpa(entry), &mut handler) {
        return Ok(());
    }
    for word in [regs.rflags as u16, sregs.cs.selector, regs.rip as u16] {
        let pointer = (regs.rsp as u16).wrapping_sub(2);
        regs.rsp = regs.rsp & !0xffff | u64::from(pointer);
        for (offset, byte) in (0u16..).zip(word.to_le_bytes()) {
            let at = sregs.ss.base.wrapping_add(pointer.wrapping_add(offset).into());
            let _ = vcpu.memory().write(Gpa(at), &[byte]);
        }
    }
    let [o0, o1, s0, s1] = handler;
    regs.rip = u16::from_le_bytes([o0, o1]).into();
    regs.rflags &= !u64::from(INTERRUPTS | TRAP);
    sregs.cs.selector = u16::from_le_bytes([s0, s1]);
    sregs.cs.base = u64::from(sregs.cs.selector) << 4;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)
}

/// True if the guest has set no handler of its own for a hardware interrupt.
pub(super) fn has_no_handler(memory: &GuestMemory) -> bool {
    (stubs::TIMER..=0x0f).chain(0x70..=0x77).chain([0x1c, 0x4a]).all(|vector| {
        let mut entry = [0; 4];
        memory.read(Gpa(u64::from(vector).wrapping_mul(4)), &mut entry) && stubs::is_own(vector, entry)
    })
}

/// True if the guest only repeats a halt, or a jump to itself: `linear` is the address after the HLT, or that of the jump.
pub(super) fn is_idle(vcpu: &dyn VcpuState, linear: u64, halted: bool) -> bool {
    const JUMP: u8 = 0xeb;
    /// `jmp $`
    const TO_ITSELF: u8 = 0xfe;
    /// The number of bytes before the jump that may be in the loop.
    const LOOP: usize = 4;
    let mut bytes = [0; LOOP + 2];
    let start = linear.wrapping_sub(LOOP as u64);
    if !vcpu.memory().read(Gpa(start), &mut bytes) {
        return false;
    }
    let [before @ .., jump, distance] = bytes;
    if jump != JUMP || !halted {
        return jump == JUMP && distance == TO_ITSELF && !halted;
    }
    // The jump leads back by its own length and that of the loop.
    let length = usize::from(distance.wrapping_neg()).wrapping_sub(2);
    let body = LOOP.checked_sub(length).and_then(|at| before.get(at..));
    // hlt, cli, sti, nop
    body.is_some_and(|body| {
        body.contains(&0xf4) && body.iter().all(|byte| [0xf4, 0xfa, 0xfb, 0x90].contains(byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::FakeVcpu;

    fn vcpu() -> FakeVcpu {
        let memory = GuestMemory::new(&[(Gpa(0), 0x2000)]).unwrap();
        FakeVcpu { memory, ..Default::default() }
    }

    #[test]
    fn an_interrupt_pushes_its_frame_and_wraps_the_stack() {
        let mut vcpu = vcpu();
        vcpu.memory.write(Gpa(0x20), &[0x34, 0x12, 0x00, 0x01]).unwrap();
        (vcpu.regs.rsp, vcpu.regs.rip, vcpu.regs.rflags) = (0x1_0002, 0x7c10, 0x302);
        assert!(takes_interrupts(&mut vcpu).unwrap());
        interrupt(&mut vcpu, 8).unwrap();
        assert_eq!((vcpu.regs.rip, vcpu.sregs.cs.base, vcpu.regs.rflags), (0x1234, 0x1000, 2));
        assert_eq!(vcpu.regs.rsp, 0x1_fffc, "the upper half stays");
        let mut flags = [0; 2];
        assert!(vcpu.memory.read(Gpa(0), &mut flags) && flags == [0x02, 0x03]);
        assert!(!takes_interrupts(&mut vcpu).unwrap());
    }

    #[test]
    fn a_loop_that_only_halts_is_idle() {
        let vcpu = vcpu();
        for (code, halted, idle) in [
            (&[0, 0, 0, 0xf4, 0xeb, 0xfd][..], true, true),
            (&[0, 0, 0xfa, 0xf4, 0xeb, 0xfc], true, true),
            (&[0, 0, 0x40, 0xf4, 0xeb, 0xfc], true, false),
            (&[0, 0, 0, 0xf4, 0xeb, 0xf0], true, false),
            (&[0, 0, 0, 0xf4, 0xeb, 0x10], true, false),
            (&[0, 0, 0, 0xf4, 0x90, 0xfd], true, false),
            (&[0, 0, 0, 0, 0xeb, 0xfe], false, true),
            (&[0, 0, 0, 0, 0xeb, 0xfd], false, false),
        ] {
            vcpu.memory.write(Gpa(0x1000), code).unwrap();
            assert_eq!(is_idle(&vcpu, 0x1004, halted), idle, "{code:x?}");
        }
    }

    #[test]
    fn the_timer_keeps_its_period_and_can_be_masked() {
        let mut chips = Chips::new(Duration::ZERO);
        assert_eq!(chips.until_tick(Duration::ZERO), Some(TICK));
        chips.take_tick(TICK);
        assert_eq!(chips.until_tick(TICK), Some(chips.period()));
        // 1000 Hz.
        for (port, value) in [(0x43, 0x36), (0x40, 0xa9), (0x40, 0x04)] {
            assert!(chips.write(port, value, TICK));
        }
        let until = chips.until_tick(TICK).unwrap();
        assert!(until > Duration::from_micros(990) && until < Duration::from_micros(1010), "{until:?}");
        assert!(chips.write(0x21, 1, TICK) && chips.until_tick(TICK).is_none());
        assert!(chips.read(0x64, TICK).is_none() && !chips.write(0x60, 0, TICK));
        for port in [0x40, 0x43, 0x61, 0x20, 0xa1] {
            assert!(chips.read(port, TICK).is_some());
        }
    }
}
