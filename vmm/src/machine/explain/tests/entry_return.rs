//! Guests whose entry point returned.

use super::super::*;
use super::mistakes::{Dead, START, assert_suspects, long};
use crate::exit::Exit;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use simvirtio::abi;

const RETURNED: &str = "the entry point returned (a ret, and nothing had called it): end it with hlt";

#[test]
fn an_entry_point_that_returns_is_recognised_in_each_mode() {
    for (mode, width) in [(Mode::Real, 2), (Mode::Protected, 4), (Mode::Long, 8)] {
        let mut dead = Dead::new(mode, CodeAssembler::ret);
        dead.regs.rsp += width;
        dead.regs.rip = 0x5_0000 & if mode == Mode::Real { 0xffff } else { u64::MAX };
        assert_suspects(&dead, RETURNED);
        // The same guest runs until its timeout.
        dead.died = false;
        assert_suspects(&dead, RETURNED);
    }
    // With a stack of its own. The word that was popped is still below the stack pointer.
    let mut dead = long(|code| {
        code.mov(rsp, 0x9000i64 as u64)?;
        code.ret()
    });
    (dead.regs.rsp, dead.regs.rip) = (0x9008, 0x7_0000);
    dead.memory.write(Gpa(0x9000), &0x7_0000u64.to_le_bytes()).unwrap();
    assert_suspects(&dead, RETURNED);
}

#[test]
fn a_ret_of_a_function_is_not_that_of_the_entry_point() {
    let mut dead = long(|code| {
        let mut function = code.create_label();
        code.call(function)?;
        code.hlt()?;
        code.set_label(&mut function)?;
        code.push(rax)?;
        code.ret()
    });
    // The function returned to the word that it pushed.
    (dead.regs.rsp, dead.regs.rip) = (0xf_fff8, 0x7_0000);
    dead.memory.write(Gpa(0xf_fff0), &0x7_0000u64.to_le_bytes()).unwrap();
    assert_suspects(&dead, "a ret to a wrong address");
    // A guest that loops in its image has not left it.
    let mut looping = long(CodeAssembler::ret);
    looping.died = false;
    assert_suspects(&looping, "none");
}

/// In memory without code, faults without a handler have pushed until the stack pointer is just above its start.
#[test]
fn in_real_mode_the_stack_pointer_alone_is_no_sign_of_a_return() {
    let mut dead = Dead::new(Mode::Real, |code| code.mov(ax, 42));
    dead.died = false;
    (dead.regs.rsp, dead.regs.rip) = (dead.regs.rsp + 6, 0xd840);
    assert_suspects(&dead, "it left its image");
}

#[test]
fn a_return_is_recognised_in_code_that_was_overwritten() {
    let mut dead = Dead::new(Mode::Real, CodeAssembler::ret);
    dead.regs.rsp = 0xefb2;
    assert_ne!(dead.suspicion(), RETURNED, "the guest is still in its code");
    // The guest ran through memory until it came back to the place of its code.
    dead.memory.write(Gpa(START), &[0xdf, 0x00]).unwrap();
    assert_suspects(&dead, RETURNED);
}

#[test]
fn a_return_is_found_on_every_path_but_not_behind_a_call() {
    let returns =
        |write: fn(&mut CodeAssembler) -> Result<(), IcedError>| derail::returns(&long(write).image);
    assert!(returns(CodeAssembler::ret));
    assert!(returns(|code| {
        code.push(rbx)?;
        code.pop(rbx)?;
        code.ret()
    }));
    assert!(returns(|code| {
        let mut end = code.create_label();
        code.test(eax, eax)?;
        code.je(end)?;
        code.hlt()?;
        code.set_label(&mut end)?;
        code.ret()
    }));
    assert!(!returns(|code| {
        code.push(rbx)?;
        code.ret()
    }));
    assert!(!returns(|code| {
        code.hlt()?;
        code.ret()
    }));
    assert!(!returns(|code| code.jmp(START)));
}

#[test]
fn a_return_is_recognised_after_a_reset_of_the_vcpu_by_its_last_exits() {
    let read = |address, size| Exit::MmioRead { address, size };
    let print = Exit::PioOut { port: 0xe9, size: 1, data: 0x41 };
    let returning = long(CodeAssembler::ret).image;
    let halting = long(CodeAssembler::hlt).image;
    for (image, last, is_return) in [
        (&returning, &[print, read(abi::WINDOW, 8), Exit::Shutdown][..], true),
        (&returning, &[read(abi::WINDOW, 4), Exit::EmulationFailure(Default::default())], true),
        (&returning, &[print, Exit::Shutdown], false),
        (&returning, &[read(abi::WINDOW, 2), Exit::Shutdown], false),
        (&halting, &[read(abi::WINDOW, 8), Exit::Shutdown], false),
    ] {
        assert_eq!(derail::derailed_before_reset(image, last).is_some(), is_return, "{last:?}");
    }
}
