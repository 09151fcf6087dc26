//! The calls other than KVM_RUN: the structures that they have, and those that the observer hears of.

use super::sys;
use crate::engine::MOST_DATA;

pub(super) const CREATE_VM: u32 = 0xae01;
pub(super) const CREATE_VCPU: u32 = 0xae41;
pub(super) const RUN: u32 = 0xae80;
pub(super) const GET_REGS: u32 = 0x8090_ae81;
pub(super) const GET_SREGS: u32 = 0x8138_ae83;
pub(super) const GET_STATS_FD: u32 = 0xaece;

/// The largest numbers of calls that are reported: before guests run, of later changes, and of later failures.
const MOST_CALLS: u64 = 1 << 14;
const MOST_CHANGES: u64 = 1 << 16;
const MOST_FAILURES: u64 = 1 << 12;

/// Counts the calls that were reported.
#[derive(Debug, Default)]
pub(super) struct Limits {
    calls: u64,
    changes: u64,
    failures: u64,
    /// The number of calls past the limits.
    pub(super) lost: u64,
}

impl Limits {
    /// True if the observer should hear of a call with this result. `is_building`: the guest has not run yet.
    pub(super) fn is_told(&mut self, request: u32, result: i32, is_building: bool) -> bool {
        if [-libc::EINTR, -libc::EAGAIN].contains(&result) {
            return false;
        }
        let (count, most) = match () {
            () if result >= 0 && is_change(request) => (&mut self.changes, MOST_CHANGES),
            () if is_building => (&mut self.calls, MOST_CALLS),
            () if result < 0 => (&mut self.failures, MOST_FAILURES),
            () => return false,
        };
        let is_within = *count < most;
        *count = count.saturating_add(1);
        if !is_within {
            self.lost = self.lost.saturating_add(1);
        }
        is_within
    }
}

/// True for calls that change memory slots, or create something.
fn is_change(request: u32) -> bool {
    /// KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_SET_USER_MEMORY_REGION and KVM_SET_USER_MEMORY_REGION2, KVM_CREATE_IRQCHIP,
    /// KVM_CREATE_PIT, KVM_CREATE_PIT2, KVM_CREATE_GUEST_MEMFD, KVM_CREATE_DEVICE.
    const CHANGES: [u32; 9] = [0x01, 0x41, 0x46, 0x49, 0x60, 0x64, 0x77, 0xd4, 0xe0];
    CHANGES.contains(&(request & 0xff))
}

/// True for calls that set the registers of a vCPU: KVM_SET_REGS, KVM_SET_SREGS and KVM_SET_SREGS2.
pub(super) fn sets_registers(request: u32) -> bool {
    [0x82, 0x84, 0xcd].contains(&(request & 0xff))
}

/// The array that follows a structure: the size of the structure, and that of an element. The number of elements is the
/// first word.
fn array(request: u32) -> Option<(usize, usize)> {
    match request & 0xff {
        // KVM_GET_SUPPORTED_CPUID, KVM_GET_EMULATED_CPUID, KVM_SET_CPUID2, KVM_GET_CPUID2.
        0x05 | 0x09 | 0x90 | 0x91 => Some((8, 40)),
        // KVM_SET_CPUID.
        0x8a => Some((8, 24)),
        // KVM_GET_MSRS, KVM_SET_MSRS.
        0x88 | 0x89 => Some((8, 16)),
        // KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST.
        0x02 | 0x0a => Some((4, 4)),
        // KVM_SET_GSI_ROUTING.
        0x6a => Some((8, 48)),
        // KVM_SET_SIGNAL_MASK.
        0x8b => Some((4, 1)),
        _ => None,
    }
}

/// The size of the structure that a request names (`_IOC_SIZE`); 0 if its argument is a value.
fn structure(request: u32) -> usize {
    let has_direction = request >> 30 != 0;
    if has_direction { (request >> 16 & 0x3fff) as usize } else { 0 }
}

/// Reads the structure of a call, with its array.
pub(super) fn data(pid: i32, request: u32, argument: u64) -> Vec<u8> {
    let mut size = structure(request);
    if size == 0 {
        return Vec::new();
    }
    if let Some((head, element)) = array(request) {
        let mut count = [0; 4];
        let count = match sys::read_memory(pid, argument, &mut count) {
            4 => u32::from_ne_bytes(count) as usize,
            _ => 0,
        };
        size = element.saturating_mul(count).saturating_add(head);
    }
    let mut bytes = vec![0; size.min(MOST_DATA)];
    let read = sys::read_memory(pid, argument, &mut bytes);
    bytes.truncate(read);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sizes_of_structures_are_those_of_the_requests() {
        assert_eq!((structure(GET_REGS), structure(GET_SREGS)), (144, 312));
        assert_eq!((structure(CREATE_VCPU), structure(RUN), structure(0x4020_ae46)), (0, 0, 32));
    }

    #[test]
    fn an_array_is_read_up_to_the_limit() {
        let own = std::process::id().cast_signed();
        let mut memory = vec![7u8; 40 * 1000];
        let mut read = |request, count: u32| {
            memory[..4].copy_from_slice(&count.to_ne_bytes());
            data(own, request, std::hint::black_box(&memory).as_ptr() as u64)
        };
        // KVM_SET_CPUID2 and KVM_GET_MSR_INDEX_LIST.
        assert_eq!(read(0x4008_ae90, 2).len(), 88);
        assert_eq!(read(0xc004_ae02, 3).len(), 16);
        assert_eq!(read(0x4008_ae90, u32::MAX).len(), MOST_DATA);
        assert_eq!(read(RUN, 1), Vec::<u8>::new());
        assert_eq!(data(own, 0x4008_ae90, 1), Vec::<u8>::new());
    }

    #[test]
    fn calls_are_told_up_to_limits() {
        let mut limits = Limits::default();
        let set_regs = 0x4090_ae82;
        assert!(limits.is_told(set_regs, 0, true) && !limits.is_told(set_regs, 0, false));
        assert!(limits.is_told(set_regs, -libc::EINVAL, false));
        assert!(!limits.is_told(set_regs, -libc::EINTR, true));
        assert!(limits.is_told(0x4020_ae46, 0, false));
        let told = (0..MOST_CALLS * 2).filter(|_| limits.is_told(set_regs, 0, true)).count() as u64;
        assert_eq!((told, limits.lost), (MOST_CALLS - 1, MOST_CALLS + 1));
    }
}
