//! Measures the steps of an exit separately, with warm caches: decoding, dispatch, devices, rings and the profile. Run
//! it with `make bench-parts`. `make bench` measures the cost of an exit as a whole.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../src/latch.rs"]
mod latch;

use criterion::{Criterion, criterion_group, criterion_main};
use kvm_bindings::{
    KVM_EXIT_HLT, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_EXIT_MMIO, KVM_EXIT_X86_RDMSR, kvm_run,
};
use kvm_ioctls::Kvm;
use latch::Latch;
use simvirtio::abi::Layout;
use simvirtio::driver::Driver;
use simvirtio::ring::{Consumer, Producer, Ring};
use simvirtio::{Memory, abi};
use std::cell::RefCell;
use std::hint::black_box;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vmm::RunCopy;
use vmm::controller::{
    Devices, Entry, ExitController, FakeVcpu, Hypercalls, MmioPrinter, MsrForwarder, MsrPolicy, OpenBus,
    TerminalExits, Vcpu, VcpuState, Watchdog,
};
use vmm::device::{
    DEBUGCON_PORT, Debugcon, Device, EXIT_PORT, ExitPort, Fifo, SERIAL_PORT, Serial, SharedDevice, Simvirtio,
    TrappedMemory, Window,
};
use vmm::exit::{Arrival, Exit, Outcome, Stop};
use vmm::internals::{Entropy, I8042, Mmio, PostCode, Power, Rtc, SystemControl};
use vmm::memory::{Gpa, GuestMemory, SharedMemory};
use vmm::profile::{Clock, MAX_SITES, Profile, Recorder, Timeline, Times};
use vmm::x86::{Regs, Sregs};
use vmm::{Error, Input, Output, run_vcpu};

const OUT: Exit = Exit::PioOut { port: 0x42, size: 1, data: b'x' as u32 };
const IN: Exit = Exit::PioIn { port: 0x42, size: 1 };
const STORE: Exit = Exit::MmioWrite { address: 0xd000_0000, size: 4, data: 7 };
const LOAD: Exit = Exit::MmioRead { address: 0xd000_0000, size: 4 };
const RDMSR: Exit = Exit::RdMsr { index: 0xabc };

/// The offset of the data of port I/O: KVM writes it to the page after `kvm_run`.
const DATA: usize = 4096;

/// Decoding of `kvm_run` into an [`Exit`].
fn decode(criterion: &mut Criterion) {
    let of_reason = |exit_reason| kvm_run { exit_reason, ..Default::default() };
    let pio = |direction| {
        let mut run = of_reason(KVM_EXIT_IO);
        let io = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_4 {
            direction: direction as u8,
            size: 1,
            port: 0x42,
            count: 1,
            data_offset: DATA as u64,
        };
        run.__bindgen_anon_1.io = io;
        run
    };
    let mut mmio = of_reason(KVM_EXIT_MMIO);
    mmio.__bindgen_anon_1.mmio.phys_addr = 0xd000_0000;
    mmio.__bindgen_anon_1.mmio.len = 4;
    mmio.__bindgen_anon_1.mmio.is_write = 1;
    let mut msr = of_reason(KVM_EXIT_X86_RDMSR);
    msr.__bindgen_anon_1.msr.index = 0xabc;
    let mut group = criterion.benchmark_group("decode");
    for (name, run) in [
        ("PIO out", pio(KVM_EXIT_IO_OUT)),
        ("PIO in", pio(KVM_EXIT_IO_IN)),
        ("MMIO write", mmio),
        ("RDMSR", msr),
        ("HLT", of_reason(KVM_EXIT_HLT)),
    ] {
        let run = RunCopy::of(run);
        group.bench_function(name, |bencher| bencher.iter(|| black_box(&run).first_exit()));
    }
}

/// A simulated vCPU that makes the same exit `left` times, and then halts.
struct Script {
    exit: Exit,
    left: u64,
    still: FakeVcpu,
}

impl VcpuState for Script {
    fn id(&self) -> u32 {
        self.still.id()
    }
    fn regs(&mut self) -> Result<Regs, Error> {
        self.still.regs()
    }
    fn set_regs(&mut self, regs: &Regs) -> Result<(), Error> {
        self.still.set_regs(regs)
    }
    fn sregs(&mut self) -> Result<Sregs, Error> {
        self.still.sregs()
    }
    fn set_sregs(&mut self, sregs: &Sregs) -> Result<(), Error> {
        self.still.set_sregs(sregs)
    }
    fn msr(&mut self, index: u32) -> Option<u64> {
        self.still.msr(index)
    }
    fn set_msr(&mut self, index: u32, data: u64) -> bool {
        self.still.set_msr(index, data)
    }
    fn memory(&self) -> &GuestMemory {
        self.still.memory()
    }
}

impl Vcpu for Script {
    fn enter(&mut self, entry: Entry) -> Result<(Exit, Arrival), Error> {
        black_box(entry);
        let Some(left) = self.left.checked_sub(1) else { return Ok((Exit::Hlt, Arrival::FromGuest)) };
        self.left = left;
        Ok((black_box(self.exit), Arrival::FromGuest))
    }
}

fn shared(device: impl Device + 'static) -> SharedDevice {
    Arc::new(Mutex::new(device))
}

fn sink() -> Output {
    Output::new(io::sink(), true)
}

/// The devices of a machine, and a latch on each bus.
fn devices() -> Devices {
    let mut devices = Devices::default();
    let latch = shared(Latch::default());
    let ports = [
        (0x42, 1, latch.clone()),
        (DEBUGCON_PORT, 1, shared(Debugcon::new(sink()))),
        (SERIAL_PORT, 8u16, shared(Serial::new(sink()))),
        (EXIT_PORT, 1, shared(ExitPort)),
    ];
    for (first, len, device) in ports {
        devices.ports.attach(first.into(), len.into(), device).unwrap();
    }
    devices.mmio.attach(0xd000_0000, 4, latch.clone()).unwrap();
    devices.mmio.attach(abi::WINDOW, abi::WINDOW_SIZE, shared(window().0)).unwrap();
    devices.msrs.attach(0xabc, 1, latch).unwrap();
    devices
}

/// A clock with the TSC frequency of this host.
fn clock() -> Clock {
    let khz = Kvm::new().and_then(|kvm| kvm.create_vm()).and_then(|vm| vm.create_vcpu(0)?.get_tsc_khz());
    Clock::new(khz.ok())
}

fn recorder(clock: Clock) -> Recorder {
    Recorder::new(clock, clock.now(), None, false, None)
}

/// The run loop with a machine's chain of controllers and a simulated vCPU: all work of the program for an exit, except
/// KVM_RUN and decoding.
fn dispatch(criterion: &mut Criterion) {
    let (devices, msrs, clock) = (devices(), MsrPolicy::default(), clock());
    let mut group = criterion.benchmark_group("dispatch");
    for (name, exit) in
        [("PIO out", OUT), ("PIO in", IN), ("MMIO write", STORE), ("MMIO read", LOAD), ("RDMSR", RDMSR)]
    {
        for counted in [false, true] {
            let name = format!("{name}{}", if counted { ", counted and timed" } else { "" });
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|left| {
                    let mut vcpu = Script { exit, left, still: FakeVcpu::default() };
                    let mut recorder = counted.then(|| recorder(clock));
                    let own: Vec<Box<dyn ExitController>> = Vec::new();
                    let last = (&devices, (MsrForwarder(&msrs), (TerminalExits, OpenBus::default())));
                    let rest = (Some(Hypercalls::new(sink())), (&msrs, (None::<MmioPrinter>, last)));
                    let mut chain = (Watchdog::default(), (own, rest));
                    let start = Instant::now();
                    let stop = run_vcpu(&mut vcpu, &mut chain, recorder.as_mut());
                    let elapsed = start.elapsed();
                    assert!(matches!(stop, Stop::Halted));
                    elapsed
                });
            });
        }
    }
    group.bench_function("unclaimed access", |bencher| {
        let mut chain = (&devices, OpenBus::default());
        let mut vcpu = FakeVcpu::default();
        let exit = Exit::PioIn { port: 0x999, size: 1 };
        bencher.iter(|| matches!(chain.handle(black_box(&exit), &mut vcpu), Outcome::Value(_)));
    });
}

/// An access to a device: offset, width, and the data of a write.
type Access = (u64, u8, Option<u64>);

/// Each device separately, behind its lock.
fn each_device(criterion: &mut Criterion) {
    let entropy = Mmio::new(Entropy::new().unwrap(), memory()).unwrap();
    let devices: [(&str, SharedDevice, Access); 14] = [
        ("debug console, write a byte", shared(Debugcon::new(sink())), (0, 1, Some(b'x'.into()))),
        ("serial port, write a byte", shared(Serial::new(sink())), (0, 1, Some(b'x'.into()))),
        ("serial port, read line status", shared(Serial::new(sink())), (5, 1, None)),
        ("exit port, write", shared(ExitPort), (0, 1, Some(7))),
        ("keyboard controller, read status", shared(I8042::default()), (4, 1, None)),
        ("RTC, write index", shared(Rtc::default()), (0, 1, Some(0))),
        ("RTC, read seconds", shared(Rtc::default()), (1, 1, None)),
        (
            "boot mark, write the same value",
            shared(PostCode::new(Arc::new(Timeline::default()))),
            (0, 1, Some(7)),
        ),
        ("power control, write 0", shared(Power), (1, 1, Some(0))),
        ("system control port, read", shared(SystemControl::default()), (0, 1, None)),
        ("SIMVIRTIO, read magic", shared(window().0), (0, 4, None)),
        ("SIMVIRTIO, read TX tail", shared(window().0), (abi::offset::TX_TAIL, 4, None)),
        ("virtio-mmio, read magic", shared(entropy), (0, 4, None)),
        ("FIFO, read while empty", shared(Fifo::default()), (0, 1, None)),
    ];
    let mut group = criterion.benchmark_group("device");
    for (name, device, (offset, size, data)) in devices {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut device = black_box(&device).lock().unwrap();
                match black_box(data) {
                    Some(data) => device.write(black_box(offset), size, data).is_continue(),
                    None => device.read(black_box(offset), size).is_continue(),
                }
            });
        });
    }
    group.bench_function("FIFO, write and read", |bencher| {
        let mut fifo = Fifo::default();
        bencher.iter(|| (fifo.write(0, 1, black_box(7)), fifo.read(0, 1)));
    });
}

/// The RAM of a SIMVIRTIO machine, and a page for the window of the polling transport.
fn memory() -> GuestMemory {
    GuestMemory::new(&[(Gpa(0), abi::RAM_SIZE), (Gpa(abi::WINDOW), abi::WINDOW_SIZE)]).unwrap()
}

/// The window of the exit-based transport, and the RAM of its device.
fn window() -> (Window, GuestMemory) {
    let memory = memory();
    let trapped = TrappedMemory::new(memory.clone());
    let device =
        Simvirtio::power_on(Layout::Table, abi::DEFAULT_QUEUE_LEN, trapped, sink(), Input::bytes(b""))
            .unwrap();
    (Window::new(device), memory)
}

/// The memory that a driver sees with the exit-based transport: RAM, and registers in the window.
struct Trapped {
    window: RefCell<Window>,
    ram: GuestMemory,
}

impl Trapped {
    fn register(gpa: u64) -> Option<u64> {
        gpa.checked_sub(abi::WINDOW).filter(|offset| *offset < abi::WINDOW_SIZE)
    }
    fn read(&self, offset: u64, size: u8) -> u64 {
        match self.window.borrow_mut().read(offset, size) {
            ControlFlow::Continue(value) => value,
            ControlFlow::Break(stop) => panic!("{stop}"),
        }
    }
    fn write(&self, offset: u64, size: u8, data: u64) {
        assert!(self.window.borrow_mut().write(offset, size, data).is_continue());
    }
}

impl Memory for Trapped {
    fn load_u8(&self, gpa: u64) -> u8 {
        Self::register(gpa).map_or_else(|| self.ram.load_u8(gpa), |offset| self.read(offset, 1) as u8)
    }
    fn store_u8(&self, gpa: u64, value: u8) {
        match Self::register(gpa) {
            Some(offset) => self.write(offset, 1, value.into()),
            None => self.ram.store_u8(gpa, value),
        }
    }
    fn load_u32(&self, gpa: u64) -> u32 {
        Self::register(gpa).map_or_else(|| self.ram.load_u32(gpa), |offset| self.read(offset, 4) as u32)
    }
    fn store_u32(&self, gpa: u64, value: u32) {
        match Self::register(gpa) {
            Some(offset) => self.write(offset, 4, value.into()),
            None => self.ram.store_u32(gpa, value),
        }
    }
}

/// One byte through a ring in guest memory, and one byte through all of SIMVIRTIO: driver, window, device and output.
fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    let memory = memory();
    let ring = Ring::tx(abi::DEFAULT_QUEUE_LEN);
    let mut producer = Producer::attach(ring, &memory).unwrap();
    let mut consumer = Consumer::attach(ring, &memory).unwrap();
    group.bench_function("push and pop", |bencher| {
        bencher.iter(|| {
            producer.push(&memory, black_box(b'x')).unwrap();
            let byte = consumer.peek(&memory).unwrap();
            consumer.release(&memory);
            byte
        });
    });
    group.bench_function("peek at an empty ring", |bencher| bencher.iter(|| consumer.peek(&memory).unwrap()));
    let (window, ram) = window();
    let mut driver = Driver::connect(Trapped { window: RefCell::new(window), ram }).unwrap();
    group.bench_function("send a byte through SIMVIRTIO", |bencher| {
        bencher.iter(|| driver.send(&[black_box(b'x')]).unwrap());
    });
}

/// The work of the polling thread: a poll without work, and the echo of a byte, with the driver's side of the queues.
fn polling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("polling");
    let memory = memory();
    let shared = SharedMemory::new(&memory).unwrap();
    let device =
        Simvirtio::power_on(Layout::Table, abi::DEFAULT_QUEUE_LEN, shared, sink(), Input::bytes(b""));
    let mut device = device.unwrap().looped_back();
    let mut tx = Producer::attach(Ring::tx(abi::DEFAULT_QUEUE_LEN), &memory).unwrap();
    let mut rx = Consumer::attach(Ring::rx(abi::DEFAULT_QUEUE_LEN), &memory).unwrap();
    for command in [abi::command::RESET, abi::command::CONFIG] {
        tx.push(&memory, command).unwrap();
        assert!(device.advance().is_continue());
    }
    memory.store_u8(abi::gpa::DRIVER_STATUS, abi::driver_status::DRIVER_OK);
    assert!(device.advance().is_continue());
    group.bench_function("a poll without work", |bencher| bencher.iter(|| device.advance()));
    group.bench_function("echo of a byte", |bencher| {
        bencher.iter(|| {
            tx.push(&memory, black_box(b'x')).unwrap();
            let answer = device.advance();
            let byte = rx.peek(&memory).unwrap();
            rx.release(&memory);
            (answer, byte)
        });
    });
}

/// The profile of an exit. `recorded` is the work per exit: two clock reads and an entry in a buffer, plus the share of
/// counting a full buffer. `counted` is the counting alone.
fn profile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("profile");
    let port = |port| Exit::PioOut { port, size: 1, data: 0 };
    for (name, ports) in [
        ("one site", 1),
        ("64 sites in turn", 64),
        ("more sites than the profile holds", 4 * MAX_SITES as u16),
    ] {
        let mut next = 0;
        let mut exit = || {
            next = (next + 1) % ports;
            black_box(port(next))
        };
        let mut recorder = recorder(clock());
        recorder.begin();
        group.bench_function(format!("recorded, {name}"), |bencher| {
            bencher.iter(|| {
                recorder.left(&exit(), Arrival::FromGuest, None);
                recorder.answered(&Outcome::Resume);
            });
        });
        let mut profile = Profile::default();
        let times = Times { in_kvm: 4600, in_vmm: 200 };
        group.bench_function(format!("counted, {name}"), |bencher| {
            bencher.iter(|| profile.record(&exit(), Arrival::FromGuest, black_box(times)));
        });
    }
}

/// One second per benchmark, which gives about three digits.
fn short() -> Criterion {
    let config = Criterion::default().sample_size(30).without_plots();
    config.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(700))
}

criterion_group! {
    name = parts;
    config = short();
    targets = decode, dispatch, each_device, ring, polling, profile
}
criterion_main!(parts);
