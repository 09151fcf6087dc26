//! The devices of a classic PC that a bare machine does not have, and their interrupts.

use crate::console::output::Output;
use crate::device::bus::Bus;
use crate::device::debugcon::{self, Debugcon};
use crate::device::pc::cmos::{self, Cmos};
use crate::device::pc::fw_cfg::{self, FwCfg};
use crate::device::pc::i8042::{self, I8042};
use crate::device::pc::legacy;
use crate::device::pc::pci::{self, PciConfiguration};
use crate::device::pc::pm_timer::{self, PmTimer};
use crate::device::pc::power::{self, Power};
use crate::device::pc::vga::{self, Vga};
use crate::error::Error;
use crate::host::{EventFd, event};
use crate::kvm::vm::Vm;
use std::sync::{Arc, Mutex};

/// The devices.
pub(super) struct ClassicDevices {
    pub(super) keyboard: Arc<Mutex<I8042>>,
    pub(super) cmos: Arc<Mutex<Cmos>>,
    /// Wakes the timer of the clock.
    pub(super) wake: Arc<EventFd>,
    pub(super) vga: Arc<Mutex<Vga>>,
    /// The keyboard's interrupt, if there are no interrupt controllers: a BIOS interrupts the guest.
    pub(super) keyboard_line: Option<EventFd>,
    /// The interrupts, each with its number. Empty without interrupt controllers.
    lines: Vec<(EventFd, u32)>,
}

impl ClassicDevices {
    /// Creates the devices of a machine with `ram` bytes of RAM and `disks` hard disks. `drained` is signalled when the guest has read all keys.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub(super) fn new(
        ram: u64,
        disks: u8,
        has_interrupts: bool,
        drained: &Arc<EventFd>,
    ) -> Result<Self, Error> {
        let mut lines = Vec::new();
        let mut line = |irq| {
            if !has_interrupts {
                return Ok(None);
            }
            let line = event().map_err(Error::host("eventfd"))?;
            let end = line.try_clone().map_err(Error::host("dup"))?;
            lines.push((line, irq));
            Ok::<_, Error>(Some(end))
        };
        let wake = Arc::new(event().map_err(Error::host("eventfd"))?);
        let mut own_line = None;
        let keyboard_line = match line(i8042::IRQ)? {
            None => {
                let end = event().map_err(Error::host("eventfd"))?;
                own_line = Some(end.try_clone().map_err(Error::host("dup"))?);
                end
            }
            Some(line) => line,
        };
        let keyboard = I8042::with_keyboard(Some(keyboard_line), Some(drained.clone()));
        let cmos = Cmos::new(ram, disks, line(cmos::IRQ)?, Some(wake.clone()));
        Ok(Self {
            keyboard: Arc::new(Mutex::new(keyboard)),
            cmos: Arc::new(Mutex::new(cmos)),
            wake,
            vga: Arc::new(Mutex::new(Vga::default())),
            keyboard_line: own_line,
            lines,
        })
    }

    /// Attaches the devices to their ports, and that for firmware, if there is one.
    ///
    /// # Errors
    /// Another device is there.
    pub(super) fn attach(
        &self,
        ports: &mut Bus,
        output: &Output,
        fw_cfg: Option<FwCfg>,
    ) -> Result<(), Error> {
        if let Some(fw_cfg) = fw_cfg {
            ports.attach(fw_cfg::PORT.into(), fw_cfg::PORTS.into(), Arc::new(Mutex::new(fw_cfg)))?;
        }
        ports.attach(i8042::PORT.into(), i8042::PORTS.into(), self.keyboard.clone())?;
        ports.attach(cmos::PORT.into(), cmos::PORTS.into(), self.cmos.clone())?;
        ports.attach(vga::PORT.into(), vga::PORTS.into(), self.vga.clone())?;
        ports.attach(pci::PORT.into(), pci::PORTS.into(), Arc::new(Mutex::new(PciConfiguration)))?;
        // The ACPI tables list these.
        ports.attach(
            pm_timer::PORT.into(),
            pm_timer::PORTS.into(),
            Arc::new(Mutex::new(PmTimer::default())),
        )?;
        ports.attach(power::PORT.into(), power::PORTS.into(), Arc::new(Mutex::new(Power)))?;
        let debugcon = Debugcon::new(output.clone());
        ports.attach(debugcon::QEMU_PORT.into(), 1, Arc::new(Mutex::new(debugcon)))?;
        Ok(legacy::attach(ports)?)
    }

    /// Connects their interrupts.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn connect(&self, vm: &Vm) -> Result<(), Error> {
        self.lines.iter().try_for_each(|(line, irq)| vm.connect_interrupt(line, *irq))
    }
}
