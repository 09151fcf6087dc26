//! Processors for tests: in each mode, with code at [`CODE`].

use crate::cpu::Cpu;
use crate::exit::{Exit, Fault};
use crate::memory::VecMemory;
use crate::state::{Segment, Table, cr0, cr4, efer, seg};
use iced_x86::code_asm::CodeAssembler;

/// The address of the code.
pub(crate) const CODE: u64 = 0x1000;
/// The address of the paging structures of [`long_mode`].
pub(crate) const PML4: u64 = 0x4_0000;
/// The size of memory.
pub(crate) const MEMORY: usize = 0x10_0000;

/// A flat segment.
pub(crate) fn flat(selector: u16, kind: u8) -> Segment {
    let ring = (selector & 3) as u8;
    let plain = Segment::real(selector, 0, kind);
    Segment { limit: u32::MAX, big: true, pages: true, dpl: ring, ..plain }
}

/// Assembles code for an address.
pub(crate) fn assemble(bits: u32, address: u64, write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bits).unwrap();
    write(&mut assembler);
    assembler.assemble(address).unwrap()
}

/// A processor in real mode. Each fault is a triple fault.
pub(crate) fn real_mode(code: &[u8]) -> Cpu<VecMemory> {
    let memory = VecMemory::new(MEMORY);
    memory.write(CODE as usize, code);
    let mut cpu = Cpu::new(memory);
    cpu.set_code_segment_base(0);
    cpu.state.rip = CODE;
    cpu.state.gpr[4] = 0x8000;
    cpu.state.idtr = Table::default();
    cpu
}

/// A processor in protected mode with flat segments, in ring 0 or 3.
pub(crate) fn protected_mode(code: &[u8], ring: u16) -> Cpu<VecMemory> {
    let mut cpu = real_mode(code);
    cpu.state.cr0 = cr0::PE | cr0::ET | cr0::NE;
    cpu.state.segments = [flat(0x10 | ring, 0b0011); 6];
    cpu.state.segments[seg::CS] = flat(0x8 | ring, 0b1011);
    cpu.state_changed();
    cpu
}

/// A processor in 64-bit mode, in ring 0 or 3. The first GiB is mapped to itself with large pages.
pub(crate) fn long_mode(code: &[u8], ring: u16) -> Cpu<VecMemory> {
    let mut cpu = protected_mode(code, ring);
    let entries = [(PML4, PML4 + 0x1007), (PML4 + 0x1000, PML4 + 0x2007)];
    let pages = (0..512).map(|page| (PML4 + 0x2000 + 8 * page, page << 21 | 0x87));
    for (at, entry) in entries.into_iter().chain(pages) {
        cpu.memory().write(at as usize, &entry.to_le_bytes());
    }
    (cpu.state.cr0, cpu.state.cr3) = (cpu.state.cr0 | cr0::PG | cr0::WP | cr0::AM, PML4);
    (cpu.state.cr4, cpu.state.efer) = (cr4::PAE, efer::LME | efer::LMA);
    let code = &mut cpu.state.segments[seg::CS];
    (code.long, code.big) = (true, false);
    cpu.state_changed();
    cpu
}

/// A processor in one of the modes: 16, 32 or 64 bits, in ring 0.
pub(crate) fn in_mode(bits: u32, code: &[u8]) -> Cpu<VecMemory> {
    match bits {
        16 => real_mode(code),
        32 => protected_mode(code, 0),
        _ => long_mode(code, 0),
    }
}

/// Runs until the guest stops. Accesses are answered with all ones.
pub(crate) fn finish(cpu: &mut Cpu<VecMemory>) -> Exit {
    for _ in 0..10_000 {
        let exit = cpu.run(1000);
        if matches!(exit, Exit::Halted | Exit::Shutdown | Exit::Unsupported(_)) {
            return exit;
        }
    }
    Exit::SliceEnd
}

/// Runs until a triple fault. Returns the first of its faults.
pub(crate) fn fault(cpu: &mut Cpu<VecMemory>) -> Fault {
    assert_eq!(finish(cpu), Exit::Shutdown, "RIP {:#x}", cpu.state.rip);
    cpu.death().and_then(|death| death.faults.first().copied()).unwrap()
}

/// Runs until a triple fault. Returns the vector and the error code of the first fault.
pub(crate) fn vector(cpu: &mut Cpu<VecMemory>) -> (u8, Option<u32>) {
    let fault = fault(cpu);
    (fault.vector, fault.error)
}
