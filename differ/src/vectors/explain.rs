//! The known differences between an 80286 and current processors, which `softcpu` follows.
//!
//! A difference belongs to a class only if its cause is shown: the instruction is of the class, and the software processor
//! did what the manual says. References are to the SDM.

use crate::moo::{AX, BP, BX, CS, CX, DI, DS, DX, ES, FLAGS, SI, SP, SS, Test};
use crate::replay::{Difference, FLAGS_OF_80286, Outcome, Replay, pushed_flags};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use softcpu::Exit;

/// A kind of difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Lock,
    StackFault,
    Wrap,
    Restart,
    Length,
    NewRegister,
    HighFlags,
    ShiftFlags,
    DivideFlags,
    Quotient,
    PushedSs,
    X87,
}

/// The vectors of exceptions.
const DE: u8 = 0;
const UD: u8 = 6;
const STACK: u8 = 12;
const GP: u8 = 13;
/// The opcode of INT.
const INT: u8 = 0xcd;
/// The maximum length of an instruction of an 80286, in bytes.
const LENGTH_OF_80286: usize = 10;

impl Class {
    /// The two behaviours, and the place in the manual.
    pub fn text(self) -> &'static str {
        match self {
            Self::Lock => "LOCK before an instruction that cannot be locked: now #UD (volume 2, LOCK)",
            Self::StackFault => {
                "an operand beyond the end of SS: vector 13, now #SS, vector 12 (volume 3, section 6.15)"
            }
            Self::Wrap => {
                "the second word of a far pointer at offset 0 after the first at 0xfffe: now a fault \
                 (volume 3, Segment Wraparound)"
            }
            Self::Restart => {
                "a fault that leaves SI, DI, CX and FLAGS of a string instruction, or SP of POP to memory, changed: now as \
                 before the element or the instruction (volume 2, REP; volume 3, section 6.6)"
            }
            Self::Length => "more than 10 bytes: vector 13, now more than 15 bytes (volume 3, section 6.15)",
            Self::NewRegister => "FS and GS: #UD, now registers (volume 1, section 3.4.2)",
            Self::HighFlags => {
                "bits 12 to 14 of FLAGS: always 0 in real mode, now as loaded (volume 3, EFLAGS Pushed on the Stack)"
            }
            Self::ShiftFlags => {
                "flags that are undefined after a shift (volume 2, SAL and RCL): OF of a count above 1, AF, and CF of a \
                 count from the width on"
            }
            Self::DivideFlags => "FLAGS at the #DE of AAM 0: changed, now as before the instruction",
            Self::Quotient => {
                "IDIV that misses that the quotient is too large, an error of the 80286: now #DE (volume 2, IDIV)"
            }
            Self::PushedSs => {
                "an interrupt frame with SS instead of CS: an error of the 80286 or the recording"
            }
            Self::X87 => "x87 arithmetic: no operation without an 80287; softcpu does not implement it",
        }
    }
}

/// Finds the class of the differences of a test. `None` for an error of the software processor.
pub fn explain(replay: &mut Replay, test: &Test, outcome: &Outcome) -> Option<Class> {
    let code = test.code.strip_suffix(&[0xf4]).unwrap_or(&test.code);
    let insn = Decoder::new(16, code, DecoderOptions::NONE).decode();
    let opcode = code.get(prefixes(code).count()).copied().unwrap_or(0);
    let is_string = matches!(opcode, 0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf);
    // A string instruction and POPA may be partly complete before the fault.
    let raised = match (is_string, opcode) {
        (true, _) => replay.raised(test, &[AX, CX, SI, DI]),
        (_, 0x61) => replay.raised(test, &[AX, CX, DX, BX, BP, SI, DI]),
        _ => replay.raised(test, &[]),
    };
    let expected = test.exception.map(|exception| exception.vector);
    let has_lock = prefixes(code).any(|byte| byte == 0xf0) && !is_lockable(code);
    let is_divide_error = expected == Some(DE) && raised == Some(DE);
    Some(match () {
        () if matches!(outcome.end, Exit::Unsupported(_)) && (0xd8..=0xdf).contains(&opcode) => Class::X87,
        () if has_lock && raised == Some(UD) && (expected != Some(UD) || opcode == INT) => Class::Lock,
        () if expected == Some(GP) && raised == Some(STACK) && uses_stack(&insn) => Class::StackFault,
        () if expected.is_none() && matches!(raised, Some(GP | STACK)) && wraps(&insn, test) => Class::Wrap,
        () if raised.is_some() && raised == expected && is_string && changes_indices(test, outcome) => {
            Class::Restart
        }
        () if raised == Some(GP) && raised == expected && opcode == 0x8f && changes_sp(test, outcome) => {
            Class::Restart
        }
        () if expected == Some(GP) && is_long(code, &insn, raised) => Class::Length,
        () if uses_new_register(&insn) && expected == Some(UD) && raised.is_none() => Class::NewRegister,
        () if only_flags(test, outcome, !FLAGS_OF_80286) => Class::HighFlags,
        () if only_flags(test, outcome, undefined_after_shift(&insn, test)) => Class::ShiftFlags,
        () if is_divide_error && opcode == 0xd4 && only_flags(test, outcome, u16::MAX) => Class::DivideFlags,
        () if expected.is_none() && raised == Some(DE) && overflows(&insn, test) => Class::Quotient,
        () if pushes_ss(test, outcome) => Class::PushedSs,
        () => return None,
    })
}

fn prefixes(code: &[u8]) -> impl Iterator<Item = u8> + '_ {
    const PREFIXES: [u8; 7] = [0x26, 0x2e, 0x36, 0x3e, 0xf0, 0xf2, 0xf3];
    code.iter().copied().take_while(|byte| PREFIXES.contains(byte))
}

/// True for an instruction that can be locked (SDM volume 2, LOCK).
fn is_lockable(code: &[u8]) -> bool {
    let rest = code.get(prefixes(code).count()..).unwrap_or_default();
    let [opcode, modrm, ..] = *rest else { return false };
    let is_memory = modrm < 0xc0;
    is_memory
        && match (opcode, modrm >> 3 & 7) {
            // CMP and TEST do not write.
            (0x00..=0x31, _) => opcode & 7 < 2,
            (0x80..=0x83, number) => number != 7,
            (0xf6 | 0xf7, number) => matches!(number, 2 | 3),
            (0xfe | 0xff, number) => matches!(number, 0 | 1),
            _ => matches!(opcode, 0x86 | 0x87),
        }
}

/// True for an instruction with an operand in the stack segment.
fn uses_stack(insn: &Instruction) -> bool {
    insn.is_stack_instruction() || insn.memory_segment() == Register::SS
}

/// True for an instruction that only an 80286 finds too long. It does so before it finds the opcode invalid, and the test
/// then has not all of its bytes.
fn is_long(code: &[u8], insn: &Instruction, raised: Option<u8>) -> bool {
    match raised {
        None => code.len() > LENGTH_OF_80286,
        Some(UD) => insn.is_invalid() && code.len() + 4 > LENGTH_OF_80286,
        Some(_) => false,
    }
}

fn uses_new_register(insn: &Instruction) -> bool {
    let is_new = |register| matches!(register, Register::FS | Register::GS);
    insn.mnemonic() == Mnemonic::Mov && (is_new(insn.op0_register()) || is_new(insn.op1_register()))
}

/// The value of a register of 8 or 16 bits before a test. 0 for the base of a segment.
fn register(test: &Test, register: Register) -> u16 {
    let value = |number: usize| test.before.registers[number].unwrap_or(0);
    // AX, CX, DX, BX, SP, BP, SI, DI: the order of their encoding.
    let whole = |number: usize| value([AX, CX, DX, BX, SP, BP, SI, DI][number & 7]);
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => whole(register.number() & 3) >> 8,
        _ if register.is_gpr8() => whole(register.number()) & 0xff,
        _ if register.is_gpr16() => whole(register.number()),
        _ => 0,
    }
}

/// The offset of a memory operand.
fn offset(insn: &Instruction, test: &Test, operand: u32) -> Option<u16> {
    let value = |name, _, _| Some(register(test, name).into());
    insn.virtual_address(operand, 0, value).map(|offset| offset as u16)
}

/// True for a far pointer whose first word is within the segment, but not the second.
fn wraps(insn: &Instruction, test: &Test) -> bool {
    let operand = match insn.mnemonic() {
        Mnemonic::Les | Mnemonic::Lds => 1,
        Mnemonic::Call | Mnemonic::Jmp => 0,
        _ => return false,
    };
    insn.memory_size().size() == 4 && offset(insn, test, operand).is_some_and(|offset| offset >= 0xfffd)
}

/// True if only CX, SI and DI differ, by at most two elements, and FLAGS.
fn changes_indices(test: &Test, outcome: &Outcome) -> bool {
    let frame = pushed_flags(test);
    outcome.end == Exit::Halted
        && outcome.differences.iter().all(|difference| match *difference {
            Difference::Register { number: CX | SI | DI, value, expected } => {
                value.wrapping_sub(expected).wrapping_add(4) <= 8
            }
            Difference::Register { number, .. } => number == FLAGS,
            Difference::Byte { address, .. } => address.wrapping_sub(frame) < 2,
        })
}

/// True if SP is 2 above its value, and so is the frame.
fn changes_sp(test: &Test, outcome: &Outcome) -> bool {
    let frame = pushed_flags(test).wrapping_sub(4);
    outcome.end == Exit::Halted
        && outcome.differences.iter().all(|difference| match *difference {
            Difference::Register { number, value, expected } => {
                number == SP && expected == value.wrapping_add(2)
            }
            Difference::Byte { address, .. } => address.wrapping_sub(frame) < 8,
        })
}

/// True if only FLAGS differ, in the register and in the frame, and only in these bits.
fn only_flags(test: &Test, outcome: &Outcome, flags: u16) -> bool {
    let frame = pushed_flags(test);
    outcome.end == Exit::Halted
        && outcome.differences.iter().all(|difference| match *difference {
            Difference::Register { number, value, expected } => {
                number == FLAGS && (value ^ expected) & !flags == 0
            }
            Difference::Byte { address, value, expected } => match address.wrapping_sub(frame) {
                0 => (value ^ expected) & !(flags as u8) == 0,
                1 => (value ^ expected) & !((flags >> 8) as u8) == 0,
                _ => false,
            },
        })
}

/// The flags that are undefined after a shift or rotate.
fn undefined_after_shift(insn: &Instruction, test: &Test) -> u16 {
    use Mnemonic::{Rcl, Rcr, Rol, Ror, Sal, Sar, Shl, Shr};
    const CF: u16 = 1;
    const AF: u16 = 1 << 4;
    const OF: u16 = 1 << 11;
    let is_rotate = matches!(insn.mnemonic(), Rol | Ror | Rcl | Rcr);
    if !is_rotate && !matches!(insn.mnemonic(), Shl | Sal | Shr | Sar) {
        return 0;
    }
    let count = match insn.op1_register() {
        Register::CL => register(test, Register::CL),
        _ => insn.immediate8().into(),
    } & 0x1f;
    let of = if count > 1 { OF } else { 0 };
    let af = if is_rotate || count == 0 { 0 } else { AF };
    let is_beyond = usize::from(count) >= 8 * size(insn);
    let cf = if is_beyond && !is_rotate && insn.mnemonic() != Sar { CF } else { 0 };
    of | af | cf
}

/// The size of the first operand, in bytes.
fn size(insn: &Instruction) -> usize {
    match insn.op0_kind() {
        OpKind::Register => insn.op0_register().size(),
        _ => insn.memory_size().size(),
    }
}

/// True for an IDIV whose quotient does not fit.
fn overflows(insn: &Instruction, test: &Test) -> bool {
    let byte = |address: u32| {
        let mut bytes = test.before.memory.iter().filter(|(at, _)| *at == address);
        bytes.next_back().map_or(0, |(_, value)| *value)
    };
    let divisor = match (insn.op0_kind(), offset(insn, test, 0)) {
        (OpKind::Register, _) => register(test, insn.op0_register()) as u8,
        (_, Some(offset)) => {
            let segment = match insn.memory_segment() {
                Register::ES => ES,
                Register::CS => CS,
                Register::SS => SS,
                _ => DS,
            };
            byte((u32::from(test.before.registers[segment].unwrap_or(0)) << 4) + u32::from(offset))
        }
        _ => return false,
    };
    let (dividend, divisor) = (i32::from(register(test, Register::AX) as i16), i32::from(divisor as i8));
    insn.mnemonic() == Mnemonic::Idiv
        && size(insn) == 1
        && dividend.checked_div(divisor).is_some_and(|quotient| i8::try_from(quotient).is_err())
}

/// True if only the pushed CS differs, and the test has SS there.
fn pushes_ss(test: &Test, outcome: &Outcome) -> bool {
    let (frame, ss) = (pushed_flags(test), test.before.registers[SS].unwrap_or(0).to_le_bytes());
    test.exception.is_some()
        && outcome.end == Exit::Halted
        && outcome.differences.iter().all(|difference| match *difference {
            Difference::Byte { address, expected, .. } => {
                matches!(frame.wrapping_sub(address), 1 | 2)
                    && expected == ss[(address.wrapping_sub(frame) & 1) as usize]
            }
            Difference::Register { .. } => false,
        })
}
