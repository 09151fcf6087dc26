//! A PC for Linux.

use crate::boot::acpi::{self, VirtioMmio};
use crate::boot::linux;
use crate::console::host::{ConsoleSetup, Port};
use crate::console::input::Input;
use crate::controller::VcpuState;
use crate::device::pc::i8042::{self, I8042};
use crate::device::pc::post_code::{self, PostCode};
use crate::device::pc::power::{self, Power};
use crate::device::pc::rtc::{self, Rtc};
use crate::device::serial::{self, Serial, SerialPort};
use crate::device::virtio::registers::register;
use crate::device::virtio::{self, Block, ConsoleInput, Disk, Entropy, Mmio, mmio};
use crate::error::Error;
use crate::host::{self, event};
use crate::kvm::vm::{check_address_width, create_vm, mask_legacy_controllers};
use crate::kvm::{events, msr_filter, slots};
use crate::machine::boot_progress::{self, BootProgress};
use crate::machine::builder::Builder;
use crate::machine::linux::{ConsoleKind, Linux, MAX_DISKS, Pc};
use crate::machine::{Background, Machine};
use crate::memory::{self, Gpa, GuestMemory, pc};
use crate::profile::timeline::{Event, Timeline};
use crate::shutdown::StopHandle;
use crate::x86::modes::Mode;
use kvm_ioctls::{Cap, IoEventAddress};
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// The command line, unless the user gives one: messages on the console, and a panic that resets the machine, which
/// ends it.
fn default_command_line(console: ConsoleKind) -> &'static str {
    match console {
        ConsoleKind::Serial => "console=ttyS0 panic=-1 reboot=k",
        ConsoleKind::Virtio => "console=hvc0 panic=-1 reboot=k",
    }
}

/// The interrupt of the first virtio device; each has its own. The serial port's is the one before.
const FIRST_VIRTIO_IRQ: u32 = serial::IRQ + 1;

impl Builder {
    /// See [`Builder::build`].
    pub(super) fn build_pc(mut self, mut linux: Linux) -> Result<Machine, Error> {
        if self.transport.is_some() || self.queue_len.is_some() || self.verify {
            return Err(Error::Config(
                "Linux has no SIMVIRTIO and leaves no 42: leave out what asks for them".into(),
            ));
        }
        if self.first_vcpu != 0 {
            return Err(Error::Config("the first vCPU of a Linux machine is number 0".into()));
        }
        let findable =
            |marker: &String| (1..=boot_progress::MAX_LINE).contains(&marker.len()) && !marker.contains('\n');
        if linux.marker.as_ref().is_some_and(|marker| !findable(marker)) {
            return Err(Error::Config(format!(
                "a marker is looked for in each line: give --marker 1 to {} bytes without an end of line",
                boot_progress::MAX_LINE
            )));
        }
        let timeline = Arc::new(Timeline::since(host::started()));
        let ram = memory::pc_ram_size(self.memory)?;
        let memory = GuestMemory::new(&pc::ram(ram))?;
        memory.prefer_large_pages();
        let loaded = linux.kernel.load(&memory, ram)?;
        let command_line = linux.command_line.as_deref().unwrap_or(default_command_line(linux.console));
        let initrd = linux.initrd.as_deref();
        linux::write_boot_params(&linux.kernel, loaded, &memory, ram, initrd, command_line)?;
        let stop_handle = Arc::new(StopHandle::new()?);
        let typed = ConsoleInput::new()?;
        let disks = std::mem::take(&mut linux.disks);
        let virtio = self.virtio(&memory, disks, linux.console, &typed, &stop_handle)?;
        let places = places(virtio.len());
        memory.write(pc::ACPI, &acpi::tables(self.cpus, &places))?;
        log::info!("{}: entered at {:#x}, with {command_line:?}", linux.kernel.name(), loaded.entry.0);

        let filtered = self.filtered_msrs();
        let (line, drained) =
            (event().map_err(Error::host("eventfd"))?, Arc::new(event().map_err(Error::host("eventfd"))?));
        let serial = Serial::with_interrupt(self.output.clone(), duplicate(&line)?, drained.clone());
        let serial = Arc::new(Mutex::new(serial));
        self.attach_ports(serial.clone())?;
        self.attach_pc_ports(&timeline)?;
        self.output.set_limit(self.output_limit);
        let watch = BootProgress::new(timeline.clone(), linux.marker.as_deref());
        let observer = watch.clone();
        self.output.set_observer(move |text| observer.see(text));
        for (device, place) in virtio.iter().zip(&places) {
            self.devices.mmio.attach(place.address.into(), place.size.into(), device.clone())?;
        }
        let prompt = event().map_err(Error::host("eventfd"))?;
        self.output.set_prompt(duplicate(&prompt)?);

        // Made before the VM, hence gone after it.
        let size = places.iter().map(|place| u64::from(place.size)).sum();
        let registers = GuestMemory::new(&[(Gpa(pc::VIRTIO.into()), size)])?;
        let (kvm, vm) = create_vm(pc::TSS)?;
        let readable = vm.check_extension(Cap::ReadonlyMem);
        for capability in [Cap::Irqchip, Cap::Irqfd, Cap::Ioeventfd] {
            if !kvm.check_extension(capability) {
                return Err(Error::MissingCapability(capability));
            }
        }
        vm.set_identity_map_address(pc::IDENTITY_MAP).map_err(Error::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        slots::register(&vm, &memory)?;
        if readable {
            slots::register_read_only(&vm, &registers, memory.slot_count())?;
        }
        vm.create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        mask_legacy_controllers(&vm)?;
        check_address_width(&kvm, ram)?;
        msr_filter::enable(&vm, &filtered)?;
        events::connect_interrupt(&vm, &line, serial::IRQ)?;
        for (device, place) in virtio.iter().zip(&places) {
            let device = device.lock().unwrap_or_else(PoisonError::into_inner);
            events::connect_interrupt(&vm, device.interrupt(), place.irq)?;
            // Otherwise reading one is an exit.
            if readable {
                device.show(registers.clone(), Gpa(place.address.into()));
            }
            let notify =
                IoEventAddress::Mmio(u64::from(place.address).saturating_add(register::QUEUE_NOTIFY));
            for (queue, event) in device.notifiers() {
                vm.register_ioevent(event, &notify, queue).map_err(Error::kvm("KVM_IOEVENTFD"))?;
            }
        }
        (self.cpuid, self.irqchip) = (true, true);
        let vcpus = self.create_vcpus(&kvm, &vm, &memory, |vcpu, place| {
            vcpu.set_boot_msrs();
            // The first one starts the others.
            if place.index == 0 { vcpu.set_linux(loaded.entry) } else { Ok(()) }
        })?;
        timeline.mark(Event::VmReady);
        let controllers = vcpus.iter().map(|vcpu| self.controllers.for_vcpu(vcpu.id())).collect();
        let port: Box<dyn Port> = match linux.console {
            ConsoleKind::Serial => Box::new(SerialPort { serial, drained }),
            ConsoleKind::Virtio => Box::new(typed),
        };
        let (typed, input) = std::mem::replace(&mut self.input, Input::bytes(b"")).into_parts();
        let console =
            ConsoleSetup { typed, input, escapes: linux.escapes, port, output: self.output.clone(), prompt };
        Ok(Machine {
            clock: self.clock(&vcpus),
            vcpus,
            _vm: vm,
            memory,
            mode: Mode::Long,
            background: Some(Background::Pc(Pc { console, stop_handle, watch, timeline, virtio })),
            ram,
            image: Vec::new(),
            devices: self.devices,
            controllers,
            msrs: self.msrs,
            kev: self.kev,
            timeout: self.timeout,
            trace: self.trace,
            verify: false,
            kernel_counters: self.kernel_counters,
            output: self.output,
        })
    }

    /// The virtio devices: the disks in their order, the console where it is one, and entropy.
    fn virtio(
        &self,
        memory: &GuestMemory,
        disks: Vec<Disk>,
        console: ConsoleKind,
        typed: &ConsoleInput,
        stop_handle: &Arc<StopHandle>,
    ) -> Result<Vec<Arc<Mutex<Mmio>>>, Error> {
        if disks.len() > MAX_DISKS {
            return Err(Error::Config(format!(
                "a machine with {} disks cannot be: give at most {MAX_DISKS}",
                disks.len()
            )));
        }
        let mut devices = Vec::new();
        for disk in disks {
            devices.push(Mmio::new(Block::new(disk), memory.clone())?);
        }
        if console == ConsoleKind::Virtio {
            let stop_handle = stop_handle.clone();
            let console = virtio::ConsoleDevice::new(self.output.clone(), typed.clone(), move |stop| {
                stop_handle.end(stop);
            });
            devices.push(Mmio::new(console, memory.clone())?);
        }
        devices.push(Mmio::new(Entropy::new()?, memory.clone())?);
        Ok(devices.into_iter().map(|device| Arc::new(Mutex::new(device))).collect())
    }

    fn attach_pc_ports(&mut self, timeline: &Arc<Timeline>) -> Result<(), Error> {
        let ports = &mut self.devices.ports;
        ports.attach(i8042::PORT.into(), i8042::PORTS.into(), Arc::new(Mutex::new(I8042::default())))?;
        ports.attach(rtc::PORT.into(), rtc::PORTS.into(), Arc::new(Mutex::new(Rtc::default())))?;
        let post_code = PostCode::new(timeline.clone());
        ports.attach(post_code::PORT.into(), 1, Arc::new(Mutex::new(post_code)))?;
        ports.attach(power::PORT.into(), power::PORTS.into(), Arc::new(Mutex::new(Power)))?;
        Ok(())
    }
}

/// Where the registers and interrupts of so many virtio devices are.
fn places(count: usize) -> Vec<VirtioMmio> {
    let size = u32::try_from(mmio::SIZE).unwrap_or(0);
    let place = |number: u32| VirtioMmio {
        address: pc::VIRTIO.saturating_add(number.saturating_mul(size)),
        size,
        irq: FIRST_VIRTIO_IRQ.saturating_add(number),
    };
    (0..).take(count).map(place).collect()
}

fn duplicate(event: &EventFd) -> Result<EventFd, Error> {
    event.try_clone().map_err(Error::host("dup"))
}
