//! The thread that raises the clock's interrupts. It sleeps while no event of the clock interrupts, and while the guest
//! has not read the last one, so the guest's own pace bounds its work.

use super::{Cmos, now};
use crate::error::Error;
use crate::host::ThreadKind;
use crate::host::{self, EventFd, event};
use crate::shutdown::{Deadline, Worker};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The running thread. Dropping this ends it.
#[derive(Debug)]
pub(crate) struct CmosTimer {
    stop: Arc<EventFd>,
    thread: Option<Worker<()>>,
}

impl CmosTimer {
    /// Starts the thread for a clock that signals `wake`.
    ///
    /// # Errors
    /// The host has no thread or file descriptor left.
    pub(crate) fn start(cmos: Arc<Mutex<Cmos>>, wake: Arc<EventFd>) -> Result<Self, Error> {
        let stop = Arc::new(event().map_err(Error::host("eventfd"))?);
        let ended = stop.clone();
        let thread =
            Worker::spawn("rtc", ThreadKind::Device, "starting the thread of the clock", move || {
                run(&cmos, &wake, &ended);
            })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

fn run(cmos: &Mutex<Cmos>, wake: &EventFd, stop: &EventFd) {
    loop {
        let pause = cmos.lock().unwrap_or_else(PoisonError::into_inner).service(now());
        match host::wait_any([Some(host::borrow(stop)), Some(host::borrow(wake))], pause) {
            Ok([true, _]) => return,
            Ok([_, true]) => drop(wake.read()),
            Ok(_) => {}
            Err(error) => {
                log::error!("the clock of the machine has no more interrupts: {error}");
                return;
            }
        }
    }
}

impl Drop for CmosTimer {
    fn drop(&mut self) {
        host::signal(&self.stop);
        let deadline = Deadline::after(Some(Duration::ZERO));
        if self.thread.take().is_some_and(|thread| thread.join(&deadline).is_none()) {
            log::error!("the thread of the clock panicked; this is a bug in the VMM");
        }
    }
}
