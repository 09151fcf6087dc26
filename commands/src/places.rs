//! The names of the places in a guest's code: the function and the line where it died, and the callers.

use debug::{MAX_FRAMES, Place, Registers, Source, Stack, Symbols, backtrace};
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use vmm::host::{printable, printable_text};
use vmm::machine::Frame;

/// The largest source file of which a line is shown, in bytes.
const MAX_SOURCE: u64 = 16 << 20;
/// The most characters that are shown of a line.
const MAX_LINE: usize = 120;

/// The lines about a frame and its callers.
pub fn lines(frame: &Frame, symbols: &Symbols) -> String {
    let mut text = String::new();
    let place = symbols.place(frame.rip);
    // Writing to a String cannot fail.
    let _ = match &place {
        Some(place) => writeln!(text, "  function     {place}"),
        None => writeln!(
            text,
            "  function     none: {:#x} is outside the functions of {}",
            frame.rip,
            symbols.name()
        ),
    };
    if let Some((number, line)) = place.as_ref().and_then(Place::source).and_then(source_line) {
        let _ = writeln!(text, "  source       {number} | {line}");
    }
    let Frame { rip, rsp, rbp, rbx, width, .. } = *frame;
    // In real mode, addresses on the stack are relative to their segments.
    if width < 4 {
        return text;
    }
    let registers = Registers { rip, rsp, rbp, rbx, width };
    let callers = backtrace(&registers, Stack { start: rsp, bytes: &frame.stack }, symbols);
    for (number, returns_to) in callers.iter().enumerate() {
        let label = if number == 0 { "called from" } else { "" };
        // The call itself is before the address to which it returns.
        let place = symbols
            .place(returns_to.wrapping_sub(1))
            .map(|place| Place { offset: place.offset.saturating_add(1), ..place });
        let name = place.map_or_else(|| format!("{returns_to:#x}"), |place| place.to_string());
        let _ = writeln!(text, "  {label:<11}  {name}");
    }
    if callers.len() == MAX_FRAMES {
        let _ = writeln!(text, "  {:<11}  and more, which are not shown", "");
    }
    text
}

/// The number and the text of a source line, if the file is on this computer.
fn source_line(source: &Source) -> Option<(u32, String)> {
    let number = source.line?;
    let path = Path::new(&source.file);
    // The name comes from the guest's file, so it may be that of a device or a pipe.
    let is_text = path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_SOURCE);
    let mut bytes = Vec::new();
    File::open(path).ok().filter(|_| is_text)?.take(MAX_SOURCE).read_to_end(&mut bytes).ok()?;
    let index = usize::try_from(number.checked_sub(1)?).ok()?;
    let line = String::from_utf8_lossy(bytes.split(|byte| *byte == b'\n').nth(index)?).into_owned();
    let line: String = line.replace('\t', "    ").trim_end().chars().take(MAX_LINE).collect();
    log::debug!("{}: line {number}", printable(path));
    Some((number, printable_text(&line).to_string()))
}
