//! The points of a student's VMM: pure functions of what was seen of its runs.

use crate::grade::student::describe;
use crate::grade::student::driver::{polling, simvirtio};
use crate::grade::student::job::Job;
use crate::grade::student::run::Seen;
use crate::grade::{Evidence, Task, courses, wrong};
use ::exercise::file::Task as TaskSpec;
use observe::Ending;
use report::view::plural;
use vmm::Error;
use vmm::x86::Mode;

/// The result of a guest.
const RESULT: u64 = 42;

/// The tasks of the course with their evidence, from the runs in the order of [`Job::SO2`]; `None` for a task that was not handed in.
///
/// # Errors
/// The course of this program is damaged.
pub(super) fn tasks(runs: &[Option<Seen>]) -> Result<Vec<Task>, Error> {
    let ran = |job: Job| runs.iter().flatten().find(|seen| seen.plan.job == job);
    let graded = |job: Job, grade: &dyn Fn(&Seen) -> Vec<Evidence>| match ran(job) {
        Some(seen) => grade(seen),
        None => vec![wrong(format!(
            "not handed in: no program for {} (--vmm PROGRAM, or --run {0}=COMMAND)",
            job.name()
        ))],
    };
    let of_task = |task: &'static TaskSpec| {
        let evidence = match task.helper.as_deref() {
            Some("so2-real") => graded(Job::Real, &|seen| real_mode(seen, task)),
            Some("so2-wide") => graded(Job::Long, &|seen| wide_mode(seen, task)),
            Some("so2-simvirtio") => graded(Job::Simvirtio, &|seen| simvirtio(seen, task)),
            Some("so2-polling") => graded(Job::Polling, &|seen| polling(seen, ran(Job::Simvirtio), task)),
            Some("so2-counting") => counting(runs),
            _ => return Err(courses::no_helper(task)),
        };
        Ok(courses::graded(task, evidence))
    };
    courses::so2()?.tasks.iter().map(of_task).collect()
}

/// Evidence that the program entered its guest, in one of these modes. Otherwise nothing of the task can be seen.
///
/// # Errors
/// It did not. The evidence costs the whole task.
pub(super) fn entered(seen: &Seen, expected: &str, modes: &[Mode]) -> Result<Evidence, Evidence> {
    let fail = |what: String| Err(wrong(format!("{}: {what}{}", seen.command, describe::ending(seen))));
    let refused = seen.refused.as_ref().map(|refused| format!("; {refused}")).unwrap_or_default();
    let Some(entry) = &seen.entry else {
        return match (&seen.refused, seen.machines) {
            (Some(refused), _) => fail(refused.clone()),
            (None, 0) => fail("it made no VM (KVM_CREATE_VM)".into()),
            (None, _) => fail("it never entered its guest (KVM_RUN)".into()),
        };
    };
    let mode = entry.mode.map_or("16-bit protected".into(), |mode| mode.to_string());
    let is_right = entry.mode.is_some_and(|mode| modes.contains(&mode));
    if !is_right {
        return fail(format!(
            "it must enter the guest in {expected} mode, and entered it in {mode} mode{refused}"
        ));
    }
    if let Some(fault) = &entry.fault {
        return fail(fault.clone());
    }
    Ok(Evidence::new(true, format!("{}: entered in {mode} mode at {:#x}", seen.command, entry.address)))
}

/// Evidence for the text on stdout: there, or there exactly once.
fn text(seen: &Seen, is_once: bool) -> (bool, String) {
    let expected = seen.plan.text(0);
    let text = seen.stdout.text();
    let times = text.matches(&expected).count();
    let sent = seen.console_bytes;
    let how_often = if is_once { " exactly once" } else { "" };
    let expects = format!("stdout must have the guest's text {expected:?}{how_often}");
    match times {
        0 if !seen.plan.hidden => (
            false,
            format!(
                "{expects}, and has {}; the guest wrote {}",
                describe::output(seen),
                describe::console(seen)
            ),
        ),
        0 if sent < expected.len() as u64 => {
            (false, format!("{expects}, and the guest got no further than {}", describe::console(seen)))
        }
        0 => {
            (false, format!("{expects}, and has {}; the guest wrote it to port 0xe9", describe::output(seen)))
        }
        _ if sent < expected.len() as u64 => (
            false,
            format!(
                "stdout has the text, but the guest did not write it to port 0xe9: {}",
                describe::console(seen)
            ),
        ),
        2.. if is_once => (false, format!("{expects}, and has it {}", plural(times as u64, "time"))),
        _ => (true, format!("text {expected:?} on stdout{how_often}")),
    }
}

fn real_mode(seen: &Seen, task: &TaskSpec) -> Vec<Evidence> {
    let entry = match entered(seen, "real", &[Mode::Real]) {
        Ok(entry) => entry,
        Err(evidence) => return vec![evidence],
    };
    let (has_text, sentence) = text(seen, false);
    let hint = if has_text { String::new() } else { describe::early_end(seen) };
    let result = match &seen.halt {
        None => (
            false,
            format!(
                "the guest must halt with 42 in AX and at 0x400, and did not halt{}",
                describe::last_exit(seen)
            ),
        ),
        Some(halt) => {
            let (rax, word) = (halt.rax & 0xffff, halt.result & 0xffff);
            let hidden = !seen.plan.hidden || halt.word == seen.plan.word;
            let sentence = match hidden {
                _ if (rax, word) != (RESULT, RESULT) => {
                    format!("at the HLT, AX and [0x400] must be 42, and are {rax} and {word}")
                }
                false => format!(
                    "at the HLT, [{:#x}] must be {:#x}, and is {:#x}: the guest did not run to its end",
                    guest::hidden::WORD,
                    seen.plan.word,
                    halt.word
                ),
                true => "42 in AX and at 0x400 at the HLT".into(),
            };
            ((rax, word) == (RESULT, RESULT) && hidden, sentence)
        }
    };
    let ended = matches!(seen.ending, Ending::Ended(status) if status.code().is_some());
    let end = match (ended, seen.said_finished, seen.halt.is_some()) {
        (true, true, true) => (true, "the program ended by itself, and said that it has finished".to_owned()),
        (true, true, false) => {
            (false, "the program says that it has finished, but its guest did not halt".into())
        }
        (true, false, _) => (
            false,
            format!(
                "the program must print {:?} (--finished) when it has finished, and ends with {}",
                seen.finished,
                describe::end_of_output(seen)
            ),
        ),
        (false, ..) => {
            (false, format!("the program must end by itself after the HLT{}", describe::ending(seen)))
        }
    };
    vec![
        entry.step(courses::cost(task, "entry")),
        Evidence::new(has_text, sentence + &hint).step(courses::cost(task, "text")),
        Evidence::new(result.0, result.1).step(courses::cost(task, "result")),
        Evidence::new(end.0, end.1).step(courses::cost(task, "end")),
    ]
}

fn wide_mode(seen: &Seen, task: &TaskSpec) -> Vec<Evidence> {
    let entry = match entered(seen, "protected or long", &[Mode::Protected, Mode::Long]) {
        Ok(entry) => entry,
        Err(evidence) => return vec![evidence],
    };
    let (has_text, sentence) = text(seen, true);
    let greeting = courses::text(task, "text");
    if !has_text && seen.plan.hidden && seen.stdout.text().contains(greeting) {
        return vec![wrong(format!(
            "{}: stdout has {greeting:?}, which the guest did not print: the text is hard-coded; {sentence}",
            seen.command
        ))];
    }
    let hint = if has_text { String::new() } else { describe::early_end(seen) + &describe::ending(seen) };
    vec![entry, Evidence::new(has_text, sentence + &hint).step(courses::cost(task, "text"))]
}

/// Compares the printed numbers with the exits that were observed. Programs that did not end, or never entered a guest, are
/// left out.
fn counting(runs: &[Option<Seen>]) -> Vec<Evidence> {
    let ended = |seen: &&Seen| {
        matches!(seen.ending, Ending::Ended(status) if status.code().is_some()) && seen.exits > 0
    };
    let runs: Vec<&Seen> = runs.iter().flatten().filter(ended).collect();
    if let Some(seen) = runs.iter().find(|seen| seen.lost > 0) {
        return vec![wrong(format!(
            "{}: {} not recorded, because this host is too slow",
            seen.command,
            plural(seen.lost, "exit")
        ))];
    }
    let compare = |seen: &&Seen| {
        let counted = seen.counted?;
        let off_by_one =
            if counted.saturating_add(1) == seen.exits { ": the HLT is an exit, too" } else { "" };
        let right = counted == seen.exits;
        Some(Evidence::new(
            right,
            match right {
                true => {
                    format!("{}: printed {counted}, observed {}", seen.command, plural(seen.exits, "exit"))
                }
                false => format!(
                    "{}: the program must print the number of its exits: it printed {counted}, and made {}{off_by_one}",
                    seen.command, seen.exits
                ),
            },
        ))
    };
    let evidence: Vec<_> = runs.iter().filter_map(compare).collect();
    match evidence.is_empty() {
        false => evidence,
        true if runs.is_empty() => vec![wrong("no run that ended made an exit")],
        true => vec![wrong(
            "no run printed the number of its exits: no line of the output that contains \"exit\" has a number \
             (--count-pattern)",
        )],
    }
}
