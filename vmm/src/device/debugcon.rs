//! The debug console on port 0xE9, as Bochs has it: what is written is printed, a read answers 0xE9.

use crate::console::output::Output;
use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use simvirtio::abi;
use std::ops::ControlFlow;

/// The console's port.
pub const PORT: u16 = 0xe9;

/// Prints what is written to it, low byte first.
#[derive(Debug)]
pub struct Debugcon {
    output: Output,
}

impl Debugcon {
    /// A console that prints to `output`.
    pub fn new(output: Output) -> Self {
        Self { output }
    }
}

impl Device for Debugcon {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(PORT.into())
    }

    /// A driver written after the course's skeleton announces itself by writing SIMVIRTIO's magic here as
    /// one word. That is no text, and is not printed.
    fn write(&mut self, _: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        if size == 4 && data == u64::from(abi::MAGIC) {
            log::info!("a driver announced itself with SIMVIRTIO's magic on port {PORT:#x}");
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
    fn the_magic_as_a_word_is_an_announcement_and_no_text() {
        let (output, captured) = Output::captured();
        let mut console = Debugcon::new(output);
        assert!(console.write(0, 4, abi::MAGIC.into()).is_continue());
        assert_eq!(captured.bytes(), b"");
    }

    #[test]
    fn an_output_that_fails_ends_the_run() {
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
