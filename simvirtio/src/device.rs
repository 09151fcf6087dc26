//! The device: one state machine for every transport.
//!
//! ```text
//!            'R'             'C'                driver_status = DRIVER_OK
//! Initial ---------> Reset ---------> Config ----------------------------> Ready
//!    ^                 ^  <-- 'R' ---   |                                    |
//!    |                                                driver_status = ACK,   |
//!    +---------------------------------------------------- TX empty ---------+
//! ```
//!
//! | state | device status | a byte on TX | driver status |
//! |---|---|---|---|
//! | Initial | RESET | `R`: to Reset | |
//! | Reset | RESET | `R`: stays. `C`: to Config, if the driver status is DRIVER_ACK | |
//! | Config | CONFIG | `R`: to Reset. `C`: stays, adds no second table entry | DRIVER_OK: to Ready |
//! | Ready | READY | data | DRIVER_ACK with TX empty: to Initial |
//! | Broken | BROKEN | | |
//!
//! Before READY each byte on the TX queue is a command; in READY each byte is data. Anything else is a
//! [`Violation`]: the device is then [`State::Broken`] and does nothing more. A transport only decides *when*
//! [`Device::advance`] runs: at each trapped store, or again and again in a polling thread. `docs/abi.md`, sections 4.4
//! and 4.7, is the specification.

use crate::abi::{Layout, gpa, offset};
use crate::ring::{Batch, Consumer, Producer, Ring, WildIndex};
use crate::{Memory, abi, table};
use core::fmt;

mod violation;

pub use violation::{BadQueueLen, Violation};

/// The host's side of the device: takes the driver's data and supplies its input.
pub trait Host {
    /// Takes a byte that the driver sent.
    fn transmit(&mut self, byte: u8);
    /// Completes the bytes since the last call. Their effects must be done before this returns, because the device then
    /// reports to the driver that they were taken.
    fn transmitted(&mut self) {}
    /// Returns false if [`receive`](Self::receive) would return `None`. The device asks this at every poll.
    fn has_input(&self) -> bool {
        true
    }
    /// Returns the next byte for the driver, or `None` if there is no input now. Must not wait.
    fn receive(&mut self) -> Option<u8>;
}

/// The state of the device in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Powered on, or reset by the driver from READY. Shows RESET.
    Initial,
    /// Has taken `R`. Shows RESET.
    Reset,
    /// Has taken `C`, and is in the device table. Shows CONFIG.
    Config,
    /// Has seen DRIVER_OK: TX carries data. Shows READY.
    Ready,
    /// The driver broke the protocol. Shows BROKEN.
    Broken,
}

impl State {
    /// Returns the value of the device status field in this state.
    pub const fn status(self) -> u8 {
        match self {
            Self::Initial | Self::Reset => abi::device_status::RESET,
            Self::Config => abi::device_status::CONFIG,
            Self::Ready => abi::device_status::READY,
            Self::Broken => abi::device_status::BROKEN,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Initial => "Initial",
            Self::Reset => "Reset",
            Self::Config => "Config",
            Self::Ready => "Ready",
            Self::Broken => "Broken",
        })
    }
}

/// Counters of the device's events. They prove that a handshake took place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The number of `R` commands taken.
    pub resets: u64,
    /// The number of `C` commands taken.
    pub configs: u64,
    /// The number of times the device became READY.
    pub readies: u64,
    /// The number of data bytes that the driver sent in READY.
    pub received: u64,
    /// The number of data bytes that the device put into the RX queue.
    pub delivered: u64,
    /// The number of stores to read-only fields. Where stores are trapped they are dropped; in shared memory the
    /// fields are restored.
    pub ignored_stores: u64,
    /// The number of stores to the place that the driver status has in the other layout.
    pub misplaced_statuses: u64,
    /// The number of loads from the place that the device status has in the other layout, while the driver had to wait for
    /// a change of it. A window in shared memory sees no loads.
    pub misplaced_waits: u64,
}

/// The device's private state, which the guest cannot access.
#[derive(Debug)]
pub struct Device {
    state: State,
    tx: Consumer,
    rx: Producer,
    layout: Layout,
    max_queue_len: u16,
    history: History,
}

impl Device {
    /// Returns a device in [`State::Initial`] with queues of `max_queue_len` bytes, and publishes the config table.
    ///
    /// # Errors
    /// The length is not from [`abi::MIN_QUEUE_LEN`] to [`Layout::longest_queue`].
    pub fn power_on(layout: Layout, max_queue_len: u16, memory: &impl Memory) -> Result<Self, BadQueueLen> {
        if !(abi::MIN_QUEUE_LEN..=layout.longest_queue()).contains(&max_queue_len) {
            return Err(BadQueueLen { len: max_queue_len, longest: layout.longest_queue() });
        }
        let mut device = Self {
            state: State::Initial,
            tx: Consumer::new(Ring::tx(max_queue_len)),
            rx: Producer::new(Ring::rx(max_queue_len)),
            layout,
            max_queue_len,
            history: History::default(),
        };
        device.repair(memory);
        device.history = History::default();
        Ok(device)
    }

    /// Returns the state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Returns the counters.
    pub fn history(&self) -> History {
        self.history
    }

    /// Does the work that is pending: follows driver_status, takes the bytes of the TX queue, gives data to `host`,
    /// and fills the RX queue with input from `host`. Returns true if anything was done. One call moves only about as
    /// many bytes as the queues hold, even if the driver pushes more at the same time.
    ///
    /// Each round loads TX head before driver_status, so that a driver status written before a byte counts for that
    /// byte. The effect of a byte is published before the new tail.
    ///
    /// # Errors
    /// The driver broke the protocol. From then on the device is [`State::Broken`] and does nothing.
    pub fn advance(&mut self, memory: &impl Memory, host: &mut impl Host) -> Result<bool, Violation> {
        // The bytes of a queue, and the changes of driver_status before and after them.
        let most = u32::from(self.max_queue_len).saturating_add(2);
        let mut done: u32 = 0;
        while done < most {
            if self.state == State::Broken {
                return Ok(done > 0);
            }
            match self.round(memory, host, most.saturating_sub(done)) {
                Ok(0) => {
                    let delivered =
                        self.deliver(memory, host).map_err(|found| self.violated(memory, found))?;
                    return Ok(delivered || done > 0);
                }
                Ok(more) => done = done.saturating_add(more),
                Err(violation) => return Err(self.violated(memory, violation)),
            }
        }
        Ok(true)
    }

    /// Breaks the device because of a violation that only the transport can see.
    pub fn violated(&mut self, memory: &impl Memory, violation: Violation) -> Violation {
        self.enter(State::Broken, memory);
        violation
    }

    /// Counts a store of `size` bytes to a read-only field at an offset of the window. The transport has dropped it.
    pub fn ignored_store(&mut self, offset: u64, size: u8) {
        self.history.ignored_stores = self.history.ignored_stores.saturating_add(1);
        let misplaced = u64::from(size == 1 && offset == self.layout.other().driver_status());
        self.history.misplaced_statuses = self.history.misplaced_statuses.saturating_add(misplaced);
    }

    /// Counts a load of `size` bytes if it looks for the device status where only the other layout has it.
    pub fn loaded(&mut self, offset: u64, size: u8) {
        if offset == self.layout.other().device_status()
            && size == 1
            && !matches!(self.state, State::Ready | State::Broken)
        {
            self.history.misplaced_waits = self.history.misplaced_waits.saturating_add(1);
        }
    }

    /// The layout of the config table.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The bytes between the magic and the queue selector, as they must be. `None` is the driver's. Behind the struct, the
    /// last byte is reserved.
    fn config(&self) -> [Option<u8>; 4] {
        let [low, high] = self.max_queue_len.to_le_bytes();
        match self.layout {
            Layout::Table => [Some(low), Some(high), Some(self.state.status()), None],
            Layout::Struct => [Some(self.state.status()), None, Some(low), Some(0)],
        }
    }

    /// Restores the read-only fields that the driver has overwritten, and counts them. A window in shared RAM needs
    /// this; where stores are trapped, they do not reach the fields.
    pub fn repair(&mut self, memory: &impl Memory) {
        let mut repairs: u64 = 0;
        let words =
            [(gpa::MAGIC, abi::MAGIC), (gpa::TX_TAIL, self.tx.tail()), (gpa::RX_HEAD, self.rx.head())];
        for (gpa, right) in words {
            if memory.load_u32(gpa) != right {
                memory.store_u32(gpa, right);
                repairs = repairs.saturating_add(1);
            }
        }
        let fields = (abi::WINDOW + offset::LAYOUT..).zip(self.config());
        let mut wrong = [false; 4];
        for ((gpa, right), wrong) in fields.zip(&mut wrong) {
            if let Some(right) = right.filter(|right| memory.load_u8(gpa) != *right) {
                memory.store_u8(gpa, right);
                *wrong = true;
            }
        }
        // A store to the whole length is none of a driver status.
        let (misplaced, changed) = match (self.layout, wrong) {
            (Layout::Table, [low, high, status, _]) => (high && !low, [low || high, status, false]),
            (Layout::Struct, [status, _, length, reserved]) => (reserved, [status, length, reserved]),
        };
        self.history.misplaced_statuses = self.history.misplaced_statuses.saturating_add(misplaced.into());
        repairs = repairs.saturating_add(changed.into_iter().map(u64::from).sum());
        self.history.ignored_stores = self.history.ignored_stores.saturating_add(repairs);
    }

    /// Returns true if the device is READY and its driver has taken all bytes of the RX queue, so that it needs new
    /// input.
    ///
    /// # Errors
    /// The RX queue's tail is not below the length. From then on the device is [`State::Broken`].
    pub fn is_starved(&mut self, memory: &impl Memory) -> Result<bool, Violation> {
        let drained = self.rx.is_drained(memory).map_err(wild_rx);
        let drained = drained.map_err(|found| self.violated(memory, found))?;
        Ok(drained && self.state == State::Ready)
    }

    /// Moves the host's input into the RX queue, until the input is used up or the queue is full.
    fn deliver(&mut self, memory: &impl Memory, host: &mut impl Host) -> Result<bool, Violation> {
        if self.state != State::Ready || !host.has_input() {
            return Ok(false);
        }
        let mut space = self.rx.space(memory).map_err(wild_rx)?;
        let mut delivered: u64 = 0;
        while !space.is_full() {
            let Some(byte) = host.receive() else { break };
            space.put(memory, byte);
            delivered = delivered.saturating_add(1);
        }
        if delivered > 0 {
            self.rx.publish(memory, &space);
        }
        self.history.delivered = self.history.delivered.saturating_add(delivered);
        Ok(delivered > 0)
    }

    /// Handles bytes of the TX queue or one change of driver_status. Takes one command, or all data up to `most` bytes.
    /// Returns the number of bytes and changes.
    fn round(&mut self, memory: &impl Memory, host: &mut impl Host, most: u32) -> Result<u32, Violation> {
        let mut batch = self.pending(memory, most)?;
        let driver_status = self.driver_status(memory)?;
        let moved = self.follow(driver_status, batch.is_empty(), memory)?;
        let Some(first) = batch.next(memory) else { return Ok(moved.into()) };
        let mut taken: u32 = 1;
        if self.state == State::Ready {
            host.transmit(first);
            while let Some(data) = batch.next(memory) {
                host.transmit(data);
                taken = taken.saturating_add(1);
            }
            host.transmitted();
            self.history.received = self.history.received.saturating_add(taken.into());
            // Input that the host supplies at once reaches the driver together with the new tail, as one update.
            self.deliver(memory, host)?;
        } else {
            self.command(first, driver_status, memory)?;
        }
        self.tx.release_batch(memory, &batch);
        Ok(taken)
    }

    /// Returns the bytes on TX.
    fn pending(&self, memory: &impl Memory, most: u32) -> Result<Batch, Violation> {
        self.tx.peek_batch(memory, most).map_err(|wild| Violation::WildIndex { queue: 0, wild })
    }

    /// Checks the fields that the driver writes, and returns the driver status.
    fn driver_status(&self, memory: &impl Memory) -> Result<u8, Violation> {
        use abi::driver_status::{ACK, DRIVER, DRIVER_OK};
        let selector = memory.load_u8(gpa::QUEUE_SELECTOR);
        if selector > 1 {
            return Err(Violation::Selector { value: selector });
        }
        self.rx.is_drained(memory).map_err(wild_rx)?;
        match memory.load_u8(abi::WINDOW.saturating_add(self.layout.driver_status())) {
            status @ (ACK | DRIVER | DRIVER_OK) => Ok(status),
            value => Err(Violation::DriverStatus { state: self.state, value }),
        }
    }

    /// Changes the state where driver_status alone requires it. Returns true if there is more to do.
    fn follow(&mut self, driver_status: u8, empty: bool, memory: &impl Memory) -> Result<bool, Violation> {
        match (self.state, driver_status) {
            (State::Config, abi::driver_status::DRIVER_OK) => {
                self.history.readies = self.history.readies.saturating_add(1);
                self.enter(State::Ready, memory);
                Ok(true)
            }
            // Bytes that the driver pushed before it could see this reset are data, also those pushed between our
            // loads of head and driver_status. So we load the head again.
            (State::Ready, abi::driver_status::ACK) if empty => {
                if self.pending(memory, 1)?.is_empty() {
                    self.enter(State::Initial, memory);
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Executes a byte on the TX queue as a command, before READY.
    fn command(&mut self, byte: u8, driver_status: u8, memory: &impl Memory) -> Result<(), Violation> {
        use abi::command;
        match (self.state, byte) {
            (State::Initial | State::Reset | State::Config, command::RESET) => {
                self.history.resets = self.history.resets.saturating_add(1);
                self.enter(State::Reset, memory);
            }
            (State::Reset, command::CONFIG) => {
                if driver_status != abi::driver_status::ACK {
                    return Err(Violation::NotAcknowledged { driver_status });
                }
                table::enter(memory, abi::WINDOW)
                    .map_err(|table::BadCount(count)| Violation::Table { count })?;
                self.history.configs = self.history.configs.saturating_add(1);
                self.enter(State::Config, memory);
            }
            (State::Config, command::CONFIG) => {
                self.history.configs = self.history.configs.saturating_add(1);
            }
            (state, byte) => return Err(Violation::Command { state, byte }),
        }
        Ok(())
    }

    fn enter(&mut self, state: State, memory: &impl Memory) {
        self.state = state;
        memory.store_u8(abi::WINDOW.saturating_add(self.layout.device_status()), state.status());
    }
}

/// Converts a wrong tail of the RX queue.
fn wild_rx(wild: WildIndex) -> Violation {
    Violation::WildIndex { queue: 1, wild }
}

#[cfg(test)]
mod tests;
