//! The name of a flat binary with its address and its mode, `FILE[@ADDR][:MODE]` or `FILE@SEG:OFF`.

use crate::host::parse_number;
use crate::x86::modes::Mode;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The parts of `FILE[@ADDR][:MODE]`. In real mode ADDR may be a segment and an offset, `SEG:OFF`. The names of modes come
/// first: `:16`, `:32` and `:64` are modes, and the offset 16 is `0x10`.
///
/// ```
/// use std::ffi::OsStr;
/// use vmm::boot::ImageSpec;
/// use vmm::x86::Mode;
///
/// let spec = ImageSpec::parse(OsStr::new("guest.bin@0x1000:32"));
/// assert_eq!((spec.file.to_str(), spec.load_at), (Some("guest.bin"), Some(0x1000)));
/// assert_eq!(spec.mode, Some(Mode::Protected));
/// let spec = ImageSpec::parse(OsStr::new("guest.bin@0x1000:0x20"));
/// assert_eq!((spec.load_at, spec.segment, spec.mode), (Some(0x1_0020), Some(0x1000), None));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// The path of the file.
    pub file: OsString,
    /// The guest physical address at which the file is loaded.
    pub load_at: Option<u64>,
    /// The segment of real mode, if the address is given as a segment and an offset.
    pub segment: Option<u16>,
    /// The mode in which the guest starts.
    pub mode: Option<Mode>,
}

impl ImageSpec {
    /// Splits `text`. If a file has the whole text as its name, it is that file.
    pub fn parse(text: &OsStr) -> Self {
        let whole = Self { file: text.to_owned(), load_at: None, segment: None, mode: None };
        if Path::new(text).exists() {
            return whole;
        }
        let (mut rest, mut spec) = (text, whole);
        if let Some((file, mode)) = suffix(rest, b':', |word| word.parse::<Mode>().ok()) {
            (spec.mode, rest) = (Some(mode), file);
        }
        if let Some((file, (segment, address))) = suffix(rest, b'@', place) {
            (spec.segment, spec.load_at, rest) = (segment, Some(address), file);
        }
        spec.file = rest.into();
        spec
    }
}

/// Parses an address, or a segment and an offset of 16 bits each.
fn place(word: &str) -> Option<(Option<u16>, u64)> {
    let half = |word| parse_number(word).ok().and_then(|number| u16::try_from(number).ok());
    match word.split_once(':') {
        None => Some((None, parse_number(word).ok()?)),
        Some((segment, offset)) => {
            let (segment, offset) = (half(segment)?, half(offset)?);
            Some((Some(segment), (u64::from(segment) << 4).saturating_add(offset.into())))
        }
    }
}

/// Splits `text` at the last `mark`. Returns the part before it and the value after it; `None` if `parse` fails.
fn suffix<T>(text: &OsStr, mark: u8, parse: impl Fn(&str) -> Option<T>) -> Option<(&OsStr, T)> {
    let bytes = text.as_bytes();
    let at = bytes.iter().rposition(|byte| *byte == mark)?;
    let (before, rest) = bytes.split_at_checked(at)?;
    let word = str::from_utf8(rest.get(1..)?).ok()?;
    Some((OsStr::from_bytes(before), parse(word)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> (String, Option<u64>, Option<Mode>) {
        let spec = ImageSpec::parse(OsStr::new(text));
        (spec.file.into_string().unwrap(), spec.load_at, spec.mode)
    }

    #[test]
    fn an_address_and_a_mode_follow_the_name_of_a_file() {
        let file = |name: &str, address, mode| (name.to_string(), address, mode);
        assert_eq!(spec("a.bin"), file("a.bin", None, None));
        assert_eq!(spec("a.bin@0x1000"), file("a.bin", Some(0x1000), None));
        assert_eq!(spec("a.bin:long"), file("a.bin", None, Some(Mode::Long)));
        assert_eq!(spec("a.bin@4096:32"), file("a.bin", Some(4096), Some(Mode::Protected)));
        assert_eq!(spec("b@c:d"), file("b@c:d", None, None));
        assert_eq!(spec("b@c@1:16"), file("b@c", Some(1), Some(Mode::Real)));
        let odd = ImageSpec::parse(OsStr::from_bytes(b"\xff@0x10:16"));
        assert_eq!(
            (odd.file.as_bytes(), odd.load_at, odd.mode),
            (&b"\xff"[..], Some(0x10), Some(Mode::Real))
        );
    }

    #[test]
    fn an_address_may_be_a_segment_and_an_offset() {
        for (text, load_at, segment, mode) in [
            ("a@0x1000:0x0000", Some(0x1_0000), Some(0x1000), None),
            ("a@0x1000:0", Some(0x1_0000), Some(0x1000), None),
            ("a@0xffff:0xffff", Some(0x10_ffef), Some(0xffff), None),
            ("a@0x1000:0x10:16", Some(0x1_0010), Some(0x1000), Some(Mode::Real)),
            // The names of modes come first.
            ("a@0x1000:16", Some(0x1000), None, Some(Mode::Real)),
            ("a@0x1000:64", Some(0x1000), None, Some(Mode::Long)),
        ] {
            let spec = ImageSpec::parse(OsStr::new(text));
            assert_eq!((spec.load_at, spec.segment, spec.mode), (load_at, segment, mode), "{text}");
            assert_eq!(spec.file, "a");
        }
        for text in ["a@0x10000:0", "a@0:0x10000", "a@1:2:3", "a@:1", "a@1:"] {
            assert_eq!(ImageSpec::parse(OsStr::new(text)).file, text);
        }
    }

    #[test]
    fn a_file_whose_name_contains_an_address_and_a_mode_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a@1:16");
        std::fs::write(&path, [0xf4]).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(spec(path), (path.to_string(), None, None));
    }
}
