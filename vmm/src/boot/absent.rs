//! Linux kernels on hosts without KVM: none can be opened. The interface is that of `linux.rs`.

use crate::error::ImageError;
use crate::host::printable;
use std::path::Path;

/// A kernel file. There is none on this host.
#[derive(Debug)]
pub enum Kernel {}

impl Kernel {
    /// Refuses the kernel.
    ///
    /// # Errors
    /// Always.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let what = "cannot be booted, because Linux guests need KVM and so an x86-64 Linux host: boot it there, and run small \
                    guests on this host";
        Err(ImageError::Linux { file: printable(path), what: what.into() })
    }

    /// True for Linux.
    pub fn is_linux(&self) -> bool {
        match *self {}
    }

    /// The path of the file, in printable form.
    pub fn name(&self) -> &str {
        match *self {}
    }
}
