//! Guests that left their code: how they got to the place where they died, or where they ran until the timeout.

use super::State;
use super::registers::register_value;
use super::suspicion::Suspicion;
use super::{buried, features, other_mode, stack};
use crate::boot::Image;
use crate::exit::Exit;
use crate::machine::doubt::{empty_because, missing_handler};
use crate::x86::modes::{self, Mode};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use simvirtio::abi;

/// The most bytes that a guest pops that returned from its entry point a few times.
const MOST_POPPED: u64 = 0x1000;
/// The size of the table of vectors of real mode, in bytes.
const VECTORS: u64 = 0x400;
/// The most instructions that are followed.
const MAX_INSTRUCTIONS: usize = 1000;

const RETURNED: &str = "the entry point returned (a ret, and nothing had called it): end it with hlt, or write its exit \
                        code to port 0xf4";
/// The same for a kernel, whose RSP is 0 at the start.
const KERNEL_RETURNED: &str = "the entry point returned (a ret, and nothing had called it): end it with a power-off or a \
                               reset, or write its exit code to port 0xf4";

/// The way in which a guest left its code. `outside`: the instruction pointer is in no segment of the image.
pub(super) fn derailed(state: &State<'_>, outside: bool) -> Option<Suspicion> {
    let Some(image) = state.scene.image else {
        let returned =
            state.scene.is_kernel && (1..=MOST_POPPED).contains(&state.regs.rsp) && state.width == 8;
        return returned.then(|| KERNEL_RETURNED.into());
    };
    let is_real = state.sregs.cr0 & modes::CR0_PE == 0;
    let advice = (is_real == (image.mode() == Mode::Real)).then(|| other_mode::advice(image)).flatten();
    if advice.is_some() {
        return advice;
    }
    if is_real {
        let called = missing_handler(image, state.memory, state.sregs.ss.base, state.regs.rsp)
            .or_else(|| called_at_start(image));
        let exception = || exception_in_real_mode(state, image);
        let found = called.map(|vector| no_bios(vector, image)).or_else(exception);
        if found.is_some() {
            return found;
        }
    }
    // Code that the stack has overwritten is still in the image.
    let overflow = stack::overflow(state);
    if !outside || overflow.is_some() {
        return overflow;
    }
    if let Some(overflow) = buried::buried(image, state) {
        return Some(overflow);
    }
    if let Some(target) = called_pointer(state, image) {
        let place = if target == 0 { "0".into() } else { format!("{target:#x}, which is outside its image") };
        return Some(format!("a call of a function pointer that is {place}").into());
    }
    // In real mode, faults without a handler push until the stack pointer is anywhere.
    let popped = !is_real && popped_too_much(state);
    if popped || (popped_address(state) && returns(image)) || (is_real && returns(image)) {
        return Some(RETURNED.into());
    }
    let wrong = "a ret to a wrong address: the stack was overwritten, or a function popped more or less than it pushed";
    popped_address(state).then(|| wrong.into())
}

/// The way in which a guest left its code, if the host has reset the vCPU and nothing is left of its state: the entry
/// point returned. A `ret` with nothing on the stack reads the word at its top, which in a machine with SIMVIRTIO is an
/// exit, because the window is there.
pub(super) fn derailed_before_reset(image: &Image, last: &[Exit]) -> Option<Suspicion> {
    let read_top = last.iter().any(
        |exit| matches!(*exit, Exit::MmioRead { address: abi::RAM_SIZE, size } if [4, 8].contains(&size)),
    );
    (read_top && returns(image)).then(|| RETURNED.into())
}

/// The software interrupt that the first instructions of an image call, if they come to it for certain and nothing has set its
/// vector. Without a handler, the image at address 0 is entered again and again, until its own stack has overwritten it.
pub(super) fn called_at_start(image: &Image) -> Option<u8> {
    let mut at = image.entry().0;
    for _ in 0..if image.overlaps(0, VECTORS) { MAX_INSTRUCTIONS } else { 0 } {
        let call = Decoder::with_ip(16, image.bytes_from(at)?, at, DecoderOptions::NONE).decode();
        match call.flow_control() {
            FlowControl::Next if call.op_count() == 0 || call.op0_kind() == OpKind::Register => {
                at = call.next_ip();
            }
            FlowControl::Interrupt if call.mnemonic() == Mnemonic::Int => {
                let vector = call.immediate8();
                let mut entry = (0..4).map(|byte| image.byte_at(u64::from(vector) * 4 + byte));
                return entry.all(|byte| byte.is_none_or(|byte| byte == 0)).then_some(vector);
            }
            _ => return None,
        }
    }
    None
}

fn no_bios(vector: u8, image: &Image) -> Suspicion {
    format!("a call of int {vector:#x}, which has no handler, because {}", empty_because(vector, image))
        .into()
}

/// The stack pointer is above the place where it started, by a few words.
fn popped_too_much(state: &State<'_>) -> bool {
    let above = |top: u64| {
        state.stack_offset().checked_sub(top).is_some_and(|bytes| (1..=MOST_POPPED).contains(&bytes))
    };
    state.scene.stack_top.is_some_and(above) && state.scene.stack_base == Some(state.sregs.ss.base)
}

/// The word below the stack pointer is the instruction pointer: the last instruction of the code was a `ret`.
fn popped_address(state: &State<'_>) -> bool {
    state.stack_word(0u64.wrapping_sub(state.width)) == Some(state.regs.rip)
}

/// The target of an indirect call of the image that has just been made: the word on top of the stack is the address after
/// the call. `None` if there is no such call, or if its target is not known or is in the image.
fn called_pointer(state: &State<'_>, image: &Image) -> Option<u64> {
    /// The lengths of an indirect call, in bytes.
    const LENGTHS: std::ops::RangeInclusive<u64> = 2..=8;
    let (next, bits) = (state.stack_word(0)?, u32::try_from(state.width).ok()?.checked_mul(8)?);
    let is_call = |length: u64| {
        let at = next.checked_sub(length)?;
        let gpa = state.probe.translate_linear(state.probe.linear(state.sregs.cs.base, at)).ok()?.gpa.0;
        let call = Decoder::with_ip(bits, image.bytes_from(gpa)?, at, DecoderOptions::NONE).decode();
        (call.flow_control() == FlowControl::IndirectCall && call.len() as u64 == length).then_some(call)
    };
    let call = LENGTHS.into_iter().find_map(is_call)?;
    let target = match call.op0_kind() {
        OpKind::Register => register_value(call.op0_register(), state.regs)?,
        OpKind::Memory => {
            let at = call.virtual_address(0, 0, |register, _, _| register_value(register, state.regs))?;
            let mut word = [0; 8];
            let read = word.get_mut(..usize::try_from(state.width).ok()?)?;
            let gpa = state.probe.translate_linear(at).ok()?.gpa;
            state.memory.read(gpa, read).then(|| u64::from_le_bytes(word))?
        }
        _ => return None,
    };
    let linear = state.probe.linear(state.sregs.cs.base, target);
    image.byte_at(linear).is_none().then_some(target)
}

/// An exception of an instruction of the image in real mode. Its frame is on top of the stack: the address of the
/// instruction, CS and the flags.
fn exception_in_real_mode(state: &State<'_>, image: &Image) -> Option<Suspicion> {
    let [ip, cs, flags] = [state.stack_word(0)?, state.stack_word(2)?, state.stack_word(4)?];
    let bytes = image.bytes_from((cs << 4).checked_add(ip)?)?;
    let instruction = Decoder::with_ip(16, bytes, ip, DecoderOptions::NONE).decode();
    let fault: Suspicion = match instruction.mnemonic() {
        _ if flags & 0x802a != 2 => return None,
        Mnemonic::Div | Mnemonic::Idiv => "#DE: a division by zero, or a quotient that does not fit".into(),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::INVALID => {
            "#UD: an undefined instruction".into()
        }
        _ => features::missing(&instruction, state)?,
    };
    Some(format!("{fault}, at {cs:04x}:{ip:04x}, and real mode has no handler for it at address 0").into())
}

/// True if the code can be followed from the entry point to a `ret` without a call or a push that it would undo.
pub(super) fn returns(image: &Image) -> bool {
    let bits = match image.mode() {
        Mode::Real => 16,
        Mode::Protected => 32,
        Mode::Long | Mode::User => 64,
    };
    let mut paths = vec![(image.entry().0, 0i64)];
    let mut seen = std::collections::BTreeSet::new();
    while let Some((mut at, mut depth)) = paths.pop() {
        while seen.len() < MAX_INSTRUCTIONS && seen.insert(at) {
            let Some(bytes) = image.bytes_from(at) else { break };
            let instruction = Decoder::with_ip(bits, bytes, at, DecoderOptions::NONE).decode();
            if instruction.is_invalid() || instruction.mnemonic() == Mnemonic::Hlt {
                break;
            }
            if instruction.mnemonic() == Mnemonic::Ret && depth <= 0 {
                return true;
            }
            match instruction.flow_control() {
                FlowControl::UnconditionalBranch => at = instruction.near_branch_target(),
                FlowControl::ConditionalBranch => {
                    paths.push((instruction.near_branch_target(), depth));
                    at = instruction.next_ip();
                }
                FlowControl::Next
                | FlowControl::Call
                | FlowControl::IndirectCall
                | FlowControl::Interrupt => {
                    depth = depth_after(&instruction, depth);
                    at = instruction.next_ip();
                }
                _ => break,
            }
        }
    }
    false
}

/// The bytes that were pushed, after an instruction. A call returns, and a new stack is empty.
fn depth_after(instruction: &Instruction, depth: i64) -> i64 {
    let sets_stack = instruction.op0_register().full_register() == Register::RSP;
    match instruction.mnemonic() {
        Mnemonic::Call => depth,
        Mnemonic::Mov if sets_stack => 0,
        _ => depth.saturating_sub(instruction.stack_pointer_increment().into()),
    }
}
