//! The loop at a vCPU's instruction: a short way back to the same instruction.

use crate::machine::explain::code_bits;
use crate::memory::GuestMemory;
use crate::x86::probe::Probe;
use crate::x86::registers::{Regs, Sregs};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind};

/// The number of bytes of code that are looked at, in each direction.
const REACH: u64 = 64;

/// A kind of loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spin {
    /// A jump to itself.
    Itself,
    /// The loop reads memory.
    Reads,
    /// The loop works on registers only.
    Counts,
}

/// The loop that `regs` is in. `None` if the next instructions do not lead back.
pub(super) fn at(regs: &Regs, sregs: &Sregs, probe: &Probe<GuestMemory>) -> Option<Spin> {
    let bits = code_bits(sregs);
    let code = |from: u64| decode(bits, from, &bytes(sregs, probe, from));
    let mut back = None;
    for instruction in code(regs.rip) {
        match instruction.flow_control() {
            FlowControl::Next => {}
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
                let target = near_target(&instruction)?;
                if target <= regs.rip && regs.rip.saturating_sub(target) <= REACH {
                    back = Some((target, instruction.ip()));
                    break;
                }
                if instruction.flow_control() == FlowControl::UnconditionalBranch {
                    return None;
                }
            }
            _ => return None,
        }
    }
    let (start, end) = back?;
    if start == end {
        return Some(Spin::Itself);
    }
    let body = code(start);
    let reads = body.iter().take_while(|instruction| instruction.ip() <= end).any(reads_memory);
    Some(if reads { Spin::Reads } else { Spin::Counts })
}

/// The bytes at an address of the code segment, up to the first that cannot be read.
fn bytes(sregs: &Sregs, probe: &Probe<GuestMemory>, from: u64) -> Vec<u8> {
    let byte = |offset: u64| {
        let linear = probe.linear(sregs.cs.base, from.wrapping_add(offset));
        let mut byte = [0];
        let gpa = probe.translate_linear(linear).ok()?.gpa;
        probe.memory().read(gpa, &mut byte).then_some(byte[0])
    };
    (0..REACH.saturating_mul(2)).map_while(byte).collect()
}

fn decode(bits: u32, from: u64, bytes: &[u8]) -> Vec<Instruction> {
    let decoder = Decoder::with_ip(bits, bytes, from, DecoderOptions::NONE);
    decoder.into_iter().take_while(|instruction| !instruction.is_invalid()).collect()
}

/// The target of a near branch.
fn near_target(branch: &Instruction) -> Option<u64> {
    let is_near =
        matches!(branch.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    is_near.then(|| branch.near_branch_target())
}

fn reads_memory(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory)
}
