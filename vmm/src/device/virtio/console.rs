//! The console device (virtio 1.2, section 5.3) with one port: queue 0 receives the user's input, and queue 1 transmits
//! the guest's output.

use crate::console::host::Port;
use crate::console::output::Output;
use crate::device::virtio::queue::{Answer, Chain, QueueError, Queues};
use crate::device::virtio::{Backend, Mmio};
use crate::error::Error;
use crate::host::{EventFd, event, signal};
use crate::memory::GuestMemory;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};
use virtio_bindings::virtio_ids;

/// The maximum size of each queue, in entries.
pub const QUEUE_SIZE: u16 = 64;
/// The index of the queue with buffers for input.
const RECEIVE: usize = 0;
/// The index of the queue with output.
const TRANSMIT: usize = 1;
/// The most input that waits for the guest, in bytes.
pub const INPUT_ROOM: usize = 4096;
/// The size of the configuration space, in bytes.
const CONFIG_SIZE: usize = 12;
/// Feature: the fields `cols` and `rows` are valid, and the driver is told of changes (section 5.3.3).
const F_SIZE: u64 = 1 << 0;
/// The time without a notification after which a driver has started.
const SETTLED: Duration = Duration::from_millis(200);
/// The longest start of a driver. One that prints without a pause has started after this time.
const LONGEST_START: Duration = Duration::from_secs(5);
/// The most output that is copied at a time, in bytes.
const CHUNK: usize = 4096;

/// The input that the guest has not taken yet. Clones share it.
#[derive(Clone, Debug)]
pub struct ConsoleInput(Arc<InputState>);

#[derive(Debug)]
struct InputState {
    waiting: Mutex<Waiting>,
    driver: Mutex<Driver>,
    /// Signalled when input arrives.
    typed: EventFd,
    /// Signalled when there is room again.
    room: EventFd,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    /// Set if [`ConsoleInput::push`] had no room for all bytes, so that the caller waits for room.
    was_full: bool,
}

impl ConsoleInput {
    /// Creates an empty input.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub fn new() -> Result<Self, Error> {
        Ok(Self(Arc::new(InputState {
            waiting: Mutex::default(),
            driver: Mutex::default(),
            typed: event().map_err(Error::host("eventfd"))?,
            room: event().map_err(Error::host("eventfd"))?,
        })))
    }

    /// Queues `bytes` for the guest, as far as there is room. Returns the number of bytes queued. If some are left,
    /// [`Self::room_event`] is signalled when the caller can try again.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut waiting = self.lock();
        let room = INPUT_ROOM.saturating_sub(waiting.bytes.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        waiting.bytes.extend(taken);
        waiting.was_full |= taken.len() < bytes.len();
        drop(waiting);
        if !taken.is_empty() {
            signal(&self.0.typed);
        }
        taken.len()
    }

    /// The number of bytes that there is room for.
    #[cfg(test)]
    pub fn room(&self) -> usize {
        INPUT_ROOM.saturating_sub(self.lock().bytes.len())
    }

    /// The event that is signalled when there is room again after [`Self::push`] had no room for all bytes.
    pub fn room_event(&self) -> &EventFd {
        &self.0.room
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_empty(&self) -> bool {
        self.lock().bytes.is_empty()
    }

    /// Moves waiting bytes into `data`. Returns the number of bytes.
    fn pop(&self, data: &mut [u8]) -> usize {
        let mut waiting = self.lock();
        let count = waiting.bytes.len().min(data.len());
        data.iter_mut().zip(waiting.bytes.drain(..count)).for_each(|(to, from)| *to = from);
        if count > 0 && std::mem::take(&mut waiting.was_full) {
            signal(&self.0.room);
        }
        count
    }
}

/// The state of the guest's driver, as far as the device sees it.
#[derive(Clone, Copy, Debug, Default)]
enum Driver {
    /// It is not ready.
    #[default]
    Absent,
    /// It is ready since the first time. It last used a queue at the second one.
    Starting(Instant, Instant),
    /// It takes input.
    Started,
}

impl ConsoleInput {
    /// True if the driver takes input. Linux throws input away that comes between DRIVER_OK and the registration of its
    /// console, and tells the device nothing of the latter. Meanwhile it fills the queue for input, and prints the log of the
    /// kernel, so the driver counts as started when it has left its queues alone for a moment.
    pub(crate) fn is_started(&self) -> bool {
        let mut driver = self.driver();
        if let Driver::Starting(ready, used) = *driver
            && (used.elapsed() >= SETTLED || ready.elapsed() >= LONGEST_START)
        {
            *driver = Driver::Started;
        }
        matches!(*driver, Driver::Started)
    }

    /// Notes that the driver has used a queue, or, for true, that it is ready.
    pub(crate) fn note_use(&self, is_ready: bool) {
        let (now, mut driver) = (Instant::now(), self.driver());
        match (&mut *driver, is_ready) {
            (_, true) => *driver = Driver::Starting(now, now),
            (Driver::Starting(_, used), false) => *used = now,
            (Driver::Absent | Driver::Started, false) => {}
        }
    }

    fn driver(&self) -> MutexGuard<'_, Driver> {
        self.0.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The host side of the console: the input, and the device, which tells the guest the size of the terminal.
pub(crate) struct ConsolePort {
    pub(crate) input: ConsoleInput,
    pub(crate) device: Arc<Mutex<Mmio>>,
}

impl Port for ConsolePort {
    fn push(&mut self, bytes: &[u8]) -> usize {
        if self.input.is_started() { self.input.push(bytes) } else { 0 }
    }

    fn room_event(&self) -> &EventFd {
        self.input.room_event()
    }

    fn resize(&mut self, columns: u16, rows: u16) -> bool {
        if !self.input.is_started() {
            return false;
        }
        let mut device = match self.device.try_lock() {
            Ok(device) => device,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        device.set_config(config(Some((columns, rows))));
        true
    }
}

/// The configuration space: `u16 cols | u16 rows | u32 max_nr_ports | u32 emerg_wr` (section 5.3.4). Fields of features that
/// the device does not offer are 0.
fn config(size: Option<(u16, u16)>) -> Vec<u8> {
    let (columns, rows) = size.unwrap_or_default();
    let mut config = [columns.to_le_bytes(), rows.to_le_bytes()].concat();
    config.resize(CONFIG_SIZE, 0);
    config
}

/// The back end of the console. Output that cannot be written ends the run.
#[derive(Debug)]
pub struct ConsoleDevice {
    output: Output,
    input: ConsoleInput,
    /// The columns and rows of the terminal. `None` if it is not known, and will not be.
    size: Option<(u16, u16)>,
}

impl ConsoleDevice {
    /// Creates a console that prints to `output` and reads `input`. With a `size` in columns and rows, the guest can be told
    /// that it has changed.
    pub fn new(output: Output, input: ConsoleInput, size: Option<(u16, u16)>) -> Self {
        Self { output, input, size }
    }

    /// Copies input into the buffers of the receive queue.
    fn receive(&self, queues: &mut Queues) -> Result<(), QueueError> {
        let Some(queue) = queues.get(RECEIVE) else { return Ok(()) };
        // Without input the buffers stay in the queue, and a notification of more buffers changes nothing.
        if self.input.is_empty() {
            return Ok(());
        }
        queue.serve(|memory, chain| {
            if self.input.is_empty() {
                return Ok(Answer::Later);
            }
            self.fill(memory, chain)
        })
    }

    /// Copies input into the buffers of a request.
    fn fill(&self, memory: &GuestMemory, chain: &Chain) -> Result<Answer, QueueError> {
        let mut written: u32 = 0;
        // Large enough for all of the input.
        let mut data = [0; INPUT_ROOM];
        for span in chain.writable() {
            let chunk = data.get_mut(..INPUT_ROOM.min(span.len as usize)).unwrap_or_default();
            let count = self.input.pop(chunk);
            let typed = chunk.get(..count).unwrap_or_default();
            memory
                .write(span.start, typed)
                .map_err(|_| QueueError::Chain("a buffer for input is not in guest memory"))?;
            written = written.saturating_add(u32::try_from(count).unwrap_or(0));
        }
        Ok(Answer::Done(written))
    }

    /// Prints the buffers of a request.
    fn print(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Result<Answer, QueueError> {
        let mut data = [0; CHUNK];
        loop {
            if chain.must_give_up() {
                return Ok(Answer::Later);
            }
            let count = chain.read(memory, &mut data)?;
            let text = data.get(..count).filter(|text| !text.is_empty());
            let Some(text) = text else { return Ok(Answer::Done(0)) };
            if let ControlFlow::Break(stop) = self.output.print(text) {
                return Err(QueueError::End(stop));
            }
        }
    }
}

impl Backend for ConsoleDevice {
    fn id(&self) -> u32 {
        virtio_ids::VIRTIO_ID_CONSOLE
    }

    fn name(&self) -> &'static str {
        "virtio-console"
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE; 2]
    }

    fn features(&self) -> u64 {
        if self.size.is_some() { F_SIZE } else { 0 }
    }

    fn config(&self) -> Vec<u8> {
        config(self.size)
    }

    fn start(&mut self, _: u64) {
        self.input.note_use(true);
    }

    fn reset(&mut self) {
        *self.input.driver() = Driver::Absent;
    }

    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), QueueError> {
        self.input.note_use(false);
        match (index, queues.get(TRANSMIT)) {
            (RECEIVE, _) => self.receive(queues),
            (TRANSMIT, Some(queue)) => queue.serve(|memory, chain| self.print(memory, chain)),
            _ => Ok(()),
        }
    }

    fn sources(&self) -> Vec<&EventFd> {
        vec![&self.input.0.typed]
    }

    /// Called when input has arrived.
    fn signalled(&mut self, _: usize, queues: &mut Queues) -> Result<(), QueueError> {
        self.receive(queues)
    }
}

#[cfg(test)]
mod tests;
