//! Folded stacks: a line for each stack, with its frames from the outermost to the innermost, semicolons between them, a blank
//! and the number of samples.

use super::{MOST_FRAMES, Part, Samples, StackFrame};
use std::io::{self, Write};

/// The lines of the stacks, without their ends. Frames of one name are one frame, at any source line.
pub(super) fn lines(samples: &Samples) -> Vec<String> {
    let mut lines: Vec<(String, u64)> = Vec::new();
    for (stack, count) in samples.sorted() {
        let names: Vec<_> = samples.resolve(stack).map(StackFrame::name).collect();
        let line = names.join(";");
        match lines.last_mut() {
            Some((last, sum)) if *last == line => *sum = sum.saturating_add(count),
            _ => lines.push((line, count)),
        }
    }
    lines.into_iter().map(|(line, count)| format!("{line} {count}")).collect()
}

pub(super) fn write(to: &mut dyn Write, samples: &Samples) -> io::Result<()> {
    lines(samples).iter().try_for_each(|line| writeln!(to, "{line}"))
}

/// Reads a line, and counts its samples.
///
/// # Errors
/// It has no count, or too many frames.
pub(super) fn read_line(line: &str, to: &mut Samples) -> Result<(), String> {
    let parsed = line.rsplit_once(' ').and_then(|(stack, count)| Some((stack, count.parse().ok()?)));
    let (stack, count) = parsed.ok_or("a stack without a number of samples")?;
    let names: Vec<_> = stack.split(';').collect();
    if names.len() > MOST_FRAMES {
        return Err(format!("a stack of {} frames (the limit is {MOST_FRAMES})", names.len()));
    }
    let frame = |name: &str| match Part::of_name(name) {
        Part::Guest => StackFrame::guest(name, None),
        part => StackFrame::part(part, name.split_once("] ").map_or("", |(_, detail)| detail)),
    };
    to.add(names.into_iter().map(frame), count);
    Ok(())
}
