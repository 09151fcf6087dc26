//! The courses of `vmm lab`: what a reader gets, and what the checks and hints are.
//!
//! The files are in `lab/courses`, a folder for each course, in which each exercise has a folder such as `05-real-mode`. They are our
//! solutions, with marked parts ([`skeleton`]). The build packs the skeletons, so the program does not have the solutions.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

mod course;
pub mod skeleton;

pub use course::{Course, Damaged, Exercise, Language, NAMES, Task};
