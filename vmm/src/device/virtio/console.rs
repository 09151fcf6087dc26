//! The console device (virtio 1.2, section 5.3) with one port: queue 0 receives what the host types, queue 1
//! transmits what the guest prints.

use crate::console::host::Port;
use crate::console::output::Output;
use crate::device::virtio::Backend;
use crate::device::virtio::queue::{Answer, Chain, QueueError, Queues};
use crate::error::Error;
use crate::exit::Stop;
use crate::host::{event, signal};
use crate::memory::GuestMemory;
use std::collections::VecDeque;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_bindings::virtio_ids;
use vmm_sys_util::eventfd::EventFd;

/// How many entries each queue has at most.
pub const QUEUE_SIZE: u16 = 64;
/// The queue of buffers for what is typed.
const RECEIVE: usize = 0;
/// The queue of what is printed.
const TRANSMIT: usize = 1;
/// How much typed text waits for the guest, in bytes.
pub const INPUT_ROOM: usize = 4096;
/// How much is copied at a time, in bytes.
const CHUNK: usize = 4096;

/// What was typed and the guest has not taken yet. Clones are the same input.
#[derive(Clone, Debug)]
pub struct ConsoleInput(Arc<InputState>);

#[derive(Debug)]
struct InputState {
    waiting: Mutex<Waiting>,
    /// Written to when something was typed.
    typed: EventFd,
    /// Written to when there is room again.
    room: EventFd,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    /// Somebody was sent away, and wants to know when there is room.
    was_full: bool,
}

impl ConsoleInput {
    /// An empty input.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new() -> Result<Self, Error> {
        Ok(Self(Arc::new(InputState {
            waiting: Mutex::default(),
            typed: event().map_err(Error::host("eventfd"))?,
            room: event().map_err(Error::host("eventfd"))?,
        })))
    }

    /// Hands `bytes` to the guest, as far as there is room. Returns how many of them. Where that is not all,
    /// [`Self::room_event`] says when to try the rest.
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

    /// How many bytes there is room for.
    #[cfg(test)]
    pub fn room(&self) -> usize {
        INPUT_ROOM.saturating_sub(self.lock().bytes.len())
    }

    /// Written to when there is room again after [`Self::push`] has left something.
    pub fn room_event(&self) -> &EventFd {
        &self.0.room
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_empty(&self) -> bool {
        self.lock().bytes.is_empty()
    }

    /// Takes what is there, as much as fits into `data`. Returns how much.
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

/// The back end of the console.
pub struct ConsoleDevice {
    output: Output,
    input: ConsoleInput,
    /// Ends the machine.
    end: Box<dyn Fn(Stop) + Send>,
    /// It has been called: nothing more is printed.
    has_ended: bool,
}

impl fmt::Debug for ConsoleDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("input", &self.input).finish_non_exhaustive()
    }
}

impl ConsoleDevice {
    /// A console that prints to `output` and gets `input`. Where it cannot print it calls `end`, once, on its
    /// own thread; `end` must not wait for the device.
    pub fn new(output: Output, input: ConsoleInput, end: impl Fn(Stop) + Send + 'static) -> Self {
        Self { output, input, end: Box::new(end), has_ended: false }
    }

    fn receive(&self, queues: &mut Queues) -> Result<(), QueueError> {
        let Some(queue) = queues.get(RECEIVE) else { return Ok(()) };
        // Empty buffers wait for input in the queue; a notification of more of them has no news.
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

    /// Copies input into a request's buffers.
    fn fill(&self, memory: &GuestMemory, chain: &Chain) -> Result<Answer, QueueError> {
        let mut written: u32 = 0;
        // All that the input can hold.
        let mut data = [0; INPUT_ROOM];
        for span in chain.writable() {
            let place = data.get_mut(..INPUT_ROOM.min(span.len as usize)).unwrap_or_default();
            let count = self.input.pop(place);
            let typed = place.get(..count).unwrap_or_default();
            memory
                .write(span.start, typed)
                .map_err(|_| QueueError::Chain("a buffer for input is not in memory"))?;
            written = written.saturating_add(u32::try_from(count).unwrap_or(0));
        }
        Ok(Answer::Done(written))
    }

    /// Prints a request's buffers.
    fn print(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Result<Answer, QueueError> {
        let mut data = [0; CHUNK];
        while !self.has_ended {
            let count = chain.read(memory, &mut data)?;
            let text = data.get(..count).filter(|text| !text.is_empty());
            let Some(text) = text else { break };
            if let ControlFlow::Break(stop) = self.output.print(text) {
                self.has_ended = true;
                (self.end)(stop);
            }
        }
        Ok(Answer::Done(0))
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

    /// `u16 cols | u16 rows | u32 max_nr_ports | u32 emerg_wr` (section 5.3.4): each needs a feature that is
    /// not offered.
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

    /// Something was typed.
    fn signalled(&mut self, _: usize, queues: &mut Queues) -> Result<(), QueueError> {
        self.receive(queues)
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::console::output::Captured;
    use crate::device::virtio::interrupt::Interrupt;
    use crate::device::virtio::testing::{self, Buffer, RAM, Ring, bytes};
    use crate::memory::Gpa;
    use crate::shutdown::Deadline;

    const DATA: u64 = 0x3_0000;

    struct Rig {
        console: ConsoleDevice,
        input: ConsoleInput,
        captured: Captured,
        ends: Arc<Mutex<Vec<Stop>>>,
        memory: GuestMemory,
        receive: Ring,
        transmit: Ring,
        queues: Queues,
        interrupt: Arc<Interrupt>,
    }

    impl Rig {
        fn new() -> Self {
            let (output, captured) = Output::captured();
            let input = ConsoleInput::new().unwrap();
            let ends = Arc::new(Mutex::new(Vec::new()));
            let seen = ends.clone();
            let end = move |stop| seen.lock().unwrap().push(stop);
            let console = ConsoleDevice::new(output, input.clone(), end);
            let memory = testing::memory();
            let (receive, transmit) =
                (Ring::new(&memory, 0x1_0000, QUEUE_SIZE), Ring::new(&memory, 0x2_0000, QUEUE_SIZE));
            let interrupt = Arc::new(Interrupt::new("virtio-console").unwrap());
            let queues = [&receive, &transmit].map(|ring| Some(ring.queue(&interrupt)));
            let queues = Queues::new(queues.into());
            Self { console, input, captured, ends, memory, receive, transmit, queues, interrupt }
        }

        fn print(&mut self, buffers: &[Buffer]) -> Result<(), QueueError> {
            self.transmit.add(buffers);
            self.console.notified(TRANSMIT, &mut self.queues)
        }

        fn typed(&mut self) {
            self.console.signalled(0, &mut self.queues).unwrap();
        }
    }

    #[test]
    fn what_the_guest_transmits_is_printed() {
        let mut rig = Rig::new();
        rig.memory.write(Gpa(DATA), b"Ana are mere").unwrap();
        rig.print(&[Buffer(DATA, 4, false), Buffer(DATA + 4, 0, false), Buffer(DATA + 4, 8, false)]).unwrap();
        assert_eq!(rig.captured.bytes(), b"Ana are mere");
        assert_eq!(rig.transmit.used(), Some((0, 0)));
        assert_eq!(rig.interrupt.status(), 1);
    }

    #[test]
    fn long_text_is_printed_whole() {
        let mut rig = Rig::new();
        let text: Vec<u8> = (0..3 * CHUNK + 5).map(|byte| b'a' + (byte % 26) as u8).collect();
        rig.memory.write(Gpa(DATA), &text).unwrap();
        rig.print(&[Buffer(DATA, text.len() as u32, false)]).unwrap();
        assert_eq!(rig.captured.bytes(), text);
    }

    #[test]
    fn what_is_typed_waits_for_buffers_and_buffers_for_it() {
        let mut rig = Rig::new();
        assert_eq!(rig.input.push(b"early"), 5);
        rig.typed();
        rig.receive.add(&[Buffer(DATA, 3, true)]);
        rig.receive.add(&[Buffer(DATA + 16, 1, true), Buffer(DATA + 32, 10, true)]);
        rig.receive.add(&[Buffer(DATA + 48, 10, true)]);
        rig.console.notified(RECEIVE, &mut rig.queues).unwrap();
        assert_eq!([rig.receive.used(), rig.receive.used()], [Some((0, 3)), Some((1, 2))]);
        assert_eq!(rig.receive.used(), None, "the third buffer waits");
        assert_eq!(bytes(&rig.memory, DATA, 3), b"ear");
        assert_eq!(
            (bytes(&rig.memory, DATA + 16, 1), bytes(&rig.memory, DATA + 32, 1)),
            (b"l".into(), b"y".into())
        );
        assert_eq!(rig.interrupt.event().read().unwrap(), 1);
        rig.input.push(b"late");
        rig.typed();
        assert_eq!(rig.receive.used(), Some((3, 4)));
        assert_eq!(bytes(&rig.memory, DATA + 48, 4), b"late");
    }

    #[test]
    fn more_input_than_fits_is_told_and_room_comes_back() {
        let mut rig = Rig::new();
        assert_eq!(rig.input.push(&[b'x'; INPUT_ROOM - 1]), INPUT_ROOM - 1);
        assert_eq!((rig.input.room(), rig.input.push(b"yz"), rig.input.room()), (1, 1, 0));
        assert_eq!(rig.input.push(b"z"), 0);
        assert!(rig.input.room_event().read().is_err());
        rig.receive.add(&[Buffer(DATA, 2 * INPUT_ROOM as u32, true)]);
        rig.typed();
        assert_eq!(rig.receive.used(), Some((0, INPUT_ROOM as u32)));
        assert_eq!(bytes(&rig.memory, DATA + INPUT_ROOM as u64 - 2, 2), b"xy");
        assert_eq!((rig.input.room_event().read().unwrap(), rig.input.room()), (1, INPUT_ROOM));
        // Whoever was not sent away need not be told.
        rig.input.push(b"z");
        rig.receive.add(&[Buffer(DATA, 1, true)]);
        rig.typed();
        assert!(rig.input.room_event().read().is_err());
    }

    #[test]
    fn buffers_that_cannot_be_break_the_device() {
        let mut rig = Rig::new();
        assert!(rig.print(&[Buffer(RAM - 1, 2, false)]).is_err());
        let mut rig = Rig::new();
        rig.input.push(b"text");
        rig.receive.add(&[Buffer(RAM, 2, true)]);
        assert!(rig.console.notified(RECEIVE, &mut rig.queues).is_err());
    }

    #[test]
    fn output_that_fails_ends_the_machine_once() {
        let mut rig = Rig::new();
        rig.console.output.set_limit(Some(3));
        rig.console.output.set_deadline(Deadline::default());
        rig.memory.write(Gpa(DATA), b"text").unwrap();
        for _ in 0..3 {
            rig.print(&[Buffer(DATA, 4, false)]).unwrap();
        }
        assert!(matches!(rig.ends.lock().unwrap().as_slice(), [Stop::OutputLimit(3)]));
        assert_eq!((rig.captured.bytes(), rig.transmit.used_index()), (b"tex".into(), 3));
    }

    #[test]
    fn a_queue_that_the_driver_does_not_use_is_no_mistake() {
        let mut rig = Rig::new();
        rig.queues = Queues::new(vec![None, None]);
        rig.input.push(b"text");
        for index in 0..4 {
            rig.console.notified(index, &mut rig.queues).unwrap();
        }
        rig.typed();
    }
}
