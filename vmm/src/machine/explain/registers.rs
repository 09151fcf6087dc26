//! The values of registers, by the names of the decoder.

use crate::x86::registers::Regs;
use iced_x86::Register;

/// The value of a general register or a part of one. Segment bases count as 0.
pub(super) fn register_value(register: Register, regs: &Regs) -> Option<u64> {
    let value = match register.full_register() {
        Register::RAX => regs.rax,
        Register::RBX => regs.rbx,
        Register::RCX => regs.rcx,
        Register::RDX => regs.rdx,
        Register::RSI => regs.rsi,
        Register::RDI => regs.rdi,
        Register::RSP => regs.rsp,
        Register::RBP => regs.rbp,
        Register::R8 => regs.r8,
        Register::R9 => regs.r9,
        Register::R10 => regs.r10,
        Register::R11 => regs.r11,
        Register::R12 => regs.r12,
        Register::R13 => regs.r13,
        Register::R14 => regs.r14,
        Register::R15 => regs.r15,
        _ if register.is_segment_register() => 0,
        _ => return None,
    };
    Some(match register.size() {
        4 => value & 0xffff_ffff,
        2 => value & 0xffff,
        _ => value,
    })
}
