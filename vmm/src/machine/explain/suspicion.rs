//! The probable fault of an instruction, from the instruction and the registers.
//!
//! Each suspicion is a phrase that follows "probably". If the exception is known, the phrase begins with its name (Intel
//! SDM volume 3, table "Protected-Mode Exceptions and Interrupts").

use super::idt::Idt;
use super::instruction::mnemonic;
use super::registers::register_value;
use super::{Fault, State, control, features, selectors, stack, target};
use crate::x86::modes;
use iced_x86::{EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use std::borrow::Cow;

/// A probable cause, as a phrase.
pub(super) type Suspicion = Cow<'static, str>;

/// The suspicion if the instruction at `linear` cannot be fetched.
pub(super) fn of_fetch(fault: Fault) -> Suspicion {
    match fault {
        Fault::NotMapped => {
            "#PF: the instruction's address is not mapped (a jump to a wrong address, or a mistake in the page tables)"
        }
        Fault::NotCanonical => "#GP: a jump to an address that is not canonical",
    }
    .into()
}

/// The suspicion for an instruction at a mapped address with memory.
pub(super) fn of_instruction(
    instruction: &Instruction,
    bytes: &[u8],
    state: &State<'_>,
) -> Option<Suspicion> {
    let in_ring_3 = state.sregs.cs.selector & 3 == 3;
    let known: Option<&'static str> = match instruction.mnemonic() {
        Mnemonic::Add if bytes.iter().take(4).all(|byte| *byte == 0) => Some(
            "execution of zeroed memory: the guest ran past the end of its code, or jumped to a wrong address",
        ),
        _ if is_undefined(instruction) => Some("#UD: an undefined instruction"),
        Mnemonic::Hlt if in_ring_3 && !state.scene.is_foreign => {
            Some("#GP: hlt is a privileged instruction, and the guest is in ring 3: write port 0xf4 instead")
        }
        _ if in_ring_3 && is_privileged(instruction) => Some("#GP: a privileged instruction in ring 3"),
        _ => None,
    };
    known
        .map(Cow::from)
        .or_else(|| features::missing(instruction, state))
        .or_else(|| selectors::wrong(instruction, state))
        .or_else(|| stack::wrong(instruction, state))
        .or_else(|| of_operand(instruction, state))
        .or_else(|| target::of_branch(instruction, state))
        .or_else(|| of_operation(instruction, state))
}

/// True if the instruction raises #UD in every state.
pub(super) fn is_undefined(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::INVALID)
}

/// The suspicion for what an instruction does with its operands.
fn of_operation(instruction: &Instruction, state: &State<'_>) -> Option<Suspicion> {
    Some(match instruction.mnemonic() {
        Mnemonic::Div | Mnemonic::Idiv => {
            "#DE: a division by zero, or a quotient that does not fit in its register".into()
        }
        Mnemonic::Int => return of_interrupt(instruction.immediate8(), state),
        Mnemonic::Int3 => return of_interrupt(3, state),
        Mnemonic::Vmcall | Mnemonic::Vmmcall => {
            let name = mnemonic(instruction);
            let why = match state.scene.is_soft {
                true => "does not exist on the software processor",
                false => "is not the hypercall instruction of this host",
            };
            let advice = match state.scene.is_foreign {
                true => "",
                false => ": call the VMM with out dx, eax on port 0x500 (docs/abi.md, section 7)",
            };
            format!("#UD: {name} {why}{advice}").into()
        }
        mnemonic @ (Mnemonic::Rdmsr | Mnemonic::Wrmsr) => {
            let index = state.regs.rcx & 0xffff_ffff;
            let value = if mnemonic == Mnemonic::Wrmsr { ", or it does not take this value" } else { "" };
            format!("#GP: this processor has no MSR {index:#x}{value}").into()
        }
        Mnemonic::Mov if [Register::CR0, Register::CR4].contains(&instruction.op0_register()) => {
            return control::wrong(instruction, state);
        }
        _ => return None,
    })
}

/// The suspicion for a software interrupt. `None` if it has a handler.
fn of_interrupt(vector: u8, state: &State<'_>) -> Option<Suspicion> {
    let idt = Idt { sregs: state.sregs, probe: state.probe, memory: state.memory };
    if let Some(mistake) = idt.mistake(vector) {
        let name = match () {
            () if state.sregs.cr0 & modes::CR0_PE == 0 => "",
            () if mistake.ends_with("is not present") => "#NP: ",
            () => "#GP: ",
        };
        return Some(format!("{name}int {vector:#x} without a handler: {mistake}").into());
    }
    let is_user = state.sregs.cr0 & modes::CR0_PE != 0 && state.sregs.cs.selector & 3 == 3;
    let is_refused = is_user && idt.privilege(vector).is_some_and(|dpl| dpl < 3);
    is_refused.then(|| {
        format!("#GP: int {vector:#x} in ring 3, and entry {vector} of the IDT is not for ring 3 (its DPL is not 3)")
            .into()
    })
}

/// The suspicion for the memory operand of an instruction, if it has one.
fn of_operand(instruction: &Instruction, state: &State<'_>) -> Option<Suspicion> {
    if !accesses_operand(instruction) {
        return None;
    }
    let operand = memory_operand(instruction)?;
    let address = operand_address(instruction, operand, state)?;
    let mapping = match state.probe.translate_linear(address) {
        Ok(mapping) => mapping,
        Err(error) => {
            return Some(match Fault::from(error) {
                Fault::NotMapped => format!("#PF: the operand's address, {address:#x}, is not mapped").into(),
                Fault::NotCanonical if instruction.memory_segment() == Register::SS => {
                    format!("#SS: the operand's address, {address:#x}, on the stack, is not canonical").into()
                }
                Fault::NotCanonical => {
                    format!("#GP: the operand's address, {address:#x}, is not canonical").into()
                }
            });
        }
    };
    // Without CR0.WP, ring 0 may write read-only pages (Intel SDM volume 3, section 4.6).
    let protects = state.sregs.cr0 & modes::CR0_WP != 0 || state.sregs.cs.selector & 3 == 3;
    let is_protected = protects && !mapping.writable && writes(instruction, operand);
    if is_protected {
        return Some(format!("#PF: a store to {address:#x}, whose page is read-only").into());
    }
    (needs_alignment(instruction) && !address.is_multiple_of(SSE_ALIGNMENT)).then(|| {
        let name = mnemonic(instruction);
        format!("#GP: the operand's address, {address:#x}, is not a multiple of 16, as {name} needs it")
            .into()
    })
}

/// The alignment of an operand of 16 bytes.
const SSE_ALIGNMENT: u64 = 16;

/// True if the instruction raises #GP for a memory operand that is not aligned to 16 bytes: those of SSE with an operand of
/// 16 bytes, without the few for unaligned data (SDM volume 1, section 10.4.1.1), and CMPXCHG16B, FXSAVE and FXRSTOR.
fn needs_alignment(instruction: &Instruction) -> bool {
    use Mnemonic::{Fxrstor, Fxrstor64, Fxsave, Fxsave64, Lddqu, Movdqu, Movupd, Movups};
    let is_state = matches!(instruction.mnemonic(), Fxsave | Fxsave64 | Fxrstor | Fxrstor64);
    let takes_any = matches!(instruction.mnemonic(), Movups | Movupd | Movdqu | Lddqu);
    let is_wide = instruction.memory_size().size() == 16 && instruction.encoding() == EncodingKind::Legacy;
    is_state || is_wide && !takes_any
}

/// The linear address of the operand in memory.
pub(super) fn operand_address(instruction: &Instruction, operand: u32, state: &State<'_>) -> Option<u64> {
    let value = |register, _, _| register_value(register, state.regs);
    let offset = instruction.virtual_address(operand, 0, value)?;
    let base = match instruction.memory_segment() {
        Register::SS => state.sregs.ss.base,
        Register::ES => state.sregs.es.base,
        Register::CS => state.sregs.cs.base,
        Register::FS => return Some(state.sregs.fs.base.wrapping_add(offset)),
        Register::GS => return Some(state.sregs.gs.base.wrapping_add(offset)),
        _ => state.sregs.ds.base,
    };
    Some(state.probe.linear(base, offset))
}

/// True if the instruction stores to the operand.
fn writes(instruction: &Instruction, operand: u32) -> bool {
    let access = InstructionInfoFactory::new().info(instruction).op_access(operand);
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
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
pub(super) fn memory_operand(instruction: &Instruction) -> Option<u32> {
    (0..instruction.op_count()).find(|operand| instruction.op_kind(*operand) == OpKind::Memory)
}
