//! What can fail on the host's side. A mistake of the guest is never one of these: it is a
//! [`Stop`](crate::exit::Stop).

use crate::boot::ImageError;
use crate::bus::BusError;
use crate::saved::SavedError;
use crate::sys;
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
    /// A file could not be written.
    #[error("cannot write {path}: {source}{}", file_advice(.source))]
    File {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file is no profile and no trace.
    #[error("{path}: {source}")]
    Saved {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: SavedError,
    },
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

impl Error {
    /// Wraps the error of a KVM operation, for `map_err`.
    pub(crate) fn kvm(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| match error.errno() {
            libc::EINTR if sys::interrupted() => Self::Interrupted,
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

/// What to do where a call to the host fails, if that is known.
fn host_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => ": allow more open files (ulimit -n)",
        Some(libc::EAGAIN) => ": allow more threads and signals (ulimit -u, ulimit -i)",
        Some(libc::ENOMEM) => ": free memory, or allow more (ulimit -v)",
        _ => "",
    }
}

/// What to do where a file cannot be written, if that is known.
fn file_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": free some space, or give another file"
        }
        io::ErrorKind::FileTooLarge => ": allow larger files (ulimit -f)",
        _ => host_advice(error),
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
