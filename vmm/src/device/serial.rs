//! The first serial port, COM1: a 16550 from vm-superio on ports 0x3F8 to 0x3FF. It has an interrupt if the machine has
//! an interrupt controller.
//!
//! National Semiconductor PC16550D data sheet.

use crate::console::host::Port;
use crate::console::output::{Output, stop_of};
use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use crate::host::EventFd;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, TryLockError};
use vm_superio::serial::{Error, SerialEvents};
use vm_superio::{Serial as Uart, Trigger};

/// The UART's first port.
pub const PORT: u16 = 0x3f8;
/// The number of ports.
pub const PORTS: u16 = 8;
/// Its interrupt: the number of the input of the I/O interrupt controller.
pub const IRQ: u32 = 4;

/// An interrupt line. `None` if the machine has no interrupt controller.
#[derive(Debug)]
struct Line(Option<EventFd>);

impl Trigger for Line {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        // The write fails only if the counter is full, after 2^64 - 2 interrupts that were not delivered.
        let _ = self.0.as_ref().map(|line| line.write(1));
        Ok(())
    }
}

/// The event that tells the thread with the input that the UART has room again.
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

/// Register: interrupt enable, or with DLAB set a part of the divisor.
const INTERRUPT_ENABLE: u8 = 1;
/// Register: line control.
const LINE_CONTROL: u8 = 3;
/// Register: line status.
const LINE_STATUS: u8 = 5;
/// Interrupt enable: received data is available.
const DATA_ARRIVED: u8 = 1 << 0;
/// Interrupt enable: all interrupts.
const ALL_INTERRUPTS: u8 = 0x0f;
/// Line control: the first two registers are the divisor.
const DLAB: u8 = 1 << 7;
/// After this number of consecutive reads of the line status the guest is taken to wait for input. A guest that waits
/// for the transmitter reads it once, because the transmitter is always empty.
const MIN_STATUS_READS: u32 = 8;

/// A 16550 that prints the bytes that the guest sends.
#[derive(Debug)]
pub struct Serial {
    uart: Uart<Line, Drained, Output>,
    /// True if the guest has polled the port for input.
    polls: bool,
    /// The interrupts that the guest has enabled.
    interrupt_enable: u8,
    /// True if the guest has enabled all interrupts at once, and has since accessed no other register. A driver does so to
    /// see if the port is there, and reads the register back.
    is_probe: bool,
    /// The number of consecutive reads of the line status.
    status_reads: u32,
    line_control: u8,
    /// The output, for [`Device::reset`]. `None` if the port has an interrupt, because a machine with interrupts is never
    /// reset.
    output: Option<Output>,
}

impl Serial {
    /// Creates a UART that prints to `output`, without an interrupt.
    pub fn new(output: Output) -> Self {
        let uart = Uart::with_events(Line(None), Drained(None), output.clone());
        Self { output: Some(output), ..Self::over(uart) }
    }

    /// Creates a UART that prints to `output`, raises its interrupt through `line`, and signals `drained` when the
    /// guest has read all of its input.
    pub fn with_interrupt(output: Output, line: EventFd, drained: Arc<EventFd>) -> Self {
        Self::over(Uart::with_events(Line(Some(line)), Drained(Some(drained)), output))
    }

    fn over(uart: Uart<Line, Drained, Output>) -> Self {
        Self {
            uart,
            polls: false,
            interrupt_enable: 0,
            is_probe: false,
            status_reads: 0,
            line_control: 0,
            output: None,
        }
    }

    /// The number of bytes that it has room for. 0 while the guest does not read its input.
    pub fn room(&self) -> usize {
        if self.listens() { self.uart.fifo_capacity() } else { 0 }
    }

    /// True if the guest reads its input. Other input would be lost: a driver that probes or opens the port clears the
    /// receive buffer, and enables the interrupt only then.
    fn listens(&self) -> bool {
        self.polls || (self.interrupt_enable & DATA_ARRIVED != 0 && !self.is_probe)
    }

    /// Notes an access, by the byte that it writes.
    fn note(&mut self, register: u8, written: Option<u8>) {
        let listened = self.listens();
        let is_status_read = (register, written) == (LINE_STATUS, None);
        self.status_reads = if is_status_read { self.status_reads.saturating_add(1) } else { 0 };
        self.polls |= self.status_reads >= MIN_STATUS_READS;
        match (register, written) {
            (INTERRUPT_ENABLE, None) => {}
            (INTERRUPT_ENABLE, Some(byte)) if self.line_control & DLAB == 0 => {
                let had_data = self.interrupt_enable & DATA_ARRIVED != 0;
                self.interrupt_enable = byte & ALL_INTERRUPTS;
                self.is_probe = !had_data && self.interrupt_enable == ALL_INTERRUPTS;
            }
            _ => self.is_probe = false,
        }
        if let (LINE_CONTROL, Some(byte)) = (register, written) {
            self.line_control = byte;
        }
        if !listened && self.listens() {
            self.uart.events().in_buffer_empty();
        }
    }

    /// Receives `bytes`, at most as many as there is [`room`](Self::room) for. In loopback mode they are lost, as on a
    /// real line.
    pub fn receive(&mut self, bytes: &[u8]) {
        if let Err(error) = self.uart.enqueue_raw_bytes(bytes) {
            log::debug!("serial port: input is lost: {error:?}");
        }
    }
}

/// The registers of an access at `offset`. Each register is one byte, so a wider access also covers the registers after
/// it.
fn registers(offset: u64, size: u8) -> impl Iterator<Item = u8> {
    (0..size).filter_map(move |byte| u8::try_from(offset.checked_add(byte.into())?).ok())
}

impl Device for Serial {
    fn read(&mut self, offset: u64, size: u8) -> ControlFlow<Stop, u64> {
        let mut value = [0xff; 8];
        for (register, byte) in registers(offset, size).zip(&mut value) {
            if u16::from(register) < PORTS {
                *byte = self.uart.read(register);
                self.note(register, None);
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
            self.note(register, Some(byte));
        }
        ControlFlow::Continue(())
    }

    fn name(&self, offset: u64) -> DeviceName {
        match offset {
            0 => DeviceName::register("serial", "data"),
            5 => DeviceName::register("serial", "line status"),
            _ => DeviceName::device("serial"),
        }
    }

    fn reset(&mut self) {
        if let Some(output) = &self.output {
            *self = Self::new(output.clone());
        }
    }
}

/// The host's end of the serial port, which it shares with the vCPUs.
pub(crate) struct SerialPort {
    pub(crate) serial: Arc<Mutex<Serial>>,
    pub(crate) drained: Arc<EventFd>,
}

impl SerialPort {
    /// True if the guest reads its input. A vCPU that holds the port is taken to read it.
    pub(crate) fn listens(&self) -> bool {
        self.serial.try_lock().map_or(true, |serial| serial.listens())
    }
}

impl Port for SerialPort {
    fn push(&mut self, bytes: &[u8]) -> usize {
        let mut serial = match self.serial.try_lock() {
            Ok(serial) => serial,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // A vCPU holds the lock, possibly in a write that blocks.
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
    fn bytes_written_to_the_data_register_are_printed() {
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
    fn a_wide_access_covers_the_registers_up_to_the_last_one() {
        let mut serial = Serial::new(Output::captured().0);
        assert!(serial.write(7, 4, 0x1122_33aa).is_continue());
        let ControlFlow::Continue(value) = serial.read(7, 4) else { panic!() };
        assert_eq!(value & 0xffff_ffff, 0xffff_ffaa, "the scratch register, then no register");
    }

    #[test]
    fn a_guest_that_polls_the_line_status_gets_input() {
        let mut serial = Serial::new(Output::captured().0);
        for _ in 0..20 {
            // A driver reads the status before each byte that it sends.
            assert!(serial.read(5, 1).is_continue() && serial.write(0, 1, 0).is_continue());
        }
        assert_eq!(serial.room(), 0);
        (0..8).for_each(|_| assert!(serial.read(5, 1).is_continue()));
        assert_ne!(serial.room(), 0);
    }

    /// The accesses of Linux when it probes the port, when it opens it, when it prints, and when it closes it.
    #[test]
    fn a_driver_that_probes_or_opens_the_port_does_not_get_input_yet() {
        let drained = Arc::new(crate::host::event().unwrap());
        let line = crate::host::event().unwrap();
        let mut serial = Serial::with_interrupt(Output::captured().0, line, drained.clone());
        let mut listens = |accesses: &[(u64, Option<u64>)]| {
            for (register, written) in accesses {
                match written {
                    Some(byte) => assert!(serial.write(*register, 1, *byte).is_continue()),
                    None => assert!(serial.read(*register, 1).is_continue()),
                }
            }
            (serial.room() > 0, drained.read().is_ok())
        };
        assert_eq!(listens(&[(1, Some(0)), (1, None), (1, Some(0xf))]), (false, false), "a probe");
        assert_eq!(listens(&[(1, None), (1, Some(0)), (4, Some(3))]), (false, false), "the end of the probe");
        assert_eq!(
            listens(&[(2, Some(7)), (5, None), (0, None), (0, None)]),
            (false, true),
            "it clears the port, and the read says so"
        );
        assert_eq!(listens(&[(1, Some(5))]), (true, true), "it has opened the port");
        assert_eq!(listens(&[(1, Some(0)), (0, Some(65))]), (false, false), "it prints a message");
        assert_eq!(listens(&[(1, Some(5)), (1, Some(0xf))]), (true, true), "it sends with interrupts");
        assert_eq!(listens(&[(1, Some(0))]), (false, false), "it has closed the port");
        assert_eq!(listens(&[(1, Some(0xf)), (4, Some(0xb))]), (true, true), "all interrupts, and no probe");
    }

    #[test]
    fn input_interrupts_is_read_and_signals_that_it_is_drained() {
        let (line, drained) = (crate::host::event().unwrap(), Arc::new(crate::host::event().unwrap()));
        let mut serial =
            Serial::with_interrupt(Output::captured().0, line.try_clone().unwrap(), drained.clone());
        assert_eq!(serial.room(), 0, "the guest does not read its input yet");
        // With DLAB set this register is the divisor, not interrupt enable.
        for (register, byte) in [(3, 0x80), (1, 1), (3, 0x03)] {
            assert!(serial.write(register, 1, byte).is_continue());
        }
        assert_eq!(serial.room(), 0);
        // Enables the interrupt for received data.
        assert!(serial.write(1, 1, 1).is_continue());
        let room = serial.room();
        assert_eq!(drained.read().unwrap(), 1);
        serial.receive(b"ab");
        assert_eq!((serial.room(), line.read().unwrap()), (room - 2, 1));
        let read = [0, 0].map(|register| serial.read(register, 1).continue_value().unwrap() as u8);
        assert_eq!((read, serial.room(), drained.read().unwrap()), (*b"ab", room, 1));
    }
}
