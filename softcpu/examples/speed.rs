//! Times a loop of arithmetic and memory accesses.
use iced_x86::code_asm::*;
use softcpu::{Cpu, Exit, VecMemory};
use std::time::Instant;

fn main() {
    let mut a = CodeAssembler::new(16).unwrap();
    let mut top = a.create_label();
    a.mov(ecx, 10_000_000u32).unwrap();
    a.mov(bx, 0x2000u32).unwrap();
    a.set_label(&mut top).unwrap();
    a.mov(eax, dword_ptr(bx)).unwrap();
    a.add(eax, ecx).unwrap();
    a.xor(edx, eax).unwrap();
    a.mov(dword_ptr(bx) + 4, edx).unwrap();
    a.add(esi, 3).unwrap();
    a.and(esi, 0xff).unwrap();
    a.add(dword_ptr(bx) + 8, esi).unwrap();
    a.dec(ecx).unwrap();
    a.jne(top).unwrap();
    a.hlt().unwrap();
    let code = a.assemble(0x1000).unwrap();
    let memory = VecMemory::new(0x10000);
    memory.write(0x1000, &code);
    let mut cpu = Cpu::new(memory);
    cpu.set_code_segment_base(0);
    cpu.state.rip = 0x1000;
    let started = Instant::now();
    loop {
        match cpu.run(10_000) {
            Exit::SliceEnd => {}
            exit => {
                println!("{exit:?} {:?}", cpu.state.rip);
                break;
            }
        }
    }
    let spent = started.elapsed();
    println!(
        "{} instructions, {:.2} ns each",
        cpu.instructions(),
        spent.as_nanos() as f64 / cpu.instructions() as f64
    );
}
