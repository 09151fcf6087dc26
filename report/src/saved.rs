//! A file of either kind, and the JSON form of an exit reason.

use crate::trace::MAGIC;
use crate::{Cut, SavedError, SavedProfile, SavedTrace};

/// The content of a profile or trace file.
#[derive(Clone, Debug, PartialEq)]
pub enum Saved {
    /// A profile.
    Profile(Box<SavedProfile>),
    /// A trace. The [`Cut`] is set if the file is cut short.
    Trace(SavedTrace, Option<Cut>),
}

impl Saved {
    /// Reads a profile or a trace. The first bytes tell which one it is.
    ///
    /// # Errors
    /// The bytes are neither a profile nor a trace, or they are damaged.
    pub fn read(bytes: &[u8]) -> Result<Self, SavedError> {
        let magic = bytes.get(..MAGIC.len()).unwrap_or(bytes);
        if !bytes.is_empty() && MAGIC.starts_with(magic) {
            let (trace, cut) = SavedTrace::read(bytes)?;
            return Ok(Self::Trace(trace, cut));
        }
        match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') => Ok(Self::Profile(SavedProfile::read(bytes)?.into())),
            _ => Err(SavedError::Neither),
        }
    }
}

/// A reason in JSON: the text that [`vmm::exit::Reason`] displays as.
pub(crate) mod reason {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;
    use std::borrow::Cow;
    use vmm::exit::Reason;

    pub(crate) fn serialize<S: Serializer>(reason: &Reason, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(reason)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Reason, D::Error> {
        let text = Cow::<str>::deserialize(from)?;
        text.parse().map_err(|error| Error::custom(format!("{error}: {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_kind_of_a_file() {
        let read = |bytes: &[u8]| Saved::read(bytes).unwrap_err();
        for other in [&b""[..], b" ", b"[]", b"\x7fELF", b"vmmtracy", &[0; 100]] {
            assert_eq!(read(other), SavedError::Neither, "{other:?}");
        }
        assert_eq!(read(b"vmm"), SavedError::CutHeader { there: 3 });
        assert!(matches!(read(b"  {"), SavedError::Damaged { what: "profile", .. }));
        // JSON of another program, such as a profile for Firefox.
        assert_eq!(read(b"  {\"meta\": {}}"), SavedError::Neither);
    }
}
