//! The vCPU.
//!
//! [`KvmVcpu::enter`] writes the answer to the last exit into `kvm_run`, runs the guest, and decodes the next exit into
//! an owned [`Exit`]. For KVM, string I/O (`rep ins`, `rep outs`) is one exit with `count` elements of one port. The vCPU
//! returns it element by element: controllers see only single accesses. `state.rs` has the
//! registers, and `restore.rs` puts the vCPU back to its start.
//!
//! Linux `Documentation/virt/kvm/api.rst`, section 5.
#![allow(unsafe_code)]

mod debug;
mod restore;
mod state;

use crate::controller::vcpu::{Entry, Vcpu};
use crate::error::Error;
use crate::exit::{Arrival, Exit};
use crate::host::{self, Kicker};
use crate::kvm::coalesced;
use crate::kvm::counters::OneCounter;
use crate::kvm::decode::{Decoded, Transfer, decode};
use crate::kvm::retry::retry_on_eintr;
use crate::kvm::run_page::RunPage;
use crate::memory::GuestMemory;
use debug::{Debugging, Turn};
use kvm_bindings::{
    KVM_CAP_SYNC_REGS, KVM_EXIT_DEBUG, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
    KVM_SYNC_X86_REGS,
};
use kvm_ioctls::{VcpuFd, VmFd};
use restore::Start;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: libc::c_ulong = 0xae80;
/// The number of times in a row that KVM_RUN may fail with EAGAIN. More of them are an error.
const MAX_RETRIES: u32 = 100;
/// The delay before the next attempt to enter a vCPU that the guest has not started yet.
const UNSTARTED_DELAY: Duration = Duration::from_millis(1);

/// The place in `kvm_run` for the answer to the last exit.
#[derive(Clone, Copy, Debug)]
enum Pending {
    Nothing,
    MmioRead,
    Msr,
    Pio(Transfer),
}

/// A vCPU of KVM.
#[derive(Debug)]
pub struct KvmVcpu {
    /// The mapping that `fd` owns. The first field is dropped first.
    page: RunPage,
    fd: VcpuFd,
    pending: Pending,
    /// Set if KVM has not completed the access of the last exit.
    incomplete: bool,
    /// Set if the last exit was a HLT.
    halted: bool,
    /// Set if this vCPU returns the stores that the kernel queues.
    coalesces: bool,
    /// The way in which the vCPU is entered next.
    turn: Turn,
    id: u32,
    memory: GuestMemory,
    /// Set if KVM stores the general registers in `kvm_run` at each exit (KVM_CAP_SYNC_REGS).
    syncs_regs: bool,
    /// Set if the registers in `kvm_run` are current.
    regs_in_sync: bool,
    /// The registers at the guest's start. `None` for Linux, which is not put back.
    start: Option<Box<Start>>,
    /// The model-specific registers that are put back, with their values. `None` before the first time.
    restored_msrs: Option<Vec<(u32, u64)>>,
    /// Set if CPUID shows XSAVE, so that the guest may change XCR0.
    has_xsave: bool,
    /// The number of times in a row that KVM_RUN failed with EAGAIN.
    retries: u32,
    /// The reasons to stop for a debugger.
    debug: Option<Box<Debugging>>,
    /// KVM's counter of interrupts, once it is asked for. The inner `None` if the kernel has none.
    interrupt_counter: Option<Option<OneCounter>>,
}

impl KvmVcpu {
    /// Creates vCPU number `id` of `vm` (KVM_CREATE_VCPU), in the processor's reset state. `memory` is the machine's
    /// memory.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn new(vm: &VmFd, id: u32, memory: GuestMemory) -> Result<Self, Error> {
        let mut fd = retry_on_eintr(|| vm.create_vcpu(id.into())).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        let sets = vm.check_extension_raw(KVM_CAP_SYNC_REGS.into());
        let syncs_regs = u32::try_from(sets).is_ok_and(|sets| sets & KVM_SYNC_X86_REGS != 0);
        // SAFETY: the page and `fd` have one owner, which calls no such method of `fd`.
        let page = unsafe { RunPage::of(&mut fd, vm.run_size()) };
        let short = || io::Error::new(io::ErrorKind::InvalidData, "the mapping is too short for kvm_run");
        let page = page.ok_or_else(short).map_err(Error::host("KVM_GET_VCPU_MMAP_SIZE"))?;
        if syncs_regs {
            page.sync_registers();
        }
        Ok(Self {
            page,
            fd,
            pending: Pending::Nothing,
            incomplete: false,
            halted: false,
            coalesces: false,
            turn: Turn::Run,
            id,
            memory,
            syncs_regs,
            regs_in_sync: false,
            start: None,
            restored_msrs: None,
            has_xsave: false,
            retries: 0,
            debug: None,
            interrupt_counter: None,
        })
    }

    /// Makes this vCPU return the stores that the kernel queues (KVM_REGISTER_COALESCED_MMIO). The VM has one queue, so
    /// only one of its vCPUs may do this.
    pub(crate) fn hand_on_coalesced(&mut self) {
        self.coalesces = true;
    }

    /// Removes the oldest store from the kernel's queue.
    #[inline(always)]
    fn next_coalesced(&mut self) -> Result<Option<Exit>, Error> {
        if !self.coalesces {
            return Ok(None);
        }
        let invalid = |bad| io::Error::new(io::ErrorKind::InvalidData, bad);
        coalesced::take(&self.page).map_err(|bad| Error::host("KVM_REGISTER_COALESCED_MMIO")(invalid(bad)))
    }

    /// Runs `body` on this thread, with a kicker that makes this vCPU leave the guest.
    ///
    /// # Errors
    /// The handler of the kick signal cannot be installed.
    pub(crate) fn with_kicks<R>(&mut self, body: impl FnOnce(&mut Self, Kicker) -> R) -> Result<R, Error> {
        // SAFETY: `kvm_run` stays mapped as long as the vCPU, which `body` only borrows.
        unsafe { host::with_kicks(self.page.immediate_exit(), |kicker| body(self, kicker)) }
            .map_err(Error::host("sigaction"))
    }

    /// As [`with_kicks`](Self::with_kicks), for a vCPU that a debugger shares.
    ///
    /// # Errors
    /// The handler of the kick signal cannot be installed.
    pub(crate) fn with_shared_kicks<R>(
        vcpu: &Mutex<&mut Self>,
        body: impl FnOnce(Kicker) -> R,
    ) -> Result<R, Error> {
        let immediate_exit = vcpu.lock().unwrap_or_else(PoisonError::into_inner).page.immediate_exit();
        // SAFETY: `kvm_run` stays mapped as long as the vCPU, which the mutex borrows during the whole call.
        unsafe { host::with_kicks(immediate_exit, body) }.map_err(Error::host("sigaction"))
    }

    /// Makes the next entry complete the access of the last exit, and leave at once.
    pub(crate) fn leave_at_once(&self) {
        self.page.set_immediate_exit(1);
    }

    /// Tells the guest's clock that the guest was stopped (KVM_KVMCLOCK_CTRL), so that Linux reports no soft lockup. A guest
    /// without kvm-clock has no use for it.
    pub(crate) fn tell_clock_of_stop(&self) {
        if let Err(error) = self.fd.kvmclock_ctrl() {
            log::debug!("KVM_KVMCLOCK_CTRL: {error}");
        }
    }

    /// True if the vCPU waits for another vCPU to start it (INIT, SIPI).
    pub(crate) fn is_unstarted(&self) -> bool {
        self.fd.get_mp_state().is_ok_and(|state| {
            [KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED].contains(&state.mp_state)
        })
    }

    /// Runs the guest until its next exit (KVM_RUN). It does not use `VcpuFd::run`, which would also decode the exit.
    #[inline(always)]
    fn run(&mut self) -> Result<(), kvm_ioctls::Error> {
        // SAFETY: the call's argument is 0, and `kvm_run`, which the kernel fills, is the vCPU's own mapping.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_RUN as _, 0 as libc::c_ulong) } {
            0.. => Ok(()),
            _ => Err(kvm_ioctls::Error::last()),
        }
    }

    /// Decodes the exit in `kvm_run`. For port I/O: its first element.
    #[inline(always)]
    fn decode(&mut self) -> Exit {
        match decode(&self.page) {
            Decoded::Pio(transfer) => {
                (self.incomplete, self.halted) = (true, false);
                self.pending = Pending::Pio(transfer);
                transfer.exit(&self.page)
            }
            Decoded::Exit(exit) => {
                (self.incomplete, self.halted) = (exit.is_access(), exit == Exit::Hlt);
                self.pending = match exit {
                    Exit::MmioRead { .. } => Pending::MmioRead,
                    Exit::RdMsr { .. } | Exit::WrMsr { .. } => Pending::Msr,
                    Exit::Other(KVM_EXIT_DEBUG) => return self.debug_exit(),
                    _ => Pending::Nothing,
                };
                exit
            }
        }
    }

    /// Writes the answer to the last exit. Returns the next element of the exit, if there is one.
    fn answer(&mut self, entry: Entry) -> Option<Exit> {
        let value = match entry {
            Entry::Value(value) => value,
            Entry::Resume | Entry::Fault => u64::MAX,
        };
        match std::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Nothing => None,
            Pending::MmioRead => {
                // SAFETY: the last exit was a load, and the field is in the mapping.
                unsafe { (*self.page.details()).mmio.data = value.to_le_bytes() };
                None
            }
            Pending::Msr => {
                // SAFETY: the last exit was an MSR access, and the fields are in the mapping.
                unsafe {
                    (*self.page.details()).msr.data = value;
                    (*self.page.details()).msr.error = (entry == Entry::Fault).into();
                }
                None
            }
            Pending::Pio(transfer) => {
                if !transfer.out {
                    transfer.answer(&self.page, value);
                }
                let next = transfer.next()?;
                self.pending = Pending::Pio(next);
                Some(next.exit(&self.page))
            }
        }
    }
}

impl Vcpu for KvmVcpu {
    fn enter(&mut self, entry: Entry) -> Result<(Exit, Arrival), Error> {
        let result = match self.turn {
            Turn::Run => {
                if let Some(element) = self.answer(entry) {
                    return Ok((element, Arrival::NextElement));
                }
                let result = self.run();
                self.regs_in_sync = self.syncs_regs;
                result
            }
            Turn::Step | Turn::Held(_) => match self.take_other_turn(entry)? {
                ControlFlow::Continue(result) => result,
                ControlFlow::Break(exit) => return Ok(exit),
            },
        };
        // Queued stores happened before this exit.
        if let Some(store) = self.next_coalesced()? {
            self.turn = Turn::Held(result);
            return Ok((store, Arrival::Coalesced));
        }
        match result {
            Ok(()) => {
                self.retries = 0;
                Ok((self.decode(), Arrival::FromGuest))
            }
            Err(error) if error.errno() == libc::EINTR => {
                (self.incomplete, self.halted) = (false, false);
                self.page.set_immediate_exit(0);
                Ok((Exit::Interrupted, Arrival::FromGuest))
            }
            // The guest has not started this vCPU, but has sent it an interrupt. KVM refuses to enter it.
            Err(error) if error.errno() == libc::EAGAIN && self.is_unstarted() => {
                self.retries = 0;
                std::thread::sleep(UNSTARTED_DELAY);
                Ok((Exit::Interrupted, Arrival::FromGuest))
            }
            // The number of retries is limited, because EAGAIN can also mean that the host lacks a resource permanently.
            Err(error) if error.errno() == libc::EAGAIN && self.retries < MAX_RETRIES => {
                self.retries += 1;
                std::thread::yield_now();
                Ok((Exit::Interrupted, Arrival::FromGuest))
            }
            Err(error) => {
                // KVM may have failed before it stored them.
                self.regs_in_sync = false;
                Err(Error::kvm("KVM_RUN")(error))
            }
        }
    }

    fn rip(&mut self) -> Option<u64> {
        self.regs_in_sync.then(|| self.page.rip())
    }
}
