//! The first serial port, COM1: a 16550 from vm-superio on ports 0x3F8 to 0x3FF, with an interrupt where the machine
//! has an interrupt controller.
//!
//! National Semiconductor PC16550D data sheet.

use crate::bus::Device;
use crate::exit::Stop;
use crate::output::{Output, stop_of};
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;
use vm_superio::serial::{Error, SerialEvents};
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// The UART's first port.
pub const PORT: u16 = 0x3f8;
/// How many ports it has.
pub const PORTS: u16 = 8;
/// Its interrupt, by the I/O interrupt controller's number.
pub const IRQ: u32 = 4;

/// An interrupt line, or one that leads nowhere.
#[derive(Debug)]
struct Line(Option<EventFd>);

impl Trigger for Line {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        // It fails only where 2^64 - 2 interrupts have not been taken yet.
        let _ = self.0.as_ref().map(|line| line.write(1));
        Ok(())
    }
}

/// Tells whoever feeds the UART that it has room again.
#[derive(Debug, Default)]
struct Drained(Option<Arc<EventFd>>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        let _ = self.0.as_ref().map(|drained| drained.write(1));
    }
}

/// A 16550 that prints what it sends.
#[derive(Debug)]
pub struct Serial {
    uart: Uart<Line, Drained, Output>,
}

impl Serial {
    /// A UART that prints to `output`, without interrupts.
    pub fn new(output: Output) -> Self {
        Self { uart: Uart::with_events(Line(None), Drained(None), output) }
    }

    /// A UART that prints to `output`, interrupts by `line`, and writes to `drained` when the guest has read all
    /// that there was.
    pub fn with_interrupt(output: Output, line: EventFd, drained: Arc<EventFd>) -> Self {
        Self { uart: Uart::with_events(Line(Some(line)), Drained(Some(drained)), output) }
    }

    /// How many bytes it has room for.
    pub fn room(&self) -> usize {
        self.uart.fifo_capacity()
    }

    /// Bytes arrive, [`room`](Self::room) at most; in loopback mode they are lost, as on the wire.
    pub fn receive(&mut self, bytes: &[u8]) {
        if let Err(error) = self.uart.enqueue_raw_bytes(bytes) {
            log::debug!("serial input lost: {error:?}");
        }
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

    #[test]
    fn what_arrives_interrupts_and_is_read_and_its_end_is_told() {
        let (line, drained) = (EventFd::new(0).unwrap(), Arc::new(EventFd::new(0).unwrap()));
        let mut serial =
            Serial::with_interrupt(Output::captured().0, line.try_clone().unwrap(), drained.clone());
        let room = serial.room();
        // Interrupts when data is there.
        assert!(serial.write(1, 1, 1).is_continue());
        serial.receive(b"ab");
        assert_eq!((serial.room(), line.read().unwrap()), (room - 2, 1));
        let read = [0, 0].map(|register| serial.read(register, 1).continue_value().unwrap() as u8);
        assert_eq!((read, serial.room(), drained.read().unwrap()), (*b"ab", room, 1));
    }
}
