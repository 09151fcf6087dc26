//! The runtime of the 64-bit Rust guests: the memory routines that the compiler calls, port output, the assignment's
//! last step, and an exit with an error code.
#![allow(dead_code)]

use core::arch::asm;
use core::panic::PanicInfo;

/// Writes `value` to the 8-bit port `port`.
pub fn outb(port: u16, value: u8) {
    // SAFETY: port output does not access memory of this program.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// Leaves 42 at 0x400 and in RAX, and halts.
#[cfg(not(ring3))]
pub fn done() -> ! {
    // SAFETY: 0x400 is the result word, which this program does not use otherwise; hlt ends the run.
    unsafe {
        (0x400 as *mut u64).write_volatile(42);
        asm!("2:", "hlt", "jmp 2b", in("rax") 42u64, options(noreturn))
    }
}

/// Leaves 42 at 0x400 and in RAX, and ends the run through the exit port with code 0, because `hlt` needs ring 0. A
/// string write takes the code from memory, because RAX holds the result.
#[cfg(ring3)]
pub fn done() -> ! {
    static ZERO: u8 = 0;
    // SAFETY: 0x400 is the result word, which this program does not use otherwise; the exit port ends the run.
    unsafe {
        (0x400 as *mut u64).write_volatile(42);
        asm!("2:", "outsb", "jmp 2b", in("rax") 42u64, in("rsi") &raw const ZERO, in("dx") 0xF4u16, options(noreturn))
    }
}

/// Ends the run through the exit port. `code` becomes the exit status of `vmm`.
pub fn exit(code: u8) -> ! {
    outb(0xF4, code);
    loop {
        // SAFETY: hlt ends the run.
        unsafe { asm!("hlt") }
    }
}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    exit(99)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller passes valid ranges; the direction flag is clear in Rust code.
    unsafe { asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller passes a valid range; the direction flag is clear in Rust code.
    unsafe { asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: a forward copy reads each byte before it is overwritten.
        return unsafe { memcpy(to, from, len) };
    }
    for i in (0..len).rev() {
        // SAFETY: the caller passes valid ranges; a backward copy reads each byte before it is overwritten.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) }
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for i in 0..len {
        // SAFETY: the caller passes valid ranges.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller passes valid ranges.
    unsafe { memcmp(a, b, len) }
}

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
