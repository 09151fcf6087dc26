//! The two kinds of vCPUs, as a debugger stops them.

use super::vcpu::{Debuggable, SharedKicks};
use crate::controller::VcpuState;
use crate::controller::vcpu::{Entry, Vcpu};
use crate::error::Error;
use crate::exit::{Arrival, Exit};
use crate::host::Kicker;
use crate::kvm::vcpu::KvmVcpu;
use crate::soft::vcpu::SoftVcpu;
use std::sync::Mutex;

impl Debuggable for SoftVcpu {
    const LOSES_HALTS: bool = false;

    /// The processor keeps the answer until it goes on.
    fn complete(&mut self, _: Entry) -> Result<Option<(Exit, Arrival)>, Error> {
        Ok(None)
    }

    fn restart(&mut self, _: u64) -> Result<(), Error> {
        self.forget_exit();
        Ok(())
    }
}

impl Debuggable for KvmVcpu {
    const LOSES_HALTS: bool = true;

    fn complete(&mut self, entry: Entry) -> Result<Option<(Exit, Arrival)>, Error> {
        self.leave_at_once();
        self.enter(entry).map(Some)
    }

    fn restart(&mut self, len: u64) -> Result<(), Error> {
        let mut regs = self.regs()?;
        regs.rip = regs.rip.wrapping_sub(len);
        self.set_regs(&regs)
    }

    fn after_stop(&mut self) {
        self.tell_clock_of_stop();
    }
}

impl SharedKicks for KvmVcpu {
    fn with_shared_kicks<R>(vcpu: &Mutex<&mut Self>, body: impl FnOnce(Kicker) -> R) -> Result<R, Error> {
        Self::with_shared_kicks(vcpu, body)
    }
}
