//! Models of the rings and the doorbell of SIMVIRTIO for loom.
//!
//! loom runs a test again and again, with every interleaving of its threads and with every value that a load may return
//! under the memory model of C++ and Rust. The code under test is that of the crate `simvirtio`; only the memory and the
//! eventfd are replaced. Each test says how many bytes it sends and how long its queues are. [`check`] says how many
//! times the scheduler may take the processor away from a thread that could continue.
//!
//! `make model` runs the tests. The package is not part of the workspace, so no other command builds loom.

use loom::sync::Notify;
use loom::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use simvirtio::{Memory, abi};

/// The length of each buffer in the model, in bytes.
pub const BUFFER: usize = 4;

/// Runs `body` with every interleaving in which the scheduler interrupts a running thread at most `preemptions` times,
/// or with every interleaving for `None`. A thread that waits does not count as interrupted.
pub fn check(preemptions: Option<usize>, body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.max_branches = 20_000;
    model.check(body);
}

/// The memory that driver and device share: each word and each byte is an atomic of loom.
#[derive(Debug)]
pub struct Shared {
    magic: AtomicU32,
    /// The config table from the queue length to its end.
    config: [AtomicU8; 7],
    /// TX head and tail, RX head and tail.
    indices: [AtomicU32; 4],
    tx: [AtomicU8; BUFFER],
    rx: [AtomicU8; BUFFER],
    /// The device table: the count and one address.
    table: [AtomicU8; 16],
    /// The order of loads and of stores.
    orders: (Ordering, Ordering),
}

/// The place of an access.
enum Place<'a> {
    Byte(&'a AtomicU8),
    Word(&'a AtomicU32),
}

impl Shared {
    /// Creates a zeroed memory as the trait [`Memory`] describes it.
    pub fn new() -> Self {
        Self::with_orders(Ordering::Acquire, Ordering::Release)
    }

    /// Creates a zeroed memory with other orders of loads and stores.
    pub fn with_orders(load: Ordering, store: Ordering) -> Self {
        Self {
            magic: AtomicU32::new(0),
            config: std::array::from_fn(|_| AtomicU8::new(0)),
            indices: std::array::from_fn(|_| AtomicU32::new(0)),
            tx: std::array::from_fn(|_| AtomicU8::new(0)),
            rx: std::array::from_fn(|_| AtomicU8::new(0)),
            table: std::array::from_fn(|_| AtomicU8::new(0)),
            orders: (load, store),
        }
    }

    fn place(&self, gpa: u64) -> Place<'_> {
        let inside =
            |start: u64, len: usize| gpa.checked_sub(start).map(|at| at as usize).filter(|at| *at < len);
        if gpa == abi::gpa::MAGIC {
            Place::Word(&self.magic)
        } else if let Some(at) = inside(abi::gpa::MAX_QUEUE_LEN, self.config.len()) {
            Place::Byte(&self.config[at])
        } else if let Some(at) = inside(abi::gpa::TX_HEAD, 16) {
            Place::Word(&self.indices[at / 4])
        } else if let Some(at) = inside(abi::TX_BUFFER, BUFFER) {
            Place::Byte(&self.tx[at])
        } else if let Some(at) = inside(abi::RX_BUFFER, BUFFER) {
            Place::Byte(&self.rx[at])
        } else if let Some(at) = inside(abi::DEVICE_TABLE, self.table.len()) {
            Place::Byte(&self.table[at])
        } else {
            panic!("the model has no memory at {gpa:#x}")
        }
    }

    fn byte(&self, gpa: u64) -> &AtomicU8 {
        match self.place(gpa) {
            Place::Byte(byte) => byte,
            Place::Word(_) => panic!("an access to a single byte of the word at {gpa:#x}"),
        }
    }

    fn word(&self, gpa: u64) -> &AtomicU32 {
        match self.place(gpa) {
            Place::Word(word) => word,
            Place::Byte(_) => panic!("an access to a whole word at the bytes at {gpa:#x}"),
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

// An access with the wrong width panics, so a model also shows that no place is accessed with two widths.
impl Memory for Shared {
    fn load_u8(&self, gpa: u64) -> u8 {
        self.byte(gpa).load(self.orders.0)
    }
    fn store_u8(&self, gpa: u64, value: u8) {
        self.byte(gpa).store(value, self.orders.1);
    }
    fn load_u32(&self, gpa: u64) -> u32 {
        self.word(gpa).load(self.orders.0)
    }
    fn store_u32(&self, gpa: u64, value: u32) {
        self.word(gpa).store(value, self.orders.1);
    }
}

/// The two eventfds of a doorbell, on which one thread waits with poll(2): each is a counter.
#[derive(Debug, Default)]
pub struct Events {
    /// The driver's ring.
    pub bell: Event,
    /// The end of the run.
    pub end: Event,
    signalled: Notify,
}

/// An eventfd.
#[derive(Debug)]
pub struct Event(AtomicU32);

impl Default for Event {
    fn default() -> Self {
        Self(AtomicU32::new(0))
    }
}

impl Event {
    /// Clears the counter (read without blocking).
    pub fn drain(&self) {
        self.0.swap(0, Ordering::AcqRel);
    }
}

impl Events {
    /// Adds one to the counter of `event`, which is one of the two (write).
    pub fn signal(&self, event: &Event) {
        event.0.fetch_add(1, Ordering::AcqRel);
        self.signalled.notify();
    }

    /// Waits until a counter is not zero (poll). There is no time limit, so a lost signal is a deadlock, which loom
    /// reports.
    pub fn wait(&self) {
        while [&self.bell, &self.end].iter().all(|event| event.0.load(Ordering::Acquire) == 0) {
            self.signalled.wait();
        }
    }
}
