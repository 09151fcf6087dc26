//! Page tables that map the first 4 GiB one to one with 2 MiB pages. Intel SDM volume 3, section 4.5.4.

use crate::memory::{Gpa, PAGE};

/// Page table entry: present.
pub(crate) const PTE_PRESENT: u64 = 1 << 0;
/// Page table entry: writable.
pub(crate) const PTE_WRITABLE: u64 = 1 << 1;
/// Page table entry: ring 3 may use the page.
pub(crate) const PTE_USER: u64 = 1 << 2;
/// Page directory entry: maps a 2 MiB page.
pub(crate) const PDE_LARGE: u64 = 1 << 7;
/// Size of the identity map in GiB. It covers all 32-bit addresses, and so the devices below 4 GiB.
const MAPPED_GIB: u64 = 4;

/// Page tables at `base` that map the first 4 GiB one to one with 2 MiB pages: a PML4, a page directory pointer table
/// and four page directories, a page each, in this order. In little-endian words.
pub fn identity_map(base: Gpa) -> Vec<u64> {
    mapped(base, 0)
}

/// The identity map with pages that ring 3 may use.
pub fn user_identity_map(base: Gpa) -> Vec<u64> {
    mapped(base, PTE_USER)
}

/// The identity map with additional bits in each entry.
fn mapped(base: Gpa, bits: u64) -> Vec<u64> {
    const ENTRIES: u64 = 512;
    let bits = bits | PTE_PRESENT | PTE_WRITABLE;
    let pointer_table = base.0 + PAGE;
    let directories = base.0 + 2 * PAGE;
    let table = |first: u64, entries: u64, entry: &dyn Fn(u64) -> u64| {
        (0..ENTRIES).map(|i| if i < entries { entry(first + i) } else { 0 }).collect::<Vec<_>>()
    };
    let pml4 = table(0, 1, &|_| pointer_table | bits);
    let pdpt = table(0, MAPPED_GIB, &|i| (directories + i * PAGE) | bits);
    let pds = (0..MAPPED_GIB).flat_map(|gib| table(gib * ENTRIES, ENTRIES, &|i| i << 21 | PDE_LARGE | bits));
    pml4.into_iter().chain(pdpt).chain(pds).collect()
}
