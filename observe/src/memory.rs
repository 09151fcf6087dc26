//! The memory of an observed guest: the memory slots that the program gave to KVM, and access to them.
#![allow(unsafe_code)]

use crate::engine::{Call, Target};
use std::collections::BTreeMap;
use std::io;
use vmm::memory::Gpa;

/// KVM_SET_USER_MEMORY_REGION (api.rst, section 4.35).
const SET_REGION: u32 = 0x4020_ae46;
/// KVM_SET_USER_MEMORY_REGION2 (api.rst, section 4.140). Its structure begins with that of the first one.
const SET_REGION2: u32 = 0x40a0_ae49;
/// The largest number of slots that are kept, over all VMs. KVM itself has 32,764 for each VM.
const MOST_SLOTS: usize = 1 << 16;
/// The largest number of pieces of one access.
const MOST_PIECES: usize = 64;

/// The largest number of slots that are tried one by one.
const MOST_TRIED: usize = 32;

/// True for the errors of process_vm_readv(2) where it is forbidden or missing. EFAULT means that the memory is not mapped.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
}

/// The error if the system does not let this process read the memory of a child, which may be any program. A process that
/// [hides](crate::hide_this_process) its own memory cannot ask: its children hide theirs until they execute a program.
pub fn memory_refusal() -> Option<io::Error> {
    // SAFETY: the child makes two system calls, which the child of a process with several threads may make.
    let child = unsafe { libc::fork() };
    match child {
        -1 => return Some(io::Error::last_os_error()),
        0 => loop {
            // SAFETY: the calls have plain arguments. The child does not outlive this process.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause();
            }
        },
        _ => {}
    }
    let mut byte = 0u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // The same address of the child holds the same variable.
    // SAFETY: the variable outlives the call.
    let read = unsafe { libc::process_vm_readv(child, &local, 1, &local, 1, 0) };
    let error = (read < 0).then(io::Error::last_os_error);
    // SAFETY: the child exists until it has been waited for.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    error.filter(is_refusal)
}

/// A memory slot of an observed VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySlot {
    /// The number that the program gave to it. The upper 16 bits are the address space; that of system management mode is 1.
    pub number: u32,
    /// KVM_MEM_LOG_DIRTY_PAGES (1), KVM_MEM_READONLY (2) and others.
    pub flags: u32,
    /// The guest physical address.
    pub gpa: u64,
    /// The size in bytes.
    pub size: u64,
    /// The address in the program.
    pub address: u64,
}

/// The memory slots of all VMs of a program.
#[derive(Clone, Debug, Default)]
pub struct ObservedMemory {
    /// The slots by the number of the VM and their own number.
    slots: BTreeMap<(u32, u32), MemorySlot>,
    /// The numbers of the slots by the number of the VM, the address space and the guest physical address. A program may have tens
    /// of thousands of slots, and an explanation reads from many addresses.
    places: BTreeMap<(u32, u32, u64), u32>,
}

impl ObservedMemory {
    /// Follows a call of the program. Calls that change no slot, and those that failed, change nothing.
    pub fn follow(&mut self, call: &Call) {
        let (Target::Vm(vm), SET_REGION | SET_REGION2, 0..) = (call.target, call.request, call.result) else {
            return;
        };
        let half = |at: usize| {
            call.data.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_ne_bytes(*bytes))
        };
        let long = |at: usize| {
            call.data.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u64::from_ne_bytes(*bytes))
        };
        let (Some(number), Some(flags), Some(gpa), Some(size), Some(address)) =
            (half(0), half(4), long(8), long(16), long(24))
        else {
            return;
        };
        let is_kept = self.slots.len() < MOST_SLOTS || self.slots.contains_key(&(vm, number));
        if size > 0 && !is_kept {
            return;
        }
        let space = number >> 16;
        if let Some(old) = self.slots.remove(&(vm, number))
            && self.places.get(&(vm, space, old.gpa)) == Some(&number)
        {
            self.places.remove(&(vm, space, old.gpa));
        }
        if size > 0 {
            self.slots.insert((vm, number), MemorySlot { number, flags, gpa, size, address });
            self.places.insert((vm, space, gpa), number);
        }
    }

    /// The slot that holds an address in normal execution. KVM permits no overlaps.
    fn slot_at(&self, vm: u32, gpa: u64) -> Option<&MemorySlot> {
        let (_, number) = self.places.range((vm, 0, 0)..=(vm, 0, gpa)).next_back()?;
        self.slots.get(&(vm, *number)).filter(|slot| gpa.wrapping_sub(slot.gpa) < slot.size)
    }

    /// The slot of a VM with this number.
    pub fn slot(&self, vm: u32, number: u32) -> Option<&MemorySlot> {
        self.slots.get(&(vm, number))
    }

    /// A slot, other than `number` itself, that has an address of a range of `size` bytes in the address space of `number`.
    pub fn overlapped(&self, vm: u32, number: u32, gpa: u64, size: u64) -> Option<&MemorySlot> {
        let (space, end) = (number >> 16, gpa.saturating_add(size));
        let meets = |slot: &&MemorySlot| {
            slot.number != number && slot.gpa < end && gpa < slot.gpa.saturating_add(slot.size)
        };
        // The slots do not overlap each other, so only the last one before the range can reach into it.
        let before = self.places.range((vm, space, 0)..(vm, space, gpa)).rev().take(2);
        let inside = self.places.range((vm, space, gpa)..(vm, space, end.max(gpa))).take(2);
        before.chain(inside).filter_map(|(_, number)| self.slots.get(&(vm, *number))).find(meets)
    }

    /// The slots of a VM, by their numbers.
    pub fn slots(&self, vm: u32) -> impl Iterator<Item = &MemorySlot> {
        self.slots.range((vm, 0)..=(vm, u32::MAX)).map(|(_, slot)| slot)
    }

    /// Reads from a guest physical address. Returns false, and may have filled a part, if a byte is in no slot, or if the
    /// process has ended or may not be read.
    pub fn read(&self, vm: u32, process: i32, gpa: Gpa, into: &mut [u8]) -> bool {
        self.each(vm, gpa, into.len(), |address, at, size| {
            let Some(piece) = into.get_mut(at..).and_then(|rest| rest.get_mut(..size)) else { return false };
            let local = libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() };
            let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: size };
            // SAFETY: the piece outlives the call. The address is one of the other process, and the kernel checks it.
            let read = unsafe { libc::process_vm_readv(process, &local, 1, &remote, 1, 0) };
            usize::try_from(read).is_ok_and(|read| read == size)
        })
    }

    /// The error if the system, or the program itself, does not permit this process to read a slot of a VM.
    pub fn refusal(&self, vm: u32, process: i32) -> Option<io::Error> {
        let slots = self.slots(vm).filter(|slot| slot.number >> 16 == 0).take(MOST_TRIED);
        // The last system call of a failed read in a slot is process_vm_readv.
        let errors = slots.filter_map(|slot| {
            let is_read = self.read(vm, process, Gpa(slot.gpa), &mut [0]);
            (!is_read).then(io::Error::last_os_error)
        });
        errors.into_iter().find(is_refusal)
    }

    /// Writes to a guest physical address. Returns false, and may have written a part, for the reasons of
    /// [`read`](Self::read).
    pub fn write(&self, vm: u32, process: i32, gpa: Gpa, data: &[u8]) -> bool {
        self.each(vm, gpa, data.len(), |address, at, size| {
            let Some(piece) = data.get(at..).and_then(|rest| rest.get(..size)) else { return false };
            let local = libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
            let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: size };
            // SAFETY: the piece outlives the call, which only reads it. The kernel checks the other address.
            let written = unsafe { libc::process_vm_writev(process, &local, 1, &remote, 1, 0) };
            usize::try_from(written).is_ok_and(|written| written == size)
        })
    }

    /// Calls a function with each piece of a range that lies in one slot: its address in the process, its place in the range
    /// and its size. Stops when it returns false.
    fn each(
        &self,
        vm: u32,
        gpa: Gpa,
        size: usize,
        mut access: impl FnMut(u64, usize, usize) -> bool,
    ) -> bool {
        let mut at = 0;
        for _ in 0..MOST_PIECES {
            let rest = size.saturating_sub(at);
            if rest == 0 {
                return true;
            }
            let Some(gpa) = gpa.0.checked_add(at as u64) else { return false };
            let Some(slot) = self.slot_at(vm, gpa) else { return false };
            let offset = gpa.wrapping_sub(slot.gpa);
            let here = usize::try_from(slot.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(rest);
            if !access(slot.address.wrapping_add(offset), at, here) {
                return false;
            }
            at = at.saturating_add(here);
        }
        at >= size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slot whose memory is a part of this process.
    fn region(number: u32, gpa: u64, memory: &[u8], size: u64) -> Call {
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(0u32.to_ne_bytes());
        data.extend(gpa.to_ne_bytes());
        data.extend(size.to_ne_bytes());
        data.extend((memory.as_ptr() as u64).to_ne_bytes());
        Call { process: 0, target: Target::Vm(1), request: SET_REGION, argument: 0, data, result: 0 }
    }

    #[test]
    fn an_access_goes_over_the_ends_of_slots() {
        let process = std::process::id().cast_signed();
        let (low, mut high) = ([1; 16], [2u8; 16]);
        let mut memory = ObservedMemory::default();
        memory.follow(&region(0, 0x1000, &low, 16));
        high[0] = 3;
        memory.follow(&region(7, 0x1010, &high, 16));
        let mut bytes = [0; 4];
        assert!(memory.read(1, process, Gpa(0x100e), &mut bytes));
        assert_eq!(bytes, [1, 1, 3, 2]);
        for (gpa, vm) in [(0xfff, 1), (0x101d, 1), (u64::MAX, 1), (0x1000, 2)] {
            assert!(!memory.read(vm, process, Gpa(gpa), &mut bytes), "{gpa:#x}");
        }
        assert!(memory.write(1, process, Gpa(0x1012), &[9, 8]));
        assert_eq!(std::hint::black_box(&high)[..5], [3, 2, 9, 8, 2]);
    }

    #[test]
    fn memory_that_is_not_mapped_is_no_refusal() {
        let process = std::process::id().cast_signed();
        let mut memory = ObservedMemory::default();
        memory.follow(&region(0, 0, &[0; 16], 16));
        assert!(memory.refusal(1, process).is_none());
        let mut invented = region(0, 0, &[], 16);
        invented.data[24..32].fill(0xff);
        memory.follow(&invented);
        assert!(!memory.read(1, process, Gpa(0), &mut [0]));
        assert!(memory.refusal(1, process).is_none());
    }

    #[test]
    fn slots_are_deleted_and_refused_ones_are_not_kept() {
        let mut memory = ObservedMemory::default();
        let bytes = [0; 16];
        memory.follow(&Call { result: -libc::EINVAL, ..region(1, 0, &bytes, 16) });
        memory.follow(&Call { data: vec![0; 31], ..region(1, 0, &bytes, 16) });
        memory.follow(&Call { target: Target::System, ..region(1, 0, &bytes, 16) });
        assert_eq!(memory.slots(1).count(), 0);
        memory.follow(&region(1, 0, &bytes, 16));
        assert_eq!(memory.slots(1).count(), 1);
        memory.follow(&region(1, 0, &bytes, 0));
        assert_eq!(memory.slots(1).count(), 0);
    }

    #[test]
    fn a_slot_is_found_where_it_was_moved() {
        let bytes = [0; 16];
        let mut memory = ObservedMemory::default();
        for number in 0..1000 {
            memory.follow(&region(number, u64::from(number) * 0x1000, &bytes, 16));
        }
        memory.follow(&region(7, 0x7800, &bytes, 16));
        // System management mode, which is not normal execution.
        memory.follow(&region(1 << 16, 0x7000, &bytes, 16));
        let found = |gpa| memory.slot_at(1, gpa).map(|slot| slot.number);
        assert_eq!([found(0x6000), found(0x600f), found(0x6010)], [Some(6), Some(6), None]);
        assert_eq!([found(0x7000), found(0x7800), found(u64::MAX)], [None, Some(7), None]);
        assert!(memory.slot_at(2, 0x6000).is_none());
    }

    #[test]
    fn an_overlap_is_found_by_address() {
        let bytes = [0; 16];
        let mut memory = ObservedMemory::default();
        for (number, gpa, size) in [(0, 0, 0x1000), (1, 0x8000, 0x2000), (9, 0x2_0000, 0x1000)] {
            memory.follow(&region(number, gpa, &bytes, size));
        }
        let found = |number, gpa, size| memory.overlapped(1, number, gpa, size).map(|slot| slot.number);
        assert_eq!(
            [found(5, 0x9fff, 1), found(5, 0x7000, 0x1001), found(5, 0, 1)],
            [Some(1), Some(1), Some(0)]
        );
        assert_eq!([found(5, 0xa000, 0x1_6000), found(5, 0x1000, 0x7000)], [None; 2]);
        assert_eq!(found(5, 0xa000, 0x1_6001), Some(9));
        // A slot that moves over its own place, another address space, and numbers that no VM has.
        assert_eq!(
            [found(1, 0x9000, 0x2000), found(1 << 16, 0, 0x1_0000), found(5, u64::MAX, u64::MAX)],
            [None; 3]
        );
        assert_eq!(memory.slot(1, 9).map(|slot| slot.gpa), Some(0x2_0000));
    }

    #[test]
    fn a_process_that_has_ended_is_not_read() {
        let mut memory = ObservedMemory::default();
        memory.follow(&region(0, 0, &[0; 16], 16));
        assert!(!memory.read(1, i32::MAX, Gpa(0), &mut [0; 4]));
        // An address that the program invented.
        let mut invented = region(0, 0, &[], u64::MAX);
        invented.data[24..32].fill(0xff);
        memory.follow(&invented);
        assert!(!memory.read(1, std::process::id().cast_signed(), Gpa(0), &mut [0; 4]));
    }
}
