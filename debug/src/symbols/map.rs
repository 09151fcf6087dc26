//! The text format of `System.map` and `/proc/kallsyms`: lines with an address in hexadecimal, a type letter and a name
//! (nm(1)).

use super::functions::{Candidate, Functions};

/// The distance that the last symbol reaches at most, in bytes.
const MAX_LAST: u64 = 1 << 20;

/// The functions in a file. `None` if it does not have this format.
/// Also returns the address of `_stext`, which a Linux kernel has.
pub(super) fn functions(bytes: &[u8]) -> Option<(Functions, Option<u64>)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (mut candidates, mut stext) = (Vec::new(), None);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        let start = u64::from_str_radix(address, 16).ok()?;
        let kind = Some(kind).filter(|kind| kind.len() == 1)?;
        if name == "_stext" {
            stext = Some(start);
        }
        if matches!(kind, "t" | "T" | "w" | "W") {
            let rank = u8::from(kind == "T");
            candidates.push(Candidate {
                start,
                size: 0,
                limit: start.saturating_add(MAX_LAST),
                rank,
                name: name.into(),
            });
        }
    }
    // Without rights, /proc/kallsyms has 0 for all addresses.
    let functions = Functions::new(candidates);
    (!functions.is_empty()).then_some((functions, stext))
}
