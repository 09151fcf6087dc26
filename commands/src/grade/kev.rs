//! The traps of KeV's second project, with a line for each. The guest of a trap must end as expected, print the expected
//! text, and make the expected exits.
//!
//! A student's image must do the same as the built-in guest of its check. Only these checks are graded, or all of them with
//! the built-in guests.

use crate::grade::target::{built_in, student, wrong_mode};
use crate::grade::{Evidence, GradeArgs, Run, Task, courses, is_bad_guest, wrong};
use crate::summary::{busiest, ending, excerpt};
use ::exercise::file::{CheckSpec, Task as TaskSpec};
use guest::{End, Guest};
use report::view::plural;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};
use vmm::device::{Device, DeviceName};
use vmm::exit::{Reason, Stop};
use vmm::memory::PLAIN_RAM;
use vmm::profile::Profile;
use vmm::{Error, Output};

/// The port to which some guests write their results.
const RESULT_PORT: u16 = 0x42;

/// The traps: the tasks about a guest. The task has the name of the built-in guest, and the exits that a guest must make.
///
/// # Errors
/// The course of this program is damaged.
fn traps() -> Result<impl Iterator<Item = &'static TaskSpec>, Error> {
    let is_trap = |task: &&TaskSpec| matches!(task.helper.as_deref(), Some("kev-guest" | "kev-vmm"));
    Ok(courses::kev()?.tasks.iter().filter(is_trap))
}

/// The exits that the guest of a trap must make: reason, place and width in bytes.
pub(super) fn exits_of(trap: &TaskSpec) -> Vec<(Reason, u64, u8)> {
    trap.checks.iter().flat_map(CheckSpec::sites).collect()
}

/// The name of a guest, and the image that replaces it.
pub(super) type Replacement = (&'static str, OsString);

/// Runs the guest of each trap, and checks the results.
///
/// # Errors
/// The host failed, or a file can no longer be read.
pub(super) fn tasks(arguments: &GradeArgs, images: &[Replacement]) -> Result<Vec<Task>, Error> {
    let mut tasks = Vec::new();
    for trap in traps()? {
        let Some(guest) = guest::find(&trap.name) else {
            return Err(Error::Config(format!("this build lacks the guest {}", trap.name)));
        };
        let image = images.iter().find(|(name, _)| *name == guest.name).map(|(_, image)| image);
        if !arguments.grades(image) {
            continue;
        }
        let evidence = match check(trap, guest, image, arguments) {
            Err(error) if is_bad_guest(&error) => wrong(error.to_string()),
            evidence => evidence?,
        };
        tasks.push(courses::graded_line(trap, evidence));
    }
    if arguments.reference {
        let task = courses::task(courses::kev()?, "kev-vcpus")?;
        tasks.push(courses::graded_line(task, per_vcpu(arguments)?));
    }
    Ok(tasks)
}

/// Splits each `NAME=IMAGE`.
///
/// # Errors
/// No trap has a guest of this name, or two images replace the same guest.
pub(super) fn replacements(texts: &[OsString]) -> Result<Vec<Replacement>, Error> {
    let mut replacements: Vec<Replacement> = Vec::new();
    for text in texts {
        let new = image(text)?;
        if replacements.iter().any(|(name, _)| *name == new.0) {
            return Err(Error::Config(format!("--guest replaces {} twice: give one image for it", new.0)));
        }
        replacements.push(new);
    }
    Ok(replacements)
}

/// Splits `NAME=IMAGE`.
///
/// # Errors
/// No trap has a guest of this name.
fn image(text: &OsStr) -> Result<Replacement, Error> {
    let traps: Vec<&'static str> = traps()?.map(|trap| trap.name.as_str()).collect();
    let parts = text.as_bytes().iter().position(|byte| *byte == b'=').and_then(|at| {
        let (name, image) = text.as_bytes().split_at_checked(at)?;
        let name = traps.iter().copied().find(|trap| trap.as_bytes() == name)?;
        Some((name, OsStr::from_bytes(image.get(1..)?).to_owned()))
    });
    parts.ok_or_else(|| {
        Error::Config(format!(
            "--guest must be NAME=IMAGE, not {}; NAME is one of {}",
            vmm::host::printable_text(&text.to_string_lossy()),
            traps.join(", ")
        ))
    })
}

/// A device that records the values that are written to it.
#[derive(Default)]
struct WriteRecorder(Vec<u64>);

impl Device for WriteRecorder {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(u64::MAX)
    }
    fn write(&mut self, _: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        self.0.push(data);
        ControlFlow::Continue(())
    }
    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("guest results")
    }
}

/// Runs the guest of a trap, or its replacement, and checks the results.
///
/// # Errors
/// The image cannot be run, or the host failed.
fn check(
    trap: &TaskSpec,
    guest: &'static Guest,
    image: Option<&OsString>,
    arguments: &GradeArgs,
) -> Result<Evidence, Error> {
    let target = match image {
        Some(image) => student(image, guest.mode, PLAIN_RAM)?.replacing(guest),
        None => built_in(guest)?,
    };
    if target.image.mode() != guest.mode {
        return Ok(wrong_mode(&target, &guest.mode.to_string(), guest.mode));
    }
    let recorder = Arc::new(Mutex::new(WriteRecorder::default()));
    let (output, captured) = Output::captured();
    let mut builder = target.builder().output(output).port_device(RESULT_PORT, 1, recorder.clone())?;
    if trap.name == "kev-cpuid" {
        builder = builder.first_vcpu(CPUID_VCPU.into());
    }
    let run = Run::of(target.name, builder, captured, arguments.settings())?;
    let recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(evidence(trap, guest, &run, &recorder.0))
}

/// Checks a run: its end, its output, its exits, and the values that the guest wrote to [`RESULT_PORT`]. The evidence has
/// the first failure.
fn evidence(trap: &TaskSpec, guest: &Guest, run: &Run, results: &[u64]) -> Evidence {
    let mut text = run.ending();
    let mut failures = Vec::new();
    if !ends_as_expected(run, guest) {
        failures.push(end_rule(run, guest));
    }
    if run.output != guest.output.as_bytes() {
        failures.push(match guest.output {
            "" => "must print no text".into(),
            text => format!("must print {}", excerpt(text)),
        });
    }
    for (reason, place, width) in exits_of(trap) {
        if !has_exit(run.report.profile.as_ref(), reason, place, width) {
            failures.push(format!(
                "must make an exit {reason} {place:#x} with a width of {}",
                plural(width.into(), "byte")
            ));
        }
    }
    match check_results(&trap.name, results, run) {
        Some(Ok(words)) => text += &format!("; {words}"),
        Some(Err(failure)) => failures.push(failure.into()),
        None => {}
    }
    match failures.first() {
        None => {
            let exits = run.report.profile.as_ref().map(busiest).unwrap_or_default();
            Evidence::new(true, format!("{text}; {}: {exits}", plural(run.exits(), "exit")))
        }
        Some(failure) => run.lacks(failure, ""),
    }
}

/// The number of the vCPU of the guest kev-cpuid.
const CPUID_VCPU: u8 = 0xba;

/// Checks the values that a guest wrote to [`RESULT_PORT`]. Returns them in words, or what they must be; `None` for a guest
/// that writes none.
fn check_results(guest: &str, results: &[u64], run: &Run) -> Option<Result<String, &'static str>> {
    match guest {
        "kev-vmcall" => {
            Some(describe_vmcalls(results).ok_or("must write the results of vmcall and vmmcall to port 0x42"))
        }
        "kev-cpuid" => {
            let bytes: Vec<u8> = results.iter().map(|word| word.to_le_bytes()[0]).collect();
            let vendor = run.report.processor.vendor().unwrap_or_default();
            let expected = [&vendor[..], &[CPUID_VCPU], vmm::x86::SIGNATURE].concat();
            let words = format!("vendor {:?}, number {CPUID_VCPU:#x}", String::from_utf8_lossy(&vendor));
            let failure = "must write vendor, number 0xba and the hypervisor's name to port 0x42";
            Some(if bytes == expected { Ok(words) } else { Err(failure) })
        }
        "smp-counter" => {
            let mut numbers: Vec<u64> = results.iter().copied().filter(|value| *value != 4000).collect();
            vmm::host::sort_by_key(&mut numbers, |number| *number);
            let right = numbers == [0, 1, 2, 3] && results.last() == Some(&4000);
            let failure = "each vCPU must write its number to port 0x42, and the first vCPU the total, 4000";
            Some(if right { Ok("total 4000".into()) } else { Err(failure) })
        }
        "smp-stop" => {
            let stops: Vec<_> = run.report.vcpus.iter().map(|vcpu| &vcpu.stop).collect();
            let right = matches!(stops[..], [Stop::Interrupted, Stop::Exited(7)]);
            Some(if right {
                Ok("vCPU 1 stopped vCPU 0".into())
            } else {
                Err("vCPU 1 must end the machine while vCPU 0 runs")
            })
        }
        _ => None,
    }
}

/// The rule for the end of a guest that did not end as it should.
fn end_rule(run: &Run, guest: &Guest) -> String {
    let end = match guest.end {
        End::ExitCode(code) => Stop::Exited(code).to_string(),
        _ if run.report.verdict.is_some_and(|verdict| verdict.passed()) => {
            "42 as its result, and no doubt about its work".into()
        }
        _ => "halted, with 42 as its result".into(),
    };
    format!("must end like {}: {end}", guest.name)
}

/// Returns true if a run ended as the catalogue says for its guest.
fn ends_as_expected(run: &Run, guest: &Guest) -> bool {
    match (guest.end, &run.report.stop) {
        (End::FortyTwo, _) => run.passed(),
        (End::ExitCode(expected), Stop::Exited(code)) => *code == expected,
        _ => false,
    }
}

/// Returns true if a profile has an exit with this reason, place and width.
fn has_exit(profile: Option<&Profile>, reason: Reason, place: u64, width: u8) -> bool {
    let sites = profile.into_iter().flat_map(Profile::sites);
    sites.into_iter().any(|(site, _)| site.reason == reason && site.place == Some((place, width)))
}

/// Describes what the instructions vmcall and vmmcall did; `None` if the guest did not write both results.
fn describe_vmcalls(results: &[u64]) -> Option<String> {
    let word = |result: &u64| match result {
        1 => Some("#UD"),
        2 => Some("answered by KVM"),
        _ => None,
    };
    match results {
        [vmcall, vmmcall] => Some(format!("vmcall: {}, vmmcall: {}", word(vmcall)?, word(vmmcall)?)),
        _ => None,
    }
}

/// Runs four vCPUs that print 25 times each, and checks the number of exits of each, and their sum.
fn per_vcpu(arguments: &GradeArgs) -> Result<Evidence, Error> {
    let Some(guest) = guest::find("smp-print") else {
        return Ok(wrong("this build lacks the guest smp-print"));
    };
    let target = built_in(guest)?;
    let (output, captured) = Output::captured();
    let builder = target.builder().output(output);
    let run = Run::of(target.name, builder, captured, arguments.settings())?;
    let counts: Vec<u64> = run
        .report
        .vcpus
        .iter()
        .map(|vcpu| vcpu.profile.as_ref().map_or(0, |profile| profile.total().exits))
        .collect();
    let right = counts == [26; 4] && run.exits() == 4 * 26;
    let text =
        format!("{}, each vCPU: exits {counts:?}, {} in all; {}", run.name, run.exits(), ending(&run.report));
    Ok(Evidence::new(right, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_names_a_guest_of_the_list() {
        let (name, file) = image(OsStr::new("kev-msr=a=b@0x1000:64")).unwrap();
        assert_eq!((name, file.as_os_str()), ("kev-msr", OsStr::new("a=b@0x1000:64")));
        for bad in ["", "kev-msr", "=x", "simvirtio=x"] {
            assert!(image(OsStr::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_results_of_vmcalls_are_described() {
        assert_eq!(describe_vmcalls(&[1, 2]).unwrap(), "vmcall: #UD, vmmcall: answered by KVM");
        for odd in [&[][..], &[1], &[1, 3], &[1, 1, 1]] {
            assert_eq!(describe_vmcalls(odd), None);
        }
    }
}
