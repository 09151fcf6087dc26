//! The start of a vCPU: the registers that its program has set.

use super::View;
use vmm::memory::Gpa;
use vmm::x86::state_check::{Finding, Kind, Snapshot, check};
use vmm::x86::{Probe, Regs, Segment, Sregs};

/// CR0.PE: protected mode.
const CR0_PE: u64 = 1;
/// CS and RIP after a reset (Intel SDM volume 3, section 11.1.4; 10.1.4 in older editions).
const RESET_CS: u16 = 0xf000;
const RESET_BASE: u64 = 0xffff_0000;
pub(super) const RESET_RIP: u64 = 0xfff0;
/// The largest number of bits of a physical address.
const PHYSICAL_BITS: u32 = 52;

/// The registers with which a vCPU starts, as far as the program has set them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Start {
    pub(super) regs: Option<Regs>,
    pub(super) sregs: Option<Sregs>,
}

impl Start {
    /// The registers at the start. `None` if the program has set none of them.
    pub(super) fn registers(&self) -> Option<(Regs, Sregs)> {
        let reset = Regs { rip: RESET_RIP, rflags: 2, ..Regs::default() };
        match (self.regs, self.sregs) {
            (None, None) => None,
            (regs, sregs) => Some((regs.unwrap_or(reset), sregs.unwrap_or_else(reset_sregs))),
        }
    }
}

/// The segment and control registers after a reset, as far as they tell where a guest starts.
pub(super) fn reset_sregs() -> Sregs {
    let data = Segment { limit: 0xffff, type_: 3, present: 1, s: 1, ..Segment::default() };
    let system = |type_| Segment { type_, s: 0, ..data };
    Sregs {
        cs: Segment { base: RESET_BASE, selector: RESET_CS, type_: 0xb, ..data },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: system(0xb),
        ldt: system(2),
        cr0: 0x6000_0010,
        ..Sregs::default()
    }
}

/// True if the registers are those after a reset.
pub(super) fn is_reset(regs: &Regs, sregs: &Sregs) -> bool {
    sregs.cr0 & CR0_PE == 0 && sregs.cs.selector == RESET_CS && regs.rip == RESET_RIP
}

/// The guest physical address at which a guest with these registers starts. `None` if its page tables do not map it.
pub(super) fn entry(regs: &Regs, sregs: &Sregs, view: &View<'_>) -> Option<Gpa> {
    let probe = Probe::new(view, *sregs);
    let linear = probe.linear(sregs.cs.base, regs.rip);
    probe.translate_linear(linear).ok().map(|place| place.gpa)
}

/// The rules of a VM entry that registers break. Some hosts take such a state, and change it.
pub(super) fn mistakes(regs: &Regs, sregs: &Sregs) -> impl Iterator<Item = Finding> {
    // The guest may have changed its memory since.
    let state = Snapshot { regs, sregs, physical_bits: PHYSICAL_BITS, entry: None, memory: &|_, _| false };
    check(&state).into_iter().filter(|finding| finding.rule.kind == Kind::Refused)
}
