//! Processors in each mode, for tests.
//!
//! All have 1 MiB of memory, mapped to itself; addresses above it are memory-mapped I/O. The handler of each vector is a
//! HLT at [`handler`].

use crate::cpu::Cpu;
use crate::exit::Exit;
use crate::memory::VecMemory;
use crate::state::{Segment, Table, cr0, cr4, efer, flag, gpr, seg};
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

/// The mode in which the code is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Real,
    /// 32-bit protected mode with flat segments, without paging, at CPL 0.
    Protected,
    /// The same at CPL 3.
    ProtectedUser,
    /// 64-bit mode at CPL 0.
    Long,
    /// 64-bit mode at CPL 3.
    LongUser,
    /// 32-bit code in long mode at CPL 0.
    Compatibility,
    /// 32-bit code in long mode at CPL 3.
    CompatibilityUser,
}

/// The selectors of the GDT, with their RPL.
pub(crate) mod selector {
    pub(crate) const CODE_64: u16 = 0x08;
    pub(crate) const DATA: u16 = 0x10;
    pub(crate) const CODE_32: u16 = 0x18;
    pub(crate) const USER_CODE_32: u16 = 0x23;
    pub(crate) const USER_DATA: u16 = 0x2b;
    pub(crate) const USER_CODE_64: u16 = 0x33;
    pub(crate) const TSS: u16 = 0x38;
    pub(crate) const CODE_16: u16 = 0x48;
    pub(crate) const DATA_16: u16 = 0x50;
    pub(crate) const CONFORMING_32: u16 = 0x58;
    pub(crate) const LDT: u16 = 0x60;
    /// A place for a test's own descriptors.
    pub(crate) const FREE: u16 = 0x80;
}

pub(crate) const GDT: usize = 0x1000;
pub(crate) const IDT: usize = 0x2000;
pub(crate) const TSS: usize = 0x3000;
const PAGE_TABLES: usize = 0x4000;
pub(crate) const CODE: u64 = 0x1_0000;
/// The stack pointer in ring 0.
pub(crate) const STACK: u64 = 0x2_0000;
/// The stack pointer in ring 3.
pub(crate) const USER_STACK: u64 = 0x3_0000;
pub(crate) const DATA: u64 = 0x4_0000;
const MEMORY: usize = 0x10_0000;

impl Mode {
    fn bits(self) -> u32 {
        match self {
            Self::Real => 16,
            Self::Long | Self::LongUser => 64,
            _ => 32,
        }
    }

    fn is_user(self) -> bool {
        matches!(self, Self::ProtectedUser | Self::LongUser | Self::CompatibilityUser)
    }

    fn is_long(self) -> bool {
        !matches!(self, Self::Real | Self::Protected | Self::ProtectedUser)
    }

    fn code(self) -> u16 {
        match (self.bits(), self.is_user()) {
            (64, false) => selector::CODE_64,
            (64, true) => selector::USER_CODE_64,
            (_, false) => selector::CODE_32,
            (_, true) => selector::USER_CODE_32,
        }
    }
}

/// The address of the handler of a vector.
pub(crate) const fn handler(vector: u8) -> u64 {
    0x8000 + vector as u64 * 16
}

/// A descriptor. `access` is its byte 5, and `flags` bits 52 to 55.
pub(crate) const fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (access as u64) << 40
        | (limit >> 16 & 15) << 48
        | (flags as u64) << 52
        | (base >> 24) << 56
}

/// A gate of the IDT, or a call gate. `access` is its byte 5, `low` its byte 4: the parameter count or IST index.
pub(crate) const fn gate(selector: u16, offset: u64, access: u8, low: u8) -> [u64; 2] {
    let raw = offset & 0xffff
        | (selector as u64) << 16
        | (low as u64) << 32
        | (access as u64) << 40
        | (offset >> 16 & 0xffff) << 48;
    [raw, offset >> 32]
}

/// Code of the mode's width, at [`CODE`].
pub(crate) fn assemble(
    mode: Mode,
    build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(mode.bits()).unwrap();
    build(&mut assembler).unwrap();
    assembler.assemble(if mode == Mode::Real { 0 } else { CODE }).unwrap()
}

/// A processor that executes this code next.
pub(crate) fn machine(
    mode: Mode,
    build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Cpu<VecMemory> {
    let code = assemble(mode, build);
    machine_with(mode, &code)
}

/// A processor that executes these bytes next.
pub(crate) fn machine_with(mode: Mode, code: &[u8]) -> Cpu<VecMemory> {
    let memory = VecMemory::new(MEMORY);
    memory.write(CODE as usize, code);
    for vector in 0..=255 {
        memory.write(handler(vector) as usize, &[0xf4]);
    }
    let mut cpu = Cpu::new(memory);
    if mode == Mode::Real {
        for vector in 0..=255u8 {
            cpu.memory().write(usize::from(vector) * 4, &(handler(vector) as u32).to_le_bytes());
        }
        cpu.set_code_segment_base(CODE);
        cpu.state.rip = 0;
        cpu.state.idtr.limit = 0x3ff;
        cpu.state.gpr[gpr::SP] = 0x8000;
        cpu.state.segments[seg::SS].selector = 0x1800;
        cpu.state.segments[seg::SS].base = 0x1_8000;
        return cpu;
    }
    write_tables(&cpu, mode);
    enter(&mut cpu, mode);
    cpu
}

/// Writes 8 bytes of memory.
pub(crate) fn write(cpu: &Cpu<VecMemory>, address: usize, value: u64) {
    cpu.memory().write(address, &value.to_le_bytes());
}

/// Reads a value of `size` bytes.
pub(crate) fn read(cpu: &Cpu<VecMemory>, address: u64, size: usize) -> u64 {
    let bytes = cpu.memory().read(address as usize, size);
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Writes a descriptor into the GDT.
pub(crate) fn set_descriptor(cpu: &Cpu<VecMemory>, selector: u16, raw: u64) {
    write(cpu, GDT + usize::from(selector & 0xfff8), raw);
}

/// Writes a gate into the IDT.
pub(crate) fn set_gate(cpu: &Cpu<VecMemory>, vector: u8, gate: [u64; 2]) {
    if cpu.state.is_long() {
        write(cpu, IDT + usize::from(vector) * 16, gate[0]);
        write(cpu, IDT + usize::from(vector) * 16 + 8, gate[1]);
    } else {
        write(cpu, IDT + usize::from(vector) * 8, gate[0]);
    }
}

fn write_tables(cpu: &Cpu<VecMemory>, mode: Mode) {
    let descriptors = [
        (selector::CODE_64, descriptor(0, 0xf_ffff, 0x9a, 0xa)),
        (selector::DATA, descriptor(0, 0xf_ffff, 0x92, 0xc)),
        (selector::CODE_32, descriptor(0, 0xf_ffff, 0x9a, 0xc)),
        (selector::USER_CODE_32, descriptor(0, 0xf_ffff, 0xfa, 0xc)),
        (selector::USER_DATA, descriptor(0, 0xf_ffff, 0xf2, 0xc)),
        (selector::USER_CODE_64, descriptor(0, 0xf_ffff, 0xfa, 0xa)),
        (selector::TSS, descriptor(TSS as u32, 0x67, 0x89, 0)),
        (selector::CODE_16, descriptor(0, 0xffff, 0x9a, 0)),
        (selector::DATA_16, descriptor(0, 0xffff, 0x92, 0)),
        (selector::CONFORMING_32, descriptor(0, 0xf_ffff, 0x9e, 0xc)),
        (selector::LDT, descriptor(0x3800, 0xff, 0x82, 0)),
    ];
    for (selector, raw) in descriptors {
        set_descriptor(cpu, selector, raw);
    }
    let (size, code) = if mode.is_long() { (16, selector::CODE_64) } else { (8, selector::CODE_32) };
    for vector in 0..=255u8 {
        let [low, high] = gate(code, handler(vector), 0xee, 0);
        write(cpu, IDT + usize::from(vector) * size, low);
        if mode.is_long() {
            write(cpu, IDT + usize::from(vector) * size + 8, high);
        }
    }
    // RSP0, or ESP0 and SS0.
    write(cpu, TSS + 4, if mode.is_long() { STACK } else { STACK | 0x10 << 32 });
    if mode.is_long() {
        write(cpu, PAGE_TABLES, PAGE_TABLES as u64 + 0x1007);
        write(cpu, PAGE_TABLES + 0x1000, PAGE_TABLES as u64 + 0x2007);
        for index in 0..512 {
            write(cpu, PAGE_TABLES + 0x2000 + 8 * index, (index as u64) << 21 | 0xe7);
        }
    }
}

fn enter(cpu: &mut Cpu<VecMemory>, mode: Mode) {
    let state = &mut cpu.state;
    state.gdtr = Table { base: GDT as u64, limit: 0xfff };
    state.idtr = Table { base: IDT as u64, limit: 0xfff };
    state.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::WP;
    if mode.is_long() {
        state.cr0 |= cr0::PG;
        state.cr3 = PAGE_TABLES as u64;
        state.cr4 = cr4::PAE;
        state.efer = efer::LME | efer::LMA | efer::SCE;
    }
    let (data, dpl) = if mode.is_user() { (selector::USER_DATA, 3) } else { (selector::DATA, 0) };
    let flat = Segment { limit: u32::MAX, dpl, big: true, pages: true, ..Segment::real(data, 0, 0b0011) };
    state.segments = [flat; 6];
    let long = mode.bits() == 64;
    state.segments[seg::CS] = Segment { selector: mode.code(), kind: 0b1011, long, big: !long, ..flat };
    state.tr.selector = selector::TSS;
    state.tr.base = TSS as u64;
    state.tr.limit = 0x67;
    state.ldtr.unusable = true;
    state.rip = CODE;
    state.rflags = flag::ONE;
    state.gpr[gpr::SP] = if mode.is_user() { USER_STACK } else { STACK };
    state.gpr[gpr::DX] = 0;
}

/// Runs until HLT. Returns the vector of the handler in which it is, or `None` if it is in the code.
///
/// # Panics
/// Another exit.
pub(crate) fn run(cpu: &mut Cpu<VecMemory>) -> Option<u8> {
    let exit = cpu.run(1000);
    assert_eq!(exit, Exit::Halted, "at {:#x}, {:?}", cpu.state.rip, cpu.death());
    halted_in(cpu)
}

/// The vector of the handler whose HLT was executed.
pub(crate) fn halted_in(cpu: &Cpu<VecMemory>) -> Option<u8> {
    let linear = cpu.state.segments[seg::CS].base.wrapping_add(cpu.state.rip).wrapping_sub(1);
    (0..=255).find(|vector| handler(*vector) == linear)
}

/// The values of `size` bytes at the stack pointer.
pub(crate) fn stack(cpu: &Cpu<VecMemory>, size: usize, count: u64) -> Vec<u64> {
    let start = cpu.state.segments[seg::SS].base + cpu.state.gpr[gpr::SP];
    (0..count).map(|index| read(cpu, start + index * size as u64, size)).collect()
}
