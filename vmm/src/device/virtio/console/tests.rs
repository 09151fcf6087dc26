#![allow(clippy::arithmetic_side_effects)]

use super::*;
use crate::console::output::Captured;
use crate::device::virtio::interrupt::Interrupt;
use crate::device::virtio::testing::{self, Buffer, RAM, Ring, bytes};
use crate::exit::Stop;
use crate::memory::Gpa;
use crate::shutdown::{Deadline, StopHandle};

const DATA: u64 = 0x3_0000;

struct Rig {
    console: ConsoleDevice,
    input: ConsoleInput,
    captured: Captured,
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
        let console = ConsoleDevice::new(output, input.clone(), None);
        let memory = testing::memory();
        let (receive, transmit) =
            (Ring::new(&memory, 0x1_0000, QUEUE_SIZE), Ring::new(&memory, 0x2_0000, QUEUE_SIZE));
        let interrupt = Arc::new(Interrupt::new("virtio-console").unwrap());
        let queues = [&receive, &transmit].map(|ring| Some(ring.queue(&interrupt)));
        let queues = Queues::new(queues.into());
        Self { console, input, captured, memory, receive, transmit, queues, interrupt }
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
fn transmitted_buffers_are_printed() {
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
fn input_waits_for_buffers_and_buffers_wait_for_input() {
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
fn a_full_input_refuses_bytes_and_signals_when_there_is_room() {
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
    // A caller that had room for all bytes gets no signal.
    rig.input.push(b"z");
    rig.receive.add(&[Buffer(DATA, 1, true)]);
    rig.typed();
    assert!(rig.input.room_event().read().is_err());
}

#[test]
fn buffers_outside_memory_break_the_device() {
    let mut rig = Rig::new();
    assert!(rig.print(&[Buffer(RAM - 1, 2, false)]).is_err());
    let mut rig = Rig::new();
    rig.input.push(b"text");
    rig.receive.add(&[Buffer(RAM, 2, true)]);
    assert!(rig.console.notified(RECEIVE, &mut rig.queues).is_err());
}

#[test]
fn failed_output_ends_the_run() {
    let mut rig = Rig::new();
    rig.console.output.set_limit(Some(3));
    rig.console.output.set_deadline(Deadline::default());
    rig.memory.write(Gpa(DATA), b"text").unwrap();
    let end = rig.print(&[Buffer(DATA, 4, false)]);
    assert!(matches!(end, Err(QueueError::End(Stop::OutputLimit(3)))), "{end:?}");
    assert_eq!((rig.captured.bytes(), rig.transmit.used_index()), (b"tex".into(), 0));
}

#[test]
fn after_the_deadline_output_is_cut_off() {
    let mut rig = Rig::new();
    let deadline = Deadline::default();
    rig.interrupt.begin_run(deadline.clone(), Arc::new(StopHandle::new().unwrap()));
    // Ends the run after the first piece of the text.
    let observed = deadline.clone();
    rig.console.output.set_observer(move |_| observed.abandon());
    rig.print(&[Buffer(DATA, 4 * CHUNK as u32, false)]).unwrap();
    assert_eq!(rig.captured.bytes().len(), CHUNK);
    assert_eq!(rig.transmit.used(), None, "text that was not printed is not returned as used");
}

#[test]
fn an_unused_queue_is_not_an_error() {
    let mut rig = Rig::new();
    rig.queues = Queues::new(vec![None, None]);
    rig.input.push(b"text");
    for index in 0..4 {
        rig.console.notified(index, &mut rig.queues).unwrap();
    }
    rig.typed();
}
