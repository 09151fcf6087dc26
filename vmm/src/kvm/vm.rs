//! The virtual machine: checks `/dev/kvm`, and creates a VM with the settings that this VMM needs.

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

/// The version of KVM's API. It is stable since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Opens `/dev/kvm`.
///
/// # Errors
/// It cannot be opened, is not KVM's device, or has another API version.
pub(crate) fn open_kvm() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|error| node::open_failed(io::Error::from_raw_os_error(error.errno())))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        ..0 => Err(node::does_not_answer()),
        found => Err(Error::ApiVersion { found }),
    }
}

/// Opens `/dev/kvm`, makes the checks of the assignment, and creates a virtual machine. On Intel hosts KVM keeps its own
/// task state in three pages from guest physical address `tss`.
///
/// # Errors
/// KVM cannot be used on this host, or refused.
pub(crate) fn create_vm(tss: u64) -> Result<(Kvm, VmFd), Error> {
    let kvm = open_kvm()?;
    for capability in [Cap::UserMemory, Cap::ImmediateExit] {
        if !kvm.check_extension(capability) {
            return Err(Error::MissingCapability(capability));
        }
    }
    let vm = retry_on_eintr(|| kvm.create_vm()).map_err(Error::kvm("KVM_CREATE_VM"))?;
    // Without this KVM rewrites a `vmcall` for the host's processor, and on some hosts repeats that without end.
    let quirk = KVM_X86_QUIRK_FIX_HYPERCALL_INSN;
    // Negative on an error, which counts as no quirk that can be disabled.
    let supported = u32::try_from(vm.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into())).unwrap_or(0);
    if supported & quirk != 0 {
        let disable = kvm_enable_cap {
            cap: KVM_CAP_DISABLE_QUIRKS2,
            args: [quirk.into(), 0, 0, 0],
            ..Default::default()
        };
        if let Err(error) = vm.enable_cap(&disable) {
            log::warn!(
                "KVM refused to disable its rewriting of hypercalls ({error}): continuing with it enabled"
            );
        }
    }
    // Intel hosts need the three pages for real mode. Others ignore them.
    if let Err(error) = vm.set_tss_address(tss as usize) {
        log::warn!("KVM_SET_TSS_ADDR failed ({error}): continuing without it");
    }
    Ok((kvm, vm))
}

/// Repeats a KVM operation while signals interrupt it, unless a signal asks the program to end.
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

/// Refuses memory past the last physical address of this processor (CPUID leaf 0x8000_0008).
///
/// # Errors
/// The memory ends past that address, or KVM refused.
pub(crate) fn check_address_width(kvm: &Kvm, ram: u64) -> Result<(), Error> {
    let end = pc::ram(ram).last().map_or(0, |(start, size)| start.0.saturating_add(*size));
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let supported = supported.map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let leaf = supported.as_slice().iter().find(|leaf| leaf.function == 0x8000_0008);
    let bits = leaf.map_or(36, |leaf| leaf.eax & 0xff);
    match 1u64.checked_shl(bits) {
        Some(reach) if end > reach => Err(Error::Config(format!(
            "{ram:#x} bytes of memory are too many: they end at {end:#x}, and this processor's physical addresses end at \
             {reach:#x}: choose a smaller --mem"
        ))),
        _ => Ok(()),
    }
}

/// Masks all lines of the two 8259 interrupt controllers. KVM creates them together with the I/O APIC and connects them to
/// the same lines. The ACPI tables do not list them, so a kernel would not expect their interrupts.
///
/// # Errors
/// The kernel refused.
pub(crate) fn mask_legacy_controllers(vm: &VmFd) -> Result<(), Error> {
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(Error::kvm("KVM_GET_IRQCHIP"))?;
        chip.chip.pic.imr = 0xff;
        vm.set_irqchip(&chip).map_err(Error::kvm("KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}
