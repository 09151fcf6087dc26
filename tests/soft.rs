//! The software processor: what it promises beyond the guests and tests that it shares with KVM.
#![allow(clippy::unwrap_used)]

mod support;

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
        soft_test("a_handler_without_code_is_named_also_if_its_fault_repeats", repeated_fault),
        soft_test("a_missing_part_of_the_processor_is_named", missing_parts),
        soft_test("the_end_of_memory_is_named", end_of_memory),
        soft_test("a_guest_that_strays_into_the_window_is_told_how", strays_into_window),
        soft_test("vmcall_does_not_blame_the_host", vmcall),
        soft_test("a_rule_for_a_register_that_the_processor_has_applies", msr_rules),
        soft_test("an_irqchip_is_refused", irqchip),
        plain_test("the_summary_and_the_files_name_the_processor", named),
        plain_test("linux_is_refused_in_one_sentence", linux),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
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
    let (report, _) = run_machine(Machine::builder(code(store, Mode::Long)));
    assert!(matches!(report.stop, Stop::TripleFault), "{}", report.stop);
    let cause = report.cause().unwrap();
    assert_eq!(cause, "#PF: the operand's address, 0x100000000, is not mapped");
    let list = "  exceptions   1. #PF (error code 0x2) for a write to 0x100000000, which is not mapped\n               \
                2. #GP (error code 0x73) at the delivery of #PF: the IDT has no entry 14 (its limit is 0x0)\n               \
                3. #GP (error code 0x43) at the delivery of the double fault (#DF): the IDT has no entry 8 (its limit is \
                0x0)\n  instruction ";
    let text = explanation(&report);
    assert!(text.starts_with(list), "{text}");
    // In real mode the exceptions of an IDT that is too short: lidt [0x1010]; div bl; the operand is zeroes.
    let short =
        &[0x0f, 0x01, 0x1e, 0x10, 0x10, 0xf6, 0xf3, 0xf4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..];
    let (report, _) = run_machine(Machine::builder(code(short, Mode::Real)));
    let cause = report.cause().unwrap_or_else(|| panic!("{}", report.stop));
    assert!(cause.starts_with("#DE: a division by zero"), "{cause}");
    let text = explanation(&report);
    assert!(text.contains("  2. #GP at the delivery of #DE\n"), "{text}");
    assert!(text.contains("  3. #GP at the delivery of the double fault (#DF)\n"), "{text}");
}

/// The lines of the explanation.
fn explanation(report: &Report) -> String {
    report.explanation.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn no_handler() {
    let run = |code_bytes, mode| {
        let builder = Machine::builder(code(code_bytes, mode)).timeout(Some(Duration::from_millis(300)));
        let (report, _) = run_machine(builder);
        assert_eq!(report.suspicion(), None, "{}", report.stop);
        report.cause().map_or_else(|| report.stop.to_string(), ToOwned::to_owned)
    };
    let real: [(&'static [u8], &str, &str); 3] = [
        // nop; xor bx, bx; div bl
        (
            &[0x90, 0x31, 0xdb, 0xf6, 0xf3],
            "#DE (a division by zero",
            " at 0000:1003, for which the guest has no",
        ),
        // nop; ud2
        (&[0x90, 0x0f, 0x0b], "#UD (", " at 0000:1001, for which the guest has no"),
        // mov ax, [0xffff]: its second byte is beyond the limit of DS.
        (&[0xa1, 0xff, 0xff], "#GP (", " at 0000:1000, for which the guest has no"),
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

/// A gate of long mode that leads to an address which is not mapped, for #UD and #PF. The handler of #UD cannot be fetched, and
/// neither can that of the #PF which this raises, without end.
fn repeated_fault() {
    // lidt [0x1010]; ud2
    let mut long = vec![0x0f, 0x01, 0x1c, 0x25, 0x10, 0x10, 0, 0, 0x0f, 0x0b];
    long.resize(0x10, 0x90);
    long.extend([0xff, 0, 0x1a, 0x10, 0, 0, 0, 0, 0, 0]);
    for _ in 0..16 {
        long.extend([0, 0xa0, 8, 0, 0, 0x8e, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0]);
    }
    let (report, _) = run_machine(
        Machine::builder(code(long.leak(), Mode::Long)).timeout(Some(Duration::from_millis(300))),
    );
    let cause = report.cause().unwrap_or_else(|| panic!("{}", report.stop));
    let text = "#UD (an undefined instruction, or one of a feature that is off) at 0008:1008 entered its handler at \
                0008:200000a000, which is not mapped";
    assert!(cause.starts_with(text), "{cause}");
}

fn missing_parts() {
    // lgdt [0x1010]; jmp 0x18:0, which is a TSS. The GDT is at 0x1018.
    let mut task_switch = vec![0x0f, 0x01, 0x15, 0x10, 0x10, 0, 0, 0xea, 0, 0, 0, 0, 0x18, 0];
    task_switch.resize(0x10, 0x90);
    task_switch.extend([31, 0, 0x18, 0x10, 0, 0, 0, 0]);
    task_switch.extend([0; 8]);
    task_switch.extend([0xff, 0xff, 0, 0, 0, 0x9b, 0xcf, 0, 0xff, 0xff, 0, 0, 0, 0x93, 0xcf, 0]);
    task_switch.extend([0x67, 0, 0, 0x20, 0, 0x89, 0, 0]);
    // lidt [0x1010]; int3. The gate of #BP is a task gate.
    let mut task_gate = vec![0x0f, 0x01, 0x1d, 0x10, 0x10, 0, 0, 0xcc];
    task_gate.resize(0x10, 0x90);
    task_gate.extend([31, 0, 0x18, 0x10, 0, 0, 0, 0]);
    task_gate.extend([0; 24]);
    task_gate.extend([0, 0, 0x18, 0, 0, 0x85, 0, 0]);
    // push 0x20002 (EFLAGS with VM); push 0; push 0x2000; iret
    let virtual_8086 = vec![0x68, 2, 0, 2, 0, 0x6a, 0, 0x68, 0, 0x20, 0, 0, 0xcf];
    // mov eax, 1; mov dr7, eax
    let breakpoint = vec![0xb8, 1, 0, 0, 0, 0x0f, 0x23, 0xf8];
    // fld1; fadd st0, st1
    let x87 = vec![0xd9, 0xe8];
    for (bytes, text) in [
        (task_switch, "the software processor does not have hardware task switches"),
        (task_gate, "the software processor does not have hardware task switches"),
        (virtual_8086, "the software processor does not have virtual-8086 mode"),
        (breakpoint, "the software processor does not have breakpoints in debug registers"),
        (x87, "the software processor does not have an instruction: d9 e8"),
    ] {
        let (report, _) = run_machine(Machine::builder(code(bytes.leak(), Mode::Protected)));
        let stop = report.stop.to_string();
        assert!(stop.starts_with(text), "{stop}");
        assert_eq!(report.suspicion(), None, "{stop}");
    }
}

fn end_of_memory() {
    // mov eax, 42, near the end of 1 MiB.
    let image = Image::flat(vec![0xb8, 42, 0, 0, 0], Mode::Protected, Gpa(0xf_fe00)).unwrap();
    let (report, _) = run_machine(Machine::builder(image));
    let stop = report.stop.to_string();
    assert_eq!(stop, "the guest reached the end of its memory in the middle of an instruction: 00");
    let cause = report.suspicion().unwrap_or("none");
    assert!(cause.ends_with("through zeroed memory, to the end of its memory"), "{cause}");
}

fn strays_into_window() {
    let files = support::Files::new();
    // mov ax, 42; mov [0x400], ax; ret, at address 0: the guest runs from 0 to the end of its segment, again and again.
    let file = files.write("returns", &[0xb8, 42, 0, 0xa3, 0, 4, 0xc3]);
    let run = ran(&[&format!("{file}@0:16"), "--transport", "polling"]);
    assert_eq!(run.status, 113, "{}", run.stderr);
    let text = "outside its image (0x0 to 0x6): probably the entry point returned (a ret, and nothing had called it)";
    assert!(run.stderr.contains(text), "{}", run.stderr);
    assert!(!run.stderr.contains("struct device_t"), "{}", run.stderr);
}

fn vmcall() {
    let (report, _) = run_machine(Machine::builder(code(&[0x0f, 0x01, 0xc1], Mode::Long)));
    let cause = report.cause().unwrap_or("none");
    assert!(cause.starts_with("#UD: vmcall does not exist on the software processor: "), "{cause}");
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
        assert!(shown.contains("software processor") && shown.contains("- in the CPU -"), "{shown}");
        assert!(!shown.contains("in KVM"), "{shown}");
        let page = ran(&["report", file, "--format", "html"]).text();
        assert!(page.contains("in the software processor") && !page.contains("in KVM"), "{page}");
    }
    // A run on the other processor, as its file would have it.
    let text = std::fs::read_to_string(&profile).unwrap();
    let soft = "\"processor\":\"soft\"";
    assert!(text.contains(soft), "{text}");
    let other = files.write("kvm.json", text.replace(soft, "\"processor\":\"kvm\"").as_bytes());
    // The time before the first exit is the decoding of the guest.
    let headline = "most exits: debug console, 93.3 % of 15 exits\n";
    assert!(ran(&["report", &profile]).text().contains(headline));
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
