//! A vCPU that a debugger or a sampler watches. The exit loop runs it like any other one.

use super::debug::{Debuggable, DebuggedVcpu, SharedKicks};
use super::sample::{Sampled, Sampler, sample_thread};
use super::turns::TurnVcpu;
use crate::controller::vcpu::{Activity, Entry, KvmTranslation, Vcpu};
use crate::controller::{DebugControl, VcpuState};
use crate::error::Error;
use crate::exit::{Arrival, Exit};
use crate::host::Kicker;
use crate::memory::GuestMemory;
use crate::run::vcpu_threads::WithKicks;
use crate::soft::vcpu::SoftVcpu;
use crate::x86::registers::{FxImage, Regs, Sregs};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A vCPU that is watched.
pub(crate) struct WatchedVcpu<'h, 'a, V> {
    vcpu: &'h Mutex<&'a mut V>,
    memory: &'h GuestMemory,
    watcher: Watcher<'h, 'a, V>,
}

enum Watcher<'h, 'a, V> {
    Debugger(DebuggedVcpu<'h, 'a, V>),
    Sampler(Sampler<'h, 'a, V>),
}

impl<'h, 'a, V: Debuggable + Sampled> WatchedVcpu<'h, 'a, V> {
    /// A vCPU under a debugger. `None` if there is no such vCPU.
    pub(super) fn debugged(by: DebuggedVcpu<'h, 'a, V>, memory: &'h GuestMemory) -> Option<Self> {
        Some(Self { vcpu: by.vcpu()?, memory, watcher: Watcher::Debugger(by) })
    }

    /// A vCPU that is sampled.
    pub(super) fn sampled(by: Sampler<'h, 'a, V>, memory: &'h GuestMemory) -> Self {
        Self { vcpu: by.vcpu(), memory, watcher: Watcher::Sampler(by) }
    }
}

impl<'h, 'a, V> WatchedVcpu<'h, 'a, V> {
    /// The vCPU itself. A panic of another thread does not matter: it ends the run.
    fn own(&self) -> MutexGuard<'h, &'a mut V> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V: Debuggable + Sampled> Vcpu for WatchedVcpu<'_, '_, V> {
    fn enter(&mut self, entry: Entry) -> Result<(Exit, Arrival), Error> {
        match &mut self.watcher {
            Watcher::Debugger(vcpu) => vcpu.enter(entry),
            Watcher::Sampler(sampler) => sampler.enter(entry),
        }
    }

    fn rip(&mut self) -> Option<u64> {
        self.own().rip()
    }
}

impl<V: Vcpu> VcpuState for WatchedVcpu<'_, '_, V> {
    fn id(&self) -> u32 {
        self.own().id()
    }
    fn regs(&mut self) -> Result<Regs, Error> {
        self.own().regs()
    }
    fn set_regs(&mut self, regs: &Regs) -> Result<(), Error> {
        self.own().set_regs(regs)
    }
    fn sregs(&mut self) -> Result<Sregs, Error> {
        self.own().sregs()
    }
    fn set_sregs(&mut self, sregs: &Sregs) -> Result<(), Error> {
        self.own().set_sregs(sregs)
    }
    fn msr(&mut self, index: u32) -> Option<u64> {
        self.own().msr(index)
    }
    fn set_msr(&mut self, index: u32, data: u64) -> bool {
        self.own().set_msr(index, data)
    }
    fn fpu(&mut self) -> Option<FxImage> {
        self.own().fpu()
    }
    fn set_fpu(&mut self, image: &FxImage) -> bool {
        self.own().set_fpu(image)
    }
    fn activity(&mut self) -> Activity {
        self.own().activity()
    }
    fn is_in_shadow(&mut self) -> bool {
        self.own().is_in_shadow()
    }
    fn nmi_is_pending(&mut self) -> bool {
        self.own().nmi_is_pending()
    }
    fn translate(&mut self, linear: u64) -> KvmTranslation {
        self.own().translate(linear)
    }
    /// A debugger has its own reasons to stop the vCPU.
    fn set_debug(&mut self, control: &DebugControl) -> Result<(), Error> {
        match self.watcher {
            Watcher::Debugger(_) => Err(Error::Config("this vCPU is being debugged".into())),
            Watcher::Sampler(_) => self.own().set_debug(control),
        }
    }
    fn memory(&self) -> &GuestMemory {
        self.memory
    }
}

impl<V: Debuggable + Sampled + SharedKicks> WithKicks for WatchedVcpu<'_, '_, V> {
    fn with_kicks<R>(&mut self, body: impl FnOnce(&mut Self, Kicker) -> R) -> Result<R, Error> {
        V::with_shared_kicks(self.vcpu, |kicker| match &self.watcher {
            Watcher::Debugger(vcpu) => {
                vcpu.set_kicker(kicker);
                Ok(body(self, kicker))
            }
            Watcher::Sampler(sampler) => {
                let (slot, by) = sampler.timer();
                sample_thread(slot, by, || body(self, kicker))
            }
        })?
    }
}

impl TurnVcpu for WatchedVcpu<'_, '_, SoftVcpu> {
    fn take_rings(&mut self) -> u64 {
        self.own().take_rings()
    }
}
