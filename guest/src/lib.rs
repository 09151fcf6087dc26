//! The guests that the VMM carries in itself: one small guest per behaviour.
//!
//! Each [`Guest`] holds its image, linked by one of the scripts in `linker/`, and says what it should do:
//! what it prints, how it ends, what it leaves behind and how many exits it makes. The tests, the grade and
//! `vmm guests` all read this one list.
//!
//! The build script compiles [`model`] and [`catalogue`] too, and builds an image for each guest that it finds there.

/// The image that the build script made for this name.
macro_rules! image {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".bin"))
    };
}

mod catalogue;
mod model;

pub use catalogue::GUESTS;
pub use model::{End, Exits, Guest, Map, Mode, MsrRule, Part};

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
    fn names_are_unique_and_images_are_there() {
        for (i, guest) in GUESTS.iter().enumerate() {
            assert!(!guest.image.is_empty(), "{} has no image", guest.name);
            assert!(!guest.about.is_empty() && guest.about.len() < 80, "{}: {}", guest.name, guest.about);
            assert!(
                GUESTS[..i].iter().all(|other| other.name != guest.name),
                "{} is there twice",
                guest.name
            );
        }
    }
}
