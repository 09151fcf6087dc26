//! The integer instructions against the results of a real processor, among them the flags that the SDM leaves undefined:
//! each line of `vectors.txt` is one instruction.

#![allow(clippy::unwrap_used)]

use softcpu::{Cpu, Exit, Segment, State, Table, VecMemory, cr0, cr4, efer, seg};

/// The linear addresses of the page of code, and of six pages of data. The fifth page of data is not present, and the
/// sixth is read-only. 16-bit code has segments with these bases.
const CODE: u64 = 0x1000_0000;
const DATA: u64 = 0x2000_0000;
/// The offset of the instruction in its page.
const START: u64 = 0x800;
/// The physical addresses of the paging structures, the code and the data.
const TABLES: u64 = 0x1000;
const CODE_AT: u64 = 0x8000;
const DATA_AT: u64 = 0x9000;
const DATA_SIZE: usize = 6 * 4096;
/// CF, PF, AF, ZF, SF, DF and OF.
const FLAGS: u64 = 0xcd5;
const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap()
}

fn bytes(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| hex(&text[2 * at..2 * at + 2]) as u8).collect()
}

/// The bytes of the data pages: SplitMix64.
fn data() -> Vec<u8> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let a = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let b = (a ^ a >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (b ^ b >> 31) as u8
    };
    (0..DATA_SIZE).map(|_| next()).collect()
}

fn memory(code: &[u8], data: &[u8]) -> VecMemory {
    let memory = VecMemory::new(0x10000);
    let entry = |at: u64, value: u64| memory.write((TABLES + at) as usize, &value.to_le_bytes());
    entry(0, TABLES + 0x1007);
    entry(0x1000, TABLES + 0x2007);
    entry(0x2000 + 8 * (CODE >> 21), TABLES + 0x3007);
    entry(0x2000 + 8 * (DATA >> 21), TABLES + 0x4007);
    entry(0x3000, CODE_AT | 0x25);
    for (page, rights) in [7, 7, 7, 7, 0, 5].into_iter().enumerate() {
        entry(0x4000 + 8 * page as u64, (DATA_AT + 4096 * page as u64) | rights);
    }
    memory.write((CODE_AT + START) as usize, code);
    memory.write(DATA_AT as usize, data);
    memory
}

/// A processor in ring 3, without a handler for any exception.
fn state(bits: u32) -> State {
    let segment = |base, limit, kind, big, long| Segment {
        selector: 3,
        base,
        limit,
        kind,
        code_or_data: true,
        dpl: 3,
        present: true,
        available: false,
        long,
        big,
        pages: limit == u32::MAX,
        unusable: false,
    };
    let (code, data) = match bits {
        16 => (segment(CODE, 0xffff, 0xb, false, false), segment(DATA, 0x5fff, 3, false, false)),
        _ => (segment(0, u32::MAX, 0xb, bits == 32, bits == 64), segment(0, u32::MAX, 3, true, false)),
    };
    let mut state = State {
        cr0: cr0::PE | cr0::PG | cr0::WP | cr0::ET | cr0::NE,
        cr3: TABLES,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA | efer::NXE,
        gpr: [0; 16],
        idtr: Table::default(),
        segments: [data; 6],
        rip: if bits == 16 { START } else { CODE + START },
        ..State::default()
    };
    state.segments[seg::CS] = code;
    state
}

/// The registers, flags and data after an instruction, and the fault that ended it.
#[derive(Debug, PartialEq)]
struct Outcome {
    gpr: [u64; 16],
    rip: u64,
    flags: u64,
    fault: Option<(u64, u64, u64)>,
    data: Vec<u8>,
}

/// Changes registers and memory as the words of a line say.
fn apply(words: &str, outcome: &mut Outcome) {
    for word in words.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap();
        match name {
            "flags" => outcome.flags = hex(value),
            "rip" => outcome.rip = hex(value),
            "fault" => {
                let fields: Vec<u64> = value.split(':').map(hex).collect();
                outcome.fault = Some((fields[0], fields[1], fields[2]));
            }
            "memory" => {
                let (at, new) = value.split_once(':').unwrap();
                let (at, new) = (hex(at) as usize, bytes(new));
                outcome.data[at..at + new.len()].copy_from_slice(&new);
            }
            _ => outcome.gpr[REGISTERS.iter().position(|register| *register == name).unwrap()] = hex(value),
        }
    }
}

/// Executes one instruction, in as many runs as it needs.
fn execute(bits: u32, code: &[u8], before: &Outcome) -> Outcome {
    let mut cpu = Cpu::new(memory(code, &before.data));
    cpu.state = State { gpr: before.gpr, rflags: before.flags | 2, ..state(bits) };
    cpu.state_changed();
    let start = cpu.state.rip;
    let mut exit = cpu.run(1);
    while exit == Exit::SliceEnd && cpu.state.rip == start {
        exit = cpu.run(1);
    }
    let fault = match exit {
        Exit::SliceEnd => None,
        Exit::Shutdown => cpu.death().map(|death| {
            let fault = death.faults[0];
            let error = if matches!(fault.vector, 12..=14) { fault.error } else { None };
            (fault.vector.into(), error.unwrap_or(0).into(), fault.cr2.unwrap_or(0))
        }),
        other => panic!("{other:?}"),
    };
    Outcome {
        gpr: cpu.state.gpr,
        rip: cpu.state.rip,
        flags: cpu.state.rflags & FLAGS,
        fault,
        data: cpu.memory().read(DATA_AT as usize, DATA_SIZE),
    }
}

#[test]
fn each_instruction_leaves_what_a_real_processor_leaves() {
    let data = data();
    let lines = include_str!("vectors.txt").lines().filter(|line| !line.starts_with('#'));
    let mut wrong = 0;
    let mut count = 0;
    for line in lines {
        count += 1;
        let (vector, _) = line.split_once(" ; ").unwrap();
        let (before, after) = vector.split_once("->").unwrap();
        let mut parts = before.splitn(3, ' ');
        let bits: u32 = parts.next().unwrap().parse().unwrap();
        let code = bytes(parts.next().unwrap());
        let rip = state(bits).rip;
        let mut expected = Outcome { gpr: [0; 16], rip, flags: 0, fault: None, data: data.clone() };
        apply(parts.next().unwrap(), &mut expected);
        let outcome = execute(bits, &code, &expected);
        expected.rip += code.len() as u64;
        apply(after, &mut expected);
        if expected.fault.is_some() {
            expected.rip = rip;
        }
        if outcome != expected {
            wrong += 1;
            let told = |outcome: &Outcome| {
                let Outcome { gpr, rip, flags, fault, .. } = outcome;
                format!("{gpr:x?} rip {rip:x} flags {flags:x} fault {fault:x?}")
            };
            let memory = if outcome.data == expected.data { "" } else { " (memory)" };
            eprintln!("{line}{memory}\n  is {}\n  not {}", told(&outcome), told(&expected));
        }
    }
    assert!(count > 1000, "{count} vectors");
    assert_eq!(wrong, 0, "of {count} vectors");
}
