//! The probable fault of an instruction, from the instruction and the registers.
//!
//! Each suspicion is a phrase that follows "probably". If the exception is known, the phrase begins with its name (Intel
//! SDM volume 3, table "Protected-Mode Exceptions and Interrupts").

use super::Fault;
use crate::x86::probe::Probe;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use kvm_bindings::{kvm_regs, kvm_sregs};

/// CR4: SSE is enabled.
const CR4_OSFXSR: u64 = 1 << 9;

/// The state of a vCPU at an instruction.
pub(super) struct State<'a> {
    pub(super) regs: &'a kvm_regs,
    pub(super) sregs: &'a kvm_sregs,
    pub(super) probe: &'a Probe,
}

/// The suspicion if the instruction cannot be fetched.
pub(super) fn of_fetch(fault: Fault) -> &'static str {
    match fault {
        Fault::NotMapped => {
            "#PF: the instruction's address is not mapped (a jump to a wrong address, or a mistake in the page tables)"
        }
        Fault::NotCanonical => "#GP: a jump to an address that is not canonical",
    }
}

/// The suspicion for an instruction at a mapped address. The instruction is `None` if there is no memory.
pub(super) fn of_instruction(
    instruction: Option<&Instruction>,
    bytes: &[u8],
    state: &State<'_>,
) -> Option<&'static str> {
    let Some(instruction) = instruction else {
        return Some("a jump to a wrong address, where there is no memory");
    };
    let in_ring_3 = state.sregs.cs.selector & 3 == 3;
    let sse_is_off = state.sregs.cr4 & CR4_OSFXSR == 0;
    match instruction.mnemonic() {
        Mnemonic::Add if bytes.iter().take(4).all(|byte| *byte == 0) => Some(
            "execution of zeroed memory: the guest ran past the end of its code, or jumped to a wrong address",
        ),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::INVALID => {
            Some("#UD: an undefined instruction")
        }
        Mnemonic::Hlt if in_ring_3 => {
            Some("#GP: hlt is a privileged instruction, and the guest is in ring 3: write port 0xf4 instead")
        }
        _ if in_ring_3 && is_privileged(instruction) => Some("#GP: a privileged instruction in ring 3"),
        _ if sse_is_off && uses_vectors(instruction) => Some(
            "#UD: SSE is not enabled (CR4.OSFXSR is 0): set the bit, or compile with -mgeneral-regs-only",
        ),
        mnemonic => of_operand(instruction, state).or(match mnemonic {
            Mnemonic::Div | Mnemonic::Idiv => {
                Some("#DE: a division by zero, or a quotient that does not fit in its register")
            }
            Mnemonic::Int | Mnemonic::Int3 => Some("a software interrupt without a handler"),
            _ => None,
        }),
    }
}

/// The suspicion for the memory operand of an instruction, if it has one.
fn of_operand(instruction: &Instruction, state: &State<'_>) -> Option<&'static str> {
    if !accesses_operand(instruction) {
        return None;
    }
    let operand = memory_operand(instruction)?;
    let value = |register, _, _| register_value(register, state.regs);
    let address = instruction.virtual_address(operand, 0, value)?;
    Some(match Fault::from(state.probe.translate_linear(address).err()?) {
        Fault::NotMapped => "#PF: the operand's address is not mapped",
        Fault::NotCanonical if instruction.memory_segment() == Register::SS => {
            "#SS: the operand's address, on the stack, is not canonical"
        }
        Fault::NotCanonical => "#GP: the operand's address is not canonical",
    })
}

/// True if ring 3 must not execute the instruction. Port I/O is not privileged here: the task state allows all ports.
fn is_privileged(instruction: &Instruction) -> bool {
    let port_io = [
        Mnemonic::In,
        Mnemonic::Out,
        Mnemonic::Insb,
        Mnemonic::Insw,
        Mnemonic::Insd,
        Mnemonic::Outsb,
        Mnemonic::Outsw,
        Mnemonic::Outsd,
    ];
    instruction.is_privileged() && !port_io.contains(&instruction.mnemonic())
}

/// True if the instruction uses a vector register, which needs SSE.
fn uses_vectors(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| {
        let register = instruction.op_kind(operand) == OpKind::Register;
        register && instruction.op_register(operand).is_vector_register()
    })
}

/// False if the instruction only computes the address of its memory operand, or ignores a fault there.
fn accesses_operand(instruction: &Instruction) -> bool {
    !matches!(
        instruction.mnemonic(),
        Mnemonic::Lea
            | Mnemonic::Nop
            | Mnemonic::Prefetch
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Prefetchw
    )
}

/// The number of the operand in memory.
fn memory_operand(instruction: &Instruction) -> Option<u32> {
    (0..instruction.op_count()).find(|operand| instruction.op_kind(*operand) == OpKind::Memory)
}

/// The value of a general register or a part of one. Segment bases count as 0.
fn register_value(register: Register, regs: &kvm_regs) -> Option<u64> {
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
