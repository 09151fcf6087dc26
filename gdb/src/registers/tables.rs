//! The tables of registers. Their order is that of the numbers of the registers.

use super::{Place, Register, Width};

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

const fn x87(name: &'static str, at: usize, len: usize) -> Register {
    Register { name, kind: "int", bits: 32, place: Place::Fpu(at, len) }
}

const fn st(name: &'static str, number: usize) -> Register {
    let at = 32usize.saturating_add(number.saturating_mul(16));
    Register { name, kind: "i387_ext", bits: 80, place: Place::Fpu(at, 10) }
}

const fn xmm(name: &'static str, number: usize) -> Register {
    let at = 160usize.saturating_add(number.saturating_mul(16));
    Register { name, kind: "vec128", bits: 128, place: Place::Fpu(at, 16) }
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

/// The rest of the registers that gdb requires of every x86 processor.
static CORE: [Register; 22] = [
    selector!("cs", cs),
    selector!("ss", ss),
    selector!("ds", ds),
    selector!("es", es),
    selector!("fs", fs),
    selector!("gs", gs),
    st("st0", 0),
    st("st1", 1),
    st("st2", 2),
    st("st3", 3),
    st("st4", 4),
    st("st5", 5),
    st("st6", 6),
    st("st7", 7),
    x87("fctrl", 0, 2),
    x87("fstat", 2, 2),
    Register { name: "ftag", kind: "int", bits: 32, place: Place::Tags },
    x87("fiseg", 12, 2),
    x87("fioff", 8, 4),
    x87("foseg", 20, 2),
    x87("fooff", 16, 4),
    x87("fop", 6, 2),
];

/// The registers of SSE. A processor of 32 bits has the first 8 of the XMM registers.
static SSE_LOW: [Register; 8] = [
    xmm("xmm0", 0),
    xmm("xmm1", 1),
    xmm("xmm2", 2),
    xmm("xmm3", 3),
    xmm("xmm4", 4),
    xmm("xmm5", 5),
    xmm("xmm6", 6),
    xmm("xmm7", 7),
];
static SSE_HIGH: [Register; 9] = [
    xmm("xmm8", 8),
    xmm("xmm9", 9),
    xmm("xmm10", 10),
    xmm("xmm11", 11),
    xmm("xmm12", 12),
    xmm("xmm13", 13),
    xmm("xmm14", 14),
    xmm("xmm15", 15),
    MXCSR,
];
static SSE_CONTROL: [Register; 1] = [MXCSR];
const MXCSR: Register = Register { name: "mxcsr", kind: "i386_mxcsr", bits: 32, place: Place::Fpu(24, 4) };

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
pub(crate) fn groups(width: Width) -> [Group; 4] {
    let general: &[Register] = if width.is_64() { &GENERAL_64 } else { &GENERAL_32 };
    let sse: &[Register] = if width.is_64() { &SSE_HIGH } else { &SSE_CONTROL };
    let segments = if width.is_64() { "org.gnu.gdb.i386.segments" } else { "vmm.segments" };
    [
        Group { feature: "org.gnu.gdb.i386.core", tables: [general, &CORE] },
        Group { feature: "org.gnu.gdb.i386.sse", tables: [&SSE_LOW, sse] },
        Group { feature: segments, tables: [&SEGMENTS, &[]] },
        Group { feature: "vmm.system", tables: [&SYSTEM, &[]] },
    ]
}

/// The registers, in the order of their numbers.
pub(crate) fn all(width: Width) -> impl Iterator<Item = &'static Register> {
    groups(width).into_iter().flat_map(|group| group.tables).flatten()
}
