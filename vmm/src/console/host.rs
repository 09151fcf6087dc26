//! The host's side of a guest's console: a thread that reads what somebody types and hands it to the guest's port as
//! it has room, and that finds the escape key; and one that hands on a prompt which the guest printed without ending
//! its line.
//!
//! The first never waits for anything but keys, so that the escape key ends any machine: not for a guest that does not
//! read, nor for a vCPU that holds the port, nor for whoever reads the guest's text.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic)]

use crate::console::output::Output;
use crate::error::Error;
use crate::exit::Stop;
use crate::host::{self, REPEAT, event};
use crate::shutdown::{Deadline, StopHandle, Worker};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// Ctrl-A: what comes next is for the VMM.
const ESCAPE: u8 = 0x01;
/// What Ctrl-A h says.
const HELP: &str = "\nvmm: Ctrl-A x  ends the machine\nvmm: Ctrl-A h  shows this\n\
                    vmm: Ctrl-A Ctrl-A  sends Ctrl-A to the guest\n";
/// For how long a prompt waits for the end of its line.
const PROMPT: Duration = REPEAT;
/// How much is read at a time, in bytes.
const CHUNK: usize = 1024;
/// How many keys wait for a guest that does not read; further ones are lost.
const MOST_KEYS: usize = 64 << 10;

/// A guest's port, as seen from the host.
pub(crate) trait Port: Send {
    /// Bytes arrive, as far as there is room. Returns how many of them, at once.
    fn push(&mut self, bytes: &[u8]) -> usize;
    /// Written to when there is room again.
    fn room_event(&self) -> &EventFd;
}

/// What the threads work with.
pub(crate) struct ConsoleSetup {
    /// Bytes that were there from the start.
    pub(crate) typed: Vec<u8>,
    /// What is read, until its end.
    pub(crate) input: Option<File>,
    /// Whether Ctrl-A is for the VMM.
    pub(crate) escapes: bool,
    pub(crate) port: Box<dyn Port>,
    pub(crate) output: Output,
    /// Written to when text waits for the end of its line.
    pub(crate) prompt: EventFd,
}

/// The threads. They end with this.
#[derive(Debug)]
pub(crate) struct ConsoleThreads {
    stop: [Arc<EventFd>; 2],
    threads: Vec<Worker<()>>,
}

impl ConsoleThreads {
    /// Starts the threads, which end the machine through `stop_handle`.
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub(crate) fn start(console: ConsoleSetup, stop_handle: Arc<StopHandle>) -> Result<Self, Error> {
        let ConsoleSetup { typed, input, escapes, port, output, prompt } = console;
        let stop = [
            Arc::new(event().map_err(Error::host("eventfd"))?),
            Arc::new(event().map_err(Error::host("eventfd"))?),
        ];
        let mut running = Self { stop, threads: Vec::new() };
        let [stop_keys, stop_prompts] = running.stop.clone();
        let failed = "starting a thread of the console";
        let prompts = Prompts { output, prompt, stop_handle: stop_handle.clone() };
        running.threads.push(Worker::spawn("prompts", failed, move || prompts.run(&stop_prompts))?);
        let keys = Keys { input, escapes, port, stop_handle, pending: typed.into(), escaped: false };
        running.threads.push(Worker::spawn("console", failed, move || keys.run(&stop_keys))?);
        Ok(running)
    }

    /// Ends the threads. Where one hangs in a write that nobody reads, it is kicked out once nobody wants to wait.
    pub(crate) fn finish(&mut self, deadline: &Deadline) {
        self.stop.iter().for_each(|stop| drop(stop.write(1)));
        for thread in self.threads.drain(..) {
            if thread.join(deadline).is_none() {
                log::error!("a thread of the console panicked; this is a bug of the VMM");
            }
        }
    }
}

impl Drop for ConsoleThreads {
    fn drop(&mut self) {
        self.finish(&Deadline::after(Some(Duration::ZERO)));
    }
}

/// Hands on prompts.
struct Prompts {
    output: Output,
    prompt: EventFd,
    stop_handle: Arc<StopHandle>,
}

impl Prompts {
    fn run(self, stop: &EventFd) {
        loop {
            match host::wait_any([Some(host::borrow(stop)), Some(host::borrow(&self.prompt))], None) {
                Ok([true, _]) => return,
                Ok([_, false]) => continue,
                Ok([_, true]) => {}
                Err(error) => return log::warn!("prompts are no longer handed on: {error}"),
            }
            let _ = self.prompt.read();
            // The line may yet end.
            if let Ok([true]) = host::wait_any([Some(host::borrow(stop))], Some(PROMPT)) {
                return;
            }
            if let ControlFlow::Break(end) = self.output.hand_on_prompt() {
                self.stop_handle.end(end);
            }
        }
    }
}

/// Reads keys.
struct Keys {
    input: Option<File>,
    escapes: bool,
    port: Box<dyn Port>,
    stop_handle: Arc<StopHandle>,
    /// What the port had no room for.
    pending: VecDeque<u8>,
    /// The last key was Ctrl-A.
    escaped: bool,
}

impl Keys {
    fn run(mut self, stop: &EventFd) {
        loop {
            self.deliver();
            let waits = !self.pending.is_empty();
            // A kick may be lost, and a port that is busy does not say when it no longer is.
            let patience = (self.stop_handle.has_ended() || waits).then_some(REPEAT);
            let ready = host::wait_any(
                [
                    Some(host::borrow(stop)),
                    Some(host::borrow(self.stop_handle.event())),
                    Some(host::borrow(self.port.room_event())).filter(|_| waits),
                    self.input.as_ref().map(File::as_fd).filter(|_| self.escapes || !waits),
                ],
                patience,
            );
            let [stopped, ended, room, typed] = match ready {
                Ok(ready) => ready,
                Err(error) => return log::warn!("the console's input is no longer read: {error}"),
            };
            if stopped {
                return;
            }
            self.stop_handle.kick_again();
            if ended {
                let _ = self.stop_handle.event().read();
            }
            if room {
                let _ = self.port.room_event().read();
            }
            if typed {
                self.read();
            }
        }
    }

    /// Hands on what waits, as far as there is room.
    fn deliver(&mut self) {
        while !self.pending.is_empty() {
            let taken = self.port.push(self.pending.make_contiguous());
            if taken == 0 {
                return;
            }
            self.pending.drain(..taken.min(self.pending.len()));
        }
    }

    fn read(&mut self) {
        let Some(input) = &mut self.input else { return };
        let mut chunk = [0; CHUNK];
        match input.read(&mut chunk) {
            Ok(0) => self.input = None,
            Ok(read) => chunk.get(..read).unwrap_or_default().iter().for_each(|key| self.typed(*key)),
            Err(error) if [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock].contains(&error.kind()) => {
            }
            Err(error) => {
                log::warn!("the console's input cannot be read ({error}); going on without");
                self.input = None;
            }
        }
    }

    fn typed(&mut self, key: u8) {
        let was_escaped = std::mem::take(&mut self.escaped);
        match key {
            _ if !self.escapes => self.pending.push_back(key),
            ESCAPE if !was_escaped => self.escaped = true,
            b'x' | b'X' if was_escaped => self.stop_handle.end(Stop::Quit),
            b'h' | b'H' | b'?' if was_escaped => {
                let stderr = io::stderr();
                // Not where that would wait.
                if let Ok(true) = host::wait_writable(stderr.as_fd(), Some(Duration::ZERO)) {
                    let _ = host::write(stderr.as_fd(), HELP.as_bytes());
                }
            }
            _ if self.pending.len() >= MOST_KEYS => {}
            _ if was_escaped && key != ESCAPE => self.pending.extend([ESCAPE, key]),
            _ => self.pending.push_back(key),
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::sync::Mutex;
    use std::thread;
    use std::time::Instant;

    /// Holds four bytes until somebody reads them.
    #[derive(Clone)]
    struct Small(Arc<(Mutex<Vec<u8>>, EventFd)>);

    impl Port for Small {
        fn push(&mut self, bytes: &[u8]) -> usize {
            let mut here = self.0.0.lock().unwrap();
            let taken = bytes.len().min(4 - here.len());
            here.extend(&bytes[..taken]);
            taken
        }
        fn room_event(&self) -> &EventFd {
            &self.0.1
        }
    }

    struct Bench {
        port: Small,
        stop_handle: Arc<StopHandle>,
        keyboard: io::PipeWriter,
        _running: ConsoleThreads,
    }

    fn bench(escapes: bool) -> Bench {
        let (reader, keyboard) = io::pipe().unwrap();
        let port = Small(Arc::new((Mutex::default(), EventFd::new(libc::EFD_NONBLOCK).unwrap())));
        let stop_handle = Arc::new(StopHandle::new().unwrap());
        let console = ConsoleSetup {
            typed: Vec::new(),
            input: Some(File::from(OwnedFd::from(reader))),
            escapes,
            port: Box::new(port.clone()),
            output: Output::captured().0,
            prompt: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
        };
        let _running = ConsoleThreads::start(console, stop_handle.clone()).unwrap();
        Bench { port, stop_handle, keyboard, _running }
    }

    impl Bench {
        /// What the guest has read once it has read `count` bytes.
        fn read(&self, count: usize) -> Vec<u8> {
            let (mut seen, start) = (Vec::new(), Instant::now());
            while seen.len() < count && start.elapsed() < Duration::from_secs(5) {
                seen.append(&mut self.port.0.0.lock().unwrap());
                self.port.0.1.write(1).unwrap();
                thread::sleep(Duration::from_millis(1));
            }
            seen
        }
    }

    #[test]
    fn more_than_fits_arrives_in_order() {
        let mut bench = bench(false);
        let text: Vec<u8> = (0..=255).cycle().take(3000).collect();
        bench.keyboard.write_all(&text).unwrap();
        assert_eq!(bench.read(text.len()), text);
        assert!(!bench.stop_handle.has_ended());
    }

    #[test]
    fn the_escape_key_is_found_behind_keys_that_nobody_reads() {
        let mut bench = bench(true);
        bench.keyboard.write_all(&[b'a'; MOST_KEYS + 5000]).unwrap();
        bench.keyboard.write_all(b"\x01x").unwrap();
        let start = Instant::now();
        while !bench.stop_handle.has_ended() && start.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(bench.stop_handle.has_ended());
    }

    #[test]
    fn the_escape_key_is_found_at_a_terminal() {
        let mut bench = bench(true);
        bench.keyboard.write_all(b"a\x01\x01b\x01c").unwrap();
        assert_eq!(bench.read(5), b"a\x01b\x01c");
        bench.keyboard.write_all(b"\x01").unwrap();
        bench.keyboard.write_all(b"x").unwrap();
        let start = Instant::now();
        while !bench.stop_handle.has_ended() && start.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(matches!(bench.stop_handle.reason(), Some(Stop::Quit)));
    }
}
