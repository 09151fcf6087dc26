//! The checks of `vmm doctor`: can this host run guests, and if not, what is the next step?

use crate::boot::Image;
use crate::console::input::Input;
use crate::console::output::Output;
use crate::error::Error;
use crate::exit::Stop;
use crate::kvm::vcpu::KvmVcpu;
use crate::kvm::vm;
use crate::lab::check::{Check, CheckOutcome};
use crate::lab::debugging::probe_debugging;
use crate::lab::small_guests::run_two_instructions;
use crate::machine::{Machine, Processor};
use crate::memory::{Gpa, GuestMemory};
use crate::x86::modes::Mode;
use kvm_bindings::KVM_CAP_DISABLE_QUIRKS2;
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::fs::File;
use std::time::Duration;

/// A KVM capability that this program uses.
struct Capability {
    name: &'static str,
    /// The number in KVM's API.
    number: libc::c_ulong,
    /// True if guests cannot run without it.
    needed: bool,
    /// The consequence if it is missing, and the next step.
    advice: &'static str,
}

/// KVM_CAP_BINARY_STATS_FD, which kvm-ioctls has no name for.
const BINARY_STATS_FD: libc::c_ulong = 203;

const CAPABILITIES: &[Capability] = &[
    Capability {
        name: "KVM_CAP_USER_MEMORY",
        number: Cap::UserMemory as _,
        needed: true,
        advice: "guests cannot have memory: use a current Linux kernel",
    },
    Capability {
        name: "KVM_CAP_IMMEDIATE_EXIT",
        number: Cap::ImmediateExit as _,
        needed: true,
        advice: "a guest cannot be stopped at its timeout: use Linux 4.12 or later",
    },
    Capability {
        name: "KVM_CAP_SET_TSS_ADDR",
        number: Cap::SetTssAddr as _,
        needed: false,
        advice: "real-mode guests may fail on older Intel processors: use a current Linux kernel",
    },
    Capability {
        name: "KVM_CAP_EXT_CPUID",
        number: Cap::ExtCpuid as _,
        needed: false,
        advice: "guests cannot switch to long mode themselves: run guests with --cpuid none",
    },
    Capability {
        name: "KVM_CAP_SYNC_REGS",
        number: Cap::SyncRegs as _,
        needed: false,
        advice: "hypercalls and controllers read registers more slowly: use Linux 4.17 or later",
    },
    Capability {
        name: "KVM_CAP_X86_USER_SPACE_MSR",
        number: Cap::X86UserSpaceMsr as _,
        needed: false,
        advice: "MSRs cannot have rules or devices, and MSR accesses are not counted: use Linux 5.10 or later",
    },
    Capability {
        name: "KVM_CAP_X86_MSR_FILTER",
        number: Cap::X86MsrFilter as _,
        needed: false,
        advice: "MSRs that KVM handles cannot have rules or devices: use Linux 5.10 or later",
    },
    Capability {
        name: "KVM_CAP_IRQCHIP",
        number: Cap::Irqchip as _,
        needed: false,
        advice: "vmm boot cannot boot Linux: use a current Linux kernel on the host",
    },
    Capability {
        name: "KVM_CAP_IRQFD",
        number: Cap::Irqfd as _,
        needed: false,
        advice: "vmm boot cannot boot Linux: use a current Linux kernel on the host",
    },
    Capability {
        name: "KVM_CAP_IOEVENTFD",
        number: Cap::Ioeventfd as _,
        needed: false,
        advice: "vmm boot cannot boot Linux, and --transport doorbell does not work: use a current Linux kernel on the host",
    },
    Capability {
        name: "KVM_CAP_COALESCED_MMIO",
        number: Cap::CoalescedMmio as _,
        needed: false,
        advice: "--transport coalesced does not work: choose another transport",
    },
    Capability {
        name: "KVM_CAP_TSC_DEADLINE_TIMER",
        number: Cap::TscDeadlineTimer as _,
        needed: false,
        advice: "Linux guests may not find a timer: use a current Linux kernel on the host",
    },
    Capability {
        name: "KVM_CAP_READONLY_MEM",
        number: Cap::ReadonlyMem as _,
        needed: false,
        advice: "each read of a virtio register is an exit, which is slower: use a current Linux kernel on the host",
    },
    Capability {
        name: "KVM_CAP_BINARY_STATS_FD",
        number: BINARY_STATS_FD,
        needed: false,
        advice: "exits cannot be compared with KVM's own counts: use Linux 5.14 or later",
    },
    Capability {
        name: "KVM_CAP_DISABLE_QUIRKS2",
        number: KVM_CAP_DISABLE_QUIRKS2 as _,
        needed: false,
        advice: "a guest's vmcall may loop in KVM until the timeout: use Linux 5.17 or later",
    },
];

/// Checks everything that a run with KVM needs, in the order in which a run needs it. After a check that is
/// [`CheckOutcome::Bad`], checks that depend on it are left out.
pub fn examine() -> Vec<Check> {
    let mut checks = Vec::new();
    let kvm = match vm::open_kvm() {
        Ok(kvm) => {
            let version = kvm.get_api_version();
            checks.push(Check::of("/dev/kvm", Ok(format!("open, API version {version}"))));
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
            checks.push(Check::of("vCPU", create_vcpu(&vm)));
        }
        Err(error) => checks.push(Check::of("virtual machine", Err(error))),
    }
    if checks.iter().all(|check| check.outcome != CheckOutcome::Bad) {
        checks.extend(
            [Mode::Real, Mode::Protected, Mode::Long, Mode::User]
                .map(|mode| run_two_instructions(mode, Processor::Kvm)),
        );
        checks.extend(debugging());
        checks.push(run_breakpoint());
    }
    checks
}

fn capabilities(kvm: &Kvm) -> impl Iterator<Item = Check> {
    CAPABILITIES.iter().map(|capability| {
        let (outcome, found) = match (kvm.check_extension_raw(capability.number) > 0, capability.needed) {
            (true, _) => (CheckOutcome::Good, "available".into()),
            (false, true) => (CheckOutcome::Bad, format!("missing: {}", capability.advice)),
            (false, false) => (CheckOutcome::Missing, format!("missing: {}", capability.advice)),
        };
        Check { what: capability.name.into(), outcome, found }
    })
}

/// The number of files that a run opens, in addition to those that the program starts with: KVM, a VM, a vCPU and its
/// counters, copies of standard input and output, and a reserve.
const FILES: usize = 9;

/// Checks that a run can open its files.
fn files() -> Check {
    let opened: Result<Vec<_>, _> = (0..FILES).map(|_| File::open("/dev/null")).collect();
    let found = opened.map(|_| format!("at least {FILES} more can be opened, which is enough"));
    Check::of("open files", found.map_err(Error::host("opening the files of a run")))
}

fn create_vcpu(vm: &VmFd) -> Result<String, Error> {
    KvmVcpu::new(vm, 0, GuestMemory::none()).map(|_| "created".into())
}

/// Checks the facilities for debuggers. One that is missing needs the software processor.
fn debugging() -> Vec<Check> {
    let found = match probe_debugging(Processor::Kvm) {
        Ok(found) => found,
        Err(error) => return vec![Check::of("debugging", Err(error))],
    };
    let modes = [Mode::Real, Mode::Protected, Mode::Long, Mode::User];
    let (steps, fails): (Vec<_>, Vec<_>) = modes.into_iter().partition(|mode| found.steps_in(*mode));
    let names = |modes: &[Mode]| modes.iter().map(Mode::to_string).collect::<Vec<_>>().join(", ");
    let step = match (fails.is_empty(), steps.is_empty()) {
        (true, _) => (true, "work in all modes".into()),
        (_, true) => (false, "do not work".into()),
        _ => (false, format!("work in {} mode, not in {} mode", names(&steps), names(&fails))),
    };
    let of = |works| (works, String::from(if works { "work" } else { "do not work" }));
    [
        ("debugger: single steps", step),
        ("debugger: breakpoints", of(found.breakpoints)),
        ("debugger: watchpoints", of(found.watchpoints)),
        (
            "debugger: int3",
            (
                found.software,
                String::from(if found.software { "stops the vCPU" } else { "does not stop the vCPU" }),
            ),
        ),
        (
            "debugger: out",
            (
                found.output,
                String::from(if found.output { "leaves the guest" } else { "does not leave the guest" }),
            ),
        ),
    ]
    .into_iter()
    .map(|(what, (works, found))| match works {
        true => Check { what: what.into(), outcome: CheckOutcome::Good, found },
        false => Check {
            what: what.into(),
            outcome: CheckOutcome::Missing,
            found: format!("{found} with KVM on this host: use --vcpu soft"),
        },
    })
    .collect()
}

/// The address of the breakpoint guest.
const BREAKPOINT_GUEST: u64 = 0x1000;
/// At 0x1000, in long mode: lidt [0x1018]; int3; hlt. At 0x1010, the handler of #BP: xor eax, eax; out 0xf4, al. At 0x1018
/// the limit and the address of the IDT: 63, 0x1030.
const BREAKPOINT: &[u8] = &[
    0x0f, 0x01, 0x1c, 0x25, 0x18, 0x10, 0, 0, 0xcc, 0xf4, 0, 0, 0, 0, 0, 0, //
    0x31, 0xc0, 0xe6, 0xf4, 0, 0, 0, 0, 63, 0, 0x30, 0x10, 0, 0, 0, 0, //
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
/// The gate of #BP, entry 3 of the IDT: an interrupt gate to the handler (Intel SDM volume 3, section 6.14.1).
const BREAKPOINT_GATE: &[u8] = &[0x10, 0x10, 8, 0, 0, 0x8e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Checks that `int3` in ring 0 of long mode reaches the guest's handler. Current Linux kernels execute it early in the boot,
/// to test how they patch their own code. KVM hosts that emulate ring 0 cannot execute it.
fn run_breakpoint() -> Check {
    let what = "Linux guests";
    let run = || {
        let code = [BREAKPOINT, &[0; 48], BREAKPOINT_GATE].concat();
        let image = Image::flat(code, Mode::Long, Gpa(BREAKPOINT_GUEST))?;
        let machine =
            Machine::builder(image).processor(Some(Processor::Kvm)).timeout(Some(Duration::from_secs(5)));
        machine.output(Output::captured().0).input(Input::bytes(b"")).build()?.run()
    };
    match run() {
        Ok(report) if matches!(report.stop, Stop::Exited(0)) => {
            Check::of(what, Ok("int3 in ring 0 reaches the guest's handler".into()))
        }
        Ok(report) => {
            if let Some(error) = report.host_failure() {
                return Check::of(what, Err(error));
            }
            let end = match &report.stop {
                Stop::EmulationFailure(_) => "KVM cannot emulate that".into(),
                stop => format!("that ended with: {stop}"),
            };
            let found = format!(
                "use another host, or `make testbed`: Linux executes int3 in ring 0 when it boots, and here {end}"
            );
            Check { what: what.into(), outcome: CheckOutcome::Missing, found }
        }
        Err(error) => Check::of(what, Err(error)),
    }
}
