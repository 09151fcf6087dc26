//! Random images on the software processor, in this process, through the library. Each machine runs its guest twice, with
//! a reset between the runs, which must make the same exits and end in the same way.

use crate::Setup;
use crate::images::image;
use crate::judge::{self, Verdict};
use crate::schedule::Part;
use fastrand::Rng;
use std::time::Duration;
use vmm::boot::Image;
use vmm::device::Transport;
use vmm::exit::{Exit, Stop};
use vmm::machine::Processor;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Builder, Machine, Output, Report};

/// The part.
pub struct Random {
    /// The memory of this process when the part began, in pages.
    pages: u64,
}

/// The time limit of a guest.
const LIMIT: Duration = Duration::from_millis(30);
/// The time that a run may take beyond the limit, on a busy host.
const MARGIN: Duration = Duration::from_secs(3);
/// The memory that the process may use more than at the start, in pages.
const MOST_PAGES: u64 = 64 << 10;
/// The exits of a run that are compared.
const TRACED: usize = 2000;

impl Random {
    /// Prepares the part.
    pub fn new() -> Self {
        Self { pages: resident_pages() }
    }
}

/// The memory of this process, in pages.
fn resident_pages() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0)
}

/// The options of a machine, in words, and the machine.
fn choose(choices: &mut Rng) -> Option<(String, Builder)> {
    let (bytes, linked_at) = image(choices);
    let address = *choices.choice(&[linked_at, linked_at, 0, 0x7c00, 0x1_1000, 0xf_f000])?;
    let mode = *choices.choice(&[Mode::Real, Mode::Protected, Mode::Long, Mode::User])?;
    let transport = *choices.choice(&[Transport::Exit, Transport::Doorbell, Transport::Polling])?;
    let cpus = *choices.choice(&[1, 1, 2, 4])?;
    let has_simvirtio = address + (bytes.len() as u64) <= 1 << 20;
    let image = Image::flat(bytes, mode, Gpa(address)).ok()?;
    let shown = format!("image@{address:#x}:{mode} --cpus {cpus} --transport {transport}");
    let builder = Machine::builder(image)
        .processor(Some(Processor::Soft))
        .transport(has_simvirtio.then_some(transport))
        .cpus(cpus)
        .cpuid(choices.bool())
        .kev(choices.u8(..4) == 0)
        .output(Output::captured().0)
        .output_limit(Some(1 << 16))
        .timeout(Some(LIMIT))
        .trace(Some(TRACED));
    Some((shown, builder))
}

/// The exit status with which the program would end.
fn status(stop: &Stop) -> i32 {
    match stop {
        Stop::Exited(code) => (*code).min(99) as i32,
        Stop::TripleFault | Stop::EmulationFailure(_) => 112,
        Stop::ProtocolError(_) => 113,
        Stop::Timeout(_) => 114,
        Stop::HostFailed(_) | Stop::ControllerFailed(_) => judge::HOST_ERROR,
        _ => 0,
    }
}

/// The exits of a run, each with its vCPU and the guest's RIP.
fn exits(report: &Report) -> Vec<(u32, Exit, Option<u64>)> {
    let exits = report.trace.iter().flat_map(|trace| trace.exits());
    exits.map(|(vcpu, traced)| (*vcpu, traced.exit, traced.rip)).collect()
}

/// Checks an end. Returns what is wrong.
fn check(report: &Report) -> Option<String> {
    match &report.stop {
        Stop::HostFailed(why) | Stop::ControllerFailed(why) => Some(format!("the host failed: {why}")),
        Stop::UnknownExit(number) => Some(format!("an unknown exit: {number}")),
        _ if report.elapsed > LIMIT + MARGIN => Some(format!("took {:?}", report.elapsed)),
        _ => None,
    }
}

/// Runs a machine twice. Returns the status, and what is wrong.
fn run_twice(builder: Builder) -> Result<(i32, Option<String>), String> {
    let failed = |error: vmm::Error| format!("the machine failed: {error}");
    let mut machine = match builder.build() {
        Ok(machine) => machine,
        Err(vmm::Error::Config(_) | vmm::Error::Image(_)) => return Ok((judge::USAGE, None)),
        Err(error) => return Err(failed(error)),
    };
    let first = machine.run().map_err(failed)?;
    machine.reset().map_err(failed)?;
    let second = machine.run().map_err(failed)?;
    let is_cut = [&first, &second].iter().any(|report| matches!(report.stop, Stop::Timeout(_)));
    let differs = || {
        let is_same = exits(&first) == exits(&second) && first.stop.to_string() == second.stop.to_string();
        (!is_cut && !is_same).then(|| format!("another run after a reset: {} / {}", first.stop, second.stop))
    };
    let wrong = check(&first).or_else(|| check(&second)).or_else(differs);
    Ok((status(&first.stop), wrong))
}

impl Part for Random {
    fn name(&self) -> &'static str {
        "processor"
    }

    fn run(&self, setup: &Setup, number: u64) -> Result<Verdict, String> {
        let mut choices = setup.choices(self.name(), number);
        let Some((command, builder)) = choose(&mut choices) else {
            return Ok(Verdict { status: judge::BAD_IMAGE, wrong: None, command: String::new() });
        };
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run_twice(builder)));
        let (status, wrong) = ran.unwrap_or_else(|_| Ok((101, Some("panicked".into()))))?;
        let pages = resident_pages().saturating_sub(self.pages);
        let grew = (pages > MOST_PAGES).then(|| format!("the process has grown by {pages} pages"));
        Ok(Verdict { status, wrong: wrong.or(grew), command })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_exits_is_the_same_after_a_reset() {
        // mov al, 7; out 0xf4, al
        let image = Image::flat(vec![0xb0, 7, 0xe6, 0xf4], Mode::Real, Gpa(0x1000)).expect("an image");
        let builder = Machine::builder(image).processor(Some(Processor::Soft)).trace(Some(10));
        assert_eq!(run_twice(builder.output(Output::captured().0)), Ok((7, None)));
    }

    #[test]
    fn a_seed_gives_the_same_machine_again() {
        let choose = |seed| choose(&mut Rng::with_seed(seed)).map(|(shown, _)| shown);
        assert!((0..100).all(|seed| choose(seed) == choose(seed)));
        assert!((0..100).filter_map(choose).any(|shown| shown.contains("--cpus 4")));
    }
}
