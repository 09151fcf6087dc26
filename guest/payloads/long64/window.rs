//! Guest memory, and the device window in it, as this guest reaches it: volatile accesses of the exact
//! width, since in the exit transport each one is an exit.

use simvirtio::Memory;

/// All of guest physical memory; the VMM maps it one to one.
pub struct Physical;

impl Memory for Physical {
    fn load_u8(&self, gpa: u64) -> u8 {
        // SAFETY: the protocol's addresses are mapped, and nothing of this program lives there. x86 loads
        // have acquire order.
        unsafe { (gpa as *const u8).read_volatile() }
    }
    fn store_u8(&self, gpa: u64, value: u8) {
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Release);
        // SAFETY: as above; x86 stores have release order.
        unsafe { (gpa as *mut u8).write_volatile(value) }
    }
    fn load_u32(&self, gpa: u64) -> u32 {
        // SAFETY: as above, and aligned, as the trait asks.
        let value = unsafe { (gpa as *const u32).read_volatile() };
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Acquire);
        value
    }
    fn store_u32(&self, gpa: u64, value: u32) {
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Release);
        // SAFETY: as above.
        unsafe { (gpa as *mut u32).write_volatile(value) }
    }
}
