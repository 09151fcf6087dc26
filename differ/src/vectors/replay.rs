//! Replays tests on `softcpu`.

use crate::moo::{AX, BP, BX, CS, CX, DI, DS, DX, ES, FLAGS, IP, SI, SP, SS, Test};
use softcpu::{Cpu, Exit, Memory, Segment, State, flag, seg};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

/// The size of memory: all that an 80286 addresses.
const MEMORY: usize = 1 << 24;
const PAGE: usize = 4096;
/// The most instructions of a test: a repeated string instruction has at most 127 elements.
const MOST_INSTRUCTIONS: u64 = 1000;
/// The flags that an 80286 has in real mode. The others are zero there, also after POPF and IRET.
pub const FLAGS_OF_80286: u16 = 0x0fff;
/// The segment registers: their places in a test and in the processor.
const SEGMENTS: [(usize, usize); 4] = [(CS, seg::CS), (SS, seg::SS), (DS, seg::DS), (ES, seg::ES)];
/// The general registers of a test, in the same way.
const GENERAL: [(usize, usize); 8] = [(AX, 0), (CX, 1), (DX, 2), (BX, 3), (SP, 4), (BP, 5), (SI, 6), (DI, 7)];
/// The flags that the delivery of an exception clears: IF and TF.
const CLEARED: u16 = 0x300;
/// The number of vectors of exceptions.
const VECTORS: u32 = 32;

/// IP and CS of a handler, for [`Replay::raised`].
const fn handler(vector: u32) -> [u16; 2] {
    [0xf100 | vector as u16, 0xf2f3]
}

/// The memory. It knows the bytes that were written.
pub struct Ram {
    bytes: Box<[Cell<u8>]>,
    written: RefCell<Vec<u32>>,
}

impl Memory for &Ram {
    type Page = usize;

    fn page(&self, gpa: u64) -> Option<usize> {
        (gpa < MEMORY as u64).then_some(gpa as usize & !(PAGE - 1))
    }

    fn load<const SIZE: usize>(&self, page: usize, offset: usize) -> u64 {
        (0..SIZE).fold(0, |value, at| value | u64::from(self.bytes[page + offset + at].get()) << (8 * at))
    }

    fn store<const SIZE: usize>(&self, page: usize, offset: usize, value: u64) {
        for at in 0..SIZE {
            self.bytes[page + offset + at].set((value >> (8 * at)) as u8);
            self.written.borrow_mut().push((page + offset + at) as u32);
        }
    }
}

impl Ram {
    pub fn new() -> Self {
        Self { bytes: vec![Cell::new(0); MEMORY].into(), written: RefCell::default() }
    }

    pub fn read(&self, address: u32) -> u8 {
        self.bytes.get(address as usize).map_or(0xff, Cell::get)
    }

    fn write(&self, address: u32, value: u8) {
        if let Some(byte) = self.bytes.get(address as usize) {
            byte.set(value);
        }
    }
}

/// A register or a byte of memory that is not as the test says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    Register { number: usize, value: u16, expected: u16 },
    Byte { address: u32, value: u8, expected: u8 },
}

/// The result of a test.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The reason why the processor stopped: `Halted`, if all is well.
    pub end: Exit,
    pub registers: [u16; 14],
    pub differences: Vec<Difference>,
}

impl Outcome {
    pub fn is_pass(&self) -> bool {
        self.end == Exit::Halted && self.differences.is_empty()
    }
}

/// The processor, and its memory.
pub struct Replay<'a> {
    cpu: Cpu<&'a Ram>,
    ram: &'a Ram,
}

impl<'a> Replay<'a> {
    pub fn new(ram: &'a Ram) -> Self {
        Self { cpu: Cpu::new(ram), ram }
    }

    /// Runs a test, and compares the defined flags and all else. The memory is zero afterwards.
    pub fn run(&mut self, test: &Test, defined: u16) -> Outcome {
        let ram = self.ram;
        test.before.memory.iter().for_each(|(address, value)| ram.write(*address, *value));
        ram.written.borrow_mut().clear();
        self.cpu.reset();
        set_registers(&mut self.cpu.state, &test.before.registers);
        let end = self.end();
        let mut outcome = Outcome { end, registers: registers(&self.cpu.state), differences: Vec::new() };
        compare_registers(test, defined, &mut outcome);
        let written = ram.written.take();
        let mut addresses: BTreeSet<u32> = written.iter().copied().collect();
        addresses.extend(test.after.memory.iter().map(|(address, _)| address));
        for address in &addresses {
            compare_byte(test, defined, *address, ram.read(*address), &mut outcome);
        }
        test.before.memory.iter().for_each(|(address, _)| ram.write(*address, 0));
        addresses.iter().for_each(|address| ram.write(*address, 0));
        outcome
    }

    /// Executes one instruction. Returns the vector of the exception that it raises, if it raises one and changes no
    /// register except for those of the delivery and those of `changed`.
    pub fn raised(&mut self, test: &Test, changed: &[usize]) -> Option<u8> {
        let ram = self.ram;
        test.before.memory.iter().for_each(|(address, value)| ram.write(*address, *value));
        for vector in 0..VECTORS {
            let bytes = handler(vector).into_iter().flat_map(u16::to_le_bytes);
            (4 * vector..).zip(bytes).for_each(|(address, value)| ram.write(address, value));
        }
        ram.written.borrow_mut().clear();
        self.cpu.reset();
        set_registers(&mut self.cpu.state, &test.before.registers);
        let before = registers(&self.cpu.state);
        // Each element of a repeated string instruction is one step.
        for _ in 0..MOST_INSTRUCTIONS {
            self.cpu.run(1);
            if registers(&self.cpu.state)[IP] != before[IP] {
                break;
            }
        }
        let after = registers(&self.cpu.state);
        let word = |address: u32| u16::from_le_bytes([ram.read(address), ram.read(address + 1)]);
        let frame = pushed_flags(test);
        let is_delivered = (0..14).all(|number| match number {
            CS | IP => true,
            _ if changed.contains(&number) => true,
            SP => after[SP] == before[SP].wrapping_sub(6),
            FLAGS => word(frame) == before[FLAGS] && after[FLAGS] == before[FLAGS] & !CLEARED,
            _ => after[number] == before[number],
        }) && word(frame - 2) == before[CS]
            && word(frame - 4) == before[IP];
        let vector = (0..VECTORS).find(|vector| handler(*vector) == [after[IP], after[CS]]);
        test.before.memory.iter().for_each(|(address, _)| ram.write(*address, 0));
        (0..4 * VECTORS).for_each(|address| ram.write(address, 0));
        ram.written.take().iter().for_each(|address| ram.write(*address, 0));
        vector.filter(|_| is_delivered).map(|vector| vector as u8)
    }

    /// Executes instructions until a HLT. Ports read all ones.
    fn end(&mut self) -> Exit {
        let last = self.cpu.instructions().wrapping_add(MOST_INSTRUCTIONS);
        loop {
            let left = last.saturating_sub(self.cpu.instructions());
            match self.cpu.run(left) {
                Exit::PortIn { .. } | Exit::PortOut { .. } if left > 0 => self.cpu.answer(u64::MAX),
                end => return end,
            }
        }
    }
}

fn set_registers(state: &mut State, values: &[Option<u16>; 14]) {
    let value = |number: usize| values[number].unwrap_or(0);
    for (from, to) in GENERAL {
        state.gpr[to] = value(from).into();
    }
    for (from, to) in SEGMENTS {
        let selector = value(from);
        state.segments[to] = Segment { selector, base: u64::from(selector) << 4, ..state.segments[to] };
    }
    state.rip = value(IP).into();
    state.rflags = u64::from(value(FLAGS) & FLAGS_OF_80286) | flag::ONE;
}

fn registers(state: &State) -> [u16; 14] {
    let mut values = [0; 14];
    GENERAL.iter().for_each(|(to, from)| values[*to] = state.gpr[*from] as u16);
    SEGMENTS.iter().for_each(|(to, from)| values[*to] = state.segments[*from].selector);
    values[IP] = state.rip as u16;
    values[FLAGS] = state.rflags as u16;
    values
}

fn compare_registers(test: &Test, defined: u16, outcome: &mut Outcome) {
    for (number, value) in outcome.registers.into_iter().enumerate() {
        let before = test.before.registers[number].unwrap_or(0);
        let before = if number == FLAGS { before & FLAGS_OF_80286 } else { before };
        let expected = test.after.registers[number].unwrap_or(before);
        let mask = if number == FLAGS { defined } else { 0xffff };
        if (value ^ expected) & mask != 0 {
            outcome.differences.push(Difference::Register { number, value, expected });
        }
    }
}

/// The address at which an exception pushes FLAGS. The one in the test is too low by 1 if it is odd.
pub fn pushed_flags(test: &Test) -> u32 {
    let register = |number: usize| test.before.registers[number].unwrap_or(0);
    (u32::from(register(SS)) << 4) + u32::from(register(SP).wrapping_sub(2))
}

fn compare_byte(test: &Test, defined: u16, address: u32, value: u8, outcome: &mut Outcome) {
    let find = |memory: &[(u32, u8)]| memory.iter().rfind(|(at, _)| *at == address).map(|(_, value)| *value);
    let expected = find(&test.after.memory).or_else(|| find(&test.before.memory)).unwrap_or(0);
    let mask = match test.exception.map(|_| address.wrapping_sub(pushed_flags(test))) {
        Some(0) => defined as u8,
        Some(1) => (defined >> 8) as u8,
        _ => 0xff,
    };
    if (value ^ expected) & mask != 0 {
        outcome.differences.push(Difference::Byte { address, value, expected });
    }
}
