//! The ending of a run: one reason, out of those that the vCPUs, the background work and the output give.

use crate::exit::Stop;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

/// The reasons that the parts of a machine give for the end of a run.
pub(super) struct Reasons<'a> {
    /// The stop of each vCPU.
    pub(super) vcpus: &'a [&'a Stop],
    /// The index of the vCPU that stopped the machine. `None` if each vCPU stopped by itself.
    pub(super) stopped_by: Option<usize>,
    /// The reason why background work stopped the machine, if it did.
    pub(super) background: Option<&'a Stop>,
    /// The message of the kernel's panic, if the console showed one.
    pub(super) panic: Option<&'a str>,
    /// The result of writing the text that was still buffered.
    pub(super) output: ControlFlow<Stop>,
    /// A signal asked the program to end.
    pub(super) interrupted: bool,
}

/// Decides how a run ended.
///
/// 1. Background work that stopped the machine counts before the vCPUs: a protocol error that is found in the queue
///    after a halt is the error of the run. An interruption or a timeout of the background only repeats what stopped
///    the vCPUs.
/// 2. If every vCPU stopped by itself, the first exit code that is not zero counts.
/// 3. A reboot after a kernel panic is a panic.
/// 4. Text that could not be written turns an orderly end into a failure. If only the reader was too slow, the guest
///    is not blamed for the timeout.
pub(super) fn ending(reasons: Reasons<'_>) -> Stop {
    let Reasons { vcpus, stopped_by, background, panic, output, interrupted } = reasons;
    let stopped = stopped_by.and_then(|index| vcpus.get(index)).copied();
    let stop = match (background, stopped) {
        (Some(Stop::Interrupted), Some(stop)) => stop.clone(),
        (Some(Stop::Timeout(_) | Stop::WallTimeout(_)), Some(stop)) if !matches!(stop, Stop::Interrupted) => {
            stop.clone()
        }
        (Some(background), _) => background.clone(),
        (None, Some(stop)) => stop.clone(),
        (None, None) => all_parked(vcpus),
    };
    let stop = match (stop, panic) {
        (Stop::Rebooted, Some(message)) => Stop::Panicked(message.into()),
        (stop, _) => stop,
    };
    match output {
        ControlFlow::Break(failure) if stop.is_orderly() => match failure {
            Stop::Timeout(_) | Stop::WallTimeout(_) | Stop::Interrupted if !interrupted => {
                let why = "its reader did not take it before the timeout";
                Stop::OutputFailed(Arc::new(io::Error::new(io::ErrorKind::TimedOut, why)))
            }
            failure => failure,
        },
        _ => stop,
    }
}

/// The ending of a machine whose vCPUs all stopped by themselves.
fn all_parked(vcpus: &[&Stop]) -> Stop {
    let codes = vcpus.iter().filter_map(|stop| match stop {
        Stop::CpuExited(code) => Some(*code),
        _ => None,
    });
    match codes.clone().find(|code| *code != 0) {
        Some(code) => Stop::Exited(code),
        None if matches!(vcpus.first(), Some(Stop::CpuExited(_))) => Stop::Exited(0),
        None => Stop::Halted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Stop {
        Stop::OutputFailed(Arc::new(io::ErrorKind::StorageFull.into()))
    }

    /// The ending of a machine with one vCPU that stopped it.
    fn one(stop: Stop, background: Option<Stop>, output: ControlFlow<Stop>, interrupted: bool) -> String {
        let reasons = Reasons {
            vcpus: &[&stop],
            stopped_by: (!stop.parks()).then_some(0),
            background: background.as_ref(),
            panic: None,
            output,
            interrupted,
        };
        ending(reasons).to_string()
    }

    fn timed_out() -> Stop {
        Stop::Timeout(std::time::Duration::ZERO)
    }

    #[test]
    fn background_work_counts_before_the_vcpus() {
        const DONE: ControlFlow<Stop> = ControlFlow::Continue(());
        let table = [
            (Stop::Halted, None, "halted"),
            (Stop::Halted, Some(Stop::Quit), "ended at the console"),
            (Stop::Interrupted, Some(Stop::Quit), "ended at the console"),
            (Stop::TripleFault, Some(Stop::Interrupted), "triple fault"),
            (Stop::TripleFault, Some(timed_out()), "triple fault"),
            (Stop::Interrupted, Some(timed_out()), "timeout"),
            (Stop::Halted, Some(timed_out()), "timeout"),
            (Stop::Halted, Some(Stop::Interrupted), "interrupted"),
        ];
        for (stop, background, expected) in table {
            let case = format!("{stop}, {background:?}");
            let seen = one(stop, background, DONE, false);
            assert!(seen.starts_with(expected), "{case}: {seen}");
        }
    }

    #[test]
    fn text_that_is_lost_turns_a_good_end_into_a_failure() {
        let timeout =
            "the guest's output could not be written: its reader did not take it before the timeout";
        let table = [
            (Stop::Halted, failed(), false, "the guest's output could not be written"),
            (Stop::Halted, timed_out(), false, timeout),
            (Stop::Halted, Stop::Interrupted, false, timeout),
            (Stop::Halted, Stop::Interrupted, true, "interrupted"),
            (Stop::TripleFault, failed(), false, "triple fault"),
            (timed_out(), timed_out(), false, "timeout"),
        ];
        for (stop, output, interrupted, expected) in table {
            let case = format!("{stop}, {output}, {interrupted}");
            let seen = one(stop, None, ControlFlow::Break(output), interrupted);
            assert!(seen.starts_with(expected), "{case}: {seen}");
        }
    }

    #[test]
    fn the_first_exit_code_that_is_not_zero_counts() {
        let parked = |stops: &[Stop]| all_parked(&stops.iter().collect::<Vec<_>>()).to_string();
        assert_eq!(parked(&[Stop::Halted, Stop::Halted]), "halted");
        assert_eq!(parked(&[Stop::Halted, Stop::CpuExited(3), Stop::CpuExited(4)]), "exited with code 3");
        assert_eq!(parked(&[Stop::CpuExited(0), Stop::CpuExited(7)]), "exited with code 7");
        assert_eq!(parked(&[Stop::CpuExited(0), Stop::Halted]), "exited with code 0");
        assert_eq!(parked(&[Stop::Halted, Stop::CpuExited(0)]), "halted");
    }

    #[test]
    fn a_reboot_after_a_panic_is_a_panic() {
        let with = |stop: Stop| {
            let output = ControlFlow::Continue(());
            let panic = Some("no root");
            let reasons = Reasons {
                vcpus: &[&stop],
                stopped_by: Some(0),
                background: None,
                panic,
                output,
                interrupted: false,
            };
            ending(reasons)
        };
        assert!(matches!(with(Stop::Rebooted), Stop::Panicked(reason) if reason == "no root"));
        assert!(matches!(with(Stop::Exited(3)), Stop::Exited(3)));
    }
}
