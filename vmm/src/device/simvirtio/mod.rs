//! The host side of SIMVIRTIO: the device of the protocol with its memory, output and input.
//!
//! `window.rs` traps the window for the exit and coalesced transports. For the doorbell and polling transports the same
//! [`Simvirtio`] runs on its own thread, in `doorbell.rs` and `poller.rs`. With a software processor it takes turns with the
//! vCPUs, in `turns.rs`.
//!
//! May import what [`crate::device`] may import, and the protocol's crate `simvirtio`.

pub(crate) mod doorbell;
pub(crate) mod poller;
pub(crate) mod turns;
pub(crate) mod window;

pub use window::{TrappedMemory, Window};

use crate::console::input::Input;
use crate::console::output::Output;
use crate::exit::Stop;
use simvirtio::Memory;
use simvirtio::abi::{self, Layout, offset};
use simvirtio::device::{BadQueueLen, Device, History, Host, State};
use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

/// The way in which the driver's stores reach the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// The window traps: each access to it is an exit. A store to the head of a queue is the notification.
    #[default]
    Exit,
    /// The window traps, but the kernel queues stores to TX head (KVM_REGISTER_COALESCED_MMIO) until the guest exits
    /// for another reason.
    Coalesced,
    /// The window is shared RAM. The device's thread sleeps until the driver rings, which is an exit inside the kernel.
    Doorbell,
    /// The window is shared RAM. The device's thread polls it, so there are no exits.
    Polling,
}

impl Transport {
    /// All transports, in order from the most exits to none.
    pub const ALL: [Self; 4] = [Self::Exit, Self::Coalesced, Self::Doorbell, Self::Polling];

    /// True if the window is RAM that guest and host share, and the device has its own thread.
    pub fn shares_memory(self) -> bool {
        matches!(self, Self::Doorbell | Self::Polling)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exit => "exit",
            Self::Coalesced => "coalesced",
            Self::Doorbell => "doorbell",
            Self::Polling => "polling",
        })
    }
}

/// The most bytes that a looped-back device holds for the driver.
const MAX_LOOPED: usize = 64 << 10;
/// The most bytes of the message that are kept for the report. The output gets all of them.
const MAX_MESSAGE: usize = 64 << 10;

/// The state of the device after a run.
#[derive(Clone, Debug)]
pub struct SimvirtioReport {
    /// The transport of the run.
    pub transport: Transport,
    /// The layout of the config table.
    pub layout: Layout,
    /// The state of the device at the end.
    pub state: State,
    /// The driver's status register at the end.
    pub driver_status: u8,
    /// The device's counters: commands, bytes and ignored stores.
    pub history: History,
    /// The first 64 KiB that the device received from the driver.
    pub message: Vec<u8>,
    /// A digest of all bytes that the device received. Messages with different digests differ.
    pub digest: u64,
    /// The number of rings of the doorbell. 0 for the other transports.
    pub rings: u64,
    /// The processor time of the device's own thread. `None` if the transport has no thread.
    pub thread_time: Option<Duration>,
}

/// The device of the protocol, with the memory that it shares with the driver, its output and its input.
#[derive(Debug)]
pub struct Simvirtio<M> {
    device: Device,
    queue_len: u16,
    memory: M,
    streams: Streams,
}

/// The device's byte streams: prints and keeps the bytes that the driver sends, and supplies the input.
#[derive(Debug)]
struct Streams {
    output: Output,
    input: Input,
    /// The bytes to return to the driver. `None` unless the device is looped back, in which case it neither prints nor
    /// reads input.
    looped: Option<VecDeque<u8>>,
    message: Vec<u8>,
    digest: DefaultHasher,
    /// The bytes that were received and are not in `message` and `digest` yet.
    received: Vec<u8>,
    /// The number of bytes in `received` that were printed.
    printed: usize,
    /// The end of the run that a failed print asks for.
    failure: Option<Stop>,
}

impl Host for Streams {
    fn has_input(&self) -> bool {
        match &self.looped {
            Some(looped) => !looped.is_empty(),
            None => self.input.has_next(),
        }
    }

    fn receive(&mut self) -> Option<u8> {
        match &mut self.looped {
            Some(looped) => looped.pop_front(),
            None => self.input.next(),
        }
    }

    fn transmit(&mut self, byte: u8) {
        self.received.push(byte);
        if let Some(looped) = &mut self.looped {
            // If the driver does not receive the bytes, the rest is lost.
            if looped.len() < MAX_LOOPED {
                looped.push_back(byte);
            }
        }
    }

    fn transmitted(&mut self) {
        let unprinted = self.received.get(self.printed..).unwrap_or_default();
        if self.looped.is_none() && self.failure.is_none() && !unprinted.is_empty() {
            self.failure = self.output.print(unprinted).break_value();
        }
        self.printed = self.received.len();
    }
}

impl Streams {
    /// Adds the received bytes to the message and the digest. This happens after the driver was told that the bytes were
    /// taken, so that it does not wait for it.
    fn account(&mut self) {
        for &byte in &self.received {
            if self.message.len() < MAX_MESSAGE {
                self.message.push(byte);
            }
            self.digest.write_u8(byte);
        }
        self.received.clear();
        self.printed = 0;
    }
}

impl<M: Memory> Simvirtio<M> {
    /// Creates the device and powers it on.
    ///
    /// # Errors
    /// The layout does not allow `queue_len`.
    pub fn power_on(
        layout: Layout,
        queue_len: u16,
        memory: M,
        output: Output,
        input: Input,
    ) -> Result<Self, BadQueueLen> {
        let device = Device::power_on(layout, queue_len, &memory)?;
        let streams = Streams {
            output,
            input,
            looped: None,
            message: Vec::new(),
            digest: DefaultHasher::new(),
            received: Vec::new(),
            printed: 0,
            failure: None,
        };
        Ok(Self { device, queue_len, memory, streams })
    }

    /// Returns the device to its state after power-on. The window must be zero. Input that was not read stays.
    pub(crate) fn power_on_again(&mut self) {
        // This does not fail: `power_on` has accepted the queue length.
        if let Ok(device) = Device::power_on(self.device.layout(), self.queue_len, &self.memory) {
            self.device = device;
        }
        let streams = &mut self.streams;
        streams.looped.iter_mut().for_each(VecDeque::clear);
        streams.message.clear();
        streams.digest = DefaultHasher::new();
        streams.received.clear();
        streams.printed = 0;
        streams.failure = None;
    }

    /// Returns a device that sends received bytes back to the driver instead of to the output. It holds at most 64 KiB
    /// of them, and has no input.
    pub fn looped_back(mut self) -> Self {
        self.streams.input = Input::none();
        self.streams.looped = Some(VecDeque::new());
        self
    }

    /// Processes everything that the driver has queued. Returns true if there was anything to do.
    pub fn advance(&mut self) -> ControlFlow<Stop, bool> {
        let answer = self.device.advance(&self.memory, &mut self.streams);
        if !self.streams.received.is_empty() {
            self.streams.account();
        }
        if self.streams.failure.is_some()
            && let Some(stop) = self.streams.failure.take()
        {
            return ControlFlow::Break(stop);
        }
        match answer {
            Ok(progress) => ControlFlow::Continue(progress),
            Err(violation) => ControlFlow::Break(Stop::ProtocolError(violation)),
        }
    }

    /// Reads input for a driver that waits for it. Blocks for at most `timeout`, or without limit for `None`. Returns
    /// true if the driver must still wait, because none has arrived.
    pub(crate) fn feed(&mut self, timeout: Option<Duration>) -> ControlFlow<Stop, bool> {
        match self.device.is_starved(&self.memory) {
            Ok(true) if self.streams.input.may_wait() => {}
            Ok(_) => return ControlFlow::Continue(false),
            Err(violation) => return ControlFlow::Break(Stop::ProtocolError(violation)),
        }
        // The user may not type before the prompt appears, so the output must not hold it back.
        self.streams.output.finish()?;
        match self.streams.input.fetch(timeout) {
            Err(error) => ControlFlow::Break(Stop::InputFailed(Arc::new(error))),
            Ok(()) => ControlFlow::Continue(self.streams.input.may_wait()),
        }
    }

    /// The file from which input may still come. `None` after its end.
    pub(crate) fn input(&self) -> Option<BorrowedFd<'_>> {
        self.streams.input.source()
    }

    /// True if the driver has declared that it reads the RX queue.
    pub(crate) fn reads(&self) -> bool {
        self.memory.load_u8(abi::WINDOW.saturating_add(offset::Q1_CTL)) & abi::q1_ctl::READS != 0
    }

    /// Restores the device's fields that the driver has overwritten.
    pub fn repair(&mut self) {
        self.device.repair(&self.memory);
    }

    /// The current state of the device. `rings` and `thread_time` are not filled in.
    pub fn report(&self, transport: Transport) -> SimvirtioReport {
        SimvirtioReport {
            transport,
            layout: self.device.layout(),
            state: self.device.state(),
            driver_status: self
                .memory
                .load_u8(abi::WINDOW.saturating_add(self.device.layout().driver_status())),
            history: self.device.history(),
            message: self.streams.message.clone(),
            digest: self.streams.digest.finish(),
            rings: 0,
            thread_time: None,
        }
    }
}

#[cfg(test)]
mod tests;
