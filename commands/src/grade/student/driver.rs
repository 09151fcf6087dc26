//! The points of SIMVIRTIO and of polling.

use crate::grade::student::describe;
use crate::grade::student::run::Seen;
use crate::grade::student::score::entered;
use crate::grade::{Evidence, courses, wrong};
use ::exercise::file::Task as TaskSpec;
use guest::hidden::Log;
use report::view::plural;
use simvirtio::abi::{self, device_status};
use vmm::device::Layout;
use vmm::x86::Mode;

/// The steps of a driver, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Nothing,
    Magic,
    Reset,
    Config,
    Ready,
    Sent,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Magic => "the magic",
            Self::Reset => "RESET",
            Self::Config => "CONFIG",
            Self::Ready => "READY",
            Self::Sent => "the message",
        }
    }
}

/// The part of the device that a driver saw.
#[derive(Clone, Copy, Debug)]
struct View {
    /// The magic; `None` if a student's driver did not read it.
    magic: Option<u32>,
    step: Step,
    /// The device status that was last read; `None` if a student's driver did not read it.
    status: Option<u32>,
    in_table: bool,
    /// The length of a queue, as the driver read it.
    queue: u32,
    layout: Layout,
    /// True if the device did not take the last command.
    is_stuck: bool,
}

impl View {
    /// The view of the hidden driver, from its log. Without one, that of the student's driver, from the answers to its reads,
    /// or from the memory of the window.
    fn of(seen: &Seen) -> Self {
        let halt = seen.halt.as_ref();
        let in_table = halt.is_some_and(|halt| halt.in_table);
        match halt.and_then(|halt| halt.log).filter(|log| log.word == seen.plan.word) {
            Some(log) => Self::logged(&log, in_table),
            None => Self::answered(seen, in_table),
        }
    }

    fn logged(log: &Log, in_table: bool) -> Self {
        let step = match log.step {
            0 => Step::Nothing,
            1 => Step::Magic,
            2 => Step::Reset,
            3 => Step::Config,
            4 => Step::Ready,
            _ => Step::Sent,
        };
        let layout = if log.layout == 2 { Layout::Struct } else { Layout::Table };
        let is_stuck = matches!(log.waits_for, 1 | 4 | 6);
        Self {
            magic: Some(log.magic),
            step,
            status: Some(log.status),
            in_table,
            queue: log.length,
            layout,
            is_stuck,
        }
    }

    fn answered(seen: &Seen, in_table: bool) -> Self {
        let window = seen.halt.as_ref().and_then(|halt| halt.window);
        let in_memory =
            window.and_then(|window| window.first_chunk().map(|magic| u32::from_le_bytes(*magic)));
        // Memory of zeroes is no device that was reset.
        let has_device = in_memory.is_some_and(|magic| magic != 0);
        let layouts = [Layout::Table, Layout::Struct].into_iter().zip(&seen.answers);
        let read = layouts.map(|(layout, answers)| {
            let mut statuses = answers.statuses.clone();
            let at = usize::try_from(layout.device_status()).unwrap_or_default();
            let status = window.and_then(|window| window.get(at).copied());
            statuses.extend(status.filter(|status| has_device || *status != 0));
            let found = |status: u8| statuses.contains(&status);
            let step = match () {
                () if found(device_status::READY) => Step::Sent,
                () if found(device_status::CONFIG) => Step::Config,
                () if found(device_status::RESET) => Step::Reset,
                () => Step::Nothing,
            };
            (layout, answers.magic, step, statuses.last().copied())
        });
        let wanted = |layout: &Layout| seen.plan.layout.is_none_or(|wanted| wanted == *layout);
        let best = read
            .filter(|(layout, ..)| wanted(layout))
            .max_by_key(|(layout, _, step, _)| (*step, *layout == Layout::Table));
        let (layout, magic, step, status) = best.unwrap_or((Layout::Table, None, Step::Nothing, None));
        let magic = magic.or(in_memory);
        Self { magic, step, status: status.map(u32::from), in_table, queue: 0, layout, is_stuck: false }
    }

    /// The layout and the queue, as a remark.
    fn remark(&self) -> String {
        let layout = match self.layout {
            Layout::Table => "table",
            Layout::Struct => "struct device_t",
        };
        match self.queue {
            0 => format!("; fields in the order of the assignment's {layout}"),
            queue => format!("; fields in the order of the assignment's {layout}, queues of {queue} bytes"),
        }
    }
}

const MODES: [Mode; 2] = [Mode::Protected, Mode::Long];
const MODE_NAMES: &str = "protected or long";

pub(super) fn simvirtio(seen: &Seen, task: &TaskSpec) -> Vec<Evidence> {
    let entry = match entered(seen, MODE_NAMES, &MODES) {
        Ok(entry) => entry,
        Err(evidence) => return vec![evidence],
    };
    if seen.halt.is_none() && seen.exits == 0 {
        return vec![wrong(format!("{}: the guest made no exit{}", seen.command, describe::ending(seen)))];
    }
    let view = View::of(seen);
    let magic = match view.magic {
        Some(abi::MAGIC) => Evidence::new(true, format!("magic {:#x}{}", abi::MAGIC, view.remark())),
        None if !seen.plan.hidden && seen.window_exits == 0 => {
            wrong(format!("the guest did not use the window at {:#x}", abi::WINDOW))
        }
        None if !seen.plan.hidden => {
            Evidence::new(true, format!("the guest did not read the magic{}", view.remark()))
        }
        magic => wrong(format!(
            "the magic at {:#x} must be {:#x}, and was read as {:#x}: {}",
            abi::WINDOW,
            abi::MAGIC,
            magic.unwrap_or_default(),
            match seen.window_exits {
                0 => "the window is memory, and its fields are not set",
                _ if seen.unanswered > 0 =>
                    "the VMM must answer reads of the window (is_write is 0) in mmio.data of kvm_run, and left the bytes there as \
                     they were",
                _ => "the VMM must answer reads of the window (is_write is 0) in mmio.data of kvm_run",
            }
        )),
    };
    let (has_message, message) = message(seen, &view);
    let hint = if has_message { String::new() } else { describe::ending(seen) };
    vec![
        entry,
        magic.step(courses::cost(task, "magic")),
        status(&view, Step::Reset).step(courses::cost(task, "reset")),
        status(&view, Step::Config).step(courses::cost(task, "config")),
        status(&view, Step::Ready).step(courses::cost(task, "ready")),
        Evidence::new(has_message, message + &hint).step(courses::cost(task, "message")),
    ]
}

/// Evidence that the device reached a status.
fn status(view: &View, step: Step) -> Evidence {
    let (cause, value) = match step {
        Step::Reset => ("after the driver's command R", device_status::RESET),
        Step::Config => ("after DRIVER_ACK and the command C", device_status::CONFIG),
        _ => ("after DRIVER_OK", device_status::READY),
    };
    let name = step.name();
    if view.step < step {
        let before = [Step::Reset, Step::Config, Step::Ready].into_iter().find(|one| view.step < *one);
        return wrong(match before {
            Some(before) if before < step => {
                format!("device_status must be {name} ({value}) {cause}: not reached")
            }
            _ if view.is_stuck => {
                format!(
                    "device_status must be {name} ({value}) {cause}: the device did not take the byte, so TX tail never reached TX head"
                )
            }
            _ => match view.status {
                Some(status) => format!(
                    "device_status must be {name} ({value}) {cause}, and stays {status}: it never becomes {name}"
                ),
                None => {
                    format!("device_status must be {name} ({value}) {cause}, and the guest did not read it")
                }
            },
        });
    }
    if step == Step::Config && !view.in_table {
        return wrong(format!(
            "device_status is CONFIG (2), but the device table at {:#x} lacks the address {:#x}",
            abi::DEVICE_TABLE,
            abi::WINDOW
        ));
    }
    let table = if step == Step::Config { ", the window is in the device table" } else { "" };
    Evidence::new(true, format!("device_status {name} ({value}) {cause}{table}"))
}

/// The message on stdout.
fn message(seen: &Seen, view: &View) -> (bool, String) {
    let expected = seen.plan.text(view.queue);
    let shown = describe::excerpt(&expected);
    let letters = plural(expected.len() as u64, "letter");
    match (seen.stdout.text().contains(&expected), view.step) {
        (true, _) => (true, format!("message of {letters} on stdout: {shown}")),
        (false, Step::Ready) if view.is_stuck => (
            false,
            format!(
                "stdout must have the message of {letters}: the queue stays full, because the device does not take its bytes"
            ),
        ),
        (false, Step::Ready | Step::Sent) => (
            false,
            format!("stdout must have the message {shown} ({letters}), and has {}", describe::output(seen)),
        ),
        (false, _) => (false, "no message before READY".into()),
    }
}

/// Polling must do the same as the exits did, without an exit at the window. A device that is wrong over both loses its points
/// for SIMVIRTIO only.
pub(super) fn polling(seen: &Seen, by_exits: Option<&Seen>, task: &TaskSpec) -> Vec<Evidence> {
    let entry = match entered(seen, MODE_NAMES, &MODES) {
        Ok(entry) => entry,
        Err(evidence) => return vec![evidence],
    };
    if seen.window_exits > 0 {
        return vec![wrong(format!(
            "{}: polling must make no exit at the window, and made {}: the window must be memory that a thread looks at",
            seen.command,
            plural(seen.window_exits, "exit")
        ))];
    }
    let view = View::of(seen);
    let (has_message, sentence) = message(seen, &view);
    // The part of the handshake that every polling device must do.
    let least = Step::Config;
    let other = by_exits
        .filter(|other| other.entry.as_ref().is_some_and(|entry| entry.fault.is_none()))
        .map(View::of);
    let same =
        other.filter(|other| other.step >= least && other.step < Step::Sent && view.step >= other.step);
    let is_halted = seen.halt.is_some();
    if !is_halted || (view.step < Step::Ready && same.is_none()) {
        let reached = match view.step {
            Step::Nothing => "it did not begin".into(),
            step => format!("it got as far as {}", step.name()),
        };
        return vec![wrong(format!(
            "{}: the handshake must reach READY, and {reached}{}{}",
            seen.command,
            if view.is_stuck { ": the device did not take a byte" } else { "" },
            describe::ending(seen)
        ))];
    }
    let no_exits =
        Evidence::new(true, format!("no exit at the window, {} in all", plural(seen.exits, "exit")));
    let last = match (has_message, same) {
        (true, _) => Evidence::new(true, sentence),
        (false, Some(other)) => Evidence::new(
            true,
            format!("as far as by exits: {}; the rest costs points there", other.step.name()),
        ),
        (false, None) => wrong(sentence).step(courses::cost(task, "message")),
    };
    vec![entry, no_exits, last]
}
