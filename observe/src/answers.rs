//! Reads of devices that the program does not seem to answer.
//!
//! KVM asks the program for the value of a read, and leaves the bytes for it as they are: those of an earlier access, or zeroes
//! (Linux `Documentation/virt/kvm/api.rst`, section 5, KVM_EXIT_IO and KVM_EXIT_MMIO). A program that forgets to answer leaves
//! them, too. One that answers with the same value cannot be told from it, so this is only a question.

use crate::engine::{Record, VcpuId};
use std::collections::{BTreeMap, HashMap};
use vmm::CopiedExit;
use vmm::exit::{Exit, Reason};

/// The most places whose reads are counted.
const MOST_PLACES: usize = 1024;
/// The most vCPUs whose last access is remembered.
const MOST_VCPUS: usize = 1024;
/// The number of left bytes of other accesses that raise the question for a place, if the program answers at other places.
const LEAST: u64 = 2;

/// Reads of one place that got the bytes that were there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// `MMIO read` or `PIO in`.
    pub reason: Reason,
    /// The address or the port.
    pub place: u64,
    /// The number of reads.
    pub reads: u64,
}

/// The reads of a place.
#[derive(Clone, Copy, Debug, Default)]
struct Reads {
    reads: u64,
    /// Those that got the bytes that were there before.
    kept: u64,
    /// Of these, those with the bytes of an access to another place, which were not zero.
    others: u64,
}

/// The reads of all places.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    places: BTreeMap<(Reason, u64), Reads>,
    /// The places of the last accesses, of which there are bytes: one for MMIO and one for ports.
    last: HashMap<(VcpuId, bool), u64>,
    /// True if a read got other bytes than were there before.
    has_answer: bool,
}

impl Answers {
    /// Takes an exit with its record. Of string I/O, the first element.
    pub(crate) fn take(&mut self, vcpu: VcpuId, record: &Record, element: &CopiedExit) {
        let word = |at: usize| record.details.get(at..).and_then(|rest| rest.first_chunk()).copied();
        let word = |at: usize| word(at).map_or(0, u64::from_ne_bytes);
        // The number of elements of port I/O is behind the port.
        let is_single = word(0) >> 32 == 1;
        let (place, read) = match element.exit {
            Exit::MmioRead { address, size } => (address, Some((Reason::MmioRead, size, word(24), word(8)))),
            Exit::PioIn { port, size } if is_single => {
                (port.into(), Some((Reason::PioIn, size, word(8), word(16))))
            }
            Exit::MmioWrite { address, .. } => (address, None),
            Exit::PioOut { port, .. } | Exit::PioIn { port, .. } => (port.into(), None),
            _ => return,
        };
        let is_mmio = matches!(element.exit, Exit::MmioRead { .. } | Exit::MmioWrite { .. });
        let last = match self.last.len() < MOST_VCPUS || self.last.contains_key(&(vcpu, is_mmio)) {
            true => self.last.insert((vcpu, is_mmio), place),
            false => None,
        };
        // Without a next entry, the answer is not known.
        let Some((reason, size, before, after)) = read.filter(|_| record.answered.is_some()) else { return };
        let mask = u64::MAX.checked_shr(64u32.saturating_sub(8u32.saturating_mul(size.into()))).unwrap_or(0);
        let is_kept = before & mask == after & mask;
        self.has_answer |= !is_kept;
        if self.places.len() >= MOST_PLACES && !self.places.contains_key(&(reason, place)) {
            return;
        }
        let reads = self.places.entry((reason, place)).or_default();
        reads.reads = reads.reads.saturating_add(1);
        if is_kept {
            reads.kept = reads.kept.saturating_add(1);
            let is_others = after & mask != 0 && last.is_some_and(|last| last != place);
            reads.others = reads.others.saturating_add(is_others.into());
        }
    }

    /// The places at which no read got other bytes than were there before. If the program answers at some places, those that
    /// got only zeroes or the bytes of the same place are left out: these are probably its answers.
    pub(crate) fn unanswered(&self) -> Vec<Unanswered> {
        let is_unanswered =
            |reads: &Reads| reads.kept == reads.reads && (!self.has_answer || reads.others >= LEAST);
        let found = self.places.iter().filter(|(_, reads)| is_unanswered(reads));
        found
            .map(|((reason, place), reads)| Unanswered { reason: *reason, place: *place, reads: reads.reads })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::{DETAILS, RunCopy};

    const VCPU: VcpuId = VcpuId { vm: 1, vcpu: 0 };

    fn record(reason: u32, words: [u64; 4]) -> Record {
        let mut details = [0; DETAILS];
        for (to, word) in details.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Record { reason, details, answered: Some(1), ..Record::default() }
    }

    /// A read of 4 bytes, with the bytes before and after.
    fn mmio_read(address: u64, before: u64, after: u64) -> Record {
        record(6, [address, after, 4, before])
    }

    fn mmio_write(address: u64, data: u64) -> Record {
        record(6, [address, data, 1 << 32 | 4, 0])
    }

    /// A read of one byte.
    fn pio_in(port: u64, before: u64, after: u64) -> Record {
        record(2, [1 << 32 | port << 16 | 0x100, before, after, 0])
    }

    fn unanswered(records: &[Record]) -> Vec<(Reason, u64, u64)> {
        let (mut answers, mut copy) = (Answers::default(), RunCopy::default());
        for record in records {
            let first = copy.decode(record.reason, &record.details).next().unwrap();
            answers.take(VCPU, record, &first);
        }
        answers.unanswered().into_iter().map(|one| (one.reason, one.place, one.reads)).collect()
    }

    #[test]
    fn a_program_that_answers_no_read_is_found() {
        let read = mmio_read(0x10_0006, 0, 0);
        assert_eq!(unanswered(&[read; 12]), [(Reason::MmioRead, 0x10_0006, 12)]);
        let ports = [pio_in(0x60, 0, 0), pio_in(0x60, 0x1_00, 0), pio_in(0x64, 7, 7)];
        assert_eq!(unanswered(&ports), [(Reason::PioIn, 0x60, 2), (Reason::PioIn, 0x64, 1)]);
        // An answer that is not known, because the program ended.
        assert_eq!(unanswered(&[Record { answered: None, ..read }]), []);
    }

    #[test]
    fn a_place_is_found_among_answered_ones_by_the_bytes_of_others() {
        let magic = mmio_read(0x10_0000, 0, 0x74_72_69_76);
        assert_eq!(unanswered(&[magic]), []);
        let stale = mmio_read(0x10_0006, 0x74_72_69_76, 0x74_72_69_76);
        assert_eq!(unanswered(&[magic, stale, magic, stale]), [(Reason::MmioRead, 0x10_0006, 2)]);
        // Zeroes, one read, and a place that is read after it was written.
        assert_eq!(unanswered(&[magic, mmio_read(0x10_0006, 0, 0), mmio_read(0x10_0006, 0, 0)]), []);
        assert_eq!(unanswered(&[magic, stale]), []);
        let back = [mmio_write(0x10_0007, 4), mmio_read(0x10_0007, 4, 4)];
        assert_eq!(unanswered(&[&[magic][..], &back, &back].concat()), []);
        // One other answer is enough.
        assert_eq!(unanswered(&[magic, stale, magic, stale, mmio_read(0x10_0006, 1, 2)]), []);
    }

    #[test]
    fn a_program_may_write_anything() {
        let mut records: Vec<_> = (0..5000).map(|place| mmio_read(place, 1, 1)).collect();
        records.push(record(6, [u64::MAX; 4]));
        records.push(record(2, [u64::MAX; 4]));
        assert_eq!(unanswered(&records).len(), MOST_PLACES);
    }
}
