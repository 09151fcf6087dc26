//! Times a loop of arithmetic and memory accesses, a loop of calls in paged 64-bit code, and a loop of exits.
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::{Cpu, Exit, Segment, VecMemory, cr0, cr4, efer, seg};
use std::time::Instant;

const CODE: u64 = 0x1000;

fn main() -> Result<(), IcedError> {
    time("real mode, mixed", real_mode(mixed()?));
    time("long mode, calls", long_mode(calls()?));
    time("long mode, exits", long_mode(exits()?));
    Ok(())
}

/// Runs a guest to its end, in parts, and prints the median of what an instruction takes. The parts are shorter than what
/// the scheduler gives a process, so that a busy machine matters little.
fn time(name: &str, mut cpu: Cpu<VecMemory>) {
    let mut parts = Vec::new();
    let mut exits = 0u64;
    let mut is_over = false;
    while !is_over {
        let started = Instant::now();
        let before = cpu.instructions();
        while !is_over && cpu.instructions() - before < 10_000 {
            match cpu.run(10_000) {
                Exit::SliceEnd => {}
                Exit::PortOut { .. } => exits += 1,
                Exit::Halted => is_over = true,
                exit => panic!("{exit:?} at {:#x}", cpu.state.rip),
            }
        }
        let spent = started.elapsed().as_nanos() as f64;
        parts.push(spent / (cpu.instructions() - before) as f64);
    }
    parts.sort_by(f64::total_cmp);
    let each = parts.get(parts.len() / 2).copied().unwrap_or_default();
    print!("{name}: {each:.2} ns for an instruction");
    match exits {
        0 => println!(),
        _ => println!(", {:.1} ns for an exit", each * cpu.instructions() as f64 / exits as f64),
    }
}

fn mixed() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let mut top = a.create_label();
    a.mov(ecx, 10_000_000u32)?;
    a.mov(bx, 0x2000u32)?;
    a.set_label(&mut top)?;
    a.mov(eax, dword_ptr(bx))?;
    a.add(eax, ecx)?;
    a.xor(edx, eax)?;
    a.mov(dword_ptr(bx) + 4, edx)?;
    a.add(esi, 3)?;
    a.and(esi, 0xff)?;
    a.add(dword_ptr(bx) + 8, esi)?;
    a.dec(ecx)?;
    a.jne(top)?;
    a.hlt()?;
    a.assemble(CODE)
}

fn calls() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut top, mut function, mut odd) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(ecx, 3_000_000u32)?;
    a.set_label(&mut top)?;
    a.mov(rdi, rcx)?;
    a.call(function)?;
    a.add(rbx, rax)?;
    a.dec(rcx)?;
    a.jne(top)?;
    a.hlt()?;
    a.set_label(&mut function)?;
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    a.mov(qword_ptr(rbp - 8), rdi)?;
    a.test(edi, 1)?;
    a.jne(odd)?;
    a.shl(rdi, 2)?;
    a.set_label(&mut odd)?;
    a.mov(rax, qword_ptr(rbp - 8))?;
    a.lea(rax, qword_ptr(rax + rdi * 4 + 1))?;
    a.pop(rbp)?;
    a.ret()?;
    a.assemble(CODE)
}

fn exits() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut top = a.create_label();
    a.mov(ecx, 2_000_000u32)?;
    a.set_label(&mut top)?;
    a.out(0xe9, al)?;
    a.dec(ecx)?;
    a.jne(top)?;
    a.hlt()?;
    a.assemble(CODE)
}

fn real_mode(code: Vec<u8>) -> Cpu<VecMemory> {
    let memory = VecMemory::new(0x10_0000);
    memory.write(CODE as usize, &code);
    let mut cpu = Cpu::new(memory);
    cpu.set_code_segment_base(0);
    cpu.state.rip = CODE;
    cpu
}

/// 64-bit mode in ring 0, with one large page.
fn long_mode(code: Vec<u8>) -> Cpu<VecMemory> {
    let mut cpu = real_mode(code);
    for (at, entry) in [(0x4000, 0x5003u64), (0x5000, 0x6003), (0x6000, 0x83)] {
        cpu.memory().write(at, &entry.to_le_bytes());
    }
    let state = &mut cpu.state;
    state.cr0 = cr0::PE | cr0::PG;
    (state.cr3, state.cr4, state.efer) = (0x4000, cr4::PAE, efer::LME | efer::LMA);
    let data = Segment { limit: u32::MAX, ..state.segments[seg::DS] };
    let code = Segment { long: true, kind: 0b1011, ..data };
    state.segments = [data; 6];
    state.segments[seg::CS] = code;
    state.gpr[4] = 0x8000;
    cpu.state_changed();
    cpu
}
