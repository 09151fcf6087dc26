//! The driver side of a device, for tests: a split ring that a test fills by hand, with any mistake it wants.
#![allow(clippy::arithmetic_side_effects)]

use crate::device::bus::Device;
use crate::device::virtio::Backend;
use crate::device::virtio::interrupt::Interrupt;
use crate::device::virtio::mmio::Mmio;
use crate::device::virtio::queue::{Answer, QueueError, Queues, Virtqueue};
use crate::device::virtio::registers::{register, status};
use crate::exit::Stop;
use crate::host::event;
use crate::memory::{Gpa, GuestMemory};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use virtio_queue::{Queue, QueueT};

/// The size of guest memory in these tests, in bytes.
pub(crate) const RAM: u64 = 1 << 20;
/// VIRTIO_F_VERSION_1 and VIRTIO_RING_F_EVENT_IDX.
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 29;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A buffer: its address, its length, and true if the device writes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer(pub u64, pub u32, pub bool);

/// A driver's ring. Its tables take 16 KiB from `base`.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: GuestMemory,
    base: u64,
    size: u16,
    slot: u16,
    added: u16,
    taken: u16,
}

impl Ring {
    pub(crate) fn new(memory: &GuestMemory, base: u64, size: u16) -> Self {
        memory.write(Gpa(base), &[0; 0x4000]).unwrap();
        Self { memory: memory.clone(), base, size, slot: 0, added: 0, taken: 0 }
    }

    fn avail(&self) -> u64 {
        self.base + 0x2000
    }

    fn used_ring(&self) -> u64 {
        self.base + 0x3000
    }

    fn u16_at(&self, at: u64) -> u16 {
        let mut value = [0; 2];
        assert!(self.memory.read(Gpa(at), &mut value));
        u16::from_le_bytes(value)
    }

    /// Writes a descriptor of any table.
    pub(crate) fn describe(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let mut raw = address.to_le_bytes().to_vec();
        raw.extend(len.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        raw.extend(next.to_le_bytes());
        self.memory.write(Gpa(at), &raw).unwrap();
    }

    /// Writes a descriptor of the ring's own table.
    pub(crate) fn set(&self, slot: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.describe(self.base + u64::from(slot) * 16, address, len, flags, next);
    }

    /// Makes a chain of `buffers` available. Returns its head.
    pub(crate) fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.slot;
        for (index, Buffer(address, len, write)) in buffers.iter().enumerate() {
            let slot = self.slot;
            self.slot = (self.slot + 1) % self.size;
            let next = if index + 1 < buffers.len() { NEXT } else { 0 };
            self.set(slot, *address, *len, next | if *write { WRITE } else { 0 }, self.slot);
        }
        self.publish(head);
        head
    }

    /// Makes the chain from `head` available, without any check.
    pub(crate) fn publish(&mut self, head: u16) {
        let entry = self.avail() + 4 + u64::from(self.added % self.size) * 2;
        self.memory.write(Gpa(entry), &head.to_le_bytes()).unwrap();
        self.set_avail_index(self.added.wrapping_add(1));
    }

    pub(crate) fn set_avail_index(&mut self, index: u16) {
        self.added = index;
        self.memory.write(Gpa(self.avail() + 2), &index.to_le_bytes()).unwrap();
    }

    /// Sets `used_event`: the index of the used entry at which the device must interrupt.
    pub(crate) fn set_used_event(&self, index: u16) {
        let at = self.avail() + 4 + u64::from(self.size) * 2;
        self.memory.write(Gpa(at), &index.to_le_bytes()).unwrap();
    }

    /// Reads `avail_event`: the index of the available entry at which the device wants a notification.
    pub(crate) fn avail_event(&self) -> u16 {
        self.u16_at(self.used_ring() + 4 + u64::from(self.size) * 8)
    }

    pub(crate) fn used_index(&self) -> u16 {
        self.u16_at(self.used_ring() + 2)
    }

    /// The next used chain: its head, and the number of bytes written. `None` if the device has returned no further
    /// chain.
    pub(crate) fn used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.taken {
            return None;
        }
        let mut entry = [0; 8];
        let at = self.used_ring() + 4 + u64::from(self.taken % self.size) * 8;
        assert!(self.memory.read(Gpa(at), &mut entry));
        self.taken = self.taken.wrapping_add(1);
        let [a, b, c, d, rest @ ..] = entry;
        Some((u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(rest)))
    }

    /// The device side of the queue, without a transport.
    pub(crate) fn queue(&self, interrupt: &Arc<Interrupt>) -> Virtqueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.try_set_desc_table_address(Gpa(self.base)).unwrap();
        queue.try_set_avail_ring_address(Gpa(self.avail())).unwrap();
        queue.try_set_used_ring_address(Gpa(self.used_ring())).unwrap();
        queue.set_event_idx(true);
        queue.set_ready(true);
        assert!(queue.is_valid(self.memory.slots()));
        Virtqueue::new(queue, self.memory.clone(), interrupt.clone(), Arc::new(event().unwrap()))
    }

    /// Writes the addresses of the queue into the registers of the transport.
    pub(crate) fn set_up(&self, device: &mut Mmio, index: u32) {
        write(device, register::QUEUE_SEL, index);
        write(device, register::QUEUE_NUM, self.size.into());
        for (at, address) in [
            (register::QUEUE_DESC_LOW, self.base),
            (register::QUEUE_DRIVER_LOW, self.avail()),
            (register::QUEUE_DEVICE_LOW, self.used_ring()),
        ] {
            write(device, at, address as u32);
            write(device, at + 4, (address >> 32) as u32);
        }
        write(device, register::QUEUE_READY, 1);
    }
}

pub(crate) fn memory() -> GuestMemory {
    GuestMemory::new(&[(Gpa(0), RAM)]).unwrap()
}

pub(crate) fn bytes(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    assert!(memory.read(Gpa(at), &mut data));
    data
}

pub(crate) fn read(device: &mut Mmio, offset: u64) -> u32 {
    let ControlFlow::Continue(value) = device.read(offset, 4) else { panic!() };
    u32::try_from(value).unwrap()
}

pub(crate) fn write(device: &mut Mmio, offset: u64, value: u32) {
    assert!(device.write(offset, 4, value.into()).is_continue());
}

/// Initialises the device up to FEATURES_OK. Returns true if the device accepted the features.
pub(crate) fn negotiate(device: &mut Mmio, features: u64) -> bool {
    let known = status::ACKNOWLEDGE | status::DRIVER;
    write(device, register::STATUS, 0);
    write(device, register::STATUS, status::ACKNOWLEDGE);
    write(device, register::STATUS, known);
    for (which, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
        write(device, register::DRIVER_FEATURES_SEL, which);
        write(device, register::DRIVER_FEATURES, half);
    }
    write(device, register::STATUS, known | status::FEATURES_OK);
    read(device, register::STATUS) & status::FEATURES_OK != 0
}

/// Initialises the device up to DRIVER_OK, with the queues in the order of their indices.
pub(crate) fn start(device: &mut Mmio, features: u64, rings: &[&Ring]) {
    assert!(negotiate(device, features));
    for (index, ring) in (0..).zip(rings) {
        ring.set_up(device, index);
    }
    let now = read(device, register::STATUS);
    write(device, register::STATUS, now | status::DRIVER_OK);
}

/// Waits until `condition` holds, for at most ten seconds. Returns true if it holds.
pub(crate) fn soon(mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    false
}

/// The calls that a test device got.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) requests: AtomicUsize,
    pub(crate) resets: AtomicUsize,
    pub(crate) closes: AtomicUsize,
    pub(crate) features: Mutex<Vec<u64>>,
}

/// A device with two queues that completes every request. A test can hold requests back.
pub(crate) struct Echo {
    pub(crate) log: Arc<Log>,
    /// If set, gets a message at the start of each request.
    pub(crate) begun: Option<Sender<()>>,
    /// If set, each request waits for a message before it completes.
    pub(crate) may_end: Option<Receiver<()>>,
    /// If set, the device panics if the test has dropped its end of one of these channels.
    pub(crate) must_be_heard: bool,
}

impl Backend for Echo {
    fn id(&self) -> u32 {
        42
    }
    fn name(&self) -> &'static str {
        "virtio-echo"
    }
    fn features(&self) -> u64 {
        1 << 3 | 1 << 40
    }
    fn queue_sizes(&self) -> &'static [u16] {
        &[16, 8]
    }
    fn config(&self) -> Vec<u8> {
        (1..=10).collect()
    }
    fn start(&mut self, features: u64) {
        self.log.features.lock().unwrap().push(features);
    }
    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), QueueError> {
        let Some(queue) = queues.get(index) else { return Ok(()) };
        queue.serve(|_, _| {
            let heard = self.begun.as_ref().is_none_or(|begun| begun.send(()).is_ok());
            let limit = Duration::from_secs(10);
            let answered = self.may_end.as_ref().is_none_or(|end| end.recv_timeout(limit).is_ok());
            assert!(heard && answered || !self.must_be_heard, "for a test");
            self.log.requests.fetch_add(1, Ordering::SeqCst);
            Ok(Answer::Done(0))
        })
    }
    fn reset(&mut self) {
        self.log.resets.fetch_add(1, Ordering::SeqCst);
    }
    fn close(&mut self, _: &dyn Fn() -> bool) -> Result<(), Stop> {
        self.log.closes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

pub(crate) fn echo() -> (Mmio, GuestMemory, Arc<Log>) {
    let (memory, log) = (memory(), Arc::new(Log::default()));
    let backend = Echo { log: log.clone(), begun: None, may_end: None, must_be_heard: false };
    (Mmio::new(backend, memory.clone()).unwrap(), memory, log)
}

pub(crate) fn rings(memory: &GuestMemory) -> (Ring, Ring) {
    (Ring::new(memory, 0x1_0000, 16), Ring::new(memory, 0x2_0000, 8))
}

/// A request for [`Echo`], with one buffer.
pub(crate) const REQUEST: &[Buffer] = &[Buffer(0x3_0000, 1, false)];

/// Reads `size` bytes at `offset`.
pub(crate) fn get(device: &mut Mmio, offset: u64, size: u8) -> u64 {
    match device.read(offset, size) {
        ControlFlow::Continue(value) => value,
        ControlFlow::Break(stop) => panic!("{stop}"),
    }
}
