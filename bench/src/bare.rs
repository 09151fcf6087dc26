//! The lower bound: a minimal loop around KVM_RUN that runs the same guest in the same memory.
//!
//! It handles an exit with one `match`. It has no bus, no lock, no second device and no counters.

use crate::loops::{ADDRESS, MARK, MSR, PORT};
use crate::memory::Memory;
use crate::sys::{Cost, Moment};
use kvm_bindings::{KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, kvm_enable_cap};
use kvm_ioctls::{Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuExit, VcpuFd, VmFd};
use vmm::internals::{gdt, identity_map, regs, sregs};
use vmm::memory::{Gpa, PAGE, TABLES, TABLES_SIZE, TSS};
use vmm::x86::{Mode, VcpuIndex};

/// The GPA of the guest's code.
pub const START: u64 = 0x1000;
/// The size of the guest's RAM in bytes.
const RAM: usize = 1 << 20;

/// A virtual machine with one vCPU.
#[derive(Debug)]
pub struct Bare {
    // Rust drops fields in this order, so the vCPU and the VM go before the memory that they use.
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: [Memory; 2],
}

impl Bare {
    /// Creates a machine for 64-bit code. Unlike `vmm`, it does not ask KVM for the registers at each exit
    /// (KVM_CAP_SYNC_REGS).
    ///
    /// # Errors
    /// A host call failed, or `code` is larger than the memory.
    pub fn new(code: &[u8]) -> Result<Self, String> {
        let failed = |operation: &'static str| move |error| format!("{operation}: {error}");
        let mut ram = Memory::new(RAM)?;
        ram.write(START as usize, code)?;
        let mut tables = Memory::new(TABLES_SIZE as usize)?;
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        tables.write(0, &words(&gdt(Mode::Long)))?;
        tables.write(PAGE as usize, &words(&identity_map(Gpa(TABLES.0 + PAGE))))?;
        let kvm = Kvm::new().map_err(failed("opening /dev/kvm"))?;
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        vm.set_tss_address(TSS as usize).map_err(failed("KVM_SET_TSS_ADDR"))?;
        ram.register(&vm, 0, 0)?;
        tables.register(&vm, 1, TABLES.0)?;
        filter_msr(&vm)?;
        let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        let reset = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        let place = VcpuIndex::ALONE;
        vcpu.set_sregs(&sregs(Mode::Long, reset.into(), TABLES, place).into())
            .map_err(failed("KVM_SET_SREGS"))?;
        vcpu.set_regs(&regs(Mode::Long, Gpa(START), place).into()).map_err(failed("KVM_SET_REGS"))?;
        Ok(Self { vcpu, _vm: vm, _memory: [ram, tables] })
    }

    /// Runs the guest until it halts. Returns the cost between the last two writes to [`MARK`].
    ///
    /// # Errors
    /// The guest made an unexpected exit or wrote [`MARK`] fewer than two times, or the program was interrupted.
    pub fn run(&mut self) -> Result<Cost, String> {
        let mut latch = 0;
        let mut marks = [None, None];
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(port, &[byte])) if port == u16::from(PORT) => latch = u64::from(byte),
                Ok(VcpuExit::IoIn(port, [byte])) if port == u16::from(PORT) => *byte = latch as u8,
                Ok(VcpuExit::MmioWrite(address, &[a, b, c, d])) if address == u64::from(ADDRESS) => {
                    latch = u64::from(u32::from_le_bytes([a, b, c, d]));
                }
                Ok(VcpuExit::MmioRead(address, data)) if address == u64::from(ADDRESS) => {
                    data.copy_from_slice(&(latch as u32).to_le_bytes());
                }
                Ok(VcpuExit::X86Wrmsr(exit)) if exit.index == MSR => {
                    (latch, *exit.error) = (exit.data, 0);
                }
                Ok(VcpuExit::X86Rdmsr(exit)) if exit.index == MSR => {
                    (*exit.data, *exit.error) = (latch, 0);
                }
                Ok(VcpuExit::IoOut(port, _)) if port == u16::from(MARK) => {
                    marks = [marks[1], Some(Moment::now())];
                }
                Ok(VcpuExit::Hlt) => break,
                Ok(exit) => return Err(format!("unexpected exit in the bare loop: {exit:?}")),
                Err(error) if error.errno() == libc::EINTR && !vmm::host::interrupted() => {}
                Err(error) => return Err(format!("KVM_RUN: {error}")),
            }
        }
        match marks {
            [Some(start), Some(end)] => Ok(end.since(&start)),
            _ => Err("the guest halted before the end of the measured part".into()),
        }
    }
}

/// Asks KVM to exit on accesses to [`MSR`].
fn filter_msr(vm: &VmFd) -> Result<(), String> {
    let capability = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        args: [KVM_MSR_EXIT_REASON_FILTER.into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&capability).map_err(|error| format!("KVM_CAP_X86_USER_SPACE_MSR: {error}"))?;
    let range = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: MSR,
        msr_count: 1,
        bitmap: &[0],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])
        .map_err(|error| format!("KVM_X86_SET_MSR_FILTER: {error}"))
}
