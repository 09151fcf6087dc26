//! Translations that a processor may keep.
//!
//! KVM's emulator walks the page tables for each access. A processor, and softcpu, may use an entry of the TLB until the
//! program flushes it, also if the program has changed the page tables (SDM volume 3, section 4.10.2.3).

use crate::culprit::address;
use crate::layout::{CODE, PAGE, TABLES};
use crate::outcome::Outcome;
use crate::program::Program;
use crate::runner::Runner;
use iced_x86::{Instruction, Mnemonic};
use softcpu::State;
use std::collections::HashSet;

type Error = Box<dyn std::error::Error>;

/// The place of the table of the lowest pages, behind the first table, and the addresses that it translates.
const LAST_TABLE: u64 = 3 * PAGE;
const LAST_TABLE_SPAN: u64 = 512 * PAGE;
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
        let (mut accesses, mut changed, mut was_changed) = (Vec::new(), HashSet::new(), false);
        for number in 0..kept.len() {
            if kept.get(number) != Some(self.soft.state()) {
                return Ok(!changed.is_empty());
            }
            let (insn, _) = self.soft.instruction();
            flush(&insn, self.soft.state(), &mut changed);
            self.soft.flush();
            let end = self.soft.run_steps(&mut accesses, 1);
            let now = self.tables();
            // The processor sets accessed and dirty bits; only the program clears them.
            let is_changed = |(now, old): (&u64, &u64)| (now ^ old) & !MARKS != 0 || old & !now != 0;
            let numbers = now.iter().zip(&tables).enumerate();
            changed.extend(numbers.filter(|(_, words)| is_changed(*words)).map(|(number, _)| number));
            was_changed |= !changed.is_empty();
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

/// Forgets the changed entries whose translations an instruction flushes. INVLPG does that for one page, while an entry of a
/// table above the last one translates more.
fn flush(insn: &Instruction, state: &State, changed: &mut HashSet<usize>) {
    let is_all = matches!(insn.mnemonic(), Mnemonic::Wrmsr | Mnemonic::Lmsw)
        || insn.mnemonic() == Mnemonic::Mov && insn.op0_register().is_cr();
    if is_all {
        changed.clear();
    } else if insn.mnemonic() == Mnemonic::Invlpg {
        let address = address(insn, 0, state).filter(|address| *address < LAST_TABLE_SPAN);
        let number = address.map(|address| (address / PAGE) as usize);
        let first = (LAST_TABLE / 8) as usize;
        changed.retain(|word| number != word.checked_sub(first));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    /// The changed entries that are left: those of pages 0 and 1, and one of the table above them.
    fn left(bytes: &[u8]) -> Vec<usize> {
        let first = (LAST_TABLE / 8) as usize;
        let above = first - 512;
        let mut changed = HashSet::from([first, first + 1, above]);
        let state = State { gpr: [PAGE; 16], ..State::default() };
        flush(&Decoder::new(64, bytes, DecoderOptions::NONE).decode(), &state, &mut changed);
        let mut left: Vec<_> = changed.into_iter().collect();
        left.sort_unstable();
        left.iter().map(|word| word - above).collect()
    }

    #[test]
    fn invlpg_flushes_the_entry_of_its_page() {
        // INVLPG [RAX].
        assert_eq!(left(&[0x0f, 0x01, 0x38]), [0, 512]);
    }

    #[test]
    fn mov_to_cr3_flushes_all_and_nop_none() {
        assert!(left(&[0x0f, 0x22, 0xd8]).is_empty());
        assert_eq!(left(&[0x90]), [0, 512, 513]);
    }
}
