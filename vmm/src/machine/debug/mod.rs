//! Debugging a guest: its vCPUs stop together, are looked at and changed, and go on.
//!
//! A [`Debugger`] runs on its own thread during [`Machine::run_debugged`](super::Machine::run_debugged). It controls the
//! guest through a [`DebugGuest`].
//!
//! ```text
//! exit loop -> WatchedVcpu::enter -> the vCPU
//!                     | waits while the guest is stopped
//!                    Hub <- DebugGuest <- the debugger's thread
//! ```
//!
//! The exit loop, the controllers and the devices are those of every run. Only the vCPU is another one: `WatchedVcpu`
//! wraps it. A run without a debugger has none of this code on its path.
//!
//! | file | contents |
//! |---|---|
//! | `hub.rs` | the state that the vCPUs and the debugger share: stopped or running, and the plan |
//! | `vcpu.rs` | the vCPU that stops for a debugger |
//! | `plan.rs` | what each vCPU does until the next stop |
//! | `patches.rs` | breakpoints that are an instruction in memory: an `int3`, or an `out` |
//! | `kinds.rs` | the two kinds of vCPUs |

mod hub;
mod kinds;
mod patches;
mod plan;
mod vcpu;

pub use patches::Planted;
pub use plan::{Action, Facilities, MAX_BREAKPOINTS, MAX_WATCHED, MAX_WATCHPOINTS, Method, Plan};

use crate::controller::inquiry::Inquiry;
use crate::controller::{Devices, VcpuState};
use crate::error::Error;
use crate::exit::{Exit, PointKind};
use crate::host::{ThreadKind, thread_started};
use crate::memory::GuestMemory;
use crate::shutdown::Deadline;
use hub::Hub;
use std::thread;
pub(super) use vcpu::{Debuggable, DebuggedVcpu, SharedKicks};

/// A function that tells the debugger's thread that the guest has stopped or ended. It must not block.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// A debugger: something that stops a guest and looks at it.
pub trait Debugger: Send {
    /// True if the guest waits before its first instruction.
    fn stops_at_start(&self) -> bool;

    /// The function that wakes [`serve`](Self::serve).
    fn waker(&self) -> Waker;

    /// Controls the guest, on a thread of its own. Must return soon after the guest has [ended](GuestStatus::Ended).
    fn serve(&mut self, guest: &dyn DebugGuest);
}

/// The reason why the guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is before its first instruction.
    Start,
    /// The debugger asked for it.
    Asked,
    /// A step is complete.
    Stepped,
    /// The next instruction is at a breakpoint.
    Breakpoint,
    /// The instruction that is complete has accessed watched memory: its linear address, and the kind of the watchpoint.
    Watchpoint(u64, PointKind),
    /// An `int3` of the guest, which it has not executed.
    Software,
    /// The guest died of this exit. It cannot go on.
    Died(Exit),
}

/// The status of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestStatus {
    /// At least one vCPU may be executing instructions.
    Running,
    /// All vCPUs have stopped. The index is that of the vCPU that has the reason.
    Stopped(usize, Why),
    /// The run is over.
    Ended,
}

/// An exit that a vCPU has made.
#[derive(Clone, Copy, Debug)]
pub struct SeenExit {
    /// The index of the vCPU.
    pub vcpu: usize,
    /// RIP at the exit.
    pub rip: u64,
    /// The exit.
    pub exit: Exit,
}

/// A guest, as its debugger sees it.
pub trait DebugGuest: Sync {
    /// The number of vCPUs.
    fn vcpus(&self) -> usize;

    /// The status. While the guest is to stop and has not stopped yet, each call interrupts its vCPUs again.
    fn status(&self) -> GuestStatus;

    /// Asks the guest to stop.
    fn stop(&self);

    /// Lets the stopped guest go on with this plan.
    fn resume(&self, plan: Plan);

    /// The way in which the breakpoints and watchpoints of the last plan are found. It may be stepping, because an instruction
    /// cannot be put at one of them. `None` if it has none.
    fn method(&self) -> Option<Method>;

    /// Ends the run as if a signal had interrupted it.
    fn end(&self);

    /// Calls `body` with a vCPU. Returns false if there is no such vCPU.
    fn with_vcpu(&self, index: usize, body: &mut dyn FnMut(&mut dyn VcpuState)) -> bool;

    /// The guest's memory.
    fn memory(&self) -> &GuestMemory;

    /// The devices of the machine.
    fn devices(&self) -> &Devices;

    /// The last exits, oldest first, and the number of all exits.
    fn exits(&self) -> (Vec<SeenExit>, u64);
}

/// The parts of a machine that its vCPUs and its debugger share.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) memory: &'a GuestMemory,
    pub(super) devices: &'a Devices,
    pub(super) deadline: &'a Deadline,
    /// The question of a watch of the guest's progress.
    pub(super) inquiry: Option<&'a Inquiry>,
    /// HLT is an exit: the machine has no interrupt controllers in KVM.
    pub(super) leaves_on_halt: bool,
}

/// Runs `run` with vCPUs that stop for the debugger, which runs on a thread of its own.
///
/// # Errors
/// The host has no thread left.
pub(super) fn debugged<V: Debuggable, R>(
    vcpus: &mut [V],
    parts: &Parts<'_>,
    debugger: &mut dyn Debugger,
    run: impl FnOnce(Vec<DebuggedVcpu<'_, '_, V>>) -> R,
) -> Result<R, Error> {
    let hub = Hub::new(vcpus, *parts, debugger);
    thread::scope(|scope| {
        let serve = || {
            thread_started(ThreadKind::Debugger);
            debugger.serve(&hub);
        };
        thread::Builder::new()
            .name("debugger".into())
            .spawn_scoped(scope, serve)
            .map_err(Error::host("starting the debugger's thread"))?;
        // The debugger's thread ends when the run does, also when it panics.
        let _end = hub.ends_with_run();
        Ok(run((0..hub.vcpus()).map(|index| DebuggedVcpu::new(&hub, index)).collect()))
    })
}

#[cfg(test)]
mod tests;
