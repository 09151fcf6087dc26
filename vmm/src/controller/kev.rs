//! The devices of KeV's project 2, for guests that test each kind of exit: a FIFO on a port, a FIFO on an MSR, a port with
//! a constant, and an MMIO printer.

use crate::console::output::Output;
use crate::controller::{Devices, ExitController, VcpuState, hypercall};
use crate::device::bus::{Device, DeviceName};
use crate::device::fifo::Fifo;
use crate::error::{BusError, Error};
use crate::exit::{Exit, Outcome, Stop};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

/// The port with one FIFO per access width.
pub const FIFO_PORT: u16 = 0xbb;
/// The port that always reads 0x600D_CAFE.
pub const CONSTANT_PORT: u16 = 3;
/// The value of that port. A narrow read gets the low bytes.
pub const CONSTANT: u32 = 0x600d_cafe;
/// The model-specific register with a FIFO.
pub const FIFO_MSR: u32 = 0xabc;
/// Guest physical address of the printer.
pub const PRINTER: u64 = 0xcafe_0000;
/// Size of the printer's registers, in bytes.
pub const PRINTER_SIZE: u64 = 0x18;

/// Attaches the devices, except the printer, which is a controller.
pub(crate) fn attach(devices: &mut Devices) -> Result<(), BusError> {
    devices.ports.attach(FIFO_PORT.into(), 1, Arc::new(Mutex::new(Fifo::default())))?;
    devices.ports.attach(CONSTANT_PORT.into(), 1, Arc::new(Mutex::new(Constant)))?;
    devices.msrs.attach(FIFO_MSR.into(), 1, Arc::new(Mutex::new(Fifo::default())))
}

/// A port that always reads [`CONSTANT`]. Writes have no effect.
struct Constant;

impl Device for Constant {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(CONSTANT.into())
    }
    fn write(&mut self, _: u64, _: u8, _: u64) -> ControlFlow<Stop> {
        ControlFlow::Continue(())
    }
    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("constant")
    }
}

/// The printer: a guest virtual address at +0, a length at +8, and a doorbell at +0x10. A write to the doorbell prints.
/// A read of the doorbell returns the result of the last print: its length, or a negative errno.
///
/// The printer is a controller and not a device on the bus, because it needs the page tables of the vCPU that rings the
/// doorbell. Each vCPU has its own registers, so that two can print at the same time.
#[derive(Debug)]
pub struct MmioPrinter {
    output: Output,
    /// Address and length.
    registers: [u64; 2],
    result: i64,
}

impl MmioPrinter {
    /// Creates a printer. Prints go to `output`.
    pub fn new(output: Output) -> Self {
        Self { output, registers: [0; 2], result: 0 }
    }

    /// Clears the registers and the result.
    pub(crate) fn reset(&mut self) {
        (self.registers, self.result) = ([0; 2], 0);
    }

    /// The name of the register at `offset`, for the profile.
    pub fn name(offset: u64) -> DeviceName {
        let register = match offset {
            0..8 => "address",
            8..16 => "length",
            _ => "doorbell",
        };
        DeviceName::register("printer", register)
    }

    fn read(&self, offset: u64, size: u8) -> u64 {
        let mut bytes = [0; PRINTER_SIZE as usize];
        let words = [self.registers[0], self.registers[1], self.result.cast_unsigned()];
        bytes.iter_mut().zip(words.into_iter().flat_map(u64::to_le_bytes)).for_each(|(to, from)| *to = from);
        let from = bytes.iter().skip(usize::try_from(offset).unwrap_or(usize::MAX)).take(size.into());
        from.rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn write(
        &mut self,
        offset: u64,
        size: u8,
        data: u64,
        vcpu: &mut dyn VcpuState,
    ) -> Result<Outcome, Error> {
        let doorbell = size_of_val(&self.registers) as u64;
        if offset < doorbell {
            let mut bytes: Vec<u8> = self.registers.into_iter().flat_map(u64::to_le_bytes).collect();
            let to = bytes.iter_mut().skip(usize::try_from(offset).unwrap_or(usize::MAX));
            to.zip(data.to_le_bytes()).take(size.into()).for_each(|(to, from)| *to = from);
            for (register, bytes) in self.registers.iter_mut().zip(bytes.as_chunks().0) {
                *register = u64::from_le_bytes(*bytes);
            }
            return Ok(Outcome::Resume);
        }
        let [address, len] = self.registers;
        match hypercall::print(&mut self.output, &vcpu.probe()?, address, len) {
            ControlFlow::Continue(result) => self.result = result,
            ControlFlow::Break(stop) => return Ok(Outcome::Stop(stop)),
        }
        Ok(Outcome::Resume)
    }
}

impl ExitController for MmioPrinter {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        let offset = |address: u64| address.checked_sub(PRINTER).filter(|offset| *offset < PRINTER_SIZE);
        match *exit {
            Exit::MmioRead { address, size } => match offset(address) {
                Some(offset) => Outcome::Value(self.read(offset, size)),
                None => Outcome::Unclaimed,
            },
            Exit::MmioWrite { address, size, data } => match offset(address) {
                Some(offset) => self.write(offset, size, data, vcpu).unwrap_or_else(Outcome::failed),
                None => Outcome::Unclaimed,
            },
            _ => Outcome::Unclaimed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::FakeVcpu;
    use crate::controller::hypercall::errno;
    use crate::memory::{Gpa, GuestMemory};
    use crate::x86::modes::{self, Mode};

    fn vcpu() -> FakeVcpu {
        let memory = GuestMemory::new(&[(Gpa(0), 0x1000)]).unwrap();
        memory.write(Gpa(0x10), b"Hello mmio!").unwrap();
        let sregs = modes::sregs(Mode::Protected, Default::default(), Gpa(0), modes::VcpuIndex::ALONE);
        FakeVcpu { memory, sregs, ..Default::default() }
    }

    #[test]
    fn a_write_to_the_doorbell_prints() {
        let (output, captured) = Output::captured();
        let (mut printer, mut vcpu) = (MmioPrinter::new(output), vcpu());
        let mut write = |offset, size, data| {
            let exit = Exit::MmioWrite { address: PRINTER + offset, size, data };
            assert!(matches!(printer.handle(&exit, &mut vcpu), Outcome::Resume));
        };
        write(0, 8, 0x10);
        write(8, 4, 11);
        write(0x10, 1, 0);
        write(8, 8, 5);
        write(0x10, 8, 1);
        assert_eq!(captured.bytes(), b"Hello mmio!Hello");
        let mut read = |offset, size| {
            let exit = Exit::MmioRead { address: PRINTER + offset, size };
            match printer.handle(&exit, &mut vcpu) {
                Outcome::Value(value) => value,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!([read(0, 8), read(8, 4), read(0x10, 8)], [0x10, 5, 5]);
        assert_eq!(read(4, 8), 5 << 32, "a read across both registers");
    }

    #[test]
    fn an_invalid_pointer_or_length_prints_nothing_and_returns_an_errno() {
        let (output, captured) = Output::captured();
        let (mut printer, mut vcpu) = (MmioPrinter::new(output), vcpu());
        for (address, len, errno) in [(0xfff, 2, errno::EFAULT), (0, u64::MAX, errno::EMSGSIZE)] {
            for (offset, data) in [(0, address), (8, len), (0x10, 1)] {
                let exit = Exit::MmioWrite { address: PRINTER + offset, size: 8, data };
                assert!(matches!(printer.handle(&exit, &mut vcpu), Outcome::Resume));
            }
            let result = printer.handle(&Exit::MmioRead { address: PRINTER + 0x10, size: 8 }, &mut vcpu);
            assert!(matches!(result, Outcome::Value(value) if value as i64 == -i64::from(errno)));
        }
        assert_eq!(captured.bytes(), b"");
    }

    #[test]
    fn all_offsets_and_widths_are_handled() {
        let (mut printer, mut vcpu) = (MmioPrinter::new(Output::captured().0), vcpu());
        for offset in 0..PRINTER_SIZE {
            for size in 0..=8 {
                let address = PRINTER + offset;
                let written = printer.handle(&Exit::MmioWrite { address, size, data: u64::MAX }, &mut vcpu);
                assert!(matches!(written, Outcome::Resume));
                assert!(matches!(
                    printer.handle(&Exit::MmioRead { address, size }, &mut vcpu),
                    Outcome::Value(_)
                ));
            }
        }
        let outside = Exit::MmioRead { address: PRINTER + PRINTER_SIZE, size: 1 };
        assert!(matches!(printer.handle(&outside, &mut vcpu), Outcome::Unclaimed));
    }
}
