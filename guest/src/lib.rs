//! The guests that are built into the VMM: one small guest per behaviour.
//!
//! Each [`Guest`] has an image, linked by one of the scripts in `linker/`, and the expected behaviour: output, end,
//! result and number of exits. The tests, `vmm grade` and `vmm guests` all read [`GUESTS`].
//!
//! The modules `catalogue` and `model` are also part of the build script (`build.rs`), which builds one image per
//! source.

/// Returns the image that the build script has made for this name.
macro_rules! image {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".bin"))
    };
}

mod catalogue;
pub mod hidden;
mod model;

pub use catalogue::GUESTS;
pub use model::{End, Exits, Guest, Map, Mode, MsrRule, Part, UnknownMode};

/// The flat image that `vmm compare` runs, in long mode or in ring 3, at 0x1000. It does not run by itself: its
/// parameters have to be in memory (`docs/compare.md`).
pub const COMPARE: &[u8] = catalogue::COMPARE.image;

/// Returns the embedded guest of this name.
pub fn find(name: &str) -> Option<&'static Guest> {
    GUESTS.iter().find(|guest| guest.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_guest_has_a_unique_name_a_short_description_and_an_image() {
        for (i, guest) in GUESTS.iter().enumerate() {
            assert!(!guest.image.is_empty(), "{} has no image", guest.name);
            assert!(!guest.about.is_empty() && guest.about.len() < 80, "{}: {}", guest.name, guest.about);
            assert!(
                GUESTS[..i].iter().all(|other| other.name != guest.name),
                "two guests have the name {}",
                guest.name
            );
        }
    }
}
