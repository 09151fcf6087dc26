//! Where the text that guests print goes: standard output, or a buffer.
//!
//! A reader that stalls must not hold a run beyond its time. A write that blocks is interrupted by the kick
//! of the watchdog; this file then gives up where the standard library would try again.

use crate::exit::Stop;
use crate::host::REPEAT;
use crate::shutdown::Deadline;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;
use std::{fmt, thread};
use vmm_sys_util::eventfd::EventFd;

/// Text is handed on when there is this much of it, in bytes, even without the end of a line.
const CHUNK: usize = 4096;
/// How much a captured output keeps, in bytes.
const KEPT: usize = 1 << 20;

/// A writer that all of a machine's consoles share. Clones write to the same place.
#[derive(Clone)]
pub struct Output(Arc<OutputState>);

struct OutputState {
    sink: Mutex<Sink>,
    /// As the sink has it, for those who wait for that.
    deadline: Mutex<Deadline>,
    /// Why text was lost, if some was.
    lost: Mutex<Option<Stop>>,
}

/// A function that sees all text.
type Observer = Box<dyn FnMut(&[u8]) + Send>;

struct Sink {
    writer: Box<dyn Write + Send>,
    /// Whether text waits for the end of its line.
    by_lines: bool,
    waiting: Vec<u8>,
    deadline: Deadline,
    limit: Option<Limit>,
    observer: Option<Observer>,
    prompt: Option<Prompt>,
}

/// Who is told that text waits for the end of its line.
struct Prompt {
    event: EventFd,
    /// Told, and not come yet.
    told: bool,
}

/// How much may be printed, and how much still may, in bytes.
#[derive(Clone, Copy)]
struct Limit {
    of: u64,
    left: u64,
}

impl Output {
    /// Writes to `writer`, line by line or, for somebody who watches, byte by byte. `writer` should not retry
    /// what a signal has interrupted, as a `File` does not and `Stdout` does.
    pub fn new(writer: impl Write + Send + 'static, by_lines: bool) -> Self {
        let sink = Sink {
            writer: Box::new(writer),
            by_lines,
            waiting: Vec::new(),
            deadline: Deadline::default(),
            limit: None,
            observer: None,
            prompt: None,
        };
        Self(Arc::new(OutputState {
            sink: Mutex::new(sink),
            deadline: Mutex::default(),
            lost: Mutex::default(),
        }))
    }

    /// Keeps the first MiB of what is written, for whoever holds the second value.
    pub fn captured() -> (Self, Captured) {
        let captured = Captured::default();
        (Self::new(captured.clone(), false), captured)
    }

    /// Begins a run: text has to be written by `deadline`, and may have `limit` bytes. Text that an earlier run has lost
    /// does not count any more.
    pub(crate) fn begin_run(&self, deadline: Deadline, limit: Option<u64>) {
        *self.0.lost.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.set_deadline(deadline);
        self.set_limit(limit);
    }

    /// Says when writing has to end, whoever may read.
    pub(crate) fn set_deadline(&self, deadline: Deadline) {
        *self.0.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline.clone();
        self.lock().deadline = deadline;
    }

    /// Says how much may be printed, in bytes.
    pub(crate) fn set_limit(&self, limit: Option<u64>) {
        self.lock().limit = limit.map(|limit| Limit { of: limit, left: limit });
    }

    /// Calls `observer` with all text, before it is written.
    pub(crate) fn set_observer(&self, observer: impl FnMut(&[u8]) + Send + 'static) {
        self.lock().observer = Some(Box::new(observer));
    }

    /// Hands on whole lines, and has `event` written to when text waits for the end of its line. Whoever prints a prompt may wait for an
    /// answer before he ends the line: [`hand_on_prompt`](Self::hand_on_prompt) is to follow soon.
    pub(crate) fn set_prompt(&self, event: EventFd) {
        let mut sink = self.lock();
        sink.by_lines = true;
        sink.prompt = Some(Prompt { event, told: false });
    }

    /// Hands on what waits for the end of its line. Breaks with the end of the run where that cannot be done.
    pub(crate) fn hand_on_prompt(&self) -> ControlFlow<Stop> {
        let locked = self.lock_until(Deadline::must_give_up);
        let mut sink = locked.map_or_else(ControlFlow::Break, ControlFlow::Continue)?;
        if let Some(prompt) = &mut sink.prompt {
            prompt.told = false;
        }
        self.or_lost(sink.hand_on(Deadline::must_give_up).map_err(stop_of))
    }

    /// Prints `text`. Breaks with the end of the run where that cannot be done.
    pub fn print(&mut self, text: &[u8]) -> ControlFlow<Stop> {
        let mut sink = self.or_lost(self.lock_until(Deadline::must_end))?;
        let Some(Limit { of, left }) = sink.limit else {
            return self.or_lost(sink.print(text).map_err(stop_of));
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let allowed = text.get(..most).unwrap_or(text);
        sink.limit = Some(Limit { of, left: left.saturating_sub(allowed.len() as u64) });
        self.or_lost(sink.print(allowed).map_err(stop_of))?;
        match allowed.len() == text.len() {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(Stop::OutputLimit(of)),
        }
    }

    /// Hands on what still waits for the end of its line. Breaks where that, or any text before, was lost.
    pub(crate) fn finish(&mut self) -> ControlFlow<Stop> {
        self.or_lost(self.lock().hand_on(Deadline::must_give_up).map_err(stop_of))?;
        let lost = self.0.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        lost.map_or(ControlFlow::Continue(()), ControlFlow::Break)
    }

    /// Remembers that text was lost, if it was. A vCPU that another one has ended in the middle of its words has lost
    /// nothing that it had said.
    fn or_lost<T>(&self, answer: Result<T, Stop>) -> ControlFlow<Stop, T> {
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

    fn deadline(&self) -> Deadline {
        self.0.deadline.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The sink, unless `until` says stop before somebody else, whom nobody reads, is done with it. A kick does not
    /// interrupt the wait for a lock, so this does not wait for it.
    fn lock_until(&self, until: fn(&Deadline) -> Option<Stop>) -> Result<MutexGuard<'_, Sink>, Stop> {
        /// How long to sleep between two looks.
        const NAP: Duration = Duration::from_micros(50);
        loop {
            match self.0.sink.try_lock() {
                Ok(sink) => return Ok(sink),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
            if let Some(stop) = until(&self.deadline()) {
                return Err(stop);
            }
            thread::sleep(NAP);
        }
    }
}

impl Sink {
    fn print(&mut self, text: &[u8]) -> io::Result<()> {
        if let Some(observer) = &mut self.observer {
            observer(text);
        }
        self.waiting.extend_from_slice(text);
        if !self.by_lines || text.contains(&b'\n') || self.waiting.len() >= CHUNK {
            self.hand_on(Deadline::must_end)?;
        }
        if let Some(prompt) = self.prompt.as_mut().filter(|prompt| !prompt.told)
            && !self.waiting.is_empty()
        {
            prompt.told = true;
            prompt.event.write(1)?;
        }
        Ok(())
    }

    /// Writes all that waits, unless `until` says stop when a kick interrupts that. What cannot be written is dropped:
    /// the run ends for it.
    fn hand_on(&mut self, until: fn(&Deadline) -> Option<Stop>) -> io::Result<()> {
        let text = std::mem::take(&mut self.waiting);
        let mut rest = text.as_slice();
        while !rest.is_empty() {
            match self.writer.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error)
                    if [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock].contains(&error.kind()) =>
                {
                    // A terminal that another program has left non-blocking.
                    if error.kind() == io::ErrorKind::WouldBlock {
                        thread::sleep(REPEAT);
                    }
                    if let Some(stop) = until(&self.deadline) {
                        return Err(io::Error::other(Stopped(stop)));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.writer.flush()
    }
}

/// How a failure to write ends the run.
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

/// For devices of other crates; `stop_of` reads the errors.
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

/// The end of the run, as an error that travels through another crate's device.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Stopped(Stop);

/// What was written to a captured [`Output`].
#[derive(Clone, Debug, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// The first MiB of it so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Write for Captured {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = KEPT.saturating_sub(kept.len());
        kept.extend(data.iter().take(room));
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes three bytes at a time, after one interruption each.
    #[derive(Clone, Default)]
    struct Slow {
        taken: Arc<Mutex<Vec<u8>>>,
        interrupt: bool,
    }

    impl Write for Slow {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.interrupt = !self.interrupt;
            if self.interrupt {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let some = &data[..data.len().min(3)];
            self.taken.lock().unwrap().extend(some);
            Ok(some.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_handed_on_whole_and_the_rest_at_the_end() {
        let slow = Slow::default();
        let mut output = Output::new(slow.clone(), true);
        assert!(output.print(b"one").is_continue());
        assert_eq!(*slow.taken.lock().unwrap(), b"");
        assert!(output.print(b" line\nand").is_continue());
        assert_eq!(*slow.taken.lock().unwrap(), b"one line\nand");
        assert!(output.print(b" more").is_continue());
        assert!(output.finish().is_continue());
        assert_eq!(*slow.taken.lock().unwrap(), b"one line\nand more");
    }

    #[test]
    fn a_writer_that_would_block_is_tried_again() {
        struct Busy(Captured, u32);
        impl Write for Busy {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                if self.1.is_multiple_of(2) {
                    self.0.write(data)
                } else {
                    Err(io::ErrorKind::WouldBlock.into())
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let captured = Captured::default();
        let mut output = Output::new(Busy(captured.clone(), 0), false);
        assert!(output.print(b"one").is_continue() && output.print(b"two").is_continue());
        assert_eq!(captured.bytes(), b"onetwo");
    }

    #[test]
    fn an_endless_line_is_handed_on_in_chunks() {
        let slow = Slow::default();
        let mut output = Output::new(slow.clone(), true);
        for _ in 0..CHUNK {
            assert!(output.print(b"x").is_continue());
        }
        assert_eq!(slow.taken.lock().unwrap().len(), CHUNK);
    }

    #[test]
    fn an_interruption_after_the_deadline_ends_the_run() {
        let mut output = Output::new(Slow::default(), false);
        output.set_deadline(Deadline::after(Some(Duration::ZERO)));
        assert!(matches!(output.print(b"x"), ControlFlow::Break(Stop::Timeout)));
    }

    #[test]
    fn a_captured_output_keeps_a_bounded_part() {
        let (mut output, captured) = Output::captured();
        for _ in 0..3 {
            assert!(output.print(&vec![b'x'; KEPT / 2]).is_continue());
        }
        assert_eq!(captured.bytes().len(), KEPT);
    }
}
