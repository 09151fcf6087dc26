//! A channel of an ATA host adapter with up to two drives, in PIO mode: the command block at 0x1F0 and the control block at
//! 0x3F6 of the first channel, with interrupt 14.
//!
//! ATA/ATAPI-6 (T13/1410D), section 7 for the registers. A channel without drives reads as all ones, as a bus without a
//! driver. A drive that is missing beside another one reads as 0 (section 9.16.1).

mod drive;
pub(crate) mod file_medium;
mod identify;

use crate::device::bus::{Device, DeviceName};
use crate::device::pc::medium::SharedMedium;
use crate::exit::Stop;
use crate::host::{EventFd, signal};
use drive::Drive;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

/// The first port of the command block of the first channel.
pub const PORT: u16 = 0x1f0;
/// The number of ports of a command block.
pub const PORTS: u16 = 8;
/// The port of the control block of the first channel.
pub const CONTROL_PORT: u16 = 0x3f6;
/// The interrupt of the first channel.
pub const IRQ: u32 = 14;
/// The number of drives of a channel.
pub const DRIVES: usize = 2;

/// Device register: the second drive is selected.
const SECOND: u8 = 1 << 4;
/// Device register: bits that always read as 1.
const OBSOLETE: u8 = 0xa0;
/// Device control: no interrupts.
const NO_INTERRUPTS: u8 = 1 << 1;
/// Device control: software reset.
const SOFTWARE_RESET: u8 = 1 << 2;
/// Device control: the registers read as what was written before the last value.
const PREVIOUS: u8 = 1 << 7;
/// Status: the drive is busy.
const BUSY: u8 = 1 << 7;
/// EXECUTE DEVICE DIAGNOSTIC. Both drives execute it.
const DIAGNOSTIC: u8 = 0x90;

/// A register of 8 bits that also keeps the value before the last one (section 6.20, "48-bit Address feature set").
#[derive(Clone, Copy, Debug, Default)]
struct Register {
    now: u8,
    before: u8,
}

impl Register {
    fn write(&mut self, value: u8) {
        (self.before, self.now) = (self.now, value);
    }

    fn set(&mut self, value: u8) {
        (self.before, self.now) = (0, value);
    }

    fn read(self, previous: bool) -> u8 {
        if previous { self.before } else { self.now }
    }

    /// The value of 8 bits, or of 16.
    fn value(self, extended: bool) -> u16 {
        if extended { u16::from_le_bytes([self.now, self.before]) } else { self.now.into() }
    }
}

/// The registers that a command takes. Both drives of a channel see each write.
#[derive(Clone, Copy, Debug, Default)]
struct Registers {
    features: Register,
    count: Register,
    low: Register,
    mid: Register,
    high: Register,
    device: u8,
}

impl Registers {
    /// The values after a reset: the signature of a drive without PACKET (section 9.12).
    fn set_signature(&mut self) {
        let Self { count, low, mid, high, device, .. } = self;
        for (register, value) in [(count, 1), (low, 1), (mid, 0), (high, 0)] {
            register.set(value);
        }
        *device = 0;
    }

    /// The LBA, of 28 or of 48 bits.
    fn lba(&self, extended: bool) -> u64 {
        let Self { low, mid, high, device, .. } = self;
        let last = match extended {
            true => [low.before, mid.before, high.before],
            false => [device & 0x0f, 0, 0],
        };
        let [a, b, c] = last;
        u64::from_le_bytes([low.now, mid.now, high.now, a, b, c, 0, 0])
    }

    /// The cylinder, the head and the sector.
    fn cylinder_head_sector(&self) -> (u16, u8, u8) {
        (u16::from_le_bytes([self.mid.now, self.high.now]), self.device & 0x0f, self.low.now)
    }

    /// Shows an LBA.
    fn set_address(&mut self, lba: u64) {
        let [low, mid, high, a, b, c, ..] = lba.to_le_bytes();
        (self.low, self.mid, self.high) = (
            Register { now: low, before: a },
            Register { now: mid, before: b },
            Register { now: high, before: c },
        );
        self.device = self.device & 0xf0 | a & 0x0f;
    }
}

/// A channel.
#[derive(Debug, Default)]
pub struct Channel {
    drives: [Option<Drive>; DRIVES],
    registers: Registers,
    control: u8,
    /// Raises the interrupt. `None` without interrupt controllers.
    line: Option<EventFd>,
}

impl Channel {
    /// A channel with these disks, the first drive first. At most [`DRIVES`].
    pub fn new(disks: Vec<SharedMedium>, line: Option<EventFd>) -> Self {
        let mut drives = [None, None];
        for (drive, disk) in drives.iter_mut().zip(disks) {
            *drive = Some(Drive::new(disk));
        }
        let mut registers = Registers::default();
        registers.set_signature();
        Self { drives, registers, control: 0, line }
    }

    fn is_empty(&self) -> bool {
        self.drives.iter().all(Option::is_none)
    }

    /// The selected drive, if it exists, and the registers.
    fn selected(&mut self) -> Option<(&mut Drive, &mut Registers)> {
        let index = usize::from(self.registers.device & SECOND != 0);
        let drive = self.drives.get_mut(index)?.as_mut()?;
        Some((drive, &mut self.registers))
    }

    /// Raises the interrupt if the selected drive asks for one and interrupts are on.
    fn update_line(&mut self, asked_before: bool) {
        let is_masked = self.control & (NO_INTERRUPTS | SOFTWARE_RESET) != 0;
        let asks = self.selected().is_some_and(|(drive, _)| drive.interrupts);
        if let Some(line) = self.line.as_ref().filter(|_| asks && !asked_before && !is_masked) {
            signal(line);
        }
    }

    /// The status of the selected drive.
    fn status(&mut self) -> u8 {
        let (in_reset, is_empty) = (self.control & SOFTWARE_RESET != 0, self.is_empty());
        match self.selected() {
            Some(_) if in_reset => BUSY,
            Some((drive, _)) => drive.status,
            None if is_empty => u8::MAX,
            None => 0,
        }
    }

    /// Reads a register of the command block.
    fn read_register(&mut self, offset: u64) -> u8 {
        if self.is_empty() {
            return u8::MAX;
        }
        let previous = self.control & PREVIOUS != 0;
        let Registers { count, low, mid, high, device, .. } = self.registers;
        match (offset, self.selected()) {
            (7, None) | (1, None) => 0,
            (1, Some((drive, _))) => drive.error,
            (2, _) => count.read(previous),
            (3, _) => low.read(previous),
            (4, _) => mid.read(previous),
            (5, _) => high.read(previous),
            (6, _) => device | OBSOLETE,
            (7, Some((drive, _))) => {
                // A read of the status acknowledges the interrupt.
                drive.interrupts = false;
                self.status()
            }
            _ => u8::MAX,
        }
    }

    /// Writes a register of the command block.
    fn write_register(&mut self, offset: u64, value: u8) -> ControlFlow<Stop> {
        // A write of any of these registers selects what was written last.
        self.control &= !PREVIOUS;
        match offset {
            1 => self.registers.features.write(value),
            2 => self.registers.count.write(value),
            3 => self.registers.low.write(value),
            4 => self.registers.mid.write(value),
            5 => self.registers.high.write(value),
            6 => {
                self.registers.device = value;
                // The other drive may have asked for an interrupt while it was not selected.
                self.update_line(false);
            }
            7 => return self.command(value),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn command(&mut self, code: u8) -> ControlFlow<Stop> {
        if self.control & SOFTWARE_RESET != 0 {
            return ControlFlow::Continue(());
        }
        if code == DIAGNOSTIC {
            self.reset();
            if let Some(drive) = &mut self.drives[0] {
                drive.interrupts = true;
            }
        } else if let Some((drive, registers)) = self.selected() {
            drive.command(code, registers)?;
        }
        self.update_line(false);
        ControlFlow::Continue(())
    }

    /// Resets both drives.
    fn reset(&mut self) {
        self.drives.iter_mut().flatten().for_each(Drive::reset);
        self.registers.set_signature();
    }

    /// Writes the device control register.
    fn write_control(&mut self, value: u8) {
        let before = std::mem::replace(&mut self.control, value);
        if value & SOFTWARE_RESET == 0 && before & SOFTWARE_RESET != 0 {
            self.reset();
        }
        // An interrupt that was held back is raised when interrupts are on again.
        self.update_line(before & NO_INTERRUPTS == 0);
    }

    /// Reads words from the data register: one for an access of up to two bytes, two for one of four.
    fn read_data(&mut self, size: u8) -> ControlFlow<Stop, u64> {
        let mut words = [u16::MAX; 4];
        for word in words.iter_mut().take(usize::from(size.div_ceil(2))) {
            let asked = self.selected().is_some_and(|(drive, _)| drive.interrupts);
            *word = match self.selected() {
                Some((drive, registers)) => drive.read_data(registers)?,
                None => u16::MAX,
            };
            self.update_line(asked);
        }
        let [a, b, c, d] = words.map(u64::from);
        ControlFlow::Continue(a | b << 16 | c << 32 | d << 48)
    }

    /// Writes words to the data register, as [`Self::read_data`] reads them.
    fn write_data(&mut self, size: u8, data: u64) -> ControlFlow<Stop> {
        let data = if size == 1 { data & 0xff } else { data };
        let [a, b, c, d, e, f, g, h] = data.to_le_bytes();
        let words = [[a, b], [c, d], [e, f], [g, h]].map(u16::from_le_bytes);
        for word in words.into_iter().take(usize::from(size.div_ceil(2))) {
            let asked = self.selected().is_some_and(|(drive, _)| drive.interrupts);
            if let Some((drive, registers)) = self.selected() {
                drive.write_data(word, registers)?;
            }
            self.update_line(asked);
        }
        ControlFlow::Continue(())
    }
}

/// The registers after the data register that an access covers. Each is one byte.
fn registers(offset: u64, size: u8) -> impl Iterator<Item = u64> {
    (0..u64::from(size)).map(move |byte| offset.saturating_add(byte))
}

impl Device for Channel {
    fn read(&mut self, offset: u64, size: u8) -> ControlFlow<Stop, u64> {
        if offset == 0 {
            return self.read_data(size);
        }
        let mut value = [u8::MAX; 8];
        for (register, byte) in registers(offset, size).zip(&mut value) {
            if register < PORTS.into() {
                *byte = self.read_register(register);
            }
        }
        ControlFlow::Continue(u64::from_le_bytes(value))
    }

    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        if offset == 0 {
            return self.write_data(size, data);
        }
        for (register, byte) in registers(offset, size).zip(data.to_le_bytes()) {
            if register < PORTS.into() {
                self.write_register(register, byte)?;
            }
        }
        ControlFlow::Continue(())
    }

    fn name(&self, offset: u64) -> DeviceName {
        let register = match offset {
            0 => "data",
            1 => "error/features",
            2 => "sector count",
            3 => "LBA low",
            4 => "LBA mid",
            5 => "LBA high",
            6 => "device",
            _ => "status/command",
        };
        DeviceName::register("ATA", register)
    }
}

/// The control block of a channel: the alternate status, and the device control register.
#[derive(Debug)]
pub struct ControlBlock(pub Arc<Mutex<Channel>>);

impl Device for ControlBlock {
    fn read(&mut self, offset: u64, _: u8) -> ControlFlow<Stop, u64> {
        let mut channel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let status = if offset == 0 { channel.status() } else { u8::MAX };
        ControlFlow::Continue(u64::MAX << 8 | u64::from(status))
    }

    fn write(&mut self, offset: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        let [value, ..] = data.to_le_bytes();
        if offset == 0 {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write_control(value);
        }
        ControlFlow::Continue(())
    }

    fn name(&self, _: u64) -> DeviceName {
        DeviceName::register("ATA", "control")
    }
}

#[cfg(test)]
mod tests;
