//! Machines that are put together in other ways than the program does: queue lengths, devices of the caller's,
//! input and output that misbehave, and code that is assembled by hand.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::Arguments;
use simvirtio::device::{State, Violation};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{code, embedded, find, kvm_test, plain_test, run_machine};
use vmm::boot::flat;
use vmm::bus::Device;
use vmm::device::simvirtio::Transport;
use vmm::exit::Stop;
use vmm::memory::Gpa;
use vmm::modes::Mode;
use vmm::profile::{Reason, Site};
use vmm::vcpu::Location;
use vmm::{Builder, Input, Machine, Output};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("queue_lengths_do_not_change_the_message", queue_lengths),
        kvm_test("the_poller_ends_the_run_at_once", poller_ends_the_run),
        kvm_test("read_only_fields_keep_their_values", read_only_fields),
        kvm_test("a_wild_tail_of_rx_breaks_the_device", wild_rx_tail),
        kvm_test("a_reader_that_stalls_does_not_hold_the_run", stalled_reader),
        kvm_test("input_of_any_length_comes_back_in_upper_case", input_lengths),
        kvm_test("waiting_for_input_does_not_count", waiting_for_input),
        kvm_test("input_that_cannot_be_read_is_an_error", unreadable_input),
        kvm_test("a_stop_says_where", where_it_stopped),
        kvm_test("each_violation_is_named", violations),
        kvm_test("an_endless_guest_is_freed_in_time", freed_in_time),
        kvm_test("a_head_that_goes_back_is_only_strange_data", decreasing_head),
        kvm_test("a_death_is_explained", what_it_died_of),
        kvm_test("the_reset_vector_is_a_place_like_any_other", reset_vector),
        kvm_test("a_caller_s_device_is_on_the_bus", device_of_the_caller),
        plain_test("a_device_s_place_can_be_taken_once", places_are_taken_once),
        kvm_test("string_input_reaches_memory_in_order", string_input),
        kvm_test("word_and_dword_strings_are_counted_by_element", wide_strings),
        kvm_test("the_site_table_is_capped_and_its_total_exact", capped_sites),
        kvm_test("kvm_s_own_counter_is_not_below_ours", kernel_counter),
        kvm_test("without_profile_nothing_is_counted", no_profile),
        kvm_test("the_result_word_is_compared_by_mode", result_widths),
        kvm_test("mmio_outside_everything_is_an_open_bus", open_bus),
        kvm_test("output_has_a_limit_where_one_is_set", output_limit),
        kvm_test("machines_run_side_by_side", side_by_side),
        kvm_test("a_processor_switched_to_long_mode_needs_cpuid", cpuid_is_needed),
        kvm_test("the_segments_can_be_reloaded_from_the_gdt", reload_segments),
        kvm_test("an_image_over_the_result_is_refused_when_verified", image_over_result),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn queue_lengths() {
    for queue_len in [2, 3, 13, 256, 4096] {
        for transport in [Transport::Exit, Transport::Polling] {
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
    let refused = embedded(find("simvirtio"), None).queue_len(Some(1)).build().expect_err("too short");
    assert!(refused.to_string().contains("queue length of 1"), "{refused}");
}

/// Without the kick the guest would wait for its whole time.
fn poller_ends_the_run() {
    let (report, _) = run_machine(embedded(find("simvirtio-broken-wait"), Some(Transport::Polling)));
    assert!(matches!(report.stop, Stop::ProtocolError(_)));
    assert!(report.elapsed < Duration::from_secs(10), "{:?}", report.elapsed);
}

/// The guest overwrites the magic, and goes on when it is right again.
fn read_only_fields() {
    // mov dword [0x100000], 0; again: cmp dword [0x100000], 0x74726976; jne again; hlt
    let image: &[u8] = &[
        0xc7, 0x04, 0x25, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x81, 0x3c, 0x25, 0, 0, 0x10, 0, 0x76, 0x69, 0x72, 0x74,
        0x75, 0xf3, 0xf4,
    ];
    for transport in [Transport::Exit, Transport::Polling] {
        let (report, _) = run_machine(Machine::builder(code(image, Mode::Long)).transport(Some(transport)));
        assert!(matches!(report.stop, Stop::Halted), "{transport:?}: {report:?}");
        assert_eq!(report.simvirtio.expect("a device").history.ignored_stores, 1, "{transport:?}");
    }
    // A store just before the end is seen, too: mov byte [0x100006], 4; hlt.
    let last: &[u8] = &[0xc6, 0x04, 0x25, 6, 0, 0x10, 0, 4, 0xf4];
    for transport in [Transport::Exit, Transport::Polling] {
        let (report, _) = run_machine(Machine::builder(code(last, Mode::Long)).transport(Some(transport)));
        assert_eq!(report.simvirtio.expect("a device").history.ignored_stores, 1, "{transport:?}");
    }
}

fn wild_rx_tail() {
    // mov dword [0x10001c], -1; hlt
    let image: &[u8] = &[0xc7, 0x04, 0x25, 0x1c, 0, 0x10, 0, 0xff, 0xff, 0xff, 0xff, 0xf4];
    for transport in [Transport::Exit, Transport::Polling] {
        let (report, _) = run_machine(Machine::builder(code(image, Mode::Long)).transport(Some(transport)));
        let broken = matches!(report.stop, Stop::ProtocolError(Violation::WildIndex { queue: 1, .. }));
        assert!(broken, "{transport:?}: {report:?}");
    }
}

/// A stream that nobody reads and that is full: the next write blocks.
fn full_stream() -> (UnixStream, UnixStream) {
    let (mut writer, reader) = UnixStream::pair().expect("a pair of sockets");
    writer.set_nonblocking(true).expect("it can be switched");
    while writer.write(&[0; 4096]).is_ok() {}
    writer.set_nonblocking(false).expect("it can be switched back");
    (writer, reader)
}

/// A write of text that nobody reads blocks: the time is up all the same, and what ended the run stays.
fn stalled_reader() {
    // again: mov al, 10; out 0xe9, al; jmp again
    let by_port = code(&[0xb0, 10, 0xe6, 0xe9, 0xeb, 0xfa], Mode::Real);
    let driver = || flat::image(find("simvirtio").image, Mode::Long, Gpa(0x1000)).expect("a flat image");
    for (image, transport) in
        [(by_port, Transport::Exit), (driver(), Transport::Exit), (driver(), Transport::Polling)]
    {
        let (writer, reader) = full_stream();
        let machine = Machine::builder(image)
            .transport(Some(transport))
            .timeout(Some(Duration::from_millis(300)))
            .output(Output::new(writer, false))
            .build()
            .expect("the machine is made");
        let report = machine.run().expect("the host can run it");
        assert!(matches!(report.stop, Stop::Timeout), "{transport:?}: {:?}", report.stop);
        drop(reader);
    }
}

/// The guests that answer in upper case, over both transports, side by side.
fn upper(test: impl Fn(Builder, &str) + Sync) {
    std::thread::scope(|scope| {
        for name in ["simvirtio-upper", "simvirtio-upper-c"] {
            for transport in [Transport::Exit, Transport::Polling] {
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

/// What the guest gets comes piece by piece, and takes longer than the whole run may.
fn waiting_for_input() {
    upper(|builder, which| {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let typist = std::thread::spawn(move || {
            for piece in [&b"first\n"[..], b"sec", b"ond"] {
                std::thread::sleep(Duration::from_millis(1600));
                writer.write_all(piece).expect("somebody reads");
            }
        });
        let input = Input::new(std::fs::File::from(OwnedFd::from(reader)));
        let (report, output) = run_machine(builder.input(input).timeout(Some(Duration::from_millis(2500))));
        assert!(matches!(report.stop, Stop::Halted), "{which}: {}", report.stop);
        assert_eq!(String::from_utf8_lossy(&output), "FIRST\nSECOND", "{which}");
        typist.join().expect("it typed all");
    });
}

fn unreadable_input() {
    upper(|builder, which| {
        let folder = std::fs::File::open("/").expect("it can be opened");
        let (report, _) = run_machine(builder.input(Input::new(folder)));
        assert!(matches!(report.stop, Stop::InputFailed(_)), "{which}: {}", report.stop);
    });
}

fn reset_vector() {
    // mov ax, 0xf000; mov ds, ax; mov word [0xfff0], 0xfeeb (jmp $); jmp 0xf000:0xfff0
    let image: &[u8] =
        &[0xb8, 0, 0xf0, 0x8e, 0xd8, 0xc7, 0x06, 0xf0, 0xff, 0xeb, 0xfe, 0xea, 0xf0, 0xff, 0, 0xf0];
    let (report, _) =
        run_machine(Machine::builder(code(image, Mode::Real)).timeout(Some(Duration::from_millis(100))));
    assert_eq!(report.location, Some(Location::At { mode: Mode::Real, cs: 0xf000, rip: 0xfff0 }));
    assert!(report.left_its_image());
}

fn where_it_stopped() {
    let location = |name| run_machine(embedded(find(name), None)).0.location;
    // AMD hosts reset the CPU at a triple fault.
    let at = |mode, cs, rip| [Some(Location::At { mode, cs, rip }), Some(Location::Reset)];
    assert!(at(Mode::Long, 8, 0x1001).contains(&location("long64-triple-fault")));
    assert!(at(Mode::Protected, 8, 0x1001).contains(&location("prot32-triple-fault")));
    assert_eq!(location("real16-endless"), Some(Location::At { mode: Mode::Real, cs: 0, rip: 0x1001 }));
    assert_eq!(location("real16-42"), None);
}

/// The hostile drivers of the catalogue break the protocol just where they mean to.
fn violations() {
    use simvirtio::ring::{End as Index, WildIndex};
    let wild = WildIndex { end: Index::Head, index: 0x7fff_ffff, len: 256 };
    for (name, expected) in [
        ("hostile-data-early", Violation::Command { state: State::Config, byte: b'A' }),
        ("simvirtio-config-first", Violation::Command { state: State::Initial, byte: b'C' }),
        ("hostile-wild-head", Violation::WildIndex { queue: 0, wild }),
        ("hostile-selector", Violation::Selector { value: 7 }),
        ("hostile-status", Violation::DriverStatus { state: State::Reset, value: 6 }),
        ("hostile-no-ack", Violation::NotAcknowledged { driver_status: 4 }),
        ("hostile-table", Violation::Table { count: 0xffff }),
    ] {
        for transport in [Transport::Exit, Transport::Polling] {
            let (report, _) = run_machine(embedded(find(name), Some(transport)));
            assert!(
                matches!(report.stop, Stop::ProtocolError(found) if found == expected),
                "{name}: {}",
                report.stop
            );
        }
    }
    let (report, _) = run_machine(embedded(find("hostile-halt-early"), None));
    assert_eq!(report.simvirtio.expect("a device").state, State::Reset);
}

/// In each mode, within 200 ms of the deadline. A busy machine gets three tries.
fn freed_in_time() {
    for name in ["real16-endless", "prot32-endless", "long64-endless"] {
        let late = || {
            let (report, _) = run_machine(embedded(find(name), None));
            assert!(matches!(report.stop, Stop::Timeout), "{name}: {}", report.stop);
            report.elapsed.saturating_sub(Duration::from_millis(100))
        };
        let latest = (0..3).map(|_| late()).min().expect("three tries");
        assert!(latest < Duration::from_millis(200), "{name}: {latest:?}");
    }
    // A HLT that waits in the kernel, for an interrupt that never comes.
    let late = || {
        let builder = Machine::builder(code(&[0xfa, 0xf4, 0xeb, 0xfd], Mode::Real)).irqchip(true);
        let (report, _) = run_machine(builder.timeout(Some(Duration::from_millis(100))));
        assert!(matches!(report.stop, Stop::Timeout), "hlt: {}", report.stop);
        assert_eq!(report.profile.expect("a profile").total().exits, 0);
        report.elapsed.saturating_sub(Duration::from_millis(100))
    };
    let latest = (0..3).map(|_| late()).min().expect("three tries");
    assert!(latest < Duration::from_millis(200), "hlt: {latest:?}");
}

/// To a ring, a head that goes back by one is a queue that is almost full: odd, but no danger.
fn decreasing_head() {
    let mut image = find("hostile-second-reset").image.to_vec();
    // finish: mov eax, 42; the byte before it was pushed with `inc ecx; mov [rdi + 0x10], ecx`.
    let end = image.windows(5).position(|bytes| bytes == [0xb8, 42, 0, 0, 0]).expect("its end");
    // dec ecx; mov [rdi + 0x10], ecx; hlt
    image.truncate(end);
    image.extend([0xff, 0xc9, 0x89, 0x4f, 0x10, 0xf4]);
    for transport in [Transport::Exit, Transport::Polling] {
        let image = flat::image(image.clone(), Mode::Long, Gpa(0x1000)).expect("a flat image");
        let (report, output) = run_machine(Machine::builder(image).transport(Some(transport)));
        assert!(matches!(report.stop, Stop::Halted), "{transport:?}: {}", report.stop);
        assert!(output.len() <= 256, "{transport:?}: {}", output.len());
    }
}

/// What is suspected, where the host keeps the state of a CPU that triple-faults.
fn what_it_died_of() {
    let suspicion = |image: &'static [u8], mode| {
        let (report, _) = run_machine(Machine::builder(code(image, mode)));
        let lost = report.location == Some(Location::Reset);
        let found =
            report.explanation.as_ref().and_then(|explanation| explanation.suspicion()).unwrap_or("nothing");
        (lost, found)
    };
    // ud2; xor ecx, ecx and div ecx; mov eax, [0x100000000], where nothing is mapped; xorps xmm0, xmm0
    let cases: [(&[u8], &str); 4] = [
        (&[0x0f, 0x0b], "#UD: an undefined"),
        (&[0x31, 0xc9, 0xf7, 0xf1], "#DE"),
        (&[0xa1, 0, 0, 0, 0, 1, 0, 0, 0], "#PF: the address of its operand"),
        (&[0x0f, 0x57, 0xc0], "#UD: SSE is not switched on"),
    ];
    for (image, expected) in cases {
        let (lost, found) = suspicion(image, Mode::Long);
        assert!(lost || found.starts_with(expected), "{image:x?}: {found}");
    }
}

/// Gives 1, 2, 3 and so on, and keeps what it gets.
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
    fn name(&self, _: u64) -> &'static str {
        "counter"
    }
}

fn device_of_the_caller() {
    let counter: Arc<Mutex<Counter>> = Arc::default();
    // mov rax, [0x200008]; mov [0x200010], eax; in al, 0x42; out 0x43, ax; hlt
    let image = code(
        &[
            0x48, 0x8b, 0x04, 0x25, 8, 0, 0x20, 0, 0x89, 0x04, 0x25, 0x10, 0, 0x20, 0, 0xe4, 0x42, 0x66,
            0xe7, 0x43, 0xf4,
        ],
        Mode::Long,
    );
    let builder = Machine::builder(image)
        .mmio_device(0x20_0000, 0x100, counter.clone())
        .and_then(|builder| builder.port_device(0x42, 2, counter.clone()))
        .expect("the places are free");
    let (report, _) = run_machine(builder);
    assert!(matches!(report.stop, Stop::Halted));
    assert_eq!(counter.lock().unwrap().written, [(0x10, 4, 1), (1, 2, 2)]);
    let site = Site { reason: Reason::MmioRead, place: Some((0x20_0008, 8)) };
    assert_eq!(report.device_at(&site), Some("counter"));
}

fn places_are_taken_once() {
    let counter: Arc<Mutex<Counter>> = Arc::default();
    let image = code(&[0xf4], Mode::Real);
    let builder = Machine::builder(image).port_device(0xe8, 2, counter).expect("free so far");
    let refused = builder.build().expect_err("the debug console is at 0xe9");
    assert!(refused.to_string().contains("overlaps"), "{refused}");
}

fn string_input() {
    let counter: Arc<Mutex<Counter>> = Arc::default();
    // mov di, 0x2000; mov cx, 100; mov dx, 0x42; rep insb; mov si, 0x2000; mov cx, 100; mov dx, 0x43; rep outsb; hlt
    let image = code(
        &[
            0xbf, 0, 0x20, 0xb9, 100, 0, 0xba, 0x42, 0, 0xf3, 0x6c, 0xbe, 0, 0x20, 0xb9, 100, 0, 0xba, 0x43,
            0, 0xf3, 0x6e, 0xf4,
        ],
        Mode::Real,
    );
    let builder = Machine::builder(image).port_device(0x42, 2, counter.clone()).expect("free");
    let (report, _) = run_machine(builder);
    assert!(matches!(report.stop, Stop::Halted), "{report:?}");
    let expected: Vec<_> = (1..=100).map(|value| (1, 1, value)).collect();
    assert_eq!(counter.lock().unwrap().written, expected);
    assert_eq!(report.profile.expect("a profile").total().elements, 201);
}

fn wide_strings() {
    let counter: Arc<Mutex<Counter>> = Arc::default();
    // mov si, 0x1000; mov dx, 0x42; mov cx, 2; rep outsw; mov si, 0x1000; mov cx, 1; rep outsd; hlt
    let image = code(
        &[
            0xbe, 0, 0x10, 0xba, 0x42, 0, 0xb9, 2, 0, 0xf3, 0x6f, 0xbe, 0, 0x10, 0xb9, 1, 0, 0x66, 0xf3,
            0x6f, 0xf4,
        ],
        Mode::Real,
    );
    let builder = Machine::builder(image).port_device(0x42, 1, counter.clone()).expect("free");
    let (report, _) = run_machine(builder);
    assert!(matches!(report.stop, Stop::Halted), "{report:?}");
    let written = counter.lock().unwrap().written.clone();
    assert_eq!(written, [(0, 2, 0x00be), (0, 2, 0xba10), (0, 4, 0xba10_00be)]);
    assert_eq!(report.profile.expect("a profile").total().elements, 4);
}

fn capped_sites() {
    // xor dx, dx; again: in al, dx; inc dx; cmp dh, 0x10; jne again; hlt
    let image = code(&[0x31, 0xd2, 0xec, 0x42, 0x80, 0xfe, 0x10, 0x75, 0xf9, 0xf4], Mode::Real);
    let (report, _) = run_machine(Machine::builder(image).timeout(Some(Duration::from_secs(30))));
    let profile = report.profile.expect("a profile");
    assert_eq!(profile.total().exits, 4097);
    assert!(profile.sites().len() <= vmm::profile::MAX_SITES + 2);
    let (site, count) = profile.sites()[0];
    assert_eq!((site, count.exits), (Site { reason: Reason::PioIn, place: None }, 4096 - 1024));
}

fn kernel_counter() {
    let guest = find("real16-hello");
    let (report, _) = run_machine(embedded(guest, None).kernel_counters(true));
    // A kernel before 5.14 has no such counter.
    if let Some(kernel) = report.kernel_exits.filter(|count| *count > 0) {
        assert!(kernel >= 15, "{kernel}");
    }
    assert_eq!(run_machine(embedded(guest, None)).0.kernel_exits, None, "only where it was asked for");
}

fn no_profile() {
    assert!(run_machine(embedded(find("simvirtio"), None).profile(false)).0.profile.is_none());
}

fn result_widths() {
    let verdict = |image| {
        let (report, _) = run_machine(Machine::builder(image).verify(true));
        report.verdict.expect("it halts").passed()
    };
    // Real mode: mov eax, 0x1002a; mov word [0x400], 42; hlt. The upper half of EAX does not count.
    let real: &[u8] = &[0x66, 0xb8, 0x2a, 0, 1, 0, 0xc7, 0x06, 0, 4, 0x2a, 0, 0xf4];
    assert!(verdict(code(real, Mode::Real)));
    // Long mode: mov eax, 42; bts rax, 40 (or nops); mov dword [0x400], 42; hlt. All of RAX counts.
    let right: &[u8] =
        &[0xb8, 42, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc7, 0x04, 0x25, 0, 4, 0, 0, 42, 0, 0, 0, 0xf4];
    let wrong: &[u8] =
        &[0xb8, 42, 0, 0, 0, 0x48, 0x0f, 0xba, 0xe8, 40, 0xc7, 0x04, 0x25, 0, 4, 0, 0, 42, 0, 0, 0, 0xf4];
    assert!(verdict(code(right, Mode::Long)));
    assert!(!verdict(code(wrong, Mode::Long)));
    // One of the two places is not enough: mov ax, 42; hlt.
    assert!(!verdict(code(&[0xb8, 42, 0, 0xf4], Mode::Real)));
}

fn open_bus() {
    // mov eax, [0xd0000000]; mov [0xd0000000], eax; mov [0x400], eax; hlt
    let image: &[u8] = &[0xa1, 0, 0, 0, 0xd0, 0xa3, 0, 0, 0, 0xd0, 0xa3, 0, 4, 0, 0, 0xf4];
    let (report, _) = run_machine(Machine::builder(code(image, Mode::Protected)).verify(true));
    let verdict = report.verdict.expect("it halts");
    assert_eq!((verdict.register, verdict.memory), (0xffff_ffff, 0xffff_ffff));
    assert_eq!(report.profile.expect("a profile").total().exits, 3);
    let seen: Vec<_> = report.open_bus.seen().map(|(site, count)| (site.reason, site.place, count)).collect();
    let place = Some((0xd000_0000, 4));
    assert_eq!(seen, [(Reason::MmioRead, place, 1), (Reason::MmioWrite, place, 1)]);
    assert_eq!(report.open_bus.total(), 2);
}

fn output_limit() {
    // again: mov al, 'x'; out 0xe9, al; jmp again
    let image = || code(&[0xb0, b'x', 0xe6, 0xe9, 0xeb, 0xfa], Mode::Real);
    let (report, output) = run_machine(Machine::builder(image()).output_limit(Some(10)));
    assert!(matches!(report.stop, Stop::OutputLimit(10)), "{}", report.stop);
    assert_eq!(output, b"xxxxxxxxxx");
    for transport in [Transport::Exit, Transport::Polling] {
        let (report, output) =
            run_machine(embedded(find("simvirtio"), Some(transport)).output_limit(Some(3)));
        assert!(matches!(report.stop, Stop::OutputLimit(3)), "{}", report.stop);
        assert_eq!(output, b"Ana");
    }
    let (report, _) = run_machine(embedded(find("simvirtio"), None).output_limit(Some(12)));
    assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
}

fn side_by_side() {
    let threads: Vec<_> = (0..8)
        .map(|number| {
            std::thread::spawn(move || {
                let transport = if number % 2 == 0 { Transport::Exit } else { Transport::Polling };
                for _ in 0..5 {
                    let (report, output) = run_machine(embedded(find("simvirtio"), Some(transport)));
                    assert_eq!(output, b"Ana are mere");
                    assert!(report.verdict.is_some_and(|verdict| verdict.passed()));
                }
                let (report, _) = run_machine(embedded(find("long64-endless"), None));
                assert!(matches!(report.stop, Stop::Timeout));
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no thread panics");
    }
}

/// The guest that walks the modes ends badly without CPUID, or not at all; never with 42 unseen.
fn cpuid_is_needed() {
    let guest = find("modes");
    let (report, output) = run_machine(embedded(guest, None).cpuid(true));
    assert!(matches!(report.stop, Stop::Halted) && output == guest.output.as_bytes());
    let (report, output) = run_machine(embedded(guest, None).cpuid(false));
    assert!(!matches!(report.stop, Stop::Timeout), "{report:?}");
    assert!(output.starts_with(b"real mode\nprotected mode\n"));
}

fn reload_segments() {
    // mov ax, 0x10; mov ds, ax; mov es, ax; mov ss, ax; push 0x08; lea rax, [rip + 3]; push rax; retfq;
    // mov eax, 42; mov [0x400], eax; hlt
    let long: &[u8] = &[
        0x66, 0xb8, 0x10, 0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0x6a, 0x08, 0x48, 0x8d, 0x05, 3, 0, 0, 0,
        0x50, 0x48, 0xcb, 0xb8, 42, 0, 0, 0, 0x89, 0x04, 0x25, 0, 4, 0, 0, 0xf4,
    ];
    // The same in protected mode, with jmp 0x08:0x1011.
    let protected: &[u8] = &[
        0x66, 0xb8, 0x10, 0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xea, 0x11, 0x10, 0, 0, 0x08, 0, 0xb8, 42,
        0, 0, 0, 0xa3, 0, 4, 0, 0, 0xf4,
    ];
    for (image, mode) in [(long, Mode::Long), (protected, Mode::Protected)] {
        let (report, _) = run_machine(Machine::builder(code(image, mode)).verify(true));
        assert!(report.verdict.is_some_and(|verdict| verdict.passed()), "{mode:?}: {report:?}");
    }
}

fn image_over_result() {
    let image = || flat::image(vec![0x90; 0x401], Mode::Real, Gpa(0)).expect("a flat image");
    let refused = Machine::builder(image()).verify(true).build().expect_err("it covers 0x400");
    assert!(refused.to_string().contains("0x400"), "{refused}");
    Machine::builder(image()).build().expect("unverified it may");
    // Zeroes there are no result.
    let mut zeroes = vec![0; 0x500];
    zeroes[0] = 0xf4;
    let image = flat::image(zeroes, Mode::Real, Gpa(0)).expect("a flat image");
    Machine::builder(image).verify(true).build().expect("nothing of its own at 0x400");
}
