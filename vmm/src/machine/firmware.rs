//! The BIOS of a machine that starts from a boot disk: its controller, and the devices that boot sectors know.

use crate::boot::Image;
use crate::console::input::Input;
use crate::controller::bios::{Bios, Content, Parts};
use crate::device::pc::i8042::{self, I8042};
use crate::device::pc::rtc::{self, Rtc};
use crate::error::Error;
use crate::host::REPEAT;
use crate::machine::Machine;
use crate::machine::builder::Builder;
use crate::memory::GuestMemory;
use std::sync::{Arc, Mutex};
use std::time::Duration;

impl Builder {
    /// The BIOS for an image. `None` if it is not a boot disk.
    ///
    /// # Errors
    /// A device of the caller's is at the ports of a device that a PC has.
    pub(super) fn bios(
        &mut self,
        image: &Image,
        memory: &GuestMemory,
        ram: u64,
    ) -> Result<Option<Box<Bios>>, Error> {
        let Some(disk) = image.boot_disk() else { return Ok(None) };
        let ports = &mut self.devices.ports;
        ports.attach(i8042::PORT.into(), i8042::PORTS.into(), Arc::new(Mutex::new(I8042::default())))?;
        ports.attach(rtc::PORT.into(), rtc::PORTS.into(), Arc::new(Mutex::new(Rtc::default())))?;
        Ok(Some(Box::new(Bios::new(Parts {
            memory: memory.clone(),
            ram,
            disk: Content::Bytes(disk),
            output: self.output.clone(),
            input: std::mem::replace(&mut self.input, Input::bytes(b"")),
            has_controllers: self.irqchip,
        }))))
    }
}

impl Machine {
    /// Gives the BIOS to the first vCPU, which is the only one.
    pub(super) fn set_bios(&mut self, bios: Option<Box<Bios>>) {
        self.has_bios = bios.is_some();
        if let Some(first) = self.controllers.first_mut() {
            first.bios = bios;
        }
    }

    /// The time after which vCPUs are kicked again and again: a BIOS interrupts its guest then. `None` if it need not.
    pub(super) fn needs_kicks(&self) -> Option<Duration> {
        self.has_bios.then_some(REPEAT)
    }
}
