//! Whether this host can run guests, and what to do where it cannot: `vmm doctor`.

use crate::boot::Image;
use crate::console::input::Input;
use crate::console::output::Output;
use crate::error::Error;
use crate::exit::Stop;
use crate::kvm::vcpu::KvmVcpu;
use crate::kvm::vm;
use crate::machine::Machine;
use crate::memory::{Gpa, GuestMemory};
use crate::x86::modes::Mode;
use kvm_bindings::KVM_CAP_DISABLE_QUIRKS2;
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::fs::File;
use std::time::Duration;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// As it should be.
    Good,
    /// Something is missing that guests can do without.
    Missing,
    /// Guests cannot run.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Check {
    /// What it was.
    pub what: String,
    /// How it came out.
    pub outcome: CheckOutcome,
    /// What was found; where it is not good, also what to do or what is lost.
    pub found: String,
}

impl Check {
    fn of(what: impl Into<String>, result: Result<String, Error>) -> Self {
        let what = what.into();
        match result {
            Ok(found) => Self { what, outcome: CheckOutcome::Good, found },
            Err(error) => Self { what, outcome: CheckOutcome::Bad, found: error.to_string() },
        }
    }
}

/// A capability of KVM that this program uses.
struct Capability {
    name: &'static str,
    /// KVM's number of it.
    number: Cap,
    needed: bool,
    /// What is lost without it.
    lost: &'static str,
}

const CAPABILITIES: &[Capability] = &[
    Capability {
        name: "KVM_CAP_USER_MEMORY",
        number: Cap::UserMemory,
        needed: true,
        lost: "guests have no memory: use a current Linux kernel",
    },
    Capability {
        name: "KVM_CAP_IMMEDIATE_EXIT",
        number: Cap::ImmediateExit,
        needed: true,
        lost: "a guest cannot be ended in time: use Linux 4.12 or later",
    },
    Capability {
        name: "KVM_CAP_SET_TSS_ADDR",
        number: Cap::SetTssAddr,
        needed: false,
        lost: "real mode may fail on older Intel processors",
    },
    Capability {
        name: "KVM_CAP_EXT_CPUID",
        number: Cap::ExtCpuid,
        needed: false,
        lost: "guests cannot switch to long mode by themselves (run them with --cpuid none)",
    },
    Capability {
        name: "KVM_CAP_SYNC_REGS",
        number: Cap::SyncRegs,
        needed: false,
        lost: "hypercalls and controllers take longer to see registers (Linux 4.17 has it)",
    },
    Capability {
        name: "KVM_CAP_X86_USER_SPACE_MSR",
        number: Cap::X86UserSpaceMsr,
        needed: false,
        lost: "MSRs cannot have rules or devices, and are not counted (Linux 5.10 has it)",
    },
    Capability {
        name: "KVM_CAP_X86_MSR_FILTER",
        number: Cap::X86MsrFilter,
        needed: false,
        lost: "MSRs that KVM knows cannot have rules or devices (Linux 5.10 has it)",
    },
    Capability {
        name: "KVM_CAP_IRQCHIP",
        number: Cap::Irqchip,
        needed: false,
        lost: "vmm boot cannot boot Linux",
    },
    Capability {
        name: "KVM_CAP_IRQFD",
        number: Cap::Irqfd,
        needed: false,
        lost: "vmm boot cannot boot Linux",
    },
    Capability {
        name: "KVM_CAP_IOEVENTFD",
        number: Cap::Ioeventfd,
        needed: false,
        lost: "vmm boot cannot boot Linux, and no driver has a doorbell (--transport doorbell)",
    },
    Capability {
        name: "KVM_CAP_COALESCED_MMIO",
        number: Cap::CoalescedMmio,
        needed: false,
        lost: "stores of a driver cannot be queued (--transport coalesced)",
    },
    Capability {
        name: "KVM_CAP_TSC_DEADLINE_TIMER",
        number: Cap::TscDeadlineTimer,
        needed: false,
        lost: "Linux may not find a timer",
    },
    Capability {
        name: "KVM_CAP_READONLY_MEM",
        number: Cap::ReadonlyMem,
        needed: false,
        lost: "reading a register of a virtio device is an exit",
    },
];

/// KVM_CAP_BINARY_STATS_FD, which kvm-ioctls has no name for.
const BINARY_STATS_FD: libc::c_ulong = 203;

/// Looks at everything that a run needs, in its order. What comes after a check that is [`CheckOutcome::Bad`] may
/// be left out, since it cannot be good.
pub fn examine() -> Vec<Check> {
    let mut checks = Vec::new();
    let kvm = match vm::open_kvm() {
        Ok(kvm) => {
            let version = kvm.get_api_version();
            checks.push(Check::of("/dev/kvm", Ok(format!("opened; API version {version}"))));
            kvm
        }
        Err(error) => {
            checks.push(Check::of("/dev/kvm", Err(error)));
            return checks;
        }
    };
    checks.extend(capabilities(&kvm));
    checks.push(files());
    match kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM")) {
        Ok(vm) => {
            checks.push(Check::of("virtual machine", Ok("created".into())));
            checks.push(Check::of("virtual CPU", create_vcpu(&vm)));
        }
        Err(error) => checks.push(Check::of("virtual machine", Err(error))),
    }
    if checks.iter().all(|check| check.outcome != CheckOutcome::Bad) {
        checks.extend([Mode::Real, Mode::Protected, Mode::Long, Mode::User].map(run_two_instructions));
    }
    checks
}

fn capabilities(kvm: &Kvm) -> Vec<Check> {
    let check = |name: &str, there: bool, needed: bool, lost: &str| {
        let (outcome, found) = match (there, needed) {
            (true, _) => (CheckOutcome::Good, "there".into()),
            (false, true) => (CheckOutcome::Bad, format!("missing: {lost}")),
            (false, false) => (CheckOutcome::Missing, format!("missing: {lost}")),
        };
        Check { what: name.into(), outcome, found }
    };
    let mut checks: Vec<_> = CAPABILITIES
        .iter()
        .map(|capability| {
            let there = kvm.check_extension(capability.number);
            check(capability.name, there, capability.needed, capability.lost)
        })
        .collect();
    let stats = kvm.check_extension_raw(BINARY_STATS_FD) > 0;
    let lost = "counts cannot be compared with KVM's own (Linux 5.14 has it)";
    checks.push(check("KVM_CAP_BINARY_STATS_FD", stats, false, lost));
    let quirks = kvm.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into()) > 0;
    let lost = "a guest's vmcall may keep KVM busy until the guest's time is up (Linux 5.17 has it)";
    checks.push(check("KVM_CAP_DISABLE_QUIRKS2", quirks, false, lost));
    checks
}

/// How many files a run opens, beside those that the program is started with: KVM, a VM, a vCPU and its
/// counters, standard input and output once more, and some to spare.
const FILES: usize = 9;

/// Whether that many can be open.
fn files() -> Check {
    let spare: Result<Vec<_>, _> = (0..FILES).map(|_| File::open("/dev/null")).collect();
    Check::of("open files", spare.map(|_| "enough".into()).map_err(Error::host("opening files for a run")))
}

fn create_vcpu(vm: &VmFd) -> Result<String, Error> {
    KvmVcpu::new(vm, 0, GuestMemory::none()).map(|_| "created".into())
}

/// nop; hlt
const TWO_INSTRUCTIONS: &[u8] = &[0x90, 0xf4];
/// nop; out 0xf4, al: in ring 3 there is no hlt.
const TWO_OF_RING_3: &[u8] = &[0x90, 0xe6, 0xf4];

fn run_two_instructions(mode: Mode) -> Check {
    let what = format!("{mode} mode");
    let run = || {
        let code = if mode == Mode::User { TWO_OF_RING_3 } else { TWO_INSTRUCTIONS };
        let image = Image::flat(code, mode, Gpa(0x1000))?;
        let machine = Machine::builder(image).timeout(Some(Duration::from_secs(5)));
        machine.output(Output::captured().0).input(Input::bytes(b"")).build()?.run()
    };
    match run() {
        Ok(report) if matches!(report.stop, Stop::Halted | Stop::Exited(0)) => {
            Check::of(what, Ok("ran two instructions".into()))
        }
        Ok(report) => {
            let found = format!(
                "two instructions ended with: {}: this host's KVM does not run this mode",
                report.stop
            );
            Check { what, outcome: CheckOutcome::Bad, found }
        }
        Err(error) => Check::of(what, Err(error)),
    }
}
