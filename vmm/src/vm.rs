//! The virtual machine: `/dev/kvm`, what has to be behind it, and a new VM without KVM's surprises.

use crate::error::Error;
use crate::kvm_node;
use crate::sys;
use kvm_bindings::{KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_FIX_HYPERCALL_INSN, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::io;

/// The version of KVM's API that has been stable since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// `/dev/kvm`, if KVM of the right version is behind it.
pub(crate) fn open_kvm() -> Result<Kvm, Error> {
    let kvm =
        Kvm::new().map_err(|error| kvm_node::open_failed(io::Error::from_raw_os_error(error.errno())))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        ..0 => Err(kvm_node::does_not_answer()),
        found => Err(Error::ApiVersion { found }),
    }
}

/// `/dev/kvm` and a new virtual machine, after the checks of the assignment. On Intel hosts KVM keeps task state of its
/// own in three pages from `tss` on.
///
/// # Errors
/// The host has no KVM that could be used.
pub(crate) fn create_vm(tss: u64) -> Result<(Kvm, VmFd), Error> {
    let kvm = open_kvm()?;
    for capability in [Cap::UserMemory, Cap::ImmediateExit] {
        if !kvm.check_extension(capability) {
            return Err(Error::MissingCapability(capability));
        }
    }
    let vm = patiently(|| kvm.create_vm()).map_err(Error::kvm("KVM_CREATE_VM"))?;
    // Otherwise KVM rewrites a `vmcall` of the guest's for its own processor, and on some hosts tries for ever.
    let quirk = KVM_X86_QUIRK_FIX_HYPERCALL_INSN;
    let can = u32::try_from(vm.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into())).unwrap_or(0);
    if can & quirk != 0 {
        let disable = kvm_enable_cap {
            cap: KVM_CAP_DISABLE_QUIRKS2,
            args: [quirk.into(), 0, 0, 0],
            ..Default::default()
        };
        if let Err(error) = vm.enable_cap(&disable) {
            log::warn!("KVM's rewriting of hypercalls cannot be switched off ({error}); going on with it");
        }
    }
    // Intel hosts need the three pages for real mode, others ignore them.
    if let Err(error) = vm.set_tss_address(tss as usize) {
        log::warn!("KVM_SET_TSS_ADDR failed ({error}); going on without");
    }
    Ok((kvm, vm))
}

/// Tries an operation of KVM's again while signals interrupt it, unless one asks the program to end.
pub(crate) fn patiently<T>(
    mut operation: impl FnMut() -> Result<T, kvm_ioctls::Error>,
) -> Result<T, kvm_ioctls::Error> {
    loop {
        match operation() {
            Err(error) if error.errno() == libc::EINTR && !sys::interrupted() => {}
            answer => return answer,
        }
    }
}
