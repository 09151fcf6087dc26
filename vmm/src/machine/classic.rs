//! Building a classic PC for an image: the plain memory map with KVM's interrupt controllers and timer, and the devices that
//! kernels for a PC expect.
//!
//! With the software processor there are no interrupt controllers: the machine then has the same devices without their
//! interrupts.

mod devices;
mod firmware;
mod halt;
mod input;

use crate::boot::Image;
use crate::console::host::ConsoleSetup;
use crate::console::input::Input;
use crate::controller::bios::{self, Drives, start_with_set_up};
use crate::controller::inquiry::Inquiry;
use crate::device::pc::fw_cfg::FwCfg;
use crate::device::pc::i8042;
use crate::device::pc::keyboard::port::{Accepts, KeyboardPort};
use crate::device::pc::medium::SharedMedium;
use crate::device::serial::{self, Serial, SerialPort};
use crate::error::Error;
use crate::host::{EventFd, event};
use crate::kvm::vm::{System, Vm};
use crate::machine::Machine;
use crate::machine::MachineKind;
use crate::machine::assembly::Parts;
use crate::machine::background::Background;
use crate::machine::bare::{self, Host};
use crate::machine::builder::Builder;
use crate::machine::classic_threads::Classic;
use crate::machine::classic_threads::disks::{self, Disks};
use crate::machine::processors::Processors;
use crate::machine::restore::Restore;
use crate::machine::screen::GuestScreen;
use crate::memory::{self, Gpa, GuestMemory, Map, TABLES};
use crate::shutdown::StopHandle;
use crate::soft::vcpu::SoftVcpu;
use devices::ClassicDevices;
use firmware::Tables;
use halt::HaltWatch;
use input::Inputs;
use std::sync::{Arc, Mutex};

/// The serial port of a machine with interrupts, and its events.
struct SerialLine {
    serial: Arc<Mutex<Serial>>,
    /// Raises the port's interrupt.
    line: EventFd,
    /// Signals that the guest has read all input.
    drained: Arc<EventFd>,
}

impl Builder {
    /// Builds a classic PC for `image`: see [`Builder::build`].
    pub(super) fn build_classic(mut self, image: Image, kind: MachineKind) -> Result<Machine, Error> {
        let mut drives = image.boot_disk().map(|content| Drives::new(&content));
        let boot_disk = drives.as_ref().and_then(Drives::boot_hard_disk);
        self.check_classic(kind, boot_disk.is_some())?;
        let ram = memory::ram_size(Map::Plain, self.memory)?;
        let media = self.media(boot_disk, &mut drives)?;
        let disks = u8::try_from(media.len()).unwrap_or(0);
        let firmware = Tables::new(self.cpus, disks);
        let handed = firmware.firmware(&image);
        let image = bare::prepared(image, ram, self.verify, &handed)?;
        let mut tables = bare::tables(&image);
        tables.extend(drives.iter().flat_map(bios::memory));
        tables.extend(GuestScreen::initial(&image));
        let host = self.choose_host(image.rom_range().is_some())?;
        let memory = filled_memory(ram, &image, &tables, &firmware)?;
        self.result_place = firmware.result_place();
        let has_interrupts = matches!(host, Host::Kvm(..));
        let drained = Arc::new(event().map_err(Error::host("eventfd"))?);
        let mut devices = ClassicDevices::new(ram, disks, has_interrupts, &drained)?;
        let keyboard_line = devices.keyboard_line.take();
        let has_bios = drives.is_some();
        let fw_cfg = image.rom_range().map(|_| FwCfg::new(ram, self.cpus));
        devices.attach(&mut self.devices.ports, &self.output, fw_cfg)?;
        let bios = drives.map(|drives| self.bios(drives, &memory, ram, devices.vga.clone(), keyboard_line));
        let is_terminal = self.screen_on_terminal;
        let screen = Some(GuestScreen { memory: memory.clone(), vga: devices.vga.clone(), is_terminal });
        let disks = Disks::attach(media, &mut self.devices.ports, has_interrupts)?;
        self.log_classic(&image, ram);
        let line = serial_line(&self, drained)?;
        self.attach_ports(line.serial.clone())?;
        let (processors, kvm_error, background) = match host {
            Host::Kvm(system, vm) => {
                system.require_classic()?;
                set_up(&vm, &memory, &line.line)?;
                disks.connect(&vm)?;
                devices.connect(&vm)?;
                vm.filter_msrs(&self.filtered_msrs())?;
                let weak = vm.downgrade();
                let accepts = move || weak.upgrade().is_some_and(|vm| vm.accepts_interrupt(i8042::IRQ));
                let processors = self.classic_vcpus(&system, vm, &memory, &image)?;
                (processors, None, self.classic_background(line, devices, disks, Box::new(accepts), true)?)
            }
            Host::Soft { kvm_error } => {
                let start = image.start();
                let set = |vcpu: &mut SoftVcpu, index| vcpu.set_start(start, TABLES, index);
                let vcpus = self.create_soft_vcpus(&memory, bare::SLICE, set)?;
                let accepts = Box::new(move || has_bios);
                let background = self.classic_background(line, devices, disks, accepts, false)?;
                (Processors::Soft(vcpus), kvm_error, background)
            }
        };
        let (mode, ranges) = (image.mode(), image.ranges());
        let restore = Some(Restore::new(image, tables, None));
        let (kind, image) = (Some(kind), ranges);
        let parts =
            Parts { processors, kvm_error, memory, mode, background, screen, kind, ram, image, restore };
        let mut machine = self.assemble(parts);
        machine.set_bios(bios);
        Ok(machine)
    }

    /// The media of the ATA channel: the boot disk if it is a hard disk, then the disks of the user. A BIOS has them, too.
    fn media(
        &mut self,
        boot_disk: Option<SharedMedium>,
        drives: &mut Option<Drives>,
    ) -> Result<Vec<SharedMedium>, Error> {
        let disks = disks::media(std::mem::take(&mut self.disks))?;
        if let Some(drives) = drives {
            disks.iter().for_each(|medium| drives.add(medium.clone()));
        }
        Ok(boot_disk.into_iter().chain(disks).collect())
    }

    /// Logs what the machine is.
    fn log_classic(&self, image: &Image, ram: u64) {
        log::debug!(
            "a classic PC, {ram:#x} bytes of RAM; {} mode at {:#x}; image at {}; vCPUs: {}",
            image.mode(),
            image.entry().0,
            image.places(),
            self.cpus
        );
    }

    /// True if this host's KVM has all parts of a classic PC.
    pub(super) fn has_classic_parts(&self) -> bool {
        System::open().is_ok_and(|system| system.require_classic().is_ok())
    }

    /// Refuses options that a classic PC does not have.
    fn check_classic(&self, kind: MachineKind, has_boot_disk: bool) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::Config(what));
        if self.wants_window() {
            return refuse(
                "SIMVIRTIO is a device of the bare machine: give --machine bare, or leave out the options for it".into(),
            );
        }
        if kind == MachineKind::Bios && self.cpus > 1 {
            return refuse("a machine with a BIOS has one vCPU: give --cpus 1".into());
        }
        let number = self.disks.len().saturating_add(has_boot_disk.into());
        if number > disks::MAX_DISKS {
            let (most, with) = (disks::MAX_DISKS, if has_boot_disk { ", with the boot disk" } else { "" });
            return refuse(format!(
                "a classic PC has at most {most} disks, not {number}{with}: leave out some --disk"
            ));
        }
        if self.first_vcpu != 0 {
            let number = self.first_vcpu;
            return refuse(format!("the first vCPU of a classic PC must have number 0, not {number}"));
        }
        Ok(())
    }

    /// Creates the vCPUs of KVM. Only the first one starts: the guest starts the others (INIT, SIPI).
    fn classic_vcpus(
        &mut self,
        system: &System,
        vm: Vm,
        memory: &GuestMemory,
        image: &Image,
    ) -> Result<Processors, Error> {
        self.irqchip = true;
        let vcpus = self.create_vcpus(system, &vm, memory, |vcpu, index| match index.index {
            0 if image.boot_disk().is_some() => {
                vcpu.set_start(&start_with_set_up(image.start()), TABLES, index)
            }
            0 => vcpu.set_start(image.start(), TABLES, index),
            _ => Ok(()),
        })?;
        Ok(Processors::Kvm { vcpus, vm })
    }

    /// The threads of the machine, before they start. `accepts` tells if the keyboard's interrupt reaches the guest.
    fn classic_background(
        &mut self,
        line: SerialLine,
        devices: ClassicDevices,
        disks: Disks,
        accepts: Accepts,
        has_interrupts: bool,
    ) -> Result<Background, Error> {
        let new = || event().map_err(Error::host("eventfd"));
        let prompt = new()?;
        self.output.set_prompt(prompt.try_clone().map_err(Error::host("dup"))?);
        let stop_handle = Arc::new(StopHandle::new()?);
        let inquiry = has_interrupts.then(|| Arc::new(Inquiry::new(self.cpus)));
        let mut halt = inquiry.clone().map(|inquiry| HaltWatch::new(inquiry, stop_handle.clone()));
        let (typed, input) = std::mem::replace(&mut self.input, Input::bytes(b"")).into_parts();
        let is_typed = (self.keyboard)();
        let inputs = Inputs {
            keyboard: KeyboardPort::new(devices.keyboard, line.drained.clone(), accepts),
            serial: SerialPort { serial: line.serial, drained: line.drained },
            is_typed,
            device: self.input_device,
        };
        let console = ConsoleSetup {
            typed,
            input,
            escapes: is_typed,
            core_key: self.core_key.take(),
            port: Box::new(inputs),
            output: self.output.clone(),
            prompt,
            look: Arc::new(new()?),
            watch: Box::new(move || halt.as_mut().map(HaltWatch::check)),
        };
        let cmos = has_interrupts.then_some((devices.cmos, devices.wake));
        Ok(Background::Classic(Some(Box::new(Classic { console, stop_handle, inquiry, disks, cmos }))))
    }
}

/// The memory, with the image, the tables and the data of the firmware.
fn filled_memory(
    ram: u64,
    image: &Image,
    tables: &[(Gpa, Vec<u8>)],
    firmware: &Tables,
) -> Result<GuestMemory, Error> {
    let memory = bare::plain_memory(ram, image, tables)?;
    // A ROM sets up its own tables. What the machine needs itself counts before the firmware's data area.
    if image.rom_range().is_none() {
        firmware.write(image, &memory)?;
        tables.iter().try_for_each(|(start, bytes)| memory.write(*start, bytes))?;
    }
    Ok(memory)
}

/// Creates the serial port with its interrupt. It signals `drained` when the guest has read all input.
fn serial_line(builder: &Builder, drained: Arc<EventFd>) -> Result<SerialLine, Error> {
    let line = event().map_err(Error::host("eventfd"))?;
    let interrupt = line.try_clone().map_err(Error::host("dup"))?;
    let serial = Serial::with_interrupt(builder.output.clone(), interrupt, drained.clone());
    Ok(SerialLine { serial: Arc::new(Mutex::new(serial)), line, drained })
}

/// Sets up the VM over `memory`: its interrupt controllers, its timer, and the interrupts of devices.
fn set_up(vm: &Vm, memory: &GuestMemory, serial_line: &EventFd) -> Result<(), Error> {
    vm.add_memory(memory)?;
    vm.create_irqchip()?;
    vm.create_pit()?;
    // A kernel that enables interrupts before it has programmed the controllers gets none.
    vm.mask_legacy_controllers()?;
    vm.connect_interrupt(serial_line, serial::IRQ)
}
