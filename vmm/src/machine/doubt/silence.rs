//! Flat binaries that printed nothing that can be read, although they hold a text and code that prints.
//!
//! A flat binary does not say where it belongs, nor for which mode it is. Its jumps are relative, so it runs anywhere, but
//! it finds its data only at the address of its link. The search looks at the addresses that its code reads through: if
//! none of them is in the image, but one would be the beginning of a text in it at another address, the image belongs
//! there. If the code prints a text only when it is decoded for another mode, it belongs to that mode. A number that is
//! only computed with is no evidence, nor is a text in an image without code that prints.

use super::code::Code;
use super::{Doubt, EXCERPT};
use crate::boot::Image;
use crate::memory::PLAIN_RAM;
use crate::x86::modes::Mode;

/// The largest file that is looked at, in bytes.
const MAX_FILE: usize = 1 << 20;
/// Addresses for which images are linked are multiples of this.
const ALIGNMENT: u64 = 0x100;
/// The address for which most guests are linked.
const USUAL_ADDRESS: u64 = 0x1000;

/// The cause of a silence. `printed` is the number of bytes that were printed, none of which can be read. `None` for
/// images that are not flat binaries, and if the code is not clear.
pub(super) fn silence(image: &Image, printed: u64) -> Option<Doubt> {
    let (start, bytes) = image.flat_file().filter(|(_, bytes)| bytes.len() <= MAX_FILE)?;
    let code = Code::of(bytes, start, image.mode())?;
    let blank = || {
        let has_text = code.prints && !code.texts(bytes).is_empty();
        (printed > 0 && has_text).then_some(Doubt::BlankOutput(printed))
    };
    let found = match expected_text(&code, start, bytes, image.mode()) {
        // It finds its text.
        Some(text) if text.load_at == start => None,
        Some(ExpectedText { text, expected, actual, load_at }) => {
            Some(Doubt::MisplacedText { text, expected, actual, load_at })
        }
        None if code.prints && uses_image(&code, start, bytes) => None,
        None => other_mode(image.mode(), start, bytes),
    };
    found.or_else(blank)
}

/// A text to which a pointer of the code leads, if the image is at the right address.
struct ExpectedText {
    text: String,
    expected: u64,
    actual: u64,
    load_at: u64,
}

fn uses_image(code: &Code, start: u64, bytes: &[u8]) -> bool {
    let end = start.saturating_add(bytes.len() as u64);
    code.addresses().iter().any(|address| (start..end).contains(address))
}

/// The first text that the code expects, at the image's own address or at another one. `None` if the code does not print,
/// or if it uses other data of the image, which is then at its place.
fn expected_text(code: &Code, start: u64, bytes: &[u8], mode: Mode) -> Option<ExpectedText> {
    if !code.prints {
        return None;
    }
    let texts = code.texts(bytes);
    let highest = if mode == Mode::Real { 0xffff } else { PLAIN_RAM };
    let is_placed = uses_image(code, start, bytes);
    code.addresses().into_iter().find_map(|expected| {
        texts.iter().find_map(|(offset, text)| {
            let load_at = expected.checked_sub(*offset)?;
            let is_plausible = load_at.is_multiple_of(ALIGNMENT) && load_at <= highest;
            (is_plausible && (!is_placed || load_at == start)).then(|| ExpectedText {
                text: text.chars().take(EXCERPT).collect(),
                expected,
                actual: start.saturating_add(*offset),
                load_at,
            })
        })
    })
}

/// The other modes in which the code prints a text of the image. `None` if there are none.
fn other_mode(own: Mode, start: u64, bytes: &[u8]) -> Option<Doubt> {
    let found = [(Mode::Protected, ":32"), (Mode::Long, ":64"), (Mode::Real, ":16")].into_iter().filter_map(
        |(mode, option)| {
            let is_own = mode == own || (mode, own) == (Mode::Long, Mode::User);
            let code = Code::of(bytes, start, mode).filter(|_| !is_own)?;
            let text = expected_text(&code, start, bytes, mode)?;
            let is_at_place = text.load_at == start || (start == 0 && text.load_at == USUAL_ADDRESS);
            is_at_place.then_some((text, option))
        },
    );
    let found: Vec<_> = found.collect();
    let modes = found.iter().map(|(_, option)| *option).collect();
    let (text, _) = found.into_iter().next()?;
    Some(Doubt::OtherMode { text: text.text, modes, load_at: text.load_at })
}
