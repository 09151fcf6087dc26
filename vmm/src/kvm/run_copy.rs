//! A copy of `kvm_run` without a vCPU. It decodes the exits that another program got from its own vCPU.
#![allow(unsafe_code)]

use crate::exit::Exit;
use crate::kvm::decode::{Decoded, Transfer, decode};
use crate::kvm::run_page::RunPage;
use kvm_bindings::kvm_run;
use std::mem::offset_of;
use std::ptr;

/// The number of bytes that describe an exit for [`RunCopy::decode`].
pub const DETAILS: usize = 32;
/// The place of the description in `kvm_run`.
const UNION: usize = offset_of!(kvm_run, __bindgen_anon_1);
/// The size of the description of port I/O (`struct kvm_run.io`). The data follow it in the copy.
const IO: usize = 16;
/// The place of the data of port I/O in the copy.
const DATA: usize = 4096;
/// KVM returns at most one page of data for an exit.
const MOST_DATA: u32 = 4096;

/// One element of an exit of another program's vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiedExit {
    /// The exit.
    pub exit: Exit,
    /// The value that the guest wrote or read, if it is known.
    pub value: Option<u64>,
    /// True if the answer was #GP.
    pub fault: bool,
}

/// A copy of `kvm_run`.
#[derive(Debug)]
pub struct RunCopy {
    page: RunPage,
}

impl Default for RunCopy {
    fn default() -> Self {
        Self::of(kvm_run::default())
    }
}

impl RunCopy {
    /// The size of the copy in bytes: `kvm_run`, the data of port I/O, and the ring of coalesced stores have a page each.
    pub const SIZE: usize = 3 * 4096;

    /// Creates a copy that begins with `run`. The rest is zero.
    pub fn of(run: kvm_run) -> Self {
        let words = Box::leak(vec![0u64; Self::SIZE / 8].into_boxed_slice());
        // SAFETY: the allocation is aligned to 8 bytes like `kvm_run`, and lives until it is dropped with the result.
        let page = unsafe { RunPage::new(words.as_mut_ptr().cast(), Self::SIZE) };
        let Some(page) = page else { unreachable!("three pages are enough for kvm_run") };
        // SAFETY: the allocation is long enough.
        unsafe { page.details().byte_sub(UNION).cast::<kvm_run>().write(run) };
        Self { page }
    }

    /// Decodes an exit of another program's vCPU, from its reason (KVM_EXIT_*) and the first bytes of its description
    /// (`Documentation/virt/kvm/api.rst`, section 5). For port I/O these are the 16 bytes of `struct kvm_run.io` and the
    /// first 16 bytes of the data.
    ///
    /// Returns at least one element. Only string I/O has more: at most 4096, as KVM returns at most a page of data.
    pub fn decode(&mut self, reason: u32, details: &[u8; DETAILS]) -> impl Iterator<Item = CopiedExit> {
        self.page.write(offset_of!(kvm_run, exit_reason), reason.to_ne_bytes());
        self.page.write(UNION, *details);
        let decoded = decode(&self.page);
        let (one, transfer) = match decoded {
            Decoded::Exit(exit) => (Some(self.plain(exit, details)), None),
            Decoded::Pio(transfer) => {
                let data = details.last_chunk::<{ DETAILS - IO }>().copied().unwrap_or_default();
                self.page.write(DATA, data);
                let most = MOST_DATA.checked_div(transfer.size.into()).unwrap_or(1).max(1);
                let (count, data_offset) = (transfer.count.clamp(1, most), DATA as u64);
                (None, Some(Transfer { count, data_offset, ..transfer }))
            }
        };
        let elements = std::iter::successors(transfer, |transfer| transfer.next());
        one.into_iter().chain(elements.map(|element| self.element(element)))
    }

    /// An exit that is not port I/O.
    fn plain(&self, exit: Exit, details: &[u8; DETAILS]) -> CopiedExit {
        // In `struct kvm_run`, the value of an MMIO access is at 8, and that of an MSR access at 16.
        let word = |at: usize| details.get(at..).and_then(|rest| rest.first_chunk()).copied();
        let word = |at| word(at).map(u64::from_le_bytes);
        let value = match exit {
            Exit::MmioWrite { data, .. } | Exit::WrMsr { data, .. } => Some(data),
            Exit::MmioRead { size, .. } => word(8).map(|data| data & ones(size)),
            Exit::RdMsr { .. } => word(16),
            _ => None,
        };
        // The first byte of an MSR access is its error.
        let is_msr = matches!(exit, Exit::RdMsr { .. } | Exit::WrMsr { .. });
        let fault = is_msr && details.first().is_some_and(|error| *error != 0);
        CopiedExit { exit, value: value.filter(|_| !fault || matches!(exit, Exit::WrMsr { .. })), fault }
    }

    /// An element of port I/O.
    fn element(&self, transfer: Transfer) -> CopiedExit {
        let exit = transfer.exit(&self.page);
        let end = transfer.index.saturating_add(1).saturating_mul(transfer.size.into());
        let is_known = end as usize <= DETAILS - IO;
        let value = match exit {
            Exit::PioOut { data, .. } => Some(data.into()),
            Exit::PioIn { size, .. } => {
                let start = end.saturating_sub(size.into()) as usize;
                self.page.read(DATA + start).map(|bytes| u64::from_le_bytes(bytes) & ones(size))
            }
            _ => None,
        };
        CopiedExit { exit, value: value.filter(|_| is_known), fault: false }
    }
}

/// As many bytes of ones.
fn ones(bytes: u8) -> u64 {
    u64::MAX.checked_shr(64u32.saturating_sub(8 * u32::from(bytes.min(8)))).unwrap_or(0)
}

#[cfg(any(test, feature = "internals"))]
impl RunCopy {
    /// Decodes the exit. For port I/O: its first element.
    pub fn first_exit(&self) -> Exit {
        super::decode::first_exit(&self.page)
    }
}

impl Drop for RunCopy {
    fn drop(&mut self) {
        // SAFETY: this is the start of the allocation, of which the description is a part.
        let start = unsafe { self.page.details().byte_sub(UNION) };
        let words = ptr::slice_from_raw_parts_mut(start.cast::<u64>(), Self::SIZE / 8);
        // SAFETY: `of` has leaked this allocation, and nothing uses it any more.
        drop(unsafe { Box::from_raw(words) });
    }
}

#[cfg(test)]
impl std::ops::Deref for RunCopy {
    type Target = RunPage;
    fn deref(&self) -> &RunPage {
        &self.page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::{
        KVM_EXIT_HLT, KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_X86_RDMSR,
        KVM_EXIT_X86_WRMSR,
    };

    /// The description of port I/O with these first data.
    fn io(out: bool, size: u8, port: u16, count: u32, data: &[u8]) -> [u8; DETAILS] {
        let mut details = [0; DETAILS];
        details[0] = out.into();
        details[1] = size;
        details[2..4].copy_from_slice(&port.to_le_bytes());
        details[4..8].copy_from_slice(&count.to_le_bytes());
        details[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        details[16..16 + data.len()].copy_from_slice(data);
        details
    }

    fn all(reason: u32, details: &[u8; DETAILS]) -> Vec<CopiedExit> {
        RunCopy::default().decode(reason, details).collect()
    }

    fn one(reason: u32, details: &[u8; DETAILS]) -> CopiedExit {
        let all = all(reason, details);
        assert_eq!(all.len(), 1);
        all[0]
    }

    #[test]
    fn port_io_is_decoded_with_its_values() {
        let exit = one(KVM_EXIT_IO, &io(true, 2, 0x3f8, 1, &[0x34, 0x12]));
        assert_eq!(exit.exit, Exit::PioOut { port: 0x3f8, size: 2, data: 0x1234 });
        assert_eq!(exit.value, Some(0x1234));
        let exit = one(KVM_EXIT_IO, &io(false, 1, 0x60, 1, &[0xab, 0xff]));
        assert_eq!((exit.exit, exit.value), (Exit::PioIn { port: 0x60, size: 1 }, Some(0xab)));
        let exit = one(KVM_EXIT_IO, &io(true, 4, 0x500, 1, &[7]));
        assert_eq!(exit.exit, Exit::Hypercall { number: 7 });
    }

    #[test]
    fn string_io_has_its_elements_and_the_first_values() {
        let elements = all(KVM_EXIT_IO, &io(true, 1, 0xe9, 20, b"abcdefghijklmnop"));
        let values: Vec<_> = elements.iter().filter_map(|element| element.value).collect();
        assert_eq!((elements.len(), values), (20, b"abcdefghijklmnop".map(u64::from).to_vec()));
        assert_eq!(elements[15].value, Some(b'p'.into()));
        assert_eq!(all(KVM_EXIT_IO, &io(false, 2, 0x1f0, 9, &[])).len(), 9);
    }

    #[test]
    fn hostile_counts_and_widths_are_bounded() {
        for size in 0..=u8::MAX {
            for count in [0, 1, 4096, 4097, u32::MAX] {
                let elements = all(KVM_EXIT_IO, &io(true, size, 1, count, &[]));
                assert!((1..=4096).contains(&elements.len()), "{size} {count}");
            }
        }
        assert_eq!(all(KVM_EXIT_IO, &io(true, 4, 1, u32::MAX, &[])).len(), 1024);
    }

    #[test]
    fn other_exits_are_decoded_with_their_values() {
        let mut details = [0xee; DETAILS];
        details[..8].copy_from_slice(&0xfee0_0000u64.to_le_bytes());
        details[8..16].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        details[16..20].copy_from_slice(&4u32.to_le_bytes());
        details[20] = 1;
        let write = one(KVM_EXIT_MMIO, &details);
        assert_eq!(write.exit, Exit::MmioWrite { address: 0xfee0_0000, size: 4, data: 0x0403_0201 });
        details[20] = 0;
        let read = one(KVM_EXIT_MMIO, &details);
        assert_eq!(
            (read.exit, read.value),
            (Exit::MmioRead { address: 0xfee0_0000, size: 4 }, Some(0x0403_0201))
        );

        let mut msr = [0; DETAILS];
        msr[12..16].copy_from_slice(&0x1a0u32.to_le_bytes());
        msr[16] = 9;
        let read = one(KVM_EXIT_X86_RDMSR, &msr);
        assert_eq!((read.exit, read.value, read.fault), (Exit::RdMsr { index: 0x1a0 }, Some(9), false));
        msr[0] = 1;
        let read = one(KVM_EXIT_X86_RDMSR, &msr);
        assert_eq!((read.value, read.fault), (None, true));
        let write = one(KVM_EXIT_X86_WRMSR, &msr);
        assert_eq!(
            (write.exit, write.value, write.fault),
            (Exit::WrMsr { index: 0x1a0, data: 9 }, Some(9), true)
        );
        assert_eq!(one(KVM_EXIT_HLT, &details).exit, Exit::Hlt);
        assert_eq!(one(KVM_EXIT_SYSTEM_EVENT, &details).exit, Exit::Other(KVM_EXIT_SYSTEM_EVENT));
    }

    /// The copy is used again for each exit, so nothing of the previous one may show.
    #[test]
    fn one_copy_decodes_many_exits() {
        let mut copy = RunCopy::default();
        let first: Vec<_> = copy.decode(KVM_EXIT_IO, &io(true, 4, 1, 4, &[0xff; 16])).collect();
        assert_eq!(first.len(), 4);
        let second: Vec<_> = copy.decode(KVM_EXIT_IO, &io(true, 4, 1, 1, &[1])).collect();
        assert_eq!(second[0].exit, Exit::PioOut { port: 1, size: 4, data: 1 });
    }
}
