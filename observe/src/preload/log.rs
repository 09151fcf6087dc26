//! The log of the channel: the calls other than KVM_RUN, and the stops. `preload/channel.h` has the same layout.

use crate::descendants;
use crate::engine::{Call, Event, MOST_DATA, Record, Stop, StopCause, Target, VcpuId};
use crate::layout::{self, REGS, SREGS};
use crate::preload::channel::{Channel, PIECE, PIECES, long, record, word};
use std::time::{Duration, Instant};

/// The head of a piece in bytes.
const HEAD: usize = 16;
/// The size of `struct entry` and of `struct record` in bytes.
const ENTRY: usize = 48;
const RECORD: usize = 64;
/// The largest number of pieces of an entry.
const MOST_PIECES: u64 = (ENTRY + RECORD + REGS + SREGS + MOST_DATA).div_ceil(PIECE - HEAD) as u64;
/// The longest wait for a piece that was taken but is not written. Its thread may be gone.
const PATIENCE: Duration = Duration::from_millis(300);

// The kinds of entries.
const CALLED: u32 = 0;
const FIRST_ENTRY: u32 = 1;
const EXITED: u32 = 2;
const REFUSED: u32 = 3;

/// The observer's side of the log.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// The number of pieces that were read.
    next: u64,
    /// The time since which the next piece is missing.
    missing: Option<Instant>,
    /// The number of entries that were not read.
    pub(super) lost: u64,
}

/// A stop that waits for its answer.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) ring: usize,
    /// The position of its first piece.
    pub(super) position: u64,
}

impl Log {
    /// Hands over the new entries until the deadline. After a stop is handed over, the vCPU goes on. `is_last` if nothing will
    /// be written any more: then the entries that are left are lost.
    pub(super) fn drain(
        &mut self,
        channel: &Channel,
        is_last: bool,
        deadline: Instant,
        to: &mut dyn FnMut(Event),
    ) {
        let taken = channel.control().taken;
        let Some(new) = taken.checked_sub(self.next) else { return };
        if new > PIECES {
            // The program has changed the numbers.
            self.lost = self.lost.saturating_add(1);
            self.next = taken.saturating_sub(PIECES);
        }
        while self.next < taken {
            if Instant::now() >= deadline {
                if is_last {
                    self.lost = self.lost.saturating_add(taken.saturating_sub(self.next));
                }
                break;
            }
            match read(channel, self.next) {
                Some(Entry { pieces, bytes }) => {
                    let position = self.next.saturating_add(1);
                    self.next = self.next.saturating_add(pieces);
                    self.missing = None;
                    match decode(&bytes, position) {
                        Some((event, waiting)) => {
                            to(event);
                            if let Some(Waiting { ring, position }) = waiting {
                                channel.answer(ring, position);
                            }
                        }
                        None => self.lost = self.lost.saturating_add(1),
                    }
                }
                None if is_last || self.missing.is_some_and(|since| since.elapsed() > PATIENCE) => {
                    self.next = self.next.saturating_add(1);
                    self.lost = self.lost.saturating_add(1);
                }
                None => {
                    self.missing.get_or_insert_with(Instant::now);
                    break;
                }
            }
        }
        channel.finish_pieces(self.next);
    }
}

/// An entry of the log.
#[derive(Debug)]
struct Entry {
    pieces: u64,
    bytes: Vec<u8>,
}

/// Reads the entry that begins at this piece. Returns `None` if it is not complete.
fn read(channel: &Channel, first: u64) -> Option<Entry> {
    let mut entry = Entry { pieces: 1, bytes: Vec::new() };
    let mut index = 0;
    while index < entry.pieces {
        let number = first.saturating_add(index);
        let piece = channel.piece(number)?;
        let (size, pieces) = (word(&piece, 12) as usize, u64::from(word(&piece, 8)));
        let is_written = long(&piece, 0) == number.saturating_add(1) && (1..=MOST_PIECES).contains(&pieces);
        if !is_written || (index > 0 && pieces != entry.pieces) {
            return None;
        }
        entry.bytes.extend_from_slice(piece.get(HEAD..)?.get(..size)?);
        entry.pieces = pieces;
        index = index.saturating_add(1);
    }
    Some(entry)
}

/// Decodes an entry. Returns `None` if it is none.
fn decode(bytes: &[u8], position: u64) -> Option<(Event, Option<Waiting>)> {
    let (entry, rest) = bytes.split_at_checked(ENTRY)?;
    let half = |at| word(entry, at);
    let process = half(4).cast_signed();
    let vcpu = VcpuId { vm: half(16), vcpu: half(20) };
    let (has_record, has_registers) = (half(40) & 1 != 0, half(40) & 2 != 0);
    let (exit, rest) = rest.split_at_checked(if has_record { RECORD } else { 0 })?;
    let (registers, data) = rest.split_at_checked(if has_registers { REGS + SREGS } else { 0 })?;
    let call = || Call {
        process,
        target: match half(12) {
            1 => Target::Vm(vcpu.vm),
            2 => Target::Vcpu(vcpu),
            _ => Target::System,
        },
        request: half(24),
        argument: long(entry, 32),
        data: data.get(..data.len().min(MOST_DATA)).unwrap_or_default().to_vec(),
        result: half(28).cast_signed(),
    };
    let exit = || has_record.then(|| Record { answered: None, ..record(exit) });
    let cause = match half(0) {
        CALLED => return Some((Event::Called(call()), None)),
        FIRST_ENTRY => StopCause::FirstEntry,
        EXITED => StopCause::Exit(exit()?),
        REFUSED => StopCause::Refused(call()),
        _ => return None,
    };
    // A watcher may write to the memory of this process.
    if !descendants::is_own(process) {
        return None;
    }
    let (regs, sregs) = registers.split_at_checked(REGS).unwrap_or_default();
    let registers = layout::regs(regs).zip(layout::sregs(sregs)).map(Box::new);
    let stop = Stop { vcpu, process, cause, registers };
    Some((Event::Stopped(Box::new(stop)), Some(Waiting { ring: half(8) as usize, position })))
}

#[cfg(test)]
mod tests;
