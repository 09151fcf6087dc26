//! Exit controllers of the caller, the probe, and the rules for CPUID and MSRs.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::payloads::{HALT, READ_PORT};
use support::{
    Files, TRANSPORTS, assert_error, code, each_on_both, embedded, find, kvm_test, machine_test, ran,
    run_machine,
};
use vmm::Machine;
use vmm::controller::{ExitController, HYPERCALL_PRINT, KvmTranslation, MsrRule, VcpuState};
use vmm::device::Transport;
use vmm::exit::{Exit, Outcome, Reason, Site, Stop};
use vmm::x86::Mode;

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        machine_test("the_example_of_the_documentation_runs", example),
        kvm_test("a_probe_agrees_with_the_processor", probe_agrees),
        kvm_test("cpuid_that_kvm_refuses_is_a_usage_error", refused_cpuid),
        kvm_test("too_many_rules_are_refused", too_many_rules),
        kvm_test("the_guest_sees_the_vendor_of_the_host", vendor),
    ];
    tests.extend(each_on_both(&[
        ("a_controller_of_the_caller_comes_first", caller_first),
        ("an_unclaimed_exit_goes_to_the_next_controller", unclaimed),
        ("a_controller_reads_registers_and_memory_in_every_mode", sees_state),
        ("a_controller_can_change_registers", changes_state),
        ("a_controller_that_fails_ends_the_machine", fails),
        ("a_controller_that_panics_ends_the_machine", panics),
        ("a_controller_that_panics_in_its_drop_does_not_end_the_program", panics_at_the_end),
        ("a_halt_can_be_resumed", resumes_halt),
        ("the_first_vcpu_may_have_any_number", number_of_a_vcpu),
        ("cpuid_can_be_changed_from_the_command_line", cpuid_option),
        ("msr_rules_come_from_the_command_line", msr_option),
        ("an_msr_can_have_a_device", msr_device),
        ("a_guest_does_not_flood_the_log", msr_flood),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn example() {
    let ran = support::example("controller");
    assert_eq!(ran.text(), "vCPU 0 reads twice 21\nexited with code 42\n", "{}", ran.stderr);
    let source = include_str!("../vmm/examples/controller.rs");
    assert!(source.lines().count() < 40);
}

/// Makes a controller from a closure.
struct By<F>(F);

impl<F: FnMut(&Exit, &mut dyn VcpuState) -> Outcome> ExitController for By<F> {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        (self.0)(exit, vcpu)
    }
}

/// The controller claims the accesses to the debug console, which then prints nothing.
fn caller_first() {
    let taken: Arc<Mutex<Vec<u8>>> = Arc::default();
    let for_controller = taken.clone();
    let builder = embedded(find("real16-hello"), None).controller(move |_| {
        let taken = for_controller.clone();
        By(move |exit: &Exit, _: &mut dyn VcpuState| match *exit {
            Exit::PioOut { port: 0xe9, data, .. } => {
                taken.lock().unwrap().push(data as u8);
                Outcome::Resume
            }
            _ => Outcome::Unclaimed,
        })
    });
    let (report, output) = run_machine(builder);
    assert_eq!((output.as_slice(), taken.lock().unwrap().as_slice()), (&b""[..], &b"Hello, world!\n"[..]));
    assert_eq!(report.profile.unwrap().total().exits, 15, "claimed exits are counted too");
}

/// Neither controller claims anything, so both see every exit, in order.
fn unclaimed() {
    let seen: Arc<Mutex<Vec<u32>>> = Arc::default();
    let watcher = |which: u32| {
        let seen = seen.clone();
        move |_| {
            let seen = seen.clone();
            By(move |_: &Exit, _: &mut dyn VcpuState| {
                seen.lock().unwrap().push(which);
                Outcome::Unclaimed
            })
        }
    };
    let builder = embedded(find("real16-in"), None).controller(watcher(1)).controller(watcher(2));
    let (report, _) = run_machine(builder);
    assert!(report.verdict.unwrap().passed());
    assert_eq!(*seen.lock().unwrap(), [1, 2, 1, 2, 1, 2]);
}

/// At the hypercall, RDI has the address of the text. The probe reads the text in each mode.
fn sees_state() {
    for name in ["kev-hypercall", "kev-hypercall32", "kev-hypercall16"] {
        let text: Arc<Mutex<Vec<u8>>> = Arc::default();
        let for_controller = text.clone();
        let builder = embedded(find(name), None).controller(move |id| {
            let text = for_controller.clone();
            By(move |exit: &Exit, vcpu: &mut dyn VcpuState| {
                assert_eq!(vcpu.id(), id);
                if let Exit::Hypercall { number: HYPERCALL_PRINT } = exit {
                    let regs = vcpu.regs().unwrap();
                    assert_eq!(regs.rsi, 16);
                    text.lock().unwrap().resize(16, 0);
                    vcpu.probe().unwrap().read(regs.rdi, &mut text.lock().unwrap()).unwrap();
                }
                Outcome::Unclaimed
            })
        });
        let (report, output) = run_machine(builder);
        assert!(report.verdict.unwrap().passed(), "{name}");
        assert_eq!(*text.lock().unwrap(), output, "{name}");
    }
}

/// mov eax, 1; out 0x42, al; mov [0x400], rax; hlt
const LEAVE_1: &[u8] = &[0xb8, 1, 0, 0, 0, 0xe6, 0x42, 0x48, 0x89, 0x04, 0x25, 0, 4, 0, 0, 0xf4];

/// The controller changes RAX to 42 at the exit.
fn changes_state() {
    let builder = Machine::builder(code(LEAVE_1, Mode::Long)).verify(true).controller(|_| {
        By(|exit: &Exit, vcpu: &mut dyn VcpuState| match exit {
            Exit::PioOut { port: 0x42, .. } => {
                let mut regs = vcpu.regs().unwrap();
                regs.rax = 42;
                vcpu.set_regs(&regs).unwrap();
                assert_eq!(vcpu.regs().unwrap().rax, 42);
                Outcome::Resume
            }
            _ => Outcome::Unclaimed,
        })
    });
    let (report, _) = run_machine(builder);
    assert!(report.verdict.unwrap().passed(), "{:?}", report.verdict);
}

/// Compares KVM_TRANSLATE with our own walk of the page tables.
fn probe_agrees() {
    let compared = Arc::new(AtomicU32::new(0));
    let count = compared.clone();
    let builder = embedded(find("modes"), None).controller(move |_| {
        let count = count.clone();
        By(move |exit: &Exit, vcpu: &mut dyn VcpuState| {
            if matches!(exit, Exit::PioOut { .. } | Exit::Hlt) {
                let probe = vcpu.probe().unwrap();
                for linear in [0, 0x1000, 0x1234, 0xf_ffff, 0x10_0000, 0xfffc_0000, 0xffff_ffff] {
                    let expected = match vcpu.translate(linear) {
                        KvmTranslation::Unavailable => continue,
                        KvmTranslation::NotMapped => None,
                        KvmTranslation::Mapped(gpa) => Some(gpa),
                    };
                    let walked = probe.translate_linear(linear).ok().map(|mapping| mapping.gpa);
                    assert_eq!(walked, expected, "{linear:#x}");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            Outcome::Unclaimed
        })
    });
    let (report, _) = run_machine(builder);
    assert!(report.verdict.unwrap().passed());
    assert!(compared.load(Ordering::Relaxed) > 0, "every x86 host has KVM_TRANSLATE");
}

fn fails() {
    for (cpus, transport) in [(1, TRANSPORTS[0]), (4, TRANSPORTS[0]), (1, TRANSPORTS[1]), (4, TRANSPORTS[1])]
    {
        let builder = embedded(find("smp-print"), Some(transport)).cpus(cpus).controller(|id| {
            By(move |exit: &Exit, _: &mut dyn VcpuState| match exit {
                Exit::Hypercall { .. } if id == 0 => Outcome::failed("no ink"),
                _ => Outcome::Unclaimed,
            })
        });
        let (report, _) = run_machine(builder);
        assert!(matches!(report.stop, Stop::ControllerFailed(_)), "{}", report.stop);
        assert_eq!(report.stop.to_string(), "an exit controller failed: no ink");
    }
}

fn panics() {
    for transport in TRANSPORTS {
        panics_by(transport);
    }
}

/// The controller of vCPU 3 panics while the other vCPUs loop.
fn panics_by(transport: Transport) {
    let started = Instant::now();
    let builder = Machine::builder(code(READ_PORT, Mode::Real)).cpus(4).transport(Some(transport));
    let builder = builder.timeout(Some(Duration::from_secs(60))).controller(|id| {
        let mut left = 100;
        By(move |_: &Exit, _: &mut dyn VcpuState| {
            left -= 1;
            assert!(id != 3 || left > 0, "this is the panic of a test");
            Outcome::Unclaimed
        })
    });
    let (report, _) = run_machine(builder);
    assert!(report.stop.to_string().contains("it panicked: this is the panic of a test"), "{}", report.stop);
    assert!(started.elapsed() < Duration::from_secs(30));
    let others = report.vcpus.iter().filter(|vcpu| matches!(vcpu.stop, Stop::Interrupted)).count();
    assert_eq!((report.vcpus.len(), others), (4, 3), "{:?}", report.vcpus);
}

/// hlt; mov ax, 42; mov [0x400], ax; hlt
const HALT_TWICE: &[u8] = &[0xf4, 0xb8, 42, 0, 0xa3, 0, 4, 0xf4];

/// The guest goes on after a HLT that the controller answers with `Resume`.
fn resumes_halt() {
    let builder = Machine::builder(code(HALT_TWICE, Mode::Real)).verify(true).controller(|_| {
        let mut first = true;
        By(move |exit: &Exit, _: &mut dyn VcpuState| match exit {
            Exit::Hlt if std::mem::take(&mut first) => Outcome::Resume,
            _ => Outcome::Unclaimed,
        })
    });
    assert!(run_machine(builder).0.verdict.unwrap().passed());
}

fn number_of_a_vcpu() {
    for number in [0, 1, 0xba] {
        let (report, _) = run_machine(embedded(find("kev-cpuid"), None).first_vcpu(number));
        assert!(report.verdict.unwrap().passed(), "{number:#x}");
    }
}

/// Exits with bit 24 of ECX of leaf 1: mov eax, 1; cpuid; bt ecx, 24; setc al; out 0xf4, al
const EXIT_WITH_CPUID_BIT: &[u8] =
    &[0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x0f, 0xba, 0xe1, 24, 0x0f, 0x92, 0xc0, 0xe6, 0xf4];

fn cpuid_option() {
    let files = Files::new();
    let bit = files.write("bit", EXIT_WITH_CPUID_BIT);
    let bit = format!("{bit}@0x1000:64");
    assert_eq!(ran(&[&bit, "--cpuid", "1.ecx.24=1"]).status, 1);
    assert_eq!(ran(&[&bit, "--cpuid", "1.ecx.24=1", "--cpuid", "1.ecx.24=0"]).status, 0);
    assert_eq!(ran(&[&bit, "--cpuid", "none"]).status, 0);
    assert_error(
        &ran(&[&bit, "--cpuid", "none", "--cpuid", "1.ecx.24=1"]),
        110,
        "--cpuid none excludes changes to CPUID",
    );
    let wrong = ran(&[&bit, "--cpuid", "1.ecx.32=1"]);
    assert!(wrong.status == 110 && wrong.stderr.contains("is not a change to CPUID"), "{}", wrong.stderr);
    assert_eq!(ran(&["kev-cpuid", "--cpuid", "1.ebx.31-24=0xba"]).status, 111, "vCPU 0 sees the number 0xba");
}

/// mov ecx, 0xabd; rdmsr; hlt
const READ_UNKNOWN_MSR: &[u8] = &[0xb9, 0xbd, 0x0a, 0, 0, 0x0f, 0x32, 0xf4];

fn msr_option() {
    let rules = ran(&["kev-msr-rules"]);
    assert_eq!(rules.status, 0, "{}", rules.stderr);
    for text in [
        "warn: vCPU 0 writes 0x7000 to MSR 0x176",
        "vCPU 0 reads MSR 0x176\n",
        "rule: deny",
        "3 RDMSR, 3 WRMSR",
    ] {
        assert!(rules.stderr.contains(text), "{text}: {}", rules.stderr);
    }
    assert_eq!(ran(&["kev-msr-rules", "--msr", "0x174=log"]).status, 111, "the last rule is used");
    let wrong = ran(&["kev-msr-rules", "--msr", "0x174=perhaps"]);
    assert!(wrong.status == 110 && wrong.stderr.contains("give deny, ignore or log"), "{}", wrong.stderr);
    // The guest has no handler for #GP, so it ends with a triple fault. The report names the register.
    let files = Files::new();
    let unknown = files.write("unknown", READ_UNKNOWN_MSR);
    let unknown = ran(&[&format!("{unknown}@0x1000:64")]);
    assert_eq!(unknown.status, 112, "{}", unknown.stderr);
    assert!(unknown.stderr.contains("unclaimed accesses: RDMSR 0xabd (once)"), "{}", unknown.stderr);
}

/// Writes and reads MSR 0x10, the time stamp counter: mov ecx, 0x10; mov eax, 7; xor edx, edx; wrmsr; rdmsr;
/// out 0xf4, al
const WRITE_AND_READ_MSR: &[u8] =
    &[0xb9, 0x10, 0, 0, 0, 0xb8, 7, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0x0f, 0x32, 0xe6, 0xf4];

/// The device replaces a register that KVM implements.
fn msr_device() {
    let fifo = Arc::new(Mutex::new(vmm::device::Fifo::default()));
    let image = code(WRITE_AND_READ_MSR, Mode::Long);
    let (report, _) = run_machine(Machine::builder(image).msr_device(0x10, fifo).unwrap());
    assert!(matches!(report.stop, Stop::Exited(7)), "{}", report.stop);
    let site = Site { reason: Reason::WrMsr, place: Some((0x10, 8)) };
    assert_eq!(report.device_at(&site), Some(vmm::device::DeviceName::device("FIFO")));
}

fn too_many_rules() {
    let builder = (0..17).fold(Machine::builder(code(HALT, Mode::Real)), |builder, index| {
        builder.msr_rule(index, MsrRule::Ignore)
    });
    let refused = builder.build().expect_err("KVM's filter has 16 ranges");
    assert!(refused.to_string().contains("KVM's filter takes 16: remove some"), "{refused}");
}

/// Prints the first 8 letters of the vendor: xor eax, eax; cpuid; mov [0x400], ebx; mov [0x404], edx; mov esi, 0x400;
/// mov ecx, 8; mov edx, 0xe9; rep outsb; hlt
const PRINT_VENDOR: &[u8] = &[
    0x31, 0xc0, 0x0f, 0xa2, 0x89, 0x1c, 0x25, 0, 4, 0, 0, 0x89, 0x14, 0x25, 4, 4, 0, 0, 0xbe, 0, 4, 0, 0,
    0xb9, 8, 0, 0, 0, 0xba, 0xe9, 0, 0, 0, 0xf3, 0x6e, 0xf4,
];

fn vendor() {
    let (_, output) = run_machine(Machine::builder(code(PRINT_VENDOR, Mode::Long)).cpuid(true));
    let host = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let vendor = host.lines().find_map(|line| line.strip_prefix("vendor_id")).unwrap();
    assert_eq!(output, vendor.trim_start_matches([' ', '\t', ':']).as_bytes()[..8]);
}

/// A controller that panics when its machine is dropped does not end the program.
fn panics_at_the_end() {
    struct Bomb(Arc<Mutex<u32>>);
    impl Drop for Bomb {
        fn drop(&mut self) {
            *self.0.lock().unwrap() += 1;
            panic!("this is the panic of a test");
        }
    }
    for transport in TRANSPORTS {
        let dropped: Arc<Mutex<u32>> = Arc::default();
        for cpus in [1, 3] {
            let counter = dropped.clone();
            let builder = Machine::builder(code(HALT, Mode::Protected)).cpus(cpus).transport(Some(transport));
            let builder = builder.controller(move |_| {
                let bomb = Bomb(counter.clone());
                By(move |_: &Exit, _: &mut dyn VcpuState| {
                    let _ = &bomb;
                    Outcome::Unclaimed
                })
            });
            let (report, _) = run_machine(builder);
            assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
        }
        assert_eq!(*dropped.lock().unwrap(), 4);
    }
}

fn refused_cpuid() {
    let refused = ran(&["kev-hypercall", "--cpuid", "0x80000008.eax=0xffff"]);
    // Some versions of KVM accept it.
    if refused.status != 0 {
        assert_error(&refused, 110, "KVM refuses the CPUID leaves that --cpuid asks for");
    }
    assert_error(&ran(&["smp-counter", "--cpus", "2", "--cpuid", "none"]), 110, "needs a single vCPU, not 2");
}

/// mov ecx, 0x174; again: rdmsr; jmp again
const READ_MSR: &[u8] = &[0x66, 0xb9, 0x74, 1, 0, 0, 0x0f, 0x32, 0xeb, 0xfc];

/// The accesses that are not logged are counted.
fn msr_flood() {
    let files = Files::new();
    let guest = files.write("flood", READ_MSR);
    let flood = ran(&[&guest, "--msr", "0x174=log", "--timeout", "1"]);
    assert_eq!(flood.status, 114, "{}", flood.stderr);
    assert_eq!(flood.stderr.matches("vCPU 0 reads MSR 0x174").count(), 100);
    assert_eq!(flood.stderr.matches("further ones are counted, but not logged").count(), 1);
    let counted = flood.stderr.lines().find_map(|line| line.strip_suffix(" RDMSR")?.rsplit(' ').next());
    assert!(counted.unwrap().parse::<u64>().unwrap() > 100, "{}", flood.stderr);
}
