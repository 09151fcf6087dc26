//! The interface of the engines: ways to see the calls that a program makes to KVM.

use crate::error::Error;
use jail::Place;
use std::os::fd::BorrowedFd;
use std::process::Command;
use std::time::Duration;
use vmm::x86::{Regs, Sregs};
use vmm::{DETAILS, KvmCounters};

/// The largest number of bytes of the structure of a call that is kept.
pub const MOST_DATA: usize = 16 * 1024;

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
    /// RIP at the exit, if it was asked for and KVM reports it.
    pub rip: Option<u64>,
    /// The first bytes of its description, as for [`vmm::RunCopy::decode`]. Of a read that was answered, the first 8 bytes that
    /// were in the place of the answer before: for port I/O at 8, for MMIO at 24.
    pub details: [u8; DETAILS],
}

/// The object that a call to KVM is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// `/dev/kvm`.
    System,
    /// A VM, by its number as in [`VcpuId::vm`].
    Vm(u32),
    /// A vCPU.
    Vcpu(VcpuId),
}

/// A call that the program made to KVM, other than KVM_RUN (Linux `Documentation/virt/kvm/api.rst`, section 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The process that made it.
    pub process: i32,
    /// The object that it was made on.
    pub target: Target,
    /// The number of the request, such as KVM_SET_SREGS.
    pub request: u32,
    /// The argument: a value, or the address of a structure.
    pub argument: u64,
    /// The structure after the call: as many bytes as the request has, with the array that follows it where the structure
    /// counts its elements. At most [`MOST_DATA`]. Empty if the argument is a value, or is not readable.
    pub data: Vec<u8>,
    /// The result: 0 or more, or a negative errno.
    pub result: i32,
}

/// The reason why a vCPU waits for the observer.
#[derive(Clone, Debug)]
pub enum StopCause {
    /// It is about to enter its guest for the first time.
    FirstEntry,
    /// It has left its guest, and the program has not seen this yet.
    Exit(Record),
    /// KVM has refused a call that sets its registers.
    Refused(Call),
    /// The time of the program is over, and the vCPU was in KVM_RUN. It made no exit for this time, which engines leave 0.
    Running(Duration),
}

/// A vCPU that waits for the observer: its registers and the memory of its guest do not change meanwhile, unless another
/// vCPU changes the memory.
#[derive(Clone, Debug)]
pub struct Stop {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// The process that has the memory of the guest.
    pub process: i32,
    /// The reason.
    pub cause: StopCause,
    /// The results of KVM_GET_REGS and KVM_GET_SREGS; `None` if KVM refuses them.
    pub registers: Option<Box<(Regs, Sregs)>>,
}

/// The stops that an observation needs besides those of dying guests. Each costs the program some 20 us or more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// Stop at the first entry of each vCPU.
    pub first_entry: bool,
    /// Stop at the first exits for HLT of each vCPU, 16 at most.
    pub halts: bool,
    /// Record RIP at each exit. Only the engine `ptrace` does.
    pub rip: bool,
}

/// An observation of an engine.
#[derive(Clone, Debug)]
pub enum Event {
    /// The program called KVM. Reported are the calls that build the machine: all calls until the first entry of the VM, and
    /// afterwards those that change memory slots, create something, or fail. An engine keeps their number limited.
    Called(Call),
    /// A vCPU waits. It goes on when the receiver of the event has returned. The calls before it have been handed over.
    Stopped(Box<Stop>),
    /// The program made a vCPU.
    Created(VcpuId),
    /// KVM_RUN returned.
    Returned(VcpuId, Record),
    /// KVM's own counters of a vCPU, at its end.
    Counters(VcpuId, KvmCounters),
    /// The vCPU exited so many times without a record.
    Lost(VcpuId, u64),
    /// So many calls were not reported, because the limit was reached, or because the observer could not keep up. It comes
    /// once, at the end.
    LostCalls(u64),
    /// So many vCPUs are not recorded.
    Unrecorded(u32),
    /// The program does not let this process see its files (PR_SET_DUMPABLE), so that its VMs cannot be told.
    Hidden,
    /// The program made so many VMs.
    Machines(u32),
}

/// A way to see the calls that a program makes to KVM.
pub trait Engine {
    /// The name, as `--engine` has it.
    fn name(&self) -> &'static str;

    /// Changes the command so that the program can be observed. Dying guests always make a stop: an exit with
    /// KVM_EXIT_SHUTDOWN, KVM_EXIT_FAIL_ENTRY or KVM_EXIT_INTERNAL_ERROR, a KVM_RUN that fails with another error than EINTR
    /// and EAGAIN, and a refused KVM_SET_SREGS.
    ///
    /// `is_isolated` if the program may get a PID namespace, in which its processes have other numbers.
    ///
    /// # Errors
    /// A resource of the host is missing.
    fn prepare(&mut self, command: &mut Command, stops: Stops, is_isolated: bool) -> Result<(), Error>;

    /// Starts the command. Returns the number of its process.
    ///
    /// # Errors
    /// The program cannot be started, or not be observed.
    fn start(&mut self, command: &mut Command) -> Result<i32, Error> {
        let child = command.spawn().map_err(Error::host(Error::STARTING))?;
        Ok(i32::try_from(child.id()).unwrap_or_default())
    }

    /// True if the thread that called [`start`](Self::start) traces the program with ptrace(2). Then each state that it gets
    /// from waitpid(2) goes to [`changed`](Self::changed).
    fn traces(&self) -> bool {
        false
    }

    /// Takes a state of a child or of a traced thread, and hands over what was seen.
    fn changed(&mut self, _tid: i32, _status: i32, _to: &mut dyn FnMut(Event)) {}

    /// The files that the program needs to be observed.
    fn places(&self) -> Vec<Place> {
        Vec::new()
    }

    /// A file that becomes readable when [`collect`](Self::collect) should be called at once. Otherwise it is called 50
    /// to 200 times a second.
    fn wakes(&self) -> Option<BorrowedFd<'_>>;

    /// Hands over what was seen since the last call.
    fn collect(&mut self, to: &mut dyn FnMut(Event));

    /// Takes the vCPUs that are in KVM_RUN out of it, and hands each over once ([`StopCause::Running`]), now or with its next
    /// state. They go on after that. For the end of the time limit.
    fn inspect(&mut self, _to: &mut dyn FnMut(Event)) {}

    /// Ends the observation, and hands over the rest. The program, or children of it, may still run.
    fn finish(&mut self, to: &mut dyn FnMut(Event));

    /// Keeps what running children still need after the end of the observation.
    fn leave(&mut self);
}
