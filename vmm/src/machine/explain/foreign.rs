//! Guests of other programs: only the registers of the vCPU and the memory are known.

use super::idt::Idt;
use super::{DeathKind, Explanation, Scene, Shown, View};
use crate::controller::vcpu::Location;
use crate::machine::processors::Processor;
use crate::memory::{Gpa, ReadMemory};
use crate::x86::modes::{EFER_LME, Mode};
use crate::x86::registers::{Regs, Sregs};
use crate::x86::state_check::{Finding, Kind};

/// The vCPU of another program's VMM at the death of its guest, for [`Explanation::of`].
#[derive(Clone, Copy)]
pub struct DeadVcpu<'a> {
    /// The way in which the guest died.
    pub kind: DeathKind,
    /// The general registers.
    pub regs: &'a Regs,
    /// The segment and control registers.
    pub sregs: &'a Sregs,
    /// The memory of the guest, which may hold anything. It is read a bounded number of times. `None` if it cannot be read.
    pub memory: Option<&'a dyn ReadMemory>,
    /// The guest physical address at which the guest starts, if it is known.
    pub entry: Option<Gpa>,
}

impl Explanation {
    /// Explains the death of a guest of another program, as that of a guest of this library.
    ///
    /// A rule that the state breaks is the probable cause if the other signs are weak: such a guest has often not been set up
    /// as its author meant.
    pub fn of(vcpu: &DeadVcpu<'_>) -> Self {
        let DeadVcpu { kind, regs, sregs, memory, entry } = *vcpu;
        let mode = match Location::of(sregs, regs.rip) {
            Location::At { mode, .. } => mode,
            _ => Mode::Real,
        };
        let is_readable = memory.is_some();
        let memory = memory.unwrap_or(&Unreadable);
        let died = kind == DeathKind::Fault && is_readable;
        let scene = Scene { died, is_foreign: true, ..Scene::default() };
        let mut explanation = Self::at(mode, *regs, *sregs, memory, &scene);
        explanation.shown = match kind {
            DeathKind::Refused | DeathKind::Lost => Shown::SystemRegisters,
            _ if !is_readable => Shown::Registers,
            _ => Shown::All,
        };
        let mut findings = explanation.broken_rules(Processor::Kvm, memory, entry);
        let next = View::new(memory, *sregs).linear(sregs.cs.base, regs.rip);
        let has_firmware = memory.read(Gpa(next), &mut [0]);
        // With half of the long mode, the tables are not those of PAE paging.
        let means_long_mode = sregs.efer & EFER_LME != 0 || sregs.cs.l != 0;
        findings.retain(|finding| match finding.rule.name {
            "pdpte" => !means_long_mode,
            // A VMM with firmware means to start as after a reset.
            "cs-reset" => !has_firmware,
            "entry-memory" | "cr3-memory" | "table-memory" | "page-size" => is_readable,
            _ => true,
        });
        let is_refusal = |finding: &Finding| finding.rule.kind == Kind::Refused;
        if kind == DeathKind::Refused && findings.iter().any(is_refusal) {
            findings.retain(is_refusal);
        }
        explanation = match kind {
            DeathKind::Running => explanation.with_endless_access(findings, memory),
            _ => explanation.with_findings(kind, findings),
        };
        if died {
            let idt = Idt { sregs, probe: &View::new(memory, *sregs), memory };
            explanation.handler = idt.missing_handler(explanation.suspicion.as_deref());
        }
        match kind {
            DeathKind::Fault | DeathKind::Lost => explanation.blame_state(),
            DeathKind::Running if is_readable && explanation.suspicion.is_none() => {
                explanation.suspicion = explanation.pastime(memory);
            }
            _ => {}
        }
        explanation
    }

    /// Makes the first broken rule the probable cause, if the other signs are weak.
    fn blame_state(&mut self) {
        let is_strong = |cause: &str| cause.starts_with('#') && !cause.starts_with("#PF: the instruction's");
        if !self.findings.is_empty() && !self.suspicion.as_deref().is_some_and(is_strong) {
            self.suspicion = Some(self.findings.remove(0).to_string().into());
        }
    }
}

/// Memory that cannot be read.
struct Unreadable;

impl ReadMemory for Unreadable {
    fn read(&self, _: Gpa, _: &mut [u8]) -> bool {
        false
    }
}
