//! KVM's ring of coalesced stores. The kernel queues stores to a registered zone without leaving the guest. The vCPU
//! returns them before the next exit.
//!
//! A VM has one ring, which is part of the mapping of each of its vCPUs. It begins with two 32-bit indices: of the first
//! used entry, and of the next free entry. Entries of 24 bytes follow, up to the end of the page. Linux
//! `Documentation/virt/kvm/api.rst`, section 4.116, and `include/uapi/linux/kvm.h`.

use crate::exit::Exit;
use crate::kvm::run_page::RunPage;
use kvm_bindings::KVM_COALESCED_MMIO_PAGE_OFFSET;
use std::fmt;

/// Size of the ring's page, in bytes.
const PAGE: usize = 4096;
/// Offset of the ring in the mapping of `kvm_run`, in bytes.
const START: usize = KVM_COALESCED_MMIO_PAGE_OFFSET as usize * PAGE;
/// Size of the indices, in bytes.
const HEADER: usize = 8;
/// Size of an entry, in bytes: address (u64), width (u32), 1 for a port (u32), data (8 bytes).
const ENTRY: usize = 24;
/// The number of entries. At least one is free.
pub(super) const ENTRIES: u32 = ((PAGE - HEADER) / ENTRY) as u32;

/// An invalid ring. Only the kernel writes to it, so this is a bug of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadRing {
    /// The mapping is too short for the ring.
    Missing,
    /// An index is past the last entry.
    Index { first: u32, last: u32 },
    /// An entry is for a port, and only memory was registered.
    Port,
}

impl fmt::Display for BadRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("KVM does not map the ring of coalesced stores"),
            Self::Index { first, last } => write!(
                f,
                "the ring of coalesced stores has invalid indices {first} and {last}: they must be below {ENTRIES}"
            ),
            Self::Port => f.write_str(
                "the ring of coalesced stores has an entry for a port, and only memory was registered",
            ),
        }
    }
}

impl std::error::Error for BadRing {}

/// Removes the oldest store from the ring and returns it. `page` is the whole mapping of `kvm_run`. The kernel adds
/// stores only in KVM_RUN of the calling thread, because only a VM with one vCPU has a zone.
pub(super) fn take(page: &RunPage) -> Result<Option<Exit>, BadRing> {
    // The last entry ends before the end of the page, so this bound is the one of the ring.
    page.read::<1>(START + PAGE - 1).ok_or(BadRing::Missing)?;
    let word = |at| page.read(START.saturating_add(at)).map(u32::from_le_bytes).ok_or(BadRing::Missing);
    let (first, last) = (word(0)?, word(4)?);
    if first >= ENTRIES || last >= ENTRIES {
        return Err(BadRing::Index { first, last });
    }
    if first == last {
        return Ok(None);
    }
    let entry = place(first);
    if word(entry.saturating_add(12))? != 0 {
        return Err(BadRing::Port);
    }
    let address = u64::from(word(entry.saturating_add(4))?) << 32 | u64::from(word(entry)?);
    let size = word(entry.saturating_add(8))?.min(8) as u8;
    let data = u64::from(word(entry.saturating_add(20))?) << 32 | u64::from(word(entry.saturating_add(16))?);
    // The bytes past the width are not part of the store.
    let unused = 64u32.saturating_sub(8 * u32::from(size));
    let data = data.checked_shl(unused).map_or(0, |data| data >> unused);
    let next = if first.saturating_add(1) >= ENTRIES { 0 } else { first.saturating_add(1) };
    page.write(START, next.to_le_bytes());
    Ok(Some(Exit::MmioWrite { address, size, data }))
}

/// The offset of an entry in the page of the ring.
fn place(index: u32) -> usize {
    (index as usize).saturating_mul(ENTRY).saturating_add(HEADER)
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;
    use crate::kvm::run_copy::RunCopy;
    use kvm_bindings::kvm_run;
    use proptest::prelude::*;

    fn mapping(first: u32, last: u32) -> RunCopy {
        let page = RunCopy::of(kvm_run::default());
        page.write(START, first.to_le_bytes());
        page.write(START + 4, last.to_le_bytes());
        page
    }

    fn put(page: &RunPage, index: u32, address: u64, size: u32, data: u64) {
        let entry = START + place(index);
        page.write(entry, address.to_le_bytes());
        page.write(entry + 8, size.to_le_bytes());
        page.write(entry + 16, data.to_le_bytes());
    }

    #[test]
    fn stores_are_taken_in_order_and_the_ring_wraps() {
        let page = mapping(ENTRIES - 1, 1);
        put(&page, ENTRIES - 1, 0x10_0010, 4, 0xffff_ffff_0000_0007);
        put(&page, 0, 0x1_2345_6789, 8, u64::MAX);
        let store = |address, size, data| Ok(Some(Exit::MmioWrite { address, size, data }));
        assert_eq!(take(&page), store(0x10_0010, 4, 7), "data past the width is ignored");
        assert_eq!(take(&page), store(0x1_2345_6789, 8, u64::MAX));
        assert_eq!((take(&page), page.read(START)), (Ok(None), Some([1, 0, 0, 0])));
    }

    #[test]
    fn the_page_holds_170_entries_as_in_the_kernel() {
        assert_eq!(ENTRIES, 170);
        assert!(place(ENTRIES) <= PAGE && place(ENTRIES + 1) > PAGE);
    }

    #[test]
    fn an_invalid_ring_is_an_error() {
        for (first, last) in [(ENTRIES, 0), (0, ENTRIES), (u32::MAX, u32::MAX)] {
            assert_eq!(take(&mapping(first, last)), Err(BadRing::Index { first, last }));
        }
        let mut short = vec![0u64; (START + PAGE) / 8];
        for size in [START + PAGE - 1, START] {
            // SAFETY: the allocation outlives the mapping, and nothing else uses it meanwhile.
            let page = unsafe { RunPage::new(short.as_mut_ptr().cast(), size) }.unwrap();
            assert_eq!(take(&page), Err(BadRing::Missing));
        }
        let port = mapping(0, 1);
        port.write(START + HEADER + 12, [1]);
        assert_eq!(take(&port), Err(BadRing::Port));
    }

    #[test]
    fn a_width_above_eight_counts_as_eight() {
        let page = mapping(3, 4);
        put(&page, 3, 0, u32::MAX, 5);
        assert_eq!(take(&page), Ok(Some(Exit::MmioWrite { address: 0, size: 8, data: 5 })));
        let page = mapping(3, 4);
        put(&page, 3, 0, 0, 5);
        assert_eq!(take(&page), Ok(Some(Exit::MmioWrite { address: 0, size: 0, data: 0 })));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 4 } else { 256 }, ..Default::default() })]
        /// A page with any content is empty after at most as many stores as it has entries.
        #[test]
        fn any_page_becomes_empty(bytes in prop::collection::vec(any::<u8>(), PAGE), first: u8, last: u8) {
            let page = RunCopy::of(kvm_run::default());
            bytes.iter().enumerate().for_each(|(at, byte)| page.write(START + at, [*byte]));
            page.write(START, [first, 0, 0, 0, last, 0, 0, 0]);
            let taken = (0..ENTRIES).take_while(|_| matches!(take(&page), Ok(Some(_)))).count();
            prop_assert!(taken < ENTRIES as usize);
        }
    }
}
