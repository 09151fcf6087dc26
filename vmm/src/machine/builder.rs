//! The builder: the options of a machine, checked when the machine is built.

use crate::boot::Image;
use crate::console::core_key::CoreKey;
use crate::console::input::Input;
use crate::console::output::Output;
use crate::controller::msr::{MsrPolicy, MsrRule};
use crate::controller::{Devices, ExitController};
use crate::device::bus::SharedDevice;
use crate::device::simvirtio::Transport;
use crate::device::{Disk, Layout};
use crate::error::Error;
use crate::machine::linux::Linux;
use crate::machine::{BoxedController, CallersControllers, Machine};
use crate::machine::{InputDevice, MachineKind, Processor};
use crate::memory::MAX_CPUS;
use crate::profile::trace::MAX_TRACED_EXITS;
use crate::x86::cpuid::CpuidOverride;
use std::fmt;
use std::io;
use std::time::Duration;

/// Functions that make the caller's controllers for a vCPU.
#[derive(Default)]
pub(super) struct Controllers(Vec<Box<dyn Fn(u32) -> BoxedController + Send>>);

impl Controllers {
    pub(super) fn for_vcpu(&self, id: u32) -> CallersControllers {
        CallersControllers(self.0.iter().map(|make| make(id)).collect())
    }
}

impl fmt::Debug for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} controllers", self.0.len())
    }
}

/// The guest of a machine.
#[derive(Debug)]
pub(crate) enum Guest {
    /// An image, on a machine with few devices.
    Image(Image),
    /// Linux, on a PC.
    Linux(Box<Linux>),
}

/// The options of a machine. [`Machine::builder`] and [`Machine::linux`] make one.
#[derive(Debug)]
#[must_use]
pub struct Builder {
    guest: Guest,
    pub(super) machine: Option<MachineKind>,
    /// The input is a keyboard, with the escape key.
    pub(super) keyboard: fn() -> bool,
    /// The key that asks for a core.
    pub(super) core_key: Option<CoreKey>,
    /// The device that gets the input. `None`: the one that the guest reads.
    pub(super) input_device: Option<InputDevice>,
    pub(super) screen_on_terminal: bool,
    pub(super) qemu_exit: bool,
    /// The bytes that are at 0x400 before the first run, unless the image covers them.
    pub(super) result_place: [u8; 8],
    /// The disks of a classic PC.
    pub(super) disks: Vec<Disk>,
    pub(super) processor: Option<Processor>,
    pub(super) memory: Option<u64>,
    pub(super) transport: Option<Transport>,
    pub(super) default_transport: Transport,
    pub(super) layout: Layout,
    pub(super) queue_len: Option<u16>,
    pub(super) loopback: bool,
    pub(super) timeout: Option<Duration>,
    pub(super) wall_timeout: Option<Duration>,
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
    pub(super) by_address: bool,
    pub(super) verify: bool,
    pub(super) loses_stores: bool,
    pub(super) kernel_counters: bool,
    pub(super) output: Output,
    pub(super) output_limit: Option<u64>,
    pub(super) input: Input,
    pub(super) devices: Devices,
}

impl Machine {
    /// A machine for `image`. Defaults: the SO2 memory map if the image fits into it, one vCPU, a timeout of 10 seconds,
    /// exits counted, nothing verified, text to standard output.
    pub fn builder(image: Image) -> Builder {
        Builder::new(Guest::Image(image))
    }

    /// A PC that boots Linux. Defaults: one vCPU, 256 MiB, no timeout.
    pub fn linux(linux: Linux) -> Builder {
        Builder::new(Guest::Linux(Box::new(linux))).timeout(None)
    }
}

impl Builder {
    fn new(guest: Guest) -> Self {
        Self {
            guest,
            machine: None,
            keyboard: || false,
            core_key: None,
            disks: Vec::new(),
            input_device: None,
            screen_on_terminal: false,
            qemu_exit: false,
            result_place: [0; 8],
            processor: None,
            memory: None,
            transport: None,
            default_transport: Transport::default(),
            layout: Layout::default(),
            queue_len: None,
            loopback: false,
            timeout: Some(Duration::from_secs(10)),
            wall_timeout: None,
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
            by_address: false,
            verify: false,
            loses_stores: false,
            kernel_counters: false,
            output: Output::new(io::stdout(), true),
            output_limit: None,
            input: Input::bytes(b""),
            devices: Devices::default(),
        }
    }

    /// Sets the kind of processor that runs the guest. With `None`, the default, it is KVM where KVM is usable, and the
    /// software processor elsewhere; [`Machine::kvm_error`] then says why.
    ///
    /// The software processor needs no KVM. It is for small guests: a machine for Linux or with
    /// [`irqchip`](Self::irqchip) cannot have it. Its vCPUs take turns on the calling thread, each for a fixed share of
    /// instructions, so two runs of a guest make the same exits in the same order.
    pub fn processor(mut self, processor: Option<Processor>) -> Self {
        self.processor = processor;
        self
    }

    /// Sets the kind of the machine for an image. With `None`, the default, it is a classic PC for a kernel with a multiboot
    /// header or a PVH note where KVM is usable, and a bare machine for everything else.
    ///
    /// A bare machine has no interrupt controllers: HLT ends the run. A classic PC has them, and its timer, and runs only
    /// once: [`Machine::reset`] is for bare machines.
    pub fn machine(mut self, kind: Option<MachineKind>) -> Self {
        self.machine = kind;
        self
    }

    /// Attaches a disk to a classic PC. At most 2: the first drive of its first ATA channel, then the second one.
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// If `is_keyboard` returns true, the input of a classic PC is a keyboard, and Ctrl-A is its escape key: Ctrl-A x ends the machine. Other
    /// machines do not call it. Off by default.
    pub fn keyboard(mut self, is_keyboard: fn() -> bool) -> Self {
        self.keyboard = is_keyboard;
        self
    }

    /// Sets the key that Ctrl-A c at a keyboard presses. With `None`, the default, these keys only say what they need.
    pub fn core_key(mut self, key: Option<CoreKey>) -> Self {
        self.core_key = key;
        self
    }

    /// Sets the device of a classic PC that gets the input. With `None`, the default, keys of a
    /// [`keyboard`](Self::keyboard) go to the keyboard if the guest reads it, and other input goes to the serial port if the
    /// guest reads it; a BIOS takes other input itself. The input waits until the guest reads the device.
    pub fn input_device(mut self, device: Option<InputDevice>) -> Self {
        self.input_device = device;
        self
    }

    /// If set, the output is a terminal, at whose lower end the text screen of a classic PC is shown during a run. Off by
    /// default; the screen at the end of a run is in the [`Report`](crate::Report) in any case.
    pub fn screen_on_terminal(mut self, shown: bool) -> Self {
        self.screen_on_terminal = shown;
        self
    }

    /// Makes the exit port (0xF4) that of QEMU (isa-debug-exit): a write of the value `v` ends the run with the code
    /// `v << 1 | 1`. Off by default: the code is then the value.
    pub fn qemu_exit(mut self, qemu_exit: bool) -> Self {
        self.qemu_exit = qemu_exit;
        self
    }

    /// Sets the size of RAM, in bytes: a multiple of 4 KiB, 1 MiB to 3 GiB for an image, and 8 MiB to 512 GiB for Linux.
    /// More than 1 MiB selects the plain memory map for an image, which has no SIMVIRTIO. The default is 1 MiB, 250 MiB
    /// in the plain map, and 256 MiB for Linux.
    pub fn memory(mut self, bytes: Option<u64>) -> Self {
        self.memory = bytes;
        self
    }

    /// Sets the SIMVIRTIO transport. `Some` requires the SO2 memory map. `None` is
    /// [`Builder::default_transport`].
    pub fn transport(mut self, transport: Option<Transport>) -> Self {
        self.transport = transport;
        self
    }

    /// Sets the SIMVIRTIO transport of a machine with the SO2 memory map whose transport is not set. The default is
    /// [`Transport::default`].
    pub fn default_transport(mut self, transport: Transport) -> Self {
        self.default_transport = transport;
        self
    }

    /// Sets the layout of SIMVIRTIO's config table (`docs/abi.md`, section 4.1). Another one than the default, that of the
    /// assignment's table, requires the SO2 memory map.
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Sets the length of the SIMVIRTIO queues, in bytes: 2 to 4096, or to 255 with [`Layout::Struct`]. `Some` requires the
    /// SO2 memory map. The default is 256, or 255.
    pub fn queue_len(mut self, queue_len: Option<u16>) -> Self {
        self.queue_len = queue_len;
        self
    }

    /// Makes the SIMVIRTIO device send all data back to the driver, instead of printing it and reading input. The
    /// device holds 64 KiB; if the driver does not read, later bytes are lost. Off by default.
    pub fn loopback(mut self, loopback: bool) -> Self {
        self.loopback = loopback;
        self
    }

    /// Sets the time that a run may take; `None` for no limit. Time in which the guest waits for input does not count.
    /// The default is 10 seconds, and no limit for Linux.
    pub fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the wall-clock time that a run may take; `None` for no limit, which is the default. It counts waits for
    /// input, which [`timeout`](Self::timeout) does not, so a guest cannot outlast it by saying that it reads.
    pub fn wall_timeout(mut self, wall_timeout: Option<Duration>) -> Self {
        self.wall_timeout = wall_timeout;
        self
    }

    /// Shows the guest the CPUID leaves that the host supports (KVM_SET_CPUID2), at a cost of 130 to 190 us. Without
    /// it, all leaves read as zero, and the guest cannot enter long mode by itself. Off by default, unlike in `vmm FILE`;
    /// Linux and machines with several vCPUs always have it.
    pub fn cpuid(mut self, cpuid: bool) -> Self {
        self.cpuid = cpuid;
        self
    }

    /// Changes a field of a CPUID leaf, and shows CPUID as [`cpuid`](Self::cpuid) does. If several changes name one
    /// bit, the last one counts.
    pub fn cpuid_override(mut self, change: CpuidOverride) -> Self {
        self.cpuid_changes.push(change);
        self
    }

    /// Sets the number of vCPUs, 1 to 32. Each has a thread. All start at the entry point; of a Linux machine only the
    /// first one does, and the kernel starts the others. The default is 1.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Sets the number of the first vCPU, which is also its APIC id. The other vCPUs follow it. The default is 0.
    pub fn first_vcpu(mut self, number: u32) -> Self {
        self.first_vcpu = number;
        self
    }

    /// Sets a rule for the guest's accesses to a model-specific register. By default there are no rules.
    pub fn msr_rule(mut self, index: u32, rule: MsrRule) -> Self {
        self.msrs.set(index, rule);
        self
    }

    /// Adds the devices of project 2 of the KeV course: `docs/abi.md`, section 10. Off by default.
    pub fn kev(mut self, kev: bool) -> Self {
        self.kev = kev;
        self
    }

    /// Adds a controller that sees every exit before the machine's own controllers. `make` is called once for each vCPU,
    /// with its number. Several controllers are asked in the order in which they were added.
    pub fn controller<C: ExitController + Send + 'static>(
        mut self,
        make: impl Fn(u32) -> C + Send + 'static,
    ) -> Self {
        self.controllers.0.push(Box::new(move |id| Box::new(make(id))));
        self
    }

    /// Creates in-kernel interrupt controllers (KVM_CREATE_IRQCHIP), which a Linux machine always has. They cost 16 to
    /// 24 ms on some hosts. HLT then waits in the kernel for an interrupt, and does not stop the vCPU. Off by default.
    pub fn irqchip(mut self, irqchip: bool) -> Self {
        self.irqchip = irqchip;
        self
    }

    /// Counts and times exits. On by default.
    pub fn profile(mut self, profile: bool) -> Self {
        self.profile = profile;
        self
    }

    /// Keeps the last exits of the machine one by one, also if exits are not counted: 1 to [`MAX_TRACED_EXITS`] divided by
    /// the number of vCPUs. The default is `None`: no exits are kept.
    pub fn trace(mut self, exits: Option<usize>) -> Self {
        self.trace = exits;
        self
    }

    /// Counts exits also per address of the guest's code, for a report by function. Off by default.
    pub fn by_address(mut self, by_address: bool) -> Self {
        self.by_address = by_address;
        self
    }

    /// Says that stores to unclaimed addresses and hypercalls that fail are intended and are no
    /// [`Doubt`](crate::machine::Doubt). Off by default.
    pub fn loses_stores(mut self, loses_stores: bool) -> Self {
        self.loses_stores = loses_stores;
        self
    }

    /// Requires the guest to leave 42 in RAX (EAX, AX) and at 0x400, and to leave no [`Doubt`](crate::machine::Doubt).
    /// Off by default.
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Adds KVM's own counters to the report. Off by default.
    pub fn kernel_counters(mut self, kernel_counters: bool) -> Self {
        self.kernel_counters = kernel_counters;
        self
    }

    /// Sets the destination of the guest's text. The default is standard output.
    pub fn output(mut self, output: Output) -> Self {
        self.output = output;
        self
    }

    /// Limits the text that the guest may write in one run, in bytes; `None` for no limit, which is the default.
    pub fn output_limit(mut self, output_limit: Option<u64>) -> Self {
        self.output_limit = output_limit;
        self
    }

    /// Sets the input of the SIMVIRTIO driver, or of the console of Linux. The default is no input.
    pub fn input(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// Adds a device at `len` ports from `first`. A 4-byte write to port 0x500 stays a hypercall.
    ///
    /// # Errors
    /// The range is empty, wraps, or overlaps that of another device.
    pub fn port_device(mut self, first: u16, len: u16, device: SharedDevice) -> Result<Self, Error> {
        self.devices.ports.attach(first.into(), len.into(), device)?;
        Ok(self)
    }

    /// Adds a device at `len` guest physical addresses from `first`. Accesses to RAM do not reach a device; with
    /// [`kev`](Self::kev), accesses to the printer's addresses do not either.
    ///
    /// # Errors
    /// The range is empty, wraps, or overlaps that of another device.
    pub fn mmio_device(mut self, first: u64, len: u64, device: SharedDevice) -> Result<Self, Error> {
        self.devices.mmio.attach(first, len, device)?;
        Ok(self)
    }

    /// Adds a device at a model-specific register. It sees accesses of 8 bytes at offset 0.
    ///
    /// # Errors
    /// Another device is at the register.
    pub fn msr_device(mut self, index: u32, device: SharedDevice) -> Result<Self, Error> {
        self.devices.msrs.attach(index.into(), 1, device)?;
        Ok(self)
    }

    /// Creates the virtual machine and loads the guest.
    ///
    /// # Errors
    /// The options contradict each other, the guest does not fit, or the host failed.
    pub fn build(mut self) -> Result<Machine, Error> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(Error::Config(format!("--cpus must be 1 to {MAX_CPUS}, not {}", self.cpus)));
        }
        // Each vCPU keeps as many exits as the trace, because the last ones of the machine may all be its own.
        let most = MAX_TRACED_EXITS / self.cpus as usize;
        if let Some(exits) = self.trace.filter(|exits| !(1..=most).contains(exits)) {
            let cpus = if self.cpus == 1 { String::new() } else { format!(" with {} vCPUs", self.cpus) };
            return Err(Error::Config(format!("--trace-exits must be 1 to {most}{cpus}, not {exits}")));
        }
        let nothing = Guest::Image(Image::default());
        match std::mem::replace(&mut self.guest, nothing) {
            Guest::Image(image) => self.build_for(image),
            Guest::Linux(linux) => self.build_pc(*linux),
        }
    }
}
