//! Machines that the program does not build: other queue lengths, devices of the caller, input and output that fail,
//! and machine code for one property each.
#![allow(clippy::unwrap_used)]

mod support;

use simvirtio::abi;
use std::io::{Read, Seek, Write};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::payloads::HALT;
use support::{TRANSPORTS, code, embedded, find, machine_test, plain_test, run_machine};
use vmm::device::{Device, DeviceName, Layout, Transport};
use vmm::exit::{Reason, Site, Stop};
use vmm::x86::Mode;
use vmm::{Builder, Captured, Input, KvmCounters, Machine, Output};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        machine_test("queue_lengths_do_not_change_the_message", queue_lengths),
        machine_test("input_of_any_length_comes_back_in_upper_case", input_lengths),
        machine_test("waiting_for_input_does_not_count_as_running", waiting_for_input),
        machine_test("input_that_cannot_be_read_is_an_error", unreadable_input),
        machine_test("a_prompt_is_printed_before_its_answer_is_typed", prompt),
        machine_test("a_device_of_the_caller_is_on_the_bus", device_of_the_caller),
        plain_test("two_devices_cannot_overlap", overlapping_devices),
        machine_test("string_input_reaches_memory_in_order", string_input),
        machine_test("word_and_dword_strings_are_counted_by_element", wide_strings),
        machine_test("the_counter_of_kvm_is_not_below_ours", kernel_counter),
        machine_test("without_profile_nothing_is_counted", no_profile),
        machine_test("the_result_word_is_compared_by_mode", result_widths),
        machine_test("machines_run_in_parallel", in_parallel),
        machine_test("a_switch_to_long_mode_needs_cpuid", cpuid_is_needed),
        machine_test("the_segments_can_be_reloaded_from_the_gdt", reload_segments),
    ];
    for transport in TRANSPORTS {
        let name = format!("ten_mebibytes_come_back_unchanged::{transport:?}");
        tests.push(machine_test(name, move || ten_mebibytes(transport)));
    }
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn queue_lengths() {
    for queue_len in [2, 3, 13, 256, 4096] {
        for transport in TRANSPORTS {
            for name in ["simvirtio", "simvirtio-c", "simvirtio-twice"] {
                let (report, output) =
                    run_machine(embedded(find(name), Some(transport)).queue_len(Some(queue_len)));
                assert_eq!(
                    String::from_utf8_lossy(&output),
                    find(name).output,
                    "{name} {transport:?} {queue_len}"
                );
                assert!(report.verdict.is_some_and(|verdict| verdict.passed()));
            }
        }
    }
    for queue_len in [2, 100, 255] {
        for transport in [Transport::Exit, Transport::Polling] {
            let builder = embedded(find("simvirtio-struct"), Some(transport)).queue_len(Some(queue_len));
            let (report, text) = run_machine(builder);
            assert_eq!((&text[..], report.verified()), (&b"Ana are mere"[..], Some(true)), "{queue_len}");
            assert_eq!(report.simvirtio.unwrap().layout, Layout::Struct);
        }
    }
    let refused =
        embedded(find("simvirtio-struct"), None).queue_len(Some(256)).build().expect_err("one byte");
    assert!(refused.to_string().contains("2 to 255 bytes are allowed"), "{refused}");
    let refused = embedded(find("simvirtio"), None).queue_len(Some(1)).build().expect_err("1 is too short");
    assert!(refused.to_string().contains("queue length of 1"), "{refused}");
}

/// Runs a test with each guest that answers in upper case, by exits and by polling, in parallel.
fn upper(test: impl Fn(Builder, &str) + Sync) {
    std::thread::scope(|scope| {
        for name in ["simvirtio-upper", "simvirtio-upper-c"] {
            for transport in TRANSPORTS {
                let test = &test;
                scope.spawn(move || {
                    test(embedded(find(name), Some(transport)), &format!("{name} {transport:?}"));
                });
            }
        }
    });
}

fn input_lengths() {
    let long: Vec<u8> = b"a quick brown fox\n".iter().copied().cycle().take(5000).collect();
    for (queue_len, input) in [
        (256, &b""[..]),
        (256, b"x"),
        (256, b"no last newline"),
        (256, b"one\n\ntwo\n"),
        (256, &long),
        (2, &long[..500]),
    ] {
        upper(|builder, which| {
            let timeout = Some(Duration::from_secs(60));
            let builder = builder.queue_len(Some(queue_len)).input(Input::bytes(input)).timeout(timeout);
            let (report, output) = run_machine(builder);
            assert_eq!(output, input.to_ascii_uppercase(), "{which} {}", input.len());
            assert!(report.verdict.is_some_and(|verdict| verdict.passed()), "{which}");
            let history = report.simvirtio.expect("a device").history;
            assert_eq!((history.received, history.delivered), (input.len() as u64, input.len() as u64 + 1));
        });
    }
}

/// This guest works in batches. Byte by byte, the test would take minutes on a host that emulates ring 0.
fn ten_mebibytes(transport: Transport) {
    let mut state = 1u32;
    // Any byte except the one that ends the input.
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let byte = state.to_be_bytes()[0];
        if byte == abi::END_OF_INPUT { 0 } else { byte }
    };
    let input: Vec<u8> = (0..10 << 20).map(|_| byte()).collect();
    let file = || tempfile::tempfile().expect("a temporary file");
    let (mut from, mut to) = (file(), file());
    from.write_all(&input).expect("the input is written");
    from.rewind().expect("the file is rewound");
    let builder = embedded(find("simvirtio-echo"), Some(transport)).queue_len(Some(4096));
    let output = Output::new(to.try_clone().expect("a second descriptor"), true);
    let machine = builder.input(Input::new(from)).timeout(Some(Duration::from_secs(200))).output(output);
    let report = machine.build().expect("the machine is built").run().expect("the host runs the machine");
    assert!(matches!(report.stop, Stop::Halted), "{transport:?}: {}", report.stop);
    let mut output = Vec::new();
    to.rewind().and_then(|()| to.read_to_end(&mut output)).expect("the output is read");
    assert!(output == input, "{transport:?}: {} bytes of {}", output.len(), input.len());
    assert_eq!(report.simvirtio.expect("a device").history.received, 10 << 20);
}

/// The input arrives in pieces, over a longer time than the timeout allows for the run.
fn waiting_for_input() {
    upper(|builder, which| {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let typist = std::thread::spawn(move || {
            for piece in [&b"first\n"[..], b"sec", b"ond"] {
                std::thread::sleep(Duration::from_millis(1600));
                writer.write_all(piece).expect("the machine reads");
            }
        });
        let input = Input::new(std::fs::File::from(OwnedFd::from(reader)));
        let (report, output) = run_machine(builder.input(input).timeout(Some(Duration::from_millis(2500))));
        assert!(matches!(report.stop, Stop::Halted), "{which}: {}", report.stop);
        assert_eq!(String::from_utf8_lossy(&output), "FIRST\nSECOND", "{which}");
        typist.join().expect("all pieces are written");
    });
}

/// An incomplete line is printed before the guest waits for input.
fn prompt() {
    upper(|builder, which| {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let captured = Captured::default();
        let output = Output::new(captured.clone(), true);
        let input = Input::new(std::fs::File::from(OwnedFd::from(reader)));
        let builder = builder.input(input).output(output);
        let machine = std::thread::spawn(move || builder.build().expect("the machine is built").run());
        writer.write_all(b"name? ").expect("the machine reads");
        let started = Instant::now();
        while captured.bytes() != b"NAME? " && started.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(captured.bytes(), b"NAME? ", "{which}");
        drop(writer);
        let report = machine.join().expect("no panic").expect("the host runs the machine");
        assert!(matches!(report.stop, Stop::Halted), "{which}: {}", report.stop);
    });
}

fn unreadable_input() {
    upper(|builder, which| {
        let folder = std::fs::File::open("/").expect("the root folder opens");
        let (report, _) = run_machine(builder.input(Input::new(folder)));
        assert!(matches!(report.stop, Stop::InputFailed(_)), "{which}: {}", report.stop);
    });
}

/// A device that returns 1, 2, 3 and so on, and records all writes.
#[derive(Default)]
struct Counter {
    reads: u64,
    written: Vec<(u64, u8, u64)>,
}

impl Device for Counter {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        self.reads += 1;
        ControlFlow::Continue(self.reads)
    }
    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        self.written.push((offset, size, data));
        ControlFlow::Continue(())
    }
    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("counter")
    }
}

/// mov rax, [0x200008]; mov [0x200010], eax; in al, 0x42; out 0x43, ax; hlt
const USE_MMIO_AND_PORTS: &[u8] = &[
    0x48, 0x8b, 0x04, 0x25, 8, 0, 0x20, 0, 0x89, 0x04, 0x25, 0x10, 0, 0x20, 0, 0xe4, 0x42, 0x66, 0xe7, 0x43,
    0xf4,
];

fn device_of_the_caller() {
    let counter: Arc<Mutex<Counter>> = Arc::default();
    let builder = Machine::builder(code(USE_MMIO_AND_PORTS, Mode::Long))
        .mmio_device(0x20_0000, 0x100, counter.clone())
        .and_then(|builder| builder.port_device(0x42, 2, counter.clone()))
        .expect("the addresses are free");
    let (report, _) = run_machine(builder);
    assert!(matches!(report.stop, Stop::Halted));
    assert_eq!(counter.lock().unwrap().written, [(0x10, 4, 1), (1, 2, 2)]);
    let site = Site { reason: Reason::MmioRead, place: Some((0x20_0008, 8)) };
    assert_eq!(report.device_at(&site), Some(DeviceName::device("counter")));
}

fn overlapping_devices() {
    let counter: Arc<Mutex<Counter>> = Arc::default();
    let image = code(HALT, Mode::Real);
    let builder = Machine::builder(image).port_device(0xe8, 2, counter).expect("the check comes later");
    let refused = builder.build().expect_err("the debug console is at 0xe9");
    assert!(refused.to_string().contains("overlaps"), "{refused}");
}

/// Copies 100 bytes from port 0x42 to port 0x43: mov di, 0x2000; mov cx, 100; mov dx, 0x42; rep insb; mov si, 0x2000;
/// mov cx, 100; mov dx, 0x43; rep outsb; hlt
const COPY_STRING: &[u8] = &[
    0xbf, 0, 0x20, 0xb9, 100, 0, 0xba, 0x42, 0, 0xf3, 0x6c, 0xbe, 0, 0x20, 0xb9, 100, 0, 0xba, 0x43, 0, 0xf3,
    0x6e, 0xf4,
];

fn string_input() {
    let counter: Arc<Mutex<Counter>> = Arc::default();
    let builder = Machine::builder(code(COPY_STRING, Mode::Real))
        .port_device(0x42, 2, counter.clone())
        .expect("the ports are free");
    let (report, _) = run_machine(builder);
    assert!(matches!(report.stop, Stop::Halted), "{report:?}");
    let expected: Vec<_> = (1..=100).map(|value| (1, 1, value)).collect();
    assert_eq!(counter.lock().unwrap().written, expected);
    assert_eq!(report.profile.expect("a profile").total().elements, 201);
}

/// Writes the beginning of this code to port 0x42, as words and as a dword: mov si, 0x1000; mov dx, 0x42; mov cx, 2;
/// rep outsw; mov si, 0x1000; mov cx, 1; rep outsd; hlt
const WRITE_WIDE_STRINGS: &[u8] = &[
    0xbe, 0, 0x10, 0xba, 0x42, 0, 0xb9, 2, 0, 0xf3, 0x6f, 0xbe, 0, 0x10, 0xb9, 1, 0, 0x66, 0xf3, 0x6f, 0xf4,
];

fn wide_strings() {
    let counter: Arc<Mutex<Counter>> = Arc::default();
    let builder = Machine::builder(code(WRITE_WIDE_STRINGS, Mode::Real))
        .port_device(0x42, 1, counter.clone())
        .expect("the ports are free");
    let (report, _) = run_machine(builder);
    assert!(matches!(report.stop, Stop::Halted), "{report:?}");
    let written = counter.lock().unwrap().written.clone();
    assert_eq!(written, [(0, 2, 0x00be), (0, 2, 0xba10), (0, 4, 0xba10_00be)]);
    assert_eq!(report.profile.expect("a profile").total().elements, 4);
}

fn kernel_counter() {
    let guest = find("real16-hello");
    let (report, _) = run_machine(embedded(guest, None).kernel_counters(true));
    // Kernels before 5.14 do not have this counter.
    if let Some(kernel) = report.kernel.as_ref().and_then(KvmCounters::exits).filter(|count| *count > 0) {
        assert!(kernel >= 15, "{kernel}");
    }
    assert_eq!(run_machine(embedded(guest, None)).0.kernel, None, "not requested");
}

fn no_profile() {
    for transport in TRANSPORTS {
        let (report, _) = run_machine(embedded(find("simvirtio"), Some(transport)).profile(false));
        assert!(report.profile.is_none(), "{transport}");
    }
}

/// In real mode, the upper half of EAX does not count: mov eax, 0x1002a; mov word [0x400], 42; hlt
const REAL_42: &[u8] = &[0x66, 0xb8, 0x2a, 0, 1, 0, 0xc7, 0x06, 0, 4, 0x2a, 0, 0xf4];
/// Leaves 42 in one of the two places only: mov ax, 42; hlt
const REAL_42_IN_AX: &[u8] = &[0xb8, 42, 0, 0xf4];
/// mov eax, 42; nop (5 times); mov dword [0x400], 42; hlt
const LONG_42: &[u8] =
    &[0xb8, 42, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc7, 0x04, 0x25, 0, 4, 0, 0, 42, 0, 0, 0, 0xf4];
/// In long mode, all of RAX counts: mov eax, 42; bts rax, 40; mov dword [0x400], 42; hlt
const LONG_42_AND_BIT_40: &[u8] =
    &[0xb8, 42, 0, 0, 0, 0x48, 0x0f, 0xba, 0xe8, 40, 0xc7, 0x04, 0x25, 0, 4, 0, 0, 42, 0, 0, 0, 0xf4];

fn result_widths() {
    for (image, mode, right) in [
        (REAL_42, Mode::Real, true),
        (REAL_42_IN_AX, Mode::Real, false),
        (LONG_42, Mode::Long, true),
        (LONG_42_AND_BIT_40, Mode::Long, false),
    ] {
        let (report, _) = run_machine(Machine::builder(code(image, mode)).verify(true));
        assert_eq!(report.verdict.expect("the guest halts").passed(), right, "{image:x?}");
    }
}

fn in_parallel() {
    let threads: Vec<_> = (0..8)
        .map(|number| {
            std::thread::spawn(move || {
                let transport = if number % 2 == 0 { Transport::Exit } else { Transport::Polling };
                for _ in 0..5 {
                    let (report, output) = run_machine(embedded(find("simvirtio"), Some(transport)));
                    assert_eq!(output, b"Ana are mere");
                    assert!(report.verdict.is_some_and(|verdict| verdict.passed()));
                }
                let (report, _) = run_machine(embedded(find("long64-endless"), Some(transport)));
                assert!(matches!(report.stop, Stop::Timeout(_)));
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no thread panics");
    }
}

/// This guest switches through the modes. Without CPUID it reaches protected mode and must not run into its timeout.
fn cpuid_is_needed() {
    let guest = find("modes");
    let (report, output) = run_machine(embedded(guest, None).cpuid(true));
    assert!(matches!(report.stop, Stop::Halted) && output == guest.output.as_bytes());
    let (report, output) = run_machine(embedded(guest, None).cpuid(false));
    assert!(!matches!(report.stop, Stop::Timeout(_)), "{report:?}");
    assert!(output.starts_with(b"real mode\nprotected mode\n"));
}

/// mov ax, 0x10; mov ds, ax; mov es, ax; mov ss, ax; push 0x08; lea rax, [rip + 3]; push rax; retfq; mov eax, 42;
/// mov [0x400], eax; hlt
const RELOAD_SEGMENTS_LONG: &[u8] = &[
    0x66, 0xb8, 0x10, 0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0x6a, 0x08, 0x48, 0x8d, 0x05, 3, 0, 0, 0, 0x50,
    0x48, 0xcb, 0xb8, 42, 0, 0, 0, 0x89, 0x04, 0x25, 0, 4, 0, 0, 0xf4,
];
/// The same in protected mode: mov ax, 0x10; mov ds, ax; mov es, ax; mov ss, ax; jmp 0x08:0x1011; mov eax, 42;
/// mov [0x400], eax; hlt
const RELOAD_SEGMENTS_PROTECTED: &[u8] = &[
    0x66, 0xb8, 0x10, 0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xea, 0x11, 0x10, 0, 0, 0x08, 0, 0xb8, 42, 0, 0,
    0, 0xa3, 0, 4, 0, 0, 0xf4,
];

fn reload_segments() {
    for (image, mode) in [(RELOAD_SEGMENTS_LONG, Mode::Long), (RELOAD_SEGMENTS_PROTECTED, Mode::Protected)] {
        let (report, _) = run_machine(Machine::builder(code(image, mode)).verify(true));
        assert!(report.verdict.is_some_and(|verdict| verdict.passed()), "{mode:?}: {report:?}");
    }
}
