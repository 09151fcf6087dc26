//! The time sources of a Linux machine: which ones there are, the tables that describe them, and their devices.
//!
//! A kernel that uses kvm-clock needs no other source, and boots fastest if the tables are hardware-reduced. Other kernels
//! measure the frequency of the time-stamp counter with the PM timer or the PIT.

use crate::boot::acpi::{self, Hardware, Platform, VirtioMmio};
use crate::boot::mp;
use crate::device::bus::Bus;
use crate::device::pc::i8042::{self, I8042};
use crate::device::pc::pit::{self, Pit};
use crate::device::pc::pm_timer::{self, PmTimer};
use crate::device::pc::system_control::SystemControl;
use crate::error::Error;
use crate::kvm::vm::{Vm, WeakVm};
use crate::machine::linux::ClockKind;
use crate::memory::{GuestMemory, pc};
use std::sync::{Arc, Mutex, OnceLock};

/// The time sources of one machine.
#[derive(Debug)]
pub(super) struct TimeSources {
    clock: ClockKind,
    hardware: Hardware,
    /// The machine's VM. It is set after the devices, which need it, are attached.
    vm: Arc<OnceLock<WeakVm>>,
}

impl TimeSources {
    /// The time sources for a kernel.
    pub(super) fn new(clock: ClockKind) -> Self {
        let hardware = match clock {
            ClockKind::Kvm => Hardware::Reduced,
            ClockKind::Auto | ClockKind::Pm | ClockKind::Pit => Hardware::Timers,
        };
        Self { clock, hardware, vm: Arc::default() }
    }

    /// Writes the ACPI tables and the MP table.
    ///
    /// # Errors
    /// The tables are not in memory.
    pub(super) fn write_tables(
        &self,
        memory: &GuestMemory,
        cpus: u32,
        virtio: &[VirtioMmio],
    ) -> Result<(), Error> {
        let platform = Platform { cpus, hardware: self.hardware, virtio };
        memory.write(pc::ACPI, &acpi::tables(&platform))?;
        memory.write(pc::MP, &mp::table(cpus, None, pc::MP))
    }

    /// Attaches the devices to the ports: the PM timer, the PIT, and the keyboard controller with port 0x61.
    ///
    /// # Errors
    /// Another device has a port.
    pub(super) fn attach(&self, ports: &mut Bus) -> Result<(), Error> {
        let timer = Arc::new(Mutex::new(PmTimer::default()));
        ports.attach(pm_timer::PORT.into(), pm_timer::PORTS.into(), timer)?;
        let timer = matches!(self.clock, ClockKind::Auto).then(|| self.pit());
        if let Some(pit) = &timer {
            ports.attach(pit::PORT.into(), pit::PORTS.into(), Arc::new(Mutex::new(pit.clone())))?;
        }
        let controller = I8042::with_system_control(SystemControl::with_pit(timer));
        ports.attach(i8042::PORT.into(), i8042::PORTS.into(), Arc::new(Mutex::new(controller)))?;
        Ok(())
    }

    /// A PIT that is created in the VM when the guest programs it.
    fn pit(&self) -> Pit {
        let vm = self.vm.clone();
        Pit::new(move |first| match vm.get().and_then(WeakVm::upgrade) {
            Some(vm) => vm.create_used_pit(first),
            None => Ok(()),
        })
    }

    /// Connects the sources to the VM, which has its interrupt controllers.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn connect(&self, vm: &Vm) -> Result<(), Error> {
        if self.clock == ClockKind::Pit {
            vm.create_pit()?;
        }
        // Set once: a machine has one VM.
        let _ = self.vm.set(vm.downgrade());
        Ok(())
    }
}
