//! The vCPU: the only reader of `kvm_run`.
//!
//! [`KvmVcpu::enter`] writes the answer to the last exit into `kvm_run`, runs the guest, and decodes the
//! next exit into an owned [`Exit`]. String I/O (`rep ins`, `rep outs`) is one exit of KVM's with `count`
//! elements on a fixed port; it is handed on an element at a time, so that no controller sees a count.
//!
//! Linux `Documentation/virt/kvm/api.rst`, section 5.
#![allow(unsafe_code)]

use crate::controller::vcpu::{Entry, Location, Vcpu};
use crate::controller::{VcpuState, msr};
use crate::error::Error;
use crate::exit::{Arrival, Exit};
use crate::host::{self, Kicker};
use crate::kvm::coalesced;
use crate::kvm::counters::{self, KvmCounters};
use crate::kvm::decode::{Decoded, Transfer, decode};
use crate::kvm::vm::retry_on_eintr;
use crate::memory::{Gpa, GuestMemory, pc};
use crate::x86::modes::{self, Mode, VcpuIndex};
use kvm_bindings::{
    CpuId, KVM_CAP_SYNC_REGS, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_SYNC_X86_REGS,
    Msrs, kvm_msr_entry, kvm_regs, kvm_run, kvm_sregs,
};
use kvm_ioctls::{SyncReg, VcpuFd, VmFd};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU8;
use std::time::Duration;

/// What the answer to the last exit has to be written to.
#[derive(Clone, Copy, Debug)]
enum Pending {
    Nothing,
    MmioRead,
    Msr,
    Pio(Transfer),
}

/// The registers of a vCPU at its start.
#[derive(Debug)]
struct Start {
    /// The segment and control registers that KVM gives a new vCPU.
    reset: kvm_sregs,
    sregs: kvm_sregs,
    regs: kvm_regs,
}

/// A vCPU of KVM's.
#[derive(Debug)]
pub struct KvmVcpu {
    fd: VcpuFd,
    /// Size of the mapping behind `kvm_run`, in bytes.
    run_size: usize,
    pending: Pending,
    /// KVM has not completed the access of the last exit.
    incomplete: bool,
    /// The last exit was a HLT.
    halted: bool,
    /// Whether the kernel queues stores that this vCPU hands on.
    coalesces: bool,
    /// What the last KVM_RUN came to, while stores from before it are handed on.
    held: Option<Result<(), kvm_ioctls::Error>>,
    id: u32,
    memory: GuestMemory,
    /// Whether KVM leaves the general registers in `kvm_run` at each exit (KVM_CAP_SYNC_REGS).
    syncs: bool,
    /// Whether those there are the current ones.
    in_sync: bool,
    /// The registers that the guest starts with, if it is not Linux.
    start: Option<Box<Start>>,
    /// How often KVM_RUN has said "try again" in a row.
    refusals: u32,
}

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: libc::c_ulong = 0xae80;
/// The most accesses of one instruction that are completed before a vCPU is put back.
const MAX_FRAGMENTS: u32 = 1024;
/// How often KVM_RUN may say "try again" in a row.
const PATIENCE: u32 = 100;
/// How long a vCPU that cannot be entered before it is started is left alone.
const UNSTARTED_NAP: Duration = Duration::from_millis(1);

impl KvmVcpu {
    /// Creates vCPU number `id` of `vm` (KVM_CREATE_VCPU), in the CPU's reset state, over the machine's
    /// memory.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn new(vm: &VmFd, id: u32, memory: GuestMemory) -> Result<Self, Error> {
        let mut fd = retry_on_eintr(|| vm.create_vcpu(id.into())).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        let sets = vm.check_extension_raw(KVM_CAP_SYNC_REGS.into());
        let syncs = u32::try_from(sets).is_ok_and(|sets| sets & KVM_SYNC_X86_REGS != 0);
        if syncs {
            fd.set_sync_valid_reg(SyncReg::Register);
        }
        let run_size = vm.run_size();
        Ok(Self {
            fd,
            run_size,
            pending: Pending::Nothing,
            incomplete: false,
            halted: false,
            coalesces: false,
            held: None,
            id,
            memory,
            syncs,
            in_sync: false,
            start: None,
            refusals: 0,
        })
    }

    /// Has this vCPU hand on the stores that the kernel has queued (KVM_REGISTER_COALESCED_MMIO). The queue is the
    /// VM's, so only one of its vCPUs may do so.
    pub(crate) fn hand_on_coalesced(&mut self) {
        self.coalesces = true;
    }

    /// The oldest store that the kernel has queued.
    fn next_coalesced(&mut self) -> Result<Option<Exit>, Error> {
        if !self.coalesces {
            return Ok(None);
        }
        let sick = |bad| io::Error::new(io::ErrorKind::InvalidData, bad);
        coalesced::take(self.page()).map_err(|bad| Error::host("KVM_REGISTER_COALESCED_MMIO")(sick(bad)))
    }

    /// KVM's handle of this vCPU.
    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The vCPU's number.
    pub(crate) fn number(&self) -> u32 {
        self.id
    }

    /// True if the last exit was a HLT.
    pub(super) fn has_halted(&self) -> bool {
        self.halted
    }

    /// Lets KVM complete the access of the last exit. KVM would otherwise complete it at the next entry, over registers that
    /// are set until then (`Documentation/virt/kvm/api.rst`, section 5, the note on KVM_EXIT_IO).
    ///
    /// # Errors
    /// KVM_RUN failed, or the instruction of the last exit makes accesses without end.
    pub(super) fn complete_access(&mut self) -> Result<(), Error> {
        self.held = None;
        for _ in 0..MAX_FRAGMENTS {
            if !std::mem::take(&mut self.incomplete) {
                return Ok(());
            }
            while self.answer(Entry::Resume).is_some() {}
            self.fd.set_kvm_immediate_exit(1);
            let completed = self.run();
            self.fd.set_kvm_immediate_exit(0);
            match completed {
                // The instruction has a further access.
                Ok(()) => drop(self.decode()),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(Error::kvm("KVM_RUN")(error)),
            }
        }
        Err(Error::Host {
            operation: "completing an instruction",
            source: io::Error::other("it makes accesses without end"),
        })
    }

    /// Sets the registers that the guest starts with.
    ///
    /// # Errors
    /// The kernel refused, or the vCPU was started for Linux.
    pub(super) fn restore_registers(&mut self) -> Result<(), Error> {
        let Some(start) = &self.start else {
            return Err(Error::Config("a Linux machine cannot be reset: build a new machine".into()));
        };
        self.fd.set_sregs(&start.sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
        let regs = start.regs;
        // With KVM_CAP_SYNC_REGS, KVM takes these at the next entry, without a call of their own.
        self.set_regs(&regs)
    }

    /// Says what CPUID shows the guest. Must come before the first entry.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn set_cpuid(&self, cpuid: &CpuId) -> Result<(), Error> {
        self.fd.set_cpuid2(cpuid).map_err(Error::kvm("KVM_SET_CPUID2"))
    }

    /// Sets the registers to enter `mode` at `entry`, and remembers them for [`restore`](Self::restore).
    ///
    /// # Errors
    /// The kernel refused.
    pub fn set_mode(&mut self, mode: Mode, entry: Gpa, tables: Gpa, index: VcpuIndex) -> Result<(), Error> {
        let reset = match &self.start {
            Some(start) => start.reset,
            None => self.sregs()?,
        };
        let sregs = modes::sregs(mode, reset, tables, index);
        let regs = modes::regs(mode, entry, index);
        self.start = Some(Box::new(Start { reset, sregs, regs }));
        self.fd.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
        self.fd.set_regs(&regs).map_err(Error::kvm("KVM_SET_REGS"))
    }

    /// Sets the registers to enter a Linux kernel at `entry`, over what is at the places of the PC map.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn set_linux(&mut self, entry: Gpa) -> Result<(), Error> {
        let sregs = modes::linux_sregs(self.sregs()?, pc::GDT, pc::PAGE_TABLES);
        self.fd.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
        self.fd.set_regs(&modes::linux_regs(entry, pc::BOOT_PARAMS)).map_err(Error::kvm("KVM_SET_REGS"))?;
        Ok(())
    }

    /// Leaves in the model-specific registers what firmware leaves there for Linux.
    pub(crate) fn set_boot_msrs(&mut self) {
        for (index, bits) in msr::LINUX_BOOT {
            let data = self.msr(index).unwrap_or(0) | bits;
            if !self.set_msr(index, data) {
                log::debug!("KVM does not take {data:#x} for MSR {index:#x}");
            }
        }
    }

    /// Where the vCPU is. `after_shutdown` says that it has triple-faulted, and may have been reset for that.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn location(&mut self, after_shutdown: bool) -> Result<Location, Error> {
        let sregs = self.sregs()?;
        let rip = self.regs()?.rip;
        let cs = sregs.cs.selector;
        let protected = sregs.cr0 & modes::CR0_PE != 0;
        if after_shutdown && !protected && cs == 0xf000 && rip == 0xfff0 {
            return Ok(Location::Reset);
        }
        let long = sregs.efer & modes::EFER_LMA != 0 && sregs.cs.l == 1;
        let mode = match (protected, long) {
            (false, _) => Mode::Real,
            (true, false) => Mode::Protected,
            (true, true) if cs & 3 == 3 => Mode::User,
            (true, true) => Mode::Long,
        };
        Ok(Location::At { mode, cs, rip })
    }

    /// KVM's own counters of this vCPU.
    ///
    /// # Errors
    /// The kernel does not show its counters.
    pub fn counters(&self) -> io::Result<KvmCounters> {
        counters::kvm_counters(&self.fd)
    }

    /// How fast the guest's time-stamp counter counts, which is the host's unless somebody changes it, in kHz;
    /// `None` where KVM does not know.
    pub(crate) fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok()
    }

    /// Runs `body` on this thread with a way to kick this vCPU out of the guest.
    ///
    /// # Errors
    /// The host cannot deliver the kick.
    pub(crate) fn with_kicks<R>(&mut self, body: impl FnOnce(&mut Self, Kicker) -> R) -> Result<R, Error> {
        let immediate_exit = &raw mut self.fd.get_kvm_run().immediate_exit;
        // SAFETY: `kvm_run` stays mapped as long as the vCPU, which `body` only borrows; the kernel and this
        // thread read the byte, and an AtomicU8 is laid out as a u8.
        unsafe { host::with_kicks(immediate_exit.cast::<AtomicU8>(), |kicker| body(self, kicker)) }
            .map_err(Error::host("sigaction"))
    }

    /// Whether it waits for another vCPU to start it (INIT, SIPI).
    fn is_unstarted(&self) -> bool {
        self.fd.get_mp_state().is_ok_and(|state| {
            [KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED].contains(&state.mp_state)
        })
    }

    /// Runs the guest until its next exit (KVM_RUN). `VcpuFd::run` would decode that, for nobody: [`Exit`] is this crate's own.
    fn run(&mut self) -> Result<(), kvm_ioctls::Error> {
        // SAFETY: the call's argument is 0, and `kvm_run`, which the kernel fills, is the vCPU's own mapping.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_RUN as _, 0 as libc::c_ulong) } {
            0.. => Ok(()),
            _ => Err(kvm_ioctls::Error::last()),
        }
    }

    /// The exit that `kvm_run` holds; of port I/O the first element.
    fn decode(&mut self) -> Exit {
        match decode(self.fd.get_kvm_run()) {
            Decoded::Pio(transfer) => {
                (self.incomplete, self.halted) = (true, false);
                self.pending = Pending::Pio(transfer);
                transfer.exit(self.page())
            }
            Decoded::Exit(exit) => {
                self.incomplete = exit.is_access();
                self.halted = exit == Exit::Hlt;
                self.pending = match exit {
                    Exit::MmioRead { .. } => Pending::MmioRead,
                    Exit::RdMsr { .. } | Exit::WrMsr { .. } => Pending::Msr,
                    _ => Pending::Nothing,
                };
                exit
            }
        }
    }

    /// All of the mapping that begins with `kvm_run`.
    fn page(&mut self) -> &mut [u8] {
        let run: *mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: the kernel said that the mapping has this size, and the vCPU does not run meanwhile.
        unsafe { std::slice::from_raw_parts_mut(run.cast(), self.run_size) }
    }

    /// Writes the answer to the last exit. Returns the next element, where that exit had one more.
    fn answer(&mut self, entry: Entry) -> Option<Exit> {
        let value = match entry {
            Entry::Value(value) => value,
            Entry::Resume | Entry::Fault => u64::MAX,
        };
        match std::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Nothing => None,
            Pending::MmioRead => {
                self.fd.get_kvm_run().__bindgen_anon_1.mmio.data = value.to_le_bytes();
                None
            }
            Pending::Msr => {
                // SAFETY: the last exit was an MSR access, so this is what the kernel has filled.
                let msr = unsafe { &mut self.fd.get_kvm_run().__bindgen_anon_1.msr };
                (msr.data, msr.error) = (value, (entry == Entry::Fault).into());
                None
            }
            Pending::Pio(transfer) => {
                if !transfer.out {
                    transfer.answer(self.page(), value);
                }
                let next = transfer.next()?;
                self.pending = Pending::Pio(next);
                Some(next.exit(self.page()))
            }
        }
    }
}

impl VcpuState for KvmVcpu {
    fn id(&self) -> u32 {
        self.id
    }

    fn regs(&mut self) -> Result<kvm_regs, Error> {
        if self.in_sync {
            return Ok(self.fd.sync_regs().regs);
        }
        self.fd.get_regs().map_err(Error::kvm("KVM_GET_REGS"))
    }

    fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), Error> {
        if self.in_sync {
            self.fd.sync_regs_mut().regs = *regs;
            self.fd.set_sync_dirty_reg(SyncReg::Register);
            return Ok(());
        }
        self.fd.set_regs(regs).map_err(Error::kvm("KVM_SET_REGS"))
    }

    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<(), Error> {
        self.fd.set_sregs(sregs).map_err(Error::kvm("KVM_SET_SREGS"))
    }

    fn sregs(&mut self) -> Result<kvm_sregs, Error> {
        self.fd.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))
    }

    fn msr(&mut self, index: u32) -> Option<u64> {
        let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).ok()?;
        (self.fd.get_msrs(&mut msrs) == Ok(1)).then(|| msrs.as_slice().first().map(|msr| msr.data))?
    }

    fn set_msr(&mut self, index: u32, data: u64) -> bool {
        let msrs = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]);
        msrs.is_ok_and(|msrs| self.fd.set_msrs(&msrs) == Ok(1))
    }

    fn translate(&mut self, linear: u64) -> Option<Option<Gpa>> {
        let answer = self.fd.translate_gva(linear).ok()?;
        Some((answer.valid != 0).then_some(Gpa(answer.physical_address)))
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}

impl Vcpu for KvmVcpu {
    fn enter(&mut self, entry: Entry) -> Result<(Exit, Arrival), Error> {
        let answer = match self.held.take() {
            // A queued store has no answer: the last exit's is still to come.
            Some(held) => held,
            None => {
                if let Some(element) = self.answer(entry) {
                    return Ok((element, Arrival::NextElement));
                }
                let answer = self.run();
                self.in_sync = self.syncs;
                answer
            }
        };
        // What was stored first is seen first.
        if let Some(store) = self.next_coalesced()? {
            self.held = Some(answer);
            return Ok((store, Arrival::Coalesced));
        }
        match answer {
            Ok(()) => {
                self.refusals = 0;
                Ok((self.decode(), Arrival::FromGuest))
            }
            Err(error) if error.errno() == libc::EINTR => {
                self.halted = false;
                self.fd.set_kvm_immediate_exit(0);
                Ok((Exit::Interrupted, Arrival::FromGuest))
            }
            // A vCPU that the guest has not started, but has sent an interrupt: it waits for the start.
            Err(error) if error.errno() == libc::EAGAIN && self.is_unstarted() => {
                self.refusals = 0;
                std::thread::sleep(UNSTARTED_NAP);
                Ok((Exit::Interrupted, Arrival::FromGuest))
            }
            // "Try again" may mean that the host lacks something for good.
            Err(error) if error.errno() == libc::EAGAIN && self.refusals < PATIENCE => {
                self.refusals += 1;
                std::thread::yield_now();
                Ok((Exit::Interrupted, Arrival::FromGuest))
            }
            Err(error) => Err(Error::kvm("KVM_RUN")(error)),
        }
    }

    fn rip(&mut self) -> Option<u64> {
        self.in_sync.then(|| self.fd.sync_regs().regs.rip)
    }
}
