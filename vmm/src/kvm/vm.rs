//! The virtual machine: checks `/dev/kvm`, and creates a VM with the settings that this VMM needs.

use crate::error::Error;
use crate::kvm::node;
use crate::kvm::retry::retry_on_eintr;
use crate::kvm::vcpu::KvmVcpu;
use crate::memory::{GuestMemory, pc};
use crate::x86::registers::CpuidEntry;
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_MAX_CPUID_ENTRIES, KVM_X86_QUIRK_FIX_HYPERCALL_INSN, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::io;
use std::sync::{Arc, Weak};

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

/// `/dev/kvm`: what KVM can do on this host. It is needed only while a machine is built.
#[derive(Debug)]
pub(crate) struct System(Kvm);

/// A virtual machine. `slots.rs`, `events.rs`, `irqchip.rs` and `msr_filter.rs` have more of its operations.
#[derive(Debug)]
pub(crate) struct Vm {
    fd: Arc<VmFd>,
}

/// A reference that does not keep the virtual machine: its memory may be gone after it.
#[derive(Clone, Debug)]
pub(crate) struct WeakVm(Weak<VmFd>);

impl WeakVm {
    /// The virtual machine. `None` if it is gone.
    pub(crate) fn upgrade(&self) -> Option<Vm> {
        self.0.upgrade().map(|fd| Vm { fd })
    }
}

impl System {
    /// Opens `/dev/kvm`, makes the checks of the assignment, and creates a virtual machine. On Intel hosts KVM keeps its
    /// own task state in three pages from guest physical address `tss`.
    ///
    /// # Errors
    /// KVM cannot be used on this host, or refused.
    pub(crate) fn create_vm(tss: u64) -> Result<(Self, Vm), Error> {
        let (kvm, fd) = create_vm(tss)?;
        Ok((Self(kvm), Vm { fd: Arc::new(fd) }))
    }

    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// KVM cannot be used on this host.
    pub(crate) fn open() -> Result<Self, Error> {
        open_kvm().map(Self)
    }

    /// Requires capabilities of KVM.
    ///
    /// # Errors
    /// KVM lacks one of them.
    fn require(&self, capabilities: &[Cap]) -> Result<(), Error> {
        match capabilities.iter().find(|capability| !self.0.check_extension(**capability)) {
            Some(missing) => Err(missing_capability(*missing)),
            None => Ok(()),
        }
    }

    /// True if the local APIC of a vCPU has a timer with a TSC deadline.
    pub(crate) fn has_tsc_deadline(&self) -> bool {
        self.0.check_extension(Cap::TscDeadlineTimer)
    }

    /// Requires the parts of KVM that a PC needs.
    ///
    /// # Errors
    /// KVM lacks a part.
    pub(crate) fn require_pc(&self) -> Result<(), Error> {
        self.require(&[Cap::Irqchip, Cap::Irqfd, Cap::Ioeventfd])
    }

    /// Requires the parts of KVM that a classic PC needs.
    ///
    /// # Errors
    /// KVM lacks a part.
    pub(crate) fn require_classic(&self) -> Result<(), Error> {
        self.require(&[Cap::Irqchip, Cap::Irqfd, Cap::Pit2])
    }

    /// The CPUID leaves that KVM can show a guest (KVM_GET_SUPPORTED_CPUID).
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, Error> {
        let leaves = self.0.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let leaves = leaves.map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(leaves.as_slice().iter().map(|leaf| (*leaf).into()).collect())
    }

    /// Refuses memory past the last physical address of this processor (CPUID leaf 0x8000_0008).
    ///
    /// # Errors
    /// The memory ends past that address, or KVM refused.
    pub(crate) fn check_address_width(&self, ram: u64) -> Result<(), Error> {
        let end = pc::ram(ram).last().map_or(0, |(start, size)| start.0.saturating_add(*size));
        let supported = self.supported_cpuid()?;
        let leaf = supported.iter().find(|leaf| leaf.function == 0x8000_0008);
        let bits = leaf.map_or(36, |leaf| leaf.eax & 0xff);
        match 1u64.checked_shl(bits) {
            Some(reach) if end > reach => Err(Error::Config(format!(
                "{ram:#x} bytes of memory are too many: they end at {end:#x}, and this processor's physical addresses end at \
                 {reach:#x}: choose a smaller --mem"
            ))),
            _ => Ok(()),
        }
    }
}

impl Vm {
    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// A reference that does not keep the virtual machine.
    pub(crate) fn downgrade(&self) -> WeakVm {
        WeakVm(Arc::downgrade(&self.fd))
    }

    /// True if KVM has slots that the guest can only read.
    pub(crate) fn has_read_only_slots(&self) -> bool {
        self.fd.check_extension(Cap::ReadonlyMem)
    }

    /// Sets the address of the page table that KVM uses for real mode on Intel hosts (KVM_SET_IDENTITY_MAP_ADDR).
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn set_identity_map(&self, address: u64) -> Result<(), Error> {
        self.fd.set_identity_map_address(address).map_err(Error::kvm("KVM_SET_IDENTITY_MAP_ADDR"))
    }

    /// Creates vCPU number `id` over the machine's memory.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn create_vcpu(&self, id: u32, memory: &GuestMemory) -> Result<KvmVcpu, Error> {
        KvmVcpu::new(&self.fd, id, memory.clone())
    }
}

/// The error if KVM lacks `capability`.
pub(super) fn missing_capability(capability: Cap) -> Error {
    Error::MissingCapability(format!("{capability:?}"))
}

/// Opens `/dev/kvm`, and creates a virtual machine: see [`Vm::create`].
///
/// # Errors
/// KVM cannot be used on this host, or refused.
pub(crate) fn create_vm(tss: u64) -> Result<(Kvm, VmFd), Error> {
    let kvm = open_kvm()?;
    for capability in [Cap::UserMemory, Cap::ImmediateExit] {
        if !kvm.check_extension(capability) {
            return Err(missing_capability(capability));
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
