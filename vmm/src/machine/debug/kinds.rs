//! The two kinds of vCPUs, as a debugger stops them.

use super::vcpu::{Debuggable, SharedKicks};
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
}

impl Debuggable for KvmVcpu {
    const LOSES_HALTS: bool = true;

    fn complete(&mut self, entry: Entry) -> Result<Option<(Exit, Arrival)>, Error> {
        self.leave_at_once();
        self.enter(entry).map(Some)
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
