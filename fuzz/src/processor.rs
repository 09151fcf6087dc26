//! Guests of the software processor: registers, tables and code in all modes, valid in most parts.

use crate::Script;
use softcpu::{Memory, Segment, State, Table, cr0, cr4, efer, flag, seg};
use std::cell::RefCell;
use std::ops::Range;

/// The size of guest memory in bytes.
pub const RAM: usize = 0x1_2000;
/// The paging structures: the top one, its successors, and the last one, one page each.
pub const TABLES: Range<usize> = 0x1000..0x5000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const CODE: u64 = 0x8000;
const STACK: u64 = 0xf000;
/// The memory that code without rights may write: some pages of data, and its code.
pub const JAIL: Range<usize> = 0x8000..0x1_0000;
/// The last index of the GDT.
const DESCRIPTORS: u64 = 16;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 0x80;

/// A guest before its first instruction.
pub struct Guest {
    /// The content of memory.
    pub memory: Vec<u8>,
    /// The registers.
    pub state: State,
    /// The guest runs in ring 3 without gates, descriptors and writable tables: it can write only [`JAIL`].
    pub is_jailed: bool,
    /// The source of the answers to exits, and of the lengths of slices.
    pub seed: u64,
}

/// Guest memory.
pub struct Ram(RefCell<Vec<u8>>);

impl Ram {
    /// Memory with this content.
    pub fn new(content: &[u8]) -> Self {
        Self(RefCell::new(content.to_vec()))
    }

    /// The content.
    pub fn content(&self) -> Vec<u8> {
        self.0.borrow().clone()
    }
}

impl Memory for Ram {
    type Page = usize;

    fn page(&self, gpa: u64) -> Option<usize> {
        (gpa < RAM as u64).then_some(gpa as usize & !0xfff)
    }

    fn load<const SIZE: usize>(&self, page: usize, offset: usize) -> u64 {
        assert!(offset + SIZE <= 0x1000, "an access beyond a page");
        let mut word = [0; 8];
        word[..SIZE].copy_from_slice(&self.0.borrow()[page + offset..][..SIZE]);
        u64::from_le_bytes(word)
    }

    fn store<const SIZE: usize>(&self, page: usize, offset: usize, value: u64) {
        assert!(offset + SIZE <= 0x1000, "an access beyond a page");
        self.0.borrow_mut()[page + offset..][..SIZE].copy_from_slice(&value.to_le_bytes()[..SIZE]);
    }
}

/// The mode in which a guest starts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Real,
    Protected16,
    Protected32,
    Compatibility,
    Long,
}

/// Builds a guest.
pub fn build(script: &mut Script) -> Guest {
    let mode =
        script.pick(&[Mode::Long, Mode::Protected32, Mode::Real, Mode::Protected16, Mode::Compatibility]);
    let is_jailed = mode != Mode::Real && script.one_in(4);
    let user = is_jailed || mode != Mode::Real && script.one_in(3);
    let mut memory = vec![0; RAM];
    let mut state = State::default();
    (state.rip, state.rflags) = (CODE, flag::ONE | script.pick(&[0, flag::DF, flag::AC, flag::IOPL]));
    if is_jailed {
        state.rflags &= !flag::IOPL;
    }
    state.cr4 |= cr4::OSFXSR | script.pick(&[0, cr4::DE, cr4::OSXMMEXCPT, cr4::TSD]);
    segments(&mut state, mode, user);
    paging(script, &mut memory, &mut state, mode, is_jailed);
    tables(script, &mut memory, &mut state, mode, is_jailed);
    for register in &mut state.gpr {
        *register = place(script);
    }
    state.gpr[4] = if script.one_in(4) { place(script) } else { STACK };
    let code = code(script, mode);
    let start = if script.one_in(4) { 0x8ff0 } else { CODE };
    state.rip = start;
    put(&mut memory, start, &code);
    if !is_jailed && script.one_in(8) {
        damage(script, &mut memory, &mut state);
    }
    let seed = script.any();
    Guest { memory, state, is_jailed, seed }
}

/// Sets the segment registers: flat, or in real mode at 0.
fn segments(state: &mut State, mode: Mode, user: bool) {
    let dpl = if user { 3 } else { 0 };
    if mode == Mode::Real {
        (state.segments[seg::CS].selector, state.segments[seg::CS].base) = (0, 0);
        return;
    }
    state.cr0 |= cr0::PE;
    let is_wide = mode != Mode::Protected16;
    let flat = Segment {
        base: 0,
        limit: if is_wide { 0xffff_ffff } else { 0xffff },
        kind: 3,
        code_or_data: true,
        dpl,
        present: true,
        big: is_wide,
        pages: is_wide,
        ..Segment::default()
    };
    let code = Segment {
        kind: 0xb,
        selector: if user { 0x1b } else { 8 },
        long: mode == Mode::Long,
        big: is_wide && mode != Mode::Long,
        ..flat
    };
    state.segments = [Segment { selector: if user { 0x23 } else { 0x10 }, ..flat }; 6];
    state.segments[seg::CS] = code;
}

/// Switches paging on, except in real mode and in some cases, and writes the paging structures.
fn paging(script: &mut Script, memory: &mut [u8], state: &mut State, mode: Mode, is_jailed: bool) {
    let is_long = matches!(mode, Mode::Compatibility | Mode::Long);
    if mode == Mode::Real || (!is_long && !is_jailed && script.one_in(2)) {
        return;
    }
    let wide = is_long || script.one_in(2);
    state.cr0 |= cr0::PG | script.pick(&[cr0::WP, 0, cr0::AM]);
    state.cr4 |= cr4::PSE | if wide { cr4::PAE } else { 0 };
    state.cr3 = TABLES.start as u64;
    if is_long {
        state.efer |= efer::LME | efer::LMA | efer::NXE;
    }
    let flags = PRESENT | WRITABLE | USER;
    let [top, second, third, last] = [0, 1, 2, 3].map(|level| TABLES.start as u64 + 0x1000 * level);
    let size = if wide { 8 } else { 4 };
    let mut entry = |table: u64, index: u64, value: u64| {
        put(memory, table + index * size, &value.to_le_bytes()[..size as usize])
    };
    let directory = if is_long {
        entry(top, 0, second | flags);
        entry(second, 0, third | flags);
        third
    } else {
        top
    };
    if wide && !is_long {
        state.pdptrs = [directory | PRESENT, 0, 0, 0];
    }
    entry(directory, 0, last | flags);
    for page in 0..RAM as u64 / 0x1000 + 2 {
        let start = page * 0x1000;
        let is_inside = JAIL.contains(&(start as usize));
        let rights = match is_jailed {
            true if is_inside => flags,
            true => script.pick(&[PRESENT, PRESENT | WRITABLE, PRESENT | USER, 0]),
            false if script.one_in(8) => script.any::<u8>().into(),
            false => flags,
        };
        entry(last, page, start | rights);
    }
    if is_jailed {
        return;
    }
    // Structures that map themselves, large pages, and any entries.
    for _ in 0..script.below(4) {
        let table = script.pick(&[top, second, third, last]);
        let index = script.pick(&[1, 2, 0x1fe, 0x1ff, 0, 0xff]);
        let value = match script.below(4) {
            0 => table | flags,
            1 => top | flags,
            2 => place(script) & !0xfff | flags | LARGE,
            _ => script.any(),
        };
        entry(table, index, value);
    }
}

/// Writes the descriptor tables, at their usual places or at the ends of memory.
fn tables(script: &mut Script, memory: &mut [u8], state: &mut State, mode: Mode, is_jailed: bool) {
    (state.idtr, state.gdtr) = (Table::default(), Table::default());
    (state.tr.unusable, state.ldtr.unusable) = (true, true);
    if is_jailed {
        return;
    }
    let bases = [IDT, RAM as u64 - 0x40, RAM as u64 - 4, u64::MAX - 0x1f, 0, 0xffff_fff0];
    let idt = if script.one_in(4) { script.pick(&bases) } else { IDT };
    let gdt = if script.one_in(8) { script.pick(&bases) } else { GDT };
    state.idtr = Table { base: idt, limit: script.pick(&[0xfff, 0xffff, 0x3f, 0]) };
    state.gdtr = Table { base: gdt, limit: script.pick(&[8 * DESCRIPTORS as u16 + 7, 0xffff, 0x1f, 3]) };
    if !script.one_in(4) {
        state.tr = Segment { selector: 0x28, base: TSS, limit: 0x67, kind: 0xb, present: true, ..state.tr };
        state.tr.unusable = false;
    }
    put(memory, TSS + 4, &STACK.to_le_bytes());
    put(memory, TSS + 8, &0x10u64.to_le_bytes());
    put(memory, TSS + 0x24, &place(script).to_le_bytes());
    let code: u64 = if mode == Mode::Long { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
    let data: u64 = 0x00cf_9300_0000_ffff;
    let ring_3: u64 = 3 << 45;
    for (index, value) in
        [0, code, data, code | ring_3, data | ring_3, 0x0000_8b00_7000_0067].iter().enumerate()
    {
        put(memory, GDT + 8 * index as u64, &u64::to_le_bytes(*value));
    }
    for index in 6..DESCRIPTORS {
        let kind = script.any::<u8>();
        let value = code & !(0xff << 40) | u64::from(kind) << 40 | script.below(0x10) << 16;
        put(memory, GDT + 8 * index, &value.to_le_bytes());
    }
    for vector in 0..32u64 {
        let handler = CODE + script.below(64) * 7;
        if mode == Mode::Real {
            put(memory, vector * 4, &(handler as u32).to_le_bytes());
            continue;
        }
        let kind = script.pick(&[0x8e, 0xee, 0x8f, 0xef, 0x86, 0x85, 0x8c]);
        let selector = script.pick(&[8, 8, 8, 0x1b, 0x30, 0]);
        let stack = if script.one_in(8) { script.below(8) } else { 0 };
        let gate = handler & 0xffff | selector << 16 | stack << 32 | kind << 40;
        let size = if matches!(mode, Mode::Long | Mode::Compatibility) { 16 } else { 8 };
        put(memory, IDT + vector * size, &gate.to_le_bytes());
    }
}

/// An address or a count: in the code, in data, at the end of a page, of memory, in MMIO, or any number.
fn place(script: &mut Script) -> u64 {
    match script.below(12) {
        0 | 1 => CODE + script.below(256),
        2 | 3 => 0xc000 + script.below(256),
        4 => 0x8ff8 + script.below(16),
        5 => RAM as u64 - 8 + script.below(16),
        6 => RAM as u64 + 0x1000 * script.below(4),
        7 => {
            script.pick(&[TABLES.start as u64, TABLES.end as u64 - 0x1000, GDT, IDT, TSS, 0])
                + script.below(64)
        }
        8 => script.below(256),
        9 => u64::MAX - script.below(256),
        10 => 0xffff_ffff - script.below(256),
        _ => script.any(),
    }
}

/// Code: instructions with any prefixes, far jumps, or any bytes.
fn code(script: &mut Script, mode: Mode) -> Vec<u8> {
    let mut code = Vec::new();
    let kind = script.below(8);
    let count = 1 + script.below(48);
    for _ in 0..count {
        match kind {
            0 => code.extend(script.any::<u32>().to_le_bytes()),
            1 => far_jump(script, &mut code, mode),
            _ => instruction(script, &mut code),
        }
    }
    // Back to a place in the code.
    let back = 2 + script.below(120) as u8;
    code.extend([0xeb, back.wrapping_neg()]);
    code
}

fn far_jump(script: &mut Script, code: &mut Vec<u8>, mode: Mode) {
    let target = CODE + script.below(128);
    let selector = script.pick(&[8u16, 8, 0, 0x1b, 0x30, 0x38, 0x800]);
    match script.below(4) {
        // JMP FAR ptr16:16 or ptr16:32.
        0 | 1 => {
            let size = if matches!(mode, Mode::Real | Mode::Protected16) { 2 } else { 4 };
            code.push(script.pick(&[0xea, 0x9a]));
            code.extend(&target.to_le_bytes()[..size]);
        }
        // PUSH, PUSH, RETF.
        2 => {
            code.push(0x68);
            code.extend(u32::from(selector).to_le_bytes());
            code.push(0x68);
            code.extend((target as u32).to_le_bytes());
            code.extend([0x48, 0xcb]);
            return;
        }
        _ => code.extend([0xff, script.pick(&[0x28, 0x2b, 0x1b])]),
    }
    code.extend(selector.to_le_bytes());
}

/// Prefixes, an opcode, a ModRM byte, and a short displacement or immediate.
fn instruction(script: &mut Script, code: &mut Vec<u8>) {
    const PREFIXES: [u8; 12] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x48];
    let prefixes = match script.below(16) {
        0..10 => 0,
        10..14 => 1 + script.below(3),
        _ => script.below(16),
    };
    for _ in 0..prefixes {
        code.push(script.pick(&PREFIXES));
    }
    match script.below(8) {
        0..3 => code.push(script.any()),
        3 => code.extend([0x0f, script.any()]),
        4 => code.extend([0x0f, script.pick(&[0x38, 0x3a]), script.any()]),
        // Stores, string instructions and others that touch much.
        5 => {
            code.push(script.pick(&[0x88, 0x89, 0xa4, 0xa5, 0xaa, 0xab, 0xc6, 0xc7, 0x80, 0x01, 0x8f, 0x60]))
        }
        6 => {
            code.push(script.pick(&[0x6c, 0x6d, 0x6e, 0x6f, 0xec, 0xee, 0xcf, 0xcb, 0xcd, 0x9d, 0x8e, 0xc8]))
        }
        _ => {
            // A repeated store, or a store near RIP.
            code.extend(script.pick(&[[0xf3, 0xaa], [0xf3, 0xa5], [0xf2, 0xae], [0xf3, 0x6e], [0x48, 0x89]]));
        }
    }
    code.push(script.any());
    let more = script.below(6);
    code.extend((0..more).map(|_| script.any::<u8>()));
}

/// Changes registers and memory.
fn damage(script: &mut Script, memory: &mut [u8], state: &mut State) {
    for _ in 0..1 + script.below(6) {
        match script.below(10) {
            0 => state.cr0 ^= script.pick(&[cr0::PE, cr0::PG, cr0::WP, cr0::TS, cr0::EM, cr0::AM]),
            1 => state.cr4 = script.any(),
            2 => state.efer = script.any::<u16>().into(),
            3 => state.cr3 = place(script),
            4 => state.rflags = script.any::<u32>().into(),
            5 => state.segments[script.below(6) as usize].base = place(script),
            6 => state.segments[script.below(6) as usize].limit = script.any(),
            7 => state.segments[script.below(6) as usize].kind = script.below(16) as u8,
            8 => state.rip = place(script),
            _ => put(memory, place(script), &script.any::<u64>().to_le_bytes()),
        }
    }
}

fn put(memory: &mut [u8], at: u64, bytes: &[u8]) {
    let start = usize::try_from(at).unwrap_or(usize::MAX);
    if let Some(to) = memory.get_mut(start..start.saturating_add(bytes.len())) {
        to.copy_from_slice(bytes);
    }
}
