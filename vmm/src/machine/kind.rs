//! The kinds of machines for an image.

use crate::boot::Image;
use crate::error::Error;
use crate::machine::builder::Builder;
use crate::machine::{Machine, Processor};
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

/// The device of a classic PC that gets the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputDevice {
    /// The first serial port.
    Serial,
    /// The keyboard.
    Keyboard,
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

impl Builder {
    /// Builds a machine for `image`, of the kind that was asked for or that suits the image.
    pub(super) fn build_for(self, image: Image) -> Result<Machine, Error> {
        // Options that only a bare machine has.
        let is_bare = self.irqchip || self.first_vcpu != 0 || self.wants_window();
        if image.loads_itself() {
            return self.build_with_firmware(image);
        }
        match self.machine {
            Some(MachineKind::Bios) => Err(Error::Config(
                "a machine with a BIOS starts from a boot disk: leave out --machine bios, or give a disk image without an address \
                 and a mode"
                    .into(),
            )),
            Some(MachineKind::Bare) if !self.disks.is_empty() => Err(no_disks()),
            Some(MachineKind::Bare) => self.build_bare(image),
            Some(kind) => self.build_classic(image, kind),
            None => match MachineKind::of(&image, self.processor).filter(|_| !is_bare) {
                None if !self.disks.is_empty() => Err(no_disks()),
                None => self.build_bare(image),
                Some(kind) if self.has_classic_parts() => self.build_classic(image, kind),
                Some(_) if !self.disks.is_empty() => Err(no_disks()),
                // The kernel can still run as far as it needs no interrupts.
                Some(_) => self.build_bare(image),
            },
        }
    }
}

/// The error if a bare machine is given a disk.
fn no_disks() -> Error {
    Error::Config(
        "--disk is for a PC, and this machine is bare: give --machine pc, or leave out --disk".into(),
    )
}
