//! A device's own thread: waits for notifications and serves them, so that no vCPU waits for a disk.
//!
//! The queues are behind a lock that the thread holds while it serves them. A reset, on a vCPU's thread, asks
//! it to let go, takes the lock and so the queues: what is in the device's hands then is finished first.
//!
//! The thread comes with the first driver that is ready. A device that no guest uses costs none.

use crate::device::virtio::Backend;
use crate::device::virtio::interrupt::Interrupt;
use crate::device::virtio::queue::{QueueError, Queues};
use crate::error::Error;
use crate::host::{event, signal};
use crate::shutdown::{Deadline, Worker};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;
use std::{io, thread};
use vmm_sys_util::eventfd::EventFd;

/// What the thread and the transport share.
struct WorkerState {
    device: Mutex<Device>,
    interrupt: Arc<Interrupt>,
}

struct Device {
    backend: Box<dyn Backend>,
    /// None unless the driver is ready.
    queues: Queues,
}

impl WorkerState {
    fn lock(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the back end work on its queues. A driver that breaks their rules loses them.
    fn serve(&self, work: impl FnOnce(&mut dyn Backend, &mut Queues) -> Result<(), QueueError>) {
        let mut device = self.lock();
        let Device { backend, queues } = &mut *device;
        // A notification from before a reset, or one that came too early.
        if queues.is_empty() {
            return;
        }
        if let Err(broken) = work(backend.as_mut(), queues) {
            *queues = Queues::default();
            self.interrupt.needs_reset(&broken);
        }
    }
}

/// A device in the hands of its thread.
pub(crate) struct DeviceThread {
    shared: Arc<WorkerState>,
    notifiers: Vec<Arc<EventFd>>,
    deadline: Deadline,
    running: Option<Running>,
}

struct Running {
    thread: Worker<()>,
    /// Tells the thread to end.
    end: Arc<EventFd>,
}

impl DeviceThread {
    /// Of a device whose queues are notified through `notifiers`.
    pub(crate) fn new(
        backend: Box<dyn Backend>,
        notifiers: Vec<Arc<EventFd>>,
        interrupt: Arc<Interrupt>,
    ) -> Self {
        let device = Mutex::new(Device { backend, queues: Queues::default() });
        Self {
            shared: Arc::new(WorkerState { device, interrupt }),
            notifiers,
            deadline: Deadline::default(),
            running: None,
        }
    }

    /// Says when waiting for the thread turns into kicking it.
    pub(crate) fn set_deadline(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// The driver is ready: the thread serves these queues from now on.
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub(crate) fn activate(&mut self, queues: Queues, features: u64) -> Result<(), Error> {
        if self.running.is_none() {
            self.running = Some(self.start()?);
        }
        let mut device = self.shared.lock();
        device.backend.start(features);
        device.queues = queues;
        drop(device);
        // What was put into the queues before is looked at without a notification.
        self.notifiers.iter().for_each(|notifier| signal(notifier));
        Ok(())
    }

    /// Takes the queues back. Waits for the request that the device works on.
    pub(crate) fn reset(&mut self) {
        self.shared.interrupt.halt();
        let mut device = self.lock_with_kicks();
        device.queues = Queues::default();
        device.backend.reset();
        self.shared.interrupt.reset();
    }

    /// The lock, once the thread lets go of it. A vCPU that waits for a lock cannot be kicked out of that,
    /// so it kicks the thread itself when its time is up.
    fn lock_with_kicks(&self) -> MutexGuard<'_, Device> {
        /// How long to sleep between two looks.
        const NAP: Duration = Duration::from_micros(50);
        loop {
            match self.shared.device.try_lock() {
                Ok(device) => return device,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
            if let (Some(running), Some(_)) = (&self.running, self.deadline.must_end()) {
                running.thread.kick();
            }
            thread::sleep(NAP);
        }
    }

    fn start(&self) -> Result<Running, Error> {
        let end = Arc::new(event().map_err(Error::host("eventfd"))?);
        let mut manager = EventManager::new().map_err(failed("making an event manager"))?;
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
        let body = move || {
            while !manager.subscriber_mut(id).is_ok_and(|subscriber| subscriber.is_over) {
                if let Err(error) = manager.run() {
                    log::error!("a virtio device no longer gets its notifications: {error}");
                    break;
                }
            }
        };
        let name = self.shared.lock().backend.name();
        let thread = Worker::spawn(name, "starting the thread of a virtio device", body)?;
        Ok(Running { thread, end })
    }

    /// Ends the thread when it has finished the request in its hands, and closes the device.
    pub(crate) fn stop(&mut self) {
        self.shared.interrupt.halt();
        let Some(running) = self.running.take() else { return };
        signal(&running.end);
        if running.thread.join(&self.deadline).is_none() {
            log::error!("the thread of a virtio device panicked; this is a bug of the VMM");
        }
        let mut device = self.shared.lock();
        device.queues = Queues::default();
        device.backend.close();
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.stop();
    }
}

fn failed(operation: &'static str) -> impl FnOnce(event_manager::Error) -> Error {
    move |error| Error::Host { operation, source: io::Error::other(error) }
}

/// What the event manager calls on the device's thread.
struct Subscriber {
    shared: Arc<WorkerState>,
    notifiers: Vec<Arc<EventFd>>,
    end: Arc<EventFd>,
    is_over: bool,
    failure: Option<event_manager::Error>,
}

/// The number of the event that ends the thread. Queues are numbered from 0, sources from [`SOURCES`].
const END: u32 = u32::MAX;
/// The number of a back end's first source.
const SOURCES: u32 = 0x1_0000;

impl MutEventSubscriber for Subscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Each write is an event, without a read in between to clear the counter: one system call less for
        // each notification.
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
