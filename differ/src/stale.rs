//! Translations that a processor may keep.
//!
//! KVM's emulator walks the page tables for each access. A processor, and softcpu, may use an entry of the TLB until the
//! program flushes it, also if the program has changed the page tables (SDM volume 3, section 4.10.2.3).

use crate::layout::{CODE, TABLES};
use crate::outcome::Outcome;
use crate::program::Program;
use crate::runner::Runner;
use iced_x86::{Instruction, Mnemonic};
use softcpu::State;

type Error = Box<dyn std::error::Error>;

/// The accessed and dirty bits.
const MARKS: u64 = 0x60;
/// The most instructions that are examined.
const MOST: usize = 3000;

impl Runner {
    /// True if the result of softcpu depends on a translation of page tables that the program has changed and not flushed.
    /// `kvm` is the result of KVM.
    pub fn is_stale(&mut self, program: &Program, kvm: &Outcome) -> Result<bool, Error> {
        let kept = self.states(program)?;
        self.load(program)?;
        self.soft.set(&program.state);
        let mut tables = self.tables();
        let (mut accesses, mut changed, mut was_changed) = (Vec::new(), false, false);
        for number in 0..kept.len() {
            if kept.get(number) != Some(self.soft.state()) {
                return Ok(changed);
            }
            let (insn, _) = self.soft.instruction();
            self.soft.flush();
            let end = self.soft.run_steps(&mut accesses, 1);
            let now = self.tables();
            if flushes(&insn) {
                changed = false;
            }
            // The processor sets accessed and dirty bits; only the program clears them.
            changed |= now.iter().zip(&tables).any(|(now, old)| (now ^ old) & !MARKS != 0 || old & !now != 0);
            was_changed |= changed;
            tables = now;
            if end.is_some() {
                break;
            }
        }
        // Only accessed and dirty bits may differ.
        let known = kvm.memory.get((TABLES / 8) as usize..(CODE / 8) as usize);
        Ok(was_changed && (kept.last() != Some(self.soft.state()) || known == Some(&tables)))
    }

    /// The registers before each instruction.
    fn states(&mut self, program: &Program) -> Result<Vec<State>, Error> {
        self.load(program)?;
        self.soft.set(&program.state);
        let (mut accesses, mut states) = (Vec::new(), Vec::new());
        for _ in 0..MOST {
            states.push(self.soft.state().clone());
            if self.soft.run_steps(&mut accesses, 1).is_some() {
                states.push(self.soft.state().clone());
                break;
            }
        }
        Ok(states)
    }

    /// The page tables.
    fn tables(&self) -> Vec<u64> {
        let mut words = vec![0; ((CODE - TABLES) / 8) as usize];
        self.soft.read(TABLES, &mut words);
        words
    }
}

/// True for an instruction that flushes translations.
fn flushes(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Invlpg | Mnemonic::Wrmsr | Mnemonic::Lmsw)
        || insn.mnemonic() == Mnemonic::Mov && insn.op0_register().is_cr()
}
