//! Finds the instruction at which two results begin to differ.

use crate::flags::Undefined;
use crate::layout;
use crate::outcome::{self, End, Outcome};
use crate::program::{Config, Program};
use crate::ring_0;
use crate::runner::Runner;
use iced_x86::{Instruction, Mnemonic, Register};
use softcpu::{State, seg};
use std::collections::HashSet;

type Error = Box<dyn std::error::Error>;

/// The most instructions of a program that are examined, with each element of a repetition.
const MOST: usize = 3000;

/// The most instructions that are examined one after the other.
const SHORT: usize = 16;

/// An instruction that softcpu executes.
pub struct Step {
    pub insn: Instruction,
    /// Its bytes, and some behind it.
    pub bytes: Vec<u8>,
    /// The registers before it.
    pub before: State,
    /// The number of accesses before it.
    pub accesses: usize,
    /// The vectors of the exceptions that softcpu delivered at it.
    pub vectors: Vec<u8>,
}

impl Step {
    /// The linear address.
    pub fn address(&self) -> u64 {
        if self.before.is_64() {
            return self.before.rip;
        }
        self.before.segments[seg::CS].base.wrapping_add(self.before.rip) & 0xffff_ffff
    }

    /// The linear addresses of its operands in memory.
    pub fn operands(&self) -> impl Iterator<Item = u64> {
        (0..self.insn.op_count()).filter_map(|operand| address(&self.insn, operand, &self.before))
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
    /// The memory at the start of the program.
    pub image: Vec<u64>,
    /// The instructions just before it, behind which the program cannot be ended. The difference may be due to them.
    pub earlier: Vec<Step>,
}

/// The end of a program behind an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// A HLT at this address, or the end of the program.
    Behind(Option<u64>),
    /// None: the address is mapped to another one, in a table, which the cut would change, or one where the program was
    /// before, so that it would end there.
    Never,
    /// None: a repetition has overwritten itself.
    Rewritten,
}

/// The state of a search for the culprit.
#[derive(Default)]
struct Search {
    /// The instruction.
    number: usize,
    undefined: Undefined,
    is_rewritten: bool,
    /// The number of instructions before it at which the program could not be ended.
    uncut: usize,
}

impl Search {
    fn culprit(
        self,
        program: &Program,
        steps: Vec<Step>,
        (kvm, soft): (Outcome, Outcome),
    ) -> Result<Culprit, Error> {
        let Self { number, undefined, is_rewritten, uncut } = self;
        let mut earlier: Vec<_> = steps.into_iter().take(number + 1).skip(number - uncut).collect();
        let step = earlier.pop().ok_or("no such instruction")?;
        let image = program.image.clone();
        Ok(Culprit { step, kvm, soft, undefined, is_rewritten, image, earlier })
    }
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
                steps.push(Step { insn, bytes, before, accesses: accesses.len(), vectors: Vec::new() });
            }
            let (end, vectors) = self.soft.step(&mut accesses);
            if let Some(last) = steps.last_mut() {
                last.vectors = vectors;
            }
            if end.is_some() {
                break;
            }
        }
        Ok(steps)
    }

    /// Finds the culprit: ends the program behind its first instruction, its second one, and so on. An error if only
    /// undefined flags differ. A long program is examined in strides, which grow while the results are equal to the last
    /// flag.
    pub fn culprit(&mut self, program: &Program) -> Result<Result<Culprit, Undefined>, Error> {
        let steps = self.steps(program)?;
        let cuts = cuts(program, &steps);
        let mut search = Search::default();
        let mut stride = 1;
        while search.number < steps.len() {
            if stride > 1 {
                let is_equal = self.is_equal_behind(program, &cuts, search.number + stride - 1)?;
                if is_equal {
                    search = Search { number: search.number + stride, ..Search::default() };
                }
                stride = if is_equal { stride * 2 } else { stride / 2 };
                continue;
            }
            if let Some(outcomes) = self.search(program, &steps, &cuts, &mut search)? {
                return Ok(Ok(search.culprit(program, steps, outcomes)?));
            }
            search.number += 1;
            stride = if steps.len() > SHORT { 2 } else { 1 };
        }
        search.undefined.is_rewritten = search.is_rewritten;
        // Each cut may have changed the program.
        let (kvm, soft) = self.both(program)?;
        if steps.is_empty()
            || outcome::compare(program.id.config, &kvm, &soft, search.undefined.flags).is_empty()
        {
            return Ok(Err(search.undefined));
        }
        (search.number, search.uncut) = (steps.len() - 1, steps.len() - 1);
        Ok(Ok(search.culprit(program, steps, (kvm, soft))?))
    }

    /// True if the results are equal, with undefined flags, when the program ends behind an instruction, which is not the
    /// last one.
    fn is_equal_behind(&mut self, program: &Program, cuts: &[Cut], number: usize) -> Result<bool, Error> {
        let (Some(Cut::Behind(at)), Some(_)) = (cuts.get(number), cuts.get(number + 1)) else {
            return Ok(false);
        };
        let (kvm, soft) = self.both(&ended(program, *at))?;
        Ok(is_at(&soft, *at) && outcome::compare(program.id.config, &kvm, &soft, 0).is_empty())
    }

    /// Examines one instruction. Returns the results if they differ.
    fn search(
        &mut self,
        program: &Program,
        steps: &[Step],
        cuts: &[Cut],
        search: &mut Search,
    ) -> Result<Option<(Outcome, Outcome)>, Error> {
        let config = program.id.config;
        let (Some(step), Some(cut)) = (steps.get(search.number), cuts.get(search.number)) else {
            return Ok(None);
        };
        let undefined = &mut search.undefined;
        let &Cut::Behind(at) = cut else {
            undefined.step(&step.insn);
            search.is_rewritten |= *cut == Cut::Rewritten;
            search.uncut += 1;
            return Ok(None);
        };
        let (kvm, soft) = self.both(&ended(program, at))?;
        // A fault leaves the flags as they are; a trap does not.
        let is_last = search.number + 1 == steps.len();
        if !is_last && !is_at(&soft, at) {
            undefined.step(&step.insn);
            search.uncut += 1;
            return Ok(None);
        }
        if !is_last || matches!(layout::vector(&soft.state), None | Some(1)) || is_software(&step.insn) {
            undefined.step(&step.insn);
        } else {
            undefined.read(&step.insn);
        }
        if !outcome::compare(config, &kvm, &soft, undefined.flags).is_empty() {
            return Ok(Some((kvm, soft)));
        }
        // Only those that do differ matter.
        undefined.flags &= outcome::flags(config, &kvm) ^ outcome::flags(config, &soft);
        search.uncut = 0;
        Ok(None)
    }
}

/// True if a program ended at its HLT at an address, and has not overwritten it or gone another way.
fn is_at(soft: &Outcome, at: Option<u64>) -> bool {
    let state = &soft.state;
    let base = if state.is_64() { 0 } else { state.segments[seg::CS].base };
    soft.end == End::Halted && at.is_none_or(|at| base.wrapping_add(state.rip) == at.wrapping_add(1))
}

/// The program with HLT at an address.
fn ended(program: &Program, at: Option<u64>) -> Program {
    let mut part = program.clone();
    at.into_iter().for_each(|at| part.write(at, &[0xf4]));
    part
}

/// For each instruction, the way to end the program behind it.
fn cuts(program: &Program, steps: &[Step]) -> Vec<Cut> {
    let config = program.id.config;
    let is_table = |at| ring_0::is_extended(config) && layout::is_table(at);
    let mut seen = HashSet::new();
    let mut cuts = Vec::with_capacity(steps.len());
    for (number, step) in steps.iter().enumerate() {
        seen.insert(step.address());
        let behind = step.address().wrapping_add(step.insn.len() as u64);
        let Some(next) = steps.get(number + 1) else {
            // softcpu ends here. KVM must not go on, if it does not.
            let can_end = config != Config::User && behind < layout::MEMORY && !is_table(behind);
            cuts.push(Cut::Behind(can_end.then_some(behind)));
            break;
        };
        let at = next.address();
        let is_moved = config == Config::Long
            && !next.bytes.starts_with(&program.read(at.min(layout::MEMORY), next.bytes.len().min(2)));
        cuts.push(if (step.address()..behind).contains(&at) {
            Cut::Rewritten
        } else if at >= layout::MEMORY || is_moved || is_table(at) || seen.contains(&at) {
            Cut::Never
        } else {
            Cut::Behind(Some(at))
        });
    }
    cuts
}

/// The linear address of an operand in memory.
pub fn address(insn: &Instruction, operand: u32, state: &State) -> Option<u64> {
    insn.virtual_address(operand, 0, |register, _, _| match register.is_segment_register() {
        true if state.is_64() && !matches!(register, Register::FS | Register::GS) => Some(0),
        true => state.segments.get(register.number()).map(|segment| segment.base),
        false => state.gpr.get(register.full_register().number()).copied(),
    })
}

fn is_software(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Int | Mnemonic::Int3 | Mnemonic::Into | Mnemonic::Int1)
}
