//! The first serial port, COM1: a 16550 from vm-superio on ports 0x3F8 to 0x3FF, without an interrupt.

use crate::bus::Device;
use crate::exit::Stop;
use crate::output::{Output, stop_of};
use std::convert::Infallible;
use std::ops::ControlFlow;
use vm_superio::serial::{Error, NoEvents};
use vm_superio::{Serial as Uart, Trigger};

/// The UART's first port.
pub const PORT: u16 = 0x3f8;
/// How many ports it has.
pub const PORTS: u16 = 8;

/// An interrupt line that leads nowhere: these guests have no interrupt controller.
#[derive(Clone, Copy, Debug)]
struct NotConnected;

impl Trigger for NotConnected {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// A 16550 that prints what it sends.
#[derive(Debug)]
pub struct Serial {
    uart: Uart<NotConnected, NoEvents, Output>,
}

impl Serial {
    /// A UART that prints to `output`.
    pub fn new(output: Output) -> Self {
        Self { uart: Uart::new(NotConnected, output) }
    }
}

/// A UART register is a byte; a wider access reaches the ports after it.
fn registers(offset: u64, size: u8) -> impl Iterator<Item = u8> {
    (0..size).filter_map(move |byte| u8::try_from(offset.checked_add(byte.into())?).ok())
}

impl Device for Serial {
    fn read(&mut self, offset: u64, size: u8) -> ControlFlow<Stop, u64> {
        let mut value = [0xff; 8];
        for (register, byte) in registers(offset, size).zip(&mut value) {
            if u16::from(register) < PORTS {
                *byte = self.uart.read(register);
            }
        }
        ControlFlow::Continue(u64::from_le_bytes(value))
    }

    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        for (register, byte) in registers(offset, size).zip(data.to_le_bytes()) {
            if u16::from(register) >= PORTS {
                break;
            }
            match self.uart.write(register, byte) {
                Ok(()) | Err(Error::FullFifo) => {}
                Err(Error::IOError(error)) => return ControlFlow::Break(stop_of(error)),
            }
        }
        ControlFlow::Continue(())
    }

    fn name(&self, offset: u64) -> &'static str {
        match offset {
            0 => "serial data",
            5 => "serial line status",
            _ => "serial",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_its_data_register() {
        let (output, captured) = Output::captured();
        let mut serial = Serial::new(output);
        for byte in *b"hi" {
            assert!(serial.write(0, 1, byte.into()).is_continue());
        }
        assert_eq!(captured.bytes(), b"hi");
    }

    #[test]
    fn the_transmitter_is_always_empty() {
        let mut serial = Serial::new(Output::captured().0);
        let ControlFlow::Continue(status) = serial.read(5, 1) else { panic!() };
        assert_eq!(status & 0x60, 0x60);
    }

    #[test]
    fn wide_and_straddling_accesses_reach_neighbours_only() {
        let mut serial = Serial::new(Output::captured().0);
        assert!(serial.write(7, 4, 0x1122_33aa).is_continue());
        let ControlFlow::Continue(value) = serial.read(7, 4) else { panic!() };
        assert_eq!(value & 0xffff_ffff, 0xffff_ffaa, "the scratch register, then nothing");
    }
}
