//! The rules that the state of a dead guest breaks (`x86/state_check`), without those that the explanation tells already.

use super::Explanation;
use crate::boot::Image;
use crate::exit::Stop;
use crate::machine::processors::Processor;
use crate::memory::{Gpa, GuestMemory};
use crate::x86::probe::{Probe, ProbeError};
use crate::x86::state_check::{self, Kind, Snapshot};
use std::fmt;

impl Explanation {
    /// Checks the state of a guest that died. After a failed entry, the probable cause is the first rule that is broken.
    /// After another death, it is that only if no other cause is known: the processor took the state.
    #[must_use]
    pub(in crate::machine) fn with_state_check(
        mut self,
        stop: &Stop,
        processor: Processor,
        memory: &GuestMemory,
        image: Option<&Image>,
    ) -> Self {
        let is_unexplained = match stop {
            Stop::FailedEntry(_) => true,
            Stop::TripleFault | Stop::EmulationFailure(_) => self.cause.is_none() && self.suspicion.is_none(),
            Stop::UnknownExit(_) => false,
            _ => return self,
        };
        let state = Snapshot {
            regs: &self.regs,
            sregs: &self.sregs,
            physical_bits: processor.physical_bits(),
            entry: image.and_then(empty_entry),
            memory: &|gpa, bytes| memory.read(gpa, bytes),
        };
        let mut findings = state_check::check(&state);
        let told = self.told_rules(memory);
        // A guest may mean PCE, unless it dies for want of OSFXSR.
        let (needs_sse, lacks_long_mode) = (self.tells("CR4.OSFXSR"), self.tells("CS.L is 1"));
        findings.retain(|finding| match finding.rule.name {
            "osfxsr" => needs_sse,
            "cs-l-without-lma" => !lacks_long_mode,
            name => !told.contains(&name),
        });
        if is_unexplained {
            let refused = findings.first().is_some_and(|finding| finding.rule.kind == Kind::Refused);
            self.suspicion = refused.then(|| findings.remove(0).to_string().into());
        }
        self.findings = findings;
        self
    }

    /// True if the cause of the death, as it is known so far, names this register.
    fn tells(&self, register: &str) -> bool {
        let told = [self.suspicion.as_deref(), self.cause.as_deref()];
        told.into_iter().flatten().any(|text| text.contains(register))
    }

    /// The names of the rules that the mapping of the instruction tells about.
    fn told_rules(&self, memory: &GuestMemory) -> &'static [&'static str] {
        let probe = Probe::new(memory.clone(), *self.sregs);
        match probe.translate_linear(probe.linear(self.sregs.cs.base, self.regs.rip)) {
            Err(ProbeError::NotCanonical { .. }) => &["rip-canonical"],
            Err(ProbeError::NoTable { .. }) => &["cr3-memory", "table-memory"],
            _ => &[],
        }
    }

    /// Writes the broken rules, a line each.
    pub(super) fn write_findings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| {
            let label = match finding.rule.kind {
                Kind::Refused => "broken rule",
                Kind::Hint => "hint       ",
            };
            writeln!(f, "  {label}  {finding}")
        })
    }
}

/// The entry point of an image that has only zeroes there. In other images, the guest itself has cleared the place.
fn empty_entry(image: &Image) -> Option<Gpa> {
    let entry = image.entry();
    let byte = |offset| image.byte_at(entry.0.checked_add(offset)?);
    (0..16).all(|offset| byte(offset).unwrap_or(0) == 0).then_some(entry)
}
