//! Many elements of REP MOVS and REP STOS at once.

use super::string::Elements;
use crate::cpu::Cpu;
use crate::memory::{Memory, PAGE};
use crate::operands::mask;
use crate::paging::Access;
use crate::state::{flag, gpr, seg};
use crate::tlb::Entry;

/// Elements in one page of memory.
struct Run<P> {
    page: P,
    /// The offset of the first element in the page.
    start: usize,
    /// The number of elements, from the first in the direction of the instruction.
    count: u64,
}

impl<M: Memory> Cpu<M> {
    /// Finds the elements from an offset in a segment that are in one page of memory and need no further check, at most
    /// `most`.
    fn run_of(
        &mut self,
        segment: usize,
        offset: u64,
        elements: Elements,
        most: u64,
        access: Access,
    ) -> Option<Run<M::Page>> {
        let size = u64::from(elements.size);
        let linear = self.linear(segment, offset, size, access).ok()?;
        let start = linear & (PAGE - 1);
        let is_down = elements.step >> 63 != 0;
        let room = if is_down { start / size + 1 } else { (PAGE - start) / size };
        let count = room.min(most);
        if start + size > PAGE || count == 0 {
            return None;
        }
        // The offset of the last element must not wrap, and must be in the segment.
        let distance = (count - 1) * size;
        let last = if is_down {
            offset.checked_sub(distance)?
        } else {
            offset.checked_add(distance).filter(|last| *last <= mask(elements.width))?
        };
        self.linear(segment, last, size, access).ok()?;
        let Entry { page, code, .. } = self.translate(linear, access, self.is_user()).ok()?;
        if access == Access::Write && code != 0 {
            return None;
        }
        Some(Run { page: page?, start: start as usize, count })
    }

    /// Moves at most `most` elements that need no check. Returns how many.
    pub(super) fn move_elements(&mut self, elements: Elements, most: u64) -> u64 {
        if most == 0 || self.state.has(flag::AC) {
            return 0;
        }
        let (from, to) = (self.gpr(gpr::SI, elements.width), self.gpr(gpr::DI, elements.width));
        let Some(target) = self.run_of(seg::ES, to, elements, most, Access::Write) else { return 0 };
        let source = self.run_of(elements.source, from, elements, target.count, Access::Read);
        let Some(source) = source else { return 0 };
        let count = source.count;
        match elements.size {
            1 => self.move_all::<1>(&source, &target, elements.step),
            2 => self.move_all::<2>(&source, &target, elements.step),
            4 => self.move_all::<4>(&source, &target, elements.step),
            _ => self.move_all::<8>(&source, &target, elements.step),
        }
        self.advance(gpr::SI, elements, count);
        self.advance(gpr::DI, elements, count);
        count
    }

    /// Moves the elements of `source`, one after the other, since they may overlap with those of `target`.
    fn move_all<const SIZE: usize>(&self, source: &Run<M::Page>, target: &Run<M::Page>, step: u64) {
        let (mut from, mut to) = (source.start, target.start);
        for _ in 0..source.count {
            let value = self.memory.load::<SIZE>(source.page, from);
            self.memory.store::<SIZE>(target.page, to, value);
            from = from.wrapping_add(step as usize);
            to = to.wrapping_add(step as usize);
        }
    }

    /// Stores at most `most` elements that need no check. Returns how many.
    pub(super) fn store_elements(&mut self, elements: Elements, most: u64) -> u64 {
        if most == 0 || self.state.has(flag::AC) {
            return 0;
        }
        let to = self.gpr(gpr::DI, elements.width);
        let Some(target) = self.run_of(seg::ES, to, elements, most, Access::Write) else { return 0 };
        match elements.size {
            1 => self.store_all::<1>(&target, elements.step),
            2 => self.store_all::<2>(&target, elements.step),
            4 => self.store_all::<4>(&target, elements.step),
            _ => self.store_all::<8>(&target, elements.step),
        }
        self.advance(gpr::DI, elements, target.count);
        target.count
    }

    /// Writes the accumulator to all elements.
    fn store_all<const SIZE: usize>(&self, target: &Run<M::Page>, step: u64) {
        let mut to = target.start;
        for _ in 0..target.count {
            self.memory.store::<SIZE>(target.page, to, self.state.gpr[gpr::AX]);
            to = to.wrapping_add(step as usize);
        }
    }
}
