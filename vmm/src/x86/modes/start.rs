//! The complete state in which the vCPUs of a machine enter an image.

use super::{CR0_ET, CR0_PE, Mode, RFLAGS_ONE, VcpuIndex, regs, sregs};
use crate::memory::Gpa;
use crate::x86::general::InitialValue;
use crate::x86::registers::{Regs, Segment, Sregs};

/// The limit of the task state that the PVH protocol asks for: the size of a 32-bit task state, minus one.
const PVH_TASK_LIMIT: u32 = 0x67;

/// The offset of the reset vector in the segment of the reset state.
const RESET_VECTOR: u64 = 0xfff0;
/// RFLAGS: interrupts are on.
const RFLAGS_INTERRUPTS: u64 = 1 << 9;
/// The value in AX after a BIOS has loaded a boot sector: the bytes at its end.
const BOOT_MAGIC: u64 = 0xaa55;

/// The start of an image: its mode, its entry point, and the registers that differ from those of [`sregs`] and [`regs`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The mode.
    pub mode: Mode,
    /// The guest physical address of the first instruction.
    pub entry: Gpa,
    /// The segment of real mode: CS holds it, and so do the data segments.
    pub segment: u16,
    /// The registers are those of the PVH protocol: in CR0 only PE and ET are set, and the task state has its minimum size.
    pub pvh: bool,
    /// The vCPU starts at its reset vector, in the state after a reset.
    pub from_reset: bool,
    /// A BIOS has loaded the boot sector of this drive: DL holds its number, the stack ends at the entry point, and interrupts are
    /// on.
    pub boot_drive: Option<u8>,
    /// The general registers with a value of their own. The last one counts.
    pub registers: Vec<InitialValue>,
}

impl Start {
    /// A start without registers of its own.
    pub fn new(mode: Mode, entry: Gpa) -> Self {
        Self {
            mode,
            entry,
            segment: 0,
            pvh: false,
            from_reset: false,
            boot_drive: None,
            registers: Vec::new(),
        }
    }

    /// The address of the first byte of the segment of real mode.
    pub fn base(&self) -> u64 {
        u64::from(self.segment) << 4
    }

    /// The special registers of the vCPU at `place`. See [`sregs`].
    pub fn sregs(&self, reset: Sregs, tables: Gpa, place: VcpuIndex) -> Sregs {
        if self.from_reset {
            return reset;
        }
        let mut sregs = sregs(self.mode, reset, tables, place);
        if self.segment != 0 {
            let into = |segment: Segment| Segment { selector: self.segment, base: self.base(), ..segment };
            sregs.cs = into(sregs.cs);
            (sregs.ds, sregs.es) = (into(sregs.ds), into(sregs.es));
            (sregs.fs, sregs.gs) = (into(sregs.fs), into(sregs.gs));
            if place.index == 0 {
                sregs.ss = into(sregs.ss);
            }
        }
        if self.pvh {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.tr = Segment { base: 0, limit: PVH_TASK_LIMIT, g: 0, ..sregs.tr };
        }
        sregs
    }

    /// The general registers of the vCPU at `place`. See [`regs`].
    pub fn regs(&self, place: VcpuIndex) -> Regs {
        let entry = Gpa(self.entry.0.saturating_sub(self.base()));
        let mut regs = match self.from_reset {
            true => Regs { rip: RESET_VECTOR, rflags: RFLAGS_ONE, ..Regs::default() },
            false => regs(self.mode, entry, place),
        };
        if let Some(drive) = self.boot_drive {
            let rflags = regs.rflags | RFLAGS_INTERRUPTS;
            regs = Regs {
                rip: regs.rip,
                rax: BOOT_MAGIC,
                rdx: drive.into(),
                rsp: entry.0,
                rflags,
                ..Regs::default()
            };
        }
        for set in &self.registers {
            *set.register.of(&mut regs) = set.value;
        }
        regs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::general::GeneralRegister;

    #[test]
    fn a_plain_start_has_the_registers_of_its_mode() {
        for mode in [Mode::Real, Mode::Protected, Mode::Long, Mode::User] {
            let start = Start::new(mode, Gpa(0x1234));
            let place = VcpuIndex { index: 1, of: 2, id: 5 };
            assert_eq!(start.regs(place), regs(mode, Gpa(0x1234), place));
            let reset = Sregs::default();
            assert_eq!(start.sregs(reset, Gpa(0x2000), place), sregs(mode, reset, Gpa(0x2000), place));
        }
    }

    #[test]
    fn a_real_mode_segment_is_in_all_segment_registers() {
        let start = Start { segment: 0x1000, ..Start::new(Mode::Real, Gpa(0x1_0020)) };
        let sregs = start.sregs(Sregs::default(), Gpa(0), VcpuIndex::ALONE);
        for segment in [sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] {
            assert_eq!((segment.selector, segment.base), (0x1000, 0x1_0000));
        }
        assert_eq!(start.regs(VcpuIndex::ALONE).rip, 0x20);
        // The stack of a further vCPU is its own.
        let second = start.sregs(Sregs::default(), Gpa(0), VcpuIndex { index: 1, of: 2, id: 1 });
        assert_eq!((second.cs.selector, second.ss.base), (0x1000, 0xe_c000));
    }

    #[test]
    fn pvh_sets_only_pe_and_values_replace_those_of_the_mode() {
        let set = InitialValue { register: GeneralRegister::Rdi, value: 7 };
        let start = Start { pvh: true, registers: vec![set], ..Start::new(Mode::Protected, Gpa(0x1000)) };
        let sregs = start.sregs(Sregs::default(), Gpa(0x2000), VcpuIndex::ALONE);
        assert_eq!((sregs.cr0, sregs.tr.limit, sregs.cs.db), (0x11, 0x67, 1));
        let regs = start.regs(VcpuIndex::ALONE);
        assert_eq!((regs.rdi, regs.rsi, regs.rip), (7, 1, 0x1000));
    }
}
