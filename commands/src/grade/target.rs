//! The guest that a check of the grade runs: the student's image, or a built-in guest.

use crate::grade::{Evidence, wrong};
use crate::target::RunTarget;
use guest::Guest;
use std::ffi::OsStr;
use vmm::boot::list_ranges;
use vmm::memory::PLAIN_RAM;
use vmm::x86::Mode;
use vmm::{Error, ImageError};

/// Returns a built-in guest. Its name says that it is one.
///
/// # Errors
/// Its image is empty, which the build prevents.
pub(super) fn built_in(guest: &'static Guest) -> Result<RunTarget, Error> {
    let target = RunTarget::embedded(guest)?;
    Ok(RunTarget { name: format!("{} (built-in guest)", guest.name), ..target })
}

/// Reads a student's image. A flat binary without a mode is entered in `default_mode`. It must lie below the address
/// `limit`.
///
/// # Errors
/// The file cannot be read or run, or lies elsewhere. The advice names no option that `vmm grade` lacks.
pub(super) fn student(image: &OsStr, default_mode: Mode, limit: u64) -> Result<RunTarget, Error> {
    let target = RunTarget::find_file(image, default_mode).map_err(|error| match error {
        Error::Image(ImageError::TooLarge { path, size, limit }) => Error::Config(format!(
            "{path} is too large: it has {size} bytes, and at most {limit} fit into the guest's memory: give a smaller \
             file"
        )),
        error => error,
    })?;
    if target.image.segments().iter().all(|segment| segment.end() <= limit) {
        return Ok(target);
    }
    let kind = if limit < PLAIN_RAM { "a SIMVIRTIO guest" } else { "a guest" };
    Err(Error::Config(format!(
        "{} lies at {}, and {kind} must lie below {limit:#x}: link it with -Wl,-Ttext-segment=0x1000, or load a flat binary \
         at FILE@0x1000",
        target.name,
        list_ranges(&target.image.ranges())
    )))
}

/// Evidence that a guest starts in the wrong mode.
pub(super) fn wrong_mode(target: &RunTarget, needed: &str, example: Mode) -> Evidence {
    wrong(format!(
        "{}: needs to start in {needed} mode, not in {} mode: give a flat binary (nasm -f bin) as FILE[@ADDR]:{example}",
        target.name,
        target.image.mode(),
    ))
}
