//! A drive of an ATA channel: its commands, and its transfers through the data register.
//!
//! ATA/ATAPI-6 (T13/1410D): section 8 for the commands, sections 9.5 and 9.6 for the PIO protocols. A command is done before
//! the write of the command register returns, so a drive is never busy.

use super::Registers;
use super::identify::Identity;
use crate::device::pc::medium::{Fault, Medium, SECTOR, SharedMedium, lock};
use crate::exit::Stop;
use std::ops::ControlFlow;
use std::sync::MutexGuard;

/// Status: an error, see the error register.
pub(super) const ERROR: u8 = 1 << 0;
/// Status: data can be transferred.
pub(super) const DATA_REQUEST: u8 = 1 << 3;
/// Status: the drive is ready, and its heads are at their place.
pub(super) const READY: u8 = 1 << 6 | 1 << 4;
/// Status: the drive has a fault.
const DEVICE_FAULT: u8 = 1 << 5;

/// Error: the command was aborted.
pub(super) const ABORTED: u8 = 1 << 2;
/// Error: the address does not exist.
const NOT_FOUND: u8 = 1 << 4;
/// Error: the data cannot be read; for a write, the medium is write-protected.
const UNCORRECTABLE: u8 = 1 << 6;
/// The result of the self-test: no error.
pub(super) const PASSED: u8 = 1;

/// The most sectors of a block of READ MULTIPLE.
const MAX_MULTIPLE: u8 = 16;
/// The most bytes of a block.
const BLOCK: usize = MAX_MULTIPLE as usize * SECTOR;
/// Device register: the address is an LBA.
const LBA: u8 = 1 << 6;

/// The translation of cylinders, heads and sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) heads: u8,
    pub(super) sectors: u8,
}

impl Geometry {
    /// The geometry after power-on.
    const DEFAULT: Self = Self { heads: 16, sectors: 63 };

    /// The sectors of a cylinder.
    fn cylinder(self) -> u64 {
        u64::from(self.heads).saturating_mul(self.sectors.into())
    }

    /// The number of cylinders of a disk with this number of sectors.
    pub(super) fn cylinders(self, sectors: u64) -> u16 {
        let cylinders = sectors.checked_div(self.cylinder()).unwrap_or(0);
        u16::try_from(cylinders.min(16_383)).unwrap_or(0)
    }

    /// The number of sectors that the geometry reaches.
    pub(super) fn reach(self, sectors: u64) -> u64 {
        self.cylinder().saturating_mul(self.cylinders(sectors).into())
    }
}

/// A transfer through the data register.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    /// The host sends data.
    to_drive: bool,
    /// The next sector of the disk. `None` if the data is not from the disk.
    sector: Option<u64>,
    /// The sectors that are left, with those in the buffer.
    left: u64,
    /// The most sectors of a block.
    per_block: u64,
    /// The sectors in the buffer.
    block: u64,
    /// The place of the next word in the buffer.
    position: usize,
}

impl Transfer {
    /// The bytes of the block in the buffer.
    fn limit(&self) -> usize {
        usize::try_from(self.block).unwrap_or(0).saturating_mul(SECTOR).min(BLOCK)
    }
}

/// A drive.
#[derive(Debug)]
pub(super) struct Drive {
    media: SharedMedium,
    buffer: Box<[u8; BLOCK]>,
    pub(super) status: u8,
    pub(super) error: u8,
    /// The drive asks for an interrupt.
    pub(super) interrupts: bool,
    transfer: Option<Transfer>,
    geometry: Geometry,
    /// The sectors of a block of READ MULTIPLE. 0 if it is not set.
    multiple: u8,
    write_cache: bool,
}

/// The result of a step: it succeeded, or it failed with these bits.
type Step<T> = Result<T, Failure>;

/// The failure of a step.
#[derive(Debug)]
enum Failure {
    /// The bits of the status register and of the error register, and the first sector that failed.
    Error { status: u8, error: u8, sector: Option<u64> },
    /// The run ends.
    Stop(Stop),
}

impl Failure {
    const fn error(error: u8) -> Self {
        Self::Error { status: 0, error, sector: None }
    }

    fn of(fault: Fault, sector: u64, is_write: bool) -> Self {
        let (status, error) = match fault {
            Fault::Stop(stop) => return Self::Stop(stop),
            Fault::Outside => (0, NOT_FOUND),
            Fault::ReadOnly => (0, ABORTED | UNCORRECTABLE),
            Fault::Host if is_write => (DEVICE_FAULT, ABORTED),
            Fault::Host => (0, UNCORRECTABLE),
        };
        Self::Error { status, error, sector: Some(sector) }
    }
}

/// The kind of an access to sectors.
#[derive(Clone, Copy, Debug)]
struct Access {
    is_write: bool,
    /// The address and the count have 48 and 16 bits.
    extended: bool,
    /// Blocks of several sectors.
    multiple: bool,
}

impl Drive {
    /// A drive in its state after power-on.
    pub(super) fn new(media: SharedMedium) -> Self {
        Self {
            media,
            buffer: Box::new([0; BLOCK]),
            status: READY,
            error: PASSED,
            interrupts: false,
            transfer: None,
            geometry: Geometry::DEFAULT,
            multiple: 0,
            write_cache: true,
        }
    }

    fn media(&self) -> MutexGuard<'_, dyn Medium + 'static> {
        lock(&self.media)
    }

    /// Resets the drive (SRST, EXECUTE DEVICE DIAGNOSTIC). What SET FEATURES and SET MULTIPLE have set stays.
    pub(super) fn reset(&mut self) {
        (self.status, self.error) = (READY, PASSED);
        (self.interrupts, self.transfer) = (false, None);
    }

    /// Executes a command.
    pub(super) fn command(&mut self, code: u8, registers: &mut Registers) -> ControlFlow<Stop> {
        // A command during a transfer ends the transfer.
        (self.status, self.error) = (READY, 0);
        (self.interrupts, self.transfer) = (false, None);
        let step = self.execute(code, registers);
        self.end_step(step, registers)
    }

    /// Sets the registers after a step of a command. True in `step`: it asks for an interrupt.
    fn end_step(&mut self, step: Step<bool>, registers: &mut Registers) -> ControlFlow<Stop> {
        match step {
            Ok(interrupts) => self.interrupts |= interrupts,
            Err(Failure::Stop(stop)) => return ControlFlow::Break(stop),
            Err(Failure::Error { status, error, sector }) => {
                self.transfer = None;
                (self.status, self.error) = (READY | ERROR | status, error);
                self.interrupts = true;
                if let Some(sector) = sector {
                    registers.set_address(sector);
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Executes a command. Returns true if it asks for an interrupt at once.
    fn execute(&mut self, code: u8, registers: &mut Registers) -> Step<bool> {
        let plain = |is_write| Access { is_write, extended: false, multiple: false };
        match code {
            0x20 | 0x21 => self.begin(plain(false), registers),
            0x24 => self.begin(Access { extended: true, ..plain(false) }, registers),
            0x29 => self.begin(Access { extended: true, multiple: true, ..plain(false) }, registers),
            0xc4 => self.begin(Access { multiple: true, ..plain(false) }, registers),
            0x30 | 0x31 => self.begin(plain(true), registers),
            0x34 => self.begin(Access { extended: true, ..plain(true) }, registers),
            0x39 => self.begin(Access { extended: true, multiple: true, ..plain(true) }, registers),
            0xc5 => self.begin(Access { multiple: true, ..plain(true) }, registers),
            0x40 | 0x41 => self.verify(plain(false), registers),
            0x42 => self.verify(Access { extended: true, ..plain(false) }, registers),
            // SEEK.
            0x70..=0x7f => self.seek(registers),
            // RECALIBRATE, and the commands that save power: the drive stays as it is.
            0x10..=0x1f | 0xe0..=0xe3 | 0xe6 => Ok(true),
            // CHECK POWER MODE: active.
            0xe5 => {
                registers.count.set(0xff);
                Ok(true)
            }
            0xe7 | 0xea => self.flush(),
            0xec => self.identify(),
            0xef => self.set_features(registers),
            0xc6 => self.set_multiple(registers),
            // INITIALIZE DEVICE PARAMETERS.
            0x91 => self.set_geometry(registers),
            // NOP, DEVICE RESET and IDENTIFY PACKET DEVICE, too: a drive without PACKET aborts them.
            _ => Err(Failure::error(ABORTED)),
        }
    }

    /// The sectors of an access: the first one, and their number. They are on the disk.
    fn sectors(&self, access: Access, registers: &Registers) -> Step<(u64, u64)> {
        let count = registers.count.value(access.extended);
        let all = if access.extended { 0x1_0000 } else { 0x100 };
        let count = if count == 0 { all } else { count.into() };
        let last = self.media().sectors();
        let missing = |sector| Failure::Error { status: 0, error: NOT_FOUND, sector };
        let first = match registers.device & LBA != 0 {
            true => registers.lba(access.extended),
            // LBA48 has no cylinders.
            false if access.extended => return Err(Failure::error(ABORTED)),
            false => self.of_cylinder(registers).ok_or(missing(None))?,
        };
        match first.checked_add(count) {
            Some(end) if end <= last => Ok((first, count)),
            _ => Err(missing(Some(first.max(last)))),
        }
    }

    /// The sector of an address with cylinder, head and sector. `None` if it does not exist.
    fn of_cylinder(&self, registers: &Registers) -> Option<u64> {
        let Geometry { heads, sectors } = self.geometry;
        let (cylinder, head, sector) = registers.cylinder_head_sector();
        let index = sector.checked_sub(1).filter(|index| *index < sectors && head < heads)?;
        let track = u64::from(cylinder).checked_mul(heads.into())?.checked_add(head.into())?;
        track.checked_mul(sectors.into())?.checked_add(index.into())
    }

    /// Begins a read or a write.
    fn begin(&mut self, access: Access, registers: &Registers) -> Step<bool> {
        let Access { is_write, multiple, .. } = access;
        if multiple && self.multiple == 0 {
            return Err(Failure::error(ABORTED));
        }
        let (sector, left) = self.sectors(access, registers)?;
        if is_write && self.media().is_read_only() {
            return Err(Failure::of(Fault::ReadOnly, sector, true));
        }
        let per_block = if multiple { self.multiple.into() } else { 1 };
        let transfer =
            Transfer { to_drive: is_write, sector: Some(sector), left, per_block, block: 0, position: 0 };
        // The first block of a write is awaited without an interrupt.
        self.next_block(transfer).map(|()| !is_write)
    }

    /// Begins the next block of a transfer: fills the buffer for a read.
    fn next_block(&mut self, transfer: Transfer) -> Step<()> {
        let block = transfer.left.min(transfer.per_block);
        let transfer = Transfer { block, position: 0, ..transfer };
        if let (false, Some(sector)) = (transfer.to_drive, transfer.sector) {
            let data = self.buffer.get_mut(..transfer.limit()).unwrap_or_default();
            let read = lock(&self.media).read(sector, data);
            read.map_err(|fault| Failure::of(fault, sector, false))?;
        }
        self.transfer = Some(transfer);
        self.status = READY | DATA_REQUEST;
        Ok(())
    }

    /// Ends a block whose last word was transferred. Returns true if that asks for an interrupt.
    fn end_block(&mut self, transfer: Transfer) -> Step<bool> {
        (self.status, self.transfer) = (READY, None);
        let sector = transfer.sector.unwrap_or(0);
        if transfer.to_drive {
            let data = self.buffer.get(..transfer.limit()).unwrap_or_default();
            let written = lock(&self.media).write(sector, data);
            written.map_err(|fault| Failure::of(fault, sector, true))?;
        }
        let left = transfer.left.saturating_sub(transfer.block);
        if left == 0 {
            if transfer.to_drive && !self.write_cache {
                self.flush()?;
            }
            return Ok(transfer.to_drive);
        }
        let sector = transfer.sector.and_then(|sector| sector.checked_add(transfer.block));
        self.next_block(Transfer { sector, left, ..transfer }).map(|()| true)
    }

    /// Reads a word from the data register. All ones if no data is to be read.
    pub(super) fn read_data(&mut self, registers: &mut Registers) -> ControlFlow<Stop, u16> {
        let Some(transfer) = self.transfer.as_mut().filter(|transfer| !transfer.to_drive) else {
            return ControlFlow::Continue(u16::MAX);
        };
        let from = self.buffer.get(transfer.position..).and_then(|rest| rest.first_chunk());
        let word = u16::from_le_bytes(from.copied().unwrap_or_default());
        transfer.position = transfer.position.saturating_add(2);
        let transfer = *transfer;
        if transfer.position >= transfer.limit() {
            let step = self.end_block(transfer);
            self.end_step(step, registers)?;
        }
        ControlFlow::Continue(word)
    }

    /// Writes a word to the data register. It is lost if no data is expected.
    pub(super) fn write_data(&mut self, word: u16, registers: &mut Registers) -> ControlFlow<Stop> {
        let Some(transfer) = self.transfer.as_mut().filter(|transfer| transfer.to_drive) else {
            return ControlFlow::Continue(());
        };
        if let Some(to) = self.buffer.get_mut(transfer.position..).and_then(|rest| rest.first_chunk_mut()) {
            *to = word.to_le_bytes();
        }
        transfer.position = transfer.position.saturating_add(2);
        let transfer = *transfer;
        if transfer.position >= transfer.limit() {
            let step = self.end_block(transfer);
            self.end_step(step, registers)?;
        }
        ControlFlow::Continue(())
    }

    /// READ VERIFY SECTORS: the sectors exist. They are not read.
    fn verify(&self, access: Access, registers: &Registers) -> Step<bool> {
        self.sectors(access, registers).map(|_| true)
    }

    fn seek(&self, registers: &Registers) -> Step<bool> {
        let mut one = *registers;
        one.count.set(1);
        self.verify(Access { is_write: false, extended: false, multiple: false }, &one)
    }

    fn flush(&mut self) -> Step<bool> {
        let flushed = self.media().flush();
        flushed.map(|()| true).map_err(|fault| match Failure::of(fault, 0, true) {
            Failure::Error { status, error, .. } => Failure::Error { status, error, sector: None },
            stop => stop,
        })
    }

    fn identify(&mut self) -> Step<bool> {
        let (sectors, serial) = {
            let media = self.media();
            (media.sectors(), media.serial())
        };
        let identity = Identity {
            sectors,
            serial,
            default_geometry: Geometry::DEFAULT,
            geometry: self.geometry,
            multiple: self.multiple,
            max_multiple: MAX_MULTIPLE,
            write_cache: self.write_cache,
        };
        self.buffer.iter_mut().zip(identity.bytes()).for_each(|(to, from)| *to = from);
        let transfer =
            Transfer { to_drive: false, sector: None, left: 1, per_block: 1, block: 0, position: 0 };
        self.next_block(transfer).map(|()| true)
    }

    fn set_features(&mut self, registers: &Registers) -> Step<bool> {
        match (registers.features.value(false), registers.count.value(false)) {
            (0x02, _) => self.write_cache = true,
            (0x82, _) => {
                // Data that was written before is safe from now on.
                self.flush()?;
                self.write_cache = false;
            }
            // The default PIO mode, with and without IORDY, and the PIO modes 0 to 4.
            (0x03, 0x00 | 0x01 | 0x08..=0x0c) => {}
            // Look-ahead, and the settings after a reset.
            (0x55 | 0x66 | 0xaa | 0xcc, _) => {}
            _ => return Err(Failure::error(ABORTED)),
        }
        Ok(true)
    }

    fn set_multiple(&mut self, registers: &Registers) -> Step<bool> {
        match u8::try_from(registers.count.value(false)) {
            Ok(0) => self.multiple = 0,
            Ok(count) if count.is_power_of_two() && count <= MAX_MULTIPLE => self.multiple = count,
            _ => return Err(Failure::error(ABORTED)),
        }
        Ok(true)
    }

    fn set_geometry(&mut self, registers: &Registers) -> Step<bool> {
        // The register has the number of the last head.
        let heads = (registers.device & 0x0f).saturating_add(1);
        match u8::try_from(registers.count.value(false)) {
            Ok(sectors @ 1..) => self.geometry = Geometry { heads, sectors },
            _ => return Err(Failure::error(ABORTED)),
        }
        Ok(true)
    }
}
