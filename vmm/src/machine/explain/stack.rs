//! Stacks that are at a wrong place: that grew into something else, or that never were memory.

use super::suspicion::Suspicion;
use super::{Fault, State};
use crate::boot::Image;
use crate::memory::{Gpa, TABLES, TABLES_SIZE};
use crate::x86::modes::Mode;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, Register};
use simvirtio::abi;
use std::collections::BTreeSet;

/// The number of bytes at the stack pointer that are compared with the image.
const COMPARED: u64 = 16;
/// The largest distance below the start of the stack at which a kernel has not set its stack pointer, in bytes.
const NEAR: u64 = 0x1_0000;
const NO_STACK: &str =
    ": RSP is 0 at the entry (the boot protocol gives no stack): load RSP before the first push or call";
/// The most instructions that are followed.
const MAX_INSTRUCTIONS: usize = 10_000;

/// The fault of an instruction that uses the stack without naming it, such as `push` and `call`.
pub(super) fn wrong(instruction: &Instruction, state: &State<'_>) -> Option<Suspicion> {
    let moved = instruction.stack_pointer_increment();
    let names_stack = instruction.memory_base().full_register() == Register::RSP;
    if moved == 0 && !names_stack {
        return None;
    }
    // A push stores below the stack pointer.
    let offset =
        if moved < 0 { state.stack_offset().wrapping_add_signed(moved.into()) } else { state.stack_offset() };
    let address = state.probe.linear(state.sregs.ss.base, offset);
    let place = match state.probe.translate_linear(address) {
        Ok(place) => place,
        Err(error) => {
            return Some(match Fault::from(error) {
                Fault::NotCanonical => {
                    format!("#SS: the stack pointer, {address:#x}, is not canonical").into()
                }
                Fault::NotMapped => overflow(state).unwrap_or_else(|| {
                    let advice = if is_below_start_of_kernel(address, state) { NO_STACK } else { "" };
                    format!("#PF: the stack is at {address:#x}, which is not mapped{advice}").into()
                }),
            });
        }
    };
    (moved < 0 && !place.writable)
        .then(|| format!("#PF: the stack is at {address:#x}, whose page is read-only").into())
}

/// True for a kernel that has never set RSP, and uses addresses below 0.
fn is_below_start_of_kernel(address: u64, state: &State<'_>) -> bool {
    state.scene.is_kernel && address.wrapping_neg() <= NEAR
}

/// The place into which the stack has grown, if it has.
pub(super) fn overflow(state: &State<'_>) -> Option<Suspicion> {
    let pointer = state.stack_offset();
    let at = state.probe.linear(state.sregs.ss.base, pointer);
    let top = state.scene.stack_top?;
    // A stack that has not moved has not grown.
    if pointer == top {
        return None;
    }
    let into = if overwrote_image(state, at) {
        "the image, and overwritten it"
    } else if (TABLES.0..TABLES.0.saturating_add(TABLES_SIZE)).contains(&at) {
        "the GDT and the page tables"
    } else if state.scene.has_window && (abi::DEVICE_TABLE..abi::HEAP).contains(&at) {
        "the buffers of SIMVIRTIO"
    } else if at > u64::from(u32::MAX) && at.wrapping_sub(top) > u64::MAX / 2 {
        "addresses below 0"
    } else {
        return None;
    };
    Some(format!("a stack overflow: the stack pointer, {at:#x}, has run into {into} (endless recursion, or large variables)").into())
}

/// True if the stack has grown into the image. It holds other bytes than the image had there, and it is not a stack that
/// the guest has set up in the image: the code never loads the stack pointer, or the stack has overwritten code. Zeroes in
/// the image may be meant for a stack.
fn overwrote_image(state: &State<'_>, at: u64) -> bool {
    let Some(image) = state.scene.image else { return false };
    let Ok(place) = state.probe.translate_linear(at) else { return false };
    let changed = |gpa: u64| {
        let mut byte = [0];
        let had = image.byte_at(gpa).filter(|byte| *byte != 0);
        had.is_some_and(|had| state.memory.read(Gpa(gpa), &mut byte) && byte != [had])
    };
    let lowest = place.gpa.0;
    if state.scene.stack_top == Some(state.stack_offset())
        || !(lowest..lowest.saturating_add(COMPARED)).any(changed)
    {
        return false;
    }
    let code = instructions(image);
    let is_changed = |code: &Instruction| {
        code.ip() >= lowest && (code.ip()..code.ip().saturating_add(code.len() as u64)).any(changed)
    };
    let current = state.probe.translate_linear(state.probe.linear(state.sregs.cs.base, state.regs.rip));
    let current = current.is_ok_and(|place| place.gpa.0 >= lowest && changed(place.gpa.0));
    !code.iter().any(loads_stack_pointer) || current || code.iter().any(is_changed)
}

fn loads_stack_pointer(instruction: &Instruction) -> bool {
    let moves = instruction.op0_register().full_register() == Register::RSP;
    let loads = instruction.op1_register().full_register() != Register::RBP;
    (moves && loads && instruction.mnemonic() != Mnemonic::Add && instruction.mnemonic() != Mnemonic::Sub)
        || instruction.op0_register() == Register::SS
}

/// The instructions that can be reached from the entry point without an indirect jump.
fn instructions(image: &Image) -> Vec<Instruction> {
    let bits = match image.mode() {
        Mode::Real => 16,
        Mode::Protected => 32,
        Mode::Long | Mode::User => 64,
    };
    let mut targets = vec![image.entry().0];
    let (mut seen, mut code) = (BTreeSet::new(), Vec::new());
    while let Some(target) = targets.pop() {
        let Some(bytes) = image.bytes_from(target) else { continue };
        for instruction in &mut Decoder::with_ip(bits, bytes, target, DecoderOptions::NONE) {
            if instruction.is_invalid() || code.len() >= MAX_INSTRUCTIONS || !seen.insert(instruction.ip()) {
                break;
            }
            code.push(instruction);
            match instruction.flow_control() {
                FlowControl::Next | FlowControl::IndirectCall | FlowControl::Interrupt => {}
                FlowControl::ConditionalBranch | FlowControl::Call => {
                    targets.push(instruction.near_branch_target());
                }
                FlowControl::UnconditionalBranch => {
                    targets.push(instruction.near_branch_target());
                    break;
                }
                _ => break,
            }
            if instruction.mnemonic() == Mnemonic::Hlt {
                break;
            }
        }
    }
    code
}
