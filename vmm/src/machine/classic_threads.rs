//! The disks of a classic PC, and its threads while its vCPUs run. `classic.rs` builds the machine.

pub(super) mod disks;

use crate::console::host::{ConsoleSetup, ConsoleThreads};
use crate::controller::inquiry::Inquiry;
use crate::device::pc::cmos::Cmos;
use crate::device::pc::cmos::timer::CmosTimer;
use crate::error::Error;
use crate::exit::Stop;
use crate::host::{self, EventFd};
use crate::machine::MachineKind;
use crate::shutdown::{Deadline, Kick, StopHandle};
use disks::Disks;
use std::sync::{Arc, Mutex};

/// The threads, before they start.
pub(super) struct Classic {
    pub(super) console: ConsoleSetup,
    pub(super) stop_handle: Arc<StopHandle>,
    /// Answers the questions of the thread that looks for a halt. `None` with a software processor, whose halts are exits.
    pub(super) inquiry: Option<Arc<Inquiry>>,
    pub(super) disks: Disks,
    /// The clock, and the event that wakes its timer. `None` without interrupts.
    pub(super) cmos: Option<(Arc<Mutex<Cmos>>, Arc<EventFd>)>,
}

/// The threads, while they run.
pub(super) struct RunningClassic {
    console: ConsoleThreads,
    stop_handle: Arc<StopHandle>,
    disks: Disks,
    timer: Option<CmosTimer>,
}

impl Classic {
    /// Starts the threads. They kick `vcpus` if they stop the machine.
    ///
    /// # Errors
    /// The host has no thread left.
    pub(super) fn start(self, deadline: Deadline, vcpus: Arc<dyn Kick>) -> Result<RunningClassic, Error> {
        let Self { console, stop_handle, inquiry: _, disks, cmos } = self;
        disks.begin_run(&deadline);
        stop_handle.attach(deadline, vcpus);
        let console = ConsoleThreads::start(console, stop_handle.clone())?;
        let timer = cmos.map(|(cmos, wake)| CmosTimer::start(cmos, wake)).transpose()?;
        Ok(RunningClassic { console, stop_handle, disks, timer })
    }
}

impl RunningClassic {
    /// True if one of the threads has stopped the machine.
    pub(super) fn has_ended(&self) -> bool {
        self.stop_handle.has_ended()
    }

    /// Ends the threads. Returns the reason why one of them stopped the machine, if one did.
    pub(super) fn finish(mut self, deadline: &Deadline) -> Option<Stop> {
        // The terminal is restored first: Ctrl-C then ends the program even while it waits for a reader of the output.
        host::terminal::restore();
        drop(self.timer);
        self.console.finish(deadline);
        let failure = self.disks.end_run();
        self.stop_handle.reason().or(failure)
    }
}

/// The error if a classic PC is reset.
pub(super) fn is_not_reset() -> Error {
    Error::Config(format!(
        "a classic PC runs once and cannot be reset: build a new machine, or one of the kind {}",
        MachineKind::Bare
    ))
}
