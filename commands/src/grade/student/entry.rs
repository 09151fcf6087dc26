//! The first entry of a guest: its mode, its place, and the hidden guest that is copied there.

use crate::grade::student::job::{Plan, width};
use simvirtio::abi;
use vmm::host::printable_text;
use vmm::memory::Gpa;
use vmm::x86::state_check::{Snapshot, check};
use vmm::x86::{Mode, Regs, Sregs, translate_rip};

/// The bits of a physical address for the check of a state: as many as there can be, so that it never blames a host's limit.
const PHYSICAL_BITS: u32 = 52;
/// The number of broken rules that are shown.
const MOST_RULES: usize = 3;
/// CR0.PE, CR0.PG and EFER.LMA.
const PROTECTED: u64 = 1 << 0;
const PAGING: u64 = 1 << 31;
const LONG_ACTIVE: u64 = 1 << 10;
/// The number of bytes at the entry point that are looked at.
const LOOK: usize = 16;

/// Fills bytes from the guest's memory. Returns false where there is none.
pub(super) type Read<'a> = &'a dyn Fn(Gpa, &mut [u8]) -> bool;
/// Writes to the guest's memory. Returns false where that is not possible.
pub(super) type Write<'a> = &'a dyn Fn(Gpa, &[u8]) -> bool;

/// The first entry of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// The mode; `None` for 16-bit protected mode and the like.
    pub(super) mode: Option<Mode>,
    /// The linear address of the first instruction.
    pub(super) address: u64,
    /// The reason why no guest is there, or why none can be put there.
    pub(super) fault: Option<String>,
    /// The guest physical address of the log of a hidden driver.
    pub(super) log_at: Option<u64>,
}

/// The sentences about the rules that a state breaks.
fn rules(regs: &Regs, sregs: &Sregs, read: Read<'_>) -> String {
    let state = Snapshot { regs, sregs, physical_bits: PHYSICAL_BITS, entry: None, memory: read };
    let findings = check(&state).into_iter().take(MOST_RULES);
    findings.map(|finding| format!("; {}", printable_text(&finding.sentence))).collect()
}

/// The mode of a vCPU.
fn mode(sregs: &Sregs) -> Option<Mode> {
    match (sregs.cr0 & PROTECTED != 0, sregs.efer & LONG_ACTIVE != 0 && sregs.cs.l == 1, sregs.cs.db) {
        (false, ..) => Some(Mode::Real),
        (true, true, _) => Some(Mode::Long),
        (true, false, 0) => None,
        (true, false, _) => Some(Mode::Protected),
    }
}

impl Entry {
    /// Looks at the state of a vCPU before its first KVM_RUN.
    pub(super) fn of(regs: &Regs, sregs: &Sregs, read: Read<'_>) -> Self {
        let mode = mode(sregs);
        let (address, place) = translate_rip(regs, sregs, read);
        let mut entry = Self { mode, address, ..Self::default() };
        let gpa = match place {
            Ok(place) => place.gpa,
            Err(error) => {
                let rules = rules(regs, sregs, read);
                entry.fault = Some(format!("the first instruction cannot be fetched: {error}{rules}"));
                return entry;
            }
        };
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

    /// Copies the hidden guest of a plan over the student's.
    pub(super) fn place(&mut self, plan: &Plan, sregs: &Sregs, read: Read<'_>, write: Write<'_>) {
        let Some(mode) = self.mode else { return };
        let placed = match u32::try_from(self.address).ok().filter(|address| *address < u32::MAX >> 1) {
            Some(address) => plan.pieces(mode, address),
            None => Err("it is above 2 GiB".into()),
        };
        let problem = match placed {
            Err(problem) => Some(problem),
            Ok(pieces) => {
                let problem =
                    pieces.iter().find_map(|(at, image)| unfit(mode, sregs, *at, image.len() as u64, read));
                problem.or_else(|| replace(mode, sregs, &pieces, read, write).err())
            }
        };
        match problem {
            Some(problem) => {
                self.fault = Some(format!(
                    "the hidden guest does not fit at the entry point {:#x}: {problem} (--own-guests grades without it)",
                    self.address
                ));
            }
            None => {
                let driver = plan.job.template(width(mode)).filter(|_| plan.job.is_driver());
                self.log_at = driver.map(|driver| self.address.saturating_add(driver.log_at() as u64));
            }
        }
    }
}

/// Writes the pieces. If they were the place of page tables, puts back what was there.
///
/// # Errors
/// The reason why they cannot be there.
fn replace(
    mode: Mode,
    sregs: &Sregs,
    pieces: &[(u64, Vec<u8>)],
    read: Read<'_>,
    write: Write<'_>,
) -> Result<(), String> {
    let mut before = Vec::new();
    for (at, image) in pieces {
        let mut old = vec![0; image.len()];
        if !read(Gpa(*at), &mut old) {
            return Err(format!("there is no memory at {at:#x}"));
        }
        before.push((*at, old));
    }
    let write_all = |pieces: &[(u64, Vec<u8>)]| pieces.iter().all(|(at, image)| write(Gpa(*at), image));
    if !write_all(pieces) {
        return Err("the memory there cannot be written".into());
    }
    if pieces.iter().all(|(at, image)| is_identical(mode, sregs, *at, image.len() as u64, read)) {
        return Ok(());
    }
    write_all(&before);
    Err("page tables would be overwritten".into())
}

/// True if these linear addresses are the guest physical ones.
fn is_identical(mode: Mode, sregs: &Sregs, at: u64, size: u64, read: Read<'_>) -> bool {
    let base = if mode == Mode::Long { 0 } else { sregs.cs.base };
    (0..size).step_by(1024).chain(size.checked_sub(1)).all(|offset| {
        let address = at.saturating_add(offset);
        let regs = Regs { rip: address.wrapping_sub(base), ..Regs::default() };
        translate_rip(&regs, sregs, read).1.is_ok_and(|place| place.gpa.0 == address)
    })
}

/// The reason why a piece of a hidden guest cannot be at this linear address.
fn unfit(mode: Mode, sregs: &Sregs, at: u64, size: u64, read: Read<'_>) -> Option<String> {
    if !is_identical(mode, sregs, at, size, read) {
        return Some("its addresses are not those of the guest's physical memory".into());
    }
    let uses = [
        ("the page tables", sregs.cr3 & !0xfff, sregs.cr0 & PAGING != 0),
        ("the GDT", sregs.gdt.base, sregs.gdt.base != 0),
        ("the result word", abi::RESULT, true),
        ("the word of the hidden guest", guest::hidden::WORD, true),
    ];
    let covers = |place: u64| (at..at.saturating_add(size)).contains(&place);
    let used = uses.into_iter().find(|(_, place, is_used)| *is_used && covers(*place));
    used.map(|(name, place, _)| format!("{name} at {place:#x} would be overwritten"))
}
