//! The bare program: the lower bound for the cost of a VM. It creates and runs the same VMs with the same calls to KVM, and
//! does nothing else.
//!
//! It opens `/dev/kvm` once for all VMs. A [`Machine`](vmm::Machine) opens it again, because it may be the only one in its
//! process.

use crate::bench::sys::Ram;
use guest::Guest;
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_X86_QUIRK_FIX_HYPERCALL_INSN, kvm_enable_cap, kvm_regs,
};
use kvm_ioctls::{Kvm, SyncReg, VcpuExit, VcpuFd, VmFd};
use simvirtio::abi;
use vmm::memory::TSS;

/// `/dev/kvm` and the guest, which all VMs share.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    guest: &'static Guest,
}

/// A virtual machine with its guest loaded.
#[derive(Debug)]
pub struct Vm {
    // Fields are dropped in this order, so the memory outlives the VM.
    vcpu: VcpuFd,
    _vm: VmFd,
    ram: Ram,
}

impl Host {
    /// Opens KVM for VMs that run `guest`, a guest in real mode.
    ///
    /// # Errors
    /// `/dev/kvm` cannot be opened.
    pub fn new(guest: &'static Guest) -> Result<Self, String> {
        let kvm = Kvm::new().map_err(|error| format!("cannot open /dev/kvm: {error}"))?;
        Ok(Self { kvm, guest })
    }

    /// Creates a VM that is ready to run.
    ///
    /// # Errors
    /// A system call failed.
    pub fn create(&self) -> Result<Vm, String> {
        let failed =
            |operation: &'static str| move |error: kvm_ioctls::Error| format!("{operation}: {error}");
        let size = usize::try_from(abi::RAM_SIZE).map_err(|error| error.to_string())?;
        let mut ram = Ram::new(size).map_err(|error| format!("mmap: {error}"))?;
        ram.write(self.guest.load_at as usize, self.guest.image);
        let vm = self.kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        let enable = |cap, bits: u32| {
            vm.enable_cap(&kvm_enable_cap { cap, args: [bits.into(), 0, 0, 0], ..Default::default() })
        };
        enable(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_FIX_HYPERCALL_INSN)
            .map_err(failed("KVM_ENABLE_CAP"))?;
        vm.set_tss_address(TSS as usize).map_err(failed("KVM_SET_TSS_ADDR"))?;
        ram.register(&vm).map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        enable(KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER)
            .map_err(failed("KVM_ENABLE_CAP"))?;
        let mut vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        vcpu.set_sync_valid_reg(SyncReg::Register);
        let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        let regs = kvm_regs { rip: self.guest.load_at, rflags: 2, ..Default::default() };
        vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
        Ok(Vm { vcpu, _vm: vm, ram })
    }
}

impl Vm {
    /// Runs the guest until it halts. Returns true if it left 42.
    ///
    /// # Errors
    /// KVM cannot run it, or it ends with another exit.
    pub fn run(mut self) -> Result<bool, String> {
        match self.vcpu.run() {
            Ok(VcpuExit::Hlt) => {}
            Ok(exit) => return Err(format!("the guest did not halt: {exit:?}")),
            Err(error) => return Err(format!("KVM_RUN: {error}")),
        }
        let ax = self.vcpu.sync_regs().regs.rax & 0xffff;
        Ok(ax == 42 && self.ram.word(abi::RESULT as usize) == 42)
    }
}
