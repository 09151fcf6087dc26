//! KVM's ring of coalesced stores: stores to a zone that the guest was not left for. The kernel queues them, and they
//! are handed on when the guest is left for something else.
//!
//! The ring is the VM's, and lies in the mapping of each of its vCPUs: two indices of 32 bits, the first used entry and
//! the next free one, and entries of 24 bytes up to the end of the page. Linux `Documentation/virt/kvm/api.rst`,
//! section 4.116, and `include/uapi/linux/kvm.h`.

use crate::exit::Exit;
use kvm_bindings::KVM_COALESCED_MMIO_PAGE_OFFSET;
use std::fmt;
use std::ops::Range;

/// Size of the ring's page, in bytes.
const PAGE: usize = 4096;
/// Where the ring begins in the mapping of `kvm_run`, in bytes.
const START: usize = KVM_COALESCED_MMIO_PAGE_OFFSET as usize * PAGE;
/// Size of the indices, in bytes.
const HEADER: usize = 8;
/// Size of an entry, in bytes: address (u64), width (u32), whether it is a port (u32), data (8 bytes).
const ENTRY: usize = 24;
/// How many entries there are. One is always free.
pub(super) const ENTRIES: u32 = ((PAGE - HEADER) / ENTRY) as u32;

/// The ring makes no sense. Only the kernel writes there, so the host is sick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadRing {
    /// The mapping ends before the ring does.
    Missing,
    /// An index is beyond the entries.
    Index { first: u32, last: u32 },
    /// An entry is for a port, and none was asked for.
    Port,
}

impl fmt::Display for BadRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("KVM maps no ring of coalesced stores"),
            Self::Index { first, last } => write!(
                f,
                "the ring of coalesced stores has {ENTRIES} entries, and its indices are {first} and {last}"
            ),
            Self::Port => f.write_str("the ring of coalesced stores holds a port, and none was asked for"),
        }
    }
}

impl std::error::Error for BadRing {}

/// Takes the oldest store out of the ring. `mapping` is all that begins with `kvm_run`.
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

/// Where an entry lies in the ring's page.
fn place(index: u32) -> Range<usize> {
    let start = (index as usize).saturating_mul(ENTRY).saturating_add(HEADER);
    start..start.saturating_add(ENTRY)
}

/// The word at `at`; zero past the end.
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
    fn stores_come_in_their_order_and_the_ring_wraps() {
        let mut mapping = mapping(ENTRIES - 1, 1);
        put(&mut mapping, ENTRIES - 1, 0x10_0010, 4, 0xffff_ffff_0000_0007);
        put(&mut mapping, 0, 0x1_2345_6789, 8, u64::MAX);
        let store = |address, size, data| Ok(Some(Exit::MmioWrite { address, size, data }));
        assert_eq!(take(&mut mapping), store(0x10_0010, 4, 7), "as wide as it says, and no wider");
        assert_eq!(take(&mut mapping), store(0x1_2345_6789, 8, u64::MAX));
        assert_eq!((take(&mut mapping), first(&mapping)), (Ok(None), 1));
    }

    #[test]
    fn the_page_holds_as_many_as_the_kernel_says() {
        assert_eq!(ENTRIES, 170);
        assert!(place(ENTRIES - 1).end <= PAGE && place(ENTRIES).end > PAGE);
    }

    #[test]
    fn wild_indices_and_other_nonsense_are_refused() {
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
    fn a_width_beyond_eight_is_eight() {
        let mut mapping = mapping(3, 4);
        put(&mut mapping, 3, 0, u32::MAX, 5);
        assert_eq!(take(&mut mapping), Ok(Some(Exit::MmioWrite { address: 0, size: 8, data: 5 })));
    }

    proptest! {
        /// Whatever the page holds, it is empty after at most as many stores as there are entries.
        #[test]
        fn any_page_comes_to_an_end(bytes in prop::collection::vec(any::<u8>(), PAGE), first: u8, last: u8) {
            let mut mapping = vec![0; START];
            mapping.extend(bytes);
            mapping[START..START + 8].copy_from_slice(&[first, 0, 0, 0, last, 0, 0, 0]);
            let taken = (0..ENTRIES).take_while(|_| matches!(take(&mut mapping), Ok(Some(_)))).count();
            prop_assert!(taken < ENTRIES as usize);
        }
    }
}
