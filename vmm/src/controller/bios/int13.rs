//! Int 13h: the disk.
//!
//! IBM PC AT Technical Reference, "Diskette and fixed disk BIOS"; Phoenix, BIOS Enhanced Disk Drive Specification 1.1.

use super::Bios;
use super::call::Call;
use super::stubs::DISKETTE;
use crate::boot::BOOT_SECTOR;
use crate::boot::geometry::{Geometry, SECTOR};
use crate::device::pc::medium::Fault;
use std::ops::ControlFlow;

/// Codes in AH after a call that failed.
const INVALID: u8 = 0x01;
const WRITE_PROTECTED: u8 = 0x03;
const NOT_FOUND: u8 = 0x04;
const NO_PARAMETERS: u8 = 0x07;
const BAD_BUFFER: u8 = 0x09;
const CONTROLLER_FAILED: u8 = 0x20;
const TIMEOUT: u8 = 0x80;

/// The places of the last code in the data area: of diskettes, of hard disks.
const STATUS: [u64; 2] = [0x441, 0x474];
/// The most sectors of a call.
const MOST: u64 = 128;
/// The size of an address packet in bytes.
const PACKET: u8 = 16;

/// The direction of a transfer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transfer {
    Read,
    Write,
    /// Only checks the sectors.
    Verify,
}

/// A place on a drive: the number of the drive and its shape.
#[derive(Clone, Copy)]
struct On<'a> {
    drive: u8,
    geometry: &'a Geometry,
}

/// The number of sectors that were transferred, and the code of the failure after them.
struct Transferred {
    sectors: u64,
    failure: Option<u8>,
}

impl Bios {
    /// Answers the call. False if there is no such function.
    pub(super) fn disk_call(&mut self, call: &mut Call<'_>) -> bool {
        let drive = call.dl();
        let status = if drive < 0x80 { STATUS[0] } else { STATUS[1] };
        let function = call.ah();
        if function == 0x01 {
            let code = call.byte(status);
            call.set_ah(code);
            call.set_flag(super::call::CARRY, code != 0);
            return true;
        }
        let Some(geometry) = self.drives.geometry(drive) else {
            // Programs look for drives with these.
            match function {
                0x00..=0x18 | 0x41..=0x48 => {
                    call.fail(if function == 0x08 {
                        NO_PARAMETERS
                    } else if drive < 0x80 {
                        TIMEOUT
                    } else {
                        INVALID
                    });
                    if function == 0x15 {
                        call.succeed();
                    }
                }
                _ => return false,
            }
            return true;
        };
        let is_known = self.on_drive(call, function, On { drive, geometry: &geometry });
        let code = call.ah();
        if is_known && function != 0x15 && function != 0x41 && !(function == 0x08 && code == 0) {
            call.set_byte(status, code);
        }
        is_known
    }

    /// Answers a call for a drive that is there.
    fn on_drive(&self, call: &mut Call<'_>, function: u8, on: On<'_>) -> bool {
        let geometry = on.geometry;
        match function {
            // Reset, seek, reset, ready, recalibrate, diagnose.
            0x00 | 0x0c | 0x0d | 0x10 | 0x11 | 0x14 => call.succeed(),
            0x02 => self.by_place(call, on, Transfer::Read),
            0x03 => self.by_place(call, on, Transfer::Write),
            0x04 => self.by_place(call, on, Transfer::Verify),
            0x08 => self.parameters(call, geometry),
            0x15 => self.drive_type(call, on),
            // The diskette was not changed; its type is set.
            0x16 | 0x17 if geometry.floppy.is_some() => call.succeed(),
            0x18 if geometry.floppy.is_some() => {
                call.succeed();
                call.set_es(DISKETTE.0);
                call.set_di(DISKETTE.1);
            }
            0x41..=0x48 if geometry.floppy.is_none() => return self.extension(call, function, on),
            // A diskette drive has no extensions. Programs ask for them.
            0x41..=0x48 => call.fail(INVALID),
            _ => return false,
        }
        true
    }

    /// Functions 2 to 4: cylinder, head and sector in CX and DH, the number in AL, the buffer in ES:BX.
    fn by_place(&self, call: &mut Call<'_>, on: On<'_>, transfer: Transfer) {
        let cylinder = u64::from(call.ch()) | u64::from(call.cl() & 0xc0) << 2;
        let first = on.geometry.sector(cylinder, call.dh().into(), (call.cl() & 0x3f).into());
        let count = u64::from(call.al());
        if !(1..=MOST).contains(&count) {
            call.set_al(0);
            return call.fail(INVALID);
        }
        let buffer = call.in_es(call.bx());
        let done = match first {
            Some(first) => self.transfer(call, on.drive, transfer, first, count, buffer),
            None => Transferred { sectors: 0, failure: Some(NOT_FOUND) },
        };
        call.set_al(done.sectors as u8);
        match done.failure {
            Some(code) => call.fail(code),
            None => call.succeed(),
        }
    }

    /// Moves sectors between the disk and memory. The buffer does not wrap at the end of its segment.
    fn transfer(
        &self,
        call: &mut Call<'_>,
        drive: u8,
        transfer: Transfer,
        first: u64,
        count: u64,
        buffer: u64,
    ) -> Transferred {
        for done in 0..count {
            let sector = first.saturating_add(done);
            let at = buffer.wrapping_add(done.wrapping_mul(SECTOR));
            let failed = |code| Transferred { sectors: done, failure: Some(code) };
            let moved = match transfer {
                Transfer::Read => match self.drives.read(drive, sector) {
                    Ok(bytes) if call.store(at, &bytes) => Ok(()),
                    Ok(_) => return failed(BAD_BUFFER),
                    Err(failure) => Err(failure),
                },
                Transfer::Write => {
                    let mut bytes = [0; SECTOR as usize];
                    if !call.load(at, &mut bytes) {
                        return failed(BAD_BUFFER);
                    }
                    self.drives.write(drive, sector, &bytes)
                }
                Transfer::Verify => self.drives.verify(drive, sector),
            };
            if let Err(fault) = moved {
                return failed(code(&fault));
            }
        }
        Transferred { sectors: count, failure: None }
    }

    /// Function 8: the shape of the drive.
    fn parameters(&self, call: &mut Call<'_>, geometry: &Geometry) {
        let last = geometry.cylinders.saturating_sub(1);
        let (hard_disks, diskettes) = self.drives.counts();
        call.succeed();
        call.set_al(0);
        call.set_ch(last as u8);
        call.set_cl((last >> 2 & 0xc0) as u8 | (geometry.sectors as u8 & 0x3f));
        call.set_dh(geometry.heads.saturating_sub(1) as u8);
        match geometry.floppy {
            Some(kind) => {
                call.set_dl(diskettes);
                call.set_bx(kind.into());
                call.set_es(DISKETTE.0);
                call.set_di(DISKETTE.1);
            }
            None => call.set_dl(hard_disks),
        }
    }

    /// Function 15h: the type of the drive, and the number of sectors of a hard disk.
    fn drive_type(&self, call: &mut Call<'_>, on: On<'_>) {
        call.succeed();
        if on.geometry.floppy.is_some() {
            return call.set_ah(1);
        }
        let sectors = u32::try_from(self.drives.sectors(on.drive)).unwrap_or(u32::MAX);
        call.set_ah(3);
        call.set_cx((sectors >> 16) as u16);
        call.set_dx(sectors as u16);
    }

    /// Functions 41h to 48h: sectors by number.
    fn extension(&self, call: &mut Call<'_>, function: u8, on: On<'_>) -> bool {
        match function {
            0x41 if call.bx() == 0x55aa => {
                call.succeed();
                call.set_bx(0xaa55);
                call.set_ah(0x21);
                // Packets, and the parameters of the drive.
                call.set_cx(5);
            }
            0x41 => call.fail(INVALID),
            0x42 => self.by_packet(call, on.drive, Transfer::Read),
            0x43 => self.by_packet(call, on.drive, Transfer::Write),
            0x44 => self.by_packet(call, on.drive, Transfer::Verify),
            0x47 => call.succeed(),
            0x48 => self.extended_parameters(call, on),
            _ => return false,
        }
        true
    }

    /// Functions 42h to 44h: the packet in DS:SI has the number of sectors, the buffer and the first sector.
    fn by_packet(&self, call: &mut Call<'_>, drive: u8, transfer: Transfer) {
        let at = call.in_ds(call.si());
        let mut packet = [0; PACKET as usize];
        if !call.load(at, &mut packet) {
            return call.fail(INVALID);
        }
        let [size, _, count, high, o0, o1, s0, s1, first @ ..] = packet;
        let (offset, segment) = (u16::from_le_bytes([o0, o1]), u16::from_le_bytes([s0, s1]));
        let count = u64::from(u16::from_le_bytes([count, high]));
        if size < PACKET || !(1..=MOST).contains(&count) || (offset, segment) == (u16::MAX, u16::MAX) {
            return call.fail(INVALID);
        }
        let buffer = (u64::from(segment) << 4).wrapping_add(offset.into());
        let first = u64::from_le_bytes(first);
        let done = self.transfer(call, drive, transfer, first, count, buffer);
        call.set_word(at.wrapping_add(2), done.sectors as u16);
        match done.failure {
            Some(code) => call.fail(code),
            None => call.succeed(),
        }
    }

    /// Function 48h: the parameters of the drive, into the buffer in DS:SI, which begins with its size.
    fn extended_parameters(&self, call: &mut Call<'_>, on: On<'_>) {
        let geometry = on.geometry;
        const SIZE: u16 = 26;
        let at = call.in_ds(call.si());
        if call.word(at) < SIZE {
            return call.fail(INVALID);
        }
        let long = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
        let mut bytes = Vec::with_capacity(SIZE.into());
        bytes.extend(SIZE.to_le_bytes());
        // The cylinders, heads and sectors are valid.
        bytes.extend(2u16.to_le_bytes());
        for value in [geometry.cylinders, geometry.heads, geometry.sectors] {
            bytes.extend(long(value));
        }
        bytes.extend(self.drives.sectors(on.drive).to_le_bytes());
        bytes.extend((SECTOR as u16).to_le_bytes());
        if call.store(at, &bytes) { call.succeed() } else { call.fail(INVALID) }
    }

    /// Int 19h: loads the boot sector again. The stub jumps to it.
    pub(super) fn bootstrap(&mut self, call: &mut Call<'_>) -> ControlFlow<crate::exit::Stop> {
        let drive = self.drives.boot();
        match self.drives.read(drive, 0) {
            Ok(bytes) if call.store(BOOT_SECTOR, &bytes) => {}
            _ => {
                log::warn!("int 0x19: the boot sector cannot be loaded again");
                return ControlFlow::Break(crate::exit::Stop::Rebooted);
            }
        }
        call.set_es(0);
        call.set_ds(0);
        call.sregs.ss.selector = 0;
        call.sregs.ss.base = 0;
        call.regs.rsp = BOOT_SECTOR;
        call.regs.rdx = drive.into();
        call.regs.rax = 0xaa55;
        call.regs.rflags |= u64::from(super::call::INTERRUPTS);
        ControlFlow::Continue(())
    }
}

/// The code of a failure.
fn code(fault: &Fault) -> u8 {
    match fault {
        Fault::Outside => NOT_FOUND,
        Fault::ReadOnly => WRITE_PROTECTED,
        Fault::Host => CONTROLLER_FAILED,
        // The guest does not see it: the run ends.
        Fault::Stop(_) => TIMEOUT,
    }
}
