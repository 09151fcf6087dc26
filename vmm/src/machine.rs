//! The machine: what a run is made of, put together, run and judged.

use crate::boot::{Image, ImageError};
use crate::bus::{Devices, SharedDevice};
use crate::device::debugcon::{self, Debugcon};
use crate::device::exit_port::{self, ExitPort};
use crate::device::poller::Poller;
use crate::device::serial::{self, Serial};
use crate::device::simvirtio::{Simvirtio, SimvirtioReport, Transport, TrappedMemory, Window};
use crate::error::Error;
use crate::exit::{Ends, OpenBus, Stop};
use crate::explain::Explanation;
use crate::input::Input;
use crate::memory::{self, Gpa, GuestMemory, Map, TABLES, TABLES_SIZE};
use crate::modes::{self, Mode};
use crate::output::Output;
use crate::profile::Profile;
use crate::report::{Report, Verdict};
use crate::run::{self, Deadline, Watchdog};
use crate::sys::{self, KickTimer, Kicker};
use crate::vcpu::KvmVcpu;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm, VmFd};
use simvirtio::abi;
use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The version of KVM's API that has been stable since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What a run should be. Made by [`Machine::builder`].
#[derive(Debug)]
pub struct Builder {
    image: Image,
    memory: Option<u64>,
    transport: Option<Transport>,
    queue_len: Option<u16>,
    timeout: Option<Duration>,
    cpuid: bool,
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

    /// Puts a device of the caller's behind `len` ports from `first`. It comes before this VMM's own.
    ///
    /// # Errors
    /// The range is empty, wraps, or overlaps that of another device.
    pub fn port_device(mut self, first: u16, len: u16, device: SharedDevice) -> Result<Self, Error> {
        self.devices.ports.attach(first.into(), len.into(), device)?;
        Ok(self)
    }

    /// Puts a device of the caller's behind `len` guest physical addresses from `first`, which should not
    /// be RAM.
    ///
    /// # Errors
    /// The range is empty, wraps, or overlaps that of another device.
    pub fn mmio_device(mut self, first: u64, len: u64, device: SharedDevice) -> Result<Self, Error> {
        self.devices.mmio.attach(first, len, device)?;
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
        self.output.set_limit(self.output_limit);

        let (kvm, vm) = create_vm()?;
        memory.register(&vm)?;
        if self.irqchip {
            vm.create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        }
        log::debug!(
            "{map:?} map, {ram:#x} bytes of RAM; {mode} mode at {:#x}; image {:x?}; CPUID {}",
            self.image.entry().0,
            self.image.ranges(),
            if self.cpuid { "as the host" } else { "not set" }
        );
        let vcpu = KvmVcpu::new(&vm, 0)?;
        if self.cpuid {
            let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
            vcpu.set_cpuid(&cpuid.map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?)?;
        }
        vcpu.set_mode(mode, self.image.entry(), TABLES)?;
        Ok(Machine {
            vcpu,
            _vm: vm,
            memory,
            mode,
            simvirtio,
            ram,
            image: self.image.ranges(),
            devices: self.devices,
            timeout: self.timeout,
            profile: self.profile.then(Profile::default),
            verify: self.verify,
            kernel_counters: self.kernel_counters,
            output: self.output,
        })
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

/// `/dev/kvm`, if KVM of the right version is behind it.
pub(crate) fn open_kvm() -> Result<Kvm, Error> {
    let kvm =
        Kvm::new().map_err(|error| Error::OpenKvm { source: io::Error::from_raw_os_error(error.errno()) })?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        ..0 => Err(Error::NotKvm),
        found => Err(Error::ApiVersion { found }),
    }
}

/// `/dev/kvm` and a new virtual machine, after the checks of the assignment.
fn create_vm() -> Result<(Kvm, VmFd), Error> {
    let kvm = open_kvm()?;
    for capability in [Cap::UserMemory, Cap::ImmediateExit] {
        if !kvm.check_extension(capability) {
            return Err(Error::MissingCapability(capability));
        }
    }
    let vm = patiently(|| kvm.create_vm()).map_err(Error::kvm("KVM_CREATE_VM"))?;
    // Intel hosts need the three pages for real mode, others ignore them.
    if let Err(error) = vm.set_tss_address(memory::TSS as usize) {
        log::warn!("KVM_SET_TSS_ADDR failed ({error}); going on without");
    }
    Ok((kvm, vm))
}

/// Tries an operation of KVM's again while signals interrupt it, unless one asks the program to end.
pub(crate) fn patiently<T>(
    mut operation: impl FnMut() -> Result<T, kvm_ioctls::Error>,
) -> Result<T, kvm_ioctls::Error> {
    loop {
        match operation() {
            Err(error) if error.errno() == libc::EINTR && !sys::interrupted() => {}
            answer => return answer,
        }
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

/// SIMVIRTIO's device, where the machine has one.
#[derive(Debug)]
enum Device {
    /// Behind the trapped window, shared with the bus.
    Trapped(Arc<Mutex<Window>>),
    /// Over shared RAM, for the poller.
    Shared(Box<Simvirtio<GuestMemory>>),
}

/// A virtual machine with its guest loaded.
#[derive(Debug)]
pub struct Machine {
    // Dropped first, before the memory that they use.
    vcpu: KvmVcpu,
    _vm: VmFd,
    memory: GuestMemory,
    mode: Mode,
    simvirtio: Option<Device>,
    ram: u64,
    image: Vec<Range<u64>>,
    devices: Devices,
    timeout: Option<Duration>,
    profile: Option<Profile>,
    verify: bool,
    kernel_counters: bool,
    output: Output,
}

impl Machine {
    /// A machine for `image`, with all else as a user would expect: the SO2 map where the image fits into
    /// it, 10 seconds to run, exits counted, nothing verified, text to standard output.
    pub fn builder(image: Image) -> Builder {
        Builder {
            image,
            memory: None,
            transport: None,
            queue_len: None,
            timeout: Some(Duration::from_secs(10)),
            cpuid: false,
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

    /// Runs the guest to its end on the calling thread, and judges it.
    ///
    /// # Errors
    /// The host failed. What the guest does wrong is in the report.
    pub fn run(mut self) -> Result<Report, Error> {
        let started = Instant::now();
        let mut open_bus = OpenBus::default();
        let (stop, simvirtio) = self.run_vcpu(&mut open_bus)?;
        let elapsed = started.elapsed();
        let verdict = match stop {
            Stop::Halted | Stop::Exited(0) if self.verify => Some(self.verdict()?),
            _ => None,
        };
        let location = match stop {
            Stop::Halted | Stop::Exited(_) | Stop::OutputFailed(_) | Stop::InputFailed(_) => None,
            _ => Some(self.vcpu.location(matches!(stop, Stop::TripleFault))?),
        };
        let explanation = match (&stop, location) {
            (Stop::Interrupted | Stop::ProtocolError(_) | Stop::OutputLimit(_), _) | (_, None) => None,
            (_, Some(location)) => {
                Explanation::new(location, self.vcpu.regs()?, self.vcpu.sregs()?, &self.memory)
            }
        };
        let kernel_exits = match self.kernel_counters {
            true => self.vcpu.counter("exits").unwrap_or(None),
            false => None,
        };
        Ok(Report {
            stop,
            location,
            explanation,
            verdict,
            elapsed,
            simvirtio,
            profile: self.profile,
            open_bus,
            kernel_exits,
            ram: self.ram,
            image: self.image,
            devices: self.devices,
        })
    }

    /// The run itself. Whatever ends it, the text that still waits is handed on, also within the time.
    fn run_vcpu(&mut self, open_bus: &mut OpenBus) -> Result<(Stop, Option<SimvirtioReport>), Error> {
        let Self { vcpu, devices, timeout, profile, simvirtio, output, .. } = self;
        let deadline = Deadline::after(*timeout);
        output.set_deadline(deadline.clone());
        let watchdog = Watchdog { deadline: deadline.clone(), ..Default::default() };
        let asked = watchdog.asked.clone();
        vcpu.with_kicks(|vcpu, kicker: Kicker| {
            let _timer = match *timeout {
                Some(timeout) => {
                    Some(KickTimer::start(timeout).map_err(Error::host("starting the watchdog"))?)
                }
                None => None,
            };
            let run = || {
                let mut chain = (watchdog, (devices, (Ends, open_bus)));
                run::run(vcpu, &mut chain, profile.as_mut())
            };
            let (stop, report) = match simvirtio.take() {
                None => (run()?, None),
                // The device has acted on each store: nothing is left in the queue.
                Some(Device::Trapped(window)) => {
                    let lock = || window.lock().unwrap_or_else(PoisonError::into_inner);
                    lock().set_deadline(deadline);
                    let stop = run()?;
                    let mut window = lock();
                    (stop, Some(window.simvirtio().report(Transport::Exit)))
                }
                // Here something may be, and a protocol error in it outranks what the vCPU stopped for.
                Some(Device::Shared(simvirtio)) => {
                    let poller = Poller::start(*simvirtio, asked, kicker, deadline.clone())?;
                    let stop = run()?;
                    let (simvirtio, ended_by_device) = poller.finish(&deadline)?;
                    (ended_by_device.unwrap_or(stop), Some(simvirtio.report(Transport::Polling)))
                }
            };
            let stop = match (output.finish(), stop) {
                // The guest ended in time: it is the reader who did not.
                (ControlFlow::Break(Stop::Timeout), Stop::Halted | Stop::Exited(_)) => Stop::OutputFailed(
                    io::Error::new(io::ErrorKind::TimedOut, "nobody took it before the time was up"),
                ),
                (ControlFlow::Break(failed), Stop::Halted | Stop::Exited(_)) => failed,
                (_, stop) => stop,
            };
            Ok((stop, report))
        })?
    }

    fn verdict(&self) -> Result<Verdict, Error> {
        let mut memory = [0; 8];
        self.memory.read(Gpa(abi::RESULT), &mut memory);
        Ok(Verdict::new(self.mode, self.vcpu.regs()?.rax, u64::from_le_bytes(memory)))
    }
}
