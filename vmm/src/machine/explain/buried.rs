//! Images that a stack has overwritten, of guests that then ran on elsewhere: the stack pointer tells nothing any more.
//!
//! A function that calls itself without end pushes its return address each time. So the memory from the image up to the start
//! of the stack holds the same address of the image again and again.

use super::State;
use super::suspicion::Suspicion;
use crate::boot::Image;
use crate::memory::Gpa;

/// The number of words above the image that are looked at.
const WORDS: u64 = 256;
/// So many equal addresses are no accident.
const MANY: usize = 32;
/// The number of bytes of the image that are compared with its file.
const COMPARED: usize = 256;

/// The suspicion if an endless recursion has overwritten the image.
pub(super) fn buried(image: &Image, state: &State<'_>) -> Option<Suspicion> {
    let code = image.code_ranges().into_iter().find(|range| range.contains(&image.entry().0))?;
    let is_changed = (code.start..code.end).take(COMPARED).any(|gpa| {
        let mut byte = [0];
        let had = image.byte_at(gpa);
        had.is_some_and(|had| state.memory.read(Gpa(gpa), &mut byte) && byte != [had])
    });
    if !is_changed {
        return None;
    }
    let first = code.end.next_multiple_of(state.width);
    let words: Vec<u64> = (0..WORDS)
        .map_while(|index| word(first.checked_add(index.checked_mul(state.width)?)?, state))
        .collect();
    let is_return = |word: &&u64| **word != 0 && (code.start..=code.end).contains(*word);
    let is_repeated = |word: &u64| words.iter().filter(|other| *other == word).count() >= MANY;
    words.iter().filter(is_return).take(MANY).any(is_repeated).then(|| {
        "a stack overflow: the stack has run into the image, and overwritten its code (endless recursion)"
            .into()
    })
}

/// A word of the stack's width in memory.
fn word(gpa: u64, state: &State<'_>) -> Option<u64> {
    let mut word = [0; 8];
    let read = word.get_mut(..usize::try_from(state.width).ok()?)?;
    state.memory.read(Gpa(gpa), read).then(|| u64::from_le_bytes(word))
}
