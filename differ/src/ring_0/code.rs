//! The code: random instructions, and sequences that use tables and modes.

use super::assembler::Assembler;
use crate::generate::Generator;
use crate::layout::{CODE, PAGE};
use crate::operands::Maker;
use crate::program::{Config, Program};
use fastrand::Rng;
use softcpu::seg;

/// Writes the code of a program.
pub fn write(program: &mut Program, generator: &Generator, rng: &mut Rng) {
    let base = if program.state.is_64() { 0 } else { program.state.segments[seg::CS].base };
    let start = if rng.u8(..16) == 0 { CODE + PAGE - rng.u64(..60) } else { CODE + rng.u64(..64) };
    program.state.rip = start.wrapping_sub(base);
    let config = program.id.config;
    let state = program.state.clone();
    let count = 1 + rng.usize(..8);
    let mut code = Assembler::new(program, rng, start);
    for _ in 0..count {
        match code.rng.u8(..8) {
            0..3 => code.transfer(),
            3..6 => code.system(),
            _ => random(&mut code, generator, config, &state),
        }
    }
    code.finish();
}

/// An instruction of any kind.
fn random(code: &mut Assembler, generator: &Generator, config: Config, state: &softcpu::State) {
    let bits = code.context.bits;
    let like = match (bits, code.context.is_protected) {
        (64, _) => Config::Long,
        (32, _) => Config::Protected,
        (_, true) => Config::Protected16,
        (_, false) => Config::Real,
    };
    let like = if like == Config::Protected16 && config != like { Config::Protected } else { like };
    let Some(opcodes) = generator.opcodes(like, bits) else { return };
    let maker = Maker::new(state, bits, like);
    for _ in 0..8 {
        let rip = code.rip();
        let insn = maker.instruction(opcodes.choose(code.rng), rip, code.rng);
        if let Some(insn) = insn {
            code.instruction(&insn);
            return;
        }
    }
}
