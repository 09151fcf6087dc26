//! The callers of a function, found on the stack.
//!
//! Call frame information of the symbol file comes first. Without it, the chain of frame pointers (RBP) is followed; each
//! return address must stand behind a call instruction, so that the chain ends where it is not one.

use crate::symbols::{Caller, Symbols};

/// The most frames of a backtrace.
pub const MAX_FRAMES: usize = 64;

/// The registers at the innermost frame. Addresses are linear addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Registers {
    pub rip: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rbx: u64,
    /// The width of a word on the stack, in bytes: 4 or 8.
    pub width: u64,
}

/// The upper part of a stack.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stack<'a> {
    /// The linear address of the first byte.
    pub start: u64,
    /// The bytes, to higher addresses.
    pub bytes: &'a [u8],
}

impl Stack<'_> {
    /// The word of `width` bytes at an address.
    fn word(&self, address: u64, width: u64) -> Option<u64> {
        let from = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let width = usize::try_from(width).ok()?;
        let mut word = [0; 8];
        word.get_mut(..width)?.copy_from_slice(self.bytes.get(from..from.checked_add(width)?)?);
        Some(u64::from_le_bytes(word))
    }
}

/// The addresses to which the functions on the stack return, the innermost first. The address of the instruction itself is
/// not among them. At most [`MAX_FRAMES`].
pub fn backtrace(registers: &Registers, stack: Stack<'_>, symbols: &Symbols) -> Vec<u64> {
    let Registers { rip, rsp, rbp, rbx, width } = *registers;
    let mut at = Caller { rip, rsp, rbp, rbx, width, returns: false };
    let mut found = Vec::new();
    while found.len() < MAX_FRAMES {
        let next = symbols
            .caller(&at, |address| stack.word(address, width))
            .or_else(|| by_frame_pointer(&at, stack, symbols))
            // The stack of a caller is always above.
            .filter(|next| next.rsp > at.rsp && follows_call(next.rip, symbols));
        let Some(next) = next else { break };
        found.push(next.rip);
        at = next;
    }
    found
}

/// The caller by the frame pointer; in the first instructions of a function, before it is set, by the stack pointer.
fn by_frame_pointer(at: &Caller, stack: Stack<'_>, symbols: &Symbols) -> Option<Caller> {
    let Caller { rsp, rbp, width, .. } = *at;
    if let Some(pushed) = at_entry(at, symbols).or_else(|| in_leaf(at, stack, symbols)) {
        let returns_at = rsp.checked_add(pushed.checked_mul(width)?)?;
        let own = if pushed == 0 { rbp } else { stack.word(rsp, width)? };
        let rip = stack.word(returns_at, width)?;
        return Some(Caller { rip, rsp: returns_at.checked_add(width)?, rbp: own, returns: true, ..*at });
    }
    let after = rbp.checked_add(width)?;
    Some(Caller {
        rip: stack.word(after, width)?,
        rbp: stack.word(rbp, width)?,
        rsp: after.checked_add(width)?,
        returns: true,
        ..*at
    })
}

/// The number of words that a function has pushed, if its frame pointer is not set up yet: 0 at its first instruction, 1 after
/// `push rbp`. Outside all functions it is 0: a call of a wrong address led there.
fn at_entry(at: &Caller, symbols: &Symbols) -> Option<u64> {
    const ENDBR: &[u8] = &[0xf3, 0x0f, 0x1e];
    const PUSH_RBP: u8 = 0x55;
    if at.returns {
        return None;
    }
    let Some(offset) = symbols.offset(at.rip) else { return Some(0) };
    let code = symbols.code_at(at.rip.checked_sub(offset)?)?;
    let (first, skipped) = if code.starts_with(ENDBR) { (code.get(4..)?, 4) } else { (code, 0) };
    match offset {
        offset if offset == 0 || offset == skipped => Some(0),
        offset if first.first() == Some(&PUSH_RBP) && offset == skipped.saturating_add(1) => Some(1),
        _ => None,
    }
}

/// 0 if a function without a frame of its own has pushed nothing: the word on top of the stack returns behind a call of this
/// very function.
fn in_leaf(at: &Caller, stack: Stack<'_>, symbols: &Symbols) -> Option<u64> {
    if at.returns {
        return None;
    }
    let returns_to = stack.word(at.rsp, at.width)?;
    let call = symbols.code_at(returns_to.checked_sub(5)?)?;
    let Some([0xe8, distance @ ..]) = call.first_chunk::<5>() else { return None };
    let target = returns_to.wrapping_add_signed(i32::from_le_bytes(*distance).into());
    let start = at.rip.checked_sub(symbols.offset(at.rip)?)?;
    (target == start).then_some(0)
}

/// True if a call instruction ends at `address` (Intel SDM volume 2A, "CALL": E8 with an offset, or FF /2 with a register or
/// memory operand).
fn follows_call(address: u64, symbols: &Symbols) -> bool {
    (2..=7).any(|length: u64| {
        let code = address.checked_sub(length).and_then(|start| symbols.code_at(start));
        match (length, code) {
            (5, Some([0xe8, ..])) => true,
            (_, Some([0xff, modrm, ..])) => is_indirect_call(*modrm, length),
            (3.., Some([0x40..=0x4f, 0xff, modrm, ..])) => is_indirect_call(*modrm, length.saturating_sub(1)),
            _ => false,
        }
    })
}

/// True if FF with this ModRM byte is a near call of `length` bytes.
fn is_indirect_call(modrm: u8, length: u64) -> bool {
    let (mode, operation, register) = (modrm >> 6, (modrm >> 3) & 7, modrm & 7);
    let scale = u64::from(mode != 3 && register == 4);
    let displacement = match (mode, register) {
        (0, 5) => 4,
        (1, _) => 1,
        (2, _) => 4,
        _ => 0,
    };
    operation == 2 && length == scale.saturating_add(displacement).saturating_add(2)
}
