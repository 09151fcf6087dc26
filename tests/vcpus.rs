//! Machines with several vCPUs: the ends of one vCPU and of all, and vCPUs that do not block each other.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::kernels::kernel;
use support::payloads::{FIRST_HALTS, HALT, LOOP, PRINT_LINES};
use support::{
    Files, TRANSPORT_NAMES, TRANSPORTS, assert_error, code, each_on_both, embedded, find, full_stream,
    kvm_test, processor, ran, run_machine, shell, vmm,
};
use vmm::boot::Image;
use vmm::device::Transport;
use vmm::exit::Stop;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Input, Machine, Output};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        kvm_test("an_irqchip_needs_a_single_vcpu", irqchip_alone),
        kvm_test("a_vcpu_that_never_ran_is_not_blamed_for_a_timeout", never_started),
    ];
    tests.extend(each_on_both(&[
        ("wrong_numbers_of_vcpus_are_refused", wrong_cpus),
        ("the_largest_number_of_vcpus_works", most_cpus),
        ("every_mode_has_a_stack_for_each_vcpu", stacks),
        ("a_halt_stops_one_vcpu_only", halt_of_one),
        ("the_deadline_ends_all_vcpus", timeout_of_all),
        ("a_fault_of_one_vcpu_ends_all", fault_of_one),
        ("a_signal_ends_all_vcpus_halted_or_running", signals),
        ("vcpus_share_the_device_window", shared_window),
        ("exits_are_counted_for_each_vcpu", counts),
        ("many_machines_with_several_vcpus_end", many_ends),
        ("a_signal_ends_vcpus_that_are_blocked_in_writes", signal_while_stalled),
        ("a_blocked_device_thread_does_not_block_the_end", blocked_device_thread),
        ("the_report_explains_the_vcpu_that_crashed", crashed_vcpu),
        ("the_end_of_one_vcpu_ends_those_that_are_blocked", end_while_blocked),
        ("a_limit_ends_vcpus_that_are_blocked", limit_while_blocked),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn wrong_cpus() {
    for cpus in ["0", "33", "1000", "4294967295"] {
        assert_error(&ran(&["smp-counter", "--cpus", cpus]), 110, "--cpus must be 1 to 32, not ");
    }
    assert_eq!(ran(&["smp-counter", "--cpus", "many"]).status, 110);
}

fn most_cpus() {
    for transport in TRANSPORTS {
        let machine = embedded(find("smp-counter"), Some(transport)).cpus(32);
        let (report, _) = run_machine(machine.timeout(Some(Duration::from_secs(50))));
        assert!(report.verdict.unwrap().passed());
        assert_eq!(report.vcpus.len(), 32);
    }
}

/// Pushes the number of the vCPU a thousand times and checks the top of the stack, in real mode: mov cx, 0x400;
/// again: push edi; loop again; pop eax; cmp eax, edi; jne $; hlt
const PUSH_NUMBER_REAL: &[u8] =
    &[0xb9, 0, 4, 0x66, 0x57, 0xe2, 0xfc, 0x66, 0x58, 0x66, 0x39, 0xf8, 0x75, 0xfe, 0xf4];
/// The same in protected and long mode, with mov ecx, 0x400
const PUSH_NUMBER: &[u8] = &[0xb9, 0, 4, 0, 0, 0x57, 0xe2, 0xfd, 0x58, 0x39, 0xf8, 0x75, 0xfe, 0xf4];

fn stacks() {
    for (image, mode) in
        [(PUSH_NUMBER_REAL, Mode::Real), (PUSH_NUMBER, Mode::Protected), (PUSH_NUMBER, Mode::Long)]
    {
        for transport in TRANSPORTS {
            let machine = Machine::builder(code(image, mode)).cpus(8).transport(Some(transport));
            let (report, _) = run_machine(machine);
            assert!(matches!(report.stop, Stop::Halted), "{mode:?}: {}", report.stop);
        }
    }
}

/// vCPU 0 halts at once, and vCPU 1 prints first: test edi, edi; jz end; mov ecx, 300; again: loop again; mov al, 'x';
/// out 0xe9, al; end: hlt
const SECOND_PRINTS: &[u8] =
    &[0x85, 0xff, 0x74, 0x0b, 0xb9, 0x2c, 1, 0, 0, 0xe2, 0xfe, 0xb0, b'x', 0xe6, 0xe9, 0xf4];

fn halt_of_one() {
    for transport in TRANSPORTS {
        let machine = Machine::builder(code(SECOND_PRINTS, Mode::Protected)).transport(Some(transport));
        let (report, output) = run_machine(machine.cpus(2));
        assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
        assert_eq!(output, b"x");
        let ends: Vec<_> =
            report.vcpus.iter().map(|vcpu| (vcpu.id, vcpu.stop.to_string(), vcpu.location)).collect();
        assert_eq!(ends, [(0, "halted".into(), None), (1, "halted".into(), None)]);
    }
}

fn timeout_of_all() {
    const TIMEOUT: Duration = Duration::from_millis(200);
    for (image, halted) in [(LOOP, 0), (FIRST_HALTS, 1)] {
        for transport in TRANSPORTS {
            let late = || {
                let machine = Machine::builder(code(image, Mode::Protected)).cpus(4);
                let (report, _) = run_machine(machine.transport(Some(transport)).timeout(Some(TIMEOUT)));
                assert!(matches!(report.stop, Stop::Timeout(_)), "{}", report.stop);
                let found = report.vcpus.iter().filter(|vcpu| matches!(vcpu.stop, Stop::Halted)).count();
                assert_eq!(found, halted);
                report.elapsed.saturating_sub(TIMEOUT)
            };
            let least = (0..3).map(|_| late()).min().unwrap();
            assert!(least < Duration::from_millis(200), "{least:?}");
        }
    }
}

/// vCPU 0 loops and the others crash: test edi, edi; jz $; ud2
const ALL_BUT_FIRST_CRASH: &[u8] = &[0x85, 0xff, 0x74, 0xfe, 0x0f, 0x0b];

fn fault_of_one() {
    for transport in TRANSPORTS {
        let machine = Machine::builder(code(ALL_BUT_FIRST_CRASH, Mode::Protected)).transport(Some(transport));
        let (report, _) = run_machine(machine.cpus(3).timeout(Some(Duration::from_secs(60))));
        assert!(matches!(report.stop, Stop::TripleFault), "{}", report.stop);
        assert!(matches!(report.vcpus[0].stop, Stop::Interrupted), "{:?}", report.vcpus);
        assert!(report.elapsed < Duration::from_secs(30));
    }
}

fn signals() {
    let files = Files::new();
    let looping = files.write("loop", LOOP);
    let halted = files.write("halted", FIRST_HALTS);
    // The signal comes when the program has its handlers, and half a second later, when the vCPUs run.
    let line = "\"$0\" \"$1@0x1000:32\" --cpus 3 --timeout 50 --transport $3 & \
        until grep -q 'SigCgt:.*[4-7c-f]...$' /proc/$!/status; do sleep 0.1; done; \
        sleep 0.5; kill -$2 $!; wait $!";
    for guest in [looping, halted] {
        for (signal, transport) in
            [("TERM", "exit"), ("HUP", "exit"), ("TERM", "polling"), ("HUP", "polling")]
        {
            let started = Instant::now();
            let ran = shell(line, &[&guest, signal, transport]);
            assert_eq!(ran.status, 117, "{guest} {signal} {transport}: {}", ran.stderr);
            assert!(ran.stderr.contains("vmm: vCPU 2: interrupted"), "{}", ran.stderr);
            assert!(started.elapsed() < Duration::from_secs(20));
        }
    }
}

/// Reads the magic value of the window a hundred times: mov ecx, 100; again: cmp dword [0x100000], 0x74726976; jne $;
/// loop again; hlt
const READ_MAGIC: &[u8] =
    &[0xb9, 100, 0, 0, 0, 0x81, 0x3d, 0, 0, 0x10, 0, 0x76, 0x69, 0x72, 0x74, 0x75, 0xfe, 0xe2, 0xf2, 0xf4];

fn shared_window() {
    let machine = Machine::builder(code(READ_MAGIC, Mode::Protected)).cpus(4);
    let (report, _) = run_machine(machine.transport(Some(Transport::Exit)));
    assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
    assert_eq!(report.profile.unwrap().total().exits, 404);
}

fn counts() {
    let (report, _) = run_machine(embedded(find("smp-print"), None));
    for vcpu in &report.vcpus {
        assert_eq!(vcpu.profile.as_ref().unwrap().total().exits, 26, "vCPU {}", vcpu.id);
    }
    assert_eq!(report.profile.unwrap().total().exits, 104);
    let text = ran(&["smp-print"]).stderr;
    assert!(text.contains("vmm: vCPU 3: halted; 26 exits: 25 hypercall 0x1, 1 HLT"), "{text}");
    assert!(text.contains("hypercall          0x1              32  Print"), "{text}");
}

fn many_ends() {
    for transport in TRANSPORTS {
        for _ in 0..40 {
            let (report, _) = run_machine(embedded(find("smp-stop"), Some(transport)));
            assert!(matches!(report.stop, Stop::Exited(7)), "{}", report.stop);
            let (report, _) = run_machine(embedded(find("smp-counter"), Some(transport)));
            assert!(report.verdict.unwrap().passed());
        }
    }
}

fn signal_while_stalled() {
    let files = Files::new();
    let guest = files.write("lines", PRINT_LINES);
    let machines = ["1", "2", "5"].iter().flat_map(|cpus| TRANSPORT_NAMES.map(|transport| (cpus, transport)));
    for (cpus, transport) in machines {
        let (full, _reader) = full_stream();
        let mut command = vmm(&[&guest, "--cpus", cpus, "--timeout", "0", "--transport", transport]);
        let mut child =
            command.stdin(Stdio::null()).stdout(OwnedFd::from(full)).stderr(Stdio::null()).spawn().unwrap();
        support::wait_for_handlers(&child);
        thread::sleep(Duration::from_millis(500));
        assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
        let started = Instant::now();
        assert_eq!(support::wait(&mut child), 117, "{cpus}");
        assert!(started.elapsed() < Duration::from_secs(5), "{cpus}");
    }
}

/// vCPU 0 exits with code 7 after a pause, and the other vCPU prints: test edi, edi; jnz print; mov ecx, 200000;
/// pause: loop pause; mov al, 7; out 0xf4, al; print: out 0xe9, al; jmp print
const FIRST_EXITS: &[u8] = &[
    0x85, 0xff, 0x75, 0x0b, 0xb9, 0x40, 0x0d, 3, 0, 0xe2, 0xfe, 0xb0, 7, 0xe6, 0xf4, 0xe6, 0xe9, 0xeb, 0xfc,
];

/// vCPU 1 exits with code 7 after a pause, and vCPU 0 goes on: test edi, edi; jz go_on; mov ecx, 200000;
/// pause: loop pause; mov al, 7; out 0xf4, al; go_on:
const SECOND_EXITS: &[u8] =
    &[0x85, 0xff, 0x74, 0x0b, 0xb9, 0x40, 0x0d, 3, 0, 0xe2, 0xfe, 0xb0, 7, 0xe6, 0xf4];

/// One vCPU ends the machine. The other is blocked in a write to a full stream, or waits for input that does not come.
fn end_while_blocked() {
    for transport in TRANSPORTS {
        let (full, _reader) = full_stream();
        let image = code(FIRST_EXITS, Mode::Protected);
        let builder = Machine::builder(image).cpus(2).timeout(None).output(Output::new(full, false));
        let builder = builder.transport(Some(transport)).processor(processor());
        let report = builder.build().unwrap().run().unwrap();
        assert!(matches!(report.stop, Stop::Exited(7)), "{}", report.stop);
        assert!(report.elapsed < Duration::from_secs(20));
    }

    // Both vCPUs begin behind a driver's image. vCPU 0 jumps to the driver, which waits for input after the handshake.
    let driver = find("simvirtio-upper").image;
    let begin = 0x1000 + driver.len() as u64;
    let back = -(driver.len() as i32 + SECOND_EXITS.len() as i32 + 5);
    // jmp 0x1000
    let jump = [&[0xe9][..], &back.to_le_bytes()].concat();
    let image = [driver, SECOND_EXITS, &jump].concat();
    let files = Files::new();
    let file = files.write("elf", &support::elf_entered_at(0x1000, begin, &image));
    for transport in TRANSPORT_NAMES {
        let mut command = vmm(&[&file, "--cpus", "2", "--timeout", "20", "--transport", transport]);
        let started = Instant::now();
        let mut child =
            command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let _input = child.stdin.take();
        let status = support::wait(&mut child);
        assert!(started.elapsed() < Duration::from_secs(15), "{transport}");
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(status == 7 && stderr.contains("exited with code 7"), "{transport}: {stderr}");
    }
}

/// vCPU 0 waits for input, and the others run until a limit: test edi, edi; jz go_on; again: jmp again; go_on:
const OTHERS_RUN: &[u8] = &[0x85, 0xff, 0x74, 2, 0xeb, 0xfe];

/// The limits of a run hold, although a vCPU waits for the reader of its output, or for input.
fn limit_while_blocked() {
    let driver = find("simvirtio-upper").image;
    let begin = 0x1000 + driver.len() as u64;
    let back = -(driver.len() as i32 + OTHERS_RUN.len() as i32 + 5);
    let jump = [&[0xe9][..], &back.to_le_bytes()].concat();
    let files = Files::new();
    let file =
        files.write("elf", &support::elf_entered_at(0x1000, begin, &[driver, OTHERS_RUN, &jump].concat()));
    // With one vCPU, only the wall-clock limit counts, because the guest only waits.
    for (cpus, option) in [("1", "--wall-timeout"), ("4", "--wall-timeout"), ("4", "--timeout")] {
        // With polling the timeout also waits: the driver only says that it reads.
        for transport in TRANSPORT_NAMES.iter().filter(|name| option != "--timeout" || **name == "exit") {
            let mut command = vmm(&[&file, "--cpus", cpus, option, "0.3", "--transport", transport]);
            let started = Instant::now();
            let mut child =
                command.stdin(Stdio::piped()).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
            let _input = child.stdin.take();
            assert_eq!(support::wait(&mut child), 114, "{cpus} {option} {transport}");
            assert!(started.elapsed() < Duration::from_secs(5), "{cpus} {option} {transport}");
        }
        // again: mov al, 10; out 0xe9, al; jmp again
        let image = code(&[0xb0, 10, 0xe6, 0xe9, 0xeb, 0xfa], Mode::Protected);
        let (full, _reader) = full_stream();
        let builder = Machine::builder(image).cpus(cpus.parse().unwrap()).processor(processor());
        let limit = Some(Duration::from_millis(300));
        let builder = builder.timeout(limit).output(Output::new(full, false));
        let report = builder.build().unwrap().run().unwrap();
        assert!(matches!(report.stop, Stop::Timeout(_)), "{}", report.stop);
        assert!(report.elapsed < Duration::from_secs(5), "{:?}", report.elapsed);
    }
}

/// mov eax, 42
const RESULT_42: [u8; 5] = [0xb8, 42, 0, 0, 0];
/// Prints a line and moves TX head, without end: again: mov al, 10; out 0xe9, al; inc cl; mov [rdi + 0x10], ecx;
/// jmp again
const PRINT_AND_MOVE_HEAD: &[u8] = &[0xb0, 10, 0xe6, 0xe9, 0xfe, 0xc1, 0x89, 0x4f, 0x10, 0xeb, 0xf5];

/// The thread of the device and the vCPU both block in writes to a full stream.
fn blocked_device_thread() {
    let mut image = find("hostile-second-reset").image.to_vec();
    let end = image.windows(5).position(|bytes| bytes == RESULT_42).expect("the end of the driver");
    image.truncate(end);
    image.extend(PRINT_AND_MOVE_HEAD);
    for _ in 0..5 {
        let (full, _reader) = full_stream();
        let image = Image::flat(image.clone(), Mode::Long, Gpa(0x1000)).unwrap();
        let builder = Machine::builder(image).transport(Some(Transport::Polling)).input(Input::bytes(b""));
        let builder = builder.timeout(Some(Duration::from_millis(300))).output(Output::new(full, false));
        let report = builder.processor(processor()).build().unwrap().run().unwrap();
        assert!(matches!(report.stop, Stop::Timeout(_)), "{}", report.stop);
        assert!(report.elapsed < Duration::from_secs(10), "{:?}", report.elapsed);
    }
}

/// vCPU 0 makes exits, and vCPU 1 crashes without an exit: test edi, edi; jnz fault; again: in al, 0x99; jmp again;
/// fault: ud2
const SECOND_CRASHES: &[u8] = &[0x85, 0xff, 0x75, 0x04, 0xe4, 0x99, 0xeb, 0xfc, 0x0f, 0x0b];

fn crashed_vcpu() {
    let files = Files::new();
    let guest = files.write("crashes", SECOND_CRASHES);
    let guest = format!("{guest}@0x1000:32");
    for transport in TRANSPORT_NAMES {
        let ran = ran(&[&guest, "--cpus", "2", "--transport", transport]);
        assert_eq!(ran.status, 112, "{}", ran.stderr);
        let first = ran.stderr.lines().next().unwrap();
        let known = ", vCPU 1 in protected mode at 0008:00001008";
        assert!(first.contains(known) || first.contains("resets"), "{first}");
        assert!(!ran.stderr.contains("last exits   in8"), "{}", ran.stderr);
        assert!(ran.stderr.contains("vmm: vCPU 0: stopped with the others; it was then"), "{}", ran.stderr);
    }
}

fn irqchip_alone() {
    let image = || code(HALT, Mode::Real);
    let refused = Machine::builder(image()).irqchip(true).cpus(2).build().expect_err("two vCPUs");
    assert!(refused.to_string().contains("irqchip"), "{refused}");
    assert!(Machine::builder(image()).irqchip(true).first_vcpu(1).build().is_err());
}

/// Each vCPU has a timer, and the one whose timer is first ends the machine. It may be one that the kernel never started.
fn never_started() {
    let files = Files::new();
    let kernel = kernel(&files, &[LOOP]);
    for _ in 0..12 {
        let ran = ran(&["boot", &kernel, "--cpus", "8", "--timeout", "0.1"]);
        assert_eq!(ran.status, 114, "{}", ran.stderr);
        let first = ran.stderr.lines().next().unwrap_or_default();
        assert!(first.contains("; vCPU 0 was then in long mode at 0x100000"), "{first}");
        for line in
            ["vCPU 0: timeout", "vCPU 7: stopped with the others; it was then waiting for another vCPU"]
        {
            assert!(ran.stderr.contains(line), "{line}: {}", ran.stderr);
        }
    }
}
