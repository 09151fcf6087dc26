//! The device over shared memory without a thread of its own: it takes its turn when the vCPU has ended its own.
//!
//! Everything that the driver has queued is processed in one turn, so a driver that waits for the device is served after
//! at most one turn of the vCPU.

use crate::device::simvirtio::Simvirtio;
use crate::exit::Stop;
use crate::memory::SharedMemory;
use crate::shutdown::Deadline;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// The longest time that a turn waits for input, if the driver waits for it.
const INPUT_WAIT: Duration = Duration::from_millis(1);

/// A device that takes turns with the vCPUs.
#[derive(Debug)]
pub(crate) struct Turns {
    simvirtio: Box<Simvirtio<SharedMemory>>,
    deadline: Deadline,
    /// The start of the time in which the guest waits for input and that has not been added to the deadline yet.
    waits_since: Option<Instant>,
}

impl Turns {
    /// A device that takes its turns until `deadline`.
    pub(crate) fn new(simvirtio: Box<Simvirtio<SharedMemory>>, deadline: Deadline) -> Self {
        Self { simvirtio, deadline, waits_since: None }
    }

    /// Processes everything that the driver has queued. If there is nothing and the driver waits for input, waits a moment
    /// for that.
    pub(crate) fn take_turn(&mut self) -> ControlFlow<Stop> {
        // Time in which the guest waits for input does not count.
        if let Some(since) = self.waits_since.take() {
            self.deadline.extend_by_wait_since(since);
        }
        if self.advance()? {
            return ControlFlow::Continue(());
        }
        self.simvirtio.repair();
        if self.simvirtio.reads() {
            let now = Instant::now();
            let waits = self.simvirtio.feed(Some(INPUT_WAIT))?;
            self.waits_since = waits.then_some(now);
            self.advance()?;
        }
        ControlFlow::Continue(())
    }

    /// Processes everything that the driver has queued. Returns true if there was anything.
    fn advance(&mut self) -> ControlFlow<Stop, bool> {
        let mut progress = false;
        while self.simvirtio.advance()? {
            progress = true;
        }
        ControlFlow::Continue(progress)
    }

    /// Processes the rest of the queue, unless the device ended the run. Returns the device, and the reason if it ended
    /// the run.
    pub(crate) fn finish(mut self, stop: Option<Stop>) -> (Box<Simvirtio<SharedMemory>>, Option<Stop>) {
        let stop = stop.or_else(|| self.advance().break_value());
        self.simvirtio.repair();
        (self.simvirtio, stop)
    }
}
