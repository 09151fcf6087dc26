//! Text on the text screen of a PC, which this machine does not have: there it is plain RAM.
//!
//! Plain RAM may also hold the data or the stack of a guest. So the cells must look like those of a screen, and the screen
//! must not be a part of something larger.

use super::{EXCERPT, Original};
use crate::memory::{Gpa, ReadMemory};
use crate::x86::modes::STACK_SIZE;
use std::collections::BTreeSet;
use std::ops::Range;

/// The text screen: 25 rows of 80 cells, each a character and an attribute.
const SCREEN: Range<u64> = 0xb8000..0xb8fa0;
/// The number of bytes before and after the screen that are looked at.
const BORDER: u64 = 16;
const BORDERED: usize = (SCREEN.end - SCREEN.start + 2 * BORDER) as usize;
/// The most attributes of a plausible text.
const MOST_ATTRIBUTES: usize = 4;

/// The text on the screen, if the guest wrote there. `stacks` are the stack pointers of the vCPUs.
pub(super) fn text(image: &dyn Original, memory: &dyn ReadMemory, stacks: &[u64]) -> Option<String> {
    let is_stack = |pointer: &u64| (SCREEN.start..SCREEN.end.saturating_add(STACK_SIZE)).contains(pointer);
    if image.overlaps(SCREEN.start, SCREEN.end) || stacks.iter().any(is_stack) {
        return None;
    }
    let mut bytes = [0; BORDERED];
    if !memory.read(Gpa(SCREEN.start.checked_sub(BORDER)?), &mut bytes) {
        return None;
    }
    let (before, rest) = bytes.split_at_checked(BORDER as usize)?;
    let (cells, after) = rest.split_at_checked(rest.len().checked_sub(BORDER as usize)?)?;
    let is_outside = |cell: &[u8]| matches!(cell, [0, _] | [b' ', _]) && cell != [0, 0xff];
    let is_alone = before.iter().all(|byte| *byte == 0) && after.chunks_exact(2).all(is_outside);
    if is_alone { screen_text(cells) } else { None }
}

/// The beginning of the text in the cells of a screen. `None` if it is empty, or if it does not look like text: each cell
/// that is not zero must begin with a printable character, and the attributes must be few. Attributes that are
/// characters themselves are those of a text in plain memory, unless they are all equal and differ from the text.
pub(super) fn screen_text(cells: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut attributes = BTreeSet::new();
    for cell in cells.chunks_exact(2).filter(|cell| cell.iter().any(|byte| *byte != 0)) {
        let [character @ b' '..=b'~', attribute] = *cell else { return None };
        text.push(char::from(character));
        attributes.insert(attribute);
    }
    let printable: Vec<_> = attributes.iter().filter(|attribute| (b' '..=b'~').contains(attribute)).collect();
    let is_plausible = match printable.as_slice() {
        [] => true,
        [attribute] => text.bytes().any(|character| character != **attribute),
        _ => false,
    };
    let excerpt: String = text.trim().chars().take(EXCERPT).collect();
    let excerpt = excerpt.trim_end().to_string();
    (!text.is_empty() && is_plausible && attributes.len() <= MOST_ATTRIBUTES).then_some(excerpt)
}
