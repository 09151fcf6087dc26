//! Runs of a guest on the software processor: in slices of many instructions, and instruction by instruction, with the
//! same answers to its exits.

use crate::processor::{Guest, JAIL, Ram, TABLES};
use softcpu::{Cpu, Exit, State, cr0};

/// The number of instructions that a guest may execute.
const MOST: u64 = 600;
/// The number of exits after which a guest ends.
const EXITS: usize = 60;

/// A run of a guest.
struct Run {
    cpu: Cpu<Ram>,
    seed: u64,
    /// The exits, each with the number of instructions before it.
    exits: Vec<(Exit, u64)>,
    /// The last exit ended the run, or the budget is used up.
    is_over: bool,
    /// The guest has other paging structures than at the start. When the processor reads them depends on its TLB.
    has_new_tables: bool,
}

/// A number that the seed and an index decide.
fn choice(seed: u64, index: u64) -> u64 {
    let mixed = (seed ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 7
}

impl Run {
    fn new(guest: &Guest) -> Self {
        let mut cpu = Cpu::new(Ram::new(&guest.memory));
        cpu.set_cpuid(softcpu::supported_cpuid());
        cpu.trap_msrs(vec![0x1b, 0xabc]);
        cpu.state = guest.state.clone();
        cpu.state_changed();
        Self { cpu, seed: guest.seed, exits: Vec::new(), is_over: false, has_new_tables: false }
    }

    /// Executes at most `slice` instructions, or the end of the one that made the last exit.
    fn advance(&mut self, slice: u64, guest: &Guest) {
        let before = self.cpu.instructions();
        let exit = self.cpu.run(slice);
        let now = self.cpu.instructions();
        assert!(now.wrapping_sub(before) <= slice, "more instructions than allowed: {before} {now} {slice}");
        assert!(self.cpu.recent().count() <= 64);
        let state = &self.cpu.state;
        self.has_new_tables |= state.cr0 & cr0::PG != 0
            && (state.cr3, state.pdptrs) != (guest.state.cr3, guest.state.pdptrs)
            || (state.cr0 ^ guest.state.cr0) & cr0::PG != 0;
        if exit == Exit::SliceEnd {
            assert_eq!(now - before, slice, "a slice ended early");
            return;
        }
        self.exits.push((exit, now));
        let answer = choice(self.seed, self.exits.len() as u64);
        match exit {
            Exit::RdMsr { .. } | Exit::WrMsr { .. } if answer & 1 == 0 => self.cpu.refuse(),
            Exit::PortIn { .. } | Exit::MmioRead { .. } | Exit::RdMsr { .. } => self.cpu.answer(answer),
            _ => {}
        }
        let is_last = matches!(exit, Exit::Shutdown | Exit::Unsupported(_));
        assert!(exit != Exit::Shutdown || self.cpu.death().is_some_and(|death| death.faults.len() >= 2));
        self.is_over = is_last || self.exits.len() >= EXITS;
    }

    /// The content of memory, without the flags that the processor sets on its own.
    fn memory(&self) -> Vec<u8> {
        without_accessed(self.cpu.memory().content())
    }

    fn state(&self) -> &State {
        &self.cpu.state
    }
}

/// The content of memory, with the flags accessed and dirty of the paging structures cleared.
fn without_accessed(mut memory: Vec<u8>) -> Vec<u8> {
    memory[TABLES].iter_mut().step_by(4).for_each(|byte| *byte &= !0x60);
    memory
}

/// Runs a guest twice.
///
/// # Panics
/// The runs differ, or the guest had effects that its rights do not allow.
pub fn check(guest: &Guest) {
    let mut run = Run::new(guest);
    let mut number = 0;
    while !run.is_over && run.cpu.instructions() < MOST {
        number += 1;
        run.advance(1 + choice(guest.seed, 1000 + number) % 97, guest);
    }
    let mut single = Run::new(guest);
    while !single.is_over && single.cpu.instructions() < run.cpu.instructions() {
        single.advance(1, guest);
        if single.exits.len() > run.exits.len() {
            break;
        }
    }
    while !single.is_over && single.exits.len() < run.exits.len() {
        // Exits at the last instruction.
        let before = single.exits.len();
        single.advance(1, guest);
        if single.exits.len() == before {
            break;
        }
    }
    let (before, after) = (without_accessed(guest.memory.clone()), run.memory());
    let has_new_tables = run.has_new_tables || single.has_new_tables || before[TABLES] != after[TABLES];
    if !has_new_tables {
        assert_eq!(single.exits, run.exits, "other exits step by step");
        assert_eq!(single.state(), run.state(), "other registers step by step");
        assert!(single.memory() == after, "other memory step by step");
    }
    if guest.is_jailed {
        assert!(before[..JAIL.start] == after[..JAIL.start], "a store below the writable pages");
        assert!(before[JAIL.end..] == after[JAIL.end..], "a store above the writable pages");
        assert_eq!(run.state().cpl(), 3, "rights out of nothing");
    }
}
