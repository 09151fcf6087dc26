//! Stacks that are at a wrong place: that grew into something else, or that never were memory.

use super::suspicion::Suspicion;
use super::{Fault, State};
use crate::memory::{Gpa, TABLES, TABLES_SIZE};
use iced_x86::{Instruction, Register};
use simvirtio::abi;

/// The number of bytes at the stack pointer that are compared with the image.
const COMPARED: u64 = 16;
/// The largest distance below the start of the stack at which a kernel has not set its stack pointer, in bytes.
const NEAR: u64 = 0x1_0000;
const NO_STACK: &str =
    ": RSP is 0 at the entry (the boot protocol gives no stack): load RSP before the first push or call";

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

/// True if the stack holds other bytes than the code or data that the image had there. Zeroes in the image may be meant
/// for a stack.
pub(super) fn overwrote_image(state: &State<'_>, at: u64) -> bool {
    let Some(image) = state.scene.image else { return false };
    let Ok(place) = state.probe.translate_linear(at) else { return false };
    (place.gpa.0..place.gpa.0.saturating_add(COMPARED)).any(|gpa| {
        let mut byte = [0];
        let had = image.byte_at(gpa).filter(|byte| *byte != 0);
        had.is_some_and(|had| state.memory.read(Gpa(gpa), &mut byte) && byte != [had])
    })
}
