//! Watchers: they see the calls of a program, and its vCPUs wait for them. The program is `tests/support/observed.c`.
#![allow(clippy::unwrap_used)]

use observe::{
    Call, Choice, Ending, Event, Observation, ObservedMemory, Options, Program, Stop, StopCause, Stops,
    Target, Watcher, observe,
};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;
use vmm::memory::Gpa;

const CREATE_VM: u32 = 0xae01;
const CREATE_VCPU: u32 = 0xae41;
const SET_REGION: u32 = 0x4020_ae46;
const SET_SREGS: u32 = 0x4138_ae84;
const SHUTDOWN: u32 = 8;
/// Both engines see the same.
const ENGINES: [Choice; 2] = [Choice::Preload, Choice::Ptrace];
/// An observation adopts all children of this process, so the tests follow one after the other.
static ONE: Mutex<()> = Mutex::new(());
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Observes the program in one of its modes. Returns `None` where there is no KVM.
fn watch(engine: Choice, mode: &str, stops: Stops, watcher: &mut Watcher<'_>) -> Option<Observation> {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return None;
    }
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let path = PROGRAM.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("observed");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/observed.c");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-pthread", "-o"]).arg(&path).arg(source).arg("-ldl");
        assert!(gcc.status().unwrap().success());
        path
    });
    let program = Program::find(path.as_os_str()).unwrap();
    let options = Options {
        timeout: Some(Duration::from_secs(60)),
        trace: None,
        by_address: false,
        stops,
        ..Options::default()
    };
    let mut engine = engine.engine(&program).unwrap();
    let arguments: Vec<_> = mode.split(' ').map(OsString::from).collect();
    Some(observe(&program, &arguments, options, engine.as_mut(), watcher).unwrap())
}

fn assert_success(engine: Choice, mode: &str, observation: &Observation) {
    let Ending::Ended(status) = observation.ending else { panic!("{:?}", observation.ending) };
    assert_eq!(status, ExitStatus::from_raw(0), "{engine:?} {mode}");
}

/// The calls, the stops, and the number of lost calls.
#[derive(Debug, Default)]
struct Seen {
    calls: Vec<Call>,
    stops: Vec<Stop>,
    lost: u64,
}

impl Seen {
    fn take(&mut self, event: &Event) {
        match event {
            Event::Called(call) => self.calls.push(call.clone()),
            Event::Stopped(stop) => self.stops.push((**stop).clone()),
            Event::LostCalls(lost) => self.lost = *lost,
            _ => {}
        }
    }

    fn of(engine: Choice, mode: &str, stops: Stops) -> Option<(Self, Observation)> {
        let mut seen = Self::default();
        let observation = watch(engine, mode, stops, &mut |event, _| seen.take(event))?;
        assert_success(engine, mode, &observation);
        Some((seen, observation))
    }

    fn requests(&self) -> Vec<(u32, Target)> {
        self.calls.iter().map(|call| (call.request, call.target)).collect()
    }
}

#[test]
fn the_calls_that_build_a_machine_come_in_order() {
    for engine in ENGINES {
        let Some((seen, _)) = Seen::of(engine, "plain", Stops::default()) else { return };
        let vcpu = Target::Vcpu(observe::VcpuId { vm: 1, vcpu: 0 });
        let expected = [
            (CREATE_VM, Target::System),
            (SET_REGION, Target::Vm(1)),
            (CREATE_VCPU, Target::Vm(1)),
            (0x8138_ae83, vcpu),
            (SET_SREGS, vcpu),
            (0x4090_ae82, vcpu),
            (0xae04, Target::System),
        ];
        assert_eq!((seen.requests(), seen.lost), (expected.to_vec(), 0));
        let region = &seen.calls[1];
        assert_eq!((region.data.len(), region.result, seen.calls[4].data.len()), (32, 0, 312));
        assert_eq!(region.data[16..24], 0x10000u64.to_ne_bytes());
        assert!(seen.stops.is_empty());
    }
}

#[test]
fn a_vcpu_waits_at_its_first_entry_and_sees_nothing() {
    for engine in ENGINES {
        let mut stops = Vec::new();
        let mut watcher = |event: &Event, memory: &ObservedMemory| {
            let Event::Stopped(stop) = event else { return };
            let mut code = [0; 3];
            let read = memory.read(stop.vcpu.vm, stop.process, Gpa(0x1000), &mut code);
            stops.push(((**stop).clone(), read, code));
            std::thread::sleep(Duration::from_millis(50));
            // The guest writes one byte less.
            assert!(memory.write(stop.vcpu.vm, stop.process, Gpa(0x1000), &[0xb9, 0xe7, 3]));
        };
        let options = Stops { first_entry: true, halts: false, rip: false };
        // The status is 1, because the program misses an exit.
        let Some(observation) = watch(engine, "plain", options, &mut watcher) else { return };
        assert_eq!(observation.profile.total().exits, 1501);
        let [(stop, true, code)] = stops.as_slice() else { panic!("{stops:?}") };
        assert_eq!(*code, [0xb9, 0xe8, 3]);
        assert!(matches!(stop.cause, StopCause::FirstEntry));
        let (regs, sregs) = stop.registers.as_deref().unwrap();
        assert_eq!((regs.rip, regs.rflags, sregs.cs.base, sregs.cr0 & 1), (0x1000, 2, 0, 0));
        for mode in ["plain", "vcpus 8", "fork", "vms", "interrupt", "jump", "descriptors"] {
            let (seen, observation) = Seen::of(engine, mode, options).unwrap();
            assert_eq!(seen.stops.len(), observation.vcpus.len(), "{mode}: {seen:?}");
        }
    }
}

#[test]
fn a_halt_is_a_stop_if_the_watcher_asks_for_it() {
    for engine in ENGINES {
        let Some((seen, observation)) =
            Seen::of(engine, "vms", Stops { first_entry: false, halts: true, rip: false })
        else {
            return;
        };
        assert_eq!(seen.stops.len(), 2);
        for (stop, vm) in seen.stops.iter().zip([2, 1]) {
            let StopCause::Exit(record) = &stop.cause else { panic!("{stop:?}") };
            assert_eq!((record.reason, record.result, stop.vcpu.vm), (5, 0, vm));
        }
        assert_eq!(observation.profile.total().exits, 3004);
    }
}

#[test]
fn a_dying_guest_is_a_stop_with_its_registers() {
    for engine in ENGINES {
        let Some((seen, observation)) = Seen::of(engine, "dies", Stops::default()) else { return };
        let [stop] = seen.stops.as_slice() else { panic!("{seen:?}") };
        let StopCause::Exit(record) = &stop.cause else { panic!("{stop:?}") };
        assert_eq!((record.reason, observation.profile.total().exits), (SHUTDOWN, 1));
        assert_eq!(stop.registers.as_ref().unwrap().1.idt.limit, 0);
    }
}

#[test]
fn refused_registers_are_stops_up_to_a_limit() {
    for engine in ENGINES {
        let Some((seen, observation)) = Seen::of(engine, "refused", Stops::default()) else { return };
        let refused =
            |stop: &Stop| matches!(&stop.cause, StopCause::Refused(call) if call.request == SET_SREGS);
        assert_eq!((seen.stops.len(), seen.stops.iter().all(refused)), (16, true));
        let StopCause::Refused(call) = &seen.stops[0].cause else { return };
        assert_eq!((call.result, call.data.len()), (-22, 312));
        // The vCPU keeps the registers that it had.
        assert_eq!(seen.stops[0].registers.as_ref().unwrap().1.cr0 >> 31, 0);
        let calls = seen.calls.iter().filter(|call| call.request == SET_SREGS && call.result == -22);
        assert_eq!((calls.count(), observation.profile.total().exits), (24, 1502));
    }
}

#[test]
fn a_program_with_a_filter_is_not_stopped() {
    let Some((seen, observation)) =
        Seen::of(Choice::Preload, "filter-late", Stops { first_entry: true, halts: true, rip: false })
    else {
        return;
    };
    assert_eq!((seen.stops.len(), observation.profile.total().exits), (0, 1503));
    let refused = seen.calls.iter().filter(|call| call.request == SET_SREGS && call.result == -22);
    assert_eq!(refused.count(), 1);
}

#[test]
fn a_machine_of_every_process_has_its_calls() {
    for engine in ENGINES {
        for (mode, vms) in
            [("fork", 2), ("exec", 2), ("repeat 20", 20), ("vms", 2), ("dup", 1), ("filter", 1)]
        {
            let Some((seen, _)) = Seen::of(engine, mode, Stops::default()) else { return };
            let count = |request| seen.calls.iter().filter(|call| call.request == request).count();
            assert_eq!((count(CREATE_VM), count(SET_REGION), seen.lost), (vms, vms, 0), "{mode}");
            let regions = seen.calls.iter().filter(|call| call.request == SET_REGION);
            let numbers: Vec<_> = regions.map(|call| call.target).collect();
            assert_eq!(numbers, (1..=vms as u32).map(Target::Vm).collect::<Vec<_>>(), "{mode}");
        }
    }
}

/// The observer makes no calls in such a program, so that its registers are not known.
#[test]
fn a_traced_program_with_a_filter_is_stopped_without_its_registers() {
    let Some((seen, observation)) =
        Seen::of(Choice::Ptrace, "filter-late", Stops { first_entry: true, halts: true, rip: false })
    else {
        return;
    };
    let causes: Vec<_> = seen
        .stops
        .iter()
        .map(|stop| match &stop.cause {
            StopCause::FirstEntry => 0,
            StopCause::Exit(record) => record.reason,
            StopCause::Refused(call) => call.request,
            StopCause::Running(_) => panic!("the program ends by itself"),
        })
        .collect();
    assert_eq!(causes, [0, 5, SET_SREGS, SHUTDOWN]);
    assert!(seen.stops.iter().all(|stop| stop.registers.is_none()));
    assert_eq!(observation.profile.total().exits, 1503);
}
