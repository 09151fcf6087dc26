//! The state check: finds the mistakes in the registers of a vCPU, and in the page tables that CR3 leads to.
//!
//! KVM and the processor say only that they refuse a state, or that the guest died of it. Each [`Rule`] tests one condition
//! and describes what breaks it in a sentence. The rules are pure functions. The guest's memory, which may hold anything, is
//! read through a closure, a bounded number of times.
//!
//! The rules of the kind [`Kind::Refused`] are those of a VM entry that registers can break: Intel SDM volume 3, section
//! "Checks on the Guest State Area" (28.3.1; 26.3.1 or 27.3.1 in older editions), and AMD APM volume 2, section
//! "Canonicalization and Consistency Checks" (15.5.1). The processor is taken to have the VM-execution control
//! "unrestricted guest", as all have since 2010.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

mod control;
mod hints;
mod paging;
mod segments;
mod system;
#[cfg(test)]
mod tests;

use crate::memory::Gpa;
use crate::x86::registers::{Regs, Segment, Sregs};
use std::fmt;

/// The state of a vCPU at one moment, and the knowledge that a check of it needs.
pub struct Snapshot<'a> {
    /// The general registers.
    pub regs: &'a Regs,
    /// The segment and control registers.
    pub sregs: &'a Sregs,
    /// The number of bits of a guest physical address (MAXPHYADDR, EAX bits 7 to 0 of CPUID leaf 0x8000_0008).
    pub physical_bits: u32,
    /// The guest physical address at which the guest starts, if it should be checked.
    pub entry: Option<Gpa>,
    /// Fills the bytes from a guest physical address. Returns false if a part of them is in no memory slot.
    pub memory: &'a dyn Fn(Gpa, &mut [u8]) -> bool,
}

/// The consequence of a broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The processor refuses to enter the guest, or KVM refuses the registers. Processors differ: some take the state.
    Refused,
    /// The state is allowed, but surely a mistake.
    Hint,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Hint => "hint",
        })
    }
}

/// A rule for the state of a vCPU.
#[derive(Debug)]
pub struct Rule {
    /// The name, which no other rule has.
    pub name: &'static str,
    /// The consequence if it is broken.
    pub kind: Kind,
    /// The section of the manual.
    pub section: &'static str,
    /// The rule in words.
    pub text: &'static str,
    /// Describes what breaks the rule. `None` if nothing does.
    check: fn(&Snapshot<'_>) -> Option<String>,
}

/// A rule that a state breaks.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The rule.
    pub rule: &'static Rule,
    /// A sentence that says how the state breaks the rule, without a full stop.
    pub sentence: String,
}

/// The sentence, and the section of the manual.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.sentence, self.rule.section)
    }
}

/// All rules. Those that are refused come first.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    let refused = control::RULES.iter().chain(segments::RULES).chain(system::RULES).chain(paging::REFUSED);
    refused.chain(hints::RULES).chain(paging::HINTS)
}

/// Checks all rules. Returns the broken ones, in the order of [`rules`].
pub fn check(state: &Snapshot<'_>) -> Vec<Finding> {
    let broken = |rule: &'static Rule| Some(Finding { rule, sentence: (rule.check)(state)? });
    rules().filter_map(broken).collect()
}

/// The sections that several files cite.
mod section {
    pub(super) const CONTROL: &str = "Intel SDM vol. 3, 28.3.1.1";
    pub(super) const SEGMENTS: &str = "Intel SDM vol. 3, 28.3.1.2";
    pub(super) const TABLES: &str = "Intel SDM vol. 3, 28.3.1.3";
    pub(super) const RIP: &str = "Intel SDM vol. 3, 28.3.1.4";
    pub(super) const POINTERS: &str = "Intel SDM vol. 3, 28.3.1.6";
    pub(super) const CONTROL_REGISTERS: &str = "Intel SDM vol. 3, 2.5";
    pub(super) const SEGMENT_REGISTERS: &str = "Intel SDM vol. 3, 3.4.3";
    pub(super) const DESCRIPTORS: &str = "Intel SDM vol. 3, 3.4.5";
    pub(super) const PAGING: &str = "Intel SDM vol. 3, 5.2";
    pub(super) const PAGE_FAULTS: &str = "Intel SDM vol. 3, 5.7";
    pub(super) const RESET: &str = "Intel SDM vol. 3, 11.1.4";
    pub(super) const APIC: &str = "Intel SDM vol. 3, 12.4.4";
    pub(super) const SLOTS: &str = "KVM api.rst, KVM_SET_USER_MEMORY_REGION";
    pub(super) const AMD: &str = "AMD APM vol. 2, 15.5.1";
}

/// The bits of the registers.
mod bit {
    pub(super) use crate::x86::modes::{CR0_PE, CR0_PG, CR0_WP, CR4_PAE, EFER_LMA, EFER_LME};
    pub(super) const CR0_NW: u64 = 1 << 29;
    pub(super) const CR0_CD: u64 = 1 << 30;
    pub(super) const CR4_PCE: u64 = 1 << 8;
    pub(super) const CR4_OSFXSR: u64 = 1 << 9;
    pub(super) const CR4_PCIDE: u64 = 1 << 17;
    pub(super) const CR4_CET: u64 = 1 << 23;
    pub(super) const EFER_NXE: u64 = 1 << 11;
    pub(super) const RFLAGS_VM: u64 = 1 << 17;
}

impl Snapshot<'_> {
    fn cr0(&self, bit: u64) -> bool {
        self.sregs.cr0 & bit != 0
    }
    fn cr4(&self, bit: u64) -> bool {
        self.sregs.cr4 & bit != 0
    }
    fn efer(&self, bit: u64) -> bool {
        self.sregs.efer & bit != 0
    }

    /// True in virtual-8086 mode.
    fn is_virtual_8086(&self) -> bool {
        self.cr0(bit::CR0_PE) && self.regs.rflags & bit::RFLAGS_VM != 0
    }

    /// The segment registers with their names.
    fn segments(&self) -> [(&'static str, &Segment); 6] {
        let Sregs { cs, ds, es, fs, gs, ss, .. } = self.sregs;
        [("CS", cs), ("SS", ss), ("DS", ds), ("ES", es), ("FS", fs), ("GS", gs)]
    }

    /// The bits of a number that are above the physical addresses.
    fn above_physical(&self) -> u64 {
        u64::MAX.checked_shl(self.physical_bits).unwrap_or(0)
    }
}

/// True if the register holds a segment. KVM marks a segment that is not present as unusable.
fn is_usable(segment: &Segment) -> bool {
    segment.unusable == 0 && segment.present != 0
}

/// The advice for a bit that is 0 while one beside it is 1: the writer was probably off by one. `neighbours` has the number
/// and the name of each bit that could have been set in its place. Empty if none is set.
fn off_by_one(value: u64, wanted: &str, place: u32, neighbours: &[(u32, &str)]) -> String {
    let set = neighbours.iter().find(|(bit, _)| value >> bit & 1 == 1);
    let advice = |(bit, name): &(u32, &str)| match *name {
        "" => format!(": {wanted} is bit {place}, not {bit}"),
        name => format!(": {wanted} is bit {place}, not {bit} ({name})"),
    };
    set.map(advice).unwrap_or_default()
}

/// The numbers of the bits that are set, as a list.
fn bits(mask: u64) -> String {
    let numbers: Vec<_> =
        (0..u64::BITS).filter(|bit| mask >> bit & 1 == 1).map(|bit| bit.to_string()).collect();
    match numbers.as_slice() {
        [one] => format!("bit {one}"),
        several => format!("bits {}", several.join(", ")),
    }
}

/// Describes the first register for which `describe` returns a sentence, and names the others.
fn first_of<'a>(
    registers: impl IntoIterator<Item = (&'static str, &'a Segment)>,
    describe: impl Fn(&str, &Segment) -> Option<String>,
) -> Option<String> {
    let mut wrong =
        registers.into_iter().filter_map(|(name, segment)| Some((name, describe(name, segment)?)));
    let (_, sentence) = wrong.next()?;
    let others: Vec<_> = wrong.map(|(name, _)| name).collect();
    Some(match others.split_last() {
        None => sentence,
        Some((one, [])) => format!("{sentence}; {one} is wrong in the same way"),
        Some((last, others)) => {
            format!("{sentence}; {} and {last} are wrong in the same way", others.join(", "))
        }
    })
}
