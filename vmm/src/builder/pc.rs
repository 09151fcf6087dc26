//! A PC for Linux.

use super::Builder;
use crate::acpi;
use crate::boot::linux;
use crate::console::{Console, SerialPort};
use crate::controller::VcpuState;
use crate::device::i8042::{self, I8042};
use crate::device::post_code::{self, PostCode};
use crate::device::power::{self, Power};
use crate::device::rtc::{self, Rtc};
use crate::device::serial::{self, Serial};
use crate::error::Error;
use crate::input::Input;
use crate::machine::{Background, Machine};
use crate::memory::{self, GuestMemory, pc};
use crate::modes::Mode;
use crate::msr;
use crate::pc::{Linux, Pc};
use crate::run::Ender;
use crate::sys;
use crate::timeline::{Event, Timeline};
use crate::vm::create_vm;
use crate::watch::Watch;
use kvm_ioctls::VmFd;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

/// The command line, unless the user gives one: messages on the serial port, and a panic that resets the machine,
/// which ends it.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 reboot=k";

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
        let timeline = Arc::new(Timeline::since(sys::started()));
        let ram = memory::pc_ram_size(self.memory)?;
        let memory = GuestMemory::new(&pc::ram(ram))?;
        memory.prefer_large_pages();
        let loaded = linux.kernel.load(&memory, ram)?;
        let command_line = linux.command_line.as_deref().unwrap_or(COMMAND_LINE);
        let initrd = linux.initrd.as_deref();
        linux::write_boot_params(&linux.kernel, loaded, &memory, ram, initrd, command_line)?;
        memory.write(pc::ACPI, &acpi::tables(self.cpus, &[]))?;
        log::info!("{}: entered at {:#x}, with {command_line:?}", linux.kernel.name(), loaded.entry.0);

        let filtered = self.filtered_msrs();
        let (line, drained) = (event()?, Arc::new(event()?));
        let serial = Serial::with_interrupt(self.output.clone(), duplicate(&line)?, drained.clone());
        let serial = Arc::new(Mutex::new(serial));
        self.attach_ports(serial.clone())?;
        self.attach_pc_ports(&timeline)?;
        self.output.set_limit(self.output_limit);
        let watch = Watch::new(timeline.clone(), linux.marker.as_deref());
        self.output.set_watch(watch.clone());
        let prompt = event()?;
        self.output.set_prompt(duplicate(&prompt)?);

        let (kvm, vm) = create_vm(pc::TSS)?;
        vm.set_identity_map_address(pc::IDENTITY_MAP).map_err(Error::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        memory.register(&vm)?;
        vm.create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        msr::enable(&vm, &filtered)?;
        connect(&vm, &line, serial::IRQ)?;
        (self.cpuid, self.irqchip) = (true, true);
        let vcpus = self.create_vcpus(&kvm, &vm, &memory, |vcpu, place| match place.index {
            0 => vcpu.set_linux(loaded.entry),
            // The first one starts the others.
            _ => Ok(()),
        })?;
        timeline.mark(Event::VmReady);
        let controllers = vcpus.iter().map(|vcpu| self.controllers.for_vcpu(vcpu.id())).collect();
        let (typed, input) = std::mem::replace(&mut self.input, Input::bytes(b"")).into_parts();
        let port = Box::new(SerialPort { serial, drained });
        let console =
            Console { typed, input, escapes: linux.escapes, port, output: self.output.clone(), prompt };
        Ok(Machine {
            vcpus,
            _vm: vm,
            memory,
            mode: Mode::Long,
            background: Some(Background::Pc(Pc {
                console,
                ender: Arc::new(Ender::default()),
                watch,
                timeline,
            })),
            ram,
            image: Vec::new(),
            devices: self.devices,
            controllers,
            msrs: self.msrs,
            kev: self.kev,
            timeout: self.timeout,
            profile: self.profile,
            verify: false,
            kernel_counters: self.kernel_counters,
            output: self.output,
        })
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

/// A descriptor that threads wait for.
fn event() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK).map_err(Error::host("eventfd"))
}

fn duplicate(event: &EventFd) -> Result<EventFd, Error> {
    event.try_clone().map_err(Error::host("dup"))
}

/// Has a write to `line` interrupt the guest (KVM_IRQFD).
fn connect(vm: &VmFd, line: &EventFd, irq: u32) -> Result<(), Error> {
    vm.register_irqfd(line, irq).map_err(Error::kvm("KVM_IRQFD"))
}
