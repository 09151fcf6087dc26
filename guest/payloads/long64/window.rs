//! Guest memory, including the device window: volatile accesses of the exact width, because over the exit transport
//! each one is an exit.

use simvirtio::Memory;

/// Guest physical memory, which the VMM maps one to one.
pub struct Physical;

impl Memory for Physical {
    fn load_u8(&self, gpa: u64) -> u8 {
        // SAFETY: the addresses of the protocol are mapped, and this program has no objects there. x86 loads have
        // acquire order.
        unsafe { (gpa as *const u8).read_volatile() }
    }
    fn store_u8(&self, gpa: u64, value: u8) {
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Release);
        // SAFETY: as in `load_u8`. x86 stores have release order.
        unsafe { (gpa as *mut u8).write_volatile(value) }
    }
    fn load_u32(&self, gpa: u64) -> u32 {
        // SAFETY: as in `load_u8`, and aligned, as the trait requires.
        let value = unsafe { (gpa as *const u32).read_volatile() };
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Acquire);
        value
    }
    fn store_u32(&self, gpa: u64, value: u32) {
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Release);
        // SAFETY: as in `load_u32`.
        unsafe { (gpa as *mut u32).write_volatile(value) }
    }
}
