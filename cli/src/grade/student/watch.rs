//! Takes part in the run of a student's VMM: copies a hidden guest over its own before the first KVM_RUN, and looks at
//! registers and memory when the guest has halted.

use crate::grade::student::job::Plan;
use guest::hidden::{Log, Template, WORD, Width};
use observe::{Event, ObservedMemory, Stop, StopCause};
use simvirtio::abi;
use vmm::exit::Exit;
use vmm::memory::Gpa;
use vmm::x86::state_check::{Kind, Snapshot, check};
use vmm::x86::{Mode, Regs, Sregs, translate_rip};
use vmm::{RunCopy, host::printable_text};

/// The bits of a physical address for the check of a state: as many as there can be, so that it never blames a host's limit.
const PHYSICAL_BITS: u32 = 52;
/// The number of broken rules that are kept.
const MOST_RULES: usize = 3;
/// CR0.PE and EFER.LMA.
const PROTECTED: u64 = 1 << 0;
const LONG_ACTIVE: u64 = 1 << 10;
/// The number of bytes at the entry point that are looked at.
const LOOK: usize = 16;

/// The first entry of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// The mode; `None` for 16-bit protected mode and the like.
    pub(super) mode: Option<Mode>,
    /// The linear address of the first instruction.
    pub(super) address: u64,
    /// The reason why no guest is there, or why none can be put there.
    pub(super) fault: Option<String>,
    /// The rules that the registers break.
    pub(super) rules: Vec<String>,
    /// The hidden guest that was put there, and its guest physical address.
    pub(super) placed: Option<(Template, u64)>,
}

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

/// What the window of the device has answered, by exits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    /// The first answer for the magic.
    pub(super) magic: Option<u32>,
    /// The device statuses, without repetitions; at most 16.
    pub(super) statuses: Vec<u8>,
}

/// What a run showed before its end.
#[derive(Debug)]
pub(super) struct Watch {
    plan: Plan,
    pub(super) entry: Option<Entry>,
    pub(super) halt: Option<Halt>,
    /// The sentence about a refused call.
    pub(super) refused: Option<String>,
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
        Self { plan, entry: None, halt: None, refused: None, answers, last: None, run_failed: false, copy }
    }

    /// Sees an event of the engine.
    pub(super) fn see(&mut self, event: &Event, memory: &ObservedMemory) {
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
                if self.plan.hidden && entry.fault.is_none() {
                    let write =
                        |gpa: u64, bytes: &[u8]| memory.write(stop.vcpu.vm, stop.process, Gpa(gpa), bytes);
                    entry.place(&self.plan, sregs, &read, &write);
                }
                self.entry = Some(entry);
            }
            (StopCause::Exit(_), Some((regs, _))) if self.halt.is_none() && stop_is_halt(stop) => {
                self.halt = Some(Halt::of(regs, self.entry.as_ref(), &read));
            }
            (StopCause::Refused(call), registers) if self.refused.is_none() => {
                let errno = call.result.saturating_neg();
                let error = std::io::Error::from_raw_os_error(errno);
                let regs = registers.map(|(regs, _)| *regs).unwrap_or_default();
                let rules = match call.sregs() {
                    Some(sregs) => rules(&regs, &sregs, None, &read, Some(Kind::Refused)),
                    None => Vec::new(),
                };
                let name =
                    if call.sregs().is_some() { "KVM_SET_SREGS" } else { "a call that sets registers" };
                let why = if rules.is_empty() { String::new() } else { format!(": {}", rules.join("; ")) };
                self.refused = Some(format!("KVM refused {name} with {error}{why}"));
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

/// The sentences about the rules that a state breaks.
fn rules(
    regs: &Regs,
    sregs: &Sregs,
    entry: Option<Gpa>,
    read: &dyn Fn(Gpa, &mut [u8]) -> bool,
    kind: Option<Kind>,
) -> Vec<String> {
    let state = Snapshot { regs, sregs, physical_bits: PHYSICAL_BITS, entry, memory: read };
    let findings =
        check(&state).into_iter().filter(|finding| kind.is_none_or(|kind| finding.rule.kind == kind));
    findings.take(MOST_RULES).map(|finding| printable_text(&finding.sentence)).collect()
}

/// The mode of a vCPU, and the width of its code.
fn mode(sregs: &Sregs) -> Option<Mode> {
    match (sregs.cr0 & PROTECTED != 0, sregs.efer & LONG_ACTIVE != 0 && sregs.cs.l == 1, sregs.cs.db) {
        (false, ..) => Some(Mode::Real),
        (true, true, _) => Some(Mode::Long),
        (true, false, 0) => None,
        (true, false, _) => Some(Mode::Protected),
    }
}

fn width(mode: Mode) -> Width {
    match mode {
        Mode::Real => Width::Bits16,
        Mode::Protected => Width::Bits32,
        Mode::Long | Mode::User => Width::Bits64,
    }
}

impl Entry {
    fn of(regs: &Regs, sregs: &Sregs, read: &dyn Fn(Gpa, &mut [u8]) -> bool) -> Self {
        let mode = mode(sregs);
        let (address, place) = translate_rip(regs, sregs, read);
        let mut entry = Self { mode, address, ..Self::default() };
        let gpa = match place {
            Ok(place) => place.gpa,
            Err(error) => {
                let rules = rules(regs, sregs, None, read, None);
                let rules: String = rules.iter().map(|rule| format!("; {rule}")).collect();
                entry.fault = Some(format!("the first instruction cannot be fetched: {error}{rules}"));
                return entry;
            }
        };
        entry.rules = rules(regs, sregs, Some(gpa), read, None);
        let mut bytes = [0; LOOK];
        entry.fault = if mode.is_none() {
            Some("the code segment is a 16-bit one, but CR0.PE is 1".into())
        } else if !read(gpa, &mut bytes) {
            Some(match (mode, sregs.cs.base) {
                (Some(Mode::Real), base @ 0xffff_0000) => format!(
                    "CS base is {base:#x}, as after reset, so the first instruction is at {address:#x}, where there is no \
                     memory: set cs.base and cs.selector to 0"
                ),
                _ => format!("the first instruction is at {:#x}, where there is no memory", gpa.0),
            })
        } else if bytes == [0; LOOK] {
            Some(format!("the entry point {:#x} holds only zeros: was the guest copied there?", gpa.0))
        } else {
            None
        };
        entry
    }

    /// Copies the hidden guest over the student's.
    fn place(
        &mut self,
        plan: &Plan,
        sregs: &Sregs,
        read: &dyn Fn(Gpa, &mut [u8]) -> bool,
        write: &dyn Fn(u64, &[u8]) -> bool,
    ) {
        let Some(mode) = self.mode else { return };
        let Some(template) = plan.job.template(width(mode)) else {
            self.fault = Some("the SIMVIRTIO guest needs protected or long mode".into());
            return;
        };
        let size = template.size() as u64;
        let identical = (0..=size).step_by(1024).chain([size]).all(|offset| {
            let address = self.address.saturating_add(offset);
            let regs = Regs {
                rip: address.wrapping_sub(if mode == Mode::Long { 0 } else { sregs.cs.base }),
                ..Regs::default()
            };
            translate_rip(&regs, sregs, read).1.is_ok_and(|place| place.gpa.0 == address)
        });
        let end = self.address.saturating_add(size);
        let covers = |from: u64, to: u64| from < end && self.address < to;
        let tables = [
            ("the page tables", sregs.cr3 & !0xfff, sregs.cr0 >> 31 & 1 == 1),
            ("the GDT", sregs.gdt.base, sregs.gdt.base != 0),
        ];
        let table = tables.into_iter().find(|(_, at, used)| *used && covers(*at, at.saturating_add(1)));
        let address = u32::try_from(self.address).ok().filter(|address| *address < u32::MAX >> 1);
        let problem = match (address, table) {
            _ if !identical => Some("its addresses are not those of the guest's physical memory".into()),
            (_, Some((name, at, _))) => Some(format!("it is the place of {name}, at {at:#x}")),
            _ if covers(abi::RESULT, WORD + 8) => Some("it is the place of the result word, at 0x400".into()),
            (None, _) => Some("it is above 2 GiB".into()),
            (Some(address), None) => {
                let image = template.image(plan.params(address));
                (!write(self.address, &image)).then(|| "the memory there cannot be written".into())
            }
        };
        match problem {
            None => self.placed = Some((template, self.address)),
            Some(problem) => {
                self.fault = Some(format!(
                    "no hidden guest of {size} bytes fits at the entry point {:#x}: {problem} (--own-guests grades without it)",
                    self.address
                ));
            }
        }
    }
}

impl Halt {
    fn of(regs: &Regs, entry: Option<&Entry>, read: &dyn Fn(Gpa, &mut [u8]) -> bool) -> Self {
        fn word<const SIZE: usize>(read: &dyn Fn(Gpa, &mut [u8]) -> bool, gpa: u64) -> Option<[u8; SIZE]> {
            let mut bytes = [0; SIZE];
            read(Gpa(gpa), &mut bytes).then_some(bytes)
        }
        let log = entry.and_then(|entry| entry.placed).and_then(|(template, gpa)| match template {
            Template::Driver(_) => Some(Log::of(&word(read, gpa.saturating_add(template.log_at() as u64))?)),
            Template::Text(_) => None,
        });
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
