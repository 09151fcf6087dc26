//! The console device (virtio 1.2, section 5.3) with one port: queue 0 receives the user's input, and queue 1 transmits
//! the guest's output.

use crate::console::host::Port;
use crate::console::output::Output;
use crate::device::virtio::Backend;
use crate::device::virtio::queue::{Answer, Chain, QueueError, Queues};
use crate::error::Error;
use crate::host::{EventFd, event, signal};
use crate::memory::GuestMemory;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_bindings::virtio_ids;

/// The maximum size of each queue, in entries.
pub const QUEUE_SIZE: u16 = 64;
/// The index of the queue with buffers for input.
const RECEIVE: usize = 0;
/// The index of the queue with output.
const TRANSMIT: usize = 1;
/// The most input that waits for the guest, in bytes.
pub const INPUT_ROOM: usize = 4096;
/// The most output that is copied at a time, in bytes.
const CHUNK: usize = 4096;

/// The input that the guest has not taken yet. Clones share it.
#[derive(Clone, Debug)]
pub struct ConsoleInput(Arc<InputState>);

#[derive(Debug)]
struct InputState {
    waiting: Mutex<Waiting>,
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

impl Port for ConsoleInput {
    fn push(&mut self, bytes: &[u8]) -> usize {
        Self::push(self, bytes)
    }

    fn room_event(&self) -> &EventFd {
        Self::room_event(self)
    }
}

/// The back end of the console. Output that cannot be written ends the run.
#[derive(Debug)]
pub struct ConsoleDevice {
    output: Output,
    input: ConsoleInput,
}

impl ConsoleDevice {
    /// Creates a console that prints to `output` and reads `input`.
    pub fn new(output: Output, input: ConsoleInput) -> Self {
        Self { output, input }
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

    /// The layout is `u16 cols | u16 rows | u32 max_nr_ports | u32 emerg_wr` (section 5.3.4). All fields are 0, because
    /// each needs a feature that this device does not offer.
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), QueueError> {
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
