//! Times loops of arithmetic, memory accesses and branches in 32-bit code. The best of several rounds counts, so that other
//! programs disturb less.
use iced_x86::code_asm::*;
use softcpu::{Cpu, Exit, VecMemory, cr0, seg};
use std::time::Instant;

const CODE: u64 = 0x1000;
const ROUNDS: u32 = 1000;

/// Arithmetic and memory accesses.
fn mixed(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(ecx, 5_000u32)?;
    a.mov(ebx, 0x2000u32)?;
    a.set_label(&mut top)?;
    a.mov(eax, dword_ptr(ebx))?;
    a.add(eax, ecx)?;
    a.xor(edx, eax)?;
    a.mov(dword_ptr(ebx) + 4, edx)?;
    a.add(esi, 3)?;
    a.and(esi, 0xff)?;
    a.add(dword_ptr(ebx) + 8, esi)?;
    a.dec(ecx)?;
    a.jne(top)?;
    a.hlt()
}

/// What compilers make: also shifts, bytes, conditions, calls and the stack.
fn compiled(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut top, mut function, mut even) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(ecx, 2_000u32)?;
    a.mov(ebx, 0x2000u32)?;
    a.mov(esp, 0x8000u32)?;
    a.set_label(&mut top)?;
    a.push(ecx)?;
    a.call(function)?;
    a.pop(ecx)?;
    a.test(eax, 1)?;
    a.je(even)?;
    a.inc(edi)?;
    a.set_label(&mut even)?;
    a.sub(ecx, 1)?;
    a.jne(top)?;
    a.hlt()?;
    a.set_label(&mut function)?;
    a.push(ebp)?;
    a.mov(ebp, esp)?;
    a.mov(eax, dword_ptr(ebp) + 8)?;
    a.movzx(edx, byte_ptr(ebx + eax * 1) + 0x100)?;
    a.lea(esi, dword_ptr(eax + edx * 4) + 7)?;
    a.shr(esi, 3)?;
    a.imul_2(esi, edx)?;
    a.cmp(esi, eax)?;
    a.cmovl(eax, esi)?;
    a.mov(byte_ptr(ebx) + 5, al)?;
    a.pop(ebp)?;
    a.ret()
}

/// A processor in protected mode with flat segments.
fn cpu(code: &[u8]) -> Cpu<VecMemory> {
    let memory = VecMemory::new(0x20000);
    memory.write(CODE as usize, code);
    let mut cpu = Cpu::new(memory);
    cpu.state.cr0 |= cr0::PE;
    for segment in &mut cpu.state.segments {
        (segment.base, segment.limit, segment.big) = (0, u32::MAX, true);
    }
    cpu.state.segments[seg::CS].selector = 8;
    cpu.state.rip = CODE;
    cpu.state_changed();
    cpu
}

fn main() -> Result<(), IcedError> {
    type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    for (name, write) in [("mixed", mixed as Program), ("compiled", compiled)] {
        let mut assembler = CodeAssembler::new(32)?;
        write(&mut assembler)?;
        let mut cpu = cpu(&assembler.assemble(CODE)?);
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let before = cpu.instructions();
            cpu.state.rip = CODE;
            let started = Instant::now();
            let exit = loop {
                match cpu.run(10_000) {
                    Exit::SliceEnd => {}
                    exit => break exit,
                }
            };
            assert_eq!(exit, Exit::Halted);
            let executed = cpu.instructions() - before;
            best = best.min(started.elapsed().as_nanos() as f64 / executed as f64);
        }
        println!("{name}: {best:.2} ns an instruction");
    }
    Ok(())
}
