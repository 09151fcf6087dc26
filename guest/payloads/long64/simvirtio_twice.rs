//! Two handshakes: sends half of the text, resets the READY device, and sends the rest. The first half does not fit
//! into a short queue.
#![no_std]
#![no_main]

mod rt;
mod window;

use simvirtio::driver::{Driver, DriverError};

#[unsafe(no_mangle)]
#[unsafe(link_section = ".start")]
extern "C" fn _start() -> ! {
    match run() {
        Ok(()) => rt::done(),
        Err(_) => rt::exit(2),
    }
}

fn run() -> Result<(), DriverError> {
    let mut driver = Driver::connect(window::Physical)?;
    driver.send(b"Ana are")?;
    driver.reconnect()?;
    driver.send(b" mere, RC\n")
}
