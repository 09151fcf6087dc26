//! The trapped window of the exit and coalesced transports: each access to it is an exit.

use super::Simvirtio;
use crate::device::bus::Device;
use crate::exit::Stop;
use crate::memory::GuestMemory;
use crate::shutdown::Deadline;
use simvirtio::Memory;
use simvirtio::abi::{self, offset};
use simvirtio::device::Violation;
use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// How long a wait for input lasts before it is looked at anew whether the run shall end.
const PATIENCE: Duration = Duration::from_millis(100);
/// How many bytes of the window have a register behind them.
const REGISTERS: usize = offset::QUEUES_END as usize;

/// The window's registers, and the RAM with the buffers and the table: what the device sees where the
/// window traps.
#[derive(Debug)]
pub struct TrappedMemory {
    registers: [Cell<u8>; REGISTERS],
    ram: GuestMemory,
}

impl TrappedMemory {
    /// Registers that are all zero, over `ram`.
    pub fn new(ram: GuestMemory) -> Self {
        Self { registers: [const { Cell::new(0) }; REGISTERS], ram }
    }

    /// The register at `gpa`; `None` for RAM.
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
}

impl Window {
    /// The window of `simvirtio`.
    pub fn new(simvirtio: Simvirtio<TrappedMemory>) -> Self {
        Self { simvirtio, deadline: Deadline::default() }
    }

    /// Says which deadline waiting for input moves on.
    pub(crate) fn set_deadline(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// A look at an empty RX queue waits until there is input, or its end.
    fn wait_for_input(&mut self) -> ControlFlow<Stop> {
        let start = Instant::now();
        let waited = loop {
            match self.simvirtio.feed(Some(PATIENCE)) {
                // The time does not count meanwhile.
                ControlFlow::Continue(true) if self.deadline.is_asked() => {
                    break ControlFlow::Break(Stop::Interrupted);
                }
                ControlFlow::Continue(true) => {}
                ControlFlow::Continue(false) => break ControlFlow::Continue(()),
                ControlFlow::Break(stop) => break ControlFlow::Break(stop),
            }
        };
        self.deadline.extend_by_wait_since(start);
        waited?;
        self.simvirtio.advance().map_continue(drop)
    }

    /// Puts the device into the state after power-on.
    pub(crate) fn power_on_again(&mut self) {
        self.simvirtio.memory.registers.iter().for_each(|register| register.set(0));
        self.simvirtio.power_on_again();
    }

    /// The device behind it.
    pub fn simvirtio(&mut self) -> &mut Simvirtio<TrappedMemory> {
        &mut self.simvirtio
    }

    /// The config table takes any width; the queue controls take aligned words; the rest of the page is
    /// reserved, reads as zero and swallows stores.
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

/// Whether the driver may write the byte at `offset`.
fn is_writable(offset: u64) -> bool {
    matches!(offset, offset::DRIVER_STATUS..=offset::Q1_CTL)
        || (offset::TX_HEAD..offset::TX_TAIL).contains(&offset)
        || (offset::RX_TAIL..offset::QUEUES_END).contains(&offset)
}

impl Device for Window {
    fn read(&mut self, offset: u64, size: u8) -> ControlFlow<Stop, u64> {
        self.check(offset, size, false)?;
        if offset == offset::RX_HEAD {
            self.wait_for_input()?;
        }
        let mut value = [0; 8];
        for (at, byte) in (offset..).zip(&mut value).take(size.into()) {
            if at < offset::QUEUES_END {
                *byte = self.simvirtio.memory.load_u8(abi::WINDOW.saturating_add(at));
            }
        }
        ControlFlow::Continue(u64::from_le_bytes(value))
    }

    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        self.check(offset, size, true)?;
        let mut ignored = false;
        for (at, byte) in (offset..).zip(data.to_le_bytes()).take(size.into()) {
            if is_writable(at) {
                self.simvirtio.memory.store_u8(abi::WINDOW.saturating_add(at), byte);
            } else {
                ignored = true;
            }
        }
        if ignored {
            self.simvirtio.device.ignored_store();
        }
        self.simvirtio.advance().map_continue(drop)
    }

    fn name(&self, offset: u64) -> &'static str {
        match offset {
            offset::MAGIC..offset::MAX_QUEUE_LEN => "simvirtio magic",
            offset::MAX_QUEUE_LEN..offset::DEVICE_STATUS => "simvirtio max_queue_len",
            offset::DEVICE_STATUS => "simvirtio device_status",
            offset::DRIVER_STATUS => "simvirtio driver_status",
            offset::QUEUE_SELECTOR => "simvirtio queue_selector",
            offset::Q0_CTL => "simvirtio q0_ctl",
            offset::Q1_CTL => "simvirtio q1_ctl",
            offset::TX_HEAD..offset::TX_TAIL => "simvirtio TX head",
            offset::TX_TAIL..offset::RX_HEAD => "simvirtio TX tail",
            offset::RX_HEAD..offset::RX_TAIL => "simvirtio RX head",
            offset::RX_TAIL..offset::QUEUES_END => "simvirtio RX tail",
            _ => "simvirtio, reserved",
        }
    }
}
