//! Guests that break the protocol, die, never end, or touch what is not there: each ends well.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::Arguments;
use simvirtio::device::{State, Violation};
use simvirtio::ring::{End as Index, WildIndex};
use std::process::ExitCode;
use std::time::Duration;
use support::{code, embedded, find, full_stream, kvm_test, run_machine};
use vmm::boot::Image;
use vmm::controller::Location;
use vmm::device::Transport;
use vmm::exit::{Reason, Site, Stop};
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Machine, Output};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("the_poller_ends_the_run_at_once", poller_ends_the_run),
        kvm_test("read_only_fields_keep_their_values", read_only_fields),
        kvm_test("an_access_of_the_wrong_width_is_named", wrong_widths),
        kvm_test("a_million_addresses_are_counted_in_bounded_memory", million_addresses),
        kvm_test("a_wild_tail_of_rx_breaks_the_device", wild_rx_tail),
        kvm_test("a_reader_that_stalls_does_not_hold_the_run", stalled_reader),
        kvm_test("a_stop_says_where", where_it_stopped),
        kvm_test("each_violation_is_named", violations),
        kvm_test("an_endless_guest_is_freed_in_time", freed_in_time),
        kvm_test("a_death_is_explained", what_it_died_of),
        kvm_test("the_reset_vector_is_a_place_like_any_other", reset_vector),
        kvm_test("the_site_table_is_capped_and_its_total_exact", capped_sites),
        kvm_test("mmio_outside_everything_is_an_open_bus", open_bus),
        kvm_test("output_has_a_limit_where_one_is_set", output_limit),
        kvm_test("an_image_over_the_result_is_refused_when_verified", image_over_result),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
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
    for transport in [Transport::Exit, Transport::Polling] {
        let (report, _) = run_machine(embedded(find("hostile-read-only"), Some(transport)));
        assert_eq!(report.simvirtio.expect("a device").history.ignored_stores, 5, "{transport:?}");
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

/// A write of text that nobody reads blocks: the time is up all the same, and what ended the run stays.
fn stalled_reader() {
    // again: mov al, 10; out 0xe9, al; jmp again
    let by_port = code(&[0xb0, 10, 0xe6, 0xe9, 0xeb, 0xfa], Mode::Real);
    // A driver that waits in the middle of its message: by polling it is the poller that hangs.
    let driver =
        || Image::flat(find("simvirtio-twice").image, Mode::Long, Gpa(0x1000)).expect("a flat image");
    for (image, transport) in
        [(by_port, Transport::Exit), (driver(), Transport::Exit), (driver(), Transport::Polling)]
    {
        let (writer, reader) = full_stream();
        let mut machine = Machine::builder(image)
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
    assert!(at(Mode::User, 0x1b, 0x1001).contains(&location("user64-hlt")));
    assert!(at(Mode::Protected, 8, 0x1001).contains(&location("prot32-triple-fault")));
    assert_eq!(location("real16-endless"), Some(Location::At { mode: Mode::Real, cs: 0, rip: 0x1001 }));
    assert_eq!(location("real16-42"), None);
}

/// The hostile drivers of the catalogue break the protocol just where they mean to.
fn violations() {
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
    // mov eax, 'abcd'; out 0xe9, eax; hlt: what may still be written is.
    let wide = code(&[0x66, 0xb8, b'a', b'b', b'c', b'd', 0x66, 0xe7, 0xe9, 0xf4], Mode::Real);
    let (report, output) = run_machine(Machine::builder(wide).output_limit(Some(3)));
    assert!(matches!(report.stop, Stop::OutputLimit(3)), "{}", report.stop);
    assert_eq!(output, b"abc");
    for transport in [Transport::Exit, Transport::Polling] {
        let (report, output) =
            run_machine(embedded(find("simvirtio"), Some(transport)).output_limit(Some(3)));
        assert!(matches!(report.stop, Stop::OutputLimit(3)), "{}", report.stop);
        assert_eq!(output, b"Ana");
    }
    let (report, _) = run_machine(embedded(find("simvirtio"), None).output_limit(Some(12)));
    assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
}

/// By exits the access is what is wrong, by polling what it leaves.
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
    // mov eax, 0xd0000000; again: mov bl, [eax]; inc eax; cmp eax, 0xd00f4240; jne again; hlt
    let image = code(
        &[0xb8, 0, 0, 0, 0xd0, 0x8a, 0x18, 0x40, 0x3d, 0x40, 0x42, 0x0f, 0xd0, 0x75, 0xf6, 0xf4],
        Mode::Protected,
    );
    let (report, _) = run_machine(Machine::builder(image).timeout(Some(Duration::from_secs(120))));
    assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
    let profile = report.profile.expect("a profile");
    assert_eq!(profile.total().exits, 1_000_001);
    assert!(profile.sites().len() <= vmm::profile::MAX_SITES + 2);
    assert_eq!(report.open_bus.total(), 1_000_000);
    assert!(report.open_bus.seen().count() < 20);
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

fn image_over_result() {
    let image = || Image::flat(vec![0x90; 0x401], Mode::Real, Gpa(0)).expect("a flat image");
    let refused = Machine::builder(image()).verify(true).build().expect_err("it covers 0x400");
    assert!(refused.to_string().contains("0x400"), "{refused}");
    Machine::builder(image()).build().expect("unverified it may");
    // Zeroes there are no result.
    let mut zeroes = vec![0; 0x500];
    zeroes[0] = 0xf4;
    let image = Image::flat(zeroes, Mode::Real, Gpa(0)).expect("a flat image");
    Machine::builder(image).verify(true).build().expect("nothing of its own at 0x400");
}
