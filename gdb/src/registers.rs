//! The registers that gdb sees, and their values.
//!
//! gdb knows an x86 processor of 32 bits and one of 64 bits. Both have the same registers here, as wide as the processor.
//! The tables decide the order of the registers in packets, and `description.rs` describes the same tables.
//!
//! The instruction pointer that gdb sees is the linear address of the next instruction. In flat segments and in 64-bit code
//! that is RIP itself. In real mode it is CS times 16 plus IP, which is where gdb looks for code and breakpoints.

mod fpu;
mod tables;

pub(crate) use tables::{all, groups};

use vmm::controller::VcpuState;
use vmm::x86::{FxImage, Regs, Segment, Sregs, linear_rip};

/// IA32_KERNEL_GS_BASE.
const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// CR0.PE: protected mode.
const PROTECTED: u64 = 1;
/// EFER.LMA: long mode.
const LONG: u64 = 1 << 10;

/// The width of the processor that gdb sees, and the code that it expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 32-bit registers, 16-bit code.
    Bits16,
    /// 32-bit registers and code.
    Bits32,
    /// 64-bit registers and code.
    Bits64,
}

impl Width {
    /// The width of the code that a vCPU with these registers executes.
    pub fn of(sregs: &Sregs) -> Self {
        let is_long = sregs.efer & LONG != 0 && sregs.cs.l != 0;
        match (sregs.cr0 & PROTECTED != 0, is_long, sregs.cs.db != 0) {
            (_, true, _) => Self::Bits64,
            (true, _, true) => Self::Bits32,
            _ => Self::Bits16,
        }
    }

    /// The number of bits.
    fn bits(self) -> u64 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }

    /// True if the registers have 64 bits.
    pub(crate) fn is_64(self) -> bool {
        self == Self::Bits64
    }

    /// The name of the architecture in gdb.
    pub(crate) fn architecture(self) -> &'static str {
        match self {
            Self::Bits16 => "i8086",
            Self::Bits32 => "i386",
            Self::Bits64 => "i386:x86-64",
        }
    }
}

/// The registers of a vCPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) regs: Regs,
    pub(crate) sregs: Sregs,
    kernel_gs_base: u64,
    /// The x87 and SSE registers. `None` if the vCPU does not show them.
    fpu: Option<FxImage>,
}

impl View {
    /// Reads the registers of a vCPU. `None` if the host refuses.
    pub(crate) fn of(vcpu: &mut dyn VcpuState) -> Option<Self> {
        let kernel_gs_base = vcpu.msr(KERNEL_GS_BASE).unwrap_or_default();
        let fpu = vcpu.fpu();
        Some(Self { regs: vcpu.regs().ok()?, sregs: vcpu.sregs().ok()?, kernel_gs_base, fpu })
    }

    /// Writes what has changed since `before`. Returns false if the host or the rules of the processor refuse.
    pub(crate) fn write(&self, before: &Self, vcpu: &mut dyn VcpuState) -> bool {
        let msr =
            self.kernel_gs_base == before.kernel_gs_base || vcpu.set_msr(KERNEL_GS_BASE, self.kernel_gs_base);
        let sregs = self.sregs == before.sregs || vcpu.set_sregs(&self.sregs).is_ok();
        let fpu = self.fpu.filter(|_| self.fpu != before.fpu).is_none_or(|fpu| vcpu.set_fpu(&fpu));
        msr && fpu && sregs && (self.regs == before.regs || vcpu.set_regs(&self.regs).is_ok())
    }
}

/// A register: its name, its type in gdb, its size in bits, and where its value is.
pub(crate) struct Register {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) bits: u8,
    place: Place,
}

/// The place of a value.
#[derive(Clone, Copy)]
enum Place {
    /// Bytes of the x87 and SSE registers: the offset in the image of FXSAVE, and the number.
    Fpu(usize, usize),
    /// The tag word of x87, with two bits for each register.
    Tags,
    General(fn(&mut Regs) -> &mut u64),
    Special(fn(&mut Sregs) -> &mut u64),
    /// The instruction pointer, as a linear address.
    Instruction,
    Selector(fn(&mut Sregs) -> &mut Segment),
    Base(fn(&mut Sregs) -> &mut Segment),
    GdtLimit,
    IdtLimit,
    KernelGsBase,
    /// The width of the code, which gdb cannot know otherwise.
    CodeBits,
}

impl Register {
    /// The number of bytes in a packet.
    pub(crate) fn len(&self) -> usize {
        usize::from(self.bits / 8)
    }

    /// The value; `None` if it is not available.
    pub(crate) fn get(&self, view: &View) -> Option<u128> {
        match self.place {
            Place::Fpu(at, len) => view.fpu.as_ref()?.get(at..)?.get(..len).map(number),
            Place::Tags => view.fpu.as_ref().map(fpu::tags).map(u128::from),
            _ => self.word(view).map(u128::from),
        }
    }

    /// The value of a register that is not one of x87 and SSE.
    fn word(&self, view: &View) -> Option<u64> {
        let mut view = *view;
        Some(match self.place {
            Place::Fpu(..) | Place::Tags => return None,
            Place::General(at) => *at(&mut view.regs),
            Place::Special(at) => *at(&mut view.sregs),
            Place::Instruction => linear_rip(&view.regs, &view.sregs),
            Place::Selector(at) => at(&mut view.sregs).selector.into(),
            Place::Base(at) => at(&mut view.sregs).base,
            Place::GdtLimit => view.sregs.gdt.limit.into(),
            Place::IdtLimit => view.sregs.idt.limit.into(),
            Place::KernelGsBase => view.kernel_gs_base,
            Place::CodeBits => Width::of(&view.sregs).bits(),
        })
    }

    /// Changes the value. A register that is not available stays so.
    pub(crate) fn set(&self, view: &mut View, wide: u128) {
        let value = wide as u64;
        // The upper half of a register that gdb sees as 32 bits stays.
        let merged = |old: u64| if self.bits >= 64 { value } else { old >> 32 << 32 | value & 0xffff_ffff };
        match self.place {
            Place::CodeBits => {}
            Place::Fpu(at, len) => {
                let place = view.fpu.as_mut().and_then(|image| image.get_mut(at..)?.get_mut(..len));
                let bytes = wide.to_le_bytes();
                place.into_iter().flatten().zip(bytes).for_each(|(place, byte)| *place = byte);
            }
            Place::Tags => view.fpu.iter_mut().for_each(|image| fpu::set_tags(image, value)),
            Place::General(at) => *at(&mut view.regs) = merged(*at(&mut view.regs)),
            Place::Special(at) => *at(&mut view.sregs) = merged(*at(&mut view.sregs)),
            Place::Instruction => {
                let is_64 = Width::of(&view.sregs).is_64();
                let base = if is_64 { 0 } else { view.sregs.cs.base };
                let rip = value.wrapping_sub(base);
                view.regs.rip = if is_64 { rip } else { rip & 0xffff_ffff };
            }
            Place::Selector(at) => {
                let is_real = view.sregs.cr0 & PROTECTED == 0;
                let segment = at(&mut view.sregs);
                let selector = u16::try_from(value & 0xffff).unwrap_or_default();
                if is_real && selector != segment.selector {
                    segment.base = u64::from(selector) << 4;
                }
                segment.selector = selector;
            }
            Place::Base(at) => at(&mut view.sregs).base = value,
            Place::GdtLimit => view.sregs.gdt.limit = u16::try_from(value & 0xffff).unwrap_or_default(),
            Place::IdtLimit => view.sregs.idt.limit = u16::try_from(value & 0xffff).unwrap_or_default(),
            Place::KernelGsBase => view.kernel_gs_base = value,
        }
    }
}

/// The registers in a packet of all registers. Those that are not available are `None`.
pub(crate) fn packed(view: &View, width: Width) -> Vec<Option<u8>> {
    let mut bytes = Vec::with_capacity(1000);
    for register in all(width) {
        match register.get(view) {
            None => bytes.resize(bytes.len().saturating_add(register.len()), None),
            Some(value) => bytes.extend(value.to_le_bytes().into_iter().take(register.len()).map(Some)),
        }
    }
    bytes
}

/// Changes the registers whose value in a packet of all registers is another one. Returns false if the packet is too short.
pub(crate) fn unpack(view: &mut View, width: Width, mut bytes: &[u8]) -> bool {
    let old = *view;
    for register in all(width) {
        let Some((value, rest)) = bytes.split_at_checked(register.len()) else { return false };
        bytes = rest;
        let value = number(value);
        if register.get(&old).is_some_and(|old| old & mask(register.bits) != value) {
            register.set(view, value);
        }
    }
    true
}

/// The bits of a register.
fn mask(bits: u8) -> u128 {
    if bits >= 128 { u128::MAX } else { (1u128 << bits).wrapping_sub(1) }
}

/// The number in at most 16 bytes.
pub(crate) fn number(bytes: &[u8]) -> u128 {
    bytes.iter().take(16).rev().fold(0, |number, byte| number << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::controller::FakeVcpu;

    #[test]
    fn a_packet_of_registers_changes_what_gdb_changed() {
        let mut vcpu = FakeVcpu::default();
        vcpu.regs.rax = 0x1111_2222_3333_4444;
        vcpu.regs.rip = 0x10;
        vcpu.sregs.cs.base = 0x7_c000;
        vcpu.sregs.cs.selector = 0x7c00;
        let view = View::of(&mut vcpu).unwrap();
        for width in [Width::Bits16, Width::Bits64] {
            let packet: Vec<u8> = packed(&view, width).into_iter().map(|byte| byte.unwrap_or(0)).collect();
            let mut same = view;
            assert!(unpack(&mut same, width, &packet));
            assert_eq!((same.regs, same.sregs), (view.regs, view.sregs));
            assert!(!unpack(&mut same, width, &packet[1..]));
            let mut changed = packet.clone();
            changed[0] = 0x55;
            let mut new = view;
            assert!(unpack(&mut new, width, &changed));
            assert_eq!(new.regs.rax, 0x1111_2222_3333_4455);
            assert!(new.write(&view, &mut vcpu));
            assert_eq!(vcpu.regs.rax, new.regs.rax);
        }
    }

    #[test]
    fn the_instruction_pointer_is_a_linear_address() {
        let mut vcpu = FakeVcpu::default();
        vcpu.regs.rip = 0x10;
        vcpu.sregs.cs.base = 0x7_c000;
        let mut view = View::of(&mut vcpu).unwrap();
        let rip = all(Width::Bits16).find(|register| register.name == "eip").unwrap();
        assert_eq!(rip.get(&view), Some(0x7_c010));
        rip.set(&mut view, 0x7_c020);
        assert_eq!(view.regs.rip, 0x20);
    }

    #[test]
    fn widths_follow_the_code_segment() {
        let mut sregs = Sregs::default();
        assert_eq!(Width::of(&sregs), Width::Bits16);
        sregs.cr0 = PROTECTED;
        sregs.cs.db = 1;
        assert_eq!(Width::of(&sregs), Width::Bits32);
        (sregs.efer, sregs.cs.db, sregs.cs.l) = (LONG, 0, 1);
        assert_eq!(Width::of(&sregs), Width::Bits64);
    }
}
