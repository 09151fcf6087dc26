//! Profile and trace files of VM exits, and reports about them.
//!
//! A run of the program `vmm` can leave two kinds of files. A **profile** ([`SavedProfile`], JSON) counts and times the
//! exits by site. A **trace** ([`SavedTrace`], binary) lists the last exits one by one. `docs/formats.md` specifies
//! both.
//!
//! * [`read()`] reads a file of either kind into a [`Saved`]. [`Saved::read`] does the same with bytes.
//! * [`Measured`] builds them, from the [`vmm::Report`] of a run or from other measurements, and their `write` methods
//!   write the files. An [`OutputFile`] replaces an existing file only once the new one is complete.
//! * [`view::write`] writes a report about one file, or about the difference of two, as text, JSON, CSV or an HTML page.
//!
//! This example prints a line for each site of a profile. A trace is first summed up by site:
//!
//! ```
//! use report::{FileError, Saved};
//! use std::path::Path;
//!
//! fn print_sites(path: &Path) -> Result<(), FileError> {
//!     let profile = match report::read(path)? {
//!         Saved::Profile(profile) => *profile,
//!         Saved::Trace(trace, _) => trace.profile(),
//!     };
//!     for site in &profile.machine.sites {
//!         let (kvm, vmm) = (site.in_kvm.mean(), site.in_vmm.mean());
//!         println!("{}: {} exits, mean {kvm} ns in KVM and {vmm} ns in the VMM", site.name(), site.exits);
//!     }
//!     Ok(())
//! }
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("exits.json");
//! # let site = report::profile::SavedSite {
//! #     reason: vmm::exit::Reason::Hlt, place: None, width: None, device: None, exits: 1, elements: 1,
//! #     in_kvm: Default::default(), in_vmm: Default::default(),
//! # };
//! # let machine = report::profile::SavedVcpu { exits: 1, elements: 1, sites: vec![site], ..Default::default() };
//! # let vcpus = vec![machine.clone()];
//! # let profile = report::SavedProfile { machine, vcpus, ..Default::default() };
//! # let mut file = report::OutputFile::open(&path)?;
//! # profile.write(&mut file)?;
//! # file.commit()?;
//! # print_sites(&path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Files are not trusted. Reading one returns its content or a [`SavedError`], never panics, and needs at most a few
//! times the file's size in memory.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

mod capture;
mod code;
mod error;
mod file;
mod origin;
pub mod profile;
mod saved;
pub mod setup;
pub mod stacks;
mod summary;
pub mod trace;
pub mod view;

pub use capture::{Devices, Measured, MeasuredVcpu, addresses};
pub use code::{MOST_NAME_TEXT, MOST_NAMES, SavedAddress, SavedName};
pub use error::{FileError, SavedError};
pub use file::{OutputFile, read, replaced_place};
pub use origin::SavedOrigin;
pub use profile::SavedProfile;
pub use saved::Saved;
pub use setup::SavedSetup;
pub use stacks::{Samples, SavedSamples};
pub use trace::{Cut, SavedTrace};
