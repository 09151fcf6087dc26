//! The registers that gdb sees, and their values.
//!
//! gdb knows an x86 processor of 32 bits and one of 64 bits. Both have the same registers here, as wide as the processor.
//! The tables decide the order of the registers in packets, and `description.rs` describes the same tables.
//!
//! The instruction pointer that gdb sees is the linear address of the next instruction. In flat segments and in 64-bit code
//! that is RIP itself. In real mode it is CS times 16 plus IP, which is where gdb looks for code and breakpoints.

use vmm::controller::VcpuState;
use vmm::x86::{Regs, Segment, Sregs, linear_rip};

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
}

impl View {
    /// Reads the registers of a vCPU. `None` if the host refuses.
    pub(crate) fn of(vcpu: &mut dyn VcpuState) -> Option<Self> {
        let kernel_gs_base = vcpu.msr(KERNEL_GS_BASE).unwrap_or_default();
        Some(Self { regs: vcpu.regs().ok()?, sregs: vcpu.sregs().ok()?, kernel_gs_base })
    }

    /// Writes what has changed since `before`. Returns false if the host or the rules of the processor refuse.
    pub(crate) fn write(&self, before: &Self, vcpu: &mut dyn VcpuState) -> bool {
        let msr =
            self.kernel_gs_base == before.kernel_gs_base || vcpu.set_msr(KERNEL_GS_BASE, self.kernel_gs_base);
        let sregs = self.sregs == before.sregs || vcpu.set_sregs(&self.sregs).is_ok();
        msr && sregs && (self.regs == before.regs || vcpu.set_regs(&self.regs).is_ok())
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
    /// Nowhere: gdb shows that it is not available.
    Absent,
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
    pub(crate) fn get(&self, view: &View) -> Option<u64> {
        let mut view = *view;
        Some(match self.place {
            Place::Absent => return None,
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
    pub(crate) fn set(&self, view: &mut View, value: u64) {
        // The upper half of a register that gdb sees as 32 bits stays.
        let merged = |old: u64| if self.bits >= 64 { value } else { old >> 32 << 32 | value & 0xffff_ffff };
        match self.place {
            Place::Absent | Place::CodeBits => {}
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

macro_rules! general {
    ($name:literal, $field:ident, $bits:literal, $kind:literal) => {
        Register { name: $name, kind: $kind, bits: $bits, place: Place::General(|regs| &mut regs.$field) }
    };
}

macro_rules! selector {
    ($name:literal, $field:ident) => {
        Register { name: $name, kind: "int32", bits: 32, place: Place::Selector(|sregs| &mut sregs.$field) }
    };
}

macro_rules! base {
    ($name:literal, $field:ident) => {
        Register { name: $name, kind: "int64", bits: 64, place: Place::Base(|sregs| &mut sregs.$field) }
    };
}

macro_rules! special {
    ($name:literal, $($field:ident).+, $kind:literal) => {
        Register { name: $name, kind: $kind, bits: 64, place: Place::Special(|sregs| &mut sregs.$($field).+) }
    };
}

const fn absent(name: &'static str, kind: &'static str, bits: u8) -> Register {
    Register { name, kind, bits, place: Place::Absent }
}

/// The general registers of a processor of 64 bits, in gdb's order.
static GENERAL_64: [Register; 18] = [
    general!("rax", rax, 64, "int64"),
    general!("rbx", rbx, 64, "int64"),
    general!("rcx", rcx, 64, "int64"),
    general!("rdx", rdx, 64, "int64"),
    general!("rsi", rsi, 64, "int64"),
    general!("rdi", rdi, 64, "int64"),
    general!("rbp", rbp, 64, "data_ptr"),
    general!("rsp", rsp, 64, "data_ptr"),
    general!("r8", r8, 64, "int64"),
    general!("r9", r9, 64, "int64"),
    general!("r10", r10, 64, "int64"),
    general!("r11", r11, 64, "int64"),
    general!("r12", r12, 64, "int64"),
    general!("r13", r13, 64, "int64"),
    general!("r14", r14, 64, "int64"),
    general!("r15", r15, 64, "int64"),
    Register { name: "rip", kind: "code_ptr", bits: 64, place: Place::Instruction },
    general!("eflags", rflags, 32, "flags"),
];

/// The general registers of a processor of 32 bits, in gdb's order.
static GENERAL_32: [Register; 10] = [
    general!("eax", rax, 32, "int32"),
    general!("ecx", rcx, 32, "int32"),
    general!("edx", rdx, 32, "int32"),
    general!("ebx", rbx, 32, "int32"),
    general!("esp", rsp, 32, "data_ptr"),
    general!("ebp", rbp, 32, "data_ptr"),
    general!("esi", rsi, 32, "int32"),
    general!("edi", rdi, 32, "int32"),
    Register { name: "eip", kind: "code_ptr", bits: 32, place: Place::Instruction },
    general!("eflags", rflags, 32, "flags"),
];

/// The rest of the registers that gdb requires of every x86 processor. The floating-point registers are not available.
static CORE: [Register; 22] = [
    selector!("cs", cs),
    selector!("ss", ss),
    selector!("ds", ds),
    selector!("es", es),
    selector!("fs", fs),
    selector!("gs", gs),
    absent("st0", "i387_ext", 80),
    absent("st1", "i387_ext", 80),
    absent("st2", "i387_ext", 80),
    absent("st3", "i387_ext", 80),
    absent("st4", "i387_ext", 80),
    absent("st5", "i387_ext", 80),
    absent("st6", "i387_ext", 80),
    absent("st7", "i387_ext", 80),
    absent("fctrl", "int", 32),
    absent("fstat", "int", 32),
    absent("ftag", "int", 32),
    absent("fiseg", "int", 32),
    absent("fioff", "int", 32),
    absent("foseg", "int", 32),
    absent("fooff", "int", 32),
    absent("fop", "int", 32),
];

/// The bases of FS and GS, which gdb knows for programs of 64 bits.
static SEGMENTS: [Register; 2] = [base!("fs_base", fs), base!("gs_base", gs)];

/// The registers of the system.
static SYSTEM: [Register; 19] = [
    Register { name: "code_bits", kind: "int32", bits: 32, place: Place::CodeBits },
    Register { name: "k_gs_base", kind: "int64", bits: 64, place: Place::KernelGsBase },
    base!("cs_base", cs),
    base!("ss_base", ss),
    base!("ds_base", ds),
    base!("es_base", es),
    special!("gdt_base", gdt.base, "int64"),
    Register { name: "gdt_limit", kind: "int32", bits: 32, place: Place::GdtLimit },
    special!("idt_base", idt.base, "int64"),
    Register { name: "idt_limit", kind: "int32", bits: 32, place: Place::IdtLimit },
    selector!("ldt", ldt),
    base!("ldt_base", ldt),
    selector!("tr", tr),
    base!("tr_base", tr),
    special!("cr0", cr0, "cr0"),
    special!("cr2", cr2, "int64"),
    special!("cr3", cr3, "int64"),
    special!("cr4", cr4, "cr4"),
    special!("efer", efer, "efer"),
];

/// A group of registers, which is a feature of the description: the name that gdb knows, or our own, and the tables.
pub(crate) struct Group {
    pub(crate) feature: &'static str,
    pub(crate) tables: [&'static [Register]; 2],
}

/// The groups of a processor.
pub(crate) fn groups(width: Width) -> [Group; 3] {
    let general: &[Register] = if width.is_64() { &GENERAL_64 } else { &GENERAL_32 };
    let segments = if width.is_64() { "org.gnu.gdb.i386.segments" } else { "vmm.segments" };
    [
        Group { feature: "org.gnu.gdb.i386.core", tables: [general, &CORE] },
        Group { feature: segments, tables: [&SEGMENTS, &[]] },
        Group { feature: "vmm.system", tables: [&SYSTEM, &[]] },
    ]
}

/// The registers, in the order of their numbers.
pub(crate) fn all(width: Width) -> impl Iterator<Item = &'static Register> {
    groups(width).into_iter().flat_map(|group| group.tables).flatten()
}

/// The registers in a packet of all registers. Those that are not available are `None`.
pub(crate) fn packed(view: &View, width: Width) -> Vec<Option<u8>> {
    let mut bytes = Vec::with_capacity(700);
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
fn mask(bits: u8) -> u64 {
    if bits >= 64 { u64::MAX } else { (1u64 << bits).wrapping_sub(1) }
}

/// The number in at most eight bytes.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
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
