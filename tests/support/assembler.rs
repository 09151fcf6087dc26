//! Assembles guests for the tests.

pub use iced_x86::IcedError;
pub use iced_x86::code_asm::*;

/// Assembles the instructions that `write` adds, as code of `bits` bits at an address.
pub fn assemble(
    bits: u32,
    address: u64,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut code = CodeAssembler::new(bits).expect("16, 32 or 64 bits");
    write(&mut code).expect("the instructions exist");
    code.assemble(address).expect("the code is encoded")
}

/// Leaves 42 in AX and at 0x400, and halts, in 16-bit code.
pub fn halt_with_42(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(ax, 42)?;
    code.mov(word_ptr(0x400), ax)?;
    code.hlt()
}

/// Leaves 42 in EAX and at 0x400, and halts, in 32-bit code.
pub fn halt_with_42_in_eax(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(eax, 42)?;
    code.mov(dword_ptr(0x400), eax)?;
    code.hlt()
}
