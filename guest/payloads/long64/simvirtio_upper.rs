//! Returns its input in upper case, up to the end of the input.
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
    driver.read_input();
    while let Some(byte) = driver.receive()? {
        driver.send(&[byte.to_ascii_uppercase()])?;
    }
    Ok(())
}
