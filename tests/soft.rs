//! The software processor: what it promises beyond the guests and tests that it shares with KVM.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::Arguments;
use std::fmt::Debug;
use std::process::ExitCode;
use std::time::Duration;
use support::{assert_error, code, embedded, find, full_stream, plain_test, ran, run_machine, soft_test};
use vmm::boot::Image;
use vmm::controller::MsrRule;
use vmm::device::Transport;
use vmm::exit::{Exit, Stop};
use vmm::machine::Processor;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Captured, Machine, Output, Report};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        soft_test("two_runs_make_the_same_exits_in_the_same_order", same_exits),
        soft_test("a_machine_does_the_same_after_a_reset", same_after_reset),
        soft_test("a_machine_does_the_same_after_another_guest", same_after_load),
        soft_test("vcpus_take_turns_and_share_the_memory", turns),
        soft_test("a_guest_without_exits_ends_at_the_deadline", loops),
        soft_test("a_guest_that_only_makes_exits_ends_at_the_deadline", only_exits),
        soft_test("a_blocked_write_ends_at_the_deadline", blocked_write),
        soft_test("a_triple_fault_tells_its_exceptions", death),
        soft_test("an_exception_without_a_handler_is_named", no_handler),
        soft_test("a_rule_for_a_register_that_the_processor_has_applies", msr_rules),
        soft_test("an_irqchip_is_refused", irqchip),
        plain_test("the_summary_and_the_files_name_the_processor", named),
        plain_test("linux_is_refused_in_one_sentence", linux),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// The exits of a run, each with its vCPU and the guest's RIP.
fn exits(report: &Report) -> Vec<(u32, Exit, Option<u64>)> {
    let trace = report.trace.as_ref().expect("a trace");
    trace.exits().iter().map(|(vcpu, traced)| (*vcpu, traced.exit, traced.rip)).collect()
}

fn same_exits() {
    for (name, transport) in [
        ("smp-counter", Transport::Exit),
        ("smp-print", Transport::Exit),
        ("simvirtio", Transport::Exit),
        ("simvirtio-upper", Transport::Polling),
        ("simvirtio-doorbell", Transport::Doorbell),
        ("hostile-racing-head", Transport::Exit),
    ] {
        let run = || run_machine(embedded(find(name), Some(transport)).trace(Some(10_000)));
        let ((first, text), (second, again)) = (run(), run());
        assert_eq!(exits(&first), exits(&second), "{name}");
        assert_eq!((text, first.stop.to_string()), (again, second.stop.to_string()), "{name}");
        let rings = |report: &Report| report.simvirtio.as_ref().map(|device| device.rings);
        assert_eq!(rings(&first), rings(&second), "{name}");
    }
}

/// The exits of a run, its verdict, the text that it printed, and the registers at its end.
fn everything(machine: &mut Machine, text: &Captured) -> impl PartialEq + Debug + use<> {
    let printed = text.bytes().len();
    let report = machine.run().unwrap();
    let registers: Vec<_> = (0..machine.vcpu_count())
        .map(|index| {
            let vcpu = machine.vcpu(index).unwrap();
            (vcpu.regs().unwrap(), vcpu.sregs().unwrap())
        })
        .collect();
    (exits(&report), report.verdict, text.bytes().split_off(printed), registers)
}

fn same_after_reset() {
    for name in ["simvirtio", "smp-counter", "modes", "kev-msr"] {
        let (output, text) = Output::captured();
        let builder = embedded(find(name), Some(Transport::Polling)).trace(Some(10_000)).output(output);
        let mut machine = builder.processor(Some(Processor::Soft)).build().unwrap();
        let first = everything(&mut machine, &text);
        // The first reset fills all memory, and the later ones only what has changed.
        for _ in 0..3 {
            machine.reset().unwrap();
            assert_eq!(everything(&mut machine, &text), first, "{name}");
        }
    }
}

/// A guest that another one follows, and that is loaded again.
fn same_after_load() {
    let image = |code: &[u8]| Image::flat(code.to_vec(), Mode::Real, Gpa(0x1000)).unwrap();
    // mov al, 'a'; out 0xe9, al; inc byte [0x1001]; inc word [0x3000]; hlt
    let counts = [0xb0, b'a', 0xe6, 0xe9, 0xfe, 6, 1, 0x10, 0xff, 6, 0, 0x30, 0xf4];
    // mov ax, 0x1234; mov ds, ax; mov [0x3000], ax; mov al, 'b'; out 0xe9, al; hlt
    let stores = [0xb8, 0x34, 0x12, 0x8e, 0xd8, 0xa3, 0, 0x30, 0xb0, b'b', 0xe6, 0xe9, 0xf4];
    let (output, text) = Output::captured();
    let builder = Machine::builder(image(&counts)).trace(Some(100)).output(output);
    let mut machine = builder.processor(Some(Processor::Soft)).build().unwrap();
    let first = everything(&mut machine, &text);
    let mut words = [0; 2];
    machine.memory().read(Gpa(0x3000), &mut words);
    assert_eq!((words, text.bytes()), ([1, 0], b"a".into()));
    for _ in 0..3 {
        machine.load(image(&stores)).unwrap();
        everything(&mut machine, &text);
        assert_eq!(text.bytes().last(), Some(&b'b'));
        machine.load(image(&counts)).unwrap();
        assert_eq!(everything(&mut machine, &text), first);
        machine.memory().read(Gpa(0x3000), &mut words);
        assert_eq!(words, [1, 0]);
    }
}

/// Each of two vCPUs waits for the other in turn: lock xadd [0x9000], 1; then a wait until both have come; exit with the count.
/// mov eax, 1; lock xadd [0x9000], eax; wait: cmp dword [0x9000], 2; jne wait; test edi, edi; jz first; hlt;
/// first: mov al, 9; out 0xf4, al
const MEET: &[u8] = &[
    0xb8, 1, 0, 0, 0, 0xf0, 0x0f, 0xc1, 0x04, 0x25, 0, 0x90, 0, 0, 0x83, 0x3c, 0x25, 0, 0x90, 0, 0, 2, 0x75,
    0xf6, 0x85, 0xff, 0x74, 1, 0xf4, 0xb0, 9, 0xe6, 0xf4,
];

fn turns() {
    let (report, _) = run_machine(Machine::builder(code(MEET, Mode::Long)).cpus(2));
    assert!(matches!(report.stop, Stop::Exited(9)), "{}", report.stop);
}

fn loops() {
    let limit = Duration::from_millis(100);
    for mode in [Mode::Real, Mode::Protected, Mode::Long, Mode::User] {
        // jmp $
        let builder = Machine::builder(code(&[0xeb, 0xfe], mode)).timeout(Some(limit));
        let (report, _) = run_machine(builder);
        assert!(matches!(report.stop, Stop::Timeout(_)), "{}", report.stop);
        assert!(report.elapsed < Duration::from_secs(5), "{:?}", report.elapsed);
        let cause = report.cause().unwrap();
        assert!(cause.starts_with("it looped at 0x1000 (entered "), "{cause}");
    }
}

fn only_exits() {
    // again: in al, 0x42; jmp again
    let builder = Machine::builder(code(&[0xe4, 0x42, 0xeb, 0xfc], Mode::Real));
    let (report, _) = run_machine(builder.timeout(Some(Duration::from_millis(100))));
    assert!(matches!(report.stop, Stop::Timeout(_)), "{}", report.stop);
    assert!(report.elapsed < Duration::from_secs(5), "{:?}", report.elapsed);
}

fn blocked_write() {
    let (full, _reader) = full_stream();
    // again: mov al, 10; out 0xe9, al; jmp again
    let builder = Machine::builder(code(&[0xb0, 10, 0xe6, 0xe9, 0xeb, 0xfa], Mode::Real));
    let builder = builder.timeout(Some(Duration::from_millis(200))).output(Output::new(full, false));
    let report = builder.processor(Some(Processor::Soft)).build().unwrap().run().unwrap();
    assert!(matches!(report.stop, Stop::Timeout(_)), "{}", report.stop);
    assert!(report.elapsed < Duration::from_secs(10), "{:?}", report.elapsed);
}

fn death() {
    // mov [0x100000000], eax: the identity map ends there.
    let store = &[0xa3, 0, 0, 0, 0, 1, 0, 0, 0][..];
    let end = "; its delivery raised #GP (error code 0x73) for entry 14 of the IDT, and that of the double fault #GP (error \
               code 0x43) for entry 8 of the IDT";
    let (report, _) = run_machine(Machine::builder(code(store, Mode::Long)));
    assert!(matches!(report.stop, Stop::TripleFault), "{}", report.stop);
    let cause = report.cause().unwrap();
    assert!(cause.starts_with("#PF") && cause.contains("0x100000000") && cause.ends_with(end), "{cause}");
    // In real mode the exceptions of an IDT that is too short: lidt [0x1010]; div bl; the operand is zeroes.
    let short =
        &[0x0f, 0x01, 0x1e, 0x10, 0x10, 0xf6, 0xf3, 0xf4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..];
    let (report, _) = run_machine(Machine::builder(code(short, Mode::Real)));
    let cause = report.cause().unwrap_or_else(|| panic!("{}", report.stop));
    assert!(cause.starts_with("#DE: a division by zero"), "{cause}");
    assert!(cause.ends_with("; its delivery raised #GP, and that of the double fault #GP"), "{cause}");
}

fn no_handler() {
    let run = |code_bytes, mode| {
        let builder = Machine::builder(code(code_bytes, mode)).timeout(Some(Duration::from_millis(300)));
        let (report, _) = run_machine(builder);
        assert_eq!(report.suspicion(), None, "{}", report.stop);
        report.cause().unwrap_or_else(|| panic!("{}", report.stop)).to_owned()
    };
    let real: [(&'static [u8], &str, &str); 4] = [
        // nop; xor bx, bx; div bl
        (
            &[0x90, 0x31, 0xdb, 0xf6, 0xf3],
            "#DE (a division by zero",
            " at 0000:1003 went through the empty vector 0 of",
        ),
        // nop; ud2
        (
            &[0x90, 0x0f, 0x0b],
            "#UD (an undefined instruction",
            " at 0000:1001 went through the empty vector 6 of",
        ),
        // mov ax, 0x0e41; int 0x10
        (&[0xb8, 0x41, 0x0e, 0xcd, 0x10], "int 0x10 at 0000:1003 ", "the empty vector 16 of the IVT"),
        // mov ax, [0xffff]: its second byte is beyond the limit of DS.
        (
            &[0xa1, 0xff, 0xff],
            "#GP (an access beyond a segment's limit",
            " at 0000:1000 went through the empty vector 13 of",
        ),
    ];
    for (code, start, text) in real {
        let cause = run(code, Mode::Real);
        assert!(cause.starts_with(start) && cause.contains(text), "{cause}");
    }
    // lidt [0x1010]; ud2. The gate of #UD leads to 0x9000, where there is nothing.
    let mut protected = vec![0x0f, 0x01, 0x1d, 0x10, 0x10, 0, 0, 0x0f, 0x0b];
    protected.resize(0x10, 0x90);
    protected.extend([0x37, 0, 0x16, 0x10, 0, 0]);
    protected.resize(0x16 + 6 * 8, 0);
    protected.extend([0, 0x90, 8, 0, 0, 0x8e, 0, 0]);
    let cause = run(protected.leak(), Mode::Protected);
    let text = "#UD (an undefined instruction, or one of a feature that is off) at 0008:1007 entered its handler at 0008:9000, \
                where there are zeroes and no code";
    assert!(cause.starts_with(text), "{cause}");
}

fn msr_rules() {
    // mov ecx, 0x277; rdmsr; out 0xf4, al: IA32_PAT, whose low byte is 6.
    let read = &[0xb9, 0x77, 2, 0, 0, 0x0f, 0x32, 0xe6, 0xf4][..];
    let run = |rule| {
        let builder = Machine::builder(code(read, Mode::Long)).cpuid(true);
        run_machine(match rule {
            Some(rule) => builder.msr_rule(0x277, rule),
            None => builder,
        })
        .0
    };
    assert!(matches!(run(None).stop, Stop::Exited(6)), "{}", run(None).stop);
    assert!(matches!(run(Some(MsrRule::Ignore)).stop, Stop::Exited(0)));
    assert!(matches!(run(Some(MsrRule::Log)).stop, Stop::Exited(6)));
    assert!(matches!(run(Some(MsrRule::Deny)).stop, Stop::TripleFault));
}

fn irqchip() {
    let builder = Machine::builder(code(&[0xf4], Mode::Real)).irqchip(true).processor(Some(Processor::Soft));
    let refused = builder.build().unwrap_err().to_string();
    assert!(refused.starts_with("the software processor has no interrupt controllers"), "{refused}");
}

fn named() {
    let files = support::Files::new();
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_owned();
    let (profile, trace) = (path("run.json"), path("run.trace"));
    let measure = ["--profile", &format!("json={profile}"), "--trace", &trace];
    let run = ran(&[&["real16-hello", "--vcpu", "soft"][..], &measure].concat());
    assert_eq!(run.status, 0, "{}", run.stderr);
    assert!(run.stderr.contains(" ms on the software processor)\n"), "{}", run.stderr);
    assert!(
        run.stderr.contains(" in the software processor, ") && !run.stderr.contains("KVM_RUN"),
        "{}",
        run.stderr
    );
    for file in [&profile, &trace] {
        let shown = ran(&["report", file]).text();
        assert!(shown.contains("software processor"), "{shown}");
    }
    // A run on the other processor, as its file would have it.
    let text = std::fs::read_to_string(&profile).unwrap();
    let soft = "\"processor\":\"soft\"";
    assert!(text.contains(soft), "{text}");
    let other = files.write("kvm.json", text.replace(soft, "\"processor\":\"kvm\"").as_bytes());
    let note = "The processors differ (A: KVM, B: software processor): compare the exits, not the times.";
    assert!(ran(&["report", &other, &profile]).text().contains(note));
    assert!(!ran(&["report", &profile, &profile]).text().contains("The processors differ"));
}

fn linux() {
    let files = support::Files::new();
    let kernel = support::kernels::kernel(&files, &[support::kernels::POWER_OFF]);
    let refused = ran(&["boot", &kernel, "--vcpu", "soft"]);
    assert_error(&refused, 110, "Linux needs KVM, because the software processor is for small guests");
    assert!(refused.stderr.contains("make testbed"), "{}", refused.stderr);
}
