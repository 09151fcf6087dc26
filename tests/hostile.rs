//! Guests that break the protocol, crash, never end, or access what does not exist. Each run ends and is reported.
#![allow(clippy::unwrap_used)]

mod support;

use simvirtio::device::{State, Violation};
use simvirtio::ring::{End as Index, WildIndex};
use std::process::ExitCode;
use std::time::Duration;
use support::payloads::{HALT, PRINT_LINES, READ_A_MILLION_ADDRESSES, UNDEFINED};
use support::{
    TRANSPORTS, code, each_on_both, embedded, find, full_stream, kvm_test, processor, run_machine,
};
use vmm::boot::Image;
use vmm::controller::Location;
use vmm::device::Transport;
use vmm::exit::{Reason, Site, Stop};
use vmm::machine::Processor;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Builder, Machine, Output};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        kvm_test("a_triple_fault_is_explained", explanations),
        kvm_test("the_location_may_be_the_reset_vector", reset_vector),
    ];
    tests.extend(each_on_both(&[
        ("a_protocol_error_by_polling_ends_the_run_at_once", poller_ends_the_run),
        ("read_only_fields_keep_their_values", read_only_fields),
        ("an_access_of_the_wrong_width_is_reported", wrong_widths),
        ("a_million_addresses_are_counted_in_bounded_memory", million_addresses),
        ("an_rx_tail_outside_the_queue_breaks_the_device", wild_rx_tail),
        ("a_reader_that_stalls_does_not_block_the_run", stalled_reader),
        ("a_stop_has_a_location", where_it_stopped),
        ("each_violation_is_reported", violations),
        ("a_guest_that_loops_is_stopped_in_time", stopped_in_time),
        ("the_site_table_has_a_limit_and_its_total_is_exact", capped_sites),
        ("mmio_outside_all_devices_is_unclaimed", unclaimed_mmio),
        ("output_has_a_limit_if_one_is_set", output_limit),
        ("an_image_over_the_result_word_is_refused_when_verified", image_over_result),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn long_mode(image: &'static [u8], transport: Transport) -> Builder {
    Machine::builder(code(image, Mode::Long)).transport(Some(transport))
}

/// The device's thread must stop the vCPU. Otherwise the guest would wait until its deadline.
fn poller_ends_the_run() {
    let (report, _) = run_machine(embedded(find("simvirtio-broken-wait"), Some(Transport::Polling)));
    assert!(matches!(report.stop, Stop::ProtocolError(_)));
    assert!(report.elapsed < Duration::from_secs(10), "{:?}", report.elapsed);
}

/// Overwrites the magic value and waits until it is restored: mov dword [0x100000], 0;
/// again: cmp dword [0x100000], 0x74726976; jne again; hlt
const OVERWRITE_MAGIC: &[u8] = &[
    0xc7, 0x04, 0x25, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x81, 0x3c, 0x25, 0, 0, 0x10, 0, 0x76, 0x69, 0x72, 0x74,
    0x75, 0xf3, 0xf4,
];

/// Overwrites a read-only byte and halts: mov byte [0x100006], 4; hlt
const OVERWRITE_AND_HALT: &[u8] = &[0xc6, 0x04, 0x25, 6, 0, 0x10, 0, 4, 0xf4];

fn read_only_fields() {
    for transport in TRANSPORTS {
        let (report, _) = run_machine(long_mode(OVERWRITE_MAGIC, transport));
        assert!(matches!(report.stop, Stop::Halted), "{transport:?}: {report:?}");
        assert_eq!(report.simvirtio.expect("a device").history.ignored_stores, 1, "{transport:?}");

        let (report, _) = run_machine(embedded(find("hostile-read-only"), Some(transport)));
        assert_eq!(report.simvirtio.expect("a device").history.ignored_stores, 5, "{transport:?}");

        // The device also counts a store just before the end.
        let (report, _) = run_machine(long_mode(OVERWRITE_AND_HALT, transport));
        assert_eq!(report.simvirtio.expect("a device").history.ignored_stores, 1, "{transport:?}");
    }
}

/// mov dword [0x10001c], -1; hlt
const STORE_WILD_RX_TAIL: &[u8] = &[0xc7, 0x04, 0x25, 0x1c, 0, 0x10, 0, 0xff, 0xff, 0xff, 0xff, 0xf4];

fn wild_rx_tail() {
    for transport in TRANSPORTS {
        let (report, _) = run_machine(long_mode(STORE_WILD_RX_TAIL, transport));
        let broken = matches!(report.stop, Stop::ProtocolError(Violation::WildIndex { queue: 1, .. }));
        assert!(broken, "{transport:?}: {report:?}");
    }
}

/// A write of output blocks because the stream is full. The run still ends at its deadline, and the report has the
/// reason.
fn stalled_reader() {
    // This driver waits in the middle of its message. By polling, the write blocks the device's thread.
    let driver =
        || Image::flat(find("simvirtio-twice").image, Mode::Long, Gpa(0x1000)).expect("a flat image");
    for (image, transport) in [
        (code(PRINT_LINES, Mode::Real), Transport::Exit),
        (code(PRINT_LINES, Mode::Real), Transport::Polling),
        (driver(), Transport::Exit),
        (driver(), Transport::Polling),
    ] {
        let (writer, reader) = full_stream();
        let mut machine = Machine::builder(image)
            .processor(processor())
            .transport(Some(transport))
            .timeout(Some(Duration::from_millis(300)))
            .output(Output::new(writer, false))
            .build()
            .expect("the machine is built");
        let report = machine.run().expect("the host runs the machine");
        assert!(matches!(report.stop, Stop::Timeout(_)), "{transport:?}: {:?}", report.stop);
        drop(reader);
    }
}

/// Loops at the reset vector: mov ax, 0xf000; mov ds, ax; mov word [0xfff0], 0xfeeb (jmp $); jmp 0xf000:0xfff0
const LOOP_AT_RESET_VECTOR: &[u8] =
    &[0xb8, 0, 0xf0, 0x8e, 0xd8, 0xc7, 0x06, 0xf0, 0xff, 0xeb, 0xfe, 0xea, 0xf0, 0xff, 0, 0xf0];

fn reset_vector() {
    let machine = Machine::builder(code(LOOP_AT_RESET_VECTOR, Mode::Real));
    let (report, _) = run_machine(machine.timeout(Some(Duration::from_millis(100))));
    assert_eq!(report.location, Some(Location::At { mode: Mode::Real, cs: 0xf000, rip: 0xfff0 }));
    assert!(report.left_its_image());
}

fn where_it_stopped() {
    for transport in TRANSPORTS {
        let location = |name| run_machine(embedded(find(name), Some(transport))).0.location;
        // An AMD host resets the CPU at a triple fault.
        let at = |mode, cs, rip| [Some(Location::At { mode, cs, rip }), Some(Location::Reset)];
        assert!(at(Mode::Long, 8, 0x1001).contains(&location("long64-triple-fault")));
        assert!(at(Mode::User, 0x1b, 0x1001).contains(&location("user64-hlt")));
        assert!(at(Mode::Protected, 8, 0x1001).contains(&location("prot32-triple-fault")));
        let looping = Location::At { mode: Mode::Real, cs: 0, rip: 0x1001 };
        assert_eq!(location("real16-endless"), Some(looping));
        assert_eq!(location("real16-42"), None);
    }
}

fn violations() {
    let wild = WildIndex { end: Index::Head, index: 0x7fff_ffff, len: 256 };
    for transport in TRANSPORTS {
        for (name, expected) in [
            ("hostile-data-early", Violation::Command { state: State::Config, byte: b'A' }),
            ("simvirtio-config-first", Violation::Command { state: State::Initial, byte: b'C' }),
            ("hostile-wild-head", Violation::WildIndex { queue: 0, wild }),
            ("hostile-selector", Violation::Selector { value: 7 }),
            ("hostile-status", Violation::DriverStatus { state: State::Reset, value: 6 }),
            ("hostile-no-ack", Violation::NotAcknowledged { driver_status: 4 }),
            ("hostile-table", Violation::Table { count: 0xffff }),
        ] {
            let (report, _) = run_machine(embedded(find(name), Some(transport)));
            let right = matches!(report.stop, Stop::ProtocolError(found) if found == expected);
            assert!(right, "{name} {transport:?}: {}", report.stop);
        }
        let (report, _) = run_machine(embedded(find("hostile-halt-early"), Some(transport)));
        assert_eq!(report.simvirtio.expect("a device").state, State::Reset, "{transport:?}");
    }
}

/// Waits for an interrupt that never comes: cli; again: hlt; jmp again
const HALT_FOR_EVER: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];

/// The run ends within 200 ms of the deadline. On a busy host, one of three tries must be in time.
fn stopped_in_time() {
    const TIMEOUT: Duration = Duration::from_millis(100);
    let assert_in_time = |what: &str, late: &dyn Fn() -> Duration| {
        let least = (0..3).map(|_| late()).min().expect("three tries");
        assert!(least < Duration::from_millis(200), "{what}: {least:?}");
    };
    for transport in TRANSPORTS {
        for name in ["real16-endless", "prot32-endless", "long64-endless"] {
            assert_in_time(name, &|| {
                let (report, _) = run_machine(embedded(find(name), Some(transport)));
                assert!(matches!(report.stop, Stop::Timeout(_)), "{name}: {}", report.stop);
                report.elapsed.saturating_sub(TIMEOUT)
            });
        }
        if processor() == Some(Processor::Soft) {
            continue;
        }
        // The HLT waits in the kernel, without an exit.
        assert_in_time("hlt", &|| {
            let builder = Machine::builder(code(HALT_FOR_EVER, Mode::Real)).irqchip(true);
            let (report, _) = run_machine(builder.transport(Some(transport)).timeout(Some(TIMEOUT)));
            assert!(matches!(report.stop, Stop::Timeout(_)), "hlt: {}", report.stop);
            assert_eq!(report.profile.expect("a profile").total().exits, 0);
            report.elapsed.saturating_sub(TIMEOUT)
        });
    }
}

/// xor ecx, ecx; div ecx
const DIVIDE_BY_ZERO: &[u8] = &[0x31, 0xc9, 0xf7, 0xf1];
/// Reads an unmapped address: mov eax, [0x100000000]
const READ_UNMAPPED: &[u8] = &[0xa1, 0, 0, 0, 0, 1, 0, 0, 0];
/// xorps xmm0, xmm0
const USE_SSE: &[u8] = &[0x0f, 0x57, 0xc0];

/// The report names the probable fault, if the host keeps the state of a CPU that triple-faults.
fn explanations() {
    for (image, expected) in [
        (UNDEFINED, "#UD: an undefined"),
        (DIVIDE_BY_ZERO, "#DE"),
        (READ_UNMAPPED, "#PF: the operand's address"),
        (USE_SSE, "#UD: SSE is not enabled"),
    ] {
        for transport in TRANSPORTS {
            let (report, _) = run_machine(long_mode(image, transport));
            let lost = report.location == Some(Location::Reset);
            let explanation = report.explanation.as_ref();
            let found = explanation.and_then(|explanation| explanation.suspicion()).unwrap_or("nothing");
            assert!(lost || found.starts_with(expected), "{image:x?}: {found}");
        }
    }
}

/// mov eax, [0xd0000000]; mov [0xd0000000], eax; mov [0x400], eax; hlt
const UNCLAIMED_MMIO: &[u8] = &[0xa1, 0, 0, 0, 0xd0, 0xa3, 0, 0, 0, 0xd0, 0xa3, 0, 4, 0, 0, 0xf4];

fn unclaimed_mmio() {
    let (report, _) = run_machine(Machine::builder(code(UNCLAIMED_MMIO, Mode::Protected)).verify(true));
    let verdict = report.verdict.expect("the guest halts");
    assert_eq!((verdict.register, verdict.memory), (0xffff_ffff, 0xffff_ffff));
    assert_eq!(report.profile.expect("a profile").total().exits, 3);
    let seen: Vec<_> = report.open_bus.seen().map(|(site, count)| (site.reason, site.place, count)).collect();
    let place = Some((0xd000_0000, 4));
    assert_eq!(seen, [(Reason::MmioRead, place, 1), (Reason::MmioWrite, place, 1)]);
    assert_eq!(report.open_bus.total(), 2);
}

/// again: mov al, 'x'; out 0xe9, al; jmp again
const PRINT_X: &[u8] = &[0xb0, b'x', 0xe6, 0xe9, 0xeb, 0xfa];
/// mov eax, 'abcd'; out 0xe9, eax; hlt
const PRINT_FOUR_AT_ONCE: &[u8] = &[0x66, 0xb8, b'a', b'b', b'c', b'd', 0x66, 0xe7, 0xe9, 0xf4];

fn output_limit() {
    let limited =
        |image, limit| run_machine(Machine::builder(code(image, Mode::Real)).output_limit(Some(limit)));
    let (report, output) = limited(PRINT_X, 10);
    assert!(matches!(report.stop, Stop::OutputLimit(10)), "{}", report.stop);
    assert_eq!(output, b"xxxxxxxxxx");
    // The part below the limit is written.
    let (report, output) = limited(PRINT_FOUR_AT_ONCE, 3);
    assert!(matches!(report.stop, Stop::OutputLimit(3)), "{}", report.stop);
    assert_eq!(output, b"abc");
    for transport in TRANSPORTS {
        let limited =
            |limit| run_machine(embedded(find("simvirtio"), Some(transport)).output_limit(Some(limit)));
        let (report, output) = limited(3);
        assert!(matches!(report.stop, Stop::OutputLimit(3)), "{}", report.stop);
        assert_eq!(output, b"Ana");
        let (report, _) = limited(12);
        assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
    }
}

/// By exits, the device sees the width of the access. By polling, it sees only the resulting value.
fn wrong_widths() {
    for (name, offset, size, head) in [
        ("hostile-word-head", 0x12, 2, 0x7fff_0000),
        ("hostile-wide-head", 0x10, 8, 0x7fff_ffff),
        ("hostile-straddling-head", 0x0e, 4, 0xffff),
    ] {
        let wild = WildIndex { end: Index::Head, index: head, len: 256 };
        for (transport, expected) in [
            (Transport::Exit, Violation::Access { offset, size, store: true }),
            (Transport::Polling, Violation::WildIndex { queue: 0, wild }),
        ] {
            let (report, _) = run_machine(embedded(find(name), Some(transport)));
            let right = matches!(report.stop, Stop::ProtocolError(found) if found == expected);
            assert!(right, "{name} {transport:?}: {}", report.stop);
        }
    }
}

fn million_addresses() {
    let image = code(READ_A_MILLION_ADDRESSES, Mode::Protected);
    let (report, _) = run_machine(Machine::builder(image).timeout(Some(Duration::from_secs(120))));
    assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
    let profile = report.profile.expect("a profile");
    assert_eq!(profile.total().exits, 1_000_001);
    assert!(profile.sites().len() <= vmm::profile::MAX_SITES + 2);
    assert_eq!(report.open_bus.total(), 1_000_000);
    assert!(report.open_bus.seen().count() < 20);
}

/// Reads the ports 0 to 0xfff: xor dx, dx; again: in al, dx; inc dx; cmp dh, 0x10; jne again; hlt
const READ_4096_PORTS: &[u8] = &[0x31, 0xd2, 0xec, 0x42, 0x80, 0xfe, 0x10, 0x75, 0xf9, 0xf4];

fn capped_sites() {
    let image = code(READ_4096_PORTS, Mode::Real);
    let (report, _) = run_machine(Machine::builder(image).timeout(Some(Duration::from_secs(30))));
    let profile = report.profile.expect("a profile");
    assert_eq!(profile.total().exits, 4097);
    assert!(profile.sites().len() <= vmm::profile::MAX_SITES + 2);
    let (site, count) = profile.sites()[0];
    assert_eq!((site, count.exits), (Site { reason: Reason::PioIn, place: None }, 4096 - 1024));
}

fn image_over_result() {
    let image = || Image::flat(vec![0x90; 0x401], Mode::Real, Gpa(0)).expect("a flat image");
    let refused = Machine::builder(image()).verify(true).build().expect_err("the image covers 0x400");
    assert!(refused.to_string().contains("0x400"), "{refused}");
    Machine::builder(image()).build().expect("without verification the image is accepted");
    // Zeros at 0x400 are accepted: they are not a result.
    let mut zeros = vec![0; 0x500];
    zeros[..HALT.len()].copy_from_slice(HALT);
    let image = Image::flat(zeros, Mode::Real, Gpa(0)).expect("a flat image");
    Machine::builder(image).verify(true).build().expect("zeros at 0x400 are accepted");
}
