//! The virtual machine: `/dev/kvm`, what has to be behind it, and a new VM without KVM's surprises.

use crate::error::Error;
use crate::host;
use crate::kvm::node;
use crate::memory::pc;
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES,
    KVM_X86_QUIRK_FIX_HYPERCALL_INSN, kvm_enable_cap, kvm_irqchip,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::io;

/// The version of KVM's API that has been stable since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// `/dev/kvm`, if KVM of the right version is behind it.
pub(crate) fn open_kvm() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|error| node::open_failed(io::Error::from_raw_os_error(error.errno())))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        ..0 => Err(node::does_not_answer()),
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
    let vm = retry_on_eintr(|| kvm.create_vm()).map_err(Error::kvm("KVM_CREATE_VM"))?;
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
pub(crate) fn retry_on_eintr<T>(
    mut operation: impl FnMut() -> Result<T, kvm_ioctls::Error>,
) -> Result<T, kvm_ioctls::Error> {
    loop {
        match operation() {
            Err(error) if error.errno() == libc::EINTR && !host::interrupted() => {}
            answer => return answer,
        }
    }
}

/// Refuses memory beyond what this processor's physical addresses reach (CPUID leaf 0x8000_0008).
pub(crate) fn check_address_width(kvm: &Kvm, ram: u64) -> Result<(), Error> {
    let end = pc::ram(ram).last().map_or(0, |(start, size)| start.0.saturating_add(*size));
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let supported = supported.map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let leaf = supported.as_slice().iter().find(|leaf| leaf.function == 0x8000_0008);
    let bits = leaf.map_or(36, |leaf| leaf.eax & 0xff);
    match 1u64.checked_shl(bits) {
        Some(reach) if end > reach => Err(Error::Config(format!(
            "{ram:#x} bytes of memory end at {end:#x}, and this processor's addresses at {reach:#x}: choose a smaller --mem"
        ))),
        _ => Ok(()),
    }
}

/// Masks all lines of the two 8259 interrupt controllers, which come with the I/O APIC and are wired to the same lines:
/// a kernel that does not know them, since the ACPI tables do not have them, would be interrupted by them.
pub(crate) fn mask_legacy_controllers(vm: &VmFd) -> Result<(), Error> {
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(Error::kvm("KVM_GET_IRQCHIP"))?;
        chip.chip.pic.imr = 0xff;
        vm.set_irqchip(&chip).map_err(Error::kvm("KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}
