//! The table of guests. The build script compiles it to build the images, and the crate compiles it as its catalogue.
//!
//! A row is `guest!(NAME, SOURCE, Guest { ... })`. SOURCE is a file below `guest/payloads`, or `image_of(NAME)` for a
//! guest that shares the image of another one. The mode and the memory map select the linker script. To add a guest,
//! write its source and add a row.

use crate::model::{End, Exits, Guest, Map, Mode, Part};

/// Makes a row. `image!` comes from the crate that compiles this file, because the build script has no images yet.
macro_rules! guest {
    ($name:literal, image_of($image:literal), $rest:expr) => {
        Guest { name: $name, source: None, image: image!($image), ..$rest }
    };
    ($name:literal, $source:literal, $rest:expr) => {
        Guest { name: $name, source: Some($source), image: image!($name), ..$rest }
    };
}

mod hostile;
mod kev;
mod modes;
mod simvirtio;

/// The values that most guests share.
const BASE: Guest = Guest {
    name: "",
    source: None,
    defines: &[],
    about: "",
    image: &[],
    load_at: 0x1000,
    mode: Mode::Long,
    map: Map::So2,
    cpuid: false,
    cpus: 1,
    kev: false,
    msrs: &[],
    loses_stores: false,
    struct_layout: false,
    queue_len: None,
    input: "",
    output: "",
    end: End::FortyTwo,
    exits: Exits::Exactly(1),
    polling_exits: None,
    part: Part::Example,
};
const REAL: Guest = Guest { mode: Mode::Real, ..BASE };
const PROTECTED: Guest = Guest { mode: Mode::Protected, ..BASE };
const USER: Guest = Guest { mode: Mode::User, ..BASE };
const KEV: Guest = Guest { kev: true, ..BASE };
const TEST: Guest = Guest { part: Part::Test, ..BASE };

/// The guest of `vmm compare`. It is not in the list, because it needs parameters in memory.
pub const COMPARE: Guest = guest!("compare", "compare.asm", BASE);

/// The hidden guests of `vmm grade --vmm`. They are not in the list, because they are templates (`hidden.rs`).
pub const HIDDEN: [Guest; 5] = [
    guest!("hidden-text16", "hidden/text16.asm", REAL),
    guest!("hidden-text32", "hidden/text32.asm", PROTECTED),
    guest!("hidden-text64", "hidden/text64.asm", BASE),
    guest!("hidden-driver32", "hidden/driver32.asm", PROTECTED),
    guest!("hidden-driver64", "hidden/driver64.asm", BASE),
];

const GROUPS: &[&[Guest]] = &[modes::GUESTS, simvirtio::GUESTS, kev::GUESTS, hostile::GUESTS];

/// All embedded guests.
pub const GUESTS: &[Guest] = &joined::<
    { modes::GUESTS.len() + simvirtio::GUESTS.len() + kev::GUESTS.len() + hostile::GUESTS.len() },
>();

/// Joins the groups to one list of `N` guests. A wrong `N` does not compile.
const fn joined<const N: usize>() -> [Guest; N] {
    let mut all = [BASE; N];
    let (mut group, mut next) = (0, 0);
    while group < GROUPS.len() {
        let mut index = 0;
        while index < GROUPS[group].len() {
            all[next] = GROUPS[group][index];
            (index, next) = (index + 1, next + 1);
        }
        group += 1;
    }
    assert!(next == N);
    all
}
