//! The processor in software.

use crate::layout::{MEMORY, PAGE};
use crate::outcome::{Access, End, MOST_ACCESSES, answer};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use softcpu::{Cpu, Delivery, Exit, Memory, State, supported_cpuid};
use std::cell::Cell;
use std::rc::Rc;

/// The most instructions of a program.
const MOST_INSTRUCTIONS: u64 = 3000;

/// The memory, in words.
#[derive(Clone)]
pub struct Ram(Rc<[Cell<u64>]>);

impl Ram {
    fn new() -> Self {
        Self((0..MEMORY / 8).map(|_| Cell::new(0)).collect())
    }
}

impl Memory for Ram {
    type Page = usize;

    fn page(&self, gpa: u64) -> Option<usize> {
        (gpa < MEMORY).then_some((gpa / PAGE * (PAGE / 8)) as usize)
    }

    fn load<const SIZE: usize>(&self, page: usize, offset: usize) -> u64 {
        let (word, shift) = (page + offset / 8, offset % 8 * 8);
        let mut value = self.0[word].get() >> shift;
        if shift + SIZE * 8 > 64 {
            value |= self.0[word + 1].get() << (64 - shift);
        }
        if SIZE == 8 { value } else { value & ((1 << (SIZE * 8)) - 1) }
    }

    fn store<const SIZE: usize>(&self, page: usize, offset: usize, value: u64) {
        let (word, shift) = (page + offset / 8, offset % 8 * 8);
        let mask = if SIZE == 8 { u64::MAX } else { (1 << (SIZE * 8)) - 1 };
        let value = value & mask;
        let cell = &self.0[word];
        cell.set(cell.get() & !(mask << shift) | value << shift);
        if shift + SIZE * 8 > 64 {
            let cell = &self.0[word + 1];
            cell.set(cell.get() & !(mask >> (64 - shift)) | value >> (64 - shift));
        }
    }
}

/// A processor with its memory.
pub struct Machine {
    cpu: Cpu<Ram>,
    memory: Ram,
    /// The number of instructions before the program.
    start: u64,
}

impl Machine {
    pub fn new() -> Self {
        let memory = Ram::new();
        let mut cpu = Cpu::new(memory.clone());
        cpu.set_cpuid(supported_cpuid());
        Self { cpu, memory, start: 0 }
    }

    /// Writes words to memory.
    pub fn write(&mut self, address: u64, words: &[u64]) {
        let memory = &self.memory.0[(address / 8) as usize..];
        memory.iter().zip(words).for_each(|(cell, word)| cell.set(*word));
    }

    /// Reads words from memory.
    pub fn read(&self, address: u64, words: &mut [u64]) {
        let memory = &self.memory.0[(address / 8) as usize..];
        memory.iter().zip(words).for_each(|(cell, word)| *word = cell.get());
    }

    /// Sets the registers.
    pub fn set(&mut self, state: &State) {
        self.start = self.cpu.instructions();
        self.cpu.state.clone_from(state);
        self.cpu.state_changed();
    }

    pub fn state(&self) -> &State {
        &self.cpu.state
    }

    /// The vectors of the exceptions in which a program ended, as far as they are known.
    pub fn vectors(&self, end: &End) -> Vec<u8> {
        let is_behind = |last: &Delivery| last.handler_rip.wrapping_add(1) == self.cpu.state.rip;
        self.vectors_of(Some(end), |last| last.instructions >= self.start && is_behind(last))
    }

    /// Runs one instruction. Returns the end, and the vectors of the exceptions that were delivered.
    pub fn step(&mut self, accesses: &mut Vec<Access>) -> (Option<End>, Vec<u8>) {
        let first = self.cpu.instructions();
        let end = self.run_steps(accesses, 1);
        let vectors = self.vectors_of(end.as_ref(), |last| last.instructions >= first);
        (end, vectors)
    }

    /// The vectors of the exceptions of a triple fault, or of the last exception if it is meant.
    fn vectors_of(&self, end: Option<&End>, is_meant: impl Fn(&Delivery) -> bool) -> Vec<u8> {
        if end == Some(&End::Shutdown) {
            let faults = self.cpu.death().map(|death| death.faults.as_slice()).unwrap_or_default();
            // The double fault is not one of them.
            return faults.iter().map(|fault| fault.vector).chain([8]).collect();
        }
        let last = self.cpu.last_delivery().filter(|last| is_meant(last)).map(|last| &last.fault);
        last.into_iter().flat_map(|fault| fault.while_delivering.into_iter().chain([fault.vector])).collect()
    }

    /// Forgets all translations of linear addresses.
    pub fn flush(&mut self) {
        self.cpu.flush_translations();
    }

    /// The instruction at RIP, and its bytes.
    pub fn instruction(&mut self) -> (Instruction, Vec<u8>) {
        let bytes = self.cpu.instruction_bytes();
        let state = &self.cpu.state;
        let insn = Decoder::with_ip(state.code_bits(), &bytes, state.rip, DecoderOptions::NONE).decode();
        (insn, bytes)
    }

    /// Runs until the end.
    pub fn run(&mut self, accesses: &mut Vec<Access>) -> End {
        self.run_steps(accesses, MOST_INSTRUCTIONS).unwrap_or(End::Endless)
    }

    /// Runs at most this number of instructions. `None` if the program has not ended.
    pub fn run_steps(&mut self, accesses: &mut Vec<Access>, steps: u64) -> Option<End> {
        let last = self.cpu.instructions().wrapping_add(steps);
        loop {
            let left = last.wrapping_sub(self.cpu.instructions());
            if left == 0 || left > steps {
                return None;
            }
            let exit = self.cpu.run(left);
            let number = accesses.len();
            let access = match exit {
                Exit::PortIn { port, size } => ('i', port.into(), size, answer(port.into(), number)),
                Exit::PortOut { port, size, data } => ('o', port.into(), size, data.into()),
                Exit::MmioRead { address, size } => ('r', address, size, answer(address, number)),
                Exit::MmioWrite { address, size, data } => ('w', address, size, data),
                Exit::Halted => return Some(End::Halted),
                Exit::Shutdown => return Some(End::Shutdown),
                Exit::SliceEnd => return None,
                Exit::Unsupported(_) => return Some(End::Unsupported),
                Exit::RdMsr { .. } | Exit::WrMsr { .. } => {
                    self.cpu.refuse();
                    continue;
                }
            };
            let (kind, address, size, data) = access;
            let data = if size >= 8 { data } else { data & ((1 << (8 * u32::from(size))) - 1) };
            if matches!(kind, 'i' | 'r') {
                self.cpu.answer(data);
            }
            accesses.push(Access { kind, address, size, data });
            if number >= MOST_ACCESSES {
                return Some(End::Endless);
            }
        }
    }
}
