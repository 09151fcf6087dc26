//! The traps of KeV's second project, a line each: a guest that makes them, run and judged by how it ends, what it
//! prints, and where its exits come from.
//!
//! A student's image takes the place of a built-in guest, and has to do the same.

use crate::grade::{Evidence, GradeArgs, Run, Task, wrong};
use crate::summary::{busiest, ending, shown};
use crate::target::RunTarget;
use guest::{End, Guest};
use report::view::plural;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};
use vmm::controller::{
    HYPERCALL_HALT_CPU, HYPERCALL_PRINT, KEV_CONSTANT_PORT, KEV_FIFO_MSR, KEV_FIFO_PORT, KEV_PRINTER,
};
use vmm::device::{Device, DeviceName};
use vmm::exit::{Reason, Stop};
use vmm::profile::Profile;
use vmm::{Error, Output};

/// Points for each line.
const POINTS: u32 = 5;
/// The port at which some guests say what they saw.
const SEEN_PORT: u16 = 0x42;
/// The debug console's port.
const CONSOLE: u64 = vmm::device::DEBUGCON_PORT as u64;

/// A trap: the guest that makes it, and the exits that it cannot be made without, by reason, place and width in
/// bytes.
struct Trap {
    guest: &'static str,
    exits: &'static [(Reason, u64, u8)],
}

const fn trap(guest: &'static str, exits: &'static [(Reason, u64, u8)]) -> Trap {
    Trap { guest, exits }
}

const EXIT: u64 = vmm::device::EXIT_PORT as u64;
const PRINT: (Reason, u64, u8) = (Reason::Hypercall, HYPERCALL_PRINT as u64, 4);
const FIFO: u64 = KEV_FIFO_PORT as u64;
const CONSTANT: u64 = KEV_CONSTANT_PORT as u64;
const MSR: u64 = KEV_FIFO_MSR as u64;
const EVERY_WIDTH: &[(Reason, u64, u8)] = &[
    (Reason::PioOut, FIFO, 1),
    (Reason::PioOut, FIFO, 2),
    (Reason::PioOut, FIFO, 4),
    (Reason::PioIn, FIFO, 1),
    (Reason::PioIn, FIFO, 2),
    (Reason::PioIn, FIFO, 4),
];

static TRAPS: [Trap; 19] = [
    trap("kev-hypercall", &[PRINT]),
    trap("kev-hypercall32", &[PRINT]),
    trap("kev-hypercall16", &[PRINT]),
    trap("kev-port", &[(Reason::PioOut, CONSOLE, 1)]),
    trap("kev-mmio", &[(Reason::MmioWrite, KEV_PRINTER, 8), (Reason::MmioWrite, KEV_PRINTER + 8, 8)]),
    trap("kev-halt", &[(Reason::Hypercall, HYPERCALL_HALT_CPU as u64, 4)]),
    trap(
        "kev-ports",
        &[
            (Reason::PioOut, FIFO, 1),
            (Reason::PioOut, FIFO, 2),
            (Reason::PioOut, FIFO, 4),
            (Reason::PioIn, CONSTANT, 1),
            (Reason::PioIn, CONSTANT, 2),
            (Reason::PioIn, CONSTANT, 4),
        ],
    ),
    trap("kev-strings", EVERY_WIDTH),
    trap("kev-cpuid", &[(Reason::PioOut, SEEN_PORT as u64, 1)]),
    trap("kev-msr", &[(Reason::WrMsr, MSR, 8), (Reason::RdMsr, MSR, 8)]),
    trap("kev-msr-fault", &[(Reason::RdMsr, 0xabd, 8), (Reason::WrMsr, 0xabd, 8)]),
    trap("kev-msr-rules", &[(Reason::WrMsr, 0x174, 8), (Reason::RdMsr, 0x175, 8), (Reason::RdMsr, 0x176, 8)]),
    trap("kev-vmcall", &[(Reason::PioOut, SEEN_PORT as u64, 1)]),
    trap("hostile-hypercall", &[PRINT, (Reason::Hypercall, 0xffff_ffff, 4)]),
    trap("hostile-mmio", &[(Reason::MmioWrite, KEV_PRINTER + 0x10, 4)]),
    trap("hostile-ins", &[(Reason::PioIn, FIFO, 1), (Reason::PioOut, FIFO, 1)]),
    trap("smp-counter", &[(Reason::PioOut, SEEN_PORT as u64, 1), (Reason::PioOut, SEEN_PORT as u64, 4)]),
    trap("smp-print", &[PRINT]),
    trap("smp-stop", &[(Reason::PioOut, EXIT, 1)]),
];

/// The traps, in their order. Not as a constant that the compiler sees through: LLVM takes minutes to work out what a
/// search through this table comes to.
fn traps() -> &'static [Trap] {
    std::hint::black_box(&TRAPS)
}

/// The name of a trap's guest, and the image that replaces it.
pub(super) type Replacement = (&'static str, OsString);

/// Runs the guest of each trap, and judges it. The last replacement of a guest counts.
///
/// # Errors
/// The host failed.
pub(super) fn tasks(arguments: &GradeArgs, images: &[Replacement]) -> Result<Vec<Task>, Error> {
    let mut tasks = Vec::new();
    for trap in traps() {
        let Some(guest) = guest::find(trap.guest) else { continue };
        let image = images.iter().rev().find(|(name, _)| *name == guest.name).map(|(_, image)| image);
        let evidence = match judge(trap, guest, image, arguments) {
            Err(error @ (Error::Image(_) | Error::Config(_))) => wrong(error.to_string()),
            evidence => evidence?,
        };
        tasks.push(Task { title: "", points: POINTS, evidence: vec![evidence] });
    }
    tasks.push(Task { title: "", points: POINTS, evidence: vec![per_vcpu(arguments)?] });
    Ok(tasks)
}

/// Splits `NAME=IMAGE`.
///
/// # Errors
/// No trap has a guest of this name.
pub(super) fn image(text: &OsStr) -> Result<Replacement, Error> {
    let parts = text.as_bytes().iter().position(|byte| *byte == b'=').and_then(|at| {
        let (name, image) = text.as_bytes().split_at_checked(at)?;
        let name = traps().iter().find(|trap| trap.guest.as_bytes() == name)?.guest;
        Some((name, OsStr::from_bytes(image.get(1..)?).to_owned()))
    });
    parts.ok_or_else(|| {
        let names: Vec<_> = traps().iter().map(|trap| trap.guest).collect();
        Error::Config(format!(
            "--guest {}: give NAME=IMAGE, with a NAME out of {}",
            vmm::host::printable_text(&text.to_string_lossy()),
            names.join(", ")
        ))
    })
}

/// Remembers the bytes that are written to it.
#[derive(Default)]
struct Seen(Vec<u64>);

impl Device for Seen {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(u64::MAX)
    }
    fn write(&mut self, _: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        self.0.push(data);
        ControlFlow::Continue(())
    }
    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("what the guest saw")
    }
}

fn judge(
    trap: &Trap,
    guest: &'static Guest,
    image: Option<&OsString>,
    arguments: &GradeArgs,
) -> Result<Evidence, Error> {
    let target = match image {
        Some(image) => RunTarget::find_file(image, guest.mode)?.in_place_of(guest),
        None => RunTarget::embedded(guest)?,
    };
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (output, captured) = Output::captured();
    if target.image.mode() != guest.mode {
        return Ok(wrong(format!("{}: this line is for a guest in {} mode", target.name, guest.mode)));
    }
    let mut builder = target.builder().output(output).port_device(SEEN_PORT, 1, seen.clone())?;
    if trap.guest == "kev-cpuid" {
        builder = builder.first_vcpu(NUMBER.into());
    }
    let run = Run::of(target.name, builder, captured, arguments.timeout)?;

    let mut text = run.ending();
    let mut missing = Vec::new();
    if !ends_right(&run, guest) {
        missing.push(format!("it should end as {} does", guest.name));
    }
    if run.output != guest.output.as_bytes() {
        missing.push(format!("it should print {}", shown(guest.output)));
    }
    for (reason, place, width) in trap.exits {
        if !has(run.report.profile.as_ref(), *reason, *place, *width) {
            missing.push(format!("it should make an exit {reason} {place:#x} of {width} bytes"));
        }
    }
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    match said(trap.guest, &seen.0, &run) {
        Some(Ok(words)) => text += &format!("; {words}"),
        Some(Err(wanted)) => missing.push(wanted.into()),
        None => {}
    }
    let exits = run.report.profile.as_ref().map(busiest).unwrap_or_default();
    Ok(match missing.first() {
        None => Evidence { right: true, text: format!("{text}; {}: {exits}", plural(run.exits(), "exit")) },
        Some(missing) => wrong(format!("{text}: {missing}")),
    })
}

/// The number of the vCPU that reads CPUID.
const NUMBER: u8 = 0xba;

/// What the guests say of what they saw, in words, or what they should have said; `None` for those that say
/// nothing.
fn said(guest: &str, seen: &[u64], run: &Run) -> Option<Result<String, &'static str>> {
    match guest {
        "kev-vmcall" => Some(what_was_seen(seen).ok_or("it should say at port 0x42 what it saw")),
        "kev-cpuid" => {
            let bytes: Vec<u8> = seen.iter().map(|word| word.to_le_bytes()[0]).collect();
            let vendor = vmm::x86::host_vendor();
            let wanted = [&vendor[..], &[NUMBER], vmm::x86::SIGNATURE].concat();
            let words = format!("vendor {:?}, number {NUMBER:#x}", String::from_utf8_lossy(&vendor));
            let should = "it should write vendor, number 0xba and the hypervisor's name to port 0x42";
            Some(if bytes == wanted { Ok(words) } else { Err(should) })
        }
        "smp-counter" => {
            let mut numbers: Vec<u64> = seen.iter().copied().filter(|word| *word != 4000).collect();
            numbers.sort_unstable();
            let right = numbers == [0, 1, 2, 3] && seen.last() == Some(&4000);
            let should = "each vCPU should write its number to port 0x42, and the first the total, 4000";
            Some(if right { Ok("total 4000".into()) } else { Err(should) })
        }
        "smp-stop" => {
            let stops: Vec<_> = run.report.vcpus.iter().map(|vcpu| &vcpu.stop).collect();
            let right = matches!(stops[..], [Stop::Interrupted, Stop::Exited(7)]);
            Some(if right {
                Ok("vCPU 1 stopped vCPU 0".into())
            } else {
                Err("vCPU 1 should end the machine while vCPU 0 runs")
            })
        }
        _ => None,
    }
}

/// Whether a run ended as the catalogue says of its guest.
fn ends_right(run: &Run, guest: &Guest) -> bool {
    match (guest.end, &run.report.stop) {
        (End::FortyTwo, _) => run.passed(),
        (End::ExitCode(wanted), Stop::Exited(code)) => *code == wanted,
        _ => false,
    }
}

fn has(profile: Option<&Profile>, reason: Reason, place: u64, width: u8) -> bool {
    let sites = profile.into_iter().flat_map(Profile::sites);
    sites.into_iter().any(|(site, _)| site.reason == reason && site.place == Some((place, width)))
}

/// What the processor's own hypercalls did, in words; `None` where the guest does not say.
fn what_was_seen(seen: &[u64]) -> Option<String> {
    let word = |byte: &u64| match byte {
        1 => Some("#UD"),
        2 => Some("an answer of KVM's"),
        _ => None,
    };
    match seen {
        [vmcall, vmmcall] => Some(format!("vmcall: {}, vmmcall: {}", word(vmcall)?, word(vmmcall)?)),
        _ => None,
    }
}

/// Four vCPUs that print 25 times each: the counts of each, and their sum.
fn per_vcpu(arguments: &GradeArgs) -> Result<Evidence, Error> {
    let Some(guest) = guest::find("smp-print") else { return Ok(wrong("the guest is missing")) };
    let target = RunTarget::embedded(guest)?;
    let (output, captured) = Output::captured();
    let builder = target.builder().output(output);
    let run = Run::of(target.name, builder, captured, arguments.timeout)?;
    let counts: Vec<u64> = run
        .report
        .vcpus
        .iter()
        .map(|vcpu| vcpu.profile.as_ref().map_or(0, |profile| profile.total().exits))
        .collect();
    let right = counts == [26; 4] && run.exits() == 4 * 26;
    let text = format!(
        "{}: exits counted by vCPU, {counts:?}, in all {}; {}",
        run.name,
        run.exits(),
        ending(&run.report)
    );
    Ok(Evidence { right, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trap_has_a_guest() {
        for trap in traps() {
            assert!(guest::find(trap.guest).is_some(), "{}", trap.guest);
        }
    }

    #[test]
    fn images_are_for_guests_of_the_list() {
        let (name, file) = image(OsStr::new("kev-msr=a=b@0x1000:64")).unwrap();
        assert_eq!((name, file.as_os_str()), ("kev-msr", OsStr::new("a=b@0x1000:64")));
        for bad in ["", "kev-msr", "=x", "simvirtio=x"] {
            assert!(image(OsStr::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_guest_saw_in_words() {
        assert_eq!(what_was_seen(&[1, 2]).unwrap(), "vmcall: #UD, vmmcall: an answer of KVM's");
        for odd in [&[][..], &[1], &[1, 3], &[1, 1, 1]] {
            assert_eq!(what_was_seen(odd), None);
        }
    }
}
