//! The builder: what a machine is made of, checked and put together.

use crate::boot::Image;
use crate::console::input::Input;
use crate::console::output::Output;
use crate::controller::msr::{MsrPolicy, MsrRule};
use crate::controller::{Devices, ExitController, kev};
use crate::device::bus::SharedDevice;
use crate::device::debugcon::{self, Debugcon};
use crate::device::exit_port::{self, ExitPort};
use crate::device::serial::{self, Serial};
use crate::device::simvirtio::Transport;
use crate::error::Error;
use crate::kvm::vcpu::KvmVcpu;
use crate::machine::linux::Linux;
use crate::machine::{BoxedController, Machine};
use crate::memory::{GuestMemory, MAX_CPUS};
use crate::profile::clock::Clock;
use crate::profile::trace::MAX_TRACED_EXITS;
use crate::x86::cpuid::{self, CpuidContext, CpuidOverride};
use crate::x86::modes::VcpuIndex;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

/// Makes the caller's controllers.
#[derive(Default)]
pub(super) struct Controllers(Vec<Box<dyn Fn(u32) -> BoxedController + Send>>);

impl Controllers {
    pub(super) fn for_vcpu(&self, id: u32) -> Vec<BoxedController> {
        self.0.iter().map(|make| make(id)).collect()
    }
}

impl fmt::Debug for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} controllers", self.0.len())
    }
}

/// What a machine runs.
#[derive(Debug)]
pub(crate) enum Guest {
    /// An image, on a machine with little else.
    Image(Image),
    /// Linux, on a PC.
    Linux(Box<Linux>),
}

/// What a run should be. Made by [`Machine::builder`].
#[derive(Debug)]
#[must_use]
pub struct Builder {
    pub(super) guest: Guest,
    pub(super) memory: Option<u64>,
    pub(super) transport: Option<Transport>,
    pub(super) queue_len: Option<u16>,
    pub(super) loopback: bool,
    pub(super) timeout: Option<Duration>,
    pub(super) cpuid: bool,
    pub(super) cpuid_changes: Vec<CpuidOverride>,
    pub(super) cpus: u32,
    pub(super) first_vcpu: u32,
    pub(super) msrs: MsrPolicy,
    pub(super) kev: bool,
    pub(super) controllers: Controllers,
    pub(super) irqchip: bool,
    pub(super) profile: bool,
    pub(super) trace: Option<usize>,
    pub(super) verify: bool,
    pub(super) kernel_counters: bool,
    pub(super) output: Output,
    pub(super) output_limit: Option<u64>,
    pub(super) input: Input,
    pub(super) devices: Devices,
}

impl Machine {
    /// A machine for `image`, with all else as a user would expect: the SO2 map where the image fits into
    /// it, one vCPU, 10 seconds to run, exits counted, nothing verified, text to standard output.
    pub fn builder(image: Image) -> Builder {
        Builder::new(Guest::Image(image))
    }

    /// A PC that boots Linux: one vCPU, 256 MiB, no limit of time but one that the builder is given.
    pub fn linux(linux: Linux) -> Builder {
        Builder::new(Guest::Linux(Box::new(linux))).timeout(None)
    }
}

impl Builder {
    /// A machine for `guest`, with all else as a user would expect.
    pub(crate) fn new(guest: Guest) -> Self {
        Self {
            guest,
            memory: None,
            transport: None,
            queue_len: None,
            loopback: false,
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
            trace: None,
            verify: false,
            kernel_counters: false,
            output: Output::new(io::stdout(), true),
            output_limit: None,
            input: Input::bytes(b""),
            devices: Devices::default(),
        }
    }

    /// Size of RAM, in bytes. More than 1 MiB selects the plain map, which has no SIMVIRTIO. Linux has 256 MiB unless
    /// this says otherwise.
    pub fn memory(mut self, bytes: Option<u64>) -> Self {
        self.memory = bytes;
        self
    }

    /// How SIMVIRTIO is reached. Asking for a transport is asking for the SO2 map.
    pub fn transport(mut self, transport: Option<Transport>) -> Self {
        self.transport = transport;
        self
    }

    /// Length of SIMVIRTIO's queues, in bytes. Asking for one is asking for the SO2 map.
    pub fn queue_len(mut self, queue_len: Option<u16>) -> Self {
        self.queue_len = queue_len;
        self
    }

    /// Whether SIMVIRTIO's device gives its driver back what it receives, instead of printing that and reading input.
    /// It holds 64 KiB; a driver that takes nothing back loses what is beyond.
    pub fn loopback(mut self, loopback: bool) -> Self {
        self.loopback = loopback;
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
    pub fn cpuid_override(mut self, change: CpuidOverride) -> Self {
        self.cpuid_changes.push(change);
        self
    }

    /// How many vCPUs the machine has, 1 to 32, each on a thread of its own. All are entered at the same place; of
    /// Linux's only the first, which starts the others.
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

    /// Whether the kernel emulates interrupt controllers (KVM_CREATE_IRQCHIP), as it always does for Linux. Costs 16
    /// to 24 ms; HLT then waits in the kernel for an interrupt, and does not end the run.
    pub fn irqchip(mut self, irqchip: bool) -> Self {
        self.irqchip = irqchip;
        self
    }

    /// Whether exits are counted and timed.
    pub fn profile(mut self, profile: bool) -> Self {
        self.profile = profile;
        self
    }

    /// How many of the last exits the report has, with the guest's RIP where KVM tells it: at most
    /// [`MAX_TRACED_EXITS`]. Asking for them is asking for the profile.
    pub fn trace(mut self, exits: Option<usize>) -> Self {
        self.trace = exits;
        self
    }

    /// Whether the guest must leave 42 in RAX (EAX, AX) and at 0x400.
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Whether the report has KVM's own counters.
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

    /// Where the input of the guest's SIMVIRTIO driver, or of Linux's console, comes from: nowhere, unless this says
    /// otherwise.
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
        if let Some(exits) = self.trace.filter(|exits| !(1..=MAX_TRACED_EXITS).contains(exits)) {
            return Err(Error::Config(format!(
                "a trace of {exits} exits cannot be: choose --trace-exits 1 to {MAX_TRACED_EXITS}"
            )));
        }
        let nothing = Guest::Image(Image::default());
        match std::mem::replace(&mut self.guest, nothing) {
            Guest::Image(image) => self.build_bare(image),
            Guest::Linux(linux) => self.build_pc(*linux),
        }
    }

    /// The vCPUs, made ready by `enter`.
    pub(super) fn create_vcpus(
        &self,
        kvm: &Kvm,
        vm: &VmFd,
        memory: &GuestMemory,
        enter: impl Fn(&mut KvmVcpu, VcpuIndex) -> Result<(), Error>,
    ) -> Result<Vec<KvmVcpu>, Error> {
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
                let tsc_deadline = self.irqchip && kvm.check_extension(Cap::TscDeadlineTimer);
                let seen = CpuidContext { id, count: self.cpus, tsc_deadline };
                let shown = cpuid::for_vcpu(supported.as_slice(), seen, &self.cpuid_changes);
                let shown = CpuId::from_entries(&shown).map_err(|_| {
                    Error::Config("there are more leaves of CPUID than KVM takes: change fewer".into())
                })?;
                vcpu.set_cpuid(&shown).map_err(|error| self.refused(error))?;
            }
            let place = VcpuIndex { index, of: self.cpus, id };
            enter(&mut vcpu, place).map_err(|error| self.refused(error))?;
            vcpus.push(vcpu);
        }
        Ok(vcpus)
    }

    /// By what the exits of these vCPUs are timed, where they are counted.
    pub(super) fn clock(&self, vcpus: &[KvmVcpu]) -> Option<Clock> {
        let counted = self.profile || self.trace.is_some();
        counted.then(|| Clock::new(vcpus.first().and_then(KvmVcpu::tsc_khz)))
    }

    /// A failure that the user's changes to CPUID may have led to.
    pub(super) fn refused(&self, error: Error) -> Error {
        match error {
            Error::Kvm { .. } if !self.cpuid_changes.is_empty() => Error::Config(format!(
                "KVM does not take what --cpuid makes of CPUID ({error}): change something else"
            )),
            error => error,
        }
    }

    /// The ports that every machine has for text and for its end, and the caller's devices beside them.
    pub(super) fn attach_ports(&mut self, serial: Arc<Mutex<Serial>>) -> Result<(), Error> {
        let ports = &mut self.devices.ports;
        let debugcon = Debugcon::new(self.output.clone());
        ports.attach(debugcon::PORT.into(), 1, Arc::new(Mutex::new(debugcon)))?;
        ports.attach(serial::PORT.into(), serial::PORTS.into(), serial)?;
        ports.attach(exit_port::PORT.into(), 1, Arc::new(Mutex::new(ExitPort)))?;
        if self.kev {
            kev::attach(&mut self.devices)?;
        }
        Ok(())
    }

    /// The registers that KVM is to hand on. KeV's own is one that KVM does not have, and needs no filter.
    pub(super) fn filtered_msrs(&self) -> Vec<u32> {
        let filtered: BTreeSet<u32> = self.msrs.registers().chain(self.devices.msr_numbers()).collect();
        filtered.into_iter().collect()
    }
}
