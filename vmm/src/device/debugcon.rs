//! The debug console on port 0xE9, as in Bochs, and on a classic PC also on port 0x402, as in QEMU: writes are printed, and a
//! read returns 0xE9.

use crate::console::output::Output;
use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use simvirtio::abi;
use std::ops::ControlFlow;

/// The port.
pub const PORT: u16 = 0xe9;

/// The port of QEMU's debug console, which a classic PC has in addition.
pub const QEMU_PORT: u16 = 0x402;

/// The device: prints the bytes of each write, low byte first.
#[derive(Debug)]
pub struct Debugcon {
    output: Output,
}

impl Debugcon {
    /// Creates a console that prints to `output`.
    pub fn new(output: Output) -> Self {
        Self { output }
    }
}

impl Device for Debugcon {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(PORT.into())
    }

    /// Prints the low `size` bytes of `data`, with one exception: drivers based on the course's skeleton write
    /// SIMVIRTIO's magic value to this port, as one 4-byte word, when they start. This word is not text, and is not
    /// printed.
    fn write(&mut self, _: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        if size == 4 && data == u64::from(abi::MAGIC) {
            log::info!("the driver wrote SIMVIRTIO's magic value to port {PORT:#x}");
            return ControlFlow::Continue(());
        }
        let bytes = data.to_le_bytes();
        let text = bytes.get(..size.into()).unwrap_or(&bytes);
        self.output.print(text)
    }

    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("debug console")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Write};

    #[test]
    fn prints_every_width_low_byte_first() {
        let (output, captured) = Output::captured();
        let mut console = Debugcon::new(output);
        for (size, data) in [(1, 0x41), (2, 0x4342), (4, 0x4746_4544)] {
            assert!(console.write(0, size, data).is_continue());
        }
        assert_eq!(captured.bytes(), b"ABCDEFG");
        assert!(matches!(console.read(0, 1), ControlFlow::Continue(0xe9)));
    }

    #[test]
    fn the_magic_value_as_a_word_is_not_printed() {
        let (output, captured) = Output::captured();
        let mut console = Debugcon::new(output);
        assert!(console.write(0, 4, abi::MAGIC.into()).is_continue());
        assert_eq!(captured.bytes(), b"");
    }

    #[test]
    fn a_failed_write_to_the_output_ends_the_run() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut console = Debugcon::new(Output::new(Full, false));
        assert!(matches!(console.write(0, 1, 0), ControlFlow::Break(Stop::OutputFailed(_))));
    }
}
