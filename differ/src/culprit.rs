//! Finds the instruction at which two results begin to differ.

use crate::flags::Undefined;
use crate::layout;
use crate::outcome::{self, Outcome};
use crate::program::{Config, Program};
use crate::ring_0;
use crate::runner::Runner;
use iced_x86::{Instruction, Mnemonic};
use softcpu::{State, seg};

type Error = Box<dyn std::error::Error>;

/// The most instructions of a program that are examined, with each element of a repetition.
const MOST: usize = 3000;

/// An instruction that softcpu executes.
pub struct Step {
    pub insn: Instruction,
    /// Its bytes, and some behind it.
    pub bytes: Vec<u8>,
    /// The registers before it.
    pub before: State,
    /// The number of accesses before it.
    pub accesses: usize,
}

impl Step {
    /// The linear address.
    pub fn address(&self) -> u64 {
        if self.before.is_64() {
            return self.before.rip;
        }
        self.before.segments[seg::CS].base.wrapping_add(self.before.rip) & 0xffff_ffff
    }

    /// True if it begins with one of these prefixes, possibly after others.
    pub fn has_prefix(&self, prefixes: &[u8]) -> bool {
        const ALL: [u8; 11] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];
        let is_rex = |byte| self.before.is_64() && byte & 0xf0 == 0x40;
        let mut all = self.bytes.iter().take_while(|byte| ALL.contains(byte) || is_rex(**byte));
        all.any(|byte| prefixes.contains(byte))
    }
}

/// The first instruction after which the results differ, in a program that ends behind it.
pub struct Culprit {
    pub step: Step,
    pub kvm: Outcome,
    pub soft: Outcome,
    pub undefined: Undefined,
    /// A repetition before it has overwritten itself.
    pub is_rewritten: bool,
}

impl Runner {
    /// The instructions that softcpu executes before a program is in a handler. A repetition is one.
    fn steps(&mut self, program: &Program) -> Result<Vec<Step>, Error> {
        self.load(program)?;
        self.soft.set(&program.state);
        let (mut accesses, mut steps) = (Vec::new(), Vec::<Step>::new());
        for _ in 0..MOST {
            let before = self.soft.state().clone();
            let behind = State { rip: before.rip.wrapping_add(1), ..before.clone() };
            if layout::vector(&behind).is_some() {
                break;
            }
            let (insn, bytes) = self.soft.instruction();
            if steps.last().is_none_or(|last| last.before.rip != before.rip || last.insn != insn) {
                steps.push(Step { insn, bytes, before, accesses: accesses.len() });
            }
            if self.soft.run_steps(&mut accesses, 1).is_some() {
                break;
            }
        }
        Ok(steps)
    }

    /// Finds the culprit: ends the program behind its first instruction, its second one, and so on. An error if only
    /// undefined flags differ.
    pub fn culprit(&mut self, program: &Program) -> Result<Result<Culprit, Undefined>, Error> {
        let config = program.id.config;
        let mut undefined = Undefined::default();
        let mut is_rewritten = false;
        let mut steps = self.steps(program)?.into_iter().peekable();
        while let Some(step) = steps.next() {
            let mut part = program.clone();
            if let Some(next) = steps.peek() {
                // Behind a repetition that has overwritten itself, nothing can be cut.
                if (step.address()..step.address() + step.insn.len() as u64).contains(&next.address()) {
                    undefined.step(&step.insn);
                    is_rewritten = true;
                    continue;
                }
                // Nor at an address that is mapped to another one.
                let is_moved = config == Config::Long
                    && !next.bytes.starts_with(
                        &program.read(next.address().min(layout::MEMORY), next.bytes.len().min(2)),
                    );
                // Nor within a table, which the cut would change.
                let is_table = ring_0::is_extended(config) && layout::is_table(next.address());
                if next.address() >= layout::MEMORY || is_moved || is_table {
                    undefined.step(&step.insn);
                    continue;
                }
                part.write(next.address(), &[0xf4]);
            } else if config != Config::User {
                // softcpu ends here. KVM must not go on, if it does not.
                let behind = step.address().wrapping_add(step.insn.len() as u64);
                if behind < layout::MEMORY && !(ring_0::is_extended(config) && layout::is_table(behind)) {
                    part.write(behind, &[0xf4]);
                }
            }
            let (kvm, soft) = self.both(&part)?;
            // A fault leaves the flags as they are; a trap does not.
            if steps.peek().is_some()
                || matches!(layout::vector(&soft.state), None | Some(1))
                || is_software(&step.insn)
            {
                undefined.step(&step.insn);
            } else {
                undefined.read(&step.insn);
            }
            if !outcome::compare(config, &kvm, &soft, undefined.flags).is_empty() {
                return Ok(Ok(Culprit { step, kvm, soft, undefined, is_rewritten }));
            }
            // Only those that do differ matter.
            undefined.flags &= outcome::flags(config, &kvm) ^ outcome::flags(config, &soft);
        }
        undefined.is_rewritten = is_rewritten;
        Ok(Err(undefined))
    }
}

fn is_software(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Int | Mnemonic::Int3 | Mnemonic::Into | Mnemonic::Int1)
}
