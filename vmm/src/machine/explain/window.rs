//! Accesses to SIMVIRTIO's window by a guest that did not end: a driver that waits for the device.
//!
//! With `polling` and `doorbell` the window is memory, and a machine above 1 MiB has memory in its place. The loads of the
//! driver are then no exits, so the instructions at the end of the run are all that tells of them.

use super::suspicion::{memory_operand, operand_address};
use super::{State, code_bits, instruction_bytes, translate};
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use simvirtio::abi;

/// The most instructions that are followed. A loop that waits has two or three.
const MOST: usize = 6;

/// The address in the window that the next instructions of the guest access. `None` if they access none. Jumps back are
/// followed as if they were taken, because the guest was in a loop.
pub(super) fn accessed(rip: u64, state: &State<'_>) -> Option<u64> {
    let mut at = rip;
    for _ in 0..MOST {
        let linear = state.probe.linear(state.sregs.cs.base, at);
        let gpa = translate(state.probe, state.memory, linear).gpa?;
        let bytes = instruction_bytes(state.memory, gpa);
        let instruction = Decoder::with_ip(code_bits(state.sregs), &bytes, at, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            return None;
        }
        let address =
            memory_operand(&instruction).and_then(|operand| operand_address(&instruction, operand, state));
        let window = abi::WINDOW..abi::WINDOW + abi::offset::QUEUES_END;
        if let Some(address) = address.filter(|address| window.contains(address)) {
            return Some(address);
        }
        at = match instruction.flow_control() {
            FlowControl::Next => instruction.next_ip(),
            FlowControl::UnconditionalBranch => instruction.near_branch_target(),
            FlowControl::ConditionalBranch if instruction.near_branch_target() <= at => {
                instruction.near_branch_target()
            }
            FlowControl::ConditionalBranch => instruction.next_ip(),
            _ => return None,
        };
    }
    None
}
