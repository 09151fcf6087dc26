//! The MSR filter: which accesses to model-specific registers KVM hands to this program.

use crate::error::Error;
use crate::kvm::vm::{Vm, missing_capability};
use kvm_bindings::{
    KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_MSR_FILTER_MAX_RANGES, kvm_enable_cap,
};
use kvm_ioctls::{Cap, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags};

/// The maximum number of registers with a rule or a device: the number of ranges of KVM's filter.
pub const MAX_FILTERED: usize = KVM_MSR_FILTER_MAX_RANGES as usize;

impl Vm {
    /// Makes KVM exit for accesses to the registers that it does not know, and to those in `filtered`. If the host does not
    /// support this, the guest gets #GP for unknown registers.
    ///
    /// # Errors
    /// `filtered` is not empty, and the host does not support it. Or it has more than [`MAX_FILTERED`] registers.
    pub(crate) fn filter_msrs(&self, filtered: &[u32]) -> Result<(), Error> {
        if filtered.len() > MAX_FILTERED {
            return Err(Error::Config(format!(
                "too many model-specific registers have a rule or a device: {}, and KVM's filter takes {MAX_FILTERED}: remove \
                 some (--msr)",
                filtered.len()
            )));
        }
        // KVM_MSR_EXIT_REASON_INVAL is left out: if KVM refuses a value, the guest gets #GP.
        let reasons = KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
        let capability = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [reasons.into(), 0, 0, 0],
            ..Default::default()
        };
        let enabled = self.fd().enable_cap(&capability);
        if filtered.is_empty() {
            if let Err(error) = enabled {
                log::info!(
                    "KVM does not exit for MSR accesses ({error}): accesses to unknown MSRs raise #GP"
                );
            }
            return Ok(());
        }
        enabled.map_err(|_| missing_capability(Cap::X86UserSpaceMsr))?;
        if self.fd().check_extension_raw(KVM_CAP_X86_MSR_FILTER.into()) <= 0 {
            return Err(missing_capability(Cap::X86MsrFilter));
        }
        // A cleared bit makes the access exit.
        let exits = [0u8];
        let range = |&base: &u32| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base,
            msr_count: 1,
            bitmap: &exits,
        };
        let ranges: Vec<_> = filtered.iter().map(range).collect();
        self.fd()
            .set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
            .map_err(Error::kvm("KVM_X86_SET_MSR_FILTER"))
    }
}
