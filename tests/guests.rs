//! Every guest of the catalogue, on KVM and on the software processor: its output, its end, its result and its number of exits.
#![allow(clippy::unwrap_used)]

mod support;

use guest::{End, Exits, GUESTS, Guest, Map, Mode};
use libtest_mimic::Trial;
use simvirtio::device::State;
use std::process::ExitCode;
use support::{embedded, on_both, processor};
use vmm::controller::Location;
use vmm::device::Transport;
use vmm::exit::Stop;
use vmm::x86::state_check::{Snapshot, check as check_state};
use vmm::{Machine, Output, Report};

fn main() -> ExitCode {
    support::watchdog();
    libtest_mimic::run(&support::arguments(), catalogue()).exit_code()
}

/// Returns one test for each guest and transport.
fn catalogue() -> Vec<Trial> {
    let mut tests = Vec::new();
    for guest in GUESTS {
        if guest.map == Map::Plain {
            tests.extend(on_both(guest.name, move || check(guest, None, guest.exits)));
            continue;
        }
        let by_exit = move || check(guest, Some(Transport::Exit), guest.exits);
        tests.extend(on_both(format!("{}::exit", guest.name), by_exit));
        // A guest that does not use SIMVIRTIO makes the same exits next to the polling device.
        let polling = guest.polling_exits.unwrap_or(guest.exits);
        let by_polling = move || check(guest, Some(Transport::Polling), polling);
        tests.extend(on_both(format!("{}::polling", guest.name), by_polling));
    }
    tests
}

/// Runs a guest and compares the run with all facts of the catalogue.
fn check(guest: &'static Guest, transport: Option<Transport>, exits: Exits) {
    let (output, captured) = Output::captured();
    let machine = embedded(guest, transport).processor(processor()).output(output).build();
    let mut machine = machine.expect("the machine is built");
    let report = machine.run().expect("the host runs the machine");
    assert_eq!(String::from_utf8_lossy(&captured.bytes()), guest.output);
    no_rule_is_broken(guest, &mut machine, &report);
    let verdict = report.verdict.map(|verdict| verdict.passed());
    match guest.end {
        // HLT is not allowed in ring 3.
        End::FortyTwo if guest.mode == Mode::User => {
            assert!(matches!(report.stop, Stop::Exited(0)) && verdict == Some(true), "{report:?}");
        }
        End::FortyTwo => assert!(matches!(report.stop, Stop::Halted) && verdict == Some(true), "{report:?}"),
        End::Halts => assert!(matches!(report.stop, Stop::Halted), "{report:?}"),
        End::WrongResult => {
            assert!(matches!(report.stop, Stop::Halted) && verdict == Some(false), "{report:?}");
        }
        End::ExitCode(code) => {
            assert!(matches!(report.stop, Stop::Exited(found) if found == code));
        }
        End::TripleFault => assert!(matches!(report.stop, Stop::TripleFault), "{report:?}"),
        End::Dies => {
            assert!(matches!(report.stop, Stop::TripleFault | Stop::EmulationFailure(_)), "{report:?}");
        }
        End::ProtocolError => {
            assert!(matches!(report.stop, Stop::ProtocolError(_)), "{report:?}");
            assert_eq!(report.simvirtio.as_ref().expect("a device").state, State::Broken);
        }
        End::Never => assert!(matches!(report.stop, Stop::Timeout(_)), "{report:?}"),
    }
    assert_eq!(report.doubts, [], "no doubt about a guest of the catalogue");
    let total = report.profile.expect("a profile").total();
    match exits {
        Exits::Exactly(expected) => assert_eq!(total.exits, expected, "exits"),
        Exits::Elements(expected) => assert_eq!(total.elements, expected, "elements"),
        Exits::Unspecified => assert!(total.exits <= 4, "{} exits", total.exits),
    }
}

/// A guest cannot get into a state that breaks a rule, however it ends. So no explanation has a broken rule.
fn no_rule_is_broken(guest: &Guest, machine: &mut Machine, report: &Report) {
    if report.location == Some(Location::Reset) {
        return;
    }
    let memory = machine.memory().clone();
    let mut index = 0;
    while let Some(vcpu) = machine.vcpu(index) {
        let (regs, sregs) = (vcpu.regs().unwrap(), vcpu.sregs().unwrap());
        let broken: Vec<_> = check_state(&Snapshot {
            regs: &regs,
            sregs: &sregs,
            physical_bits: 52,
            entry: None,
            memory: &|gpa, bytes| memory.read(gpa, bytes),
        })
        .iter()
        .map(ToString::to_string)
        .collect();
        assert_eq!(broken, [""; 0], "{}, vCPU {index}: {regs:x?} {sregs:x?}", guest.name);
        index += 1;
    }
}
