//! The BIOS of a machine that starts from a boot disk.

use crate::boot::Image;
use crate::console::input::Input;
use crate::controller::bios::{Bios, Drives, Parts};
use crate::device::pc::vga::Vga;
use crate::error::Error;
use crate::host::{EventFd, REPEAT};
use crate::machine::builder::Builder;
use crate::machine::{Machine, MachineKind};
use crate::memory::GuestMemory;
use std::sync::{Arc, Mutex};
use std::time::Duration;

impl Builder {
    /// Builds a machine for a boot disk or a ROM.
    ///
    /// # Errors
    /// Another kind of machine was asked for, or building it failed.
    pub(super) fn build_with_firmware(self, image: Image) -> Result<Machine, Error> {
        let has_rom = image.boot_disk().is_none();
        match self.machine {
            None | Some(MachineKind::Pc) if has_rom => self.build_classic(image, MachineKind::Pc),
            None | Some(MachineKind::Bios) if !has_rom => self.build_classic(image, MachineKind::Bios),
            Some(other) if has_rom => Err(Error::Config(format!(
                "a ROM is the firmware of a classic PC: leave out --machine {other}"
            ))),
            other => Err(Error::Config(format!(
                "a boot disk needs a BIOS, which a machine of the kind {} does not have: give --machine bios",
                other.unwrap_or(MachineKind::Bare)
            ))),
        }
    }

    /// The BIOS with these drives. `keyboard` is the keyboard's interrupt if the machine has no interrupt controllers and no
    /// timer.
    ///
    /// Keys of a terminal are those of the keyboard. Other input is taken by the BIOS itself, which then knows its end, unless the
    /// user asks for a device.
    pub(super) fn bios(
        &mut self,
        drives: Drives,
        memory: &GuestMemory,
        ram: u64,
        vga: Arc<Mutex<Vga>>,
        keyboard: Option<EventFd>,
    ) -> Box<Bios> {
        let is_typed = (self.keyboard)();
        let has_keys = is_typed || self.input_device.is_some();
        let input = match has_keys {
            true => Input::none(),
            false => std::mem::replace(&mut self.input, Input::none()),
        };
        Box::new(Bios::new(Parts {
            memory: memory.clone(),
            ram,
            drives,
            output: self.output.clone(),
            // A terminal shows the screen, in which the text is, too.
            prints: !self.screen_on_terminal,
            input,
            screen: Some(vga),
            keyboard,
            has_keys,
            times_keys: has_keys && !is_typed,
        }))
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

    /// The time after which vCPUs are kicked again and again: a BIOS interrupts its guest then, and looks if it is idle. `None`
    /// if it need not.
    pub(super) fn needs_kicks(&self) -> Option<Duration> {
        self.has_bios.then_some(REPEAT)
    }

    /// True if all text on the screen is also in the output, because a BIOS has printed it.
    pub(super) fn screen_is_printed(&self) -> bool {
        let bios = self.controllers.first().and_then(|own| own.bios.as_ref());
        bios.is_some_and(|bios| bios.has_printed_screen())
    }
}
