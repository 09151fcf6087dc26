//! The other two transports of SIMVIRTIO, coalesced stores and the doorbell: with the guests of the catalogue, and with
//! guests that test their limits.
#![allow(clippy::unwrap_used)]

mod support;

use guest::{End, Exits, GUESTS, Guest};
use simvirtio::device::{State, Violation};
use std::io::Read;
use std::process::{ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::{
    Liar, assert_error, code, each_on_both, embedded, find, kvm_test, on_both, processor, ran, run_machine,
    vmm, wait,
};
use vmm::device::Transport;
use vmm::exit::{Reason, Stop};
use vmm::machine::Processor;
use vmm::profile::Count;
use vmm::x86::Mode;
use vmm::{Input, Machine, Report};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        kvm_test("coalesced_stores_to_tx_head_are_not_exits", coalesced_exits),
        kvm_test("a_full_ring_of_coalesced_stores_makes_one_exit", full_ring),
        kvm_test("stores_are_handled_before_the_next_exit", order),
        kvm_test("a_missing_capability_is_reported", missing_capabilities),
    ];
    tests.extend(each_on_both(&[
        ("wrong_stores_are_reported_at_the_next_exit", wrong_stores),
        ("stores_of_a_guest_without_exits_are_handled_at_the_deadline", never_exits),
        ("a_driver_that_rings_the_doorbell_makes_no_exits", rings),
        ("only_a_store_of_a_queue_number_rings", odd_rings),
        ("the_doorbell_page_has_no_effect_with_other_transports", other_transports),
        ("coalesced_stores_need_a_single_vcpu", several_vcpus),
        ("the_report_names_the_transport", reported),
        ("a_loopback_device_returns_the_received_text", loopback),
        ("a_guest_that_waits_for_input_ends_at_the_wall_clock_limit", wall_clock_limit),
    ]));
    for guest in GUESTS.iter().filter(|guest| guest.polling_exits.is_some()) {
        // The kernel's queue needs a machine with one vCPU.
        if guest.cpus == 1 {
            let by_coalesced = move || same_as_by_exits(guest);
            tests.extend(on_both(format!("{}::coalesced", guest.name), by_coalesced));
        }
        if guest.end == End::FortyTwo {
            tests.extend(on_both(format!("{}::doorbell", guest.name), move || same_without_rings(guest)));
        }
    }
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn total(report: &Report) -> Count {
    report.profile.as_ref().unwrap().total()
}

/// The output, the end and the number of accesses are the same as by exits. Only the number of exits may be lower.
fn same_as_by_exits(guest: &'static Guest) {
    let (by_exit, text) = run_machine(embedded(guest, Some(Transport::Exit)));
    let (report, output) = run_machine(embedded(guest, Some(Transport::Coalesced)));
    assert_eq!(output, text);
    let (stop, expected) = (report.stop.to_string(), by_exit.stop.to_string());
    assert_eq!((stop, report.verdict), (expected, by_exit.verdict), "{report:?}");
    if let Exits::Exactly(accesses) = guest.exits {
        let total = total(&report);
        assert!(total.elements == accesses && total.exits <= accesses, "{total:?}");
    }
}

/// These drivers do not ring the doorbell. They work because the device also checks the queues periodically.
fn same_without_rings(guest: &'static Guest) {
    let (report, output) = run_machine(embedded(guest, Some(Transport::Doorbell)));
    assert_eq!(String::from_utf8_lossy(&output), guest.output);
    assert!(report.verdict.is_some_and(|verdict| verdict.passed()), "{report:?}");
}

fn coalesced_exits() {
    for name in ["simvirtio", "user64-simvirtio"] {
        let (report, _) = run_machine(embedded(find(name), Some(Transport::Coalesced)));
        assert_eq!(total(&report), Count { exits: 26, elements: 40 }, "{name}");
        let profile = report.profile.as_ref().unwrap();
        let head = profile.sites().into_iter().find(|(site, _)| site.place == Some((0x10_0010, 4)));
        let writes = profile
            .sites()
            .into_iter()
            .find(|(site, _)| site.place == Some((0x10_0010, 4)) && site.reason == Reason::MmioWrite);
        assert!(head.is_some());
        assert_eq!(writes.unwrap().1, Count { exits: 0, elements: 14 }, "{name}");
    }
}

/// Returns code that sends 'R', a reset, this many times, and halts.
fn send_resets(stores: u8) -> Vec<u8> {
    // mov edi, 0x11000; mov ecx, 256; mov al, 'R'; rep stosb
    const FILL_THE_QUEUE: [u8; 14] = [0xbf, 0, 0x10, 1, 0, 0xb9, 0, 1, 0, 0, 0xb0, b'R', 0xf3, 0xaa];
    // mov edi, 0x100010; mov ecx, stores; xor eax, eax
    let prepare = [0xbf, 0x10, 0, 0x10, 0, 0xb9, stores, 0, 0, 0, 0x31, 0xc0];
    // next: inc eax; mov [rdi], eax; loop next; hlt
    const ADVANCE_THE_HEAD: [u8; 7] = [0xff, 0xc0, 0x89, 0x07, 0xe2, 0xfa, 0xf4];
    [&FILL_THE_QUEUE[..], &prepare, &ADVANCE_THE_HEAD].concat()
}

/// KVM's ring has 170 entries, and one is always free. When it is full, the next store is an ordinary exit, which empties
/// the ring. Kernels before 6.12 sometimes treat a half-full ring as full.
fn full_ring() {
    for (stores, most) in [(1, 1), (169, 2), (170, 2), (171, 2), (255, 2)] {
        let code = code(send_resets(stores).leak(), Mode::Long);
        let (report, _) = run_machine(Machine::builder(code).transport(Some(Transport::Coalesced)));
        assert!(matches!(report.stop, Stop::Halted), "{report:?}");
        let Count { exits, elements } = total(&report);
        assert_eq!(elements, u64::from(stores) + 1, "{stores} stores");
        assert!(exits <= most && (stores < 170 || exits == most), "{stores} stores: {exits} exits");
        let history = report.simvirtio.unwrap().history;
        assert_eq!(history.resets, u64::from(stores), "the device handles each store once");
    }
}

/// Sends 'R', then reads TX tail: mov byte [0x11000], 'R'; mov dword [0x100010], 1; mov eax, [0x100014]; out 0xf4, al
const SEND_AND_READ_TAIL: &[u8] = &[
    0xc6, 0x04, 0x25, 0, 0x10, 1, 0, b'R', 0xc7, 0x04, 0x25, 0x10, 0, 0x10, 0, 1, 0, 0, 0, 0x8b, 0x04, 0x25,
    0x14, 0, 0x10, 0, 0xe6, 0xf4,
];

/// The device handles the store to TX head before it answers the read of TX tail.
fn order() {
    for mode in [Mode::Long, Mode::User] {
        let builder = Machine::builder(code(SEND_AND_READ_TAIL, mode)).transport(Some(Transport::Coalesced));
        let (report, _) = run_machine(builder);
        assert!(matches!(report.stop, Stop::Exited(1)), "{report:?}");
        assert_eq!(total(&report), Count { exits: 2, elements: 3 });
    }
}

/// Stores a head outside the queue: mov dword [0x100010], 256; hlt
const STORE_WILD_HEAD: &[u8] = &[0xc7, 0x04, 0x25, 0x10, 0, 0x10, 0, 0, 1, 0, 0, 0xf4];
/// Stores one byte of the head: mov byte [0x100011], 1; hlt
const STORE_NARROW_HEAD: &[u8] = &[0xc6, 0x04, 0x25, 0x11, 0, 0x10, 0, 1, 0xf4];

/// The device finds these stores at the halt.
fn wrong_stores() {
    for image in [STORE_WILD_HEAD, STORE_NARROW_HEAD] {
        let (report, _) =
            run_machine(Machine::builder(code(image, Mode::Long)).transport(Some(Transport::Coalesced)));
        let right = match &report.stop {
            Stop::ProtocolError(Violation::WildIndex { queue: 0, wild }) => wild.index == 256,
            Stop::ProtocolError(Violation::Access { offset, size, store }) => {
                (*offset, *size, *store) == (0x11, 1, true)
            }
            _ => false,
        };
        assert!(right, "{report:?}");
        assert_eq!(report.simvirtio.unwrap().state, State::Broken);
    }
}

/// mov byte [0x11000], 'R'; mov dword [0x100010], 1; jmp $
const SEND_AND_LOOP: &[u8] =
    &[0xc6, 0x04, 0x25, 0, 0x10, 1, 0, b'R', 0xc7, 0x04, 0x25, 0x10, 0, 0x10, 0, 1, 0, 0, 0, 0xeb, 0xfe];

/// The guest makes no exit after its store, so the device handles a coalesced store at the deadline.
fn never_exits() {
    for transport in Transport::ALL {
        let builder = Machine::builder(code(SEND_AND_LOOP, Mode::Long)).timeout(Some(Duration::from_secs(1)));
        let (report, _) = run_machine(builder.transport(Some(transport)));
        assert!(matches!(report.stop, Stop::Timeout(_)), "{report:?}");
        assert_eq!(report.simvirtio.unwrap().history.resets, 1, "{transport}");
    }
}

/// The input stays open, so the guest's wait moves its deadline, but not the wall-clock limit.
fn wall_clock_limit() {
    let ends_at_the_limit = |transport| {
        let limits = ["--timeout", "2", "--wall-timeout", "4.5"];
        let mut command = vmm(&[&["simvirtio-upper", "--transport", transport], &limits[..]].concat());
        let started = Instant::now();
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let status = wait(&mut child);
        let elapsed = started.elapsed();
        drop(stdin);
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(status, 114, "{transport}: {text}");
        assert!(text.contains("wall-clock limit: the guest did not end within 4.5 s"), "{transport}: {text}");
        assert!(elapsed >= Duration::from_millis(4500), "{transport}: {elapsed:?}");
    };
    thread::scope(|scope| {
        for transport in ["exit", "coalesced", "doorbell", "polling"] {
            scope.spawn(move || ends_at_the_limit(transport));
        }
    });
}

fn rings() {
    let (report, output) = run_machine(embedded(find("simvirtio-doorbell"), Some(Transport::Doorbell)));
    assert_eq!(output, b"Ana are mere");
    assert_eq!(total(&report), Count { exits: 1, elements: 1 }, "only the halt");
    let device = report.simvirtio.unwrap();
    assert_eq!((device.rings, device.state), (4, State::Ready));
    // The software processor takes turns with the device, which has no thread.
    assert_eq!(device.thread_time.is_some(), processor() == Some(Processor::Kvm));
}

/// Two stores ring the doorbell. Four accesses are ordinary exits because of their number, width or address, or because
/// of the direction: mov edi, 0x101000; xor eax, eax; mov [rdi], eax; inc eax; mov [rdi], eax; inc eax; mov [rdi], eax;
/// mov [rdi], al; mov [rdi + 4], eax; mov eax, [rdi]; out 0xf4, al
const ACCESS_DOORBELL_PAGE: &[u8] = &[
    0xbf, 0, 0x10, 0x10, 0, 0x31, 0xc0, 0x89, 0x07, 0xff, 0xc0, 0x89, 0x07, 0xff, 0xc0, 0x89, 0x07, 0x88,
    0x07, 0x89, 0x47, 0x04, 0x8b, 0x07, 0xe6, 0xf4,
];

fn odd_rings() {
    for mode in [Mode::Long, Mode::User] {
        let builder = Machine::builder(code(ACCESS_DOORBELL_PAGE, mode)).transport(Some(Transport::Doorbell));
        let (report, _) = run_machine(builder);
        assert!(matches!(report.stop, Stop::Exited(0xff)), "a load returns all ones: {report:?}");
        assert_eq!(total(&report).exits, 5);
        assert_eq!(report.simvirtio.unwrap().rings, 2);
    }
}

/// A ring is then an exit without an effect. It is not reported as an unclaimed access.
fn other_transports() {
    let guest = find("simvirtio-doorbell");
    for transport in [Transport::Exit, Transport::Coalesced, Transport::Polling] {
        let (report, output) = run_machine(embedded(guest, Some(transport)));
        assert_eq!(output, b"Ana are mere");
        let ring = report.profile.as_ref().unwrap().sites().into_iter();
        let ring = ring.filter(|(site, _)| site.place == Some((0x10_1000, 4))).map(|(_, count)| count);
        assert_eq!(ring.collect::<Vec<_>>(), [Count { exits: 4, elements: 4 }], "{transport}");
        assert_eq!(report.open_bus.seen().count(), 0, "{transport}");
    }
}

fn missing_capabilities() {
    let liar = Liar::new();
    for (number, transport, name) in
        [(15, "coalesced", "KVM_CAP_COALESCED_MMIO"), (36, "doorbell", "KVM_CAP_IOEVENTFD")]
    {
        let lie = format!("ae03 {number} 0 0 0 1000");
        let lacking = liar.run(&lie, &["simvirtio", "--transport", transport]);
        let sentence = format!(
            "this host's KVM lacks {name}, which --transport {transport} needs: choose another transport"
        );
        assert_error(&lacking, 115, &sentence);
        assert_eq!(liar.run(&lie, &["simvirtio", "--transport", "exit"]).status, 0);
    }
}

fn several_vcpus() {
    assert_error(&ran(&["smp-counter", "--transport", "coalesced"]), 110, "choose another --transport");
    let (report, _) = run_machine(embedded(find("smp-counter"), Some(Transport::Doorbell)));
    assert!(report.verdict.is_some_and(|verdict| verdict.passed()), "{report:?}");
}

fn reported() {
    for (transport, words) in [
        ("coalesced", "vmm: simvirtio by coalesced exits: state Ready, 12 bytes received"),
        ("doorbell", "vmm: simvirtio by doorbell (rung 4 times): state Ready, 12 bytes received"),
    ] {
        let ran = ran(&["simvirtio-doorbell", "--transport", transport]);
        assert_eq!((ran.status, ran.text().as_str()), (0, "Ana are mere"));
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
}

/// The device returns the text to the driver, which ignores it. The text is not printed, and the input is not read.
fn loopback() {
    for transport in Transport::ALL {
        let builder =
            embedded(find("simvirtio"), Some(transport)).input(Input::bytes(b"not this")).loopback(true);
        let (report, output) = run_machine(builder);
        let device = report.simvirtio.as_ref().unwrap();
        assert_eq!((output.as_slice(), device.message.as_slice()), (&b""[..], &b"Ana are mere"[..]));
        // If the device runs on its own thread, the guest may end before all of it is returned.
        assert!(device.history.delivered <= 12, "{report:?}");
        if !transport.shares_memory() {
            assert_eq!(device.history.delivered, 12, "{report:?}");
        }
    }
}
