//! Makes a program that shows a difference smaller.

use crate::layout::{self, DATA, LAST_PAGE, PAGE};
use crate::program::{Config, Program};
use crate::ring_0;
use crate::runner::{Runner, Verdict};
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use softcpu::{flag, seg};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// The longest time for one program.
const MOST_TIME: Duration = Duration::from_secs(20);

/// The parts of memory that hold tables.
const TABLES: [(u64, u64); 4] = [
    (layout::GDT, layout::GDT + 0x200),
    (layout::LDT, layout::LDT + 0x100),
    (layout::IDT, layout::TASK + 0x70),
    (layout::TABLES, layout::CODE),
];

/// Simplifies a program as long as it still shows a difference.
pub struct Minimizer<'a> {
    runner: &'a mut Runner,
    best: Program,
    lines: Vec<String>,
    /// The difference shows only on new machines.
    is_first: bool,
    started: Instant,
}

impl<'a> Minimizer<'a> {
    /// Returns the smallest program that was found, and its differences.
    pub fn run(runner: &'a mut Runner, program: &Program, lines: Vec<String>) -> (Program, Vec<String>) {
        let is_first = !matches!(runner.judge(program), Ok(Verdict::Different(_)));
        let mut minimizer = Self { runner, best: program.clone(), lines, is_first, started: Instant::now() };
        for _ in 0..2 {
            minimizer.drop_instructions();
            minimizer.simplify_registers();
            if ring_0::is_extended(program.id.config) {
                minimizer.restore_tables();
            }
        }
        minimizer.clear_memory();
        (minimizer.best, minimizer.lines)
    }

    /// Changes the program, if it then still shows a difference.
    fn attempt(&mut self, change: impl Fn(&mut Program)) -> bool {
        let mut program = self.best.clone();
        change(&mut program);
        let is_same = program.state == self.best.state && program.image == self.best.image;
        if is_same || self.started.elapsed() > MOST_TIME {
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

    /// Restores the usual tables, in smaller and smaller parts, and the usual control registers.
    fn restore_tables(&mut self) {
        let usual = layout::state(self.best.id.config);
        self.attempt(|program| program.state.gdtr = usual.gdtr);
        self.attempt(|program| program.state.idtr = usual.idtr);
        self.attempt(|program| program.state.ldtr = usual.ldtr);
        for index in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            self.attempt(|program| program.state.segments[index] = usual.segments[index]);
        }
        self.attempt(|program| program.state.cr0 = usual.cr0);
        self.attempt(|program| program.state.cr3 = usual.cr3);
        self.attempt(|program| program.state.cr4 = usual.cr4);
        self.attempt(|program| program.state.efer = usual.efer);
        let image = layout::image(self.best.id.config);
        for (start, end) in TABLES {
            let mut size = ((end - start) / 8).next_power_of_two();
            while size > 0 {
                for first in (start / 8..end / 8).step_by(size as usize) {
                    let range = first as usize..(first + size).min(end / 8) as usize;
                    self.attempt(|program| {
                        program.image[range.clone()].copy_from_slice(&image[range.clone()]);
                    });
                }
                size /= 2;
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
    let mut lines = Vec::new();
    for piece in &program.pieces {
        let bytes = program.read(piece.at, piece.len);
        if bytes.iter().all(|byte| *byte == 0x90) {
            continue;
        }
        let rip = piece.at.wrapping_sub(if piece.bits == 64 { 0 } else { piece.base });
        let mut text = String::new();
        let mut hex = String::new();
        bytes.iter().for_each(|byte| {
            let _ = write!(hex, "{byte:02x}");
        });
        let insn = Decoder::with_ip(piece.bits, &bytes, rip, DecoderOptions::NONE).decode();
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
    tables(program, &mut text);
    let words = (DATA / 8) as usize..((LAST_PAGE + PAGE) / 8) as usize;
    let used: Vec<_> = words.filter(|word| program.image[*word] != 0).collect();
    if used.len() <= 16 {
        for word in used {
            let _ = write!(text, " [{:#x}]={:#x}", word * 8, program.image[word]);
        }
    }
    text
}

/// The tables and control registers that are not the usual ones.
fn tables(program: &Program, text: &mut String) {
    let (state, usual) = (&program.state, layout::state(program.id.config));
    if !ring_0::is_extended(program.id.config) {
        return;
    }
    for (name, value, usual) in [
        ("cr0", state.cr0, usual.cr0),
        ("cr3", state.cr3, usual.cr3),
        ("cr4", state.cr4, usual.cr4),
        ("efer", state.efer, usual.efer),
        ("gdtr.limit", state.gdtr.limit.into(), usual.gdtr.limit.into()),
        ("idtr.limit", state.idtr.limit.into(), usual.idtr.limit.into()),
        ("ldtr", state.ldtr.selector.into(), usual.ldtr.selector.into()),
    ] {
        if value != usual {
            let _ = write!(text, " {name}={value:#x}");
        }
    }
    for (index, name) in [(seg::ES, "es"), (seg::SS, "ss"), (seg::DS, "ds"), (seg::FS, "fs"), (seg::GS, "gs")]
    {
        let segment = state.segments[index];
        if segment != usual.segments[index] {
            let _ = write!(text, " {name}={segment:x?}");
        }
    }
    let image = layout::image(program.id.config);
    for (start, end) in TABLES {
        for at in (start..end).step_by(8) {
            let word = (at / 8) as usize;
            if program.image[word] != image[word] {
                let _ = write!(text, " [{at:#x}]={:#x}", program.image[word]);
            }
        }
    }
}
