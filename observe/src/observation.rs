//! The result of an observation.

use crate::answers::Unanswered;
use crate::death::Deaths;
use crate::doubts::Doubts;
use crate::engine::VcpuId;
use crate::isolation::Protection;
use crate::tally::{Tally, reason};
use report::profile::SavedProcessor;
use report::{Devices, Measured, MeasuredVcpu};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use vmm::KvmCounters;
use vmm::exit::Site;
use vmm::machine::Timing;
use vmm::profile::{Profile, Trace};

/// The way in which the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It ended by itself, or by a signal.
    Ended(ExitStatus),
    /// It did not end within its time, and was ended with all of its children.
    Timeout(Duration),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(limit) => write!(
                f,
                "timeout: the program did not end within {} s, and was ended with its children (--timeout)",
                limit.as_secs_f64()
            ),
            Self::Ended(status) => match (status.code(), status.signal()) {
                (Some(code), _) => write!(f, "exited with status {code}"),
                (None, Some(signal)) => {
                    write!(f, "ended by signal {signal} ({})", signal_name(signal))?;
                    f.write_str(if status.core_dumped() { ", core dumped" } else { "" })
                }
                (None, None) => write!(f, "ended"),
            },
        }
    }
}

/// The name of a signal that ends programs.
fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGSYS => "SIGSYS",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGUSR2 => "SIGUSR2",
        _ => "see kill -l",
    }
}

/// The exits of one observed vCPU.
#[derive(Clone, Debug)]
pub struct ObservedVcpu {
    /// The vCPU; `None` for all vCPUs past the limit of 64 together.
    pub id: Option<VcpuId>,
    /// Its exits.
    pub profile: Profile,
    /// KVM's own counters, if they are known for all of its exits.
    pub kernel: Option<KvmCounters>,
    /// The name of the reason of its last exit; empty without an exit.
    pub last: String,
    /// The death of its guest, with the probable cause. Of a guest that halted, the doubts about it.
    pub death: Option<String>,
}

/// The exits of a program, and its end.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The way in which it ended.
    pub ending: Ending,
    /// The time from its start to its end.
    pub elapsed: Duration,
    /// The number of virtual machines that it and its children made.
    pub machines: u32,
    /// The vCPUs, in the order of their creation.
    pub vcpus: Vec<ObservedVcpu>,
    /// The exits of all vCPUs.
    pub profile: Profile,
    /// KVM's own counters of all vCPUs, if they are known for each.
    pub kernel: Option<KvmCounters>,
    /// The last exits, if they were asked for. The numbers of vCPUs are their places in `vcpus`.
    pub trace: Option<Trace>,
    /// The clock, and the time that this process spent on counting.
    pub timing: Timing,
    /// The number of exits that were not recorded, because this process could not keep up.
    pub lost: u64,
    /// The number of vCPUs that were not recorded, because the program lacked a resource.
    pub unrecorded: u32,
    /// True if the program hides its files from this process.
    pub is_hidden: bool,
    /// The errors of KVM_RUN other than interruptions: errno and number.
    pub errors: BTreeMap<i32, u64>,
    /// The places whose reads the program does not seem to answer.
    pub unanswered: Vec<Unanswered>,
    /// True if children of the program still ran when it ended.
    pub has_left_children: bool,
    /// The protection of other processes, for a captive program.
    pub protection: Protection,
    /// The parts of the jail that the system lacks.
    pub missing: Vec<jail::Missing>,
    /// The place where the program stood at the end of its time, without a subject: "waited for input". `None` if it ended by itself,
    /// or the system does not tell.
    pub hang: Option<String>,
}

impl Observation {
    pub(crate) fn of(
        mut tally: Tally,
        ending: Ending,
        elapsed: Duration,
        cost: Duration,
        left: bool,
    ) -> Self {
        let trace = tally.trace();
        let cost = u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX);
        let timing = Timing { clock: tally.clock(), cost, steps: tally.steps };
        let mut profile = Profile::default();
        let mut kernel: Option<KvmCounters> = None;
        let has_counters = tally.merged == 0 && tally.vcpus.iter().all(|vcpu| vcpu.has_counters);
        for vcpu in &tally.vcpus {
            profile.absorb(&vcpu.profile);
            match (&mut kernel, &vcpu.kernel) {
                (Some(sum), Some(more)) => sum.absorb(more),
                (none @ None, Some(first)) => *none = Some(first.clone()),
                (_, None) => {}
            }
        }
        let vcpus = tally.vcpus.into_iter().map(|vcpu| ObservedVcpu {
            id: vcpu.id,
            profile: vcpu.profile,
            kernel: vcpu.kernel,
            last: vcpu.last.as_ref().map(reason).unwrap_or_default(),
            death: None,
        });
        Self {
            ending,
            elapsed,
            machines: tally.machines,
            vcpus: vcpus.collect(),
            profile,
            kernel: kernel.filter(|_| has_counters),
            trace,
            timing,
            lost: tally.lost,
            unrecorded: tally.unrecorded,
            is_hidden: tally.is_hidden,
            errors: tally.errors,
            unanswered: tally.answers.unanswered(),
            has_left_children: left,
            protection: Protection::None,
            missing: Vec::new(),
            hang: None,
        }
    }

    /// The vCPUs by name: `vCPU 0`, or `VM 2 vCPU 0` if there are several VMs.
    pub fn name(&self, vcpu: &ObservedVcpu) -> String {
        vcpu.id.map_or_else(|| "the other vCPUs".into(), |id| self.name_of(id))
    }

    /// The name of a vCPU, as [`name`](Self::name).
    pub fn name_of(&self, id: VcpuId) -> String {
        match id {
            VcpuId { vcpu, .. } if self.machines <= 1 => format!("vCPU {vcpu}"),
            VcpuId { vm, vcpu } => format!("VM {vm} vCPU {vcpu}"),
        }
    }

    /// Returns the measurements, from which files and tables are made.
    pub fn measured<'a>(&'a self, program: &'a str, ended: &'a str) -> Measured<'a> {
        let vcpus = (0..).zip(&self.vcpus).map(|(id, vcpu)| {
            let name = if self.machines > 1 { self.name(vcpu) + "; " } else { String::new() };
            let ended = match (&vcpu.death, vcpu.last.as_str()) {
                (Some(death), _) => name + death,
                (None, "") => name + "no exit",
                (None, last) => name + "last exit: " + last,
            };
            MeasuredVcpu { id, ended, profile: &vcpu.profile, kernel: vcpu.kernel.as_ref() }
        });
        let mut vcpus: Vec<_> = vcpus.collect();
        if vcpus.is_empty() {
            vcpus.push(MeasuredVcpu { id: 0, ended: "no vCPU".into(), profile: &self.profile, kernel: None });
        }
        Measured {
            guest: program,
            ended,
            processor: SavedProcessor::Kvm,
            elapsed: self.elapsed,
            timing: self.timing,
            profile: &self.profile,
            kernel: self.kernel.as_ref(),
            vcpus,
            marks: &[],
            trace: self.trace.as_ref(),
            devices: Devices::Named(device),
            setup: None,
            names: &[],
            samples: None,
            origin: None,
        }
    }

    /// Adds the deaths of guests to the ends of their vCPUs, which profiles contain.
    pub fn note_deaths(&mut self, deaths: &Deaths) {
        for death in deaths.iter().filter(|death| !death.is_refusal()) {
            let vcpu = self.vcpus.iter_mut().find(|vcpu| vcpu.id == Some(death.vcpu));
            if let Some(vcpu) = vcpu {
                vcpu.death = Some(death.to_string());
            }
        }
    }

    /// Adds the doubts about guests that halted to the ends of their vCPUs.
    pub fn note_doubts(&mut self, doubts: &Doubts) {
        for guest in doubts.iter() {
            if let Some(vcpu) = self.vcpus.iter_mut().find(|vcpu| vcpu.id == Some(guest.vcpu)) {
                vcpu.death.get_or_insert_with(|| format!("last exit: HLT, {}", guest.text()));
            }
        }
    }

    /// The errors of KVM_RUN as text, such as `Bad address (os error 14), 3 times`.
    pub fn errors(&self) -> impl Iterator<Item = (io::Error, u64)> {
        self.errors.iter().map(|(errno, count)| (io::Error::from_raw_os_error(*errno), *count))
    }
}

/// The name of every place. Only the program knows its devices.
fn device(site: &Site) -> Option<&'static str> {
    site.place.map(|_| "unnamed")
}
