//! A vCPU of the program, and the records of its exits.

use super::sys::{self, Mapping};
use crate::engine::{Record, VcpuId};
use std::fs::File;
use vmm::KvmCounters;

/// The reasons of exits (KVM_EXIT_*) that are told apart here.
const EXIT_IO: u32 = 2;
const EXIT_HLT: u32 = 5;
const EXIT_MMIO: u32 = 6;
const EXIT_SHUTDOWN: u32 = 8;
const EXIT_FAIL_ENTRY: u32 = 9;
const EXIT_INTERNAL_ERROR: u32 = 17;
const EXIT_RDMSR: u32 = 29;
const EXIT_WRMSR: u32 = 30;

/// The places of `exit_reason` and of the union in `kvm_run`.
const REASON: usize = 8;
const UNION: usize = 32;
/// The places of `kvm_valid_regs`, and of RIP in `s.regs.regs` (Linux, include/uapi/linux/kvm.h).
const VALID_REGS: usize = 288;
const RIP: usize = 304 + 128;
/// KVM_SYNC_X86_REGS.
const SYNC_REGS: u64 = 1;

/// The largest number of stops of a vCPU for deaths and refusals, and of those for halts. Some programs try again and again.
const MOST_STOPS: u32 = 16;

/// The words of an exit's description.
type Details = [u64; 4];

/// A vCPU whose exits are recorded.
#[derive(Debug)]
pub(super) struct Vcpu {
    pub(super) id: VcpuId,
    page: Mapping,
    /// The place of the data of the last port I/O.
    data: usize,
    /// The last record, which lacks the time and the values of its answer.
    open: Option<Record>,
    /// True after the first entry.
    pub(super) has_entered: bool,
    stats: Option<File>,
    /// RIP is recorded.
    pub(super) wants_rip: bool,
    /// The numbers of stops for deaths and refusals, and of those for halts.
    deaths: u32,
    halts: u32,
}

impl Vcpu {
    pub(super) fn new(id: VcpuId, page: Mapping) -> Self {
        Self {
            id,
            page,
            data: 0,
            open: None,
            has_entered: false,
            stats: None,
            wants_rip: false,
            deaths: 0,
            halts: 0,
        }
    }

    /// Asks KVM to report RIP at each exit (KVM_CAP_SYNC_REGS; api.rst, section 5). Returns false if it cannot.
    pub(super) fn ask_for_rip(&self) -> bool {
        sys::syncs_registers() && self.page.set_bits(VALID_REGS, SYNC_REGS as u8)
    }

    /// Keeps the file with KVM's counters.
    pub(super) fn count_with(&mut self, stats: File) {
        self.stats = Some(stats);
    }

    /// True if a death or a refusal makes a stop.
    pub(super) fn may_stop(&mut self) -> bool {
        self.deaths = self.deaths.saturating_add(1);
        self.deaths <= MOST_STOPS
    }

    /// True if an exit for HLT makes a stop.
    pub(super) fn may_stop_at_halt(&mut self) -> bool {
        self.halts = self.halts.saturating_add(1);
        self.halts <= MOST_STOPS
    }

    /// Reads KVM's counters.
    pub(super) fn counters(&self) -> Option<KvmCounters> {
        self.stats.as_ref().and_then(|stats| KvmCounters::read(stats).ok())
    }

    /// Notes a return of KVM_RUN. Returns its record, whose answer is not known yet.
    pub(super) fn note(&mut self, entered: u64, left: u64, result: i32) -> Record {
        let [reason, _] = halves(self.page.long(REASON));
        let mut details =
            std::array::from_fn(|word| self.page.long(word.saturating_mul(8).saturating_add(UNION)));
        if reason == EXIT_IO {
            self.data = usize::try_from(details[1]).unwrap_or(usize::MAX);
            self.copy_data(&mut details);
        }
        // A program may ask for other registers than this engine did.
        let has_rip = self.wants_rip && result >= 0 && self.page.long(VALID_REGS) & SYNC_REGS != 0;
        let rip = has_rip.then(|| self.page.long(RIP));
        let record = Record { entered, left, answered: None, result, reason, rip, details: bytes(details) };
        self.open = Some(record);
        record
    }

    /// The vCPU waited for the observer after its last exit. This time is not the program's.
    pub(super) fn waited(&mut self, ticks: u64) {
        if let Some(record) = &mut self.open {
            record.entered = record.entered.saturating_add(ticks);
            record.left = record.left.saturating_add(ticks);
        }
    }

    /// Completes the last record: the program enters the vCPU again, and has answered the exit.
    pub(super) fn complete(&mut self, now: u64) -> Option<Record> {
        let mut record = self.open.take()?;
        record.answered = Some(now);
        if record.result < 0 {
            return Some(record);
        }
        let mut details = words(&record.details);
        match record.reason {
            // The direction is the first byte: a read is 0.
            EXIT_IO if details[0] & 0xff == 0 => {
                details[1] = details[2];
                self.copy_data(&mut details);
            }
            // `is_write` is the byte after the length.
            EXIT_MMIO if details[2] >> 32 & 0xff == 0 => {
                details[3] = details[1];
                details[1] = self.page.long(UNION + 8);
            }
            EXIT_RDMSR => {
                details[0] = self.page.long(UNION);
                details[2] = self.page.long(UNION + 16);
            }
            EXIT_WRMSR => details[0] = self.page.long(UNION),
            _ => return Some(record),
        }
        record.details = bytes(details);
        Some(record)
    }

    /// Takes the last record, after which there was no entry.
    pub(super) fn end(&mut self) -> Option<Record> {
        self.open.take()
    }

    /// Copies the first 16 bytes of the data of port I/O.
    fn copy_data(&self, details: &mut Details) {
        details[2] = self.page.long(self.data);
        details[3] = self.page.long(self.data.saturating_add(8));
    }
}

/// True for the return of a guest that cannot go on.
pub(super) fn is_death(record: &Record) -> bool {
    match record.result {
        0.. => [EXIT_SHUTDOWN, EXIT_FAIL_ENTRY, EXIT_INTERNAL_ERROR].contains(&record.reason),
        result => ![-libc::EINTR, -libc::EAGAIN].contains(&result),
    }
}

/// True for an exit for HLT.
pub(super) fn is_halt(record: &Record) -> bool {
    record.result >= 0 && record.reason == EXIT_HLT
}

fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

fn bytes(details: Details) -> [u8; size_of::<Details>()] {
    let mut bytes = [0; size_of::<Details>()];
    for (to, word) in bytes.chunks_exact_mut(8).zip(details) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn words(bytes: &[u8; size_of::<Details>()]) -> Details {
    let mut words =
        bytes.chunks_exact(8).map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap_or_default()));
    std::array::from_fn(|_| words.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    /// A vCPU whose mapping is a file.
    fn vcpu() -> (File, Vcpu) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 8192]).unwrap();
        let page = Mapping::new(file.as_fd()).unwrap();
        (file, Vcpu::new(VcpuId { vm: 1, vcpu: 0 }, page))
    }

    fn set(file: &File, at: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        file.write_all_at(&bytes, at).unwrap();
    }

    #[test]
    fn the_answer_of_a_read_is_that_of_the_next_entry() {
        let (file, mut vcpu) = vcpu();
        // One byte from port 0x43, with its data at 0x1000.
        set(&file, 8, &[EXIT_IO.into()]);
        set(&file, 32, &[0x0000_0001_0043_0100, 0x1000]);
        let record = vcpu.note(5, 7, 0);
        assert_eq!((record.entered, record.left, record.reason, record.answered), (5, 7, EXIT_IO, None));
        assert_eq!(words(&record.details), [0x0000_0001_0043_0100, 0x1000, 0, 0]);
        set(&file, 0x1000, &[0x5a]);
        vcpu.waited(10);
        let record = vcpu.complete(30).unwrap();
        assert_eq!((record.entered, record.left, record.answered), (15, 17, Some(30)));
        assert_eq!(words(&record.details)[1..3], [0, 0x5a], "the bytes before and after");
        assert!(vcpu.complete(31).is_none() && vcpu.end().is_none());
    }

    #[test]
    fn a_wrong_place_of_the_data_is_harmless() {
        let (file, mut vcpu) = vcpu();
        set(&file, 8, &[EXIT_IO.into()]);
        for place in [8185, 8192, 1 << 40, u64::MAX] {
            set(&file, 32, &[0, place, 9, 9]);
            vcpu.note(0, 0, 0);
            assert_eq!(words(&vcpu.complete(1).unwrap().details), [0; 4], "{place:#x}");
        }
    }

    #[test]
    fn deaths_are_told_from_other_exits() {
        let record = |result, reason| Record { result, reason, ..Record::default() };
        for (result, reason) in
            [(0, EXIT_SHUTDOWN), (0, EXIT_FAIL_ENTRY), (0, EXIT_INTERNAL_ERROR), (-libc::EFAULT, EXIT_IO)]
        {
            assert!(is_death(&record(result, reason)), "{result} {reason}");
        }
        for (result, reason) in
            [(0, EXIT_IO), (-libc::EINTR, EXIT_SHUTDOWN), (-libc::EAGAIN, EXIT_HLT), (0, EXIT_HLT)]
        {
            assert!(!is_death(&record(result, reason)), "{result} {reason}");
        }
        assert!(is_halt(&record(0, EXIT_HLT)) && !is_halt(&record(-libc::EINTR, EXIT_HLT)));
    }
}
