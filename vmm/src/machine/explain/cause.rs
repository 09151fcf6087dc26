//! The probable cause of a guest's death: asks for each kind of cause, in an order.

use super::idt::Idt;
use super::instruction::{MAX_INSTRUCTION, code_bits};
use super::suspicion::{self, Suspicion};
use super::target::Target;
use super::{State, astray, control, derail, selectors};
use crate::boot::Image;
use crate::memory::{Gpa, PagedMemory};
use iced_x86::{Instruction, Mnemonic};
use softcpu::Cpu;

/// The probable cause of the guest's death, or of its timeout.
pub(super) fn suspicion(
    code: &Target,
    instruction: Option<&Instruction>,
    bytes: &[u8],
    state: &State<'_>,
) -> Option<Suspicion> {
    // The state of another program's guest is checked by the rules.
    let not_long = control::not_in_long_mode(state.sregs).filter(|_| !state.scene.is_foreign);
    if not_long.is_some() {
        return not_long;
    }
    // Behind the instruction there may be variables.
    let own = bytes.get(..instruction.map_or(1, Instruction::len)).unwrap_or(bytes);
    let is_code = |gpa: Gpa| state.scene.image.is_some_and(|image| is_code_of(image, gpa, own));
    let outside = !code.gpa.is_some_and(is_code);
    let derailed = derail::derailed(state, outside);
    if derailed.is_some() {
        return derailed;
    }
    let has_left = outside && state.scene.image.is_some();
    if !state.scene.died {
        if state.scene.image.is_some_and(Image::loads_itself) && astray::ran_to_segment_end(state) {
            return Some(astray::PAST_SEGMENT.into());
        }
        let in_zeroes = has_left && bytes.starts_with(&[0; 4]);
        return in_zeroes.then(|| astray::way_out(code.linear, false, state));
    }
    let is_undefined = instruction.is_some_and(suspicion::is_undefined);
    let found = match (code.fault, instruction) {
        (Some(fault), _) => Some(suspicion::of_fetch(fault)),
        (None, Some(_)) if has_left && is_undefined => {
            Some(astray::way_out(code.linear, bytes.len() < MAX_INSTRUCTION, state))
        }
        (None, Some(instruction)) => suspicion::of_instruction(instruction, bytes, state),
        (None, None) => Some(astray::of_place_without_memory(code.linear, state)),
    };
    found.or_else(|| has_left.then(|| astray::LEFT.into())).or_else(|| huge_page(code, state))
}

/// The cause of a death in code on a page of 1 GiB, if nothing else explains it.
fn huge_page(code: &Target, state: &State<'_>) -> Option<Suspicion> {
    let may_lack_them = !state.scene.is_soft && !state.scene.is_unemulated && code.page == Some(1 << 30);
    may_lack_them.then(|| {
        let way_out = if state.scene.is_foreign { "" } else { ", or try --vcpu soft" };
        format!("the code is on a page of 1 GiB, which KVM on this host may not have: map it with pages of 2 MiB{way_out}")
            .into()
    })
}

/// True if the software processor has an instruction, and what it needs.
pub(super) fn runs_on_soft(instruction: &Instruction, bytes: &[u8], state: &State<'_>) -> bool {
    let own = bytes.get(..instruction.len()).unwrap_or_default();
    let idt = Idt { sregs: state.sregs, probe: state.probe, memory: state.memory };
    let enters_task = match instruction.mnemonic() {
        Mnemonic::Int => idt.is_task_gate(instruction.immediate8()),
        Mnemonic::Int3 => idt.is_task_gate(3),
        _ => selectors::switches_task(instruction, state),
    };
    !enters_task && Cpu::<PagedMemory>::has_instruction(code_bits(state.sregs), own)
}

/// True if `bytes`, which memory holds at `gpa`, are those of the image's code. A guest that has left its code may have overwritten
/// it.
fn is_code_of(image: &Image, gpa: Gpa, bytes: &[u8]) -> bool {
    image.code_ranges().iter().any(|range| range.contains(&gpa.0))
        && image.bytes_from(gpa.0).is_none_or(|code| code.iter().zip(bytes).all(|(code, byte)| code == byte))
}
