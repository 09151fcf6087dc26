//! What can fail on the host's side. A mistake of the guest is never one of these: it is a
//! [`Stop`](crate::exit::Stop).

use crate::host::{self, host_advice};
use guest::Mode;
use kvm_ioctls::Cap;
use simvirtio::device::BadQueueLen;
use std::io;

/// A failure of the host, or of what the user asked for. Each variant names the operation and, where there
/// is something to do about it, says what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` could not be opened.
    #[error("cannot open /dev/kvm: {source}: {advice}")]
    OpenKvm {
        /// The kernel's answer.
        source: io::Error,
        /// The next step for the user.
        advice: String,
    },
    /// `/dev/kvm` is something other than KVM's device.
    #[error(
        "/dev/kvm is not KVM's device, but {found}: find out what put it there (ls -l /dev/kvm; findmnt /dev/kvm) and \
         remove it"
    )]
    NotKvm {
        /// What it is, as a noun phrase.
        found: String,
    },
    /// The kernel speaks another version of the KVM API than the stable one.
    #[error(
        "/dev/kvm has API version {found}, and this program needs version 12: use a current Linux kernel"
    )]
    ApiVersion {
        /// The version that it has.
        found: i32,
    },
    /// A KVM capability that this run cannot do without is missing.
    #[error("this host's KVM lacks {0:?}, which this run needs: use a current Linux kernel")]
    MissingCapability(Cap),
    /// A transport of SIMVIRTIO needs a capability of KVM that this host lacks.
    #[error(
        "this host's KVM lacks {capability}, which --transport {transport} needs: choose another transport, or use a \
         current Linux kernel"
    )]
    TransportNeeds {
        /// The transport's name.
        transport: &'static str,
        /// The capability's name.
        capability: &'static str,
    },
    /// A KVM operation failed.
    #[error("{operation} failed: {source}{}", kvm_advice(.operation, .source))]
    Kvm {
        /// The operation, by its name in the KVM API.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Guest memory could not be had.
    #[error(
        "cannot get {bytes:#x} bytes of memory for the guest: {reason}: free some, allow more (ulimit -v), or give the \
         guest less (--mem)"
    )]
    Memory {
        /// How much was asked for, in bytes.
        bytes: u64,
        /// Why not.
        reason: String,
    },
    /// What was asked for does not fit together.
    #[error("{0}")]
    Config(String),
    /// The image cannot be run.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A device's place on a bus is taken.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A signal asked the program to end before the guest ran.
    #[error("interrupted before the guest ran")]
    Interrupted,
    /// Some other call to the host failed.
    #[error("{operation} failed: {source}{}", host_advice(.source))]
    Host {
        /// The operation.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why an image cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is a directory, a device, a pipe.
    #[error("{path} is no regular file: give a plain file")]
    NotAFile {
        /// The file.
        path: String,
    },
    /// There is nothing in it.
    #[error("the image is empty: give a flat binary or an ELF64 file")]
    Empty,
    /// It is larger than the guest's memory.
    #[error(
        "{path} has {size} bytes, and a guest has {limit} bytes of memory: give a smaller file, or more --mem"
    )]
    TooLarge {
        /// The file.
        path: String,
        /// Its size, in bytes.
        size: u64,
        /// The most that is possible, in bytes.
        limit: u64,
    },
    /// It is an ELF file, but not one that this VMM can run.
    #[error("the ELF file {0}")]
    Elf(String),
    /// It is a Linux kernel, or goes with one, and cannot be booted.
    #[error("{file} {what}")]
    Linux {
        /// The file.
        file: String,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// It does not fit where it is to be loaded.
    #[error(
        "the image would take [{start:#x}, {end:#x}), and the guest's memory is [0x0, {ram:#x}): load it lower \
         (@ADDR, --load-at) or give the guest more memory (--mem)"
    )]
    OutsideRam {
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
        /// Size of the guest's memory, in bytes.
        ram: u64,
    },
    /// A real-mode guest cannot be entered above 64 KiB.
    #[error(
        "a real-mode guest begins below 0x10000, since its cs is 0, and not at {0:#x}: load it lower, or choose another --mode"
    )]
    BeyondRealMode(u64),
    /// A 32-bit guest cannot be entered above 4 GiB.
    #[error("a {mode}-mode guest cannot begin at {entry:#x}: load it lower")]
    BeyondMode {
        /// The mode.
        mode: Mode,
        /// The entry point.
        entry: u64,
    },
    /// Its own bytes are where the result is checked.
    #[error(
        "the image has bytes of its own at 0x400 to 0x407, where the result is verified: link it elsewhere, \
         such as at 0x1000 (FILE@0x1000), or run it without --verify"
    )]
    CoversResult,
}

/// A device's range cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Another device has a part of it.
    #[error(
        "the range from {first:#x} to {last:#x} overlaps that of another device: give the device another place"
    )]
    Overlap {
        /// First port or address.
        first: u64,
        /// Last port or address.
        last: u64,
    },
    /// It is empty, or goes past the last address.
    #[error(
        "a range of {len:#x} from {first:#x} is empty or goes past the bus's end: give the device another place"
    )]
    Range {
        /// First port or address.
        first: u64,
        /// How many there are.
        len: u64,
    },
}

impl Error {
    /// Wraps the error of a KVM operation, for `map_err`.
    pub(crate) fn kvm(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| match error.errno() {
            libc::EINTR if host::interrupted() => Self::Interrupted,
            errno => Self::Kvm { operation, source: io::Error::from_raw_os_error(errno) },
        }
    }

    /// Wraps the error of another host call, for `map_err`.
    pub(crate) fn host(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { operation, source }
    }
}

impl From<BadQueueLen> for Error {
    fn from(bad: BadQueueLen) -> Self {
        Self::Config(format!("{bad}: choose another --queue-len"))
    }
}

/// What to do where an operation of KVM fails, if that is known.
fn kvm_advice(operation: &str, error: &io::Error) -> &'static str {
    match (operation, error.raw_os_error()) {
        ("KVM_CREATE_VM", Some(libc::EBUSY)) => {
            ": another hypervisor (such as VirtualBox) has the processor's virtualisation: stop its guests"
        }
        (_, Some(libc::EMFILE | libc::ENFILE)) => ": allow more open files (ulimit -n)",
        (_, Some(libc::ENOMEM)) => ": free memory, or give the guest less (--mem)",
        ("KVM_RUN", Some(libc::EAGAIN)) => ": the host has no thread left for KVM (ulimit -u)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failed_operation_of_kvm_has_its_advice() {
        let said = |operation, errno| Error::kvm(operation)(kvm_ioctls::Error::new(errno)).to_string();
        for (operation, errno, text) in [
            ("KVM_CREATE_VM", libc::EBUSY, "another hypervisor (such as VirtualBox)"),
            ("KVM_CREATE_VM", libc::EMFILE, "ulimit -n"),
            ("KVM_CREATE_VCPU", libc::ENFILE, "ulimit -n"),
            ("KVM_CREATE_VM", libc::ENOMEM, "give the guest less (--mem)"),
            ("KVM_RUN", libc::EAGAIN, "no thread left for KVM (ulimit -u)"),
        ] {
            let said = said(operation, errno);
            assert!(said.starts_with(operation) && said.contains(text), "{errno}: {said}");
        }
    }
}
