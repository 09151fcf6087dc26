//! Decodes `kvm_run` into an exit, and splits string I/O into its elements.
#![allow(unsafe_code)]

use crate::exit::{Exit, HYPERCALL_PORT, Instruction};
use crate::kvm::run_page::RunPage;
use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
};

/// A port I/O exit that is returned element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) port: u16,
    /// Width of an element, in bytes.
    pub(super) size: u8,
    pub(super) out: bool,
    /// The number of elements.
    pub(super) count: u32,
    /// Index of the current element.
    pub(super) index: u32,
    /// Offset of the elements from the start of `kvm_run`, in bytes.
    pub(super) data_offset: u64,
}

impl Transfer {
    /// The element's offset in the mapping of `kvm_run`.
    #[inline(always)]
    fn place(&self) -> Option<usize> {
        let start = usize::try_from(self.data_offset).ok()?;
        start.checked_add((self.index as usize).checked_mul(self.size.into())?)
    }

    /// The element as an exit. `page` is the whole mapping of `kvm_run`.
    #[inline(always)]
    pub(super) fn exit(&self, page: &RunPage) -> Exit {
        let Self { port, size, .. } = *self;
        if !self.out {
            return Exit::PioIn { port, size };
        }
        // A match on the width instead of a loop, because each write of the guest takes this path.
        let data = self.place().and_then(|place| match size {
            1 => page.read(place).map(u8::from_le_bytes).map(u32::from),
            2 => page.read(place).map(u16::from_le_bytes).map(u32::from),
            4 => page.read(place).map(u32::from_le_bytes),
            _ => None,
        });
        let data = data.unwrap_or(0);
        if port == HYPERCALL_PORT && size == 4 {
            return Exit::Hypercall { number: data };
        }
        Exit::PioOut { port, size, data }
    }

    /// Stores the value that the guest reads.
    pub(super) fn answer(&self, page: &RunPage, value: u64) {
        // A match on the width, as above.
        match (self.place(), self.size) {
            (Some(place), 1) => page.write(place, (value as u8).to_le_bytes()),
            (Some(place), 2) => page.write(place, (value as u16).to_le_bytes()),
            (Some(place), 4) => page.write(place, (value as u32).to_le_bytes()),
            _ => {}
        }
    }

    /// The next element, if there is one.
    pub(super) fn next(self) -> Option<Self> {
        let index = self.index.checked_add(1)?;
        (index < self.count).then_some(Self { index, ..self })
    }
}

/// The result of [`decode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    Exit(Exit),
    /// Port I/O. Its elements are elsewhere in the mapping.
    Pio(Transfer),
}

/// Decodes the exit in `page`.
#[inline]
pub(super) fn decode(page: &RunPage) -> Decoded {
    // SAFETY, for each of the union's fields below: `exit_reason` says which of them the kernel has filled, and all are
    // plain integers, valid with any bits. They are copied out of the mapping without a reference to it.
    let (reason, details) = (page.exit_reason(), page.details());
    // The most frequent reason comes first, before the jump table of the others.
    if reason == KVM_EXIT_IO {
        // SAFETY: see above.
        let io = unsafe { (*details).io };
        return Decoded::Pio(Transfer {
            port: io.port,
            size: io.size,
            out: u32::from(io.direction) == KVM_EXIT_IO_OUT,
            count: io.count,
            index: 0,
            data_offset: io.data_offset,
        });
    }
    Decoded::Exit(match reason {
        KVM_EXIT_MMIO => decode_mmio(page),
        // SAFETY: see above.
        KVM_EXIT_X86_RDMSR => Exit::RdMsr { index: unsafe { (*details).msr }.index },
        KVM_EXIT_X86_WRMSR => {
            // SAFETY: see above.
            let msr = unsafe { (*details).msr };
            Exit::WrMsr { index: msr.index, data: msr.data }
        }
        KVM_EXIT_HLT => Exit::Hlt,
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: see above.
            Exit::FailedEntry { reason: unsafe { (*details).fail_entry }.hardware_entry_failure_reason }
        }
        KVM_EXIT_INTERNAL_ERROR => decode_internal_error(page),
        reason => Exit::Other(reason),
    })
}

/// Decodes a KVM_EXIT_MMIO.
fn decode_mmio(page: &RunPage) -> Exit {
    // SAFETY: the caller has checked the reason, so the kernel has filled this field of the union. It consists of plain
    // integers, valid with any bits.
    let mmio = unsafe { (*page.details()).mmio };
    let (address, size) = (mmio.phys_addr, mmio.len.min(8) as u8);
    if mmio.is_write == 0 {
        return Exit::MmioRead { address, size };
    }
    // KVM does not clear the bytes past the width of the store.
    let unused = 64u32.saturating_sub(8 * u32::from(size));
    let data = u64::from_le_bytes(mmio.data).checked_shl(unused).map_or(0, |data| data >> unused);
    Exit::MmioWrite { address, size, data }
}

/// Decodes a KVM_EXIT_INTERNAL_ERROR, of which a failed emulation is one kind.
fn decode_internal_error(page: &RunPage) -> Exit {
    let details = page.details();
    // SAFETY: the caller has checked the reason, so the kernel has filled this field of the union. It consists of plain
    // integers, valid with any bits.
    if unsafe { (*details).internal }.suberror != KVM_INTERNAL_ERROR_EMULATION {
        return Exit::Other(KVM_EXIT_INTERNAL_ERROR);
    }
    // SAFETY: as above. The two layouts begin in the same way, and `ndata` is the number of words in this one.
    let failure = unsafe { (*details).emulation_failure };
    let has_bytes = failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
    if failure.ndata < 1 || !has_bytes {
        return Exit::EmulationFailure(Instruction::default());
    }
    // SAFETY: as above. The flag says that the kernel has filled this part.
    let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let len = usize::from(bytes.insn_size);
    Exit::EmulationFailure(Instruction::new(bytes.insn_bytes.get(..len).unwrap_or(&bytes.insn_bytes)))
}

/// Decodes the exit in `page`. For port I/O: its first element.
#[cfg(any(test, feature = "internals"))]
pub(super) fn first_exit(page: &RunPage) -> Exit {
    match decode(page) {
        Decoded::Pio(transfer) => transfer.exit(page),
        Decoded::Exit(exit) => exit,
    }
}

#[cfg(test)]
mod tests;
