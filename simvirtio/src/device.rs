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
//! Before READY each byte on the TX queue is a command; in READY each byte is data. Anything else is a
//! [`Violation`]: the device is then broken and answers no more. The transports only decide *when*
//! [`Device::advance`] runs: at each trapped store, or over and over in a polling thread.

use crate::abi::gpa;
use crate::ring::{Batch, Consumer, Producer, Ring, WildIndex};
use crate::{Memory, abi, table};
use core::fmt;

mod violation;

pub use violation::{BadQueueLen, Violation};

/// What the device has behind it on the host: where its data goes to and comes from.
pub trait Host {
    /// Takes a byte that the driver sent.
    fn transmit(&mut self, byte: u8);
    /// The bytes since the last call are all for now: what they cause is to be done before this returns, since the
    /// driver is told then that they were taken.
    fn transmitted(&mut self) {}
    /// The next byte for the driver, if there is one now. Must not wait.
    fn receive(&mut self) -> Option<u8>;
}

/// Where the device stands in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Powered on, or reset by its driver from READY. Shows RESET.
    Initial,
    /// Got `R`. Shows RESET.
    Reset,
    /// Got `C`, and is in the device table. Shows CONFIG.
    Config,
    /// Saw DRIVER_OK: TX carries data. Shows READY.
    Ready,
    /// The driver broke the protocol. Shows BROKEN.
    Broken,
}

impl State {
    /// What the device status field shows in this state.
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

/// What the device has been through; evidence that a handshake took place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Times that it took an `R`.
    pub resets: u64,
    /// Times that it took a `C`.
    pub configs: u64,
    /// Times that it became READY.
    pub readies: u64,
    /// Bytes of data that the driver sent in READY.
    pub received: u64,
    /// Bytes of data that were put into the RX queue.
    pub delivered: u64,
    /// Stores to read-only fields: swallowed where they are trapped, put right again where they are not.
    pub ignored_stores: u64,
}

/// The device's private side: nothing in here can be reached by the guest.
#[derive(Debug)]
pub struct Device {
    state: State,
    tx: Consumer,
    rx: Producer,
    max_queue_len: u16,
    history: History,
}

impl Device {
    /// A device that is powered on, with queues of `max_queue_len` bytes; publishes the config table.
    ///
    /// # Errors
    /// The length is not from [`abi::MIN_QUEUE_LEN`] to [`abi::MAX_QUEUE_LEN`].
    pub fn power_on(max_queue_len: u16, memory: &impl Memory) -> Result<Self, BadQueueLen> {
        if !(abi::MIN_QUEUE_LEN..=abi::MAX_QUEUE_LEN).contains(&max_queue_len) {
            return Err(BadQueueLen(max_queue_len));
        }
        let mut device = Self {
            state: State::Initial,
            tx: Consumer::new(Ring::tx(max_queue_len)),
            rx: Producer::new(Ring::rx(max_queue_len)),
            max_queue_len,
            history: History::default(),
        };
        device.repair(memory);
        device.history.ignored_stores = 0;
        Ok(device)
    }

    /// Where the device stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// What the device has been through.
    pub fn history(&self) -> History {
        self.history
    }

    /// Does what is to be done now: follows driver_status, takes the TX queue's bytes, giving the data among
    /// them to `host`, and fills the RX queue with what `host` has. Returns whether anything was done. However
    /// fast the driver is, one call moves about as much as the queues hold and no more.
    ///
    /// Of each round the head is loaded first and driver_status second, so that a status which the driver
    /// wrote before a byte is never missed when that byte is judged. A byte's effect is published before
    /// the tail that covers it.
    ///
    /// # Errors
    /// The driver broke the protocol. The device is [`State::Broken`] from then on, and does nothing.
    pub fn advance(&mut self, memory: &impl Memory, host: &mut impl Host) -> Result<bool, Violation> {
        // The queue's bytes, and the changes of driver_status around them.
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

    /// Breaks the device: for a violation that only the transport can see.
    pub fn violated(&mut self, memory: &impl Memory, violation: Violation) -> Violation {
        self.enter(State::Broken, memory);
        violation
    }

    /// Counts a store to a read-only field that the transport has swallowed.
    pub fn ignored_store(&mut self) {
        self.history.ignored_stores = self.history.ignored_stores.saturating_add(1);
    }

    /// Puts read-only fields right that the driver has overwritten, and counts them. For a window that is
    /// shared RAM; where stores are trapped they never arrive.
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
        let [low, high] = self.max_queue_len.to_le_bytes();
        let length = [(gpa::MAX_QUEUE_LEN, low), (gpa::MAX_QUEUE_LEN + 1, high)];
        for field in [&length[..], &[(gpa::DEVICE_STATUS, self.state.status())]] {
            if field.iter().any(|&(gpa, right)| memory.load_u8(gpa) != right) {
                field.iter().for_each(|&(gpa, right)| memory.store_u8(gpa, right));
                repairs = repairs.saturating_add(1);
            }
        }
        self.history.ignored_stores = self.history.ignored_stores.saturating_add(repairs);
    }

    /// Whether a READY driver has taken all that was put into the RX queue: what it reads next has to come
    /// from outside.
    ///
    /// # Errors
    /// The RX queue's tail is no index. The device is [`State::Broken`] from then on.
    pub fn is_starved(&mut self, memory: &impl Memory) -> Result<bool, Violation> {
        let drained = self.rx.is_drained(memory).map_err(wild_rx);
        let drained = drained.map_err(|found| self.violated(memory, found))?;
        Ok(drained && self.state == State::Ready)
    }

    /// Puts what the host has into the RX queue, until one of them is at its end.
    fn deliver(&mut self, memory: &impl Memory, host: &mut impl Host) -> Result<bool, Violation> {
        if self.state != State::Ready {
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

    /// What is on the TX queue, or one change of driver_status. Commands are taken one at a time, and data as much as
    /// is there, up to `most` bytes. Returns how many bytes and changes there were.
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
            // What the host answers at once gets to the driver with the tail, at the price of one.
            self.deliver(memory, host)?;
        } else {
            self.command(first, driver_status, memory)?;
        }
        self.tx.release_batch(memory, &batch);
        Ok(taken)
    }

    /// What is on TX now.
    fn pending(&self, memory: &impl Memory, most: u32) -> Result<Batch, Violation> {
        self.tx.peek_batch(memory, most).map_err(|wild| Violation::WildIndex { queue: 0, wild })
    }

    /// The driver's writable fields, checked.
    fn driver_status(&self, memory: &impl Memory) -> Result<u8, Violation> {
        use abi::driver_status::{ACK, DRIVER, DRIVER_OK};
        let selector = memory.load_u8(gpa::QUEUE_SELECTOR);
        if selector > 1 {
            return Err(Violation::Selector { value: selector });
        }
        self.rx.is_drained(memory).map_err(wild_rx)?;
        match memory.load_u8(gpa::DRIVER_STATUS) {
            status @ (ACK | DRIVER | DRIVER_OK) => Ok(status),
            value => Err(Violation::DriverStatus { state: self.state, value }),
        }
    }

    /// The state changes that driver_status causes by itself. Returns whether there is more to do.
    fn follow(&mut self, driver_status: u8, empty: bool, memory: &impl Memory) -> Result<bool, Violation> {
        match (self.state, driver_status) {
            (State::Config, abi::driver_status::DRIVER_OK) => {
                self.history.readies = self.history.readies.saturating_add(1);
                self.enter(State::Ready, memory);
                Ok(true)
            }
            // What the driver pushed before it could see this reset is data, also what it pushed between our
            // two loads: hence the second look at the queue.
            (State::Ready, abi::driver_status::ACK) if empty => {
                if self.pending(memory, 1)?.is_empty() {
                    self.enter(State::Initial, memory);
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// What a byte on the TX queue does before READY.
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
        memory.store_u8(gpa::DEVICE_STATUS, state.status());
    }
}

/// The RX queue's index is none.
fn wild_rx(wild: WildIndex) -> Violation {
    Violation::WildIndex { queue: 1, wild }
}

#[cfg(test)]
mod tests;
