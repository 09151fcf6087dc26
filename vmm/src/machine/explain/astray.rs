//! Guests that are outside their code, and the signs that they ran there through zeroed memory.
//!
//! Two zero bytes are `add [rax], al`, in 16-bit code `add [bx+si], al`. So a guest without its last `hlt` runs through all
//! zeroes behind its code. The flags are then those of the last addition (Intel SDM volume 1, section 3.4.3.1).

use super::State;
use super::instruction::code_bits;
use super::suspicion::{Suspicion, operand_address};
use crate::memory::Gpa;
use crate::x86::modes::CR0_PE;
use iced_x86::{Decoder, DecoderOptions};
use simvirtio::abi;

/// The two bytes of the addition.
const ADD: [u8; 2] = [0, 0];
/// The number of bytes before the instruction pointer that are searched for zeroes, in chunks. The stack may be there, too.
const SEARCHED: u64 = 0x200;
const CHUNK: u64 = 32;
/// The flags PF, ZF and SF.
const PARITY: u64 = 1 << 2;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;

pub(super) const LEFT: &str =
    "it left its image: it ran past its end, or jumped or returned to a wrong address";
const PAST_END: &str =
    "the guest ran past the end of its code (is the last hlt missing?), through zeroed memory";

/// The suspicion if zeroes led to the end of the code segment.
pub(super) const PAST_SEGMENT: &str = "the guest ran past the end of its code (is the last hlt missing?), through zeroed \
                                       memory, to the end of its segment";

/// True if a guest in real mode ran through zeroes to the end of its code segment. The instruction pointer is then at the last byte,
/// or has wrapped.
pub(super) fn ran_to_segment_end(state: &State<'_>) -> bool {
    const SEGMENT: u64 = 0x1_0000;
    let at_end = matches!(state.regs.rip & 0xffff, 0 | 0xffff);
    let is_real = state.sregs.cr0 & CR0_PE == 0;
    is_real && at_end && ran_through_zeroes(state.sregs.cs.base.saturating_add(SEGMENT), state)
}

/// The suspicion if there is no memory at the linear address of the instruction.
pub(super) fn of_place_without_memory(linear: u64, state: &State<'_>) -> Suspicion {
    let window = abi::WINDOW..abi::DOORBELL.saturating_add(abi::DOORBELL_SIZE);
    let in_window = state.scene.has_window && window.contains(&linear);
    match (in_window, ran_through_zeroes(linear, state)) {
        (true, true) => format!("{PAST_END}, into the window of SIMVIRTIO").into(),
        (false, true) => format!("{PAST_END}, to the end of its memory").into(),
        (true, false) => "a jump into the window of SIMVIRTIO, which holds registers and no code".into(),
        (false, false) => "a jump to a wrong address, where there is no memory".into(),
    }
}

/// The way in which the guest left its image, at a linear address outside. `is_cut`: memory ends in the instruction
/// there.
pub(super) fn way_out(linear: u64, is_cut: bool, state: &State<'_>) -> Suspicion {
    match (ran_through_zeroes(linear, state), is_cut) {
        (true, true) => format!("{PAST_END}, to the end of its memory").into(),
        (true, false) => PAST_END.into(),
        (false, _) => LEFT.into(),
    }
}

/// True if there are zeroes before the linear address, and the flags are those of their last addition.
fn ran_through_zeroes(linear: u64, state: &State<'_>) -> bool {
    let zeroes = |distance: usize| {
        let mut bytes = [1; CHUNK as usize];
        let start = linear.checked_sub((distance as u64).saturating_add(CHUNK));
        start.is_some_and(|start| read(start, &mut bytes, state)) && bytes.iter().all(|byte| *byte == 0)
    };
    (0..SEARCHED as usize).step_by(CHUNK as usize).any(zeroes) && has_flags_of_addition(state)
}

fn has_flags_of_addition(state: &State<'_>) -> bool {
    let add = Decoder::with_ip(code_bits(state.sregs), &ADD, 0, DecoderOptions::NONE).decode();
    let Some(address) = operand_address(&add, 0, state) else { return false };
    let mut sum = [0];
    if !read(address, &mut sum, state) {
        return false;
    }
    let [sum] = sum;
    let has = |flag: u64| state.regs.rflags & flag != 0;
    has(ZERO) == (sum == 0) && has(SIGN) == (sum >= 0x80) && has(PARITY) == sum.count_ones().is_multiple_of(2)
}

/// Reads the bytes at a linear address, which are in one page. False if they are not in memory.
fn read(linear: u64, bytes: &mut [u8], state: &State<'_>) -> bool {
    let gpa = state.probe.translate_linear(linear).map(|place| place.gpa.0);
    gpa.is_ok_and(|gpa| state.memory.read(Gpa(gpa), bytes))
}
