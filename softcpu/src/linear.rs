//! Memory accesses: segment checks, translation, memory-mapped I/O.

use crate::blocks::granules;
use crate::cpu::Cpu;
use crate::exit::Exit;
use crate::memory::{Memory, PAGE};
use crate::paging::Access;
use crate::state::{Segment, cr0, flag, seg};
use crate::tlb::Entry;
use crate::trap::{AC, GP, SS, Trap};

/// True if bits 63 to 47 of a linear address are equal (SDM volume 1, section 3.3.7.1).
#[inline]
pub(crate) const fn is_canonical(linear: u64) -> bool {
    (linear as i64) << 16 >> 16 == linear as i64
}

impl Segment {
    /// True if the offsets from `first` to `last` are within the limit (SDM volume 3, section 5.3).
    #[inline]
    pub(crate) fn contains(&self, first: u64, last: u64) -> bool {
        let limit = u64::from(self.limit);
        if self.expands_down() {
            let end = if self.big { 0xffff_ffff } else { 0xffff };
            return first > limit && last <= end && last >= first;
        }
        // A flat segment wraps at 4 GiB.
        limit == 0xffff_ffff || last <= limit && last >= first
    }
}

impl<M: Memory> Cpu<M> {
    /// Checks an access of `size` bytes at an offset in a segment. Returns the linear address.
    ///
    /// # Errors
    /// #GP or #SS (SDM volume 3, chapter 5).
    #[inline]
    pub(crate) fn linear(&self, segment: usize, offset: u64, size: u64, access: Access) -> Result<u64, Trap> {
        if self.state.is_64() {
            let base = if segment >= seg::FS { self.state.segments[segment % 6].base } else { 0 };
            let linear = base.wrapping_add(offset);
            if is_canonical(linear) && is_canonical(linear.wrapping_add(size.wrapping_sub(1))) {
                return Ok(linear);
            }
            // Processors of Intel check the alignment before the last byte.
            if is_canonical(linear) && size <= 8 {
                self.check_alignment(linear, size as u8)?;
            }
            return Err(segment_fault(segment));
        }
        let register = &self.state.segments[segment % 6];
        let last = offset.wrapping_add(size.wrapping_sub(1));
        let inside = register.contains(offset, last);
        let allowed = !self.state.is_protected()
            || match access {
                Access::Read => register.is_readable(),
                Access::Write => register.is_writable(),
                Access::Execute => true,
            };
        if !inside || !allowed || register.unusable {
            return Err(segment_fault(segment));
        }
        Ok(register.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// True if accesses have the rights of user mode.
    #[inline]
    pub(crate) fn is_user(&self) -> bool {
        self.state.cpl() == 3
    }

    /// Raises #AC for an unaligned access in ring 3, if that is switched on.
    #[inline]
    pub(crate) fn check_alignment(&self, linear: u64, size: u8) -> Result<(), Trap> {
        if self.state.rflags & flag::AC != 0
            && linear & (u64::from(size).wrapping_sub(1)) != 0
            && self.state.cr0 & cr0::AM != 0
            && self.is_user()
            && size.is_power_of_two()
        {
            return Err(Trap::coded(AC, 0));
        }
        Ok(())
    }

    /// The page for a load of `size` bytes with the rights of the current privilege, if the access needs no check other
    /// than that of its segment. See [`Tlb::page_to_read`](crate::tlb::Tlb::page_to_read).
    #[inline]
    pub(crate) fn page_to_read(&self, linear: u64, size: u8) -> Option<M::Page> {
        debug_assert_eq!(self.tlb.is_user(), self.is_user());
        self.tlb.page_to_read(linear, size)
    }

    /// The page for a store, as [`page_to_read`](Self::page_to_read).
    #[inline]
    pub(crate) fn page_to_write(&self, linear: u64, size: u8) -> Option<M::Page> {
        debug_assert_eq!(self.tlb.is_user(), self.is_user());
        self.tlb.page_to_write(linear, size)
    }

    /// Reads `size` bytes, 1 to 8, at an offset in a segment.
    pub(crate) fn load(&mut self, segment: usize, offset: u64, size: u8) -> Result<u64, Trap> {
        let linear = self.linear(segment, offset, size.into(), Access::Read)?;
        if size.is_power_of_two()
            && let Some(page) = self.page_to_read(linear, size)
        {
            return Ok(self.load_from_page(page, linear, size));
        }
        self.check_alignment(linear, size)?;
        self.load_linear(linear, size, self.is_user())
    }

    /// Reads `size` bytes, 1 to 8, that the instruction writes afterwards.
    pub(crate) fn load_for_update(&mut self, segment: usize, offset: u64, size: u8) -> Result<u64, Trap> {
        let linear = self.linear(segment, offset, size.into(), Access::Write)?;
        if size.is_power_of_two()
            && let Some(page) = self.page_to_write(linear, size)
        {
            return Ok(self.load_from_page(page, linear, size));
        }
        self.check_alignment(linear, size)?;
        let user = self.is_user();
        self.check_write(linear, size.into(), user)?;
        self.load_linear(linear, size, user)
    }

    /// Writes the low `size` bytes, 1 to 8, of a value at an offset in a segment.
    pub(crate) fn store(&mut self, segment: usize, offset: u64, size: u8, value: u64) -> Result<(), Trap> {
        let linear = self.linear(segment, offset, size.into(), Access::Write)?;
        if size.is_power_of_two()
            && let Some(page) = self.page_to_write(linear, size)
        {
            self.store_to_page(page, linear, size, value);
            return Ok(());
        }
        self.check_alignment(linear, size)?;
        self.store_linear(linear, size, value, self.is_user())
    }

    /// Raises the fault that a store of `size` bytes at an offset in a segment would raise.
    pub(crate) fn check_store(&mut self, segment: usize, offset: u64, size: u8) -> Result<(), Trap> {
        let linear = self.linear(segment, offset, size.into(), Access::Write)?;
        self.check_alignment(linear, size)?;
        self.check_write(linear, size.into(), self.is_user())
    }

    /// Reads 16 bytes at an offset in a segment. `aligned`: an address that is not a multiple of 16 raises #GP(0).
    pub(crate) fn load_wide(&mut self, segment: usize, offset: u64, aligned: bool) -> Result<u128, Trap> {
        let linear = self.linear(segment, offset, 16, Access::Read)?;
        if aligned && linear & 15 != 0 {
            return Err(Trap::gp());
        }
        let user = self.is_user();
        if linear & (PAGE - 1) <= PAGE - 16 {
            let entry = self.translate(linear, Access::Read, user)?;
            let low = self.load_from(entry, linear, 8)?;
            let high = self.load_from(entry, linear.wrapping_add(8), 8)?;
            return Ok(u128::from(high) << 64 | u128::from(low));
        }
        // A fault in the second page comes before an access to the first, which may be memory-mapped I/O.
        self.translate(linear, Access::Read, user)?;
        self.translate(linear.wrapping_add(15) & self.linear_mask() & !(PAGE - 1), Access::Read, user)?;
        let mut value = 0;
        for (done, size) in wide_parts(linear).into_iter().filter(|(_, size)| *size != 0) {
            let at = linear.wrapping_add(done.into()) & self.linear_mask();
            value |= u128::from(self.load_linear(at, size, user)?) << (8 * done);
        }
        Ok(value)
    }

    /// Writes 16 bytes at an offset in a segment. `aligned`: as in [`load_wide`](Self::load_wide).
    pub(crate) fn store_wide(
        &mut self,
        segment: usize,
        offset: u64,
        value: u128,
        aligned: bool,
    ) -> Result<(), Trap> {
        let linear = self.linear(segment, offset, 16, Access::Write)?;
        if aligned && linear & 15 != 0 {
            return Err(Trap::gp());
        }
        let user = self.is_user();
        if linear & (PAGE - 1) <= PAGE - 16 {
            let entry = self.translate(linear, Access::Write, user)?;
            self.store_to(entry, linear, 8, value as u64)?;
            return self.store_to(entry, linear.wrapping_add(8), 8, (value >> 64) as u64);
        }
        self.check_write(linear, 16, user)?;
        let last = linear.wrapping_add(15) & self.linear_mask();
        let mut parts = wide_parts(linear);
        // As in `store_linear`.
        let is_memory = self.translate(linear, Access::Write, user)?.page.is_some();
        if is_memory && self.translate(last, Access::Write, user)?.page.is_none() {
            parts.rotate_left(2);
        }
        for (done, size) in parts.into_iter().filter(|(_, size)| *size != 0) {
            let at = linear.wrapping_add(done.into()) & self.linear_mask();
            self.store_linear(at, size, (value >> (8 * done)) as u64, user)?;
        }
        Ok(())
    }

    /// The bits of a linear address.
    #[inline]
    pub(crate) fn linear_mask(&self) -> u64 {
        if self.state.is_64() { u64::MAX } else { 0xffff_ffff }
    }

    /// Raises the page fault that a write of `len` bytes, at most a page, would raise.
    #[inline]
    pub(crate) fn check_write(&mut self, linear: u64, len: u64, user: bool) -> Result<(), Trap> {
        self.translate(linear, Access::Write, user)?;
        if (linear & (PAGE - 1)) + len > PAGE {
            let last = linear.wrapping_add(len - 1) & self.linear_mask();
            self.translate(last & !(PAGE - 1), Access::Write, user)?;
        }
        Ok(())
    }

    /// Reads `size` bytes, 1 to 8, at a linear address. `user`: with the rights of ring 3.
    #[inline]
    pub(crate) fn load_linear(&mut self, linear: u64, size: u8, user: bool) -> Result<u64, Trap> {
        if (linear & (PAGE - 1)) + u64::from(size) <= PAGE {
            let entry = self.translate(linear, Access::Read, user)?;
            return self.load_from(entry, linear, size);
        }
        let (first, second) = halves(linear, size);
        let next = linear.wrapping_add(first.into()) & self.linear_mask();
        let low_page = self.translate(linear, Access::Read, user)?;
        let high_page = self.translate(next, Access::Read, user)?;
        let low = self.load_from(low_page, linear, first)?;
        let high = self.load_from(high_page, next, second)?;
        Ok(low | high << (8 * u32::from(first)))
    }

    /// Writes `size` bytes, 1 to 8, at a linear address. `user`: with the rights of ring 3.
    #[inline]
    pub(crate) fn store_linear(&mut self, linear: u64, size: u8, value: u64, user: bool) -> Result<(), Trap> {
        if (linear & (PAGE - 1)) + u64::from(size) <= PAGE {
            let entry = self.translate(linear, Access::Write, user)?;
            return self.store_to(entry, linear, size, value);
        }
        let (first, second) = halves(linear, size);
        let next = linear.wrapping_add(first.into()) & self.linear_mask();
        let low_page = self.translate(linear, Access::Write, user)?;
        let high_page = self.translate(next, Access::Write, user)?;
        let high = value >> (8 * u32::from(first));
        // Memory is written last: an exit executes the instruction again, which must not read what it has written.
        if low_page.page.is_some() && high_page.page.is_none() {
            self.store_to(high_page, next, second, high)?;
            return self.store_to(low_page, linear, first, value);
        }
        self.store_to(low_page, linear, first, value)?;
        self.store_to(high_page, next, second, high)
    }

    /// Reads `size` bytes in one page.
    #[inline]
    fn load_from(&mut self, entry: Entry<M::Page>, linear: u64, size: u8) -> Result<u64, Trap> {
        let offset = (linear & (PAGE - 1)) as usize;
        let page = entry.page.or_else(|| self.watched_page(entry.gpa, linear, size, Access::Read));
        let Some(page) = page else {
            let value = self.exchange(Exit::MmioRead { address: entry.gpa | offset as u64, size })?;
            return Ok(value & byte_mask(size));
        };
        Ok(self.load_from_page(page, linear, size))
    }

    /// Reads `size` bytes in a page of memory.
    #[inline]
    pub(crate) fn load_from_page(&self, page: M::Page, linear: u64, size: u8) -> u64 {
        let offset = (linear & (PAGE - 1)) as usize;
        match size {
            1 => self.memory.load::<1>(page, offset),
            2 => self.memory.load::<2>(page, offset),
            4 => self.memory.load::<4>(page, offset),
            8 => self.memory.load::<8>(page, offset),
            _ => (0..usize::from(size))
                .fold(0, |value, at| value | self.memory.load::<1>(page, offset + at) << (8 * at)),
        }
    }

    /// Writes `size` bytes in one page.
    #[inline]
    fn store_to(&mut self, entry: Entry<M::Page>, linear: u64, size: u8, value: u64) -> Result<(), Trap> {
        let offset = (linear & (PAGE - 1)) as usize;
        let page = entry.page.or_else(|| self.watched_page(entry.gpa, linear, size, Access::Write));
        let Some(page) = page else {
            let (address, data) = (entry.gpa | offset as u64, value & byte_mask(size));
            return self.exchange(Exit::MmioWrite { address, size, data }).map(drop);
        };
        self.store_to_page(page, linear, size, value);
        let gpa = entry.gpa | offset as u64;
        if entry.code != 0 && entry.code & granules(gpa, gpa + u64::from(size)) != 0 {
            self.code_written(gpa, size.into());
        }
        Ok(())
    }

    /// Writes `size` bytes in a page of memory. The caller forgets the code that was decoded from them.
    #[inline]
    pub(crate) fn store_to_page(&self, page: M::Page, linear: u64, size: u8, value: u64) {
        let offset = (linear & (PAGE - 1)) as usize;
        match size {
            1 => self.memory.store::<1>(page, offset, value),
            2 => self.memory.store::<2>(page, offset, value),
            4 => self.memory.store::<4>(page, offset, value),
            8 => self.memory.store::<8>(page, offset, value),
            _ => (0..usize::from(size))
                .for_each(|at| self.memory.store::<1>(page, offset + at, value >> (8 * at))),
        }
    }

    /// Hands an access to the caller of the processor, and returns its answer. The first time, the access ends the
    /// instruction, which is executed again when there is an answer.
    ///
    /// # Errors
    /// There is no answer yet.
    pub(crate) fn exchange(&mut self, exit: Exit) -> Result<u64, Trap> {
        if let Some(answer) = self.answers.get(self.next_answer).copied() {
            self.next_answer += 1;
            return Ok(answer);
        }
        self.pending = Some(exit);
        Err(Trap::Exit)
    }

    /// Forgets the answers to the accesses of this instruction: a part of it is complete, and is not executed again.
    #[inline]
    pub(crate) fn commit_answers(&mut self) {
        if self.next_answer != 0 {
            self.answers.drain(..self.next_answer.min(self.answers.len()));
            self.next_answer = 0;
        }
    }
}

/// The bits of `size` bytes, 1 to 8.
const fn byte_mask(size: u8) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (8 * size)) - 1 }
}

/// The number of bytes of an access that are in its first page, and in its second.
const fn halves(linear: u64, size: u8) -> (u8, u8) {
    let first = (PAGE - (linear & (PAGE - 1))) as u8;
    (first, size - first)
}

/// The parts of an access of 16 bytes that crosses a page: two in each page, of at most 8 bytes. Each has its distance from
/// the start and its size, which may be 0.
fn wide_parts(linear: u64) -> [(u32, u8); 4] {
    let (first, second) = halves(linear, 16);
    let low = |size: u8| size.min(8);
    [
        (0, low(first)),
        (low(first).into(), first - low(first)),
        (first.into(), low(second)),
        ((first + low(second)).into(), second - low(second)),
    ]
}

/// #SS for the stack segment, else #GP.
const fn segment_fault(segment: usize) -> Trap {
    Trap::coded(if segment == seg::SS { SS } else { GP }, 0)
}

#[cfg(test)]
#[path = "tests/linear.rs"]
mod tests;
