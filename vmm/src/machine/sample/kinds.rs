//! The two kinds of vCPUs, as they are sampled.

use super::Sampled;
use crate::controller::vcpu::{Entry, Vcpu};
use crate::error::Error;
use crate::exit::{Arrival, Exit};
use crate::kvm::vcpu::KvmVcpu;
use crate::soft::vcpu::SoftVcpu;

impl Sampled for KvmVcpu {
    const LEAVES: bool = true;

    fn enter_for(&mut self, entry: Entry, _: &mut u64) -> Result<Option<(Exit, Arrival)>, Error> {
        self.enter(entry).map(Some)
    }

    fn slice(&self) -> u64 {
        u64::MAX
    }

    fn interrupt_exits(&mut self) -> Option<u64> {
        self.interrupt_exits()
    }
}

impl Sampled for SoftVcpu {
    const LEAVES: bool = false;

    fn enter_for(&mut self, entry: Entry, instructions: &mut u64) -> Result<Option<(Exit, Arrival)>, Error> {
        Ok(self.enter_for(entry, instructions))
    }

    fn slice(&self) -> u64 {
        self.slice()
    }

    fn interrupt_exits(&mut self) -> Option<u64> {
        None
    }
}
