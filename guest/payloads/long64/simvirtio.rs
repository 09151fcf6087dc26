//! A SIMVIRTIO driver in Rust: steps 5 to 13 of the assignment, with the crate that the host also uses.
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
        Err(DriverError::NoDevice { .. }) => rt::exit(1),
        Err(_) => rt::exit(2),
    }
}

fn run() -> Result<(), DriverError> {
    let mut driver = Driver::connect(window::Physical)?;
    driver.send(b"Ana are mere")
}
