//! Runs a student's VMM under observation.

use crate::grade::student::capture::{Capture, Captured};
use crate::grade::student::count::Pattern;
use crate::grade::student::entry::Entry;
use crate::grade::student::job::{Command, Plan};
use crate::grade::student::watch::{Answers, Halt, Watch};
use crate::jail::JailArgs;
use crate::status::Failure;
use jail::Missing;
use observe::{Choice, Ending, Engine, Observation, Options, Program, Protection, Stops, Streams};
use simvirtio::abi;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use vmm::device::DEBUGCON_PORT;
use vmm::exit::{Exit, Reason, Site};
use vmm::host::{printable, printable_text};
use vmm::profile::Count;

/// The largest parts of an output that are kept: of its beginning and of its end.
const MOST_OUTPUT: usize = 1 << 20;
const MOST_ERRORS: usize = 1 << 16;
/// The status 126, as wait(2) has it.
const NOT_STARTED: i32 = 126 << 8;

/// The facts that were seen in a run.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) plan: Plan,
    /// The command, safe to print.
    pub(super) command: String,
    pub(super) stdout: Captured,
    pub(super) stderr: String,
    pub(super) ending: Ending,
    /// The number of VMs.
    pub(super) machines: u32,
    pub(super) entry: Option<Entry>,
    pub(super) halt: Option<Halt>,
    /// The sentence about registers that KVM refused.
    pub(super) refused: Option<String>,
    /// The sentence about the death of the guest.
    pub(super) death: Option<String>,
    pub(super) answers: [Answers; 2],
    pub(super) last: Option<Exit>,
    pub(super) run_failed: bool,
    /// The exits.
    pub(super) exits: u64,
    /// The exits at the device's window.
    pub(super) window_exits: u64,
    /// The reads at places of the window at which none got other bytes than were in `kvm_run` before.
    pub(super) unanswered: u64,
    /// The bytes that the guest wrote to the debug console.
    pub(super) console_bytes: u64,
    /// The places of the exits, and their numbers.
    pub(super) sites: Vec<(Site, Count)>,
    /// The exits that were not recorded.
    pub(super) lost: u64,
    /// The number that the program printed.
    pub(super) counted: Option<u64>,
    /// The text that it must print at its end.
    pub(super) finished: String,
    /// True if it said that it has finished.
    pub(super) said_finished: bool,
    /// The protection of other processes.
    pub(super) protection: Protection,
    /// The parts of the jail that the system lacks.
    pub(super) missing: Vec<Missing>,
    /// The place where it stood at the end of its time.
    pub(super) hang: Option<String>,
}

/// A program for a task, which can be observed.
pub(super) struct Target {
    pub(super) plan: Plan,
    pub(super) program: Program,
    pub(super) arguments: Vec<std::ffi::OsString>,
}

impl Target {
    /// Finds the program of a command, and checks that it can be observed.
    ///
    /// # Errors
    /// It cannot be run, or not be observed.
    pub(super) fn find(plan: Plan, (program, arguments): Command, engine: Choice) -> Result<Self, Failure> {
        let program = Program::find(&program)?;
        engine.check(&program)?;
        Ok(Self { plan, program, arguments })
    }

    /// The command, safe to print.
    fn shown(&self) -> String {
        let arguments = self.arguments.iter().map(|word| printable_text(&word.to_string_lossy()));
        [printable(self.program.path())].into_iter().chain(arguments).collect::<Vec<_>>().join(" ")
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// The host lacks something, or does not permit this engine.
    pub(super) fn run(
        &self,
        engine: Choice,
        limit: Option<Duration>,
        jail: JailArgs,
        finished: &str,
        pattern: &Pattern,
    ) -> Result<Seen, Failure> {
        let host = |operation| move |source| vmm::Error::Host { operation, source };
        let (stdout, out) =
            Capture::start(MOST_OUTPUT).map_err(host("capturing the output of the program"))?;
        let (stderr, err) =
            Capture::start(MOST_ERRORS).map_err(host("capturing the output of the program"))?;
        let streams = Streams { stdin: Stdio::null(), stdout: out, stderr: err };
        let options = Options {
            timeout: limit,
            stops: Stops { first_entry: true, halts: true, rip: false },
            jail: jail.confinement(true, &self.program, &self.arguments, None),
            ..Options::default()
        };
        // An earlier run may have changed the file.
        if let Err(error) = engine.check(&self.program) {
            return Ok(self.not_started(&error.to_string(), finished));
        }
        let mut engine = engine.engine(&self.program)?;
        let mut watch = Watch::new(self.plan);
        let engine: &mut dyn Engine = engine.as_mut();
        let see = &mut |event: &_, memory: &_| watch.see(event, memory);
        let observation =
            match observe::observe_captive(&self.program, &self.arguments, options, streams, engine, see) {
                Ok(observation) => observation,
                Err(error) => {
                    let fault = error.program_fault().ok_or(error)?;
                    return Ok(self.not_started(&format!("it cannot be started: {fault}"), finished));
                }
            };
        if vmm::host::interrupted() {
            return Err(vmm::Error::Interrupted.into());
        }
        Ok(self.seen(watch, &observation, stdout.finish(), &stderr.finish(), finished, pattern))
    }

    /// A run of a program that cannot be started. An earlier run may have removed it, or it never could be.
    fn not_started(&self, why: &str, finished: &str) -> Seen {
        let Watch { answers, .. } = Watch::new(self.plan);
        Seen {
            plan: self.plan,
            command: self.shown(),
            stdout: Captured::default(),
            stderr: String::new(),
            // The status of the shell for a program that it cannot start.
            ending: Ending::Ended(ExitStatus::from_raw(NOT_STARTED)),
            machines: 0,
            entry: None,
            halt: None,
            refused: Some(why.to_owned()),
            death: None,
            answers,
            last: None,
            run_failed: false,
            exits: 0,
            window_exits: 0,
            unanswered: 0,
            console_bytes: 0,
            sites: Vec::new(),
            lost: 0,
            counted: None,
            finished: finished.to_owned(),
            said_finished: false,
            protection: Protection::Namespace,
            missing: Vec::new(),
            hang: None,
        }
    }

    fn seen(
        &self,
        watch: Watch,
        observation: &Observation,
        stdout: Captured,
        stderr: &Captured,
        finished: &str,
        pattern: &Pattern,
    ) -> Seen {
        let sites = observation.profile.sites();
        let count = |at: &dyn Fn(Reason, u64) -> bool| {
            let at_site =
                sites.iter().filter(|(site, _)| site.place.is_some_and(|(place, _)| at(site.reason, place)));
            at_site.fold((0u64, 0u64), |(exits, elements), (_, count)| {
                (exits.saturating_add(count.exits), elements.saturating_add(count.elements))
            })
        };
        let window = abi::WINDOW..abi::WINDOW + abi::WINDOW_SIZE;
        let is_mmio = |reason| matches!(reason, Reason::MmioRead | Reason::MmioWrite);
        let (refused, death) = watch.told();
        let refused = refused.or_else(|| {
            observation.is_hidden.then(|| {
                "its calls to KVM are not known, because it hides its files from other processes of its user (PR_SET_DUMPABLE): \
                 leave that out"
                    .into()
            })
        });
        let (text, errors) = (stdout.text(), stderr.text());
        Seen {
            plan: self.plan,
            command: self.shown(),
            finished: finished.to_owned(),
            said_finished: [&text, &errors].iter().any(|text| text.contains(finished)),
            // An error message about an exit is no count.
            counted: pattern
                .count(text.as_bytes())
                .or_else(|| watch.halt.as_ref().and_then(|_| pattern.count(errors.as_bytes()))),
            stdout,
            stderr: errors,
            ending: observation.ending,
            machines: observation.machines,
            exits: observation.profile.total().exits,
            window_exits: count(&|reason, place| is_mmio(reason) && window.contains(&place)).0,
            unanswered: observation
                .unanswered
                .iter()
                .filter(|one| one.reason == Reason::MmioRead && window.contains(&one.place))
                .fold(0, |reads, one| reads.saturating_add(one.reads)),
            console_bytes: count(&|reason, place| {
                reason == Reason::PioOut && place == u64::from(DEBUGCON_PORT)
            })
            .1,
            lost: observation.lost,
            protection: observation.protection,
            missing: observation.missing.clone(),
            hang: observation.hang.clone(),
            sites,
            entry: watch.entry,
            halt: watch.halt,
            refused,
            death,
            answers: watch.answers,
            last: watch.last,
            run_failed: watch.run_failed,
        }
    }
}
