//! The time sources of a Linux machine: which ones there are, the tables that describe them, and their devices.
//!
//! A kernel that uses kvm-clock needs no other source, and boots fastest with hardware-reduced ACPI tables. Another kernel first
//! measures the time-stamp counter with the PIT, before it reads the tables (since Linux 4.19). So the PIT is created when
//! the kernel programs it, and then the root of the tables points to those with the PIT and the PM timer.

use crate::boot::acpi::{self, Hardware, Platform, RSDP_SIZE, VirtioMmio};
use crate::boot::mp;
use crate::device::bus::Bus;
use crate::device::pc::i8042::{self, I8042};
use crate::device::pc::pit::{self, Pit};
use crate::device::pc::pm_timer::{self, PmTimer};
use crate::device::pc::system_control::SystemControl;
use crate::error::Error;
use crate::kvm::vm::{Vm, WeakVm};
use crate::machine::linux::{ClockKind, Linux};
use crate::memory::{GuestMemory, pc};
use std::sync::{Arc, Mutex, OnceLock};

/// The words on the command line that turn kvm-clock off.
const WITHOUT_KVM_CLOCK: [&str; 2] = ["no-kvmclock", "nopv"];
/// The first version of Linux that measures time before it reads the ACPI tables.
const MEASURES_FIRST: (u32, u32) = (4, 19);

/// The time sources of one machine.
#[derive(Debug)]
pub(super) struct TimeSources {
    sources: Sources,
    memory: GuestMemory,
    /// The machine's VM. It is set after the devices, which need it, are attached.
    vm: Arc<OnceLock<WeakVm>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sources {
    /// kvm-clock only.
    Kvm,
    /// kvm-clock. The others follow if the kernel programs the PIT.
    KvmFirst,
    /// All from the start. The PIT is created when the kernel programs it.
    AllOnDemand,
    /// All from the start.
    All,
}

impl Sources {
    /// The sources for a kernel of this version, if that is known, with this command line.
    fn choose(clock: ClockKind, version: Option<(u32, u32)>, command_line: &str) -> Self {
        let off = command_line.split_whitespace().any(|word| WITHOUT_KVM_CLOCK.contains(&word));
        match clock {
            ClockKind::Kvm => Self::Kvm,
            ClockKind::Pit => Self::All,
            ClockKind::Auto if off || version.is_some_and(|version| version < MEASURES_FIRST) => {
                Self::AllOnDemand
            }
            ClockKind::Auto => Self::KvmFirst,
        }
    }

    /// The hardware that the ACPI tables describe at the start.
    fn hardware(self) -> Hardware {
        match self {
            Self::Kvm | Self::KvmFirst => Hardware::Reduced,
            Self::AllOnDemand | Self::All => Hardware::Timers,
        }
    }
}

impl TimeSources {
    /// The time sources for a kernel with this command line.
    pub(super) fn new(linux: &Linux, command_line: &str, memory: &GuestMemory) -> Self {
        let sources = Sources::choose(linux.clock, linux.kernel.version(), command_line);
        log::info!("time sources: {sources:?}");
        Self { sources, memory: memory.clone(), vm: Arc::default() }
    }

    /// True if the guest can use a PIT.
    pub(super) fn has_pit(&self) -> bool {
        self.sources != Sources::Kvm
    }

    /// Writes the ACPI tables and the MP table.
    ///
    /// # Errors
    /// The tables are not in memory.
    pub(super) fn write_tables(&self, cpus: u32, virtio: &[VirtioMmio]) -> Result<(), Error> {
        let tables = |hardware, at| acpi::tables(&Platform { cpus, hardware, virtio }, at);
        self.memory.write(pc::ACPI, &tables(self.sources.hardware(), pc::ACPI))?;
        if self.sources == Sources::KvmFirst {
            self.memory.write(pc::FULL_ACPI, &tables(Hardware::Timers, pc::FULL_ACPI))?;
        }
        self.memory.write(pc::MP, &mp::table(cpus, None, pc::MP))
    }

    /// Attaches the devices to the ports: the PM timer, the PIT, and the keyboard controller with port 0x61.
    ///
    /// # Errors
    /// Another device has a port.
    pub(super) fn attach(&self, ports: &mut Bus) -> Result<(), Error> {
        let timer = Arc::new(Mutex::new(PmTimer::default()));
        ports.attach(pm_timer::PORT.into(), pm_timer::PORTS.into(), timer)?;
        let pit = matches!(self.sources, Sources::KvmFirst | Sources::AllOnDemand).then(|| self.pit());
        let counters = pit.clone().unwrap_or_else(Pit::absent);
        ports.attach(pit::PORT.into(), pit::PORTS.into(), Arc::new(Mutex::new(counters)))?;
        let controller = I8042::with_system_control(SystemControl::with_pit(pit));
        ports.attach(i8042::PORT.into(), i8042::PORTS.into(), Arc::new(Mutex::new(controller)))?;
        Ok(())
    }

    /// A PIT that is created in the VM when the guest programs it.
    fn pit(&self) -> Pit {
        let (vm, memory) = (self.vm.clone(), self.memory.clone());
        let moves_root = self.sources == Sources::KvmFirst;
        Pit::new(move |first| {
            let Some(vm) = vm.get().and_then(WeakVm::upgrade) else { return Ok(()) };
            vm.create_used_pit(first)?;
            if moves_root { move_root(&memory) } else { Ok(()) }
        })
    }

    /// Connects the sources to the VM, which has its interrupt controllers.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn connect(&self, vm: &Vm) -> Result<(), Error> {
        if self.sources == Sources::All {
            vm.create_pit()?;
        }
        // A machine has one VM, so this succeeds.
        let _ = self.vm.set(vm.downgrade());
        Ok(())
    }
}

/// Makes the RSDP point to the tables with all time sources. A kernel reads the RSDP once. The tables that it has read stay.
fn move_root(memory: &GuestMemory) -> Result<(), Error> {
    let mut root = [0; RSDP_SIZE];
    if memory.read(pc::FULL_ACPI, &mut root) { memory.write(pc::ACPI, &root) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_follow_from_the_option_the_version_and_the_command_line() {
        use ClockKind::{Auto, Kvm, Pit};
        let (old, new) = (Some((4, 9)), Some((6, 1)));
        for (clock, version, line, expected) in [
            (Auto, new, "console=ttyS0", Sources::KvmFirst),
            (Auto, None, "", Sources::KvmFirst),
            (Auto, new, "quiet no-kvmclock", Sources::AllOnDemand),
            (Auto, new, "nopv", Sources::AllOnDemand),
            (Auto, new, "no-kvmclock-vsyscall nopvspin", Sources::KvmFirst),
            (Auto, old, "", Sources::AllOnDemand),
            (Auto, Some((4, 19)), "", Sources::KvmFirst),
            (Kvm, old, "no-kvmclock", Sources::Kvm),
            (Pit, new, "", Sources::All),
        ] {
            assert_eq!(Sources::choose(clock, version, line), expected, "{clock:?} {version:?} {line}");
        }
    }

    #[test]
    fn the_root_moves_to_the_tables_with_all_sources() {
        let memory = GuestMemory::new(&pc::ram(2 << 20)).unwrap();
        let sources = TimeSources { sources: Sources::KvmFirst, memory: memory.clone(), vm: Arc::default() };
        sources.write_tables(2, &[]).unwrap();
        let root = || {
            let mut root = [0; RSDP_SIZE];
            assert!(memory.read(pc::ACPI, &mut root));
            (root, root.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)))
        };
        let ((before, first), ()) = (root(), move_root(&memory).unwrap());
        let (after, second) = root();
        assert_eq!((first, second), (0, 0), "both checksums are right");
        let table = |root: [u8; RSDP_SIZE]| u64::from_le_bytes(*root[24..].first_chunk().unwrap());
        assert!(table(before) < pc::FULL_ACPI.0 && table(after) > pc::FULL_ACPI.0);
    }
}
