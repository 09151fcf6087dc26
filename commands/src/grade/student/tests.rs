//! The points for runs that were not made.

use super::capture::Captured;
use super::entry::Entry;
use super::job::{Job, Plan};
use super::run::Seen;
use super::score::tasks;
use super::watch::{Answers, Halt};
use crate::grade::student_args::VmmArgs;
use guest::hidden::Log;
use observe::Ending;
use simvirtio::abi;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use vmm::exit::Exit;
use vmm::x86::Mode;

fn arguments() -> VmmArgs {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        vmm: VmmArgs,
    }
    <Line as clap::Parser>::try_parse_from(["grade"]).unwrap().vmm
}

fn output(text: &str) -> Captured {
    Captured { head: text.into(), ..Captured::default() }
}

/// A run of a right VMM.
fn right(job: Job) -> Seen {
    let plan = Plan::new(job, 1, &arguments(), None);
    let driver = job.is_driver();
    let mode = if job == Job::Real { Mode::Real } else { Mode::Long };
    let log = Log {
        step: 6,
        magic: abi::MAGIC,
        layout: 1,
        length: 64,
        status: 4,
        waits_for: 7,
        sent: 101,
        count: 1,
        word: plan.word,
        ..Log::default()
    };
    let exits = match job {
        Job::Polling => 1,
        Job::Simvirtio => 215,
        Job::Real | Job::Long | Job::Kev(_) => 26,
    };
    Seen {
        command: format!("./vmm {}", job.name()),
        stdout: output(&plan.text(64)),
        stderr: String::new(),
        ending: Ending::Ended(ExitStatus::from_raw(0)),
        machines: 1,
        entry: Some(Entry { mode: Some(mode), ..Entry::default() }),
        halt: Some(Halt {
            rax: 42,
            result: 42,
            word: plan.word,
            log: driver.then_some(log),
            in_table: driver,
            window: None,
        }),
        refused: None,
        death: None,
        answers: [Answers::default(), Answers::default()],
        last: Some(Exit::Hlt),
        run_failed: false,
        exits,
        window_exits: if job == Job::Simvirtio { 214 } else { 0 },
        unanswered: 0,
        console_bytes: if driver { 0 } else { 25 },
        lost: 0,
        sites: Vec::new(),
        counted: Some(exits),
        finished: "Finished vmm".into(),
        said_finished: true,
        protection: observe::Protection::Namespace,
        missing: Vec::new(),
        hang: None,
        plan,
    }
}

fn all() -> [Option<Seen>; 4] {
    Job::SO2.map(|job| Some(right(job)))
}

/// The points after a change of the run of a task, and the text of the checks that failed.
fn points(job: Job, change: impl FnOnce(&mut Seen)) -> ([u32; 5], String) {
    let mut runs = all();
    let index = Job::SO2.iter().position(|one| *one == job).unwrap();
    change(runs[index].as_mut().unwrap());
    points_of(&runs)
}

fn points_of(runs: &[Option<Seen>]) -> ([u32; 5], String) {
    let tasks = tasks(runs).unwrap();
    let failed = tasks.iter().flat_map(|task| &task.evidence).filter(|evidence| !evidence.right);
    let text: Vec<_> = failed.map(|evidence| evidence.text.as_str()).collect();
    let earned: Vec<_> =
        tasks.iter().map(|task| u32::try_from(task.earned().hundredths() / 100).unwrap()).collect();
    (earned.try_into().unwrap(), text.join("\n"))
}

#[test]
fn a_right_vmm_has_all_points_and_nothing_has_none() {
    assert_eq!(points_of(&all()), ([30, 20, 30, 10, 10], String::new()));
    assert_eq!(points_of(&[None, None, None, None]).0, [0; 5]);
}

#[test]
fn the_steps_of_real_mode_have_points_of_their_own() {
    let real = |change: fn(&mut Seen)| points(Job::Real, change).0[0];
    assert_eq!(real(|seen| seen.stdout = output("Hello, world!")), 20);
    assert_eq!(real(|seen| seen.halt.as_mut().unwrap().rax = 41), 25);
    assert_eq!(real(|seen| seen.halt.as_mut().unwrap().word ^= 1), 25);
    // Only AX and a word count in real mode.
    assert_eq!(real(|seen| seen.halt.as_mut().unwrap().rax = 0xdead_0000_002a), 30);
    assert_eq!(real(|seen| seen.said_finished = false), 25);
    assert_eq!(real(|seen| seen.ending = Ending::Timeout(Duration::from_secs(1))), 25);
    assert_eq!(real(|seen| seen.halt = None), 20);
    // The text is on stdout, and the guest has not written it.
    assert_eq!(real(|seen| seen.console_bytes = 0), 20);
    for change in [
        |seen: &mut Seen| seen.entry = None,
        |seen: &mut Seen| seen.entry.as_mut().unwrap().mode = Some(Mode::Long),
        |seen: &mut Seen| seen.entry.as_mut().unwrap().mode = None,
        |seen: &mut Seen| seen.entry.as_mut().unwrap().fault = Some("zeros".into()),
    ] {
        assert_eq!(real(change), 0);
    }
}

#[test]
fn a_guest_of_the_vmm_that_does_something_else_is_told_as_that() {
    let own = |job, change: fn(&mut Seen)| {
        points(job, |seen| {
            seen.plan.hidden = false;
            seen.halt.as_mut().unwrap().log = None;
            change(seen);
        })
    };
    let (earned, text) = own(Job::Long, |seen| (seen.stdout, seen.console_bytes) = (output("Hi"), 2));
    assert_eq!(earned[1], 10);
    assert!(
        text.contains("\"Hello, world!\" exactly once, and has \"Hi\"; the guest wrote 2 bytes on port"),
        "{text}"
    );
    let (earned, text) = own(Job::Simvirtio, |seen| seen.window_exits = 0);
    assert_eq!(earned[2], 0, "{text}");
    assert!(text.contains("the guest did not use the window at 0x100000"), "{text}");
    assert!(text.contains("RESET (0) after the driver's command R, and the guest did not read it"), "{text}");
    assert!(!text.contains("stays"), "{text}");
}

#[test]
fn a_hard_coded_text_earns_nothing() {
    let wide = |text: String| points(Job::Long, |seen| seen.stdout = output(&text));
    let text = right(Job::Long).plan.text(0);
    assert_eq!(wide("Hello, world!\n".into()).0[1], 0);
    assert!(wide("Hello, world!\n".into()).1.contains("the text is hard-coded"));
    assert_eq!(wide("something".into()).0[1], 10);
    assert_eq!(wide(format!("{text}\n{text}\n")).0[1], 10);
    assert_eq!(wide(format!("It says {text}!")).0[1], 20);
}

#[test]
fn a_handshake_has_points_up_to_its_last_step() {
    let stops = |step, status| {
        points(Job::Simvirtio, |seen| {
            let log = seen.halt.as_mut().unwrap().log.as_mut().unwrap();
            (log.step, log.status, log.waits_for) = (step, status, 3);
            seen.stdout = output("");
        })
    };
    // Polling goes further than this, so it keeps its points.
    for (step, expected) in [(1, 5), (2, 10), (3, 15), (4, 20), (5, 20)] {
        assert_eq!(stops(step, 2).0, [30, 20, expected, 10, 10], "step {step}: {}", stops(step, 2).1);
    }
    let (_, text) = stops(3, 2);
    assert!(text.contains("after DRIVER_OK, and stays 2: it never becomes READY"), "{text}");
    let simvirtio = |change: fn(&mut Seen)| points(Job::Simvirtio, change).0[2];
    assert_eq!(simvirtio(|seen| seen.halt.as_mut().unwrap().in_table = false), 25);
    assert_eq!(simvirtio(|seen| seen.halt.as_mut().unwrap().log.as_mut().unwrap().magic = 0), 25);
    // A log that the hidden guest did not write.
    assert_eq!(simvirtio(|seen| seen.halt.as_mut().unwrap().log.as_mut().unwrap().word ^= 1), 10);
}

/// A device that is wrong over both transports loses points once. Polling must reach CONFIG.
#[test]
fn polling_must_do_what_the_exits_did_without_them() {
    let both = |exits: (u32, u32), polling: (u32, u32)| {
        let mut runs = all();
        for (index, (step, waits_for)) in [(2, exits), (3, polling)] {
            let seen = runs[index].as_mut().unwrap();
            let log = seen.halt.as_mut().unwrap().log.as_mut().unwrap();
            (log.step, log.waits_for) = (step, waits_for);
            if step < 5 {
                seen.stdout = output("");
            }
        }
        let (points, text) = points_of(&runs);
        (points[2], points[3], text)
    };
    let done = (6, 7);
    assert_eq!(both(done, (4, 6)).1, 5);
    assert_eq!(both(done, (3, 5)).1, 0);
    assert_eq!(both((3, 5), (3, 5)), (15, 10, both((3, 5), (3, 5)).2));
    assert_eq!(both((3, 5), (2, 3)).1, 0);
    assert_eq!(both((1, 1), (1, 1)).1, 0);
    assert_eq!(points(Job::Polling, |seen| seen.window_exits = 1).0[3], 0);
    assert_eq!(points(Job::Polling, |seen| seen.halt = None).0[3], 0);
    // Without a program for SIMVIRTIO, polling stands alone.
    let mut runs = all();
    runs[2] = None;
    assert_eq!(points_of(&runs).0, [30, 20, 0, 10, 10]);
}

#[test]
fn every_printed_number_must_be_right() {
    assert_eq!(points(Job::Real, |seen| seen.counted = None).0[4], 10);
    let (points_of_one, text) = points(Job::Real, |seen| seen.counted = Some(25));
    assert_eq!(points_of_one[4], 0);
    assert!(text.contains("it printed 25, and made 26: the HLT is an exit, too"), "{text}");
    assert_eq!(points(Job::Real, |seen| seen.lost = 1).0[4], 0);
    // A run that a time limit ended counts nothing.
    let timeout = |seen: &mut Seen| {
        seen.ending = Ending::Timeout(Duration::from_secs(1));
        seen.counted = Some(7);
    };
    assert_eq!(points(Job::Real, timeout).0[4], 10);
    let mut runs = all();
    runs.iter_mut().flatten().for_each(|seen| seen.counted = None);
    assert_eq!(points_of(&runs).0[4], 0);
}
