//! Makes a program that shows a difference smaller.

use crate::layout::{DATA, LAST_PAGE, PAGE};
use crate::program::{Config, Program};
use crate::runner::{Runner, Verdict};
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use softcpu::{flag, seg};
use std::fmt::Write;

/// Simplifies a program as long as it still shows a difference.
pub struct Minimizer<'a> {
    runner: &'a mut Runner,
    best: Program,
    lines: Vec<String>,
    /// The difference shows only on new machines.
    is_first: bool,
}

impl<'a> Minimizer<'a> {
    /// Returns the smallest program that was found, and its differences.
    pub fn run(runner: &'a mut Runner, program: &Program, lines: Vec<String>) -> (Program, Vec<String>) {
        let is_first = !matches!(runner.judge(program), Ok(Verdict::Different(_)));
        let mut minimizer = Self { runner, best: program.clone(), lines, is_first };
        for _ in 0..2 {
            minimizer.drop_instructions();
            minimizer.simplify_registers();
        }
        minimizer.clear_memory();
        (minimizer.best, minimizer.lines)
    }

    /// Changes the program, if it then still shows a difference.
    fn attempt(&mut self, change: impl Fn(&mut Program)) -> bool {
        let mut program = self.best.clone();
        change(&mut program);
        if program.state == self.best.state && program.image == self.best.image {
            return false;
        }
        if self.is_first && self.runner.fresh().is_err() {
            return false;
        }
        match self.runner.judge(&program) {
            Ok(Verdict::Different(lines)) => {
                (self.best, self.lines) = (program, lines);
                true
            }
            _ => false,
        }
    }

    /// Overwrites instructions with NOP.
    fn drop_instructions(&mut self) {
        for number in (0..self.best.pieces.len()).rev() {
            self.attempt(|program| {
                let piece = program.pieces[number];
                program.write(piece.at, &vec![0x90; piece.len]);
            });
        }
        // Start at the first instruction that is left.
        while let Some(piece) = self.best.pieces.first().copied() {
            let next = self.best.pieces.get(1).copied();
            let is_nop = self.best.read(piece.at, piece.len).iter().all(|byte| *byte == 0x90);
            let Some(next) = next.filter(|_| is_nop) else { break };
            let moved = self.attempt(|program| {
                program.state.rip = program.state.rip.wrapping_add(next.at.wrapping_sub(piece.at));
                program.pieces.remove(0);
            });
            if !moved {
                break;
            }
        }
    }

    fn simplify_registers(&mut self) {
        for number in 0..16 {
            // RSP stays in the stack: KVM cannot deliver exceptions elsewhere.
            let values: &[u64] =
                if number == 4 && self.best.id.config != Config::User { &[] } else { &[0, 1, 0x1_4400] };
            for value in values.iter().copied() {
                if self.best.state.gpr[number] == value
                    || self.attempt(|program| program.state.gpr[number] = value)
                {
                    break;
                }
            }
            self.attempt(|program| program.state.xmm[number] = 0);
            self.attempt(|program| program.state.xmm[number] &= u128::from(u64::MAX));
            self.attempt(|program| program.state.xmm[number] &= u128::from(u32::MAX));
        }
        self.attempt(|program| program.state.mxcsr = 0x1f80);
        self.attempt(|program| program.state.mxcsr &= !0x3f);
        // On a host without hardware virtualization, ring 3 sees IF set.
        let is_fixed = |bit: u32| self.best.id.config == Config::User && 1 << bit == flag::IF;
        for bit in (2..22).filter(|bit| !is_fixed(*bit)).collect::<Vec<_>>() {
            self.attempt(|program| program.state.rflags &= !(1 << bit));
        }
        if self.best.id.config.is_64() {
            for number in [seg::FS, seg::GS] {
                self.attempt(|program| program.state.segments[number].base = 0);
            }
        }
    }

    /// Clears data in smaller and smaller parts.
    fn clear_memory(&mut self) {
        let (start, end) = ((DATA / 8) as usize, ((LAST_PAGE + PAGE) / 8) as usize);
        let mut size = (end - start).next_power_of_two();
        while size > 0 {
            for first in (start..end).step_by(size) {
                let last = (first + size).min(end);
                if self.best.image[first..last].iter().all(|word| *word == 0) {
                    continue;
                }
                // Small parts only if few are left.
                let left = self.best.image[start..end].iter().filter(|word| **word != 0).count();
                if size < 64 && left > 512 {
                    return;
                }
                self.attempt(|program| program.image[first..last].fill(0));
            }
            size /= 2;
        }
    }
}

/// The instructions of a program without those that were dropped.
pub fn disassembly(program: &Program) -> Vec<String> {
    let mut formatter = NasmFormatter::new();
    let base = program.state.segments[seg::CS].base;
    let base = if program.id.config.is_64() { 0 } else { base };
    let mut lines = Vec::new();
    for piece in &program.pieces {
        let bytes = program.read(piece.at, piece.len);
        if bytes.iter().all(|byte| *byte == 0x90) {
            continue;
        }
        let rip = piece.at.wrapping_sub(base);
        let mut text = String::new();
        let mut hex = String::new();
        bytes.iter().for_each(|byte| {
            let _ = write!(hex, "{byte:02x}");
        });
        let insn = Decoder::with_ip(program.bits(), &bytes, rip, DecoderOptions::NONE).decode();
        formatter.format(&insn, &mut text);
        lines.push(format!("{rip:#x}: {hex:<22} {text}"));
    }
    lines
}

/// The registers at the start that are not zero, and the memory.
pub fn start(program: &Program) -> String {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    let state = &program.state;
    let mut text = format!("rflags={:#x} mxcsr={:#x}", state.rflags, state.mxcsr);
    for (name, value) in NAMES.into_iter().zip(state.gpr).filter(|(_, value)| *value != 0) {
        let _ = write!(text, " {name}={value:#x}");
    }
    for (number, name) in [(seg::FS, "fs"), (seg::GS, "gs")] {
        let base = state.segments[number].base;
        if base != 0 {
            let _ = write!(text, " {name}={base:#x}");
        }
    }
    for (number, value) in state.xmm.iter().enumerate().filter(|(_, value)| **value != 0) {
        let _ = write!(text, " xmm{number}={value:#x}");
    }
    let words = (DATA / 8) as usize..((LAST_PAGE + PAGE) / 8) as usize;
    let used: Vec<_> = words.filter(|word| program.image[*word] != 0).collect();
    if used.len() <= 16 {
        for word in used {
            let _ = write!(text, " [{:#x}]={:#x}", word * 8, program.image[word]);
        }
    }
    text
}
