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
mod tests;
