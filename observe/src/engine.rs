//! The interface of the engines: ways to see the calls that a program makes to KVM.

use crate::Error;
use std::os::fd::BorrowedFd;
use std::process::Command;
use vmm::{DETAILS, KvmCounters};

/// A vCPU of the observed program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VcpuId {
    /// The number of the VM, from 1, over all processes in the order of their creation.
    pub vm: u32,
    /// The number that the program gave to KVM_CREATE_VCPU.
    pub vcpu: u32,
}

/// One return of KVM_RUN. Times are readings of the time-stamp counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The time just before the call.
    pub entered: u64,
    /// The time just after the call.
    pub left: u64,
    /// The time of the next entry; `None` if there was none.
    pub answered: Option<u64>,
    /// The result: 0 or more, or a negative errno.
    pub result: i32,
    /// The reason of the exit, KVM_EXIT_*.
    pub reason: u32,
    /// The first bytes of its description, as for [`vmm::RunCopy::decode`].
    pub details: [u8; DETAILS],
}

/// An observation of an engine.
#[derive(Clone, Debug)]
pub enum Event {
    /// The program made a vCPU.
    Created(VcpuId),
    /// KVM_RUN returned.
    Returned(VcpuId, Record),
    /// KVM's own counters of a vCPU, at its end.
    Counters(VcpuId, KvmCounters),
    /// The vCPU exited so many times without a record.
    Lost(VcpuId, u64),
    /// So many vCPUs are not recorded.
    Unrecorded(u32),
    /// The program made so many VMs.
    Machines(u32),
}

/// A way to see the calls that a program makes to KVM.
pub trait Engine {
    /// Changes the command so that the program can be observed.
    ///
    /// # Errors
    /// A resource of the host is missing.
    fn prepare(&mut self, command: &mut Command) -> Result<(), Error>;

    /// A file that becomes readable when [`collect`](Self::collect) should be called at once. Otherwise it is called 50
    /// to 200 times a second.
    fn wakes(&self) -> Option<BorrowedFd<'_>>;

    /// Hands over what was seen since the last call.
    fn collect(&mut self, to: &mut dyn FnMut(Event));

    /// Ends the observation, and hands over the rest. The program, or children of it, may still run.
    fn finish(&mut self, to: &mut dyn FnMut(Event));

    /// Keeps what running children still need after the end of the observation.
    fn leave(&mut self);
}
