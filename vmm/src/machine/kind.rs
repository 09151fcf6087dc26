//! The kinds of machines for an image.

use crate::boot::Image;
use crate::machine::Processor;
use std::fmt;

/// The kind of the machine that runs an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineKind {
    /// A processor, memory, and few devices: no interrupt controllers, so the guest gets no interrupts.
    Bare,
    /// A classic PC: interrupt controllers, a timer, and the devices that kernels for a PC expect.
    Pc,
    /// A classic PC with a BIOS, for boot sectors.
    Bios,
}

impl MachineKind {
    /// The kind of PC that suits an image, if the user asks for no kind. A kernel of a boot loader expects a PC. `None` for
    /// other images, and for software processors, which have no interrupt controllers.
    pub(super) fn of(image: &Image, processor: Option<Processor>) -> Option<Self> {
        image.protocol().filter(|_| processor != Some(Processor::Soft)).map(|_| Self::Pc)
    }
}

impl fmt::Display for MachineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bare => "bare",
            Self::Pc => "pc",
            Self::Bios => "bios",
        })
    }
}
