//! Digests that tell exercises and lists apart. They are the same on all hosts of one version of the program.

use ::exercise::Exercise;
use std::fmt::{self, Write as _};

/// The digest of all that an exercise says, with the content of the files that it names.
pub fn digest(exercise: &Exercise) -> u64 {
    let mut hash = Fnv::default();
    // A hash cannot fail.
    let _ = write!(hash, "{exercise:?}");
    hash.0
}

/// The digest of a list of names.
pub fn of_names<'a>(names: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut hash = Fnv::default();
    for name in names {
        // Names have no line ends.
        let _ = writeln!(hash, "{name}");
    }
    hash.0
}

/// FNV-1a with 64 bits: it finds mistakes, and not malice.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::exercise::read::Files;

    #[test]
    fn the_digest_is_that_of_the_published_function() {
        let mut hash = Fnv::default();
        hash.write_str("foobar").unwrap();
        assert_eq!(hash.0, 0x8594_4171_f739_67e8);
        assert_ne!(of_names(["a", "b"]), of_names(["b", "a"]));
        assert_ne!(of_names(["ab"]), of_names(["a", "b"]));
    }

    #[test]
    fn each_change_of_an_exercise_changes_its_digest() {
        let text = ::exercise::file::EXAMPLE;
        let of = |text: &str| digest(&Exercise::parse(text, Files::Embedded(&[])).unwrap());
        // Mistakes have places, so a comment at the end changes nothing, and one before them does.
        assert_eq!(of(text), of(&format!("{text}\n# a comment\n")));
        let changed = text.replace("points = 60", "points = 61");
        assert!(text != changed && of(text) != of(&changed));
    }
}
