//! A run of a guest for a grade.

use crate::grade::args::Settings;
use crate::grade::driver;
use crate::grade::points::{Evidence, wrong};
use crate::summary::ending;
use crate::target::{RunTarget, name_error};
use crate::{processor, progress};
use guest::Guest;
use vmm::device::Transport;
use vmm::exit::Stop;
use vmm::profile::Count;
use vmm::{Builder, Captured, Error, Input, Output, Report};

/// A run of a guest: its report and its output.
pub(super) struct Run {
    pub(super) name: String,
    pub(super) report: Report,
    pub(super) output: Vec<u8>,
}

impl Run {
    pub(super) fn new(
        target: &RunTarget,
        transport: Option<Transport>,
        queue_len: Option<u16>,
        settings: Settings,
    ) -> Result<Self, Error> {
        let (output, captured) = Output::captured();
        let builder = target
            .builder()
            .transport(transport)
            .queue_len(queue_len)
            .cpuid(target.embedded.is_none_or(|guest| guest.cpuid))
            .input(Input::bytes(target.embedded.map_or(b"", |guest| guest.input.as_bytes())))
            .output(output);
        let is_submission = target.embedded.is_none() && transport.is_some();
        let builder = match is_submission {
            true => builder.layout(settings.layout).trace(Some(driver::RECORDED)),
            false => builder,
        };
        Self::of(target.name.clone(), builder, captured, settings)
    }

    /// Builds the machine and runs it. `captured` receives its output.
    ///
    /// # Errors
    /// The machine cannot be built, or the host failed.
    pub(super) fn of(
        name: String,
        builder: Builder,
        captured: Captured,
        settings: Settings,
    ) -> Result<Self, Error> {
        let builder =
            builder.processor(settings.processor).timeout(settings.timeout).wall_timeout(settings.wall);
        let mut machine = builder.verify(true).kernel_counters(true).build().map_err(name_error(&name))?;
        processor::announce(&machine);
        progress::say(|| format!("grading, {name} runs"));
        let report = machine.run()?;
        if let Some(error) = report.host_failure() {
            return Err(error);
        }
        Ok(Self { name, report, output: captured.bytes() })
    }

    /// Runs a built-in guest that ends.
    ///
    /// # Errors
    /// The host failed, or is too slow for the time limit.
    pub(super) fn embedded(
        guest: &'static Guest,
        transport: Option<Transport>,
        settings: Settings,
    ) -> Result<Self, Error> {
        let run = Self::new(&RunTarget::embedded(guest)?, transport, guest.queue_len, settings)?;
        let option = match run.report.stop {
            Stop::Timeout(_) => "--timeout",
            Stop::WallTimeout(_) => "--wall-timeout",
            _ => return Ok(run),
        };
        Err(Error::Config(format!(
            "{option} is too short for this host: the built-in guest {} did not end within it, so this run gives no \
             grade: give a longer time",
            run.name
        )))
    }

    /// The first thing that a run lacks which should have [`passed`](Self::passed).
    pub(super) fn required(&self) -> &'static str {
        match (&self.report.stop, self.report.verdict) {
            (Stop::Halted, Some(verdict)) if verdict.passed() => "must do its work without a doubt",
            (Stop::Halted, _) => "must leave 42 as its result",
            _ => "must halt, and leave 42 as its result",
        }
    }

    /// Returns true if the guest halted, left 42 in both places, and there is no doubt about it.
    pub(super) fn passed(&self) -> bool {
        matches!(self.report.stop, Stop::Halted) && self.report.verified() == Some(true)
    }

    /// The number of exits of all vCPUs.
    pub(super) fn total(&self) -> Count {
        self.report.profile.as_ref().map(|profile| profile.total()).unwrap_or_default()
    }

    pub(super) fn exits(&self) -> u64 {
        self.total().exits
    }

    /// The name of the guest, and how the run ended.
    pub(super) fn ending(&self) -> String {
        format!("{}: {}", self.name, ending(&self.report))
    }

    /// Returns evidence that passes if all conditions are met. Its text is the end of the run, `details` and `success`.
    /// Otherwise the evidence fails, and its text begins with the first condition that is not met.
    pub(super) fn require(&self, details: &str, success: &str, conditions: &[(bool, String)]) -> Evidence {
        let success = if success.is_empty() { String::new() } else { format!("; {success}") };
        match conditions.iter().find(|(met, _)| !met) {
            None => Evidence::new(true, format!("{}{details}{success}", self.ending())),
            Some((_, missing)) => self.lacks(missing, details),
        }
    }

    /// Evidence that a run failed: what is missing, and then how the run ended. `details` follow in the text.
    pub(super) fn lacks(&self, missing: &str, details: &str) -> Evidence {
        wrong(format!("{}: {missing} ({}{details})", self.name, ending(&self.report)))
    }
}
