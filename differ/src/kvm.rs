//! The processor, through KVM.

use crate::layout::MEMORY;
use crate::outcome::{Access, End, MOST_ACCESSES, answer};
use kvm_bindings::{
    KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_MAX_CPUID_ENTRIES, Msrs, kvm_debugregs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_run, kvm_segment,
    kvm_sregs, kvm_userspace_memory_region, kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::{Kvm, SyncReg, VcpuFd, VmFd};
use softcpu::{Segment, State, Table};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// IA32_KERNEL_GS_BASE, which SWAPGS changes.
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// A virtual machine.
pub struct Machine {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: GuestMemoryMmap,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    events: kvm_vcpu_events,
}

type Error = Box<dyn std::error::Error>;

impl Machine {
    /// Makes a virtual machine. The timer may interrupt that.
    pub fn new() -> Result<Self, Error> {
        (0..10).find_map(|_| Self::create().ok()).map_or_else(Self::create, Ok)
    }

    fn create() -> Result<Self, Error> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)])?;
        let region = kvm_userspace_memory_region {
            memory_size: MEMORY,
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
            ..Default::default()
        };
        // SAFETY: the memory belongs to this machine, and is dropped after the VM.
        #[allow(unsafe_code)]
        unsafe {
            vm.set_user_memory_region(region)?;
        }
        let mut vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        vcpu.set_sync_valid_reg(SyncReg::Register);
        vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
        let (sregs, xsave, events) = (vcpu.get_sregs()?, vcpu.get_xsave()?, vcpu.get_vcpu_events()?);
        Ok(Self { vcpu, _vm: vm, memory, sregs, xsave, events })
    }

    /// Writes words to memory.
    pub fn write(&mut self, address: u64, words: &[u64]) -> Result<(), Error> {
        let memory = self.memory.get_slice(GuestAddress(address), words.len() * 8)?;
        memory.copy_from(words);
        Ok(())
    }

    /// Reads words from memory.
    pub fn read(&self, address: u64, words: &mut [u64]) -> Result<(), Error> {
        let memory = self.memory.get_slice(GuestAddress(address), words.len() * 8)?;
        memory.copy_to(words);
        Ok(())
    }

    /// Sets the registers.
    pub fn set(&mut self, state: &State) -> Result<(), Error> {
        let run = self.vcpu.sync_regs_mut();
        run.regs = to_regs(state);
        run.sregs = to_sregs(state, self.sregs);
        self.vcpu.set_sync_dirty_reg(SyncReg::Register);
        self.vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
        to_xsave(state, &mut self.xsave);
        // SAFETY: no feature that needs a larger structure is switched on.
        #[allow(unsafe_code)]
        unsafe {
            self.vcpu.set_xsave(&self.xsave)?;
        }
        Ok(())
    }

    /// Sets the registers that few programs change.
    pub fn reset(&mut self) -> Result<(), Error> {
        self.vcpu.set_vcpu_events(&self.events)?;
        self.vcpu.set_debug_regs(&kvm_debugregs { dr6: 0xffff_0ff0, dr7: 0x400, ..Default::default() })?;
        let gs = kvm_msr_entry { index: KERNEL_GS_BASE, ..Default::default() };
        self.vcpu.set_msrs(&Msrs::from_entries(&[gs]).map_err(|_| "too many registers")?)?;
        Ok(())
    }

    /// Reads the registers into `state`. What KVM does not show is left.
    pub fn get(&mut self, state: &mut State) -> Result<(), Error> {
        let run = self.vcpu.sync_regs_mut();
        from_regs(&run.regs, state);
        from_sregs(&run.sregs, state);
        from_xsave(&self.vcpu.get_xsave()?, state);
        Ok(())
    }

    /// Runs until the end. `accesses` receives the accesses to ports and to memory-mapped I/O.
    pub fn run(&mut self, accesses: &mut Vec<Access>) -> Result<End, Error> {
        let mut interruptions = 0;
        loop {
            match self.vcpu.run() {
                Ok(_) => {}
                Err(error) if error.errno() == libc::EINTR => {
                    interruptions += 1;
                    if interruptions == 2 {
                        return Ok(End::Endless);
                    }
                    continue;
                }
                Err(error) => return Ok(End::Other(format!("KVM_RUN: {error}"))),
            }
            let run = self.vcpu.get_kvm_run();
            match run.exit_reason {
                KVM_EXIT_IO => port_access(run, accesses),
                KVM_EXIT_MMIO => memory_access(run, accesses),
                KVM_EXIT_HLT => return Ok(End::Halted),
                KVM_EXIT_SHUTDOWN => return Ok(End::Shutdown),
                KVM_EXIT_INTERNAL_ERROR => return Ok(End::Unsupported),
                other => return Ok(End::Other(format!("exit {other}"))),
            }
            if accesses.len() > MOST_ACCESSES {
                return Ok(End::Endless);
            }
        }
    }
}

#[allow(unsafe_code)]
fn port_access(run: &mut kvm_run, accesses: &mut Vec<Access>) {
    // SAFETY: this is the member of the union for KVM_EXIT_IO.
    let io = unsafe { run.__bindgen_anon_1.io };
    let size = usize::from(io.size);
    let start = std::ptr::from_mut(run).cast::<u8>();
    for number in 0..io.count as usize {
        // SAFETY: KVM's data begins at this offset, and is within the mapping of the structure.
        let data = unsafe {
            let first = start.add(io.data_offset as usize + number * size);
            std::slice::from_raw_parts_mut(first, size)
        };
        if u32::from(io.direction) == KVM_EXIT_IO_OUT {
            accesses.push(Access { kind: 'o', address: io.port.into(), size: io.size, data: value(data) });
        } else {
            let answer = answer(io.port.into(), accesses.len());
            data.copy_from_slice(&answer.to_le_bytes()[..size]);
            accesses.push(Access { kind: 'i', address: io.port.into(), size: io.size, data: value(data) });
        }
    }
}

#[allow(unsafe_code)]
fn memory_access(run: &mut kvm_run, accesses: &mut Vec<Access>) {
    // SAFETY: this is the member of the union for KVM_EXIT_MMIO.
    let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
    let size = (mmio.len as usize).min(8);
    let data = &mut mmio.data[..size];
    let kind = if mmio.is_write != 0 { 'w' } else { 'r' };
    if kind == 'r' {
        data.copy_from_slice(&answer(mmio.phys_addr, accesses.len()).to_le_bytes()[..size]);
    }
    accesses.push(Access { kind, address: mmio.phys_addr, size: size as u8, data: value(data) });
}

/// The value of little-endian bytes.
fn value(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn to_regs(state: &State) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let (rip, rflags) = (state.rip, state.rflags);
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn from_regs(regs: &kvm_regs, state: &mut State) {
    let r = regs;
    state.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ];
    (state.rip, state.rflags) = (r.rip, r.rflags);
}

fn to_segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: segment.present.into(),
        dpl: segment.dpl,
        db: segment.big.into(),
        s: segment.code_or_data.into(),
        l: segment.long.into(),
        g: segment.pages.into(),
        avl: segment.available.into(),
        unusable: segment.unusable.into(),
        padding: 0,
    }
}

fn from_segment(segment: &kvm_segment) -> Segment {
    Segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        kind: segment.type_,
        code_or_data: segment.s != 0,
        dpl: segment.dpl,
        present: segment.present != 0,
        available: segment.avl != 0,
        long: segment.l != 0,
        big: segment.db != 0,
        pages: segment.g != 0,
        unusable: segment.unusable != 0,
    }
}

fn to_sregs(state: &State, template: kvm_sregs) -> kvm_sregs {
    let [es, cs, ss, ds, fs, gs] = state.segments.each_ref().map(to_segment);
    let table = |table: Table| kvm_dtable { base: table.base, limit: table.limit, padding: [0; 3] };
    kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: to_segment(&state.tr),
        ldt: to_segment(&state.ldtr),
        gdt: table(state.gdtr),
        idt: table(state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        ..template
    }
}

fn from_sregs(sregs: &kvm_sregs, state: &mut State) {
    state.segments = [&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs].map(from_segment);
    (state.tr, state.ldtr) = (from_segment(&sregs.tr), from_segment(&sregs.ldt));
    state.gdtr = Table { base: sregs.gdt.base, limit: sregs.gdt.limit };
    state.idtr = Table { base: sregs.idt.base, limit: sregs.idt.limit };
    (state.cr0, state.cr2, state.cr3, state.cr4) = (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4);
    (state.cr8, state.efer) = (sregs.cr8, sregs.efer);
}

/// The words of the XSAVE area: MXCSR at byte 24, XMM0 at byte 160, and the components in use at byte 512.
const MXCSR: usize = 24 / 4;
const XMM: usize = 160 / 4;
const COMPONENTS: usize = 512 / 4;

fn to_xsave(state: &State, xsave: &mut kvm_xsave) {
    xsave.region[0] = state.fpu.control.into();
    xsave.region[MXCSR] = state.mxcsr;
    for (number, register) in state.xmm.iter().enumerate() {
        for part in 0..4 {
            xsave.region[XMM + number * 4 + part] = (register >> (32 * part)) as u32;
        }
    }
    // x87 and SSE.
    xsave.region[COMPONENTS] = 3;
}

fn from_xsave(xsave: &kvm_xsave, state: &mut State) {
    state.mxcsr = xsave.region[MXCSR];
    for (number, register) in state.xmm.iter_mut().enumerate() {
        let words = &xsave.region[XMM + number * 4..XMM + number * 4 + 4];
        *register = words.iter().rev().fold(0, |value, word| value << 32 | u128::from(*word));
    }
}
