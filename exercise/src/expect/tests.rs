//! Checks of made-up facts.

use super::*;
use crate::facts::{Memory, RunEnd, SiteExits};
use simvirtio::device::State;
use vmm::exit::{Reason, Site, Stop};
use vmm::memory::{Gpa, GuestMemory};
use vmm::x86::{Mode, Regs, Sregs};

/// A run that printed `output` and halted.
fn with_facts<T>(output: &[u8], read: impl FnOnce(&mut Facts) -> T) -> T {
    let memory = GuestMemory::new(&[(Gpa(0), 0x1000)]).unwrap();
    memory.write(Gpa(0x400), &[42, 0, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let site = |reason, place, device: Option<&str>, exits| SiteExits {
        site: Site { reason, place },
        device: device.map(Into::into),
        exits,
    };
    let mut facts = Facts {
        end: RunEnd::Guest(&Stop::Halted),
        output,
        output_len: output.len() as u64,
        registers: Some((Regs { rax: 41, rbx: u64::MAX, ..Regs::default() }, Sregs::default())),
        memory: Memory::Whole(memory),
        exits: Some(vec![
            site(Reason::PioOut, Some((0xe9, 1)), Some("debug console"), 14),
            site(Reason::MmioRead, Some((0x10_0014, 4)), Some("simvirtio TX tail"), 3),
            site(Reason::MmioWrite, Some((0x10_0010, 4)), Some("simvirtio TX head"), 2),
            site(Reason::Hlt, None, None, 1),
        ]),
        devices: vec!["debug console", "exit port", "simvirtio"],
        simvirtio: Some(State::Config),
        modes: Some(vec![Mode::Real, Mode::Protected]),
        trace: None,
        features: None,
        setup: None,
    };
    read(&mut facts)
}

fn check(text: &str) -> Check {
    let expectation: Expectation = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    with_facts(b"", |facts| expectation.check(facts))
}

fn exits(text: &str) -> Check {
    let limit = ExitLimit::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    with_facts(b"", |facts| Expectation::Exits(limit).check(facts))
}

#[test]
fn a_failed_check_says_what_was_expected_and_what_was_seen() {
    for (text, sentence) in [
        ("rax=42", "rax must be 42 (0x2a), and is 41 (0x29)"),
        ("ah=1", "ah must be 1, and is 0"),
        ("bx=0xfffe", "bx must be 65534 (0xfffe), and is 65535 (0xffff)"),
        ("u16@0x400=0x10", "u16@0x400 must be 16 (0x10), and is 42 (0x2a)"),
        ("u8@0x1000=0", "u8@0x1000 must be 0, and there is no memory"),
        ("u64@0xfff=0", "u64@0xfff must be 0, and there is no memory"),
        ("end=7", "the end of the run must be the exit code 7, and is: halted"),
        ("end=crash", "the end of the run must be crash, and is: halted"),
        ("simvirtio=ready", "the state of SIMVIRTIO must be Ready, and is Config"),
        ("mode=real,long", "the mode at each exit must be real or long, and is real and protected"),
    ] {
        let check = check(text);
        assert_eq!((check.passed, check.to_string().as_str()), (false, sentence), "{text}");
    }
}

#[test]
fn a_met_expectation_passes() {
    for text in [
        "rax=41",
        "RAX = 0x29",
        "ebx=-1",
        "rbx=-1",
        "u16@0x400=42",
        "u8@0x402=-1",
        "u32@0x404=0x04030201",
        "u64@0x404=0x0807060504030201",
        "end=halt",
        "simvirtio=CONFIG",
        "mode=16,32",
    ] {
        let check = check(text);
        assert!(check.passed, "{check}");
    }
}

#[test]
fn what_is_no_expectation_is_refused() {
    for (text, why) in [
        ("rax", "SUBJECT=VALUE"),
        ("rax=", "give a number"),
        ("rax=x", "give a number"),
        ("rax=--1", "give a number"),
        ("al=256", "it has 8 bits"),
        ("al=-129", "it has 8 bits"),
        ("rxx=1", "no such register"),
        ("u24@0=1", "u8, u16, u32 or u64"),
        ("u8@=1", "guest physical address"),
        ("u8@0=256", "it has 8 bits"),
        ("end=well", "halt, an exit code, or one of power-off"),
        ("simvirtio=fine", "no such state"),
        ("mode=", "give modes"),
        ("mode=real,fast", "give modes"),
    ] {
        let error = text.parse::<Expectation>().unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
    for text in ["", "40", "<40", "<=", "<=-1", "=>4", "HLT", "HLT<=x"] {
        assert!(ExitLimit::parse(text).unwrap_err().contains("give [SITE]<=N"), "{text}");
    }
}

#[test]
fn exits_are_counted_by_the_names_of_the_table() {
    for text in [
        "<=20",
        "=20",
        ">= 20",
        "HLT=1",
        "hlt=1",
        "PIO out=14",
        "PIO out 0xe9=14",
        "port 0xe9=14",
        "port 0x3f8=0",
        "pio=14",
        "mmio=5",
        "MMIO read 0x100014=3",
        "msr=0",
        "debug console=14",
        "simvirtio=5",
        "simvirtio TX head=2",
        "Simvirtio tx HEAD=2",
        "simvirtio RX head=0",
        "exit port=0",
        "reason 17=0",
    ] {
        assert!(exits(text).passed, "{}", exits(text));
    }
    for (text, sentence) in [
        ("<=19", "exits must be at most 19, and there were 20"),
        ("=21", "exits must be exactly 21, and there were 20"),
        ("port 0xe9<=10", "exits (port 0xe9) must be at most 10, and there were 14"),
        ("HLT>=2", "exits (HLT) must be at least 2, and there was 1"),
        ("simvirtio=0", "exits at simvirtio must be exactly 0, and there were 5"),
        (
            "simvirt<=9",
            "exits at simvirt must be at most 9, and the machine has no such device or reason of exits; its devices are: \
             debug console, exit port, simvirtio",
        ),
    ] {
        let check = exits(text);
        assert_eq!((check.passed, check.to_string().as_str()), (false, sentence), "{text}");
    }
}

#[test]
fn facts_that_are_missing_fail_a_check() {
    let unknown = |text: &str, facts: &mut Facts| {
        let check = text.parse::<Expectation>().unwrap().check(facts);
        assert!(!check.passed, "{check}");
        check.to_string()
    };
    with_facts(b"", |facts| {
        (facts.registers, facts.modes, facts.simvirtio, facts.exits) = (None, None, None, None);
        assert!(unknown("rax=0", facts).contains("is not known, because the host has reset the vCPU"));
        assert!(unknown("mode=real", facts).ends_with("and is not known"));
        assert!(unknown("simvirtio=initial", facts).ends_with("and the machine has no such device"));
        let limit = Expectation::Exits(ExitLimit::parse("<=40").unwrap()).check(facts);
        assert_eq!((limit.passed, limit.seen.as_str()), (false, "were not counted"));
    });
}

#[test]
fn the_first_difference_of_the_output_is_shown() {
    let compare = |expected: &[u8], seen: &[u8]| {
        let expectation =
            Expectation::Output(Output::exactly(expected.to_vec(), "that of a.txt".into()).unwrap());
        with_facts(seen, |facts| expectation.check(facts))
    };
    assert!(compare(b"one\ntwo\n", b"one\ntwo\n").passed);
    let sentence = |expected: &[u8], seen: &[u8]| {
        let check = compare(expected, seen);
        assert!(!check.passed, "{check}");
        check.to_string()
    };
    assert_eq!(
        sentence(b"one\ntwo\n", b"one\nt\x1bo\n"),
        "the output must be that of a.txt, and differs at line 2, column 2 (offset 5): \"two\\n\" is expected there, and \"t\\u{1b}o\\n\" \
         was printed"
    );
    assert!(
        sentence(b"one", b"on")
            .ends_with("column 3 (offset 2): \"one\" is expected there, and the output ends")
    );
    assert!(
        sentence(b"one", b"one\n")
            .ends_with("column 4 (offset 3): the output must end there, and \"one\\n\" was printed")
    );
    let long = [b"x".repeat(100), b"y".repeat(1000)].concat();
    let text = sentence(&b"x".repeat(1100), &long);
    assert!(text.len() < 400 && text.contains("column 101") && text.contains("\"...xxx"), "{text}");
    with_facts(b"on", |facts| {
        facts.output_len = 3;
        let expectation = Expectation::Output(Output::exactly(b"on".to_vec(), "on".into()).unwrap());
        assert!(!expectation.check(facts).passed);
    });
}

#[test]
fn a_range_shows_the_first_byte_that_differs() {
    let range = |address, bytes: &[u8]| {
        let memory = MemoryCheck::bytes(address, bytes.to_vec()).unwrap();
        with_facts(b"", |facts| Expectation::Memory(memory).check(facts))
    };
    assert!(range(0x400, &[42, 0, 0xff]).passed);
    assert_eq!(
        range(0x404, &[1, 2, 9, 4, 5, 6, 7, 8, 9, 10, 11]).to_string(),
        "memory at 0x406 must hold 09 04 05 06 07 08 09 0a ..., and holds 03 04 05 06 07 08 00 00 ..."
    );
    assert!(MemoryCheck::bytes(0, Vec::new()).is_err());
}

#[test]
fn the_first_exit_that_is_too_many_is_named() {
    use vmm::exit::{Arrival, Exit};
    use vmm::profile::{Times, Trace, TracedExit};
    let traced = |exit, arrival| {
        let times = Times::default();
        (0, TracedExit { exit, arrival, at: 0, times, rip: None, value: None, fault: false })
    };
    let out = |port| Exit::PioOut { port, size: 1, data: 0 };
    let exits = [
        traced(out(0xe9), Arrival::FromGuest),
        traced(out(0xe9), Arrival::NextElement),
        traced(Exit::MmioRead { address: 0x10_0014, size: 4 }, Arrival::FromGuest),
        traced(out(0xe9), Arrival::FromGuest),
        traced(Exit::MmioRead { address: 0x10_0014, size: 4 }, Arrival::FromGuest),
        traced(Exit::Hlt, Arrival::FromGuest),
    ];
    let seen = |text: &str, trace: &Trace| {
        let limit = ExitLimit::parse(text).unwrap();
        let check = with_facts(b"", |facts| {
            Expectation::Exits(limit).check(&Facts { trace: Some(trace), ..facts.clone() })
        });
        assert!(!check.passed, "{text}");
        check.seen
    };
    let whole = Trace::of(6, exits.to_vec());
    for (text, end) in [
        ("<=3", "; the first one too many is exit 4 of the run: MMIO read 0x100014"),
        ("<=4", "; the first one too many is exit 5 of the run: HLT"),
        ("PIO out 0xe9<=1", "; the first one too many is exit 3 of the run: PIO out 0xe9"),
        ("simvirtio=1", "; the first one too many is exit 4 of the run: MMIO read 0x100014"),
        ("simvirtio=9", "there were 5"),
    ] {
        assert!(seen(text, &whole).ends_with(end), "{text}: {}", seen(text, &whole));
    }
    // The trace has only the last exits.
    assert_eq!(seen("<=3", &Trace::of(7, exits.to_vec())), "there were 20");
}

#[test]
fn a_feature_that_was_used_is_noticed() {
    let check = |name, is_of_vmm, features: Option<Vec<&'static str>>| {
        let feature = Forbidden::parse(name, is_of_vmm).unwrap();
        with_facts(b"", |facts| Expectation::Forbidden(feature).check(&Facts { features, ..facts.clone() }))
    };
    for (name, passed) in [
        ("mmio", false),
        ("port-io", false),
        ("hypercall", true),
        ("msr", true),
        ("real-mode", false),
        ("protected-mode", false),
        ("long-mode", true),
    ] {
        assert_eq!(check(name, false, None).passed, passed, "{name}");
    }
    assert_eq!(check("mmio", false, None).to_string(), "mmio may not be used, and was used");
    let used = || Some(vec!["irqchip"]);
    assert!(!check("irqchip", true, used()).passed && check("ioeventfd", true, used()).passed);
    assert!(!check("irqchip", true, None).passed);
    // KVM_ENABLE_CAP of KVM_CAP_SPLIT_IRQCHIP, and of another capability.
    assert_eq!(kvm_feature(0x4068_aea3, &[121, 0, 0, 0, 1]), Some("split-irqchip"));
    assert_eq!(kvm_feature(0x4068_aea3, &[1, 0, 0, 0]), None);
    assert_eq!(kvm_feature(0xae60, &[]), Some("irqchip"));
    assert_eq!(kvm_feature(0xae80, &[]), None);
}

#[test]
fn the_end_of_a_vmm_is_its_exit_status() {
    let check = |text: &str, end: RunEnd<'static>| {
        let expectation: Expectation = text.parse().unwrap();
        with_facts(b"", |facts| expectation.check(&Facts { end, ..facts.clone() }))
    };
    let failed = |timed_out| RunEnd::Failed { timed_out, text: "it is over".into() };
    assert!(check("end=3", RunEnd::Status(3)).passed);
    assert!(check("end=timeout", failed(true)).passed && check("end=crash", failed(false)).passed);
    assert!(!check("end=timeout", failed(false)).passed && !check("end=halt", RunEnd::Status(0)).passed);
    assert_eq!(
        check("end=3", RunEnd::Status(4)).to_string(),
        "the end of the run must be the exit code 3, and is: exited with status 4"
    );
    assert!(check("end=3", failed(true)).to_string().ends_with("is: it is over"));
}
