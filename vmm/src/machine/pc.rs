//! Building a PC for Linux.

use crate::boot::Image;
use crate::boot::acpi::VirtioMmio;
use crate::boot::linux::{self as boot, Loaded};
use crate::console::host::{ConsoleSetup, Port, Watch};
use crate::console::input::Input;
use crate::controller::inquiry::Inquiry;
use crate::device::pc::post_code::{self, PostCode};
use crate::device::pc::power::{self, Power};
use crate::device::pc::rtc::{self, Rtc};
use crate::device::pc::vga::{self, Vga};
use crate::device::serial::{self, Serial, SerialPort};
use crate::device::virtio::mmio;
use crate::device::virtio::registers::register;
use crate::device::virtio::{self, Block, ConsoleInput, ConsolePort, Entropy, Mmio};
use crate::error::Error;
use crate::host::{self, EventFd, event};
use crate::kvm::vm::{System, Vm};
use crate::machine::Machine;
use crate::machine::assembly::Parts;
use crate::machine::background::Background;
use crate::machine::boot_progress::{self, BootProgress};
use crate::machine::builder::Builder;
use crate::machine::linux::{self, ConsoleKind, Linux, MAX_DISKS, OnHalt, Pc};
use crate::machine::processors::{Processor, Processors};
use crate::machine::screen::GuestScreen;
use crate::machine::standstill::{self, Facts, Standstill};
use crate::machine::time_sources::TimeSources;
use crate::memory::{self, Gpa, GuestMemory, pc};
use crate::profile::timeline::{Event, Timeline};
use crate::shutdown::StopHandle;
use std::sync::{Arc, Mutex, PoisonError};

/// The default command line: messages go to the console, and a panic resets the machine, which ends the run.
///
/// There is no PCI. Without `pci=off` a kernel looks for it with up to 33,000 exits, on processors of AMD that could have a
/// graphics aperture.
fn default_command_line(console: ConsoleKind) -> &'static str {
    match console {
        ConsoleKind::Serial => "console=ttyS0 panic=-1 reboot=k pci=off",
        ConsoleKind::Virtio => "console=hvc0 panic=-1 reboot=k pci=off",
    }
}

/// The message if Linux is to run on a software processor.
const LINUX_NEEDS_KVM: &str = "Linux needs KVM, because the software processor is for small guests: run Linux on a host with \
                               KVM, or in the project's testbed, which brings its own (make testbed)";

/// The interrupts of the virtio devices, in their order. Those of a PC's other devices are not among them: the serial port, the
/// real-time clock (8), ACPI (9).
const VIRTIO_IRQS: [u32; MAX_DISKS + 2] =
    [5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 3];

/// The size of a virtio device's registers, as the ACPI tables have it.
const VIRTIO_SIZE: u32 = mmio::SIZE as u32;
const _: () = assert!(VIRTIO_SIZE as u64 == mmio::SIZE);

/// The serial port, and the events between it, KVM and the console's threads.
struct SerialLine {
    serial: Arc<Mutex<Serial>>,
    /// Raises the port's interrupt.
    line: EventFd,
    /// Signals that the guest has read all input.
    drained: Arc<EventFd>,
}

/// The virtio devices, and their places.
struct Virtio {
    devices: Vec<Arc<Mutex<Mmio>>>,
    /// The console, if it is a virtio console.
    console: Option<Arc<Mutex<Mmio>>>,
    places: Vec<VirtioMmio>,
}

impl Builder {
    /// Builds a PC that boots `linux`: see [`Builder::build`].
    pub(super) fn build_pc(mut self, mut linux: Linux) -> Result<Machine, Error> {
        self.check_linux(&linux)?;
        let timeline = Arc::new(Timeline::since(host::started()));
        let ram = memory::pc_ram_size(self.memory)?;
        let memory = GuestMemory::new(&pc::ram(ram))?;
        memory.prefer_large_pages();
        let loaded = load(&mut linux, &memory, ram)?;
        let stop_handle = Arc::new(StopHandle::new()?);
        let typed = ConsoleInput::new()?;
        let virtio = self.virtio(&memory, &mut linux, &typed)?;
        let time = TimeSources::new(&linux, command_line(&linux), &memory);
        time.write_tables(self.cpus, &virtio.places)?;

        let line = self.serial_line()?;
        self.attach_ports(line.serial.clone())?;
        self.attach_pc_devices(&timeline, &time, &virtio)?;
        let screen = if linux.is_linux() { None } else { Some(self.attach_screen(&memory)?) };
        let progress = BootProgress::new(timeline.clone(), linux.marker.as_deref());
        let (prompt, look) = self.watch_output(&progress)?;

        // Created before the VM, and so dropped after it.
        let size = virtio.places.iter().map(|place| u64::from(place.size)).sum();
        let registers = GuestMemory::new(&[(Gpa(pc::VIRTIO.into()), size)])?;
        let (system, vm) = self.pc_vm(&memory, &registers, ram, &line.line, &virtio)?;
        time.connect(&vm)?;
        (self.cpuid, self.irqchip) = (true, true);
        let vcpus = self.create_vcpus(&system, &vm, &memory, |vcpu, index| {
            vcpu.set_boot_msrs();
            // Linux starts the other vCPUs.
            if index.index == 0 { vcpu.set_linux(loaded.entry, loaded.mode) } else { Ok(()) }
        })?;
        timeline.mark(Event::VmReady);
        let port: Box<dyn Port> = match virtio.console {
            None => Box::new(SerialPort { serial: line.serial, drained: line.drained }),
            Some(device) => Box::new(ConsolePort { input: typed, device }),
        };
        let (typed, input) = std::mem::replace(&mut self.input, Input::bytes(b"")).into_parts();
        let facts = facts(&linux, &time);
        let (inquiry, watch) = self.watch(&memory, (facts, linux.on_halt), &progress, &stop_handle);
        let (escapes, output, core_key) = (linux.escapes, self.output.clone(), self.core_key.take());
        let console = ConsoleSetup { typed, input, escapes, core_key, port, output, prompt, look, watch };
        let silence = linux::silence(command_line(&linux), linux.console);
        let pc = Pc { console, stop_handle, progress, timeline, virtio: virtio.devices, inquiry, silence };
        let background = Background::Pc(Some(Box::new(pc)));
        let (mode, image, restore) = (loaded.mode, Vec::new(), None);
        let (processors, kvm_error) = (Processors::Kvm { vcpus, vm }, None);
        let kind = None;
        Ok(self.assemble(Parts {
            processors,
            kvm_error,
            memory,
            mode,
            background,
            screen,
            kind,
            ram,
            image,
            restore,
        }))
    }

    /// Lets `progress` see the output. Returns the event that is signalled when a prompt waits, and the one for the message of
    /// a halt.
    fn watch_output(&self, progress: &BootProgress) -> Result<(EventFd, Arc<EventFd>), Error> {
        let new = || event().map_err(Error::host("eventfd"));
        let (prompt, look) = (new()?, Arc::new(new()?));
        let (observer, halted) = (progress.clone(), look.clone());
        self.output.set_observer(move |text| {
            if observer.see(text) {
                host::signal(&halted);
            }
        });
        self.output.set_prompt(duplicate(&prompt)?);
        Ok((prompt, look))
    }

    /// Attaches a text screen, for a program that has the format of Linux but is another one.
    fn attach_screen(&mut self, memory: &GuestMemory) -> Result<GuestScreen, Error> {
        let vga = Arc::new(Mutex::new(Vga::default()));
        self.devices.ports.attach(vga::PORT.into(), vga::PORTS.into(), vga.clone())?;
        let initial = GuestScreen::initial(&Image::default());
        initial.into_iter().try_for_each(|(start, cells)| memory.write(start, &cells))?;
        Ok(GuestScreen { memory: memory.clone(), vga, is_terminal: self.screen_on_terminal })
    }

    /// The questions to the vCPUs, and the function that asks them if the boot stands still.
    fn watch(
        &self,
        memory: &GuestMemory,
        (facts, on_halt): (Facts, OnHalt),
        progress: &BootProgress,
        stop_handle: &Arc<StopHandle>,
    ) -> (Arc<Inquiry>, Watch) {
        let inquiry = Arc::new(Inquiry::new(self.cpus));
        let mut standstill = Standstill {
            inquiry: inquiry.clone(),
            progress: progress.clone(),
            vcpus: stop_handle.clone(),
            memory: memory.clone(),
            facts,
            on_halt,
            state: standstill::State::default(),
        };
        (inquiry, Box::new(move || standstill.check()))
    }

    /// Refuses options that a Linux machine does not have.
    fn check_linux(&self, linux: &Linux) -> Result<(), Error> {
        if self.transport.is_some() || self.queue_len.is_some() || self.verify {
            return Err(Error::Config(
                "a Linux machine has no SIMVIRTIO, and leaves no result to verify: leave out the options for them".into(),
            ));
        }
        if self.processor == Some(Processor::Soft) {
            return Err(Error::Config(LINUX_NEEDS_KVM.into()));
        }
        if self.first_vcpu != 0 {
            return Err(Error::Config(format!(
                "the first vCPU of a Linux machine must have number 0, not {}",
                self.first_vcpu
            )));
        }
        let can_be_found =
            |marker: &String| (1..=boot_progress::MAX_LINE).contains(&marker.len()) && !marker.contains('\n');
        if linux.marker.as_ref().is_some_and(|marker| !can_be_found(marker)) {
            return Err(Error::Config(format!(
                "--marker must have 1 to {} bytes and no end of line, because it is searched for in each line",
                boot_progress::MAX_LINE
            )));
        }
        if linux.disks.len() > MAX_DISKS {
            return Err(Error::Config(format!(
                "a machine has at most {MAX_DISKS} disks, not {}: leave out some --disk",
                linux.disks.len()
            )));
        }
        Ok(())
    }

    /// Creates the serial port.
    fn serial_line(&self) -> Result<SerialLine, Error> {
        let new = || event().map_err(Error::host("eventfd"));
        let (line, drained) = (new()?, Arc::new(new()?));
        let serial = Serial::with_interrupt(self.output.clone(), duplicate(&line)?, drained.clone());
        Ok(SerialLine { serial: Arc::new(Mutex::new(serial)), line, drained })
    }

    /// Creates the virtio devices: the disks in their order, the console if it is a virtio console, and entropy.
    fn virtio(&self, memory: &GuestMemory, linux: &mut Linux, typed: &ConsoleInput) -> Result<Virtio, Error> {
        let shared = |device: Mmio| Arc::new(Mutex::new(device));
        let mut devices = Vec::new();
        for disk in std::mem::take(&mut linux.disks) {
            devices.push(shared(Mmio::new(Block::new(disk), memory.clone())?));
        }
        let mut console = None;
        if linux.console == ConsoleKind::Virtio {
            let size = linux.escapes.then(host::terminal::size).flatten();
            let device = virtio::ConsoleDevice::new(self.output.clone(), typed.clone(), size);
            let device = shared(Mmio::new(device, memory.clone())?);
            console = Some(device.clone());
            devices.push(device);
        }
        devices.push(shared(Mmio::new(Entropy::new()?, memory.clone())?));
        Ok(Virtio { places: places(devices.len()), devices, console })
    }

    /// Attaches the devices that only a PC has.
    fn attach_pc_devices(
        &mut self,
        timeline: &Arc<Timeline>,
        time: &TimeSources,
        virtio: &Virtio,
    ) -> Result<(), Error> {
        let ports = &mut self.devices.ports;
        time.attach(ports)?;
        ports.attach(rtc::PORT.into(), rtc::PORTS.into(), Arc::new(Mutex::new(Rtc::default())))?;
        let post_code = PostCode::new(timeline.clone());
        ports.attach(post_code::PORT.into(), 1, Arc::new(Mutex::new(post_code)))?;
        ports.attach(power::PORT.into(), power::PORTS.into(), Arc::new(Mutex::new(Power)))?;
        for (device, place) in virtio.devices.iter().zip(&virtio.places) {
            self.devices.mmio.attach(place.address.into(), place.size.into(), device.clone())?;
        }
        Ok(())
    }

    /// Creates the VM, with interrupt controllers, over `memory`. Guests read the registers of virtio devices in
    /// `registers`, without an exit, if KVM has read-only slots.
    fn pc_vm(
        &self,
        memory: &GuestMemory,
        registers: &GuestMemory,
        ram: u64,
        serial_line: &EventFd,
        virtio: &Virtio,
    ) -> Result<(System, Vm), Error> {
        let (system, vm) = System::create_vm(pc::TSS).map_err(|error| match self.processor {
            None if error.is_kvm_missing() => Error::LinuxNeedsKvm(Box::new(error)),
            _ => error,
        })?;
        system.require_pc()?;
        vm.set_identity_map(pc::IDENTITY_MAP)?;
        vm.add_memory(memory)?;
        let read_only = vm.has_read_only_slots();
        if read_only {
            vm.add_read_only_memory(registers, memory.slot_count())?;
        }
        vm.create_irqchip()?;
        vm.mask_legacy_controllers()?;
        system.check_address_width(ram)?;
        vm.filter_msrs(&self.filtered_msrs())?;
        vm.connect_interrupt(serial_line, serial::IRQ)?;
        for (device, place) in virtio.devices.iter().zip(&virtio.places) {
            connect(&vm, device, place, read_only.then_some(registers))?;
        }
        Ok((system, vm))
    }
}

/// The kernel's command line.
fn command_line(linux: &Linux) -> &str {
    linux.command_line.as_deref().unwrap_or(default_command_line(linux.console))
}

/// The facts that explain a boot that stands still.
fn facts(linux: &Linux, time: &TimeSources) -> Facts {
    let line = command_line(linux);
    let names_console =
        ["console=ttyS0", "console=hvc0", "earlyprintk", "earlycon"].iter().any(|name| line.contains(name));
    Facts { has_pit: time.has_pit(), names_console }
}

/// Loads the kernel, its initial RAM disk and its boot parameters.
fn load(linux: &mut Linux, memory: &GuestMemory, ram: u64) -> Result<Loaded, Error> {
    let loaded = linux.kernel.load(memory, ram)?;
    let command_line = command_line(linux);
    boot::write_boot_params(&linux.kernel, loaded, memory, ram, &linux.initrds, command_line)?;
    log::info!("{}: entered at {:#x}, with {command_line:?}", linux.kernel.name(), loaded.entry.0);
    Ok(loaded)
}

/// Connects a virtio device to KVM: its interrupt, its notifications, and its registers.
fn connect(
    vm: &Vm,
    device: &Mutex<Mmio>,
    place: &VirtioMmio,
    registers: Option<&GuestMemory>,
) -> Result<(), Error> {
    let device = device.lock().unwrap_or_else(PoisonError::into_inner);
    vm.connect_interrupt(device.interrupt(), place.irq)?;
    if let Some(registers) = registers {
        device.show(registers.clone(), Gpa(place.address.into()));
    }
    let notify = u64::from(place.address).saturating_add(register::QUEUE_NOTIFY);
    for (queue, event) in device.notifiers() {
        vm.connect_queue(event, notify, queue)?;
    }
    Ok(())
}

/// The addresses and interrupts of `count` virtio devices.
fn places(count: usize) -> Vec<VirtioMmio> {
    let place = |(number, irq): (u32, u32)| VirtioMmio {
        address: pc::VIRTIO.saturating_add(number.saturating_mul(VIRTIO_SIZE)),
        size: VIRTIO_SIZE,
        irq,
    };
    (0..).zip(VIRTIO_IRQS).take(count).map(place).collect()
}

fn duplicate(event: &EventFd) -> Result<EventFd, Error> {
    event.try_clone().map_err(Error::host("dup"))
}
