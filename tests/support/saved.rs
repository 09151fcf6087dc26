//! Profiles and traces like those of real runs, made of numbers that are the same every time.

use report::profile::{SavedClock, SavedLimits, SavedMark, SavedSite, SavedTimes, SavedVcpu};
use report::trace::{Record, SavedDevice};
use report::{SavedName, SavedOrigin, SavedProfile, SavedSamples, SavedTrace};
use std::collections::BTreeMap;
use vmm::exit::Reason;

/// A place: reason, address, width, device, typical nanoseconds in KVM and in the VMM, and its weight.
type Place = (Reason, u64, u8, &'static str, f64, f64, u32);

const BOOT: &[Place] = &[
    (Reason::PioOut, 0x3f8, 1, "serial data", 4200.0, 320.0, 420),
    (Reason::PioIn, 0x3fd, 1, "serial line status", 3900.0, 150.0, 300),
    (Reason::PioOut, 0x3f9, 1, "serial", 5200.0, 280.0, 60),
    (Reason::MmioWrite, 0xd000_0064, 4, "virtio-blk, interrupt acknowledge", 31_000.0, 480.0, 140),
    (Reason::MmioRead, 0xd000_0100, 4, "virtio-blk, configuration", 6800.0, 210.0, 22),
    (Reason::MmioWrite, 0xd000_1050, 4, "virtio-rng, notify", 9100.0, 900.0, 12),
    (Reason::PioIn, 0x64, 1, "i8042", 4000.0, 120.0, 18),
    (Reason::PioOut, 0x70, 1, "clock", 4100.0, 130.0, 30),
    (Reason::PioIn, 0x71, 1, "clock", 4050.0, 140.0, 30),
    (Reason::RdMsr, 0x3a, 8, "", 3800.0, 95.0, 6),
    (Reason::PioIn, 0xcfc, 4, "", 4300.0, 180.0, 33),
];

/// A generator of pseudo-random numbers (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a duration that is mostly near `typical`, with a long tail above.
    fn duration(&mut self, typical: f64) -> u32 {
        let uniform = |numbers: &mut Self| (numbers.next() >> 11) as f64 / (1u64 << 53) as f64;
        let bell: f64 = (0..6).map(|_| uniform(self)).sum::<f64>() - 3.0;
        let tail = if uniform(self) < 0.03 { 2.0 + uniform(self) * 14.0 } else { 1.0 };
        (typical * (1.0 + 0.13 * bell).max(0.4) * tail) as u32
    }
}

/// Returns the trace of a Linux guest with two vCPUs: `exits` exits, and a HLT.
pub fn boot_trace(exits: usize) -> SavedTrace {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let all: u32 = BOOT.iter().map(|place| place.6).sum();
    let mut when = 3_000_000u64;
    let mut records = Vec::new();
    for index in 0..exits {
        let mut ticket = (numbers.next() % u64::from(all)) as u32;
        let place = BOOT.iter().find(|place| {
            let found = ticket < place.6;
            ticket = ticket.saturating_sub(place.6);
            found
        });
        let (reason, address, width, _, in_kvm, in_vmm, _) = *place.expect("a place");
        let in_kvm = numbers.duration(in_kvm);
        // Some phases of a boot have many exits, others few.
        let busy = (index * 40 / exits.max(1)) % 7;
        when += u64::from(in_kvm) + u64::from(numbers.duration(20_000.0 * (1.0 + busy as f64 * 1.5)));
        records.push(Record {
            when,
            place: Some(address),
            value: Some(numbers.next() & 0x7f),
            rip: Some(0xffff_ffff_8100_0000 + (numbers.next() & 0xf_ffff)),
            in_kvm,
            in_vmm: numbers.duration(in_vmm),
            vcpu: u16::from(numbers.next().is_multiple_of(4)),
            reason,
            width,
            next_element: false,
            fault: reason == Reason::RdMsr,
        });
    }
    let hlt = Record {
        place: None,
        value: None,
        reason: Reason::Hlt,
        width: 0,
        fault: false,
        ..records[exits - 1]
    };
    records.push(Record { when: when + 900_000, in_kvm: 880_000, ..hlt });
    let devices = BOOT.iter().filter(|place| !place.3.is_empty());
    let devices = devices.map(|(reason, place, width, device, ..)| SavedDevice {
        reason: *reason,
        place: *place,
        width: *width,
        device: (*device).into(),
    });
    SavedTrace {
        processor: Default::default(),
        vcpus: 2,
        seen: records.len() as u64 + 1234,
        elapsed_ns: when + 1_000_000,
        khz: 2_250_000,
        records,
        program: "vmm 0.1.0".into(),
        guest: "vmlinux".into(),
        ended: "powered off".into(),
        origin: Some(origin("vmm boot vmlinux")),
        devices: devices.collect(),
        names: Vec::new(),
    }
}

/// Returns the profile of the boot of a Linux guest with two vCPUs.
pub fn boot() -> SavedProfile {
    let trace = boot_trace(24_000);
    let mut profile = trace.profile();
    let add = |vcpu: &mut SavedVcpu, ended: &str| {
        vcpu.ended = ended.into();
        let kernel =
            [("exits", vcpu.exits * 3), ("io_exits", vcpu.exits), ("mmio_exits", 0), ("halt_exits", 512)];
        let more = [("irq_injections", 3012), ("pf_taken", 1890), ("insn_emulation", 5333)];
        let kernel = kernel.into_iter().chain(more).filter(|(_, value)| *value > 0);
        vcpu.kernel = Some(kernel.map(|(name, value)| (name.to_owned(), value)).collect());
    };
    add(&mut profile.machine, "powered off");
    profile
        .vcpus
        .iter_mut()
        .zip(["powered off", "stopped with the others"])
        .for_each(|(vcpu, ended)| add(vcpu, ended));
    profile.profiling_ns = 1_310_000;
    profile.limits = SavedLimits { sites: 1024, timed_sites: 64, digits: 2 };
    let marks = [
        ("VM ready", 0.04, 0),
        ("first instruction", 0.05, 0),
        ("first console byte", 0.31, 812),
        ("boot mark 0x20", 0.52, 9340),
        ("userland", 0.88, 10_210),
        ("end", 1.0, 3639),
    ];
    profile.marks = marks
        .iter()
        .map(|(event, at, exits)| SavedMark {
            event: (*event).into(),
            at_ns: (profile.elapsed_ns as f64 * at) as u64 + 14_000_000,
            exits: *exits,
        })
        .collect();
    profile
}

/// Returns the statistics of `count` samples near `typical`.
fn times(numbers: &mut Numbers, count: u64, typical: f64) -> SavedTimes {
    let samples: Vec<_> = (0..count).map(|_| u64::from(numbers.duration(typical))).collect();
    let mut sorted = samples.clone();
    sorted.sort_unstable();
    let rank = |percent: u64| sorted.get((count * percent).div_ceil(100).saturating_sub(1) as usize).copied();
    let mut bins = BTreeMap::new();
    for sample in &samples {
        let spare = sample.checked_ilog2().unwrap_or(0).saturating_sub(3);
        *bins.entry(sample >> spare << spare).or_insert(0) += 1;
    }
    SavedTimes {
        count,
        sum: samples.iter().sum(),
        min: sorted.first().copied().unwrap_or(0),
        max: sorted.last().copied().unwrap_or(0),
        p50: rank(50),
        p99: rank(99),
        bins: bins.into_iter().collect(),
    }
}

/// Returns the profile of the SIMVIRTIO guest. `slower` multiplies its times in KVM.
pub fn simvirtio(slower: f64) -> SavedProfile {
    let sites = simvirtio_sites(slower);
    let kernel = [("exits", 41), ("mmio_exits", 39), ("halt_exits", 1), ("insn_emulation", 1204)];
    let kernel = kernel.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let machine = SavedVcpu {
        id: None,
        ended: "halted".into(),
        exits: 40,
        elements: 40,
        kernel: Some(kernel),
        in_kvm: sum(sites.iter().map(|site| &site.in_kvm)),
        in_vmm: sum(sites.iter().map(|site| &site.in_vmm)),
        sites,
    };
    let vcpu = SavedVcpu { id: Some(0), ..machine.clone() };
    SavedProfile {
        processor: Default::default(),
        program: "vmm 0.1.0".into(),
        guest: "simvirtio".into(),
        ended: "halted; verified: RAX = 42, [0x400] = 42".into(),
        origin: Some(origin("vmm run simvirtio")),
        elapsed_ns: (machine.in_kvm.sum + machine.in_vmm.sum) * 11 / 10,
        clock: SavedClock { khz: 2_250_000, ..SavedClock::default() },
        limits: SavedLimits { sites: 1024, timed_sites: 64, digits: 2 },
        profiling_ns: 3100,
        marks: Vec::new(),
        machine,
        vcpus: vec![vcpu],
        setup: None,
        addresses: Vec::new(),
        names: Vec::new(),
        samples: Some(samples()),
    }
}

/// Samples of every part.
fn samples() -> SavedSamples {
    let stacks = [
        "main;send;[KVM] 17",
        "main;send;memcpy 40",
        "main;send;wait;[VMM] MMIO write 0x100010 (simvirtio TX head) 9",
        "main;idle;[halted] 12",
        "main 3",
    ];
    SavedSamples {
        rate: Some(1000),
        lost: 0,
        cost_ns: 900_000,
        may_be_kvm: false,
        stacks: stacks.map(Into::into).to_vec(),
    }
}

fn simvirtio_sites(slower: f64) -> Vec<SavedSite> {
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    let mut site =
        |reason, place: Option<u64>, width: u8, device: &str, exits, in_kvm: f64, in_vmm: f64| SavedSite {
            reason,
            place,
            width: place.map(|_| width),
            device: (!device.is_empty()).then(|| format!("simvirtio {device}")),
            exits,
            elements: exits,
            in_kvm: times(&mut numbers, exits, in_kvm * slower),
            in_vmm: times(&mut numbers, exits, in_vmm),
        };
    vec![
        site(Reason::MmioRead, Some(0x10_0014), 4, "TX tail", 15, 4100.0, 210.0),
        site(Reason::MmioWrite, Some(0x10_0010), 4, "TX head", 14, 11_900.0, 1650.0),
        site(Reason::MmioRead, Some(0x10_0006), 1, "device_status", 3, 4300.0, 200.0),
        site(Reason::MmioWrite, Some(0x10_0007), 1, "driver_status", 3, 4900.0, 410.0),
        site(Reason::MmioRead, Some(0x10_0000), 4, "magic", 1, 9100.0, 640.0),
        site(Reason::MmioRead, Some(0x10_0004), 1, "max_queue_len", 1, 4150.0, 220.0),
        site(Reason::MmioRead, Some(0x10_0005), 1, "max_queue_len", 1, 4120.0, 190.0),
        site(Reason::MmioRead, Some(0x10_0010), 4, "TX head", 1, 4300.0, 230.0),
        site(Reason::Hlt, None, 0, "", 1, 15_300.0, 300.0),
    ]
}

/// Adds up the statistics of several sites. The percentiles are made up.
fn sum<'a>(all: impl Iterator<Item = &'a SavedTimes>) -> SavedTimes {
    let mut sum = SavedTimes { min: u64::MAX, p50: Some(4352), p99: Some(25_000), ..SavedTimes::default() };
    let mut bins = BTreeMap::new();
    for times in all {
        sum.count += times.count;
        sum.sum += times.sum;
        sum.min = sum.min.min(times.min);
        sum.max = sum.max.max(times.max);
        times.bins.iter().for_each(|(bound, count)| *bins.entry(*bound).or_insert(0) += count);
    }
    SavedTimes { bins: bins.into_iter().collect(), ..sum }
}

/// Names that try to be a script, a formula, a terminal command, or the end of the enclosing text.
pub const HOSTILE: [&str; 8] = [
    "<script>document.title='owned'</script>",
    "=cmd|' /C calc'!A0",
    "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m",
    "</title></script><img src=x onerror=\"document.title='owned'\">",
    "\"' onfocus=document.title='owned' autofocus x='",
    "<!--<script>\u{2028}</style>",
    "\u{202e}txt.exe\nvmm: forged line",
    "&lt;b&gt; é ${1} {{2}} ]]>",
];

/// Returns an origin.
fn origin(command: &str) -> Box<SavedOrigin> {
    Box::new(SavedOrigin {
        date: "2026-11-29T07:16:40Z".into(),
        host: "laboratory".into(),
        cpu: "Test CPU".into(),
        kernel: "6.1.0".into(),
        command: command.into(),
        transport: "exit".into(),
    })
}

/// Returns an origin in which every text is hostile.
fn hostile_origin() -> Box<SavedOrigin> {
    let [date, host, cpu, kernel, command, transport] =
        std::array::from_fn(|index| HOSTILE[index % HOSTILE.len()].to_owned());
    Box::new(SavedOrigin { date, host, cpu, kernel, command, transport })
}

/// Returns a profile in which every text is hostile.
pub fn hostile() -> SavedProfile {
    let mut profile = simvirtio(1.0);
    let mut names = HOSTILE.iter().cycle().map(|name| (*name).to_owned());
    let mut name = || names.next().expect("a name");
    profile.guest = name();
    profile.ended = HOSTILE[3].into();
    profile.program = HOSTILE[4].into();
    profile.origin = Some(hostile_origin());
    profile
        .machine
        .sites
        .iter_mut()
        .filter(|site| site.place.is_some())
        .for_each(|site| site.device = Some(name()));
    profile.vcpus[0].ended = HOSTILE[2].into();
    profile.marks = HOSTILE.map(|event| SavedMark { event: event.into(), at_ns: 5, exits: 1 }).to_vec();
    if let Some(samples) = &mut profile.samples {
        samples.stacks = HOSTILE.map(|name| format!("main;{name} 3")).to_vec();
    }
    profile.machine.kernel = Some(HOSTILE.iter().map(|name| ((*name).to_owned(), 7)).collect());
    profile
}

/// Returns a trace in which every text is hostile.
pub fn hostile_trace() -> SavedTrace {
    let mut trace = boot_trace(200);
    trace.guest = HOSTILE[0].into();
    trace.ended = HOSTILE[3].into();
    trace.program = HOSTILE[2].into();
    trace.origin = Some(hostile_origin());
    trace
        .devices
        .iter_mut()
        .zip(HOSTILE.iter().cycle())
        .for_each(|(device, name)| device.device = (*name).into());
    let rips: Vec<_> = trace.records.iter().filter_map(|record| Some((record.reason, record.rip?))).collect();
    trace.names = rips
        .into_iter()
        .zip(HOSTILE.iter().cycle())
        .map(|((reason, rip), name)| SavedName {
            rip,
            reason,
            function: (*name).into(),
            offset: 1,
            line: Some((*name).into()),
            unsure: true,
        })
        .collect();
    trace
}

/// Returns the bytes of a profile file.
pub fn profile_file(profile: &SavedProfile) -> Vec<u8> {
    let mut bytes = Vec::new();
    profile.write(&mut bytes).expect("memory");
    bytes
}

/// Returns the bytes of a trace file.
pub fn trace_file(trace: &SavedTrace) -> Vec<u8> {
    let mut bytes = Vec::new();
    trace.write(&mut bytes).expect("memory");
    bytes
}
