//! The option `--vcpu`: the kind of processor that runs a guest.

use crate::streams::print_stderr;
use clap::ValueEnum;
use std::io::ErrorKind;
use std::sync::Once;
use vmm::machine::Processor;
use vmm::{Error, Machine};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum VcpuArg {
    /// the host's processor, by KVM
    Kvm,
    /// the software processor, which needs no KVM: for small guests, not for Linux
    Soft,
}

impl From<VcpuArg> for Processor {
    fn from(vcpu: VcpuArg) -> Self {
        match vcpu {
            VcpuArg::Kvm => Self::Kvm,
            VcpuArg::Soft => Self::Soft,
        }
    }
}

/// Checks the processor of a subcommand that measures KVM.
///
/// # Errors
/// It is the software processor.
pub(super) fn check_kvm(subcommand: &str, vcpu: Option<VcpuArg>) -> Result<(), Error> {
    match vcpu {
        None | Some(VcpuArg::Kvm) => Ok(()),
        Some(VcpuArg::Soft) => Err(Error::Config(format!(
            "vmm {subcommand} measures KVM, which the software processor does without: leave out --vcpu soft"
        ))),
    }
}

/// Prints once that a machine has a software processor because KVM cannot be used, and why.
pub(super) fn announce(machine: &Machine) {
    static ONCE: Once = Once::new();
    let Some(error) = machine.kvm_error() else { return };
    ONCE.call_once(|| {
        print_stderr(&format!(
            "vmm: {}, so the guest runs on the software processor (--vcpu soft hides this line, --vcpu kvm says more)\n",
            reason(error)
        ));
    });
}

/// The reason why KVM cannot be used, in a few words.
fn reason(error: &Error) -> String {
    match error {
        Error::OpenKvm { source, .. } => match source.kind() {
            ErrorKind::NotFound => "/dev/kvm is missing".into(),
            ErrorKind::PermissionDenied => "/dev/kvm cannot be opened (permission denied)".into(),
            _ => format!("/dev/kvm cannot be opened ({source})"),
        },
        Error::NoKvm => "this host has no KVM".into(),
        Error::NotKvm { .. } => "/dev/kvm is not KVM's device".into(),
        _ => "KVM does not work on this host".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn the_reason_is_short() {
        let open = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            reason(&Error::OpenKvm { source, advice: String::new() })
        };
        assert_eq!(open(libc::ENOENT), "/dev/kvm is missing");
        assert_eq!(open(libc::EACCES), "/dev/kvm cannot be opened (permission denied)");
        assert!(open(libc::ENODEV).starts_with("/dev/kvm cannot be opened (No such device"));
        assert_eq!(reason(&Error::NoKvm), "this host has no KVM");
        assert_eq!(reason(&Error::ApiVersion { found: 3 }), "KVM does not work on this host");
    }
}
