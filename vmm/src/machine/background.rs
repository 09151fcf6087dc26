//! The background work of a machine: everything that runs while the vCPUs run.

use crate::controller::inquiry::Inquiry;
use crate::device::simvirtio::doorbell::Doorbell;
use crate::device::simvirtio::poller::Poller;
use crate::device::simvirtio::turns::Turns;
use crate::device::simvirtio::{Simvirtio, SimvirtioReport, Transport, Window};
use crate::error::Error;
use crate::exit::Stop;
use crate::machine::classic_threads::{self, Classic, RunningClassic};
use crate::machine::linux::{BootReport, Pc, RunningPc};
use crate::memory::SharedMemory;
use crate::profile::timeline::{Event, Timeline};
use crate::shutdown::{Deadline, Kick};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The background work of a machine, between two runs.
pub(super) enum Background {
    /// None: the plain map has no SIMVIRTIO.
    Nothing,
    /// The SIMVIRTIO device behind the trapped window. It works on the vCPU's thread, at each access.
    TrappedWindow(Transport, Arc<Mutex<Window>>),
    /// The SIMVIRTIO device over shared RAM, which a thread runs: it polls, or waits for the doorbell.
    SharedWindow(SharedWindow),
    /// The threads of a classic PC. `None` after its only run.
    Classic(Option<Box<Classic>>),
    /// The threads of a PC for Linux. `None` after its only run.
    Pc(Option<Box<Pc>>),
}

/// The SIMVIRTIO device over shared RAM.
pub(super) struct SharedWindow {
    /// `None` while a run has it, and after a run whose thread panicked.
    pub(super) device: Option<Box<Simvirtio<SharedMemory>>>,
    pub(super) transport: Transport,
    /// `None` if the device polls, or takes turns with software processors.
    pub(super) doorbell: Option<Arc<Doorbell>>,
}

/// The background work during a run.
pub(super) enum RunningBackground<'a> {
    Nothing,
    Trapped(Transport, &'a Mutex<Window>),
    Shared(&'a mut SharedWindow, Poller),
    Classic(Box<RunningClassic>),
    Pc(Box<RunningPc>),
}

/// The background work of a machine with software processors, during a run. It takes turns with them.
pub(super) enum SideTurns<'a> {
    Nothing,
    Classic(Box<RunningClassic>, Deadline),
    Trapped(Transport, &'a Mutex<Window>),
    Shared {
        shared: &'a mut SharedWindow,
        turns: Turns,
        /// The number of rings of the doorbell.
        rings: u64,
        /// The reason why the device ended the run, if it did.
        stop: Option<Stop>,
    },
}

/// The results of the background work.
#[derive(Default)]
pub(super) struct SideResult {
    /// The reason why background work stopped the machine, if it did.
    pub(super) stop: Option<Stop>,
    pub(super) simvirtio: Option<SimvirtioReport>,
    pub(super) boot: Option<BootReport>,
}

impl Background {
    /// The timeline of a boot.
    pub(super) fn timeline(&self) -> Option<Arc<Timeline>> {
        match self {
            Self::Pc(Some(pc)) => Some(pc.timeline.clone()),
            _ => None,
        }
    }

    /// The questions to the vCPUs of a PC.
    pub(super) fn inquiry(&self) -> Option<Arc<Inquiry>> {
        match self {
            Self::Classic(Some(classic)) => classic.inquiry.clone(),
            Self::Pc(Some(pc)) => Some(pc.inquiry.clone()),
            _ => None,
        }
    }

    /// Starts the threads. They kick `vcpus` if they stop the machine.
    ///
    /// # Errors
    /// The host has no thread left, or a PC has run before.
    pub(super) fn start(
        &mut self,
        deadline: &Deadline,
        vcpus: Arc<dyn Kick>,
    ) -> Result<RunningBackground<'_>, Error> {
        match self {
            Self::Nothing => Ok(RunningBackground::Nothing),
            Self::TrappedWindow(transport, window) => {
                lock(window).set_deadline(deadline.clone());
                Ok(RunningBackground::Trapped(*transport, window))
            }
            Self::SharedWindow(shared) => {
                let device = shared.take_device()?;
                let poller = Poller::start(*device, shared.doorbell.clone(), vcpus, deadline.clone())?;
                Ok(RunningBackground::Shared(shared, poller))
            }
            Self::Classic(classic) => {
                let classic = classic.take().ok_or_else(classic_threads::is_not_reset)?;
                Ok(RunningBackground::Classic(Box::new(classic.start(deadline.clone(), vcpus)?)))
            }
            Self::Pc(pc) => {
                let pc = pc.take().ok_or_else(|| {
                    Error::Config("a Linux machine runs once: build a new machine for the next run".into())
                })?;
                let running = pc.start(deadline.clone(), vcpus)?;
                running.timeline().mark(Event::FirstInstruction);
                Ok(RunningBackground::Pc(Box::new(running)))
            }
        }
    }

    /// Prepares the work that takes turns with software processors, and starts the threads of a classic PC. They kick `vcpus` if
    /// they stop the machine.
    ///
    /// # Errors
    /// The machine is a PC for Linux, or lost its device in a failed run; or the host has no thread left.
    pub(super) fn take_turns(
        &mut self,
        deadline: &Deadline,
        vcpus: Arc<dyn Kick>,
    ) -> Result<SideTurns<'_>, Error> {
        match self {
            Self::Nothing => Ok(SideTurns::Nothing),
            Self::TrappedWindow(transport, window) => {
                lock(window).set_deadline(deadline.clone());
                Ok(SideTurns::Trapped(*transport, window))
            }
            Self::SharedWindow(shared) => {
                let turns = Turns::new(shared.take_device()?, deadline.clone());
                Ok(SideTurns::Shared { shared, turns, rings: 0, stop: None })
            }
            Self::Classic(classic) => {
                let classic = classic.take().ok_or_else(classic_threads::is_not_reset)?;
                let running = classic.start(deadline.clone(), vcpus)?;
                Ok(SideTurns::Classic(Box::new(running), deadline.clone()))
            }
            Self::Pc(_) => Err(Error::Config("a PC needs KVM".into())),
        }
    }

    /// Refuses the reset of a classic PC.
    pub(super) fn check_reset(&self) -> Result<(), Error> {
        match self {
            Self::Classic(_) => Err(classic_threads::is_not_reset()),
            _ => Ok(()),
        }
    }

    /// Puts the SIMVIRTIO device into the state after power-on.
    pub(super) fn reset(&mut self) {
        match self {
            Self::Nothing | Self::Classic(_) | Self::Pc(_) => {}
            Self::TrappedWindow(_, window) => lock(window).power_on_again(),
            Self::SharedWindow(shared) => {
                shared.doorbell.iter().for_each(|doorbell| doorbell.reset());
                shared.device.iter_mut().for_each(|device| device.power_on_again());
            }
        }
    }
}

impl SharedWindow {
    fn take_device(&mut self) -> Result<Box<Simvirtio<SharedMemory>>, Error> {
        self.device.take().ok_or_else(|| {
            Error::Config("the SIMVIRTIO device was lost in a failed run: build a new machine".into())
        })
    }
}

impl SideTurns<'_> {
    /// The device processes what the driver has queued.
    pub(super) fn take_turn(&mut self) {
        if let Self::Shared { turns, stop, .. } = self
            && stop.is_none()
        {
            *stop = turns.take_turn().break_value();
        }
    }

    /// Adds rings of the doorbell.
    pub(super) fn add_rings(&mut self, more: u64) {
        if let Self::Shared { rings, .. } = self {
            *rings = rings.saturating_add(more);
        }
    }

    /// True if the device or a thread has ended the run.
    pub(super) fn has_stopped(&self) -> bool {
        match self {
            Self::Shared { stop, .. } => stop.is_some(),
            Self::Classic(running, _) => running.has_ended(),
            _ => false,
        }
    }

    /// Ends the work, and gives its results.
    pub(super) fn finish(self) -> SideResult {
        match self {
            Self::Nothing => SideResult::default(),
            Self::Classic(running, deadline) => {
                SideResult { stop: running.finish(&deadline), ..Default::default() }
            }
            Self::Trapped(transport, window) => trapped(transport, window),
            Self::Shared { shared, turns, rings, stop } => {
                let (device, stop) = turns.finish(stop);
                let simvirtio = Some(SimvirtioReport { rings, ..device.report(shared.transport) });
                shared.device = Some(device);
                SideResult { stop, simvirtio, boot: None }
            }
        }
    }
}

/// The results of a device behind a trapped window. It has handled each store at once: nothing is left in the queue.
fn trapped(transport: Transport, window: &Mutex<Window>) -> SideResult {
    let simvirtio = Some(lock(window).simvirtio().report(transport));
    SideResult { simvirtio, ..Default::default() }
}

impl RunningBackground<'_> {
    /// Ends the threads, and gives their results. A thread that panicked is a failure of the host.
    pub(super) fn finish(self, deadline: &Deadline) -> SideResult {
        match self {
            Self::Nothing => SideResult::default(),
            Self::Trapped(transport, window) => trapped(transport, window),
            // Bytes may be left in the queue. The poller handles them, and may find a protocol error.
            Self::Shared(shared, poller) => {
                let ended = match poller.finish(deadline) {
                    Ok(ended) => ended,
                    Err(error) => return SideResult { stop: Some(error.into()), ..Default::default() },
                };
                let report = ended.simvirtio.report(shared.transport);
                let (rings, thread_time) = (ended.rings, Some(ended.thread_time));
                shared.device = Some(Box::new(ended.simvirtio));
                let simvirtio = Some(SimvirtioReport { rings, thread_time, ..report });
                SideResult { stop: ended.stop, simvirtio, boot: None }
            }
            Self::Classic(running) => SideResult { stop: running.finish(deadline), ..Default::default() },
            Self::Pc(running) => {
                running.timeline().mark(Event::End);
                let (stop, boot) = running.finish(deadline);
                SideResult { stop, simvirtio: None, boot: Some(boot) }
            }
        }
    }
}

/// The lock of a device. A device whose holder panicked keeps its state: the run is over by then.
fn lock(window: &Mutex<Window>) -> MutexGuard<'_, Window> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}
