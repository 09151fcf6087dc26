//! The innermost frame of a guest: the registers and the stack from which a debugger finds the callers.

use super::View;
use crate::memory::PAGE;
use crate::x86::modes::Mode;
use crate::x86::registers::{Regs, Sregs};

/// The most bytes of the stack that are kept.
const MAX_STACK: u64 = 16 << 10;

/// The innermost frame of a guest that has died. All addresses are linear addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The address of the instruction.
    pub rip: u64,
    /// The stack pointer.
    pub rsp: u64,
    /// The frame pointer.
    pub rbp: u64,
    /// RBX.
    pub rbx: u64,
    /// The width of a word on the stack in this mode, in bytes: 2, 4 or 8.
    pub width: u64,
    /// The guest physical address of the instruction. `None` if it is not mapped.
    pub physical: Option<u64>,
    /// The memory from the stack pointer on, at most 16 KiB, up to the first page that is not mapped.
    pub stack: Vec<u8>,
}

/// The frame of a vCPU in this state.
pub(in crate::machine) fn of(mode: Mode, regs: &Regs, sregs: &Sregs, probe: &View<'_>) -> Frame {
    let (width, mask) = match mode {
        Mode::Real => (2, 0xffff),
        Mode::Protected => (4, 0xffff_ffff),
        Mode::Long | Mode::User => (8, u64::MAX),
    };
    let stack = |offset: u64| probe.linear(sregs.ss.base, offset & mask);
    let (rip, rsp) = (probe.linear(sregs.cs.base, regs.rip), stack(regs.rsp));
    let physical = probe.translate_linear(rip).ok().map(|place| place.gpa.0);
    Frame { rip, rsp, rbp: stack(regs.rbp), rbx: regs.rbx & mask, width, physical, stack: memory(rsp, probe) }
}

/// The memory from a linear address on, page by page.
fn memory(start: u64, probe: &View<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut at = start;
    while (bytes.len() as u64) < MAX_STACK {
        let piece = PAGE
            .saturating_sub(at & PAGE.saturating_sub(1))
            .min(MAX_STACK.saturating_sub(bytes.len() as u64));
        let mut page = vec![0; usize::try_from(piece).unwrap_or(0)];
        if !probe.read_linear(at, &mut page) {
            break;
        }
        bytes.append(&mut page);
        match at.checked_add(piece) {
            Some(next) => at = next,
            None => break,
        }
    }
    bytes
}
