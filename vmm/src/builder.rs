//! The builder: what a machine is made of, checked and put together.

use crate::boot::{Image, ImageError};
use crate::bus::{Devices, SharedDevice};
use crate::controller::{ExitController, VcpuState};
use crate::cpuid::{self, Override};
use crate::device::debugcon::{self, Debugcon};
use crate::device::exit_port::{self, ExitPort};
use crate::device::serial::{self, Serial};
use crate::device::simvirtio::{Simvirtio, Transport, TrappedMemory, Window};
use crate::error::Error;
use crate::input::Input;
use crate::kev;
use crate::machine::{Device, Machine};
use crate::memory::{self, Gpa, GuestMemory, Map, TABLES, TABLES_SIZE};
use crate::modes::{self, Mode};
use crate::msr::{self, MsrPolicy, MsrRule};
use crate::output::Output;
use crate::vcpu::KvmVcpu;
use crate::vm::create_vm;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Kvm, VmFd};
use simvirtio::abi;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The most vCPUs that a machine has: their stacks take the upper half of the assignment's memory.
pub const MAX_CPUS: u32 = 32;

/// A controller of the caller's, for one vCPU.
pub(crate) type BoxedController = Box<dyn ExitController + Send>;

/// Makes the caller's controllers.
#[derive(Default)]
struct Controllers(Vec<Box<dyn Fn(u32) -> BoxedController + Send>>);

impl Controllers {
    fn for_vcpu(&self, id: u32) -> Vec<BoxedController> {
        self.0.iter().map(|make| make(id)).collect()
    }
}

impl fmt::Debug for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} controllers", self.0.len())
    }
}

/// What a run should be. Made by [`Machine::builder`].
#[derive(Debug)]
#[must_use]
pub struct Builder {
    image: Image,
    memory: Option<u64>,
    transport: Option<Transport>,
    queue_len: Option<u16>,
    timeout: Option<Duration>,
    cpuid: bool,
    cpuid_changes: Vec<Override>,
    cpus: u32,
    first_vcpu: u32,
    msrs: MsrPolicy,
    kev: bool,
    controllers: Controllers,
    irqchip: bool,
    profile: bool,
    verify: bool,
    kernel_counters: bool,
    output: Output,
    output_limit: Option<u64>,
    input: Input,
    devices: Devices,
}

impl Builder {
    /// A machine for `image`, with all else as a user would expect.
    pub(crate) fn new(image: Image) -> Self {
        Self {
            image,
            memory: None,
            transport: None,
            queue_len: None,
            timeout: Some(Duration::from_secs(10)),
            cpuid: false,
            cpuid_changes: Vec::new(),
            cpus: 1,
            first_vcpu: 0,
            msrs: MsrPolicy::default(),
            kev: false,
            controllers: Controllers::default(),
            irqchip: false,
            profile: true,
            verify: false,
            kernel_counters: false,
            output: Output::new(io::stdout(), true),
            output_limit: None,
            input: Input::bytes(b""),
            devices: Devices::default(),
        }
    }

    /// Size of RAM, in bytes. More than 1 MiB selects the plain map, which has no SIMVIRTIO.
    pub fn memory(mut self, bytes: Option<u64>) -> Self {
        self.memory = bytes;
        self
    }

    /// How SIMVIRTIO is reached. Asking for either transport is asking for the SO2 map.
    pub fn transport(mut self, transport: Option<Transport>) -> Self {
        self.transport = transport;
        self
    }

    /// Length of SIMVIRTIO's queues, in bytes. Asking for one is asking for the SO2 map.
    pub fn queue_len(mut self, queue_len: Option<u16>) -> Self {
        self.queue_len = queue_len;
        self
    }

    /// How long the guest may run; `None` for as long as it likes.
    pub fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether CPUID shows what the host supports (KVM_SET_CPUID2). Costs 130 to 190 us; without it CPUID
    /// shows nothing, and a guest cannot switch to long mode by itself.
    pub fn cpuid(mut self, cpuid: bool) -> Self {
        self.cpuid = cpuid;
        self
    }

    /// Changes what CPUID shows, which then is shown in any case. The last change to a bit counts.
    pub fn cpuid_override(mut self, change: Override) -> Self {
        self.cpuid_changes.push(change);
        self
    }

    /// How many vCPUs the machine has, 1 to 32. All are entered at the same place, each on a thread
    /// of its own.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// The number of the first vCPU, which is also its APIC id: 0 unless this says otherwise. The others have
    /// those after it.
    pub fn first_vcpu(mut self, number: u32) -> Self {
        self.first_vcpu = number;
        self
    }

    /// What happens to accesses to a model-specific register, instead of what KVM makes of them.
    pub fn msr_rule(mut self, index: u32, rule: MsrRule) -> Self {
        self.msrs.set(index, rule);
        self
    }

    /// Whether the machine has the devices of KeV's second project ([`kev`]).
    pub fn kev(mut self, kev: bool) -> Self {
        self.kev = kev;
        self
    }

    /// Has a controller of the caller's see every exit first. `make` is called once for each vCPU, with its
    /// number, before the guest runs; several of them are asked in this order.
    pub fn controller<C: ExitController + Send + 'static>(
        mut self,
        make: impl Fn(u32) -> C + Send + 'static,
    ) -> Self {
        self.controllers.0.push(Box::new(move |id| Box::new(make(id))));
        self
    }

    /// Whether the kernel emulates interrupt controllers (KVM_CREATE_IRQCHIP). Costs 16 to 24 ms; HLT then
    /// waits in the kernel for an interrupt, and does not end the run.
    pub fn irqchip(mut self, irqchip: bool) -> Self {
        self.irqchip = irqchip;
        self
    }

    /// Whether exits are counted.
    pub fn profile(mut self, profile: bool) -> Self {
        self.profile = profile;
        self
    }

    /// Whether the guest must leave 42 in RAX (EAX, AX) and at 0x400.
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Whether the report has KVM's own count of exits.
    pub fn kernel_counters(mut self, kernel_counters: bool) -> Self {
        self.kernel_counters = kernel_counters;
        self
    }

    /// Where the guest's text goes: standard output unless this says otherwise.
    pub fn output(mut self, output: Output) -> Self {
        self.output = output;
        self
    }

    /// How much text the guest may write, in bytes; `None` for as much as it likes.
    pub fn output_limit(mut self, output_limit: Option<u64>) -> Self {
        self.output_limit = output_limit;
        self
    }

    /// Where the input of the guest's SIMVIRTIO driver comes from: nowhere, unless this says otherwise.
    pub fn input(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// Puts a device of the caller's behind `len` ports from `first`. A 4-byte write to port 0x500 is a
    /// hypercall all the same.
    ///
    /// # Errors
    /// The range is empty, wraps, or overlaps that of another device.
    pub fn port_device(mut self, first: u16, len: u16, device: SharedDevice) -> Result<Self, Error> {
        self.devices.ports.attach(first.into(), len.into(), device)?;
        Ok(self)
    }

    /// Puts a device of the caller's behind `len` guest physical addresses from `first`, which should not
    /// be RAM, nor with [`kev`](Self::kev) the printer's.
    ///
    /// # Errors
    /// The range is empty, wraps, or overlaps that of another device.
    pub fn mmio_device(mut self, first: u64, len: u64, device: SharedDevice) -> Result<Self, Error> {
        self.devices.mmio.attach(first, len, device)?;
        Ok(self)
    }

    /// Puts a device of the caller's behind a model-specific register: accesses of 8 bytes at offset 0.
    ///
    /// # Errors
    /// Another device is there.
    pub fn msr_device(mut self, index: u32, device: SharedDevice) -> Result<Self, Error> {
        self.devices.msrs.attach(index.into(), 1, device)?;
        Ok(self)
    }

    /// The memory map that all of this comes to.
    fn map(&self) -> Result<Map, Error> {
        let plain = self.memory.is_some_and(|bytes| bytes > abi::RAM_SIZE)
            || self.image.end() > abi::RAM_SIZE
            || self.image.entry().0 >= abi::RAM_SIZE;
        let window = self.transport.is_some() || self.queue_len.is_some();
        match (plain, window) {
            (true, true) => Err(Error::Config(
                "SIMVIRTIO's window is at 1 MiB, so a guest that uses it has 1 MiB of memory and lies below that: \
                 leave --mem out and link or load the guest lower (such as at 0x1000), or run it without SIMVIRTIO"
                    .into(),
            )),
            (true, false) => Ok(Map::Plain),
            (false, _) => Ok(Map::So2),
        }
    }

    /// Makes the virtual machine and loads the guest.
    ///
    /// # Errors
    /// The host cannot, or the parts do not fit together.
    pub fn build(mut self) -> Result<Machine, Error> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(Error::Config(format!(
                "a machine with {} vCPUs cannot be: choose --cpus 1 to {MAX_CPUS}",
                self.cpus
            )));
        }
        if self.irqchip && (self.cpus > 1 || self.first_vcpu != 0) {
            // With the kernel's interrupt controllers all but the first wait for a start-up interrupt.
            return Err(Error::Config("a machine with an in-kernel irqchip has one vCPU, number 0".into()));
        }
        let map = self.map()?;
        let ram = memory::ram_size(map, self.memory)?;
        let mode = self.image.mode();
        if self.verify {
            check_result_word(&self.image)?;
        }
        // All that needs no KVM comes first, so that a mistake in it is told on any host.
        let transport = self.transport.unwrap_or_default();
        let mut slots = vec![(Gpa(0), ram)];
        if mode != Mode::Real {
            slots.push((TABLES, TABLES_SIZE));
        }
        if map == Map::So2 && transport == Transport::Polling {
            slots.push((Gpa(abi::WINDOW), abi::WINDOW_SIZE));
        }
        let memory = GuestMemory::new(&slots)?;
        if let Err(error) = memory.merge_pages(Gpa(0)) {
            log::warn!("the kernel does not merge equal pages (MADV_MERGEABLE: {error}); going on without");
        }
        self.image.load(&memory, ram)?;
        warn_of_overlaps(&self.image, map);
        if mode != Mode::Real {
            write_tables(&memory, mode)?;
        }
        let simvirtio = match map {
            Map::Plain => None,
            Map::So2 => Some(self.attach_simvirtio(transport, &memory)?),
        };
        self.attach_consoles()?;
        // KeV's own register is one that KVM does not have, and needs no filter.
        let filtered: BTreeSet<u32> = self.msrs.registers().chain(self.devices.msr_numbers()).collect();
        if self.kev {
            kev::attach(&mut self.devices)?;
        }
        self.output.set_limit(self.output_limit);

        let (kvm, vm) = create_vm()?;
        memory.register(&vm)?;
        if self.irqchip {
            vm.create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        }
        msr::enable(&vm, &Vec::from_iter(filtered))?;
        log::debug!(
            "{map:?} map, {ram:#x} bytes of RAM; {mode} mode at {:#x}; image {:x?}; {} vCPUs",
            self.image.entry().0,
            self.image.ranges(),
            self.cpus
        );
        let vcpus = self.create_vcpus(&kvm, &vm, &memory)?;
        let controllers = vcpus.iter().map(|vcpu| self.controllers.for_vcpu(vcpu.id())).collect();
        Ok(Machine {
            vcpus,
            _vm: vm,
            memory,
            mode,
            simvirtio,
            ram,
            image: self.image.ranges(),
            devices: self.devices,
            controllers,
            msrs: self.msrs,
            kev: self.kev,
            timeout: self.timeout,
            profile: self.profile,
            verify: self.verify,
            kernel_counters: self.kernel_counters,
            output: self.output,
        })
    }

    /// The vCPUs, ready to be entered.
    fn create_vcpus(&self, kvm: &Kvm, vm: &VmFd, memory: &GuestMemory) -> Result<Vec<KvmVcpu>, Error> {
        // With more than one vCPU a guest has to find out where it is.
        let shown = self.cpuid || !self.cpuid_changes.is_empty() || self.cpus > 1 || self.first_vcpu != 0;
        let supported = match shown {
            true => {
                let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
                Some(supported.map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?)
            }
            false => None,
        };
        let mut vcpus = Vec::new();
        for index in 0..self.cpus {
            let id = self.first_vcpu.saturating_add(index);
            let mut vcpu = KvmVcpu::new(vm, id, memory.clone())?;
            if let Some(supported) = &supported {
                let shown = cpuid::for_vcpu(supported.as_slice(), id, self.cpus, &self.cpuid_changes);
                let shown = CpuId::from_entries(&shown).map_err(|_| {
                    Error::Config("there are more leaves of CPUID than KVM takes: change fewer".into())
                })?;
                vcpu.set_cpuid(&shown).map_err(|error| self.refused(error))?;
            }
            let place = modes::Place { index, of: self.cpus, id };
            let entered = vcpu.set_mode(self.image.mode(), self.image.entry(), TABLES, place);
            entered.map_err(|error| self.refused(error))?;
            vcpus.push(vcpu);
        }
        Ok(vcpus)
    }

    /// A failure that the user's changes to CPUID may have led to.
    fn refused(&self, error: Error) -> Error {
        match error {
            Error::Kvm { .. } if !self.cpuid_changes.is_empty() => Error::Config(format!(
                "KVM does not take what --cpuid makes of CPUID ({error}): change something else"
            )),
            error => error,
        }
    }

    fn attach_simvirtio(&mut self, transport: Transport, memory: &GuestMemory) -> Result<Device, Error> {
        let queue_len = self.queue_len.unwrap_or(abi::DEFAULT_QUEUE_LEN);
        let output = self.output.clone();
        let input = std::mem::replace(&mut self.input, Input::bytes(b""));
        if transport == Transport::Polling {
            let simvirtio = Simvirtio::power_on(queue_len, memory.clone(), output, input)?;
            return Ok(Device::Shared(Box::new(simvirtio)));
        }
        let simvirtio = Simvirtio::power_on(queue_len, TrappedMemory::new(memory.clone()), output, input)?;
        let window = Arc::new(Mutex::new(Window::new(simvirtio)));
        self.devices.mmio.attach(abi::WINDOW, abi::WINDOW_SIZE, window.clone())?;
        Ok(Device::Trapped(window))
    }

    fn attach_consoles(&mut self) -> Result<(), Error> {
        let ports = &mut self.devices.ports;
        let debugcon = Debugcon::new(self.output.clone());
        ports.attach(debugcon::PORT.into(), 1, Arc::new(Mutex::new(debugcon)))?;
        let serial = Serial::new(self.output.clone());
        ports.attach(serial::PORT.into(), serial::PORTS.into(), Arc::new(Mutex::new(serial)))?;
        ports.attach(exit_port::PORT.into(), 1, Arc::new(Mutex::new(ExitPort)))?;
        Ok(())
    }
}

/// Refuses an image whose own bytes would be taken for a result.
fn check_result_word(image: &Image) -> Result<(), Error> {
    if image.covers(abi::RESULT, abi::RESULT + 8) { Err(ImageError::CoversResult.into()) } else { Ok(()) }
}

/// Says where an image and the SO2 map are at odds, which a guest may intend.
fn warn_of_overlaps(image: &Image, map: Map) {
    if image.overlaps(abi::RESULT, abi::RESULT + 8) {
        log::warn!(
            "the image covers 0x400, where a guest of the assignment leaves its result: it would overwrite itself"
        );
    }
    if map == Map::So2 && image.overlaps(abi::DEVICE_TABLE, abi::HEAP) {
        log::warn!(
            "the image covers some of {:#x} to {:#x}, where SIMVIRTIO has its device table and buffers",
            abi::DEVICE_TABLE,
            abi::HEAP - 1
        );
    }
}

/// The GDT, and in long mode the page tables after it.
fn write_tables(memory: &GuestMemory, mode: Mode) -> Result<(), Error> {
    let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    memory.write(TABLES, &bytes(&modes::gdt(mode)))?;
    if mode == Mode::Long {
        let tables = Gpa(TABLES.0 + memory::PAGE);
        memory.write(tables, &bytes(&modes::identity_map(tables)))?;
    }
    Ok(())
}
