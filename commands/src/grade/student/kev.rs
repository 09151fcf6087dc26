//! The checks of KeV that have a meaning for a VMM on KVM. Each runs the built-in guest of its check, with another text.

use crate::grade::kev::exits_of;
use crate::grade::student::describe;
use crate::grade::student::job::Job;
use crate::grade::student::run::Seen;
use crate::grade::student::score::entered;
use crate::grade::{Evidence, Task, courses, wrong};
use ::exercise::file::Task as TaskSpec;
use guest::hidden;
use report::view::plural;
use vmm::Error;
use vmm::exit::Site;
use vmm::x86::Mode;

/// The checks that have a meaning for a VMM. The others are about hypercalls, which do not reach a VMM on KVM, or about options of
/// this program.
///
/// # Errors
/// The course of this program is damaged.
pub(super) fn jobs() -> Result<Vec<Job>, Error> {
    let tasks = courses::kev()?.tasks.iter().filter(|task| task.helper.as_deref() == Some("kev-vmm"));
    Ok(tasks.map(|task| Job::Kev(&task.name)).collect())
}

/// The texts of the built-in guests, which hidden ones replace.
const TEXTS: [&str; 2] = ["Hello guest os!", "Hello mmio!"];
/// The result of a guest.
const RESULT: u64 = 42;

/// The hidden text in the place of one of [`TEXTS`].
fn text(seed: u32, index: usize, length: usize) -> String {
    hidden::text(seed.wrapping_add(u32::try_from(index).unwrap_or_default()), length)
}

/// The pieces of a hidden guest: the image at its address, and a jump to it.
///
/// # Errors
/// The guest cannot be entered there.
pub(super) fn pieces(name: &str, seed: u32, mode: Mode, address: u32) -> Result<Vec<(u64, Vec<u8>)>, String> {
    let guest = guest::find(name).ok_or("this build lacks the guest")?;
    if mode != Mode::Long {
        return Err("it needs long mode".into());
    }
    let mut image = guest.image.to_vec();
    for (index, old) in TEXTS.iter().enumerate() {
        if let Some(at) = image.windows(old.len()).position(|bytes| bytes == old.as_bytes()) {
            let new = text(seed, index, old.len());
            image.splice(at..at.saturating_add(old.len()), new.into_bytes());
        }
    }
    let (at, address) = (guest.load_at, u64::from(address));
    // mov eax, ADDRESS; jmp rax
    let mut jump = vec![0xb8];
    jump.extend(u32::try_from(at).unwrap_or_default().to_le_bytes());
    jump.extend([0xff, 0xe0]);
    let end = at.saturating_add(image.len() as u64);
    if address == at {
        return Ok(vec![(at, image)]);
    }
    if address < end && address.saturating_add(jump.len() as u64) > at {
        return Err(format!("it is linked at {at:#x}, and the entry point lies in it"));
    }
    Ok(vec![(at, image), (address, jump)])
}

/// A task for each check. A check that was not handed in has no points.
///
/// # Errors
/// The course of this program is damaged.
pub(super) fn tasks(runs: &[Option<Seen>]) -> Result<Vec<Task>, Error> {
    let graded = |(job, run): (Job, &Option<Seen>)| {
        let task = job.task()?;
        let evidence = match run {
            Some(seen) => check(task, seen).unwrap_or_else(|evidence| evidence),
            None => wrong(format!("{}: not handed in (--vmm PROGRAM, or --run {0}=COMMAND)", job.name())),
        };
        Ok(courses::graded_line(task, evidence))
    };
    jobs()?.into_iter().zip(runs).map(graded).collect()
}

/// The evidence of a check.
///
/// # Errors
/// The evidence that it failed.
fn check(task: &TaskSpec, seen: &Seen) -> Result<Evidence, Evidence> {
    let entry = entered(seen, "long", &[Mode::Long])?;
    let fail = |what: String| Err(wrong(format!("{}: {what}{}", seen.command, describe::ending(seen))));
    for (reason, place, width) in exits_of(task) {
        let found = |site: &Site| site.reason == reason && site.place == Some((place, width));
        if !seen.sites.iter().any(|(site, _)| found(site)) {
            let width = plural(width.into(), "byte");
            let last = describe::last_exit(seen);
            return fail(format!("the guest must make an exit for {reason} of {width} at {place:#x}{last}"));
        }
    }
    let output = seen.stdout.text();
    if seen.plan.hidden {
        let guest = guest::find(&task.name).map(|guest| guest.output).unwrap_or_default();
        for (index, old) in TEXTS.iter().enumerate().filter(|(_, old)| guest.contains(**old)) {
            let expected = text(seen.plan.seed, index, old.len());
            if !output.contains(&expected) {
                return fail(format!(
                    "stdout must have the guest's text {expected:?}, and has {}",
                    describe::output(seen)
                ));
            }
        }
    }
    match &seen.halt {
        None => fail(format!("the guest must halt{}", describe::last_exit(seen))),
        Some(halt) if (halt.rax, halt.result) != (RESULT, RESULT) => fail(format!(
            "at the HLT, RAX and [0x400] must be 42, and are {} and {}: an answer was wrong",
            halt.rax, halt.result
        )),
        Some(_) => {
            let exits = plural(seen.exits, "exit");
            Ok(Evidence::new(true, format!("{}; 42 at the HLT, {exits}", entry.text)))
        }
    }
}
