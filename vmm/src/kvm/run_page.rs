//! The mapping of `kvm_run`, which this program shares with the kernel and with a signal handler.
//!
//! The handler of the kick signal may set `immediate_exit` between any two instructions of the thread. So there is never
//! a reference to the mapping, because a reference would promise that nothing else accesses the bytes behind it. All
//! accesses go through one raw pointer to the whole mapping. `immediate_exit` is only accessed as an atomic byte.
#![allow(unsafe_code)]

use crate::x86::registers::Regs;
use kvm_bindings::{KVM_SYNC_X86_REGS, kvm_run, kvm_run__bindgen_ty_1};
use kvm_ioctls::VcpuFd;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

/// The part of `kvm_run` that describes an exit. `exit_reason` says which of its fields the kernel has filled.
pub(super) type Details = kvm_run__bindgen_ty_1;

/// The mapping that begins with `kvm_run`. Its owner must keep the mapping as long as this.
#[derive(Debug)]
pub struct RunPage {
    run: *mut kvm_run,
    /// The size of the whole mapping, in bytes.
    size: usize,
}

// SAFETY: the pointer only holds the address of a mapping of this process. The type is not `Sync`, so one thread at a
// time uses it, apart from the handler that runs on that thread.
unsafe impl Send for RunPage {}

impl RunPage {
    /// The mapping of `vcpu`, of which the kernel says that it has `size` bytes (KVM_GET_VCPU_MMAP_SIZE). `None` if that is
    /// too short for `kvm_run`.
    ///
    /// # Safety
    /// The result is not used after `vcpu` is dropped. No method of `vcpu` that makes a reference to `kvm_run` is called
    /// any more: `run`, `get_kvm_run`, `set_kvm_immediate_exit`, and those whose names contain `sync_reg`, `valid_reg`
    /// or `dirty_reg`.
    pub(super) unsafe fn of(vcpu: &mut VcpuFd, size: usize) -> Option<Self> {
        // This is the only way to the address. The reference ends here, before any other access to the mapping.
        let address = ptr::from_mut(vcpu.get_kvm_run()).addr();
        // The new pointer may access the whole mapping, and not only what the reference covered: mmap returned the address
        // as a number, so the permission to access this memory is exposed.
        let start = ptr::with_exposed_provenance_mut(address);
        // SAFETY: the kernel has mapped `size` bytes there, and the caller keeps the mapping and makes no references.
        unsafe { Self::new(start, size) }
    }

    /// The mapping of `size` bytes at `start`. `None` if it is too short for `kvm_run`.
    ///
    /// # Safety
    /// `start` is aligned like `kvm_run`. `size` initialised bytes can be read and written from there, as long as the
    /// result lives, and nothing but the result, the kernel and the handler of the kick signal accesses them meanwhile.
    pub(super) unsafe fn new(start: *mut u8, size: usize) -> Option<Self> {
        (size >= size_of::<kvm_run>()).then_some(Self { run: start.cast(), size })
    }

    /// The byte that makes KVM_RUN return at once, for the signal handler.
    #[inline]
    pub(super) fn immediate_exit(&self) -> *const AtomicU8 {
        // SAFETY: the mapping contains the whole `kvm_run`. An AtomicU8 is laid out as a u8.
        unsafe { (&raw const (*self.run).immediate_exit).cast() }
    }

    /// Sets the byte that makes KVM_RUN return at once.
    #[inline]
    pub(super) fn set_immediate_exit(&self, value: u8) {
        // SAFETY: the byte is in the mapping, and all of this program's accesses to it are atomic.
        unsafe { (*self.immediate_exit()).store(value, Ordering::Relaxed) }
    }

    /// The reason of the last exit, KVM_EXIT_*.
    #[inline]
    pub(super) fn exit_reason(&self) -> u32 {
        // SAFETY: the field is in the mapping. The kernel writes it only in KVM_RUN, which this thread calls.
        unsafe { (*self.run).exit_reason }
    }

    /// The description of the last exit. It is in the mapping, so it is for reads and writes of single fields without a
    /// reference.
    #[inline]
    pub(super) fn details(&self) -> *mut Details {
        // SAFETY: the mapping contains the whole `kvm_run`.
        unsafe { &raw mut (*self.run).__bindgen_anon_1 }
    }

    /// Asks the kernel to store the general registers in the mapping at each exit.
    pub(super) fn sync_registers(&self) {
        // SAFETY: the field is in the mapping.
        unsafe { (*self.run).kvm_valid_regs |= u64::from(KVM_SYNC_X86_REGS) }
    }

    /// The general registers that the kernel has stored in the mapping.
    #[inline]
    pub(super) fn registers(&self) -> Regs {
        // SAFETY: the field is in the mapping. It consists of plain integers, valid with any bits.
        unsafe { (*self.run).s.regs.regs }.into()
    }

    /// The instruction pointer of [`registers`](Self::registers).
    #[inline]
    pub(super) fn rip(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.run).s.regs.regs.rip }
    }

    /// Stores general registers in the mapping, which the kernel takes at the next entry.
    pub(super) fn set_registers(&self, registers: &Regs) {
        // SAFETY: both fields are in the mapping.
        unsafe {
            (*self.run).s.regs.regs = (*registers).into();
            (*self.run).kvm_dirty_regs |= u64::from(KVM_SYNC_X86_REGS);
        }
    }

    /// Reads the `N` bytes at `offset` in the mapping. `None` unless all of them are in it.
    #[inline]
    pub(super) fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // SAFETY: the bytes are in the mapping, and may have any value and alignment.
        self.place::<N>(offset).map(|place| unsafe { place.read_unaligned() })
    }

    /// Writes `bytes` at `offset` in the mapping. Does nothing unless all of them are in it.
    #[inline]
    pub(super) fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) {
        if let Some(place) = self.place::<N>(offset) {
            // SAFETY: as above.
            unsafe { place.write_unaligned(bytes) }
        }
    }

    /// The address of the `N` bytes at `offset`.
    #[inline]
    fn place<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        let inside = offset < self.size && self.size - offset >= N;
        // SAFETY: the offset is in the mapping.
        inside.then(|| unsafe { self.run.byte_add(offset).cast() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::run_copy::RunCopy;
    use kvm_bindings::{KVM_EXIT_IO, KVM_EXIT_IO_OUT};

    /// Does the work of the handler of the kick signal.
    fn kick(immediate_exit: *const AtomicU8) {
        // SAFETY: the callers keep the mapping.
        unsafe { (*immediate_exit).store(1, Ordering::Relaxed) }
    }

    /// Miri checks that the pointer of the handler stays valid whatever the vCPU does with its mapping.
    #[test]
    fn a_kick_may_come_between_any_two_accesses() {
        let mut run = kvm_run { exit_reason: KVM_EXIT_IO, ..Default::default() };
        run.__bindgen_anon_1.io.direction = KVM_EXIT_IO_OUT as u8;
        run.__bindgen_anon_1.io.size = 2;
        run.__bindgen_anon_1.io.count = 1;
        run.__bindgen_anon_1.io.data_offset = 4096;
        let page = RunCopy::of(run);
        let immediate_exit = page.immediate_exit();
        let kicked = || {
            // SAFETY: `page` lives.
            assert_eq!(unsafe { (*immediate_exit).load(Ordering::Relaxed) }, 1);
            page.set_immediate_exit(0);
        };
        page.sync_registers();
        kick(immediate_exit);
        page.write(4096, [0x34, 0x12]);
        kicked();
        assert_eq!(page.exit_reason(), KVM_EXIT_IO);
        kick(immediate_exit);
        let exit = page.first_exit();
        kicked();
        assert_eq!(exit, crate::exit::Exit::PioOut { port: 0, size: 2, data: 0x1234 });
        let details = page.details();
        kick(immediate_exit);
        // SAFETY: `page` lives, and the field consists of plain integers.
        unsafe { (*details).mmio.data = [7; 8] };
        kicked();
        page.set_registers(&Regs { rip: 0x1000, rax: 5, ..Default::default() });
        kick(immediate_exit);
        assert_eq!((page.rip(), page.registers().rax), (0x1000, 5));
        kicked();
    }

    #[test]
    fn accesses_outside_the_mapping_do_nothing() {
        let page = RunCopy::of(kvm_run::default());
        page.write(RunCopy::SIZE - 4, [1, 2, 3, 4]);
        page.write(RunCopy::SIZE - 3, [9; 4]);
        page.write(usize::MAX, [9]);
        assert_eq!(page.read(RunCopy::SIZE - 4), Some([1, 2, 3, 4]));
        assert_eq!(page.read::<4>(RunCopy::SIZE - 3), None);
        assert_eq!((page.read::<1>(RunCopy::SIZE), page.read::<2>(usize::MAX)), (None, None));
        // SAFETY: nothing is accessed, because the mapping is too short.
        assert!(unsafe { RunPage::new(ptr::dangling_mut(), size_of::<kvm_run>() - 1) }.is_none());
    }
}
