//! The two tasks of the SO2 assignment that a SIMVIRTIO driver solves: by exits, and by polling.
//!
//! Both look at the same runs. After a run that did not end, the others of that driver are left out: an endless driver
//! costs one time limit.

use crate::grade::{Evidence, Run, Settings, courses, is_bad_guest, wrong};
use crate::summary::{ending, excerpt};
use crate::target::RunTarget;
use ::exercise::file::Task as TaskSpec;
use grades::Points;
use report::view::plural;
use simvirtio::abi;
use simvirtio::device::State;
use vmm::Error;
use vmm::device::Transport;
use vmm::exit::{Exit, Reason, Stop};

/// The length of a queue that is shorter than the message, in bytes. The driver must wrap its index, and wait for space.
const SHORT_QUEUE: u16 = 8;
/// So many zeroes in a row are no part of a message.
const ZEROES: usize = 4;
/// The number of exits that are recorded of a driver.
pub(super) const RECORDED: usize = 4096;

/// The runs of each driver. A driver that cannot be run has evidence that it failed.
pub(super) type Runs = Vec<Result<DriverRuns, String>>;

/// Runs each driver.
///
/// # Errors
/// The host failed, or a file can no longer be read.
pub(super) fn runs(targets: Vec<Result<RunTarget, Error>>, settings: Settings) -> Result<Runs, Error> {
    let course = courses::so2()?;
    let message = courses::text(courses::task(course, "so2-simvirtio")?, "message");
    let run = |target: Result<RunTarget, Error>| match target
        .and_then(|target| DriverRuns::new(&target, message, settings))
    {
        Err(error) if is_bad_guest(&error) => Ok(Err(error.to_string())),
        ran => ran.map(Ok),
    };
    targets.into_iter().map(run).collect()
}

/// The evidence of a task: SIMVIRTIO by exits, or by polling.
///
/// # Errors
/// The program has no helper for the task.
pub(super) fn evidence(runs: &Runs, task: &TaskSpec) -> Result<Vec<Evidence>, Error> {
    let of = match task.helper.as_deref() {
        Some("so2-simvirtio") => DriverRuns::by_exits,
        Some("so2-polling") => DriverRuns::by_polling,
        _ => return Err(courses::no_helper(task)),
    };
    let queues = courses::cost(task, "queues");
    let of_one = |ran: &Result<DriverRuns, String>| match ran {
        Ok(runs) => of(runs, queues),
        Err(error) => vec![wrong(error.clone())],
    };
    Ok(runs.iter().flat_map(of_one).collect())
}

/// The runs of a driver. A run that is missing did not take place, because another one did not end.
pub(super) struct DriverRuns {
    /// The text that the driver must send.
    message: &'static str,
    exits: Run,
    short_exits: Option<Run>,
    polling: Option<Run>,
    short_polling: Option<Run>,
}

impl DriverRuns {
    fn new(target: &RunTarget, message: &'static str, settings: Settings) -> Result<Self, Error> {
        let run = |transport, queue_len| Run::new(target, Some(transport), queue_len, settings);
        let short = Some(SHORT_QUEUE);
        let exits = run(Transport::Exit, None)?;
        if exits.timed_out() {
            return Ok(Self { message, exits, short_exits: None, polling: None, short_polling: None });
        }
        let short_exits = run(Transport::Exit, short)?;
        let polling = run(Transport::Polling, None)?;
        // A driver that waits for ever in a short queue needs the time limit once, not twice.
        let is_endless = short_exits.timed_out() || polling.timed_out();
        let short_polling = if is_endless { None } else { Some(run(Transport::Polling, short)?) };
        Ok(Self { message, exits, short_exits: Some(short_exits), polling: Some(polling), short_polling })
    }

    fn by_exits(&self, queues: Points) -> Vec<Evidence> {
        let run = &self.exits;
        let Some(device) = &run.report.simvirtio else {
            return vec![wrong(format!("{}: the machine has no SIMVIRTIO device", run.name))];
        };
        let details = format!(
            "; state {} after {}, {}, {}; message {}",
            device.state,
            plural(device.history.resets, "reset"),
            plural(device.history.configs, "config"),
            plural(device.history.readies, "handshake"),
            run.excerpt()
        );
        let sent = run.require(
            &details,
            "",
            &[
                (run.passed(), run.required().into()),
                (run.sent(self.message), run.message_rule(self.message, run.early_wrap())),
            ],
        );
        self.with_queues(sent, self.short_exits.as_ref(), queues)
    }

    /// Compares both transports. Message and verdict must be the same, and polling must avoid exactly the exits in the
    /// device's window.
    fn by_polling(&self, queues: Points) -> Vec<Evidence> {
        let by_exits = &self.exits;
        let Some(run) = &self.polling else {
            return vec![wrong(format!(
                "{}: not run, because it does not end with transport exit",
                by_exits.name
            ))];
        };
        let saved = by_exits.window_exits();
        let left = by_exits.exits().saturating_sub(saved);
        let details = format!(
            "; {} with transport exit ({saved} at the device), {} with polling",
            plural(by_exits.exits(), "exit"),
            run.exits(),
        );
        if !by_exits.passed() {
            return vec![by_exits.lacks(&format!("by exits, it {}", by_exits.required()), &details)];
        }
        let polled = run.require(
            &details,
            "same message",
            &[
                (run.passed(), format!("with polling, it {}", run.required())),
                (
                    run.sent(self.message),
                    format!("with polling, it {}", run.message_rule(self.message, by_exits.early_wrap())),
                ),
                (
                    by_exits.received() == run.received(),
                    format!("with polling the message is {}", run.excerpt()),
                ),
                (
                    by_exits.output == run.output,
                    "with polling, it must print the same text as by exits".into(),
                ),
                (saved > 0, "must access the device with transport exit".into()),
                (run.exits() == left, format!("must make {} with polling", plural(left, "exit"))),
            ],
        );
        self.with_queues(polled, self.short_polling.as_ref(), queues)
    }

    /// Adds the evidence of a run with short queues to that of a run, if that one passed.
    fn with_queues(&self, first: Evidence, short: Option<&Run>, cost: Points) -> Vec<Evidence> {
        if !first.right {
            return vec![first];
        }
        let queues = match short {
            Some(run) if run.passed() && run.received() == self.exits.received() => Evidence::new(
                true,
                format!("{}: same message through queues of {SHORT_QUEUE} bytes", run.name),
            ),
            Some(run) => {
                wrong(format!("{}: through queues of {SHORT_QUEUE} bytes: {}", run.name, run.outcome()))
            }
            None => wrong(format!(
                "{}: not run with queues of {SHORT_QUEUE} bytes, because it does not end with them",
                self.exits.name
            )),
        };
        vec![first, queues.costs(cost, "the driver must read max_queue_len")]
    }
}

/// The parts of a run that concern SIMVIRTIO.
impl Run {
    /// The beginning of the message that the device received.
    fn message(&self) -> String {
        let device = self.report.simvirtio.as_ref();
        device.map(|device| String::from_utf8_lossy(&device.message).into_owned()).unwrap_or_default()
    }

    /// Returns true if a time limit ended the run.
    fn timed_out(&self) -> bool {
        matches!(self.report.stop, Stop::Timeout(_) | Stop::WallTimeout(_))
    }

    /// Returns true if the device is in state Ready after a handshake, and received this message.
    fn sent(&self, message: &str) -> bool {
        let is_ready = self.report.simvirtio.as_ref().is_some_and(|device| {
            let history = device.history;
            device.state == State::Ready && history.resets > 0 && history.configs > 0 && history.readies > 0
        });
        is_ready && self.message().contains(message)
    }

    /// The rule about the message, and the cause if the driver seems to break it because its queue has another length: its
    /// [early wrap](Self::early_wrap), which only a run by exits shows.
    fn message_rule(&self, message: &str, early_wrap: Option<(u64, u64, u64)>) -> String {
        let rule = format!("must end in state Ready, with a message that contains {message:?}");
        match early_wrap {
            Some((from, to, length)) => format!(
                "{rule}; TX head went from {from} back to {to}, but the queue has {length} bytes, so it seems that the driver \
                 does not read max_queue_len"
            ),
            None => rule,
        }
    }

    /// The first two values of TX head of which the second is smaller, and the queue's length, if the message has zeroes: the
    /// device takes all bytes up to the end of the queue, and those that the driver has not written are zero.
    fn early_wrap(&self) -> Option<(u64, u64, u64)> {
        let device = self.report.simvirtio.as_ref()?;
        let has_zeroes = device.message.windows(ZEROES).any(|bytes| bytes.iter().all(|byte| *byte == 0));
        let length = u64::from(device.layout.usual_queue());
        let exits = self.report.trace.iter().flat_map(|trace| trace.exits());
        let heads: Vec<u64> = exits
            .filter_map(|(_, traced)| match traced.exit {
                Exit::MmioWrite { address: abi::gpa::TX_HEAD, data, .. } => Some(data),
                _ => None,
            })
            .collect();
        let wrap = heads.windows(2).find_map(|pair| match *pair {
            [from, to] if to < from && from.saturating_add(1) < length => Some((from, to, length)),
            _ => None,
        });
        wrap.filter(|_| has_zeroes)
    }

    /// An excerpt of the message, in quotes.
    fn excerpt(&self) -> String {
        excerpt(&self.message())
    }

    /// The number of bytes that the device received, and their digest.
    fn received(&self) -> Option<(u64, u64)> {
        self.report.simvirtio.as_ref().map(|device| (device.history.received, device.digest))
    }

    /// Describes how the run ended, and the message.
    fn outcome(&self) -> String {
        format!("{}; message {}", ending(&self.report), self.excerpt())
    }

    /// The number of exits in the device's window.
    fn window_exits(&self) -> u64 {
        let sites = self.report.profile.iter().flat_map(|profile| profile.sites());
        let at_window = sites.filter(|(site, _)| {
            let window = abi::WINDOW..abi::WINDOW + abi::WINDOW_SIZE;
            matches!(site.reason, Reason::MmioRead | Reason::MmioWrite)
                && site.place.is_some_and(|(address, _)| window.contains(&address))
        });
        at_window.map(|(_, count)| count.exits).sum()
    }
}
