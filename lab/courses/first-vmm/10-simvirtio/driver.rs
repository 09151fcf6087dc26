//! Chapter 10: a SIMVIRTIO driver. It sends the text at 0x20000, which ends with a zero byte. If there is none, it sends a
//! text of its own.
//!
//! ```text
//! make 10-simvirtio
//! vmm 10-simvirtio/driver.bin@0x1000:64          the driver with the device of `vmm`
//! 10-simvirtio/vmm 10-simvirtio/driver.bin       the driver with your device
//! ```
//!
//! It runs without the standard library and without an operating system, in 64-bit mode. The program starts in `_start`.
#![no_std]
#![no_main]
#![allow(dead_code)]

use core::arch::asm;
use core::hint::spin_loop;
use core::ptr::{read_volatile, write_volatile};

const MAGIC: u32 = 0x7472_6976;
const DEVICE_RESET: u8 = 0;
const DEVICE_CONFIG: u8 = 2;
const DEVICE_READY: u8 = 4;
const DRIVER_ACK: u8 = 0;
const DRIVER_OK: u8 = 4;

/// The addresses of the fields of the window.
const WINDOW: usize = 0x10_0000;
const MAX_QUEUE_LEN: usize = WINDOW + 4;
const DEVICE_STATUS: usize = WINDOW + 6;
const DRIVER_STATUS: usize = WINDOW + 7;
const TX_HEAD: usize = WINDOW + 0x10;
const TX_TAIL: usize = WINDOW + 0x14;
const TX_BUFFER: usize = 0x1_1000;
const TEXT: usize = 0x2_0000;

/// Loads a value. The load happens each time, and in this order: the device changes the fields.
fn load<T: Copy>(address: usize) -> T {
    // SAFETY: the addresses above are those of the machine, and no Rust value lies there.
    unsafe { read_volatile(address as *const T) }
}

/// Stores a value. The store happens each time, and in this order.
fn store<T>(address: usize, value: T) {
    // SAFETY: as above.
    unsafe { write_volatile(address as *mut T, value) }
}

/// Ends the run: the processor halts.
fn halt() -> ! {
    loop {
        // SAFETY: it changes nothing.
        unsafe { asm!("hlt") }
    }
}

/// Sends one byte. Waits while the queue is full.
fn push(byte: u8) {
    let head: u32 = load(TX_HEAD);

    //{
    //= // TODO 1: `next` is the slot after `head`; after slot max_queue_len - 1 comes slot 0. Wait while `next` is the value
    //= // at TX_TAIL, because the queue is full then. Store the byte in slot `head` of TX_BUFFER, and after that `next` at
    //= // TX_HEAD.
    //= let _ = (byte, head);
    let next = if head + 1 == u32::from(load::<u16>(MAX_QUEUE_LEN)) { 0 } else { head + 1 };
    while load::<u32>(TX_TAIL) == next {
        spin_loop();
    }
    store(TX_BUFFER + head as usize, byte);
    store(TX_HEAD, next);
    //}
}

/// Waits until the device has taken all bytes, and shows this status.
fn wait_for(status: u8) {
    //{
    //= // TODO 2: loop until the value at TX_TAIL is that at TX_HEAD and the one at DEVICE_STATUS is `status`. All have to be
    //= // loaded again each time.
    //= let _ = status;
    while load::<u32>(TX_TAIL) != load::<u32>(TX_HEAD) || load::<u8>(DEVICE_STATUS) != status {
        spin_loop();
    }
    //}
}

/// The file begins with this function, because the processor begins with the first byte of the file.
#[no_mangle]
#[link_section = ".text.start"]
extern "C" fn _start() -> ! {
    let own_text = b"Hello from the driver\n\0";
    let mut text = if load::<u8>(TEXT) == 0 { own_text.as_ptr() as usize } else { TEXT };
    if load::<u32>(WINDOW) != MAGIC {
        halt();
    }
    //{
    //= // TODO 3: the handshake. Send b'R' and wait for DEVICE_RESET. Store DRIVER_ACK at DRIVER_STATUS, send b'C' and wait for
    //= // DEVICE_CONFIG. Store DRIVER_OK and wait for DEVICE_READY. Then send the bytes from the address `text` on, up to the
    //= // zero byte.
    //= push(b'R');
    //= wait_for(DEVICE_RESET);
    //= text += 1;
    //= let _ = text;
    push(b'R');
    wait_for(DEVICE_RESET);
    store(DRIVER_STATUS, DRIVER_ACK);
    push(b'C');
    wait_for(DEVICE_CONFIG);
    store(DRIVER_STATUS, DRIVER_OK);
    wait_for(DEVICE_READY);
    while load::<u8>(text) != 0 {
        push(load(text));
        text += 1;
    }
    //}
    halt()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    halt()
}
