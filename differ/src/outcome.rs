//! The result of a program, and the comparison of two.

use crate::layout::{self, KERNEL_STACK_TOP};
use crate::program::Config;
use softcpu::{Segment, State, cr0, efer, flag, seg};

/// The most accesses of a program.
pub const MOST_ACCESSES: usize = 64;

/// An access to a port or to memory-mapped I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// `i`: a port is read. `o`: a port is written. `r`, `w`: the same for memory.
    pub kind: char,
    pub address: u64,
    pub size: u8,
    pub data: u64,
}

/// The way in which a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// HLT, in the program or in a handler.
    Halted,
    /// A triple fault.
    Shutdown,
    /// Too many instructions or accesses.
    Endless,
    /// The instruction is not implemented.
    Unsupported,
    Other(String),
}

/// The value that a program reads at an address, by the number of its accesses so far.
pub fn answer(address: u64, number: usize) -> u64 {
    (address ^ (number as u64) << 40).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
}

/// The result of a program.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub end: End,
    pub state: State,
    pub accesses: Vec<Access>,
    /// The memory that is compared, by its ranges.
    pub memory: Vec<u64>,
    /// The vectors that softcpu tried to deliver at the end.
    pub vectors: Vec<u8>,
}

impl Outcome {
    /// The word of memory at a physical address that is a multiple of 8. Not for ring 3.
    pub fn word(&self, at: u64) -> u64 {
        self.memory.get((at / 8) as usize).copied().unwrap_or(0)
    }
}

/// The memory that programs of a configuration can change, in bytes.
pub fn ranges(config: Config) -> &'static [(u64, u64)] {
    match config {
        Config::User => &[(0x7000, 0x8000), (layout::CODE, layout::MEMORY)],
        _ => &[(0, layout::MEMORY)],
    }
}

/// The address of a word of [`Outcome::memory`].
fn address_of(config: Config, mut index: usize) -> u64 {
    for (start, end) in ranges(config) {
        let words = ((end - start) / 8) as usize;
        if index < words {
            return start + index as u64 * 8;
        }
        index -= words;
    }
    0
}

/// The flags that a handler's frame holds: their address and width in bytes.
fn saved_flags(config: Config, outcome: &Outcome) -> Option<(u64, u64)> {
    let state = &outcome.state;
    let vector = layout::vector(state)?;
    if config == Config::User {
        return Some((KERNEL_STACK_TOP - 24, 8));
    }
    let is_protected = state.cr0 & cr0::PE != 0;
    let coded = is_protected && matches!(vector, 8 | 10..=14 | 17);
    let gate = state.idtr.base.wrapping_add(u64::from(vector) * 8);
    let size = match state.efer & efer::LMA != 0 {
        true => 8,
        // A gate of 16 bits.
        false if !is_protected || byte(outcome, config, gate.wrapping_add(5)).unwrap_or(0) & 8 == 0 => 2,
        false => 4,
    };
    let pointer = match (size, state.segments[seg::SS].big) {
        (8, _) => state.gpr[4],
        (_, true) => state.segments[seg::SS].base.wrapping_add(state.gpr[4]) & 0xffff_ffff,
        (_, false) => state.segments[seg::SS].base.wrapping_add(state.gpr[4] & 0xffff) & 0xffff_ffff,
    };
    Some((pointer.wrapping_add(size * if coded { 3 } else { 2 }), size))
}

/// The differences between two results, a line each. Flags that are not defined are left out.
pub fn compare(config: Config, kvm: &Outcome, soft: &Outcome, undefined: u64) -> Vec<String> {
    let mut lines = Vec::new();
    if kvm.end != soft.end {
        lines.push(format!("end: {:?}, soft {:?}", kvm.end, soft.end));
    }
    let (a, b) = (&kvm.state, &soft.state);
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    let mut number = |name: &str, a: u64, b: u64| {
        if a != b {
            lines.push(format!("{name}: {a:#x}, soft {b:#x}"));
        }
    };
    for (index, name) in NAMES.into_iter().enumerate() {
        number(name, a.gpr[index], b.gpr[index]);
    }
    number("rip", a.rip, b.rip);
    // A host without hardware virtualization clears AC when it delivers an exception.
    let is_handler = config == Config::User || layout::vector(a).is_some();
    // At a triple fault, KVM shows RF as one of the three left it. It also takes a page fault in the delivery of an
    // exception for a double fault before it loads CR2.
    let is_dead = (&kvm.end, &soft.end) == (&End::Shutdown, &End::Shutdown);
    let ignored = undefined | if is_handler { flag::AC } else { 0 } | if is_dead { flag::RF } else { 0 };
    number("rflags", a.rflags & !ignored, b.rflags & !ignored);
    number("cr0", a.cr0, b.cr0);
    if !is_dead {
        number("cr2", a.cr2, b.cr2);
    }
    number("cr3", a.cr3, b.cr3);
    number("cr4", a.cr4, b.cr4);
    number("efer", a.efer, b.efer);
    number("mxcsr", a.mxcsr.into(), b.mxcsr.into());
    for (index, (a, b)) in a.xmm.iter().zip(b.xmm).enumerate() {
        if *a != b {
            lines.push(format!("xmm{index}: {a:#034x}, soft {b:#034x}"));
        }
    }
    segments(config, a, b, &mut lines);
    if kvm.accesses != soft.accesses {
        lines.push(format!("accesses: {:x?}\n          soft {:x?}", kvm.accesses, soft.accesses));
    }
    memory(config, kvm, soft, undefined, &mut lines);
    lines
}

fn segments(config: Config, a: &State, b: &State, lines: &mut Vec<String>) {
    const NAMES: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
    for (index, name) in NAMES.into_iter().enumerate() {
        // On AMD processors, KVM derives the granularity from the limit.
        let granular = |segment: Segment| Segment { pages: segment.limit > 0xf_ffff, ..segment };
        let (mut a, mut b) = (granular(a.segments[index]), granular(b.segments[index]));
        let is_null = b.unusable && (a.unusable || !a.present || a.selector & !3 == 0);
        if config == Config::User || is_null {
            // The rest does not matter in 64-bit mode, or shows what KVM makes of it.
            let kept = |segment: Segment| Segment { selector: segment.selector, ..Segment::default() };
            (a, b) = (kept(a), kept(b));
        }
        if a != b {
            lines.push(format!("{name}: {a:x?}, soft {b:x?}"));
        }
    }
    if config != Config::User {
        for (name, a, b) in [("ldtr", a.ldtr, b.ldtr), ("tr", a.tr, b.tr)] {
            if a != b && (a.selector != b.selector || a.present && !b.unusable) {
                lines.push(format!("{name}: {a:x?}, soft {b:x?}"));
            }
        }
    }
    for (name, a, b) in [("gdtr", a.gdtr, b.gdtr), ("idtr", a.idtr, b.idtr)] {
        if a != b {
            lines.push(format!("{name}: {a:x?}, soft {b:x?}"));
        }
    }
}

fn memory(config: Config, kvm: &Outcome, soft: &Outcome, undefined: u64, lines: &mut Vec<String>) {
    if kvm.memory == soft.memory {
        return;
    }
    let saved = saved_flags(config, soft);
    for (index, (a, b)) in kvm.memory.iter().zip(&soft.memory).enumerate() {
        let at = address_of(config, index);
        let mut ignored = 0;
        if let Some((flags, _)) = saved {
            let undefined = undefined & flag::STATUS;
            // A host without hardware virtualization forgets NT in ring 3 when it interrupts the guest.
            if flags == at && config == Config::User {
                ignored |= flag::NT;
            }
            if flags & !7 == at {
                ignored |= undefined << (flags % 8 * 8);
            }
            if flags & !7 == at.wrapping_sub(8) && flags % 8 != 0 {
                ignored |= undefined >> (64 - flags % 8 * 8);
            }
        }
        if (a ^ b) & !ignored != 0 {
            if lines.len() > 40 {
                lines.push("...".into());
                return;
            }
            lines.push(format!("[{at:#x}]: {a:#018x}, soft {b:#018x}"));
        }
    }
}

/// The number of words that are compared.
pub fn words(config: Config) -> usize {
    ranges(config).iter().map(|(start, end)| ((end - start) / 8) as usize).sum()
}

/// True if a program of ring 3 ended at a HLT, as it should.
pub fn is_end(config: Config, outcome: &Outcome) -> bool {
    let frame = index_of(config, KERNEL_STACK_TOP - 40);
    let rip = frame.and_then(|index| outcome.memory.get(index)).copied().unwrap_or(0);
    config == Config::User && byte(outcome, config, rip) == Some(0xf4)
}

/// The byte of memory at a physical address.
pub fn byte(outcome: &Outcome, config: Config, at: u64) -> Option<u8> {
    let word = outcome.memory.get(index_of(config, at)?)?;
    Some((word >> (at % 8 * 8)) as u8)
}

/// The index of the word of memory at a physical address.
fn index_of(config: Config, at: u64) -> Option<usize> {
    let mut first = 0;
    for (start, end) in ranges(config) {
        if (*start..*end).contains(&at) {
            return Some((first + (at - start) / 8) as usize);
        }
        first += (end - start) / 8;
    }
    None
}

/// Copies bits of `len` bytes of memory at a physical address from one result to another.
pub fn copy_bits(config: Config, to: &mut Outcome, from: &Outcome, at: u64, len: u64, bits: u64) {
    for offset in 0..len {
        let at = at.wrapping_add(offset);
        let Some(index) = index_of(config, at) else { continue };
        if let (Some(to), Some(from)) = (to.memory.get_mut(index), from.memory.get(index)) {
            let byte = (bits >> (offset % 8 * 8) & 0xff) << (at % 8 * 8);
            *to = *to & !byte | from & byte;
        }
    }
}

/// Copies `len` bytes of memory at a physical address from one result to another.
pub fn copy(config: Config, to: &mut Outcome, from: &Outcome, at: u64, len: u64) {
    copy_bits(config, to, from, at, len, u64::MAX);
}

/// Copies some of the flags that a handler's frame holds from one result to another.
pub fn copy_flags(config: Config, to: &mut Outcome, from: &Outcome, flags: u64) {
    if let Some((at, size)) = saved_flags(config, from) {
        copy_bits(config, to, from, at, size, flags);
    }
}

/// RFLAGS at the end, or in the frame of a handler.
pub fn flags(config: Config, outcome: &Outcome) -> u64 {
    let Some((at, size)) = saved_flags(config, outcome) else { return outcome.state.rflags };
    let bytes =
        (at..at.saturating_add(size)).rev().map(|at| u64::from(byte(outcome, config, at).unwrap_or(0)));
    bytes.fold(0, |value, byte| value << 8 | byte)
}
