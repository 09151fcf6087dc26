//! Guests that run without an exit until their time is over: the host repeats an access for ever, the code jumps to itself, or
//! it has halted.

use super::suspicion::Suspicion;
use super::{Explanation, code_bits, decode, instruction_bytes, translate};
use crate::memory::ReadMemory;
use crate::x86::probe::Probe;
use crate::x86::state_check::Finding;
use iced_x86::{FlowControl, Mnemonic};

/// The rules whose breach some hosts answer with endless attempts: AMD's KVM returns to a guest whose page tables are in no memory
/// slot, and the guest takes the same fault again.
const ENDLESS: [&str; 2] = ["cr3-memory", "table-memory"];

impl Explanation {
    /// Makes page tables outside of all memory the probable cause, if they are on the way to the instruction. Keeps only the rules
    /// about page tables: the processor has taken the state, and a guest that runs may have its reasons for the rest.
    pub(super) fn with_endless_access(mut self, mut findings: Vec<Finding>, memory: &dyn ReadMemory) -> Self {
        let code_is_lost = self.told_rules(memory).iter().any(|rule| ENDLESS.contains(rule));
        let is_endless = |finding: &Finding| ENDLESS.contains(&finding.rule.name);
        findings.retain(|finding| is_endless(finding) || finding.rule.name == "page-size");
        if let Some(place) = findings.iter().position(is_endless).filter(|_| code_is_lost) {
            let finding = findings.remove(place);
            self.suspicion = Some(format!("{finding}: some hosts repeat this access for ever").into());
        }
        self.findings = findings;
        self
    }

    /// The way in which the guest of another program spends its time, from the instruction at RIP and the one before.
    pub(super) fn pastime(&self, memory: &dyn ReadMemory) -> Option<Suspicion> {
        let probe = Probe::new(memory, *self.sregs);
        let bytes_at = |rip: u64| {
            let place = translate(&probe, memory, probe.linear(self.sregs.cs.base, rip));
            place.gpa.map(|gpa| instruction_bytes(memory, gpa)).unwrap_or_default()
        };
        let (rip, bits) = (self.regs.rip, code_bits(&self.sregs));
        let next = decode(bits, rip, &bytes_at(rip))?;
        let is_jump =
            matches!(next.flow_control(), FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch);
        if is_jump && next.near_branch_target() == rip {
            return Some(format!("an endless loop: the instruction at {rip:#x} jumps to itself").into());
        }
        let before = decode(bits, rip.wrapping_sub(1), &bytes_at(rip.wrapping_sub(1)));
        let has_halted = before.is_some_and(|before| before.mnemonic() == Mnemonic::Hlt);
        let can_wake = self.regs.rflags & INTERRUPTS_ON != 0;
        match (has_halted, can_wake) {
            (false, _) => None,
            (true, true) => Some("it has halted, and waits for an interrupt".into()),
            (true, false) => Some("it has halted with interrupts off".into()),
        }
    }
}

/// RFLAGS: interrupts are on.
const INTERRUPTS_ON: u64 = 1 << 9;
