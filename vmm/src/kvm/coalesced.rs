//! KVM's ring of coalesced stores. The kernel queues stores to a registered zone without leaving the guest. The vCPU
//! returns them before the next exit.
//!
//! A VM has one ring, which is part of the mapping of each of its vCPUs. It begins with two 32-bit indices: of the first
//! used entry, and of the next free entry. Entries of 24 bytes follow, up to the end of the page. Linux
//! `Documentation/virt/kvm/api.rst`, section 4.116, and `include/uapi/linux/kvm.h`.

use crate::exit::Exit;
use kvm_bindings::KVM_COALESCED_MMIO_PAGE_OFFSET;
use std::fmt;
use std::ops::Range;

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

/// Removes the oldest store from the ring and returns it. `mapping` is the whole mapping of `kvm_run`.
pub(super) fn take(mapping: &mut [u8]) -> Result<Option<Exit>, BadRing> {
    let ring = mapping.get_mut(START..).and_then(|rest| rest.get_mut(..PAGE)).ok_or(BadRing::Missing)?;
    let (first, last) = (word(ring, 0), word(ring, 4));
    if first >= ENTRIES || last >= ENTRIES {
        return Err(BadRing::Index { first, last });
    }
    if first == last {
        return Ok(None);
    }
    let entry = ring.get(place(first)).ok_or(BadRing::Missing)?;
    if word(entry, 12) != 0 {
        return Err(BadRing::Port);
    }
    let size = word(entry, 8).min(8) as u8;
    let mut data = [0; 8];
    let bytes = entry.get(16..).unwrap_or_default();
    data.iter_mut().zip(bytes).take(size.into()).for_each(|(to, from)| *to = *from);
    let address = u64::from(word(entry, 4)) << 32 | u64::from(word(entry, 0));
    let next = if first.saturating_add(1) >= ENTRIES { 0 } else { first.saturating_add(1) };
    if let Some(index) = ring.get_mut(..4) {
        index.copy_from_slice(&next.to_le_bytes());
    }
    Ok(Some(Exit::MmioWrite { address, size, data: u64::from_le_bytes(data) }))
}

/// The entry's place in the page of the ring.
fn place(index: u32) -> Range<usize> {
    let start = (index as usize).saturating_mul(ENTRY).saturating_add(HEADER);
    start..start.saturating_add(ENTRY)
}

/// The 32-bit word at offset `at`; 0 past the end.
fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(|rest| rest.get(..4)).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mapping(first: u32, last: u32) -> Vec<u8> {
        let mut mapping = vec![0; START + PAGE];
        mapping[START..START + 4].copy_from_slice(&first.to_le_bytes());
        mapping[START + 4..START + 8].copy_from_slice(&last.to_le_bytes());
        mapping
    }

    fn put(mapping: &mut [u8], index: u32, address: u64, size: u32, data: u64) {
        let entry = &mut mapping[START..][place(index)];
        entry[..8].copy_from_slice(&address.to_le_bytes());
        entry[8..12].copy_from_slice(&size.to_le_bytes());
        entry[16..].copy_from_slice(&data.to_le_bytes());
    }

    fn first(mapping: &[u8]) -> u32 {
        word(&mapping[START..], 0)
    }

    #[test]
    fn stores_are_taken_in_order_and_the_ring_wraps() {
        let mut mapping = mapping(ENTRIES - 1, 1);
        put(&mut mapping, ENTRIES - 1, 0x10_0010, 4, 0xffff_ffff_0000_0007);
        put(&mut mapping, 0, 0x1_2345_6789, 8, u64::MAX);
        let store = |address, size, data| Ok(Some(Exit::MmioWrite { address, size, data }));
        assert_eq!(take(&mut mapping), store(0x10_0010, 4, 7), "data past the width is ignored");
        assert_eq!(take(&mut mapping), store(0x1_2345_6789, 8, u64::MAX));
        assert_eq!((take(&mut mapping), first(&mapping)), (Ok(None), 1));
    }

    #[test]
    fn the_page_holds_170_entries_as_in_the_kernel() {
        assert_eq!(ENTRIES, 170);
        assert!(place(ENTRIES - 1).end <= PAGE && place(ENTRIES).end > PAGE);
    }

    #[test]
    fn an_invalid_ring_is_an_error() {
        for (first, last) in [(ENTRIES, 0), (0, ENTRIES), (u32::MAX, u32::MAX)] {
            assert_eq!(take(&mut mapping(first, last)), Err(BadRing::Index { first, last }));
        }
        assert_eq!(take(&mut vec![0; START + PAGE - 1]), Err(BadRing::Missing));
        assert_eq!(take(&mut []), Err(BadRing::Missing));
        let mut port = mapping(0, 1);
        port[START + HEADER + 12] = 1;
        assert_eq!(take(&mut port), Err(BadRing::Port));
    }

    #[test]
    fn a_width_above_eight_counts_as_eight() {
        let mut mapping = mapping(3, 4);
        put(&mut mapping, 3, 0, u32::MAX, 5);
        assert_eq!(take(&mut mapping), Ok(Some(Exit::MmioWrite { address: 0, size: 8, data: 5 })));
    }

    proptest! {
        /// A page with any content is empty after at most as many stores as it has entries.
        #[test]
        fn any_page_becomes_empty(bytes in prop::collection::vec(any::<u8>(), PAGE), first: u8, last: u8) {
            let mut mapping = vec![0; START];
            mapping.extend(bytes);
            mapping[START..START + 8].copy_from_slice(&[first, 0, 0, 0, last, 0, 0, 0]);
            let taken = (0..ENTRIES).take_while(|_| matches!(take(&mut mapping), Ok(Some(_)))).count();
            prop_assert!(taken < ENTRIES as usize);
        }
    }
}
