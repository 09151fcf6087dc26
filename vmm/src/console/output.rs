//! The output of guests: it goes to standard output or to a buffer.
//!
//! A reader that stops reading must not delay the end of a run beyond its deadline. After the deadline the watchdog
//! kicks the thread, which interrupts a blocked write. This file then gives up; the standard library would try again.

use crate::exit::Stop;
use crate::host::{ControlEscaper, EventFd, REPEAT};
use crate::shutdown::{Deadline, Wait};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;
use std::{fmt, thread};

/// The most text that waits for the end of its line, in bytes. Longer text is written without it.
const CHUNK: usize = 4096;
/// The most text that a captured output keeps, in bytes.
const MAX_CAPTURED: usize = 1 << 20;

/// A writer that all consoles of a machine share. Clones write to the same destination.
#[derive(Clone)]
pub struct Output(Arc<OutputState>);

struct OutputState {
    sink: Mutex<Sink>,
    /// A copy of the sink's deadline, for threads that wait for the lock of the sink.
    deadline: Mutex<Deadline>,
    /// The reason why text was lost. `None` if no text was lost.
    lost: Mutex<Option<Stop>>,
}

/// A function that gets all text.
type Observer = Box<dyn FnMut(&[u8]) + Send>;

struct Sink {
    writer: Box<dyn Write + Send>,
    /// Set if text waits for the end of its line.
    by_lines: bool,
    /// The text that is not written yet.
    waiting: Vec<u8>,
    deadline: Deadline,
    limit: Option<Limit>,
    /// The bytes that the guest printed in this run.
    printed: u64,
    /// One of these bytes is neither 0 nor 0xff.
    printed_text: bool,
    /// A copy of the text as the guest printed it.
    copy: Option<Captured>,
    observer: Option<Observer>,
    prompt: Option<Prompt>,
    /// Makes control characters visible. `None` if they are written as they are.
    escaper: Option<ControlEscaper>,
}

/// The event that is signalled when text waits for the end of its line.
struct Prompt {
    event: EventFd,
    /// Set while the event is signalled and the prompt is not written yet.
    signalled: bool,
}

/// A limit of the output, in bytes.
#[derive(Clone, Copy)]
struct Limit {
    total: u64,
    left: u64,
}

impl Output {
    /// Creates an output that writes to `writer`: line by line if `by_lines` is set, otherwise at once. `writer` should
    /// return an error when a signal interrupts a write. A `File` does, but `Stdout` tries again.
    pub fn new(writer: impl Write + Send + 'static, by_lines: bool) -> Self {
        let sink = Sink {
            writer: Box::new(writer),
            by_lines,
            waiting: Vec::new(),
            deadline: Deadline::default(),
            limit: None,
            printed: 0,
            printed_text: false,
            copy: None,
            observer: None,
            prompt: None,
            escaper: None,
        };
        Self(Arc::new(OutputState {
            sink: Mutex::new(sink),
            deadline: Mutex::default(),
            lost: Mutex::default(),
        }))
    }

    /// Creates an output that keeps the first MiB of its text in the second value.
    pub fn captured() -> (Self, Captured) {
        let captured = Captured::default();
        (Self::new(captured.clone(), false), captured)
    }

    /// Keeps a copy of the text from now on, as the guest prints it: at most its first `limit` bytes.
    pub fn copied(&self, limit: usize) -> Captured {
        let copy = Captured(Arc::new(Mutex::new(Kept { bytes: Vec::new(), len: 0, limit })));
        self.lock().copy = Some(copy.clone());
        copy
    }

    /// Makes control characters visible, because the text goes to a terminal, which they could control. Line ends (LF and
    /// CR LF), tabs and complete UTF-8 characters pass; other bytes are shown like `\x1b`, and C1 control characters
    /// like `\u{9b}`.
    #[must_use]
    pub fn with_visible_controls(self) -> Self {
        self.lock().escaper = Some(ControlEscaper::default());
        self
    }

    /// Begins a run with its deadline and its limit in bytes. Text that an earlier run lost no longer counts.
    pub(crate) fn begin_run(&self, deadline: Deadline, limit: Option<u64>) {
        *self.0.lost.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.set_deadline(deadline);
        self.set_limit(limit);
        let mut sink = self.lock();
        (sink.printed, sink.printed_text) = (0, false);
    }

    /// True if the guest has printed a byte in this run that is neither 0 nor 0xff, which are what memory without a text
    /// holds.
    pub(crate) fn printed_text(&self) -> bool {
        self.lock().printed_text
    }

    /// The bytes that the guest has printed in this run.
    pub(crate) fn printed(&self) -> u64 {
        self.lock().printed
    }

    /// Sets the deadline after which a blocked write gives up.
    pub(crate) fn set_deadline(&self, deadline: Deadline) {
        *self.0.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline.clone();
        self.lock().deadline = deadline;
    }

    /// Limits the output to `limit` bytes. `None` removes the limit.
    pub(crate) fn set_limit(&self, limit: Option<u64>) {
        self.lock().limit = limit.map(|total| Limit { total, left: total });
    }

    /// Calls `observer` with all text, before it is written.
    pub(crate) fn set_observer(&self, observer: impl FnMut(&[u8]) + Send + 'static) {
        self.lock().observer = Some(Box::new(observer));
    }

    /// Writes whole lines from now on, and signals `event` when text waits for the end of its line. The text may be a
    /// prompt, after which the guest waits for an answer, so the caller must call [`flush_prompt`](Self::flush_prompt)
    /// soon.
    pub(crate) fn set_prompt(&self, event: EventFd) {
        let mut sink = self.lock();
        sink.by_lines = true;
        sink.prompt = Some(Prompt { event, signalled: false });
    }

    /// Writes the text that waits for the end of its line. Breaks with the end of the run if the write fails.
    pub(crate) fn flush_prompt(&self) -> ControlFlow<Stop> {
        let locked = self.lock_until(Deadline::must_give_up);
        let mut sink = locked.map_or_else(ControlFlow::Break, ControlFlow::Continue)?;
        if let Some(prompt) = &mut sink.prompt {
            prompt.signalled = false;
        }
        self.record_loss(sink.flush_text(Deadline::must_give_up).map_err(stop_of))
    }

    /// Writes a drawing for the terminal. It does not count as text of the guest, and does not end the text that waits for
    /// the end of its line. Breaks with the end of the run if the write fails.
    pub(crate) fn draw(&self, drawing: &[u8]) -> ControlFlow<Stop> {
        let locked = self.lock_until(Deadline::must_give_up);
        let mut sink = locked.map_or_else(ControlFlow::Break, ControlFlow::Continue)?;
        let waiting = std::mem::replace(&mut sink.waiting, drawing.to_vec());
        let drawn = sink.flush_text(Deadline::must_give_up).map_err(stop_of);
        sink.waiting.extend(waiting);
        drop(sink);
        self.record_loss(drawn)
    }

    /// Prints `text`. Breaks with the end of the run if the write fails or the limit is reached.
    pub fn print(&mut self, text: &[u8]) -> ControlFlow<Stop> {
        let mut sink = self.record_loss(self.lock_until(Deadline::must_end))?;
        let Some(Limit { total, left }) = sink.limit else {
            return self.record_loss(sink.print(text).map_err(stop_of));
        };
        let len = usize::try_from(left).unwrap_or(usize::MAX);
        let allowed = text.get(..len).unwrap_or(text);
        sink.limit = Some(Limit { total, left: left.saturating_sub(allowed.len() as u64) });
        self.record_loss(sink.print(allowed).map_err(stop_of))?;
        match allowed.len() == text.len() {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(Stop::OutputLimit(total)),
        }
    }

    /// Goes on with a write that gave way to other vCPUs. Breaks with the end of the run if it fails.
    pub(crate) fn go_on(&self) -> ControlFlow<Stop> {
        self.record_loss(self.lock().flush_text(Deadline::must_end).map_err(stop_of))
    }

    /// Drops text whose write gave way, because another vCPU has ended the run.
    pub(crate) fn drop_waiting(&self) {
        self.lock().waiting.clear();
    }

    /// Ends a run: writes all text, also the beginning of a character that never ended. Breaks like
    /// [`finish`](Self::finish).
    pub(crate) fn end_run(&mut self) -> ControlFlow<Stop> {
        let mut sink = self.lock();
        let Sink { escaper, waiting, .. } = &mut *sink;
        escaper.iter_mut().for_each(|escaper| escaper.finish(waiting));
        drop(sink);
        self.finish()
    }

    /// Writes the text that waits for the end of its line. Breaks with the end of the run if this text or any text
    /// before it was lost.
    pub(crate) fn finish(&mut self) -> ControlFlow<Stop> {
        self.record_loss(self.lock().flush_text(Deadline::must_give_up).map_err(stop_of))?;
        let lost = self.0.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        lost.map_or(ControlFlow::Continue(()), ControlFlow::Break)
    }

    /// Records an error as lost text, and turns `answer` into a `ControlFlow`. If another vCPU ended the run while this
    /// one was printing, the text that did not get out does not count as lost.
    #[inline(always)]
    fn record_loss<T>(&self, answer: Result<T, Stop>) -> ControlFlow<Stop, T> {
        answer.map_or_else(
            |stop| {
                if matches!(stop, Stop::Interrupted) && self.deadline().must_give_up().is_none() {
                    return ControlFlow::Break(stop);
                }
                *self.0.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(stop.clone());
                ControlFlow::Break(stop)
            },
            ControlFlow::Continue,
        )
    }

    fn lock(&self) -> MutexGuard<'_, Sink> {
        self.0.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The deadline after which a blocked write gives up.
    pub(crate) fn deadline(&self) -> Deadline {
        self.0.deadline.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Locks the sink, or returns the end of the run when `until` returns one. The thread that holds the lock may be in
    /// a blocked write. A kick does not interrupt the wait for a lock, so this function polls it.
    #[inline(always)]
    fn lock_until(&self, until: fn(&Deadline) -> Option<Stop>) -> Result<MutexGuard<'_, Sink>, Stop> {
        /// The time between two polls of the lock.
        const POLL_INTERVAL: Duration = Duration::from_micros(50);
        loop {
            match self.0.sink.try_lock() {
                Ok(sink) => return Ok(sink),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
            if let Some(stop) = until(&self.deadline()) {
                return Err(stop);
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Sink {
    /// Passes `text` to the observer and writes it, or keeps it until the end of its line.
    fn print(&mut self, text: &[u8]) -> io::Result<()> {
        if let Some(observer) = &mut self.observer {
            observer(text);
        }
        if let Some(copy) = &self.copy {
            copy.push(text);
        }
        self.printed = self.printed.saturating_add(text.len() as u64);
        self.printed_text = self.printed_text || text.iter().any(|byte| !matches!(byte, 0 | 0xff));
        match &mut self.escaper {
            Some(escaper) => escaper.push(text, &mut self.waiting),
            None => self.waiting.extend_from_slice(text),
        }
        if !self.by_lines || text.contains(&b'\n') || self.waiting.len() >= CHUNK {
            self.flush_text(Deadline::must_end)?;
        }
        if let Some(prompt) = self.prompt.as_mut().filter(|prompt| !prompt.signalled)
            && !self.waiting.is_empty()
        {
            prompt.signalled = true;
            prompt.event.write(1)?;
        }
        Ok(())
    }

    /// Writes all waiting text. When a kick interrupts the write, or the reader takes only a part, gives up if `until`
    /// returns the end of the run, or keeps the rest if other vCPUs share the thread. Text that cannot be written is dropped, and the error ends the run.
    fn flush_text(&mut self, until: fn(&Deadline) -> Option<Stop>) -> io::Result<()> {
        let text = std::mem::take(&mut self.waiting);
        let mut rest = text.as_slice();
        while !rest.is_empty() {
            let mut is_blocked = false;
            match self.writer.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    if rest.is_empty() {
                        break;
                    }
                }
                Err(error)
                    if [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock].contains(&error.kind()) =>
                {
                    is_blocked = true;
                    // Another program has left the terminal non-blocking.
                    if error.kind() == io::ErrorKind::WouldBlock {
                        thread::sleep(REPEAT);
                    }
                }
                Err(error) => return Err(error),
            }
            if let Some(stop) = until(&self.deadline) {
                return Err(io::Error::other(Stopped(stop)));
            }
            if is_blocked && self.deadline.give_way(Wait::Reader) {
                self.waiting = rest.to_vec();
                return Ok(());
            }
        }
        self.writer.flush()
    }
}

/// The end of the run that a failed write causes.
pub(crate) fn stop_of(error: io::Error) -> Stop {
    match error.downcast::<Stopped>() {
        Ok(Stopped(stop)) => stop,
        Err(error) => Stop::OutputFailed(Arc::new(error)),
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Output")
    }
}

/// For device models of other crates. `stop_of` turns their errors into the end of the run.
impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self.print(data) {
            ControlFlow::Continue(()) => Ok(data.len()),
            ControlFlow::Break(stop) => Err(io::Error::other(Stopped(stop))),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The end of the run as an error, so that it can pass through a device model of another crate.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Stopped(Stop);

/// The text that was written to a captured or copied [`Output`].
#[derive(Clone, Debug, Default)]
pub struct Captured(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    /// The first bytes, at most `limit`.
    bytes: Vec<u8>,
    /// The number of all bytes.
    len: u64,
    limit: usize,
}

impl Default for Kept {
    fn default() -> Self {
        Self { bytes: Vec::new(), len: 0, limit: MAX_CAPTURED }
    }
}

impl Captured {
    /// The text so far, at most its first MiB, or the limit of [`Output::copied`].
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// The number of all bytes so far.
    pub fn total(&self) -> u64 {
        self.lock().len
    }

    fn push(&self, text: &[u8]) {
        let mut kept = self.lock();
        let room = kept.limit.saturating_sub(kept.bytes.len());
        kept.bytes.extend(text.iter().take(room));
        kept.len = kept.len.saturating_add(text.len() as u64);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Captured {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.push(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
