//! The file that the preloaded library and the observer share. `preload/channel.h` has the same layout.
//!
//! The observer reads and writes the file with system calls and does not map it. So the program can change what it likes,
//! even the size of the file, and the observer sees wrong values at worst.
#![allow(unsafe_code)]

use crate::engine::{Record, Stops, VcpuId};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;
/// The number of rings.
pub(super) const RINGS: usize = 1024;
/// The number of rings that have their pages at once. A program that filters its system calls cannot ask for them.
const RESERVED_RINGS: usize = 16;
/// The number of records of a ring.
pub(super) const RECORDS: u64 = 4096;
/// The size of a record in bytes.
const RECORD: usize = 64;
/// The size of a ring with its head in bytes.
const RING: u64 = PAGE + RECORDS * RECORD as u64;
const MAGIC: u64 = 0x6576_7265_7362_6f31;

// The places of the members of `struct control`.
const ENDED: u64 = 8;
const VMS: usize = 12;
const UNRECORDED: usize = 16;
const USED: usize = 20;
const WANTS: u64 = 24;
const LOST_CALLS: usize = 28;
const TAKEN: usize = 40;
const FINISHED: u64 = 48;
/// The places of `read` and `answered` in `struct ring`.
const READ: u64 = 128;
const ANSWERED: u64 = 136;
/// The number of pieces of the log.
pub(super) const PIECES: u64 = 2048;
/// The size of a piece of the log in bytes.
pub(super) const PIECE: usize = 1024;

/// The states of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    Live,
    Closed,
}

/// The counts of all processes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Control {
    /// The number of VMs.
    pub(super) vms: u32,
    /// The number of vCPUs without a record.
    pub(super) unrecorded: u32,
    /// The number of rings that have ever been used.
    pub(super) used: usize,
    /// The number of calls that are not in the log.
    pub(super) lost_calls: u32,
    /// The number of pieces that were taken from the log.
    pub(super) taken: u64,
}

/// The head of a ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) process: i32,
    pub(super) vcpu: VcpuId,
    /// The number of records, and of those that are complete.
    pub(super) noted: u64,
    pub(super) done: u64,
    /// The number of exits without a record.
    pub(super) lost: u64,
}

/// The file.
#[derive(Debug)]
pub(super) struct Channel {
    file: File,
    /// Bytes that are read from the file.
    buffer: Vec<u8>,
}

impl Channel {
    /// Prepares an empty file. It is locked as long as this lives.
    ///
    /// # Errors
    /// The file system has no room for the log.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let log = PIECES.saturating_mul(PIECE as u64);
        file.set_len(start(RINGS).saturating_add(log))?;
        file.lock()?;
        reserve(&file, 0, start(RESERVED_RINGS))?;
        reserve(&file, start(RINGS), log)?;
        file.write_all_at(&MAGIC.to_ne_bytes(), 0)?;
        Ok(Self { file, buffer: Vec::new() })
    }

    /// Tells the library that nothing needs to be recorded any more.
    pub(super) fn end(&self) {
        // If this fails, the library fills its rings, and then stops.
        let _ = self.file.write_all_at(&1u32.to_ne_bytes(), ENDED);
    }

    /// Tells the library at which events a vCPU should stop. `is_filtered` if the program has a filter of system calls from its start, and
    /// `is_isolated` if the program has a PID namespace.
    pub(super) fn want(&self, stops: Stops, is_filtered: bool, is_isolated: bool) -> io::Result<()> {
        let bit = |is_set: bool, bit: u32| u32::from(is_set) << bit;
        let wants =
            bit(stops.first_entry, 0) | bit(stops.halts, 1) | bit(is_filtered, 2) | bit(is_isolated, 3);
        self.file.write_all_at(&wants.to_ne_bytes(), WANTS)
    }

    /// Reads the piece of the log with this number.
    pub(super) fn piece(&self, number: u64) -> Option<[u8; PIECE]> {
        let mut bytes = [0; PIECE];
        let place = number.checked_rem(PIECES)?.saturating_mul(PIECE as u64);
        self.file.read_exact_at(&mut bytes, start(RINGS).saturating_add(place)).ok()?;
        Some(bytes)
    }

    /// Tells the library that the pieces before this one can be used again.
    pub(super) fn finish_pieces(&self, number: u64) {
        let _ = self.file.write_all_at(&number.to_ne_bytes(), FINISHED);
    }

    /// Writes a piece of the log.
    #[cfg(test)]
    pub(super) fn write_piece(&self, number: u64, piece: &[u8]) {
        let place = number.checked_rem(PIECES).unwrap().saturating_mul(PIECE as u64);
        self.file.write_all_at(piece, start(RINGS).saturating_add(place)).unwrap();
    }

    /// Writes the number of pieces that were taken.
    #[cfg(test)]
    pub(super) fn take_pieces(&self, taken: u64) {
        self.file.write_all_at(&taken.to_ne_bytes(), TAKEN as u64).unwrap();
    }

    /// Makes a ring one in use, with as many exits for HLT on a vCPU of its number.
    #[cfg(test)]
    #[allow(clippy::arithmetic_side_effects)]
    pub(super) fn fill(&self, ring: usize, records: u64) {
        let write = |at: u64, word: u64| self.file.write_all_at(&word.to_ne_bytes(), at).unwrap();
        let half = |at: u64, word: u32| self.file.write_all_at(&word.to_ne_bytes(), at).unwrap();
        half(USED as u64, ring as u32 + 1);
        half(PAGE + ring as u64 * 4, 2);
        half(start(ring) + 4, 1);
        half(start(ring) + 8, ring as u32);
        (0..records).for_each(|record| half(start(ring) + PAGE + record * RECORD as u64 + 28, 5));
        write(start(ring) + 16, records);
        write(start(ring) + 24, records);
    }

    /// The last stop of a ring that was answered.
    #[cfg(test)]
    pub(super) fn answered(&self, ring: usize) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, start(ring).saturating_add(ANSWERED)).unwrap();
        u64::from_ne_bytes(bytes)
    }

    /// Lets a vCPU go on that waits at a stop with this position.
    pub(super) fn answer(&self, ring: usize, position: u64) {
        let place = start(ring.min(RINGS.saturating_sub(1))).saturating_add(ANSWERED);
        let _ = self.file.write_all_at(&position.to_ne_bytes(), place);
    }

    pub(super) fn control(&self) -> Control {
        let mut bytes = [0; 64];
        if self.file.read_exact_at(&mut bytes, 0).is_err() {
            return Control::default();
        }
        let used = (word(&bytes, USED) as usize).min(RINGS);
        let (vms, unrecorded) = (word(&bytes, VMS), word(&bytes, UNRECORDED));
        let (lost_calls, taken) = (word(&bytes, LOST_CALLS), long(&bytes, TAKEN));
        Control { vms, unrecorded, used, lost_calls, taken }
    }

    /// Reads the states of the first `used` rings.
    pub(super) fn states(&self, used: usize) -> Vec<State> {
        let mut bytes = vec![0; used.min(RINGS).saturating_mul(4)];
        if self.file.read_exact_at(&mut bytes, PAGE).is_err() {
            return Vec::new();
        }
        let state = |word: &[u8]| match word.first() {
            Some(2) => State::Live,
            Some(3) => State::Closed,
            _ => State::Free,
        };
        bytes.chunks_exact(4).map(state).collect()
    }

    /// Gives a ring back to the library.
    pub(super) fn free(&self, ring: usize) {
        let place = PAGE.saturating_add((ring as u64).saturating_mul(4));
        let _ = self.file.write_all_at(&0u32.to_ne_bytes(), place);
    }

    /// Reads the head of a ring.
    pub(super) fn head(&self, ring: usize) -> Option<Head> {
        let mut bytes = [0; 40];
        self.file.read_exact_at(&mut bytes, start(ring)).ok()?;
        let vcpu = VcpuId { vm: word(&bytes, 4), vcpu: word(&bytes, 8) };
        Some(Head {
            process: word(&bytes, 0).cast_signed(),
            vcpu,
            noted: long(&bytes, 16),
            done: long(&bytes, 24),
            lost: long(&bytes, 32),
        })
    }

    /// Reads the records `from` to `to` of a ring, which must not be more than the ring has, and marks them as read.
    pub(super) fn read(&mut self, ring: usize, from: u64, to: u64, mut each: impl FnMut(Record)) {
        let (mut next, mut buffer) = (from, std::mem::take(&mut self.buffer));
        while next < to {
            // Up to the end of the ring, where the records continue at its start.
            let place = next.checked_rem(RECORDS).unwrap_or(0);
            let count = to.saturating_sub(next).min(RECORDS.saturating_sub(place));
            buffer.resize((count as usize).saturating_mul(RECORD), 0);
            let at = start(ring).saturating_add(PAGE).saturating_add(place.saturating_mul(RECORD as u64));
            if self.file.read_exact_at(&mut buffer, at).is_err() {
                break;
            }
            buffer.chunks_exact(RECORD).for_each(|bytes| each(record(bytes)));
            next = next.saturating_add(count);
        }
        self.buffer = buffer;
        let _ = self.file.write_all_at(&to.to_ne_bytes(), start(ring).saturating_add(READ));
    }
}

/// Asks the file system for the pages of a part of the file. A program that stores to a mapped page gets SIGBUS where there is
/// no room for it.
fn reserve(file: &File, offset: u64, size: u64) -> io::Result<()> {
    // SAFETY: the call takes no memory.
    let failed =
        unsafe { libc::fallocate(file.as_raw_fd(), 0, offset.cast_signed(), size.cast_signed()) != 0 };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Other file systems than those of Linux itself may lack the call.
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(()),
        _ if failed => Err(error),
        _ => Ok(()),
    }
}

/// The place of a ring in the file.
fn start(ring: usize) -> u64 {
    RING.saturating_mul(ring as u64).saturating_add(2 * PAGE)
}

pub(super) fn record(bytes: &[u8]) -> Record {
    let answered = long(bytes, 16);
    Record {
        entered: long(bytes, 0),
        left: long(bytes, 8),
        answered: (answered > 0).then_some(answered),
        result: word(bytes, 24).cast_signed(),
        reason: word(bytes, 28),
        rip: None,
        details: bytes.last_chunk().copied().unwrap_or_default(),
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

pub(super) fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn channel() -> Channel {
        Channel::new(tempfile::tempfile().unwrap()).unwrap()
    }

    #[test]
    fn records_wrap_around_at_the_end_of_a_ring() {
        let mut channel = channel();
        for number in 0..RECORDS {
            let at = start(3) + PAGE + number * RECORD as u64;
            channel.file.write_all_at(&(number + 7).to_ne_bytes(), at).unwrap();
        }
        let mut read = Vec::new();
        channel.read(3, RECORDS - 2, RECORDS + 2, |record| read.push(record.entered));
        assert_eq!(read, [RECORDS + 5, RECORDS + 6, 7, 8]);
        let mut marked = [0; 8];
        channel.file.read_exact_at(&mut marked, start(3) + READ).unwrap();
        assert_eq!(u64::from_ne_bytes(marked), RECORDS + 2);
    }

    #[test]
    fn the_log_and_the_first_rings_have_their_pages() {
        let file = tempfile::tempfile().unwrap();
        let channel = Channel::new(file).unwrap();
        let held = channel.file.metadata().unwrap().blocks() * 512;
        let reserved = start(RESERVED_RINGS) + PIECES * PIECE as u64;
        assert!((reserved..reserved + RING).contains(&held), "{held}");
    }

    #[test]
    fn a_file_that_was_cut_has_no_content() {
        let mut channel = channel();
        channel.file.set_len(0).unwrap();
        assert_eq!(channel.control().used, 0);
        assert!(channel.states(RINGS).is_empty() && channel.head(0).is_none());
        channel.read(0, 0, 5, |_| panic!("there is no record"));
        channel.file.set_len(1 << 12).unwrap();
        channel.file.write_all_at(&[0xff; 4096], 0).unwrap();
        assert_eq!(channel.control().used, RINGS, "the number is limited");
    }
}
