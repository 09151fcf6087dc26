//! The rules that the state of a dead guest breaks (`x86/state_check`), without those that the explanation tells already.

use super::{DeathKind, Explanation};
use crate::boot::Image;
use crate::exit::Stop;
use crate::machine::processors::Processor;
use crate::memory::{Gpa, ReadMemory};
use crate::x86::probe::{Probe, ProbeError};
use crate::x86::state_check::{self, Finding, Kind, Snapshot};
use std::fmt;

impl Explanation {
    /// Checks the state of a guest that died, or whose time was over.
    #[must_use]
    pub(in crate::machine) fn with_state_check(
        self,
        stop: &Stop,
        processor: Processor,
        memory: &dyn ReadMemory,
        image: Option<&Image>,
    ) -> Self {
        let kind = match stop {
            Stop::FailedEntry(_) => DeathKind::Entry,
            Stop::TripleFault | Stop::EmulationFailure(_) => DeathKind::Fault,
            Stop::UnknownExit(_) => DeathKind::Unknown,
            Stop::Timeout(_) | Stop::WallTimeout(_) => DeathKind::Running,
            _ => return self,
        };
        let findings = self.broken_rules(processor, memory, image.and_then(empty_entry));
        if kind == DeathKind::Running {
            return self.with_endless_access(findings, memory);
        }
        let told = self.told_rules(memory);
        let findings = findings.into_iter().filter(|finding| !told.contains(&finding.rule.name));
        self.with_findings(kind, findings.collect())
    }

    /// The rules that the state breaks. The entry point is checked if there is one.
    pub(super) fn broken_rules(
        &self,
        processor: Processor,
        memory: &dyn ReadMemory,
        entry: Option<Gpa>,
    ) -> Vec<Finding> {
        let state = Snapshot {
            regs: &self.regs,
            sregs: &self.sregs,
            physical_bits: processor.physical_bits(),
            entry,
            memory: &|gpa, bytes| memory.read(gpa, bytes),
        };
        let mut findings = state_check::check(&state);
        // A guest may mean PCE, unless it dies for want of OSFXSR.
        let (needs_sse, lacks_long_mode) = (self.tells("CR4.OSFXSR"), self.tells("CS.L is 1"));
        findings.retain(|finding| match finding.rule.name {
            "osfxsr" => needs_sse,
            "cs-l-without-lma" => !lacks_long_mode,
            _ => true,
        });
        findings
    }

    /// Adds the rules that the state breaks. After a failed entry, the probable cause is the first rule that is broken. After
    /// another death, it is that only if no other cause is known: the processor took the state.
    pub(super) fn with_findings(mut self, kind: DeathKind, mut findings: Vec<Finding>) -> Self {
        let is_unexplained = match kind {
            DeathKind::Entry | DeathKind::Refused => true,
            DeathKind::Fault => self.cause.is_none() && self.suspicion.is_none(),
            DeathKind::Lost | DeathKind::Running | DeathKind::Unknown => false,
        };
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
    pub(super) fn told_rules(&self, memory: &dyn ReadMemory) -> &'static [&'static str] {
        let probe = Probe::new(memory, *self.sregs);
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
