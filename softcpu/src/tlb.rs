//! The TLB (SDM volume 3, section 4.10).

use crate::linear::is_canonical;
use crate::memory::PAGE;
use crate::paging::Access;

/// The number of entries of the TLB.
const ENTRIES: usize = 512;
/// Bits 0 to 3 of a tag are 0. So an address whose low bits are not 0, because the access is not aligned, equals no tag.
/// Bit 4 is the privilege, and bits 5 to 11 are the generation.
const USER: u64 = 1 << 4;
const GENERATION: u64 = 1 << 5;

/// A translation, which allows at least reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<P> {
    /// The linear address of the page, and in bits 0 to 11 the context: the privilege of the accesses and the generation.
    pub(crate) tag: u64,
    /// The physical address of the page.
    pub(crate) gpa: u64,
    /// `None` if there is no memory.
    pub(crate) page: Option<P>,
    /// The parts of the page from which blocks were decoded, as in [`granules`](crate::blocks::granules).
    pub(crate) code: u64,
    /// Writes need no further check.
    pub(crate) writable: bool,
    /// Fetches need no further check.
    pub(crate) executable: bool,
    /// The binary logarithm of the size of the page that the paging structures map.
    pub(crate) shift: u8,
    pub(crate) global: bool,
}

impl<P> Entry<P> {
    #[inline]
    fn allows(&self, access: Access) -> bool {
        match access {
            Access::Read => true,
            Access::Write => self.writable,
            Access::Execute => self.executable,
        }
    }
}

/// The TLB. It is direct-mapped, and holds translations of 4 KiB.
pub(crate) struct Tlb<P> {
    entries: Box<[Entry<P>; ENTRIES]>,
    /// The low bits of the tags of valid entries for the current privilege. The generation in it is 1 to 127; the tag of an
    /// invalid entry has the generation 0, or an old one.
    context: u64,
    /// There may be entries of global pages.
    has_global: bool,
    /// There may be entries that are parts of large pages.
    has_large: bool,
}

impl<P: Copy> Tlb<P> {
    pub(crate) fn new() -> Self {
        let empty = Entry {
            tag: 0,
            gpa: 0,
            page: None,
            code: 0,
            writable: false,
            executable: false,
            shift: 12,
            global: false,
        };
        let entries = Box::new([empty; ENTRIES]);
        Self { entries, context: GENERATION, has_global: false, has_large: false }
    }

    /// The index of an entry. The context is a part of it, so that the two privileges do not displace each other's
    /// translation of a page.
    #[inline]
    fn place(linear: u64, context: u64) -> usize {
        (linear >> 12 ^ context) as usize & (ENTRIES - 1)
    }

    /// The context of accesses with the rights of user mode, or of the supervisor.
    #[inline]
    fn context(&self, user: bool) -> u64 {
        self.context & !USER | if user { USER } else { 0 }
    }

    /// Sets the privilege of the accesses that [`page_to_read`](Self::page_to_read) and
    /// [`page_to_write`](Self::page_to_write) find pages for.
    #[inline]
    pub(crate) fn set_privilege(&mut self, user: bool) {
        self.context = self.context(user);
    }

    /// The privilege of these accesses.
    pub(crate) fn is_user(&self) -> bool {
        self.context & USER != 0
    }

    /// The translation of a linear address, if it is here and allows the access.
    #[inline]
    pub(crate) fn find(&self, linear: u64, access: Access, user: bool) -> Option<Entry<P>> {
        let context = self.context(user);
        let entry = &self.entries[Self::place(linear, context)];
        (entry.tag == linear & !(PAGE - 1) | context && entry.allows(access)).then_some(*entry)
    }

    /// The page for a load of `size` bytes, a power of two up to 8. `None` if the access is not aligned, is none of
    /// memory, or has no translation here: then it must be checked in all its parts.
    #[inline]
    pub(crate) fn page_to_read(&self, linear: u64, size: u8) -> Option<P> {
        let entry = &self.entries[Self::place(linear, self.context)];
        if entry.tag != self.aligned_tag(linear, size) {
            return None;
        }
        entry.page
    }

    /// The page for a store, as [`page_to_read`](Self::page_to_read). A page with code is for the long way, too.
    #[inline]
    pub(crate) fn page_to_write(&self, linear: u64, size: u8) -> Option<P> {
        let entry = &self.entries[Self::place(linear, self.context)];
        if entry.tag != self.aligned_tag(linear, size) || !entry.writable || entry.code != 0 {
            return None;
        }
        entry.page
    }

    /// The tag for an aligned access. If it is not aligned, no tag.
    #[inline]
    fn aligned_tag(&self, linear: u64, size: u8) -> u64 {
        linear & (!(PAGE - 1) | u64::from(size).wrapping_sub(1)) | self.context
    }

    /// Forgets all translations.
    pub(crate) fn flush(&mut self) {
        self.context += GENERATION;
        if self.context >= PAGE {
            self.entries.iter_mut().for_each(|entry| entry.tag = 0);
            self.context = self.context % PAGE + GENERATION;
        }
        (self.has_global, self.has_large) = (false, false);
    }

    /// Forgets all translations but the global ones.
    pub(crate) fn flush_local(&mut self) {
        if self.has_global {
            self.entries.iter_mut().filter(|entry| !entry.global).for_each(|entry| entry.tag = 0);
        } else {
            self.flush();
        }
    }

    /// Forgets the translation of the page at a linear address, also if it is a large page or a global one (INVLPG, SDM
    /// volume 3, section 4.10.4.1).
    pub(crate) fn flush_page(&mut self, linear: u64) {
        for context in [false, true].map(|user| self.context(user)) {
            let entry = &mut self.entries[Self::place(linear, context)];
            if entry.tag & !(PAGE - 1) == linear & !(PAGE - 1) {
                entry.tag = 0;
            }
        }
        if self.has_large {
            let same_page = |entry: &&mut Entry<P>| (entry.tag ^ linear) >> entry.shift == 0;
            self.entries.iter_mut().filter(same_page).for_each(|entry| entry.tag = 0);
        }
    }

    /// Notes the parts of the page at `gpa` from which blocks were decoded.
    pub(crate) fn mark_code(&mut self, gpa: u64, code: u64) {
        let entries = self.entries.iter_mut().filter(|entry| entry.gpa == gpa & !(PAGE - 1));
        entries.for_each(|entry| entry.code = code);
    }

    /// Keeps a translation of the page at a linear address. One of an address that is not canonical, which only accesses
    /// to system tables can have, is not kept.
    pub(crate) fn insert(&mut self, linear: u64, user: bool, mut entry: Entry<P>) -> Entry<P> {
        if !is_canonical(linear) {
            return entry;
        }
        self.has_global |= entry.global;
        self.has_large |= entry.shift > 12;
        let context = self.context(user);
        entry.tag = linear & !(PAGE - 1) | context;
        self.entries[Self::place(linear, context)] = entry;
        entry
    }
}

#[cfg(test)]
#[path = "tests/tlb.rs"]
mod tests;
