//! Makes programs.

use crate::layout::{
    self, CODE, CODE_END, DATA, LAST_PAGE, LOW_STACK, MAPPED, OTHER_DATA, PAGE, READ_ONLY, RING_0, SEGMENTS,
    STACK, UNMAPPED,
};
use crate::opcodes::Opcodes;
use crate::operands::Maker;
use crate::program::{Config, Id, Piece, Program};
use crate::ring_0;
use crate::values;
use fastrand::Rng;
use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction};
use softcpu::{State, flag, seg};

/// The words that memory is filled from.
const POOL: usize = 8192;

/// Makes the programs of a seed.
pub struct Generator {
    seed: u64,
    opcodes: Vec<((Config, u32), Opcodes)>,
    images: [Vec<u64>; 5],
    pool: Vec<u64>,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        let kinds = [
            (Config::User, 64),
            (Config::Long, 64),
            (Config::Protected, 32),
            (Config::Protected, 16),
            (Config::Real, 16),
            (Config::Protected16, 16),
        ];
        let opcodes = kinds.map(|(config, bits)| ((config, bits), Opcodes::new(config, bits))).into();
        let mut rng = Rng::with_seed(seed ^ 0x6a09_e667_f3bc_c908);
        let pool = (0..POOL).map(|_| values::word(&mut rng)).collect();
        Self { seed, opcodes, images: Config::ALL.map(layout::image), pool }
    }

    /// The choices of a program. Different programs have unrelated choices.
    fn choices(&self, id: Id) -> Rng {
        let config = (id.config as u64 & 3) ^ (id.config as u64 >> 2 << 62);
        let mixed = self.seed ^ (id.number << 2 ^ config).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Rng::with_seed(Rng::with_seed(mixed).u64(..))
    }

    /// Makes a program.
    pub fn program(&self, id: Id) -> Program {
        let mut rng = self.choices(id);
        let config = id.config;
        let image = self.images[config as usize].clone();
        let mut program = Program { id, state: layout::state(config), image, pieces: Vec::new() };
        self.fill(&mut program, &mut rng);
        registers(&mut program, &mut rng);
        if ring_0::is_extended(config) {
            // Choices of their own, so that the other programs of a seed stay the same.
            let mut choices = Rng::with_seed(rng.clone().u64(..));
            if choices.u8(..4) != 0 {
                ring_0::extend(&mut program, self, &mut choices);
                return program;
            }
        }
        let bits = program.bits();
        let Some(opcodes) = self.opcodes(config, bits) else { return program };
        code(&mut program, opcodes, &mut rng);
        program
    }

    /// The encodings for code of this width.
    pub fn opcodes(&self, config: Config, bits: u32) -> Option<&Opcodes> {
        self.opcodes.iter().find(|(kind, _)| *kind == (config, bits)).map(|(_, opcodes)| opcodes)
    }

    /// Fills data and stack.
    fn fill(&self, program: &mut Program, rng: &mut Rng) {
        for page in (DATA..LAST_PAGE + PAGE).step_by(PAGE as usize) {
            let from = rng.usize(..POOL - 512);
            let to = (page / 8) as usize;
            program.image[to..to + 512].copy_from_slice(&self.pool[from..from + 512]);
        }
        for _ in 0..32 {
            let at = (DATA / 8 + rng.u64(..(LAST_PAGE + PAGE - DATA) / 8)) as usize;
            program.image[at] = values::word(rng);
        }
        if program.id.config == Config::Protected16 {
            let (from, to) = ((STACK / 8) as usize, (LOW_STACK / 8) as usize);
            program.image.copy_within(from..from + 512, to);
        }
        // Return addresses.
        let start = (STACK / 8) as usize;
        let base = program.state.segments[seg::CS].base;
        let base = if program.id.config.is_segmented() { base.max(CODE) } else { 0 };
        for word in &mut program.image[start..start + 1024] {
            if rng.u8(..4) == 0 {
                *word = CODE_END - PAGE - base + rng.u64(..PAGE);
            }
        }
    }
}

/// An address of data, with a low probability of a fault.
pub fn address(rng: &mut Rng) -> u64 {
    let middle = |page: u64, rng: &mut Rng| page + 0x200 + rng.u64(..0xc00);
    match rng.u8(..64) {
        0 => UNMAPPED + rng.u64(..PAGE),
        1 => READ_ONLY + rng.u64(..PAGE),
        2 => RING_0 + rng.u64(..PAGE),
        3 => UNMAPPED - rng.u64(..32),
        4 => READ_ONLY - rng.u64(..32),
        5 => READ_ONLY + PAGE - rng.u64(..32),
        6 => LAST_PAGE + PAGE - rng.u64(..32),
        7 => LAST_PAGE + PAGE + rng.u64(..MAPPED - LAST_PAGE - PAGE),
        8 => 0x1_0000_0000 - rng.u64(..48),
        9 => 0x8000_0000_0000 - rng.u64(..48),
        10 => DATA + PAGE - rng.u64(..32),
        11 => values::integer(rng),
        12..20 => middle(OTHER_DATA, rng),
        20..28 => middle(STACK, rng),
        28..32 => middle(LAST_PAGE, rng),
        32..48 => middle(DATA, rng),
        _ => middle(DATA + PAGE, rng),
    }
}

/// An address of data in the middle of a page.
pub fn good_address(rng: &mut Rng) -> u64 {
    *values::pick(rng, &[DATA, DATA, DATA + PAGE, OTHER_DATA]) + 0x300 + rng.u64(..0xa00)
}

/// Random registers.
fn registers(program: &mut Program, rng: &mut Rng) {
    let config = program.id.config;
    let state = &mut program.state;
    for register in &mut state.gpr {
        *register = match rng.u8(..8) {
            0..2 => address(rng),
            2 => CODE_END - PAGE + rng.u64(..PAGE),
            _ => values::integer(rng),
        };
    }
    for number in [3, 6, 7] {
        state.gpr[number] = if rng.u8(..8) == 0 { address(rng) } else { good_address(rng) };
    }
    if rng.u8(..8) != 0 {
        state.gpr[1] = rng.u64(..24);
    }
    state.gpr[4] = STACK + 0x400 + (rng.u64(..0x1800) & if rng.u8(..8) == 0 { !0 } else { !7 });
    if rng.u8(..8) != 0 {
        state.gpr[5] = STACK + 0x400 + (rng.u64(..0x1800) & !7);
    }
    state.rflags |= rng.u64(..) & (flag::STATUS | flag::ID);
    if rng.u8(..4) == 0 {
        state.rflags |= flag::DF;
    }
    if rng.u8(..32) == 0 {
        state.rflags |= flag::AC;
    }
    if config == Config::User {
        // On a host without hardware virtualization, ring 3 sees IF set.
        state.rflags |= flag::IF;
        state.xmm.iter_mut().for_each(|register| *register = values::wide(rng));
        state.mxcsr = values::mxcsr(rng);
        for number in [seg::FS, seg::GS] {
            state.segments[number].base = if rng.bool() { 0 } else { rng.u64(..0x100) };
        }
    }
    if !config.is_64() {
        segmented(state, config, rng);
    }
}

/// Registers of 16- and 32-bit code.
fn segmented(state: &mut State, config: Config, rng: &mut Rng) {
    if !config.is_segmented() {
        state.gpr.iter_mut().for_each(|register| *register &= 0xffff_ffff);
        state.gpr[8..].fill(0);
        return;
    }
    if config == Config::Real {
        for (number, _, base) in SEGMENTS {
            state.segments[number].base = base;
            state.segments[number].selector = (base >> 4) as u16;
        }
    }
    state.gpr[8..].fill(0);
    for (number, register) in state.gpr[..8].iter_mut().enumerate() {
        // Most offsets are in one page.
        *register &= 0xffff_ffff;
        if matches!(number, 3..8) && rng.u8(..16) != 0 {
            *register &= if number == 4 { 0x1ffe } else { 0xfff };
        }
    }
    if config == Config::Protected16 {
        for number in [4, 5] {
            state.gpr[number] = LOW_STACK + 0x200 + (state.gpr[number] & 0xb7e);
        }
    }
    state.rip = 0;
}

/// Writes random instructions.
fn code(program: &mut Program, opcodes: &Opcodes, rng: &mut Rng) {
    let bits = program.bits();
    let base = program.state.segments[seg::CS].base;
    // Some programs cross the end of a page.
    let start = match rng.u8(..16) {
        0 => CODE + PAGE - rng.u64(..40),
        1 if rng.u8(..8) == 0 => CODE_END - 1 - rng.u64(..40),
        _ => CODE + rng.u64(..64),
    };
    program.state.rip = start.wrapping_sub(base);
    let count = 1 + rng.usize(..6) + if rng.bool() { 0 } else { rng.usize(..7) };
    let maker = Maker::new(&program.state, bits, program.id.config);
    let pieces = instructions(&maker, opcodes, (program.state.rip, bits), count, rng);
    let mut starts = vec![start];
    for (_, bytes) in &pieces {
        starts.push(starts[starts.len() - 1] + bytes.len() as u64);
    }
    for (number, (insn, mut bytes)) in pieces.into_iter().enumerate() {
        let at = starts[number];
        if let Some(mut branch) = insn {
            // Only forward, so that few programs are endless.
            let target = starts[rng.usize(number + 1..starts.len())].wrapping_sub(base);
            retarget(&mut branch, target);
            let mut encoder = Encoder::new(bits);
            if encoder.encode(&branch, at.wrapping_sub(base)).is_err() {
                break;
            }
            bytes = encoder.take_buffer();
        }
        program.write(at, &bytes);
        program.pieces.push(Piece { at, len: bytes.len(), bits, base });
    }
}

/// Makes random instructions. Branches are returned with their bytes, because their targets are not known yet.
fn instructions(
    maker: &Maker,
    opcodes: &Opcodes,
    (rip, bits): (u64, u32),
    count: usize,
    rng: &mut Rng,
) -> Vec<(Option<Instruction>, Vec<u8>)> {
    let mut encoder = Encoder::new(bits);
    let mut made = Vec::new();
    for _ in 0..count * 4 {
        if made.len() == count {
            break;
        }
        let Some(insn) = maker.instruction(opcodes.choose(rng), rip, rng) else { continue };
        let _ = encoder.take_buffer();
        if encoder.encode(&insn, rip).is_err() {
            continue;
        }
        let bytes = encoder.take_buffer();
        let is_branch = insn.code().is_jcc_short_or_near() || is_near(insn.code());
        // An address relative to RIP is encoded for the start of the program, so its target moves with the instruction.
        made.push(if is_branch { (Some(insn), bytes) } else { (None, mutate(bytes, bits, rng)) });
    }
    made
}

/// True for other direct near branches.
pub fn is_near(code: Code) -> bool {
    code.is_jmp_short_or_near()
        || code.is_call_near()
        || code.is_loop()
        || code.is_loopcc()
        || code.is_jcx_short()
}

pub fn retarget(insn: &mut Instruction, target: u64) {
    use iced_x86::OpKind;
    match insn.op0_kind() {
        OpKind::NearBranch16 => insn.set_near_branch16(target as u16),
        OpKind::NearBranch32 => insn.set_near_branch32(target as u32),
        _ => insn.set_near_branch64(target),
    }
}

/// Adds prefixes to a few instructions.
pub fn mutate(bytes: Vec<u8>, bits: u32, rng: &mut Rng) -> Vec<u8> {
    if rng.u8(..60) != 0 {
        return bytes;
    }
    const PREFIXES: [u8; 11] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
    let mut changed = bytes.clone();
    for _ in 0..1 + rng.u8(..3) / 2 {
        let prefix =
            if bits == 64 && rng.u8(..4) == 0 { 0x40 | rng.u8(..16) } else { *values::pick(rng, &PREFIXES) };
        changed.insert(0, prefix);
    }
    let mut decoder = Decoder::with_ip(bits, &changed, 0, DecoderOptions::NONE);
    let insn = decoder.decode();
    let was = Decoder::with_ip(bits, &bytes, 0, DecoderOptions::NONE).decode();
    // Only what is an instruction of the same name, or none, is known to be harmless.
    let is_invalid = insn.is_invalid() && changed.contains(&0xf0);
    if is_invalid || insn.mnemonic() == was.mnemonic() { changed } else { bytes }
}
