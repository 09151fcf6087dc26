//! Virtio devices on hosts without KVM, which have no Linux guests: there are none. The interface is that of `mod.rs`.

use crate::error::Error;
use crate::exit::Stop;
use crate::shutdown::{Deadline, StopHandle};
use std::path::Path;
use std::sync::Arc;

/// A disk. There is none on this host.
#[derive(Debug)]
pub enum Disk {}

impl Disk {
    /// Refuses the disk.
    ///
    /// # Errors
    /// Always.
    pub fn open(_path: &Path, _read_only: bool) -> Result<Self, Error> {
        Err(Error::NoKvm)
    }

    /// The same for an image that is raw, even if its first or last bytes are those of another format.
    ///
    /// # Errors
    /// Always.
    pub fn open_raw(path: &Path, read_only: bool) -> Result<Self, Error> {
        Self::open(path, read_only)
    }
}

/// A virtio device. There is none on this host.
#[derive(Debug)]
pub(crate) enum Mmio {}

impl Mmio {
    pub(crate) fn begin_run(&mut self, _deadline: Deadline, _stop_handle: Arc<StopHandle>) {
        match *self {}
    }

    pub(crate) fn stop(&mut self) -> Result<(), Stop> {
        match *self {}
    }
}
