//! The first serial port, COM1: a 16550 from vm-superio on ports 0x3F8 to 0x3FF, with an interrupt where the machine
//! has an interrupt controller.
//!
//! National Semiconductor PC16550D data sheet.

use crate::console::host::Port;
use crate::console::output::{Output, stop_of};
use crate::device::bus::Device;
use crate::exit::Stop;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, TryLockError};
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

/// Registers: interrupt enable (and, with DLAB set, the divisor), line control, line status.
const INTERRUPT_ENABLE: u8 = 1;
const LINE_CONTROL: u8 = 3;
const LINE_STATUS: u8 = 5;
/// Interrupt enable: data has arrived.
const DATA_ARRIVED: u8 = 1 << 0;
/// Line control: the first two registers are the divisor.
const DLAB: u8 = 1 << 7;
/// So many looks at the line status in a row are somebody who waits for input, and not for an output's end.
const LOOKS: u32 = 8;

/// A 16550 that prints what it sends.
#[derive(Debug)]
pub struct Serial {
    uart: Uart<Line, Drained, Output>,
    /// Somebody reads what arrives. Before that a driver that looks for the port would throw it away.
    listens: bool,
    /// Line status was read so often in a row.
    looks: u32,
    line_control: u8,
    /// For [`Device::reset`]; `None` if the port has an interrupt, since a machine with interrupts is never reset.
    output: Option<Output>,
}

impl Serial {
    /// A UART that prints to `output`, without interrupts.
    pub fn new(output: Output) -> Self {
        let uart = Uart::with_events(Line(None), Drained(None), output.clone());
        Self { output: Some(output), ..Self::over(uart) }
    }

    /// A UART that prints to `output`, interrupts by `line`, and writes to `drained` when the guest has read all
    /// that there was.
    pub fn with_interrupt(output: Output, line: EventFd, drained: Arc<EventFd>) -> Self {
        Self::over(Uart::with_events(Line(Some(line)), Drained(Some(drained)), output))
    }

    fn over(uart: Uart<Line, Drained, Output>) -> Self {
        Self { uart, listens: false, looks: 0, line_control: 0, output: None }
    }

    /// How many bytes it has room for: none before the guest listens.
    pub fn room(&self) -> usize {
        if self.listens { self.uart.fifo_capacity() } else { 0 }
    }

    fn listen(&mut self) {
        if !self.listens {
            self.listens = true;
            self.uart.events().in_buffer_empty();
        }
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
                self.looks = if register == LINE_STATUS { self.looks.saturating_add(1) } else { 0 };
            }
        }
        if self.looks >= LOOKS {
            self.listen();
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
            self.looks = 0;
            match register {
                LINE_CONTROL => self.line_control = byte,
                INTERRUPT_ENABLE if self.line_control & DLAB == 0 && byte & DATA_ARRIVED != 0 => {
                    self.listen();
                }
                _ => {}
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

    fn reset(&mut self) {
        if let Some(output) = &self.output {
            *self = Self::new(output.clone());
        }
    }
}

/// The serial port, which the vCPUs have as well.
pub(crate) struct SerialPort {
    pub(crate) serial: Arc<Mutex<Serial>>,
    pub(crate) drained: Arc<EventFd>,
}

impl Port for SerialPort {
    fn push(&mut self, bytes: &[u8]) -> usize {
        let mut serial = match self.serial.try_lock() {
            Ok(serial) => serial,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // A vCPU has it, perhaps in a write that blocks.
            Err(TryLockError::WouldBlock) => return 0,
        };
        let taken = bytes.get(..serial.room()).unwrap_or(bytes);
        serial.receive(taken);
        taken.len()
    }

    fn room_event(&self) -> &EventFd {
        &self.drained
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
    fn who_looks_again_and_again_listens() {
        let mut serial = Serial::new(Output::captured().0);
        for _ in 0..20 {
            // Each byte that is sent is preceded by a look.
            assert!(serial.read(5, 1).is_continue() && serial.write(0, 1, 0).is_continue());
        }
        assert_eq!(serial.room(), 0);
        (0..8).for_each(|_| assert!(serial.read(5, 1).is_continue()));
        assert_ne!(serial.room(), 0);
    }

    #[test]
    fn what_arrives_interrupts_and_is_read_and_its_end_is_told() {
        let (line, drained) = (EventFd::new(0).unwrap(), Arc::new(EventFd::new(0).unwrap()));
        let mut serial =
            Serial::with_interrupt(Output::captured().0, line.try_clone().unwrap(), drained.clone());
        assert_eq!(serial.room(), 0, "nobody listens yet");
        // The divisor is no interrupt enable.
        for (register, byte) in [(3, 0x80), (1, 1), (3, 0x03)] {
            assert!(serial.write(register, 1, byte).is_continue());
        }
        assert_eq!(serial.room(), 0);
        // Interrupts when data is there.
        assert!(serial.write(1, 1, 1).is_continue());
        let room = serial.room();
        assert_eq!(drained.read().unwrap(), 1);
        serial.receive(b"ab");
        assert_eq!((serial.room(), line.read().unwrap()), (room - 2, 1));
        let read = [0, 0].map(|register| serial.read(register, 1).continue_value().unwrap() as u8);
        assert_eq!((read, serial.room(), drained.read().unwrap()), (*b"ab", room, 1));
    }
}
