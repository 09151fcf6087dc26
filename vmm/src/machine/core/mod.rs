//! An ELF core of a guest: its memory, and the registers of its vCPUs.
//!
//! The memory is in the file once, page by page, with holes for zero pages. Program headers give it its addresses: one for each
//! run of pages that the page tables map, then one for each memory slot by its physical address. `docs/formats.md` describes
//! the file.

mod notes;

use super::Machine;
use super::debug::DebugGuest;
use crate::controller::VcpuState;
use crate::error::Error;
use crate::host;
use crate::memory::{Gpa, GuestMemory, PAGE};
use crate::x86::modes;
use crate::x86::probe::mappings::{Mapping, mappings};
use crate::x86::registers::{Regs, Sregs};
use std::io::{self, Write};

/// The most mappings of the page tables that a core has.
const MAX_MAPPINGS: usize = 4096;
/// In a core of a guest in long mode, memory by physical address begins here: no page table can map these addresses.
const PHYSICAL: u64 = 1 << 63;
/// The memory that is copied at once, in bytes.
const CHUNK: u64 = 64 << 10;

/// A file with holes.
pub trait SparseWrite: Write {
    /// Goes on `len` bytes later. The bytes between are zero.
    ///
    /// # Errors
    /// The host fails.
    fn skip(&mut self, len: u64) -> io::Result<()>;
}

/// The cause of a core, and the parts that not every core has.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoreCause<'a> {
    /// The index of the vCPU that debuggers show first, and whose page tables give the linear addresses.
    pub first: usize,
    /// The number of the signal that debuggers name as the cause, or 0.
    pub signal: u8,
    /// The text of the note VMCOREINFO, in which a Linux kernel describes itself.
    pub vmcoreinfo: Option<&'a [u8]>,
}

/// The result of writing a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreSummary {
    /// The number of bytes of guest memory.
    pub memory: u64,
    /// The number of these that are in the file. The others are zero.
    pub written: u64,
    /// The core has all mappings of the page tables.
    pub has_all_mappings: bool,
}

/// A vCPU in a core.
struct CoreVcpu {
    id: u32,
    regs: Regs,
    sregs: Sregs,
    kernel_gs_base: u64,
}

/// A program header of memory.
struct Segment {
    linear: u64,
    gpa: u64,
    len: u64,
    /// The offset in the file.
    offset: u64,
}

/// The class of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    I386,
    X86_64,
}

impl Class {
    /// The sizes of the header of the file, and of a program header.
    fn sizes(self) -> (u64, u64) {
        match self {
            Self::I386 => (52, 32),
            Self::X86_64 => (64, 56),
        }
    }
}

impl Machine {
    /// Writes an ELF core of the guest as it is now.
    ///
    /// # Errors
    /// The registers of a vCPU cannot be read, the file cannot be written, or a signal ended the program.
    pub fn write_core(
        &mut self,
        cause: CoreCause<'_>,
        to: &mut dyn SparseWrite,
    ) -> Result<CoreSummary, Error> {
        let mut vcpus = Vec::new();
        for index in 0..self.vcpu_count() {
            let Some(vcpu) = self.vcpu(index) else { break };
            vcpus.push(CoreVcpu::of(vcpu)?);
        }
        // The signal that ended the run has come already. A second one ends the program at once.
        let ended_by_signal = host::interrupted();
        let must_end = || host::interrupted() && !ended_by_signal;
        write(&vcpus, self.memory(), cause, to, &must_end).map_err(Error::host("writing the core"))
    }
}

impl dyn DebugGuest + '_ {
    /// Writes an ELF core of a guest that has stopped. It is given up when `must_end` returns true.
    ///
    /// # Errors
    /// As for [`Machine::write_core`], or it was given up.
    pub fn write_core(
        &self,
        cause: CoreCause<'_>,
        to: &mut dyn SparseWrite,
        must_end: &dyn Fn() -> bool,
    ) -> Result<CoreSummary, Error> {
        let mut vcpus = Vec::new();
        for index in 0..self.vcpus() {
            let mut read = None;
            self.with_vcpu(index, &mut |vcpu| read = Some(CoreVcpu::of(vcpu)));
            vcpus.extend(read.transpose()?);
        }
        write(&vcpus, self.memory(), cause, to, must_end).map_err(Error::host("writing the core"))
    }
}

impl CoreVcpu {
    fn of(vcpu: &mut dyn VcpuState) -> Result<Self, Error> {
        Ok(Self {
            id: vcpu.id(),
            regs: vcpu.regs()?,
            sregs: vcpu.sregs()?,
            kernel_gs_base: vcpu.msr(KERNEL_GS_BASE).unwrap_or(0),
        })
    }
}

/// The model-specific register IA32_KERNEL_GS_BASE.
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// The order of the vCPUs in a core: `first` is the first one, but a Linux kernel's are in the order of their numbers. Its
/// debuggers find the vCPU of a thread by that order, and the one that died by the kernel's own data.
fn ordered<'v>(vcpus: &'v [CoreVcpu], cause: &CoreCause<'_>) -> Vec<&'v CoreVcpu> {
    let mut order: Vec<_> = vcpus.iter().collect();
    if cause.vmcoreinfo.is_none() && cause.first < order.len() {
        order.swap(0, cause.first);
    }
    order
}

/// Writes a core. It is given up when `must_end` returns true.
fn write(
    vcpus: &[CoreVcpu],
    memory: &GuestMemory,
    cause: CoreCause<'_>,
    to: &mut dyn SparseWrite,
    must_end: &dyn Fn() -> bool,
) -> io::Result<CoreSummary> {
    let is_long = vcpus.iter().any(|vcpu| vcpu.sregs.efer & modes::EFER_LMA != 0);
    let class = if is_long { Class::X86_64 } else { Class::I386 };
    let slots: Vec<_> = memory
        .ranges()
        .map(|(first, last)| (first.0, last.0.wrapping_sub(first.0).wrapping_add(1)))
        .collect();
    let sregs = vcpus.get(cause.first).or(vcpus.first()).map(|vcpu| vcpu.sregs).unwrap_or_default();
    let (mapped, has_all_mappings) = mappings(memory, &sregs, MAX_MAPPINGS);
    let notes = notes::of(&ordered(vcpus, &cause), class, &cause);
    let pieces = pieces(&mapped, &slots);
    let headers = (pieces.len() as u64).saturating_add(slots.len() as u64).saturating_add(1);
    let (size, each) = class.sizes();
    let notes_at = size.saturating_add(each.saturating_mul(headers));
    let memory_at = notes_at.saturating_add(notes.len() as u64).next_multiple_of(PAGE);
    let has_paging = sregs.cr0 & modes::CR0_PG != 0;
    let segments =
        segments(pieces, &slots, memory_at, (class == Class::X86_64 && has_paging).then_some(PHYSICAL));
    if class == Class::I386
        && segments.iter().any(|piece| piece.offset.saturating_add(piece.len) > u32::MAX.into())
    {
        let text = "a core of a 32-bit guest cannot have 4 GiB of memory: give the guest less";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut head = elf_header(class, headers);
    head.extend(program_header(
        class,
        4,
        &Segment { linear: 0, gpa: 0, len: notes.len() as u64, offset: notes_at },
    ));
    segments.iter().for_each(|piece| head.extend(program_header(class, 1, piece)));
    head.extend(&notes);
    head.resize(usize::try_from(memory_at).unwrap_or(head.len()), 0);
    to.write_all(&head)?;
    let mut written = 0u64;
    for (start, len) in &slots {
        written = written.saturating_add(copy(memory, *start, *len, to, must_end)?);
    }
    let memory = slots.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len));
    Ok(CoreSummary { memory, written, has_all_mappings })
}

/// The parts of the mappings that are memory, each in one slot, with the index of the slot.
fn pieces(mapped: &[Mapping], slots: &[(u64, u64)]) -> Vec<(Mapping, usize)> {
    let mut pieces = Vec::new();
    for mapping in mapped {
        for (index, (start, len)) in slots.iter().enumerate() {
            let from = mapping.gpa.max(*start);
            let to = mapping.gpa.saturating_add(mapping.len).min(start.saturating_add(*len));
            if from < to && pieces.len() < MAX_MAPPINGS {
                let linear = mapping.linear.wrapping_add(from.wrapping_sub(mapping.gpa));
                pieces.push((Mapping { linear, gpa: from, len: to.wrapping_sub(from) }, index));
            }
        }
    }
    pieces
}

/// The program headers of memory: by linear address, and by physical address from `physical` on.
fn segments(
    pieces: Vec<(Mapping, usize)>,
    slots: &[(u64, u64)],
    memory_at: u64,
    physical: Option<u64>,
) -> Vec<Segment> {
    let offset = |index: usize| {
        slots.iter().take(index).fold(memory_at, |offset, (_, len)| offset.saturating_add(*len))
    };
    let mapped = pieces.into_iter().map(|(Mapping { linear, gpa, len }, index)| {
        let start = slots.get(index).map_or(0, |slot| slot.0);
        Segment { linear, gpa, len, offset: offset(index).saturating_add(gpa.wrapping_sub(start)) }
    });
    let whole = slots.iter().enumerate().map(|(index, (gpa, len))| Segment {
        linear: gpa | physical.unwrap_or(0),
        gpa: *gpa,
        len: *len,
        offset: offset(index),
    });
    mapped.chain(whole).collect()
}

/// Copies memory. Returns the number of bytes that are not in holes.
fn copy(
    memory: &GuestMemory,
    start: u64,
    len: u64,
    to: &mut dyn SparseWrite,
    must_end: &dyn Fn() -> bool,
) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK as usize];
    let (mut at, mut hole, mut written) = (0, 0u64, 0u64);
    while at < len {
        if must_end() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let size = CHUNK.min(len.saturating_sub(at));
        let bytes = chunk.get_mut(..size as usize).unwrap_or_default();
        if !memory.read(Gpa(start.saturating_add(at)), bytes) {
            return Err(io::Error::other("a memory slot cannot be read"));
        }
        for page in bytes.chunks(PAGE as usize) {
            if page.iter().all(|byte| *byte == 0) {
                hole = hole.saturating_add(page.len() as u64);
                continue;
            }
            if hole != 0 {
                to.skip(std::mem::take(&mut hole))?;
            }
            to.write_all(page)?;
            written = written.saturating_add(page.len() as u64);
        }
        at = at.saturating_add(size);
    }
    if hole != 0 {
        to.skip(hole)?;
    }
    Ok(written)
}

/// The header of the file (System V ABI, "ELF Header").
fn elf_header(class: Class, headers: u64) -> Vec<u8> {
    let (size, each) = class.sizes();
    let mut bytes = vec![0x7f, b'E', b'L', b'F', if class == Class::I386 { 1 } else { 2 }, 1, 1];
    bytes.resize(16, 0);
    // ET_CORE, and EM_386 or EM_X86_64.
    for half in [4u16, if class == Class::I386 { 3 } else { 62 }] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend(1u32.to_le_bytes());
    for word in [0, size, 0] {
        put(&mut bytes, class, word);
    }
    bytes.extend(0u32.to_le_bytes());
    for half in [size, each, headers, 0, 0, 0] {
        bytes.extend(u16::try_from(half).unwrap_or(u16::MAX).to_le_bytes());
    }
    bytes
}

/// A program header (System V ABI, "Program Header") of this type: 1 is PT_LOAD, 4 is PT_NOTE.
fn program_header(class: Class, kind: u32, segment: &Segment) -> Vec<u8> {
    const READ_WRITE_EXECUTE: u32 = 7;
    let flags = if kind == 1 { READ_WRITE_EXECUTE } else { 0 };
    let mut bytes = kind.to_le_bytes().to_vec();
    if class == Class::X86_64 {
        bytes.extend(flags.to_le_bytes());
    }
    let Segment { linear, gpa, len, offset } = *segment;
    for word in [offset, linear, gpa, len, if kind == 1 { len } else { 0 }] {
        put(&mut bytes, class, word);
    }
    if class == Class::I386 {
        bytes.extend(flags.to_le_bytes());
    }
    // No alignment, as in the cores of QEMU: by this, crash knows that the physical addresses count.
    put(&mut bytes, class, if kind == 1 { 0 } else { 4 });
    bytes
}

/// Adds a word of the class.
fn put(bytes: &mut Vec<u8>, class: Class, word: u64) {
    match class {
        Class::I386 => bytes.extend((word as u32).to_le_bytes()),
        Class::X86_64 => bytes.extend(word.to_le_bytes()),
    }
}

#[cfg(test)]
mod tests;
