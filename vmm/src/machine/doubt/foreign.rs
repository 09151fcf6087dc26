//! Doubts about a guest of another program, of which only the registers, the memory and the exits are known.
//!
//! Its image is not known, so the doubts that compare with it are missing: an end outside of it, texts that were not printed,
//! and stores to places without a device, which only the program knows.

use super::{Doubt, Original, has_no_result, missing_handler, screen};
use crate::memory::{Gpa, ReadMemory};
use crate::x86::modes::CR0_PE;
use crate::x86::probe::Probe;
use crate::x86::registers::{Regs, Sregs};

/// RFLAGS: interrupts are on.
const INTERRUPTS_ON: u64 = 1 << 9;

/// A vCPU of another program's VMM whose guest has halted, for [`Doubt::of_halted`].
#[derive(Clone, Copy)]
pub struct HaltedVcpu<'a> {
    /// The general registers.
    pub regs: &'a Regs,
    /// The segment and control registers.
    pub sregs: &'a Sregs,
    /// The memory of the guest, which may hold anything. It is read a bounded number of times.
    pub memory: &'a dyn ReadMemory,
    /// The halt is the only exit of the VM.
    pub is_only_exit: bool,
}

impl Doubt {
    /// Reasons to doubt that a guest of another program did its work, the most telling one first.
    pub fn of_halted(vcpu: &HaltedVcpu<'_>) -> Vec<Self> {
        let HaltedVcpu { regs, sregs, memory, is_only_exit } = *vcpu;
        let probe = Probe::new(memory, *sregs);
        let entry =
            probe.translate_linear(probe.linear(sregs.cs.base, regs.rip)).map_or(Gpa(0), |place| place.gpa);
        let present = Present { memory, entry };
        let mut doubts = Vec::new();
        if sregs.cr0 & CR0_PE == 0 {
            doubts
                .extend(missing_handler(&present, memory, sregs.ss.base, regs.rsp).map(Self::MissingHandler));
        }
        doubts.extend(screen::text(&present, memory, &[regs.rsp]).map(Self::TextScreen));
        if doubts.is_empty() && is_only_exit && has_no_result(memory, |_| 0) {
            doubts.push(Self::NothingSeen);
            doubts.extend((regs.rflags & INTERRUPTS_ON != 0).then_some(Self::NoInterrupts));
        }
        doubts
    }

    /// The doubt as a clause about a guest of another program.
    pub fn of_another_program(&self) -> String {
        match self {
            Self::MissingHandler(vector) => format!(
                "it called int {vector:#x}, which has no handler: its vector is empty, because its memory has {}",
                match vector {
                    0x20..=0x2f => "no BIOS and no DOS",
                    _ => "no BIOS",
                }
            ),
            Self::TextScreen(text) => {
                format!("it wrote {text:?} to the text screen at 0xb8000, which is plain memory in this VM")
            }
            Self::NothingSeen => {
                "it had no visible effect: no exit but this one, and no result at 0x400".into()
            }
            Self::NoInterrupts => {
                "interrupts were on, but the kernel delivers none: the VM has no interrupt controller".into()
            }
            other => other.to_string(),
        }
    }
}

/// The memory as it is now, in the place of that at the start.
struct Present<'a> {
    memory: &'a dyn ReadMemory,
    entry: Gpa,
}

impl Original for Present<'_> {
    fn byte_at(&self, gpa: u64) -> Option<u8> {
        let mut byte = [0];
        self.memory.read(Gpa(gpa), &mut byte).then_some(byte[0])
    }

    fn entry(&self) -> Gpa {
        self.entry
    }

    fn overlaps(&self, _: u64, _: u64) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemory;

    const RAM: u64 = 0x10_0000;

    /// The doubts about a real-mode guest that has halted at 0x1004 with its stack at 0x8000.
    fn doubts(prepare: impl Fn(&GuestMemory), rflags: u64, is_only_exit: bool) -> Vec<Doubt> {
        let memory = GuestMemory::new(&[(Gpa(0), RAM)]).unwrap();
        // nop; int 0x10; hlt
        memory.write(Gpa(0x1000), &[0x90, 0xcd, 0x10, 0xf4]).unwrap();
        prepare(&memory);
        let regs = Regs { rip: 0x1004, rsp: 0x7ff0, rflags, ..Regs::default() };
        let sregs = Sregs::default();
        Doubt::of_halted(&HaltedVcpu { regs: &regs, sregs: &sregs, memory: &memory, is_only_exit })
    }

    /// The frame that `int 0x10` leaves on the stack.
    fn frame(memory: &GuestMemory) {
        memory.write(Gpa(0x7ff4), [0x1003u16, 0, 0x0202].map(u16::to_le_bytes).as_flattened()).unwrap();
    }

    #[test]
    fn a_call_of_firmware_that_is_not_there_is_seen() {
        assert_eq!(doubts(frame, 2, true), [Doubt::MissingHandler(0x10)]);
        let text = Doubt::MissingHandler(0x10).of_another_program();
        assert_eq!(
            text,
            "it called int 0x10, which has no handler: its vector is empty, because its memory has no BIOS"
        );
        // With a handler, as firmware has one.
        let handled = |memory: &GuestMemory| {
            frame(memory);
            memory.write(Gpa(0x40), &[0x00, 0x20, 0, 0]).unwrap();
            memory.write(Gpa(0x2000), &[0xcf, 0xcf]).unwrap();
        };
        assert_eq!(doubts(handled, 2, false), []);
    }

    #[test]
    fn a_guest_without_an_effect_is_seen() {
        assert_eq!(doubts(|_| {}, 2, true), [Doubt::NothingSeen]);
        assert_eq!(doubts(|_| {}, 0x202, true), [Doubt::NothingSeen, Doubt::NoInterrupts]);
        assert_eq!(doubts(|_| {}, 2, false), []);
        assert_eq!(doubts(|memory| memory.write(Gpa(0x400), &[42]).unwrap(), 2, true), []);
        let screen = |memory: &GuestMemory| memory.write(Gpa(0xb8000), b"H\x07i\x07").unwrap();
        assert_eq!(doubts(screen, 2, true), [Doubt::TextScreen("Hi".into())]);
    }

    #[test]
    fn any_registers_are_harmless() {
        let memory = GuestMemory::new(&[(Gpa(0), RAM)]).unwrap();
        for word in [0, 1, 0xffff, RAM - 1, u64::MAX] {
            let regs = Regs { rip: word, rsp: word, rflags: word, ..Regs::default() };
            let mut sregs = Sregs { cr0: word & !1, cr3: word, cr4: word, efer: word, ..Sregs::default() };
            (sregs.ss.base, sregs.cs.base) = (word, word);
            Doubt::of_halted(&HaltedVcpu { regs: &regs, sregs: &sregs, memory: &memory, is_only_exit: true });
        }
    }
}
