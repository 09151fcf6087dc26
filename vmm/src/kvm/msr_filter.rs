//! The MSR filter: which accesses to model-specific registers KVM hands to this program.

use crate::error::Error;
use kvm_bindings::{
    KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_MSR_FILTER_MAX_RANGES, kvm_enable_cap,
};
use kvm_ioctls::{Cap, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

/// The most registers that can have a rule or a device: the ranges of KVM's filter.
pub const MAX_FILTERED: usize = KVM_MSR_FILTER_MAX_RANGES as usize;

/// Has KVM hand on accesses to the registers that it does not know, and to `filtered`. On a host without that
/// the guest gets #GP for the former; the latter are an error.
///
/// # Errors
/// The host cannot, or there are more than [`MAX_FILTERED`].
pub(crate) fn enable(vm: &VmFd, filtered: &[u32]) -> Result<(), Error> {
    if filtered.len() > MAX_FILTERED {
        return Err(Error::Config(format!(
            "{} model-specific registers have a rule or a device, and KVM's filter takes {MAX_FILTERED}: leave some out",
            filtered.len()
        )));
    }
    // Not those that KVM has and whose value it refuses: the guest gets its #GP for them.
    let reasons = KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
    let capability = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        args: [reasons.into(), 0, 0, 0],
        ..Default::default()
    };
    let enabled = vm.enable_cap(&capability);
    if filtered.is_empty() {
        if let Err(error) = enabled {
            log::info!("KVM hands on no accesses to MSRs ({error}); those that it does not know fault");
        }
        return Ok(());
    }
    enabled.map_err(|_| Error::MissingCapability(Cap::X86UserSpaceMsr))?;
    if vm.check_extension_raw(KVM_CAP_X86_MSR_FILTER.into()) <= 0 {
        return Err(Error::MissingCapability(Cap::X86MsrFilter));
    }
    // A cleared bit is an access that is handed on.
    let handed_on = [0u8];
    let range = |&base: &u32| MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base,
        msr_count: 1,
        bitmap: &handed_on,
    };
    let ranges: Vec<_> = filtered.iter().map(range).collect();
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges).map_err(Error::kvm("KVM_X86_SET_MSR_FILTER"))
}
