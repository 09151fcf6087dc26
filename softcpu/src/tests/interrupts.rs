//! Tests of the delivery of exceptions and interrupts.

use crate::cpu::Cpu;
use crate::exit::{Exit, Fault, Missing};
use crate::memory::VecMemory;
use crate::state::{flag, gpr, seg};
use crate::tests::machine::{
    CODE, DATA, IDT, Mode, STACK, TSS, USER_STACK, descriptor, gate, handler, machine, machine_with, read,
    run, selector, set_descriptor, set_gate, stack, write,
};
use iced_x86::code_asm::*;

#[test]
fn real_mode_interrupt_pushes_flags_cs_and_ip() {
    let mut cpu = machine(Mode::Real, |a| a.int(0x21));
    cpu.state.rflags |= flag::IF | flag::CF;
    assert_eq!(run(&mut cpu), Some(0x21));
    assert_eq!(stack(&cpu, 2, 3), [2, 0x1000, 0x203]);
    assert_eq!(cpu.state.rflags, 3);
    assert_eq!(cpu.state.segments[seg::CS].selector, 0);
}

#[test]
fn real_mode_interrupt_and_return() {
    let mut cpu = machine(Mode::Real, |a| {
        a.int(0x21)?;
        a.hlt()
    });
    cpu.memory().write(handler(0x21) as usize, &[0xcf]); // iret
    cpu.state.rflags |= flag::IF | flag::CF;
    assert_eq!(run(&mut cpu), None);
    assert_eq!((cpu.state.rip, cpu.state.rflags), (3, 0x203));
    assert_eq!(cpu.state.segments[seg::CS].base, CODE);
    assert_eq!(cpu.state.gpr[gpr::SP], 0x8000);
}

#[test]
fn real_mode_vector_outside_of_the_table_is_a_triple_fault() {
    let mut cpu = machine(Mode::Real, |a| a.ud2());
    cpu.state.idtr.limit = 0x17;
    let before = cpu.state.clone();
    assert_eq!(cpu.run(10), Exit::Shutdown);
    assert_eq!(cpu.state, crate::State { rflags: before.rflags | flag::RF, ..before });
    let death = cpu.death().unwrap();
    let vectors: Vec<_> = death.faults.iter().map(|fault| (fault.vector, fault.while_delivering)).collect();
    assert_eq!(vectors, [(6, None), (13, Some(6)), (13, Some(13)), (13, Some(8))]);
    assert!(death.faults.iter().all(|fault| fault.error.is_none()));
    assert_eq!((death.cs, death.rip), (0x1000, 0));
}

#[test]
fn real_mode_stack_of_one_byte_is_a_shutdown() {
    let mut cpu = machine(Mode::Real, |a| a.int(0x21));
    cpu.state.gpr[gpr::SP] = 1;
    assert_eq!(cpu.run(10), Exit::Shutdown);
    assert_eq!(cpu.death().unwrap().faults[0].vector, 12);
    assert_eq!(cpu.state.gpr[gpr::SP], 1);
}

#[test]
fn fault_in_ring_0_pushes_an_error_code() {
    let mut cpu = machine(Mode::Protected, |a| {
        a.mov(eax, 0x70)?;
        a.mov(ds, eax)
    });
    assert_eq!(run(&mut cpu), Some(13));
    assert_eq!(stack(&cpu, 4, 4), [0x70, CODE + 5, 0x18, 0x1_0002]);
    assert_eq!(cpu.state.rflags, 2);
}

#[test]
fn undefined_instruction_in_ring_3_switches_the_stack() {
    let mut cpu = machine(Mode::ProtectedUser, |a| a.ud2());
    cpu.state.rflags |= flag::IF | flag::TF;
    assert_eq!(run(&mut cpu), Some(6));
    assert_eq!(stack(&cpu, 4, 5), [CODE, 0x23, 0x1_0302, USER_STACK, 0x2b]);
    assert_eq!(cpu.state.gpr[gpr::SP], STACK - 20);
    assert_eq!(cpu.state.cpl(), 0);
    assert_eq!(cpu.state.segments[seg::SS].selector, 0x10);
    assert_eq!(cpu.state.rflags, 2);
    // The accessed bit of the stack segment.
    assert_eq!(read(&cpu, 0x1015, 1), 0x93);
}

#[test]
fn trap_gate_leaves_if() {
    let mut cpu = machine(Mode::Protected, |a| a.int(0x40));
    set_gate(&cpu, 0x40, gate(selector::CODE_32, handler(0x40), 0x8f, 0));
    cpu.state.rflags |= flag::IF | flag::NT;
    assert_eq!(run(&mut cpu), Some(0x40));
    assert_eq!(cpu.state.rflags, flag::ONE | flag::IF);
    assert_eq!(stack(&cpu, 4, 3), [CODE + 2, 0x18, 0x4202]);
}

#[test]
fn gate_of_16_bits_pushes_words() {
    let mut cpu = machine(Mode::ProtectedUser, |a| a.int(0x40));
    set_gate(&cpu, 0x40, gate(selector::CODE_32, handler(0x40), 0xe6, 0));
    assert_eq!(run(&mut cpu), Some(0x40));
    assert_eq!(stack(&cpu, 2, 5), [2, 0x23, 2, 0, 0x2b]);
}

#[test]
fn tss_of_16_bits() {
    let mut cpu = machine(Mode::ProtectedUser, |a| a.int(0x40));
    cpu.state.tr.kind = 3;
    write(&cpu, TSS, 0x0010_9000_0000);
    assert_eq!(run(&mut cpu), Some(0x40));
    assert_eq!(cpu.state.gpr[gpr::SP], 0x9000 - 20);
}

#[test]
fn software_interrupt_needs_the_privilege_of_the_gate() {
    let mut cpu = machine(Mode::ProtectedUser, |a| a.int(0x40));
    set_gate(&cpu, 0x40, gate(selector::CODE_32, handler(0x40), 0x8e, 0));
    assert_eq!(run(&mut cpu), Some(13));
    assert_eq!(stack(&cpu, 4, 2), [0x40 * 8 + 2, CODE]);
    // INT1 does not.
    let mut cpu = machine_with(Mode::ProtectedUser, &[0xf1]);
    set_gate(&cpu, 1, gate(selector::CODE_32, handler(1), 0x8e, 0));
    assert_eq!(run(&mut cpu), Some(1));
    assert_eq!(stack(&cpu, 4, 3), [CODE + 1, 0x23, 2]);
}

#[test]
fn missing_gate_is_named_by_the_error_code() {
    for (software, error) in [(true, 0x40 * 8 + 2), (false, 6 * 8 + 3)] {
        let mut cpu = machine(Mode::Protected, |a| if software { a.int(0x40) } else { a.ud2() });
        let vector = if software { 0x40 } else { 6 };
        set_gate(&cpu, vector, gate(selector::CODE_32, handler(vector), 0x6e, 0));
        assert_eq!(run(&mut cpu), Some(11));
        assert_eq!(stack(&cpu, 4, 1), [error]);
    }
}

#[test]
fn interrupt_in_64_bit_mode_aligns_the_stack() {
    let mut cpu = machine(Mode::Long, |a| a.int3());
    cpu.state.gpr[gpr::SP] = STACK - 3;
    assert_eq!(run(&mut cpu), Some(3));
    assert_eq!(cpu.state.gpr[gpr::SP], STACK - 16 - 40);
    assert_eq!(stack(&cpu, 8, 5), [CODE + 1, 8, 2, STACK - 3, 0x10]);
    assert_eq!(cpu.state.segments[seg::SS].selector, 0x10);
}

#[test]
fn interrupt_from_ring_3_in_64_bit_mode_clears_ss() {
    let mut cpu = machine(Mode::LongUser, |a| a.int(0x80));
    assert_eq!(run(&mut cpu), Some(0x80));
    assert_eq!(stack(&cpu, 8, 5), [CODE + 2, 0x33, 2, USER_STACK, 0x2b]);
    let stack = cpu.state.segments[seg::SS];
    assert_eq!((stack.selector, stack.unusable, cpu.state.cpl()), (0, true, 0));
}

#[test]
fn interrupt_stack_table() {
    for mode in [Mode::Long, Mode::LongUser, Mode::Compatibility, Mode::CompatibilityUser] {
        let mut cpu = machine(mode, |a| a.int(0x80));
        set_gate(&cpu, 0x80, gate(selector::CODE_64, handler(0x80), 0xee, 3));
        write(&cpu, TSS + 28 + 3 * 8, 0x5_0008);
        assert_eq!(run(&mut cpu), Some(0x80));
        assert_eq!(cpu.state.gpr[gpr::SP], 0x5_0000 - 40, "{mode:?}");
        assert!(cpu.state.is_64());
    }
}

#[test]
fn error_codes_of_a_short_tss() {
    let mut cpu = machine(Mode::LongUser, |a| a.int(0x80));
    set_gate(&cpu, 0x80, gate(selector::CODE_64, handler(0x80), 0xee, 7));
    cpu.state.tr.limit = 28 + 7 * 8 + 6;
    assert_eq!(run(&mut cpu), Some(10));
    assert_eq!(stack(&cpu, 8, 1), [0x38]);
}

#[test]
fn stack_segment_of_the_tss_is_checked() {
    let cases = [(0, 10, 0), (0x13, 10, 0x10), (0x2b, 10, 0x28), (0x18, 10, 0x18), (0x80, 12, 0x80)];
    for (selector, expected, error) in cases {
        let mut cpu = machine(Mode::ProtectedUser, |a| a.int(0x40));
        set_descriptor(&cpu, 0x80, descriptor(0, 0xf_ffff, 0x12, 0xc));
        write(&cpu, TSS + 4, STACK | selector << 32);
        // The handlers of the exceptions run in ring 3.
        for vector in 0..32 {
            let address = DATA + 16 * u64::from(vector);
            set_gate(&cpu, vector, gate(selector::USER_CODE_32, address, 0xee, 0));
            cpu.memory().write(address as usize, &[0xeb, 0xfe]);
        }
        assert_eq!(cpu.run(10), Exit::SliceEnd);
        assert_eq!(cpu.state.rip, DATA + 16 * expected, "{selector:#x}");
        assert_eq!(stack(&cpu, 4, 3), [error, CODE, 0x23], "{selector:#x}");
    }
}

#[test]
fn page_fault_sets_cr2() {
    let mut cpu = machine(Mode::LongUser, |a| a.mov(eax, dword_ptr(0x1234_5678_9000u64)));
    assert_eq!(run(&mut cpu), Some(14));
    assert_eq!(cpu.state.cr2, 0x1234_5678_9000);
    assert_eq!(stack(&cpu, 8, 2), [4, CODE]);
}

#[test]
fn page_fault_on_the_stack_is_a_double_fault() {
    let mut cpu = machine(Mode::Long, |a| {
        a.mov(rsp, 0x5555_0000_0000u64)?;
        a.push(rax)
    });
    set_gate(&cpu, 8, gate(selector::CODE_64, handler(8), 0x8e, 1));
    write(&cpu, TSS + 36, STACK);
    assert_eq!(run(&mut cpu), Some(8));
    assert_eq!(stack(&cpu, 8, 2), [0, CODE + 10]);
    assert_eq!(cpu.state.cr2, 0x5555_0000_0000 - 8);
}

#[test]
fn triple_fault_tells_the_chain() {
    let mut cpu = machine(Mode::Long, |a| {
        a.mov(rsp, 0x5555_0000_0000u64)?;
        a.push(rax)
    });
    assert_eq!(cpu.run(10), Exit::Shutdown);
    let page_fault =
        |address, during| Fault { vector: 14, error: Some(2), cr2: Some(address), while_delivering: during };
    let top = 0x5555_0000_0000 - 8;
    let death = cpu.death().unwrap();
    assert_eq!(death.faults, [page_fault(top, None), page_fault(top, Some(14)), page_fault(top, Some(8))]);
    assert_eq!((death.cs, death.rip), (8, CODE + 10));
    assert_eq!(cpu.state.rip, CODE + 10);
    assert_eq!(cpu.state.gpr[gpr::SP], 0x5555_0000_0000);
    assert_eq!(cpu.state.cr2, top);
}

#[test]
fn table_that_is_missing_is_told_with_the_interrupt() {
    let mut cpu = machine(Mode::Protected, |a| a.int(0x80));
    cpu.state.idtr.limit = 0;
    assert_eq!(cpu.run(10), Exit::Shutdown);
    let faults: Vec<_> =
        cpu.death().unwrap().faults.iter().map(|f| (f.vector, f.error, f.while_delivering)).collect();
    assert_eq!(
        faults,
        [(13, Some(0x402), Some(0x80)), (13, Some(0x6b), Some(13)), (13, Some(0x43), Some(8))]
    );
}

#[test]
fn double_faults() {
    use crate::interrupts::is_double_fault;
    // The rows and columns of table 6-5: benign, contributory, page fault.
    assert!(![1, 3, 6, 7, 17].iter().any(|first| is_double_fault(*first, 13) || is_double_fault(*first, 14)));
    assert!(
        [0, 10, 11, 12, 13].iter().all(|first| is_double_fault(*first, 13) && !is_double_fault(*first, 14))
    );
    assert!(is_double_fault(14, 13) && is_double_fault(14, 14) && is_double_fault(14, 0));
    assert!(!is_double_fault(14, 17));
}

#[test]
fn frame_in_memory_mapped_io_is_replayed() {
    let mut cpu = machine(Mode::Protected, |a| a.ud2());
    cpu.state.gpr[gpr::SP] = MMIO + 12;
    let mut writes = Vec::new();
    let exit = loop {
        match cpu.run(10) {
            Exit::MmioWrite { address, size: 4, data } => writes.push((address - MMIO, data)),
            exit => break exit,
        }
        assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::SP]), (CODE, MMIO + 12));
    };
    assert_eq!(exit, Exit::Halted);
    assert_eq!(writes, [(8, 0x1_0002), (4, 0x18), (0, CODE)]);
    assert_eq!(cpu.state.gpr[gpr::SP], MMIO);
}

const MMIO: u64 = 0x20_0000;

#[test]
fn gate_in_memory_mapped_io_is_replayed() {
    let mut cpu = machine(Mode::Long, |a| a.mov(eax, dword_ptr(0x1234_5678_9000u64)));
    cpu.state.idtr.base = MMIO;
    let mut reads = 0;
    while let Exit::MmioRead { address, size: 8 } = cpu.run(10) {
        assert_eq!(cpu.state.rip, CODE);
        reads += 1;
        cpu.answer(read(&cpu, address - MMIO + IDT as u64, 8));
    }
    assert_eq!(reads, 2);
    assert_eq!(cpu.state.rip, handler(14) + 1);
    assert_eq!(stack(&cpu, 8, 2), [0, CODE]);
}

#[test]
fn into_traps_only_with_of() {
    for (of, expected) in [(0, None), (flag::OF, Some(4))] {
        let mut cpu = machine(Mode::Protected, |a| {
            a.into()?;
            a.hlt()
        });
        cpu.state.rflags |= of;
        assert_eq!(run(&mut cpu), expected);
    }
}

#[test]
fn conforming_handler_keeps_the_privilege() {
    let mut cpu = machine(Mode::ProtectedUser, |a| a.int(0x40));
    set_gate(&cpu, 0x40, gate(selector::CONFORMING_32, DATA, 0xee, 0));
    cpu.memory().write(DATA as usize, &[0xeb, 0xfe]);
    assert_eq!(cpu.run(10), Exit::SliceEnd);
    assert_eq!((cpu.state.cpl(), cpu.state.segments[seg::CS].selector), (3, 0x5b));
    assert_eq!(cpu.state.gpr[gpr::SP], USER_STACK - 12);
}

#[test]
fn task_gate_is_not_supported() {
    let mut cpu = machine(Mode::Protected, |a| a.int(0x40));
    set_gate(&cpu, 0x40, gate(selector::TSS, 0, 0xe5, 0));
    assert_eq!(cpu.run(10), Exit::Unsupported(Missing::TaskSwitch));
    assert_eq!(cpu.state.rip, CODE);
}

/// A machine at an undefined instruction in ring 3, where the frame of each exception raises #AC.
fn unaligned_frames() -> Cpu<VecMemory> {
    let mut cpu = machine(Mode::ProtectedUser, |a| a.ud2());
    for vector in 0..32 {
        set_gate(&cpu, vector, gate(selector::USER_CODE_32, DATA, 0xee, 0));
    }
    cpu.state.cr0 |= crate::state::cr0::AM;
    cpu.state.rflags |= flag::AC;
    cpu.state.gpr[gpr::SP] += 1;
    cpu
}

#[test]
fn alignment_check_of_a_frame_for_ever_ends() {
    let mut cpu = unaligned_frames();
    assert_eq!(cpu.run(10), Exit::SliceEnd);
    assert_eq!(cpu.state.rip, CODE);
}

#[test]
fn exceptions_that_raise_each_other_for_ever_end() {
    let mut cpu = unaligned_frames();
    // The frame of #NP raises #AC, and the gate of #AC, which is not present, raises #NP.
    set_gate(&cpu, crate::trap::AC, gate(selector::USER_CODE_32, DATA, 0x6e, 0));
    assert_eq!(cpu.run(10), Exit::SliceEnd);
    assert_eq!(cpu.state.rip, CODE);
}

#[test]
fn virtual_8086_mode_is_not_supported() {
    let mut cpu = machine(Mode::Protected, |a| a.nop());
    cpu.state.rflags |= flag::VM;
    assert_eq!(cpu.run(10), Exit::Unsupported(Missing::Virtual8086));
    assert_eq!(cpu.state.rip, CODE);
}

#[test]
fn the_last_delivery_is_remembered_and_the_first_without_a_handler() {
    let mut cpu = machine(Mode::Real, |a| {
        a.nop()?;
        a.int(0x21)
    });
    assert_eq!(cpu.last_delivery(), None);
    assert_eq!(run(&mut cpu), Some(0x21));
    let delivery = *cpu.last_delivery().unwrap();
    assert_eq!((delivery.fault.vector, delivery.is_software, delivery.instructions), (0x21, true, 1));
    assert_eq!((delivery.cs, delivery.rip, delivery.handler), (0x1000, 1, handler(0x21)));
    assert_eq!(cpu.first_empty_delivery(), None);
    // The same with an entry of zeroes.
    let mut cpu = machine(Mode::Real, |a| a.ud2());
    cpu.memory().write(cpu.state.idtr.base as usize + 6 * 4, &[0; 4]);
    cpu.run(1);
    let empty = *cpu.first_empty_delivery().unwrap();
    assert_eq!((empty.fault.vector, empty.cs, empty.rip, empty.handler), (6, 0x1000, 0, 0));
    cpu.reset();
    assert_eq!((cpu.last_delivery(), cpu.first_empty_delivery(), cpu.origins().count()), (None, None, 0));
}

#[test]
fn a_handler_that_faults_at_once_is_no_origin() {
    // The handler of #UD begins with UD2.
    let mut cpu = machine(Mode::Real, |a| {
        a.int(0x21)?;
        a.ud2()
    });
    let again = handler(6) as usize;
    cpu.memory().write(again, &[0x0f, 0x0b]);
    // iret
    cpu.memory().write(handler(0x21) as usize, &[0xcf]);
    cpu.run(30);
    let origins: Vec<_> = cpu.origins().map(|delivery| (delivery.fault.vector, delivery.rip)).collect();
    assert_eq!(origins, [(6, 2), (0x21, 0)]);
    assert_eq!(cpu.last_delivery().unwrap().handler, handler(6));
    // Others push out the oldest.
    let mut cpu = machine(Mode::Real, |a| (0..12).try_for_each(|_| a.int(0x21)));
    cpu.memory().write(handler(0x21) as usize, &[0xcf]);
    cpu.run(24);
    let origins: Vec<_> = cpu.origins().map(|delivery| delivery.rip).collect();
    assert_eq!(origins, [22, 20, 18, 16, 14, 12, 10, 8]);
}
