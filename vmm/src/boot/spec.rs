//! The name of a flat binary with its address and its mode, `FILE[@ADDR][:MODE]`.

use crate::host::parse_number;
use crate::x86::modes::Mode;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The parts of `FILE[@ADDR][:MODE]`.
///
/// ```
/// use std::ffi::OsStr;
/// use vmm::boot::ImageSpec;
/// use vmm::x86::Mode;
///
/// let spec = ImageSpec::parse(OsStr::new("guest.bin@0x1000:32"));
/// assert_eq!((spec.file.to_str(), spec.load_at), (Some("guest.bin"), Some(0x1000)));
/// assert_eq!(spec.mode, Some(Mode::Protected));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// The path of the file.
    pub file: OsString,
    /// The guest physical address at which the file is loaded.
    pub load_at: Option<u64>,
    /// The mode in which the guest starts.
    pub mode: Option<Mode>,
}

impl ImageSpec {
    /// Splits `text`. If a file has the whole text as its name, it is that file.
    pub fn parse(text: &OsStr) -> Self {
        let whole = Self { file: text.to_owned(), load_at: None, mode: None };
        if Path::new(text).exists() {
            return whole;
        }
        let (mut rest, mut spec) = (text, whole);
        if let Some((file, mode)) = suffix(rest, b':', |word| word.parse::<Mode>().ok()) {
            (spec.mode, rest) = (Some(mode), file);
        }
        if let Some((file, address)) = suffix(rest, b'@', |word| parse_number(word).ok()) {
            (spec.load_at, rest) = (Some(address), file);
        }
        spec.file = rest.into();
        spec
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
    fn a_file_whose_name_contains_an_address_and_a_mode_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a@1:16");
        std::fs::write(&path, [0xf4]).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(spec(path), (path.to_string(), None, None));
    }
}
