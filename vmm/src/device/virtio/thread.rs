//! A device's own thread: waits for notifications and serves the queues, so that no vCPU waits for a disk.
//!
//! The thread holds a lock on the queues while it serves them. A reset runs on a vCPU's thread: it asks the device's
//! thread to stop, then takes the lock. The device therefore completes its current request first. After the deadline of the
//! run it leaves the request incomplete.
//!
//! The thread starts when a driver is ready for the first time. A device that the guest does not use has no thread.

use crate::device::virtio::Backend;
use crate::device::virtio::interrupt::Interrupt;
use crate::device::virtio::queue::{QueueError, Queues};
use crate::error::Error;
use crate::exit::Stop;
use crate::host::ThreadKind;
use crate::host::{EventFd, event, signal};
use crate::shutdown::{Deadline, Worker};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;
use std::{io, thread};

/// The state that the thread and the transport share.
struct WorkerState {
    device: Mutex<Device>,
    interrupt: Arc<Interrupt>,
}

struct Device {
    backend: Box<dyn Backend>,
    /// Empty unless the driver is ready.
    queues: Queues,
}

impl WorkerState {
    fn lock(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the back end and its queues. If the driver broke the rules, takes the queues away until a reset.
    fn serve(&self, work: impl FnOnce(&mut dyn Backend, &mut Queues) -> Result<(), QueueError>) {
        let mut device = self.lock();
        let Device { backend, queues } = &mut *device;
        // The notification is from before a reset, or came before the driver was ready.
        if queues.is_empty() {
            return;
        }
        match work(backend.as_mut(), queues) {
            Ok(()) => {}
            Err(error) => {
                *queues = Queues::default();
                if let QueueError::End(stop) = error {
                    drop(device);
                    return self.interrupt.end_run(stop);
                }
                // The driver can reset the device as soon as the lock is released. The bit must not be set after that.
                self.interrupt.require_reset();
                drop(device);
                self.interrupt.report(error.kind(), &error);
            }
        }
    }
}

/// A device and its thread.
pub(crate) struct DeviceThread {
    shared: Arc<WorkerState>,
    notifiers: Vec<Arc<EventFd>>,
    running: Option<Running>,
}

struct Running {
    thread: Worker<()>,
    /// Signalled to end the thread.
    end: Arc<EventFd>,
}

impl DeviceThread {
    /// Creates a device whose queues are notified through `notifiers`. The thread does not start yet.
    pub(crate) fn new(
        backend: Box<dyn Backend>,
        notifiers: Vec<Arc<EventFd>>,
        interrupt: Arc<Interrupt>,
    ) -> Self {
        let device = Mutex::new(Device { backend, queues: Queues::default() });
        Self { shared: Arc::new(WorkerState { device, interrupt }), notifiers, running: None }
    }

    /// The deadline of the run.
    fn deadline(&self) -> Deadline {
        self.shared.interrupt.deadline().cloned().unwrap_or_default()
    }

    /// Called when the driver is ready: the thread serves `queues` from now on.
    ///
    /// # Errors
    /// The host has no thread or file descriptor left.
    pub(crate) fn activate(&mut self, queues: Queues, features: u64) -> Result<(), Error> {
        if self.running.is_none() {
            self.running = Some(self.start()?);
        }
        let mut device = self.shared.lock();
        device.backend.start(features);
        device.queues = queues;
        drop(device);
        // Serve the requests that the driver queued before it was ready, without a notification.
        self.notifiers.iter().for_each(|notifier| signal(notifier));
        Ok(())
    }

    /// Resets the back end and drops the queues. Waits for the current request.
    pub(crate) fn reset(&mut self) {
        self.shared.interrupt.halt();
        let mut device = self.lock_with_kicks();
        device.queues = Queues::default();
        device.backend.reset();
        self.shared.interrupt.reset();
    }

    /// Waits for the lock. A kick does not interrupt the wait for a lock, so the caller, a vCPU's thread, polls it, and
    /// kicks the device's thread after the deadline.
    fn lock_with_kicks(&self) -> MutexGuard<'_, Device> {
        /// The time between two polls of the lock.
        const POLL_INTERVAL: Duration = Duration::from_micros(50);
        let deadline = self.deadline();
        loop {
            match self.shared.device.try_lock() {
                Ok(device) => return device,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
            if let (Some(running), Some(_)) = (&self.running, deadline.must_end()) {
                running.thread.kick();
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Starts the thread.
    fn start(&self) -> Result<Running, Error> {
        let end = Arc::new(event().map_err(Error::host("eventfd"))?);
        let mut manager = EventManager::new().map_err(failed("creating an event manager"))?;
        let subscriber = Subscriber {
            shared: self.shared.clone(),
            notifiers: self.notifiers.clone(),
            end: end.clone(),
            is_over: false,
            failure: None,
        };
        let id = manager.add_subscriber(subscriber);
        let subscriber = manager.subscriber_mut(id).map_err(failed("waiting for notifications"))?;
        if let Some(error) = subscriber.failure.take() {
            return Err(failed("waiting for notifications")(error));
        }
        let name = self.shared.lock().backend.name();
        let interrupt = self.shared.interrupt.clone();
        let body = move || {
            // Without its thread the device would be silent, so the run ends.
            let end = |why: String| interrupt.end_run(Stop::host(format!("{name} cannot continue: {why}")));
            let serve = || {
                while !manager.subscriber_mut(id).is_ok_and(|subscriber| subscriber.is_over) {
                    if let Err(error) = manager.run() {
                        return end(format!("waiting for notifications failed: {}", reason(&error)));
                    }
                }
            };
            if panic::catch_unwind(AssertUnwindSafe(serve)).is_err() {
                end("its thread panicked; this is a bug in the VMM".into());
            }
        };
        let thread = Worker::spawn(name, ThreadKind::Device, "starting the thread of a virtio device", body)?;
        Ok(Running { thread, end })
    }

    /// Ends the thread after the current request, and closes the back end. After the deadline, both are left incomplete.
    ///
    /// # Errors
    /// The host failed, and the run must not end as a success.
    pub(crate) fn stop(&mut self) -> Result<(), Stop> {
        let interrupt = &self.shared.interrupt;
        interrupt.halt();
        let Some(running) = self.running.take() else { return Ok(()) };
        signal(&running.end);
        // The thread catches its panics.
        let _ = running.thread.join(&self.deadline());
        let mut device = self.shared.lock();
        device.queues = Queues::default();
        device.backend.close(&|| interrupt.must_give_up())
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// The text of an error, with the name of the system's error instead of its number.
fn reason(error: &event_manager::Error) -> String {
    match error {
        event_manager::Error::Epoll(errno) => io::Error::from(*errno).to_string(),
        error => error.to_string(),
    }
}

fn failed(operation: &'static str) -> impl FnOnce(event_manager::Error) -> Error {
    move |error| Error::Host { operation, source: io::Error::other(error) }
}

/// The callbacks of the event manager, which run on the device's thread.
struct Subscriber {
    shared: Arc<WorkerState>,
    notifiers: Vec<Arc<EventFd>>,
    end: Arc<EventFd>,
    is_over: bool,
    failure: Option<event_manager::Error>,
}

/// The number of the event that ends the thread. Queues have numbers from 0, and sources from [`SOURCES`].
const END: u32 = u32::MAX;
/// The number of the back end's first source.
const SOURCES: u32 = 0x1_0000;

impl MutEventSubscriber for Subscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Edge-triggered: each write is an event, and no read is needed to clear the counter. This saves one system
        // call per notification.
        let each_write = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let device = self.shared.lock();
        let queues = (0..).zip(self.notifiers.iter().map(Arc::as_ref));
        let sources = (SOURCES..).zip(device.backend.sources());
        for (number, event) in queues.chain(sources).chain([(END, self.end.as_ref())]) {
            if let Err(error) = ops.add(Events::with_data(event, number, each_write)) {
                self.failure = Some(error);
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        match events.data() {
            END => self.is_over = true,
            number @ SOURCES.. => {
                let index = number.saturating_sub(SOURCES) as usize;
                self.shared.serve(|backend, queues| backend.signalled(index, queues));
            }
            number => self.shared.serve(|backend, queues| backend.notified(number as usize, queues)),
        }
    }
}

#[cfg(test)]
mod tests;
