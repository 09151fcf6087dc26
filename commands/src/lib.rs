//! The command line of the program `vmm`: a file for each subcommand, and the text of their results.
//!
//! The package `cli` only calls [`main`]. Its level of optimisation is also that of the link, so it is the level of the exit
//! loop. The code of this package runs a few times in a run, and is optimised for size.

mod args;
#[cfg_attr(not(has_kvm), path = "bench/absent.rs")]
mod bench;
mod boot;
mod boot_files;
mod cli;
mod compare;
mod core_file;
mod debugger;
mod doctor;
mod exercise;
mod expect;
mod file_name;
mod grade;
mod guests;
#[cfg_attr(not(has_kvm), path = "jail/absent.rs")]
mod jail;
mod lab;
mod measure;
mod modules;
mod names;
#[cfg_attr(not(has_kvm), path = "observe/absent.rs")]
mod observe;
mod outcome;
mod outputs;
mod places;
mod processor;
mod progress;
mod report;
mod run;
mod sample;
mod screen;
mod stacks;
mod status;
mod step;
mod streams;
mod summary;
mod sys;
mod target;
mod terminal;

pub use cli::{command, main};
