//! The trapped window of the exit and coalesced transports: each access to it is an exit.

use super::Simvirtio;
use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use crate::memory::GuestMemory;
use crate::shutdown::{Deadline, Wait};
use simvirtio::Memory;
use simvirtio::abi::{self, Layout, offset};
use simvirtio::device::Violation;
use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// The interval at which a wait for input checks whether the run must end.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// The same, if other vCPUs share the thread.
const SHORT_WAIT: Duration = Duration::from_millis(1);
/// The size of the window's registers, in bytes.
const REGISTERS: usize = offset::QUEUES_END as usize;

/// The memory that the device works on if the window traps: the window's registers, and the RAM with the buffers and
/// the device table.
#[derive(Debug)]
pub struct TrappedMemory {
    registers: [Cell<u8>; REGISTERS],
    ram: GuestMemory,
}

impl TrappedMemory {
    /// Creates registers that are all zero, over `ram`.
    pub fn new(ram: GuestMemory) -> Self {
        Self { registers: [const { Cell::new(0) }; REGISTERS], ram }
    }

    /// The register byte at `gpa`. `None` for RAM.
    fn register(&self, gpa: u64) -> Option<&Cell<u8>> {
        self.registers.get(usize::try_from(gpa.checked_sub(abi::WINDOW)?).ok()?)
    }
}

impl Memory for TrappedMemory {
    fn load_u8(&self, gpa: u64) -> u8 {
        match self.register(gpa) {
            Some(register) => register.get(),
            None => self.ram.load_u8(gpa),
        }
    }
    fn store_u8(&self, gpa: u64, value: u8) {
        match self.register(gpa) {
            Some(register) => register.set(value),
            None => self.ram.store_u8(gpa, value),
        }
    }
    fn load_u32(&self, gpa: u64) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|byte| self.load_u8(gpa.saturating_add(byte))))
    }
    fn store_u32(&self, gpa: u64, value: u32) {
        for (byte, value) in (0..).zip(value.to_le_bytes()) {
            self.store_u8(gpa.saturating_add(byte), value);
        }
    }
}

/// The exit and coalesced transports: the device behind the trapped window.
#[derive(Debug)]
pub struct Window {
    simvirtio: Simvirtio<TrappedMemory>,
    deadline: Deadline,
    /// The start of a wait for input that gave way to other vCPUs.
    waits_since: Option<Instant>,
}

impl Window {
    /// Creates the window of `simvirtio`.
    pub fn new(simvirtio: Simvirtio<TrappedMemory>) -> Self {
        Self { simvirtio, deadline: Deadline::default(), waits_since: None }
    }

    /// Sets the deadline of the run, which is extended by the time of each wait for input.
    pub(crate) fn set_deadline(&mut self, deadline: Deadline) {
        (self.deadline, self.waits_since) = (deadline, None);
    }

    /// If the RX queue is empty, waits until input or its end arrives, or gives way to other vCPUs of the thread.
    fn wait_for_input(&mut self) -> ControlFlow<Stop> {
        let start = self.waits_since.take().unwrap_or_else(Instant::now);
        let interval = if self.deadline.shares_thread() { SHORT_WAIT } else { CHECK_INTERVAL };
        let waited = loop {
            match self.simvirtio.feed(Some(interval)) {
                // A request and the wall-clock limit end this wait. Its time does not count against the timeout.
                ControlFlow::Continue(true) => {
                    if let Some(stop) = self.deadline.must_end_wait() {
                        break ControlFlow::Break(stop);
                    }
                    if self.deadline.give_way(Wait::Input) {
                        self.waits_since = Some(start);
                        return ControlFlow::Continue(());
                    }
                }
                ControlFlow::Continue(false) => break ControlFlow::Continue(()),
                ControlFlow::Break(stop) => break ControlFlow::Break(stop),
            }
        };
        self.deadline.extend_by_wait_since(start);
        waited?;
        self.simvirtio.advance().map_continue(drop)
    }

    /// Returns the device to its state after power-on.
    pub(crate) fn power_on_again(&mut self) {
        self.simvirtio.memory.registers.iter().for_each(|register| register.set(0));
        self.simvirtio.power_on_again();
    }

    /// The device behind the window.
    pub fn simvirtio(&mut self) -> &mut Simvirtio<TrappedMemory> {
        &mut self.simvirtio
    }

    /// Breaks with a protocol error if the queue controls are not accessed as aligned 4-byte words. The config table
    /// allows every width. The rest of the page is reserved: it reads as zero and ignores stores.
    fn check(&mut self, offset: u64, size: u8, store: bool) -> ControlFlow<Stop> {
        let end = offset.saturating_add(size.into());
        let controls = end > offset::TX_HEAD && offset < offset::QUEUES_END;
        if !controls || (size == 4 && offset.is_multiple_of(4)) {
            return ControlFlow::Continue(());
        }
        let Simvirtio { device, memory, .. } = &mut self.simvirtio;
        let violation = device.violated(memory, Violation::Access { offset, size, store });
        ControlFlow::Break(Stop::ProtocolError(violation))
    }
}

/// True if the driver may write the byte at `offset`.
fn is_writable(layout: Layout, offset: u64) -> bool {
    offset == layout.driver_status()
        || (offset::QUEUE_SELECTOR..=offset::Q1_CTL).contains(&offset)
        || (offset::TX_HEAD..offset::TX_TAIL).contains(&offset)
        || (offset::RX_TAIL..offset::QUEUES_END).contains(&offset)
}

impl Device for Window {
    fn read(&mut self, offset: u64, size: u8) -> ControlFlow<Stop, u64> {
        self.check(offset, size, false)?;
        if offset == offset::RX_HEAD {
            self.wait_for_input()?;
        }
        self.simvirtio.device.loaded(offset, size);
        let mut value = [0; 8];
        for (at, byte) in (offset..).zip(&mut value).take(size.into()) {
            if at < offset::QUEUES_END {
                *byte = self.simvirtio.memory.load_u8(abi::WINDOW.saturating_add(at));
            }
        }
        ControlFlow::Continue(u64::from_le_bytes(value))
    }

    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        let layout = self.simvirtio.device.layout();
        self.check(offset, size, true)?;
        let mut ignored = false;
        for (at, byte) in (offset..).zip(data.to_le_bytes()).take(size.into()) {
            if is_writable(layout, at) {
                self.simvirtio.memory.store_u8(abi::WINDOW.saturating_add(at), byte);
            } else {
                ignored = true;
            }
        }
        if ignored {
            self.simvirtio.device.ignored_store(offset, size);
        }
        self.simvirtio.advance().map_continue(drop)
    }

    fn name(&self, offset: u64) -> DeviceName {
        let layout = self.simvirtio.device.layout();
        let register = match offset {
            offset::MAGIC..offset::LAYOUT => "magic",
            _ if offset == layout.device_status() => "device_status",
            _ if offset == layout.driver_status() => "driver_status",
            _ if offset == layout.max_queue_len() => "max_queue_len",
            // The second byte of the length, which the struct does not have.
            offset::LAYOUT..offset::QUEUE_SELECTOR if layout == Layout::Table => "max_queue_len",
            offset::QUEUE_SELECTOR => "queue_selector",
            offset::Q0_CTL => "q0_ctl",
            offset::Q1_CTL => "q1_ctl",
            offset::TX_HEAD..offset::TX_TAIL => "TX head",
            offset::TX_TAIL..offset::RX_HEAD => "TX tail",
            offset::RX_HEAD..offset::RX_TAIL => "RX head",
            offset::RX_TAIL..offset::QUEUES_END => "RX tail",
            _ => "reserved",
        };
        DeviceName::register("simvirtio", register)
    }
}
