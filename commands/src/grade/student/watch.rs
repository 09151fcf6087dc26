//! Takes part in the run of a student's VMM: copies a hidden guest over its own before the first KVM_RUN, and looks at
//! registers and memory when the guest has halted.

use crate::grade::student::entry::{Entry, Read};
use crate::grade::student::job::Plan;
use guest::hidden::{Log, WORD};
use observe::{Death, Deaths, Event, ObservedMemory, Stop, StopCause};
use simvirtio::abi;
use vmm::RunCopy;
use vmm::exit::Exit;
use vmm::host::printable_text;
use vmm::machine::DeathKind;
use vmm::memory::Gpa;
use vmm::x86::Regs;

/// The guest's state when it has halted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Halt {
    pub(super) rax: u64,
    /// The word at 0x400.
    pub(super) result: u64,
    /// The word of the hidden guest.
    pub(super) word: u32,
    /// The log of a hidden driver.
    pub(super) log: Option<Log>,
    /// True if the device table has the address of the window.
    pub(super) in_table: bool,
    /// The config table, if the window is memory.
    pub(super) window: Option<[u8; 8]>,
}

/// The answers of the device's window, by exits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    /// The first answer for the magic.
    pub(super) magic: Option<u32>,
    /// The device statuses, without repetitions; at most 16.
    pub(super) statuses: Vec<u8>,
}

/// The facts that a run showed before its end.
#[derive(Debug)]
pub(super) struct Watch {
    plan: Plan,
    pub(super) entry: Option<Entry>,
    pub(super) halt: Option<Halt>,
    deaths: Deaths,
    pub(super) answers: [Answers; 2],
    /// The last exit.
    pub(super) last: Option<Exit>,
    /// True if the last return of KVM_RUN was an error.
    pub(super) run_failed: bool,
    copy: RunCopy,
}

impl Watch {
    pub(super) fn new(plan: Plan) -> Self {
        let answers = [Answers::default(), Answers::default()];
        let copy = RunCopy::default();
        Self {
            plan,
            entry: None,
            halt: None,
            deaths: Deaths::default(),
            answers,
            last: None,
            run_failed: false,
            copy,
        }
    }

    /// Sees an event of the engine.
    pub(super) fn see(&mut self, event: &Event, memory: &ObservedMemory) {
        self.deaths.see(event, memory);
        match event {
            Event::Stopped(stop) => self.stopped(stop, memory),
            Event::Returned(_, record) => {
                self.run_failed =
                    record.result < 0 && ![-libc::EINTR, -libc::EAGAIN].contains(&record.result);
                if record.result >= 0 {
                    self.returned(record.reason, &record.details);
                }
            }
            _ => {}
        }
    }

    /// The sentences about refused registers, and about the death of the guest.
    pub(super) fn told(&self) -> (Option<String>, Option<String>) {
        let first = |is_refusal| {
            // A guest that did not end in its time has not died.
            let has_ended = |death: &&Death| death.kind != DeathKind::Running;
            let mut deaths = self.deaths.iter().filter(has_ended);
            let death = deaths.find(|death| death.is_refusal() == is_refusal)?;
            Some(printable_text(&death.to_string()))
        };
        (first(true), first(false))
    }

    fn returned(&mut self, reason: u32, details: &[u8; vmm::DETAILS]) {
        for element in self.copy.decode(reason, details) {
            if let Exit::MmioRead { address, size } = element.exit {
                for (layout, answers) in
                    [abi::Layout::Table, abi::Layout::Struct].into_iter().zip(&mut self.answers)
                {
                    answers.see(layout, address, size, element.value.unwrap_or_default());
                }
            }
            self.last = Some(element.exit);
        }
    }

    fn stopped(&mut self, stop: &Stop, memory: &ObservedMemory) {
        let read = |gpa: Gpa, bytes: &mut [u8]| memory.read(stop.vcpu.vm, stop.process, gpa, bytes);
        match (&stop.cause, stop.registers.as_deref()) {
            (StopCause::FirstEntry, Some((regs, sregs))) if self.entry.is_none() => {
                let mut entry = Entry::of(regs, sregs, &read);
                if let Some(error) = memory.refusal(stop.vcpu.vm, stop.process) {
                    entry.fault = Some(format!(
                        "its memory cannot be read (process_vm_readv: {error}): does the program forbid it \
                         (PR_SET_DUMPABLE)?"
                    ));
                }
                if self.plan.hidden && entry.fault.is_none() {
                    let write = |gpa: Gpa, bytes: &[u8]| memory.write(stop.vcpu.vm, stop.process, gpa, bytes);
                    entry.place(&self.plan, sregs, &read, &write);
                }
                self.entry = Some(entry);
            }
            (StopCause::Exit(_), Some((regs, _))) if self.halt.is_none() && stop_is_halt(stop) => {
                self.halt = Some(Halt::of(regs, self.entry.as_ref(), &read));
            }
            _ => {}
        }
    }
}

/// KVM_EXIT_HLT.
const EXIT_HLT: u32 = 5;

fn stop_is_halt(stop: &Stop) -> bool {
    matches!(&stop.cause, StopCause::Exit(record) if record.result >= 0 && record.reason == EXIT_HLT)
}

impl Answers {
    fn see(&mut self, layout: abi::Layout, address: u64, size: u8, value: u64) {
        let bytes = value.to_le_bytes();
        let byte = |at: u64| {
            let index = usize::try_from(at.checked_sub(address)?).ok()?;
            bytes.get(..usize::from(size))?.get(index).copied()
        };
        if address == abi::WINDOW && size >= 4 && self.magic.is_none() {
            self.magic = bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        }
        if let Some(status) = byte(abi::WINDOW + layout.device_status()) {
            let is_new = self.statuses.last() != Some(&status);
            if is_new && self.statuses.len() < 16 {
                self.statuses.push(status);
            }
        }
    }
}

impl Halt {
    fn of(regs: &Regs, entry: Option<&Entry>, read: Read<'_>) -> Self {
        fn word<const SIZE: usize>(read: Read<'_>, gpa: u64) -> Option<[u8; SIZE]> {
            let mut bytes = [0; SIZE];
            read(Gpa(gpa), &mut bytes).then_some(bytes)
        }
        let log_at = entry.and_then(|entry| entry.log_at);
        let log = log_at.and_then(|at| Some(Log::of(&word(read, at)?)));
        let count = word(read, abi::DEVICE_TABLE).map_or(0, u16::from_le_bytes).min(abi::TABLE_LEN);
        let address = |index: u16| {
            let at = abi::DEVICE_TABLE + abi::TABLE_ADDRESSES + 8 * u64::from(index);
            word(read, at).map_or(0, u64::from_le_bytes)
        };
        Self {
            rax: regs.rax,
            result: word(read, abi::RESULT).map_or(0, u64::from_le_bytes),
            word: word(read, WORD).map_or(0, u32::from_le_bytes),
            log,
            in_table: (0..count).any(|index| address(index) == abi::WINDOW),
            window: word(read, abi::WINDOW),
        }
    }
}
