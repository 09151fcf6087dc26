//! Position-independent executables (ET_DYN without a dynamic linker): moved to an address, with their relative relocations
//! applied.
//!
//! System V gABI, "Dynamic Section" and "Relocation"; the relocation types are those of the processor supplements. Only
//! relocations without a symbol are applied: others need a dynamic linker.

use super::{ImageError, Layout, refuse};
use crate::boot::Segment;
use crate::memory::{Gpa, PAGE};
use std::ops::Range;

/// The address to which an executable is moved that was linked for address 0.
pub(crate) const BASE: u64 = 0x10_0000;
/// The largest alignment of a segment that is kept, in bytes.
const MAX_ALIGNMENT: u64 = 1 << 30;
/// The most segments of a position-independent executable: each relocation is looked up in them.
const MAX_SEGMENTS: usize = 100;
/// R_X86_64_RELATIVE and R_386_RELATIVE: the base plus the addend.
const RELATIVE: u64 = 8;

/// The entries of the dynamic section that are used here (`d_tag`).
mod tag {
    pub(super) const NEEDED: u64 = 1;
    pub(super) const PLT_SIZE: u64 = 2;
    pub(super) const RELA: u64 = 7;
    pub(super) const RELA_SIZE: u64 = 8;
    pub(super) const REL: u64 = 17;
    pub(super) const REL_SIZE: u64 = 18;
    pub(super) const RELR_SIZE: u64 = 35;
    pub(super) const RELR: u64 = 36;
}

/// Moves an executable to `base`, and applies its relocations to the bytes of its file. Without a base, one that was linked
/// for address 0 is moved to [`BASE`], and another one stays where it is.
///
/// # Errors
/// It is a shared library, needs one, has relocations with symbols, or cannot be moved to the base.
pub(super) fn moved(mut layout: Layout, bytes: &mut [u8], base: Option<Gpa>) -> Result<Layout, ImageError> {
    let refused = |what: String| ImageError::Elf(what);
    if layout.start == 0 {
        return Err(refused(
            "is a shared library, or has no entry point: link an executable with -static -nostdlib -no-pie"
                .into(),
        ));
    }
    if layout.segments.len() > MAX_SEGMENTS {
        return Err(refused(format!(
            "is position-independent with more than {MAX_SEGMENTS} segments: link it with fewer"
        )));
    }
    let base = base_of(&layout, base).map_err(refused)?;
    layout.base = base;
    let relocations = Relocations { layout: &layout, base };
    let changes = relocations.all(bytes).map_err(refused)?;
    for (place, value) in changes {
        let word = value.to_le_bytes();
        let word = if layout.is_64 { &word[..] } else { word.get(..4).unwrap_or_default() };
        if let Some(to) = bytes.get_mut(place..).and_then(|rest| rest.get_mut(..word.len())) {
            to.copy_from_slice(word);
        }
    }
    if base != 0 {
        for (segment, start) in layout.segments.iter_mut().zip(&mut layout.virtual_starts) {
            let moved = start.checked_add(base).filter(|moved| moved.checked_add(segment.size).is_some());
            *start = moved.ok_or_else(|| refused("has a segment that goes past the last address".into()))?;
            segment.start = Gpa(*start);
        }
        let entry = layout.start.checked_add(base).and_then(|entry| layout.physical(entry));
        layout.entry = entry.ok_or_else(|| refused(refuse::ENTRY_OUTSIDE.into()));
        super::check_overlaps(&layout.segments)?;
    }
    Ok(layout)
}

/// The number to add to each address.
fn base_of(layout: &Layout, asked: Option<Gpa>) -> Result<u64, String> {
    let lowest = layout.virtual_starts.iter().copied().min().unwrap_or(0);
    let alignment = layout.alignment.clamp(PAGE, MAX_ALIGNMENT);
    let alignment = alignment.checked_next_power_of_two().unwrap_or(MAX_ALIGNMENT);
    match asked {
        None if lowest >= PAGE => Ok(0),
        None => Ok(BASE.checked_next_multiple_of(alignment).unwrap_or(BASE)),
        Some(Gpa(base)) if lowest >= PAGE => Err(format!(
            "is linked for {lowest:#x}, so it cannot be loaded at {base:#x}: leave out the address, or link it for address 0"
        )),
        Some(Gpa(base)) if !base.is_multiple_of(alignment) => Err(format!(
            "needs an address that is a multiple of {alignment:#x}, the alignment of its segments, and {base:#x} is not one"
        )),
        Some(Gpa(base)) => Ok(base),
    }
}

/// The words of a file to change. A valid file has at most one change for each of its words.
struct Changes {
    list: Vec<(usize, u64)>,
    most: usize,
}

impl Changes {
    fn push(&mut self, change: (usize, u64)) -> Result<(), String> {
        if self.list.len() >= self.most {
            return Err("has more relocations than words: is it damaged?".into());
        }
        self.list.push(change);
        Ok(())
    }
}

/// The relocations of an executable.
struct Relocations<'a> {
    layout: &'a Layout,
    base: u64,
}

impl Relocations<'_> {
    /// The offsets in the file to change, each with its new word.
    fn all(&self, bytes: &[u8]) -> Result<Vec<(usize, u64)>, String> {
        let dynamic = self.dynamic(bytes);
        let value = |tag| dynamic.iter().find(|(known, _)| *known == tag).map(|(_, value)| *value);
        if value(tag::NEEDED).is_some() {
            return Err("needs a shared library: link it with -static -nostdlib -no-pie".into());
        }
        if value(tag::PLT_SIZE).unwrap_or(0) != 0 {
            return Err("has calls through a procedure linkage table, which need a dynamic linker: link it with -no-pie".into());
        }
        let mut changes =
            Changes { list: Vec::new(), most: bytes.len().checked_div(self.width()).unwrap_or(0) };
        for (place, size, addends) in [(tag::RELA, tag::RELA_SIZE, true), (tag::REL, tag::REL_SIZE, false)] {
            let table = self.table(bytes, value(place), value(size))?;
            self.listed(bytes, table, addends, &mut changes)?;
        }
        let table = self.table(bytes, value(tag::RELR), value(tag::RELR_SIZE))?;
        self.packed(bytes, table, &mut changes)?;
        Ok(changes.list)
    }

    /// The size of an address in bytes.
    fn width(&self) -> usize {
        if self.layout.is_64 { 8 } else { 4 }
    }

    /// The word at an offset in the file.
    fn word(&self, bytes: &[u8], offset: usize) -> Option<u64> {
        let rest = bytes.get(offset..)?;
        match self.layout.is_64 {
            true => rest.first_chunk().map(|word| u64::from_le_bytes(*word)),
            false => rest.first_chunk().map(|word| u32::from_le_bytes(*word).into()),
        }
    }

    /// The words of a range of the file.
    fn words<'b>(&'b self, bytes: &'b [u8], range: Range<usize>) -> impl Iterator<Item = u64> + 'b {
        range.step_by(self.width()).map_while(move |offset| self.word(bytes, offset))
    }

    /// The entries of the dynamic section: tag and value.
    fn dynamic(&self, bytes: &[u8]) -> Vec<(u64, u64)> {
        let Some((offset, size)) = self.layout.dynamic else { return Vec::new() };
        let (Ok(offset), Ok(size)) = (usize::try_from(offset), usize::try_from(size)) else {
            return Vec::new();
        };
        let words: Vec<u64> =
            self.words(bytes, offset..offset.saturating_add(size).min(bytes.len())).collect();
        let entries = words.chunks_exact(2).map(|entry| match entry {
            [tag, value] => (*tag, *value),
            _ => (0, 0),
        });
        entries.take_while(|(tag, _)| *tag != 0).collect()
    }

    /// The offset in the file of `size` bytes at a virtual address.
    fn offset(&self, address: u64, size: usize) -> Option<usize> {
        let mut places = self.layout.segments.iter().zip(&self.layout.virtual_starts);
        places.find_map(|(Segment { file, .. }, start)| {
            let inside = usize::try_from(address.checked_sub(*start)?).ok()?;
            let offset = file.start.checked_add(inside)?;
            (offset.checked_add(size)? <= file.end).then_some(offset)
        })
    }

    /// The range in the file of a table of relocations.
    fn table(&self, bytes: &[u8], start: Option<u64>, size: Option<u64>) -> Result<Range<usize>, String> {
        let (Some(start), Some(size)) = (start, size) else { return Ok(0..0) };
        let size = usize::try_from(size).unwrap_or(usize::MAX).min(bytes.len());
        let offset = self.offset(start, size).ok_or_else(|| {
            format!("has its relocations at {start:#x}, outside its segments: is it complete?")
        })?;
        Ok(offset..offset.saturating_add(size))
    }

    /// Applies a table of relocations with or without addends.
    fn listed(
        &self,
        bytes: &[u8],
        table: Range<usize>,
        addends: bool,
        changes: &mut Changes,
    ) -> Result<(), String> {
        let words: Vec<u64> = self.words(bytes, table).collect();
        for entry in words.chunks_exact(if addends { 3 } else { 2 }) {
            let (Some(address), Some(info)) = (entry.first(), entry.get(1)) else { continue };
            let kind = if self.layout.is_64 { info & 0xffff_ffff } else { info & 0xff };
            match kind {
                0 => {}
                RELATIVE => changes.push(self.change(bytes, *address, entry.get(2).copied())?)?,
                other => {
                    return Err(format!(
                        "has a relocation of type {other} at {address:#x}, which needs a dynamic linker: link it with -static \
                         -nostdlib -no-pie"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Applies a table of packed relative relocations: an address, followed by bitmaps of the words after it. (gABI,
    /// "Relative Relocation Table".)
    fn packed(&self, bytes: &[u8], table: Range<usize>, changes: &mut Changes) -> Result<(), String> {
        let width = self.width() as u64;
        let bits = width.saturating_mul(8).saturating_sub(1);
        let mut next = 0u64;
        for word in self.words(bytes, table) {
            if word & 1 == 0 {
                changes.push(self.change(bytes, word, None)?)?;
                next = word.wrapping_add(width);
                continue;
            }
            for bit in (0..bits).filter(|bit| word >> bit.saturating_add(1) & 1 == 1) {
                changes.push(self.change(bytes, next.wrapping_add(bit.wrapping_mul(width)), None)?)?;
            }
            next = next.wrapping_add(bits.wrapping_mul(width));
        }
        Ok(())
    }

    /// The place and the new value of the word at a virtual address. Without an addend, the word itself is the addend.
    fn change(&self, bytes: &[u8], address: u64, addend: Option<u64>) -> Result<(usize, u64), String> {
        let place = self.offset(address, self.width());
        let place = place.ok_or_else(|| {
            format!("has a relocation at {address:#x}, outside the bytes of its segments: is it complete?")
        })?;
        let addend = addend.or_else(|| self.word(bytes, place)).unwrap_or(0);
        Ok((place, addend.wrapping_add(self.base)))
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests;
