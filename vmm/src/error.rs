//! Errors of the host and of the user's request. A fault of the guest is never one of these: it is a
//! [`Stop`](crate::exit::Stop).
//!
//! Imports: the reasons for the end of a run, host functions.

mod image;

pub use image::ImageError;

use crate::exit::Stop;
use crate::host::{self, format_size, host_advice, is_shortage};
use simvirtio::device::BadQueueLen;
use std::io;

/// An error of the host or of the user's request. Each message names what is wrong, and the next step if one is known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` could not be opened.
    #[error("cannot open /dev/kvm: {source}: {advice}")]
    OpenKvm {
        /// The kernel's error.
        source: io::Error,
        /// The next step for the user.
        advice: String,
    },
    /// `/dev/kvm` is not KVM's device.
    #[error(
        "/dev/kvm is not KVM's device, but {found}: find out what put it there (ls -l /dev/kvm; findmnt /dev/kvm) and \
         remove it"
    )]
    NotKvm {
        /// A noun phrase for the actual file.
        found: String,
    },
    /// The kernel's KVM API does not have the stable version.
    #[error(
        "/dev/kvm has API version {found}, and this program needs version 12: use a current Linux kernel"
    )]
    ApiVersion {
        /// The kernel's version of the API.
        found: i32,
    },
    /// This program was built for a host that has no KVM.
    #[error(
        "this host has no KVM, because this program was built for {} on {}, and KVM needs Linux on x86-64",
        std::env::consts::OS,
        std::env::consts::ARCH
    )]
    NoKvm,
    /// KVM lacks a capability that this run needs.
    #[error("this host's KVM lacks {0}, which this run needs: use a current Linux kernel")]
    MissingCapability(String),
    /// KVM lacks a capability that this SIMVIRTIO transport needs.
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
        /// The operation's name in the KVM API.
        operation: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// KVM refused segment and control registers, which break rules of the processor.
    #[error("KVM_SET_SREGS failed: {source}: {}", broken.join("; "))]
    RefusedRegisters {
        /// The kernel's error.
        source: io::Error,
        /// A sentence for each broken rule ([`Finding`](crate::x86::state_check::Finding)).
        broken: Vec<String>,
    },
    /// KVM cannot be used, and Linux needs it.
    #[error(
        "{0}; Linux needs KVM, and the software processor is for small guests: `make testbed` runs Linux without KVM"
    )]
    LinuxNeedsKvm(Box<Error>),
    /// Guest memory could not be allocated.
    #[error(
        "cannot allocate {} of guest memory: {reason}: free memory, raise the limit (ulimit -v), or choose \
         a smaller --mem", format_size(*.bytes)
    )]
    Memory {
        /// The size of the memory, in bytes.
        bytes: u64,
        /// The reason for the failure.
        reason: String,
    },
    /// The requested configuration is not possible.
    #[error("{0}")]
    Config(String),
    /// The image cannot be run.
    #[error(transparent)]
    Image(ImageError),
    /// A file could not be read, because the host lacks a resource.
    #[error("cannot read {path}: {source}{}", host_advice(.source))]
    Read {
        /// The path of the file.
        path: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A device could not be attached to a bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A signal ended the program before the guest ran.
    #[error("interrupted before the guest ran")]
    Interrupted,
    /// Another operation of the host failed.
    #[error("{operation} failed: {source}{}", host_advice(.source))]
    Host {
        /// The name of the operation.
        operation: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

/// The reason why a device cannot be attached to a range of a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range overlaps that of another device.
    #[error("the range from {first:#x} to {last:#x} overlaps that of another device: choose another range")]
    Overlap {
        /// The first port or address.
        first: u64,
        /// The last port or address.
        last: u64,
    },
    /// The range is empty, or ends past the last address of the bus.
    #[error(
        "the range of length {len:#x} from {first:#x} is empty or ends past the last address: choose another range"
    )]
    Range {
        /// The first port or address.
        first: u64,
        /// The number of ports or addresses.
        len: u64,
    },
}

impl Error {
    /// Wraps the error of a KVM operation, for `map_err`.
    pub(crate) fn kvm<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |error| match error.into() {
            source if source.kind() == io::ErrorKind::Interrupted && host::interrupted() => Self::Interrupted,
            source => Self::Kvm { operation, source },
        }
    }

    /// True if KVM is not usable on this host. False if the host only lacks a resource, such as a file descriptor.
    pub(crate) fn is_kvm_missing(&self) -> bool {
        match self {
            Self::OpenKvm { source, .. } | Self::Kvm { source, .. } => !is_shortage(source),
            Self::NoKvm | Self::NotKvm { .. } | Self::ApiVersion { .. } | Self::MissingCapability(_) => true,
            _ => false,
        }
    }

    /// Wraps the error of another operation of the host, for `map_err`.
    pub(crate) fn host(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { operation, source }
    }
}

/// A file that cannot be read because the host lacks a resource is not a bad image.
impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Read { path, source } if is_shortage(&source) => Self::Read { path, source },
            error => Self::Image(error),
        }
    }
}

/// The end of a run whose host failed in the middle.
impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error {
            Error::Interrupted => Self::Interrupted,
            error => Self::host(error),
        }
    }
}

impl From<BadQueueLen> for Error {
    fn from(bad: BadQueueLen) -> Self {
        Self::Config(format!("{bad}: choose another --queue-len"))
    }
}

/// The advice for a failed KVM operation; empty if none is known.
fn kvm_advice(operation: &str, error: &io::Error) -> &'static str {
    match (operation, error.raw_os_error()) {
        ("KVM_CREATE_VM", Some(libc::EBUSY)) => {
            ": another hypervisor (such as VirtualBox) uses the processor's virtualisation: stop its guests"
        }
        (_, Some(libc::EMFILE | libc::ENFILE)) => ": allow more open files (ulimit -n)",
        (_, Some(libc::ENOMEM)) => ": free memory, or choose a smaller --mem",
        ("KVM_RUN", Some(libc::EAGAIN)) => ": the host has no thread left for KVM (ulimit -u)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_resources_is_not_a_bad_image() {
        let read = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            Error::from(ImageError::Read { path: "kernel".into(), source })
        };
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            assert!(matches!(read(errno), Error::Read { .. }), "{errno}");
        }
        assert!(read(libc::EMFILE).to_string().ends_with("allow more open files (ulimit -n)"));
        assert!(matches!(read(libc::ENOENT), Error::Image(_)));
    }

    #[test]
    fn failed_kvm_operations_give_advice() {
        let message =
            |operation, errno| Error::kvm(operation)(io::Error::from_raw_os_error(errno)).to_string();
        for (operation, errno, text) in [
            ("KVM_CREATE_VM", libc::EBUSY, "another hypervisor (such as VirtualBox)"),
            ("KVM_CREATE_VM", libc::EMFILE, "ulimit -n"),
            ("KVM_CREATE_VCPU", libc::ENFILE, "ulimit -n"),
            ("KVM_CREATE_VM", libc::ENOMEM, "choose a smaller --mem"),
            ("KVM_RUN", libc::EAGAIN, "no thread left for KVM (ulimit -u)"),
        ] {
            let message = message(operation, errno);
            assert!(message.starts_with(operation) && message.contains(text), "{errno}: {message}");
        }
    }
}
