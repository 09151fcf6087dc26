//! The host's side of a guest's console: a thread that reads what somebody types and hands it to the guest's port as
//! it has room, that finds the escape key, and that hands on a prompt which the guest printed without ending its line.

use crate::device::serial::Serial;
use crate::device::virtio::ConsoleInput;
use crate::error::Error;
use crate::exit::Stop;
use crate::output::Output;
use crate::run::{Deadline, Ender};
use crate::sys::{self, Kicker, REPEAT};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
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

/// A guest's port, as seen from the host.
pub(crate) trait Port: Send {
    /// Bytes arrive, as far as there is room. Returns how many of them.
    fn push(&mut self, bytes: &[u8]) -> usize;
    /// Written to when there is room again.
    fn room_event(&self) -> &EventFd;
}

/// The serial port, which the vCPUs have as well.
pub(crate) struct SerialPort {
    pub(crate) serial: Arc<Mutex<Serial>>,
    pub(crate) drained: Arc<EventFd>,
}

impl Port for SerialPort {
    fn push(&mut self, bytes: &[u8]) -> usize {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = bytes.get(..serial.room()).unwrap_or(bytes);
        serial.receive(taken);
        taken.len()
    }

    fn room_event(&self) -> &EventFd {
        &self.drained
    }
}

impl Port for ConsoleInput {
    fn push(&mut self, bytes: &[u8]) -> usize {
        Self::push(self, bytes)
    }

    fn room_event(&self) -> &EventFd {
        Self::room_event(self)
    }
}

/// What the thread works with.
pub(crate) struct Console {
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

/// The thread. It ends with this.
#[derive(Debug)]
pub(crate) struct Running {
    stop: Arc<EventFd>,
    ended: Receiver<()>,
    /// Set by the thread when it begins.
    kicker: Arc<OnceLock<Kicker>>,
}

impl Running {
    /// Starts the thread, which ends the machine through `ender`.
    ///
    /// # Errors
    /// The host has no thread or file left.
    pub(crate) fn start(console: Console, ender: Arc<Ender>) -> Result<Self, Error> {
        let stop = Arc::new(EventFd::new(libc::EFD_NONBLOCK).map_err(Error::host("eventfd"))?);
        let (stopped, kicker) = (stop.clone(), Arc::new(OnceLock::new()));
        let (end, ended) = mpsc::channel();
        let pending = console.typed.iter().copied().collect();
        let work = Work { console, ender, pending, keys: Keys::Plain };
        let own_kicker = kicker.clone();
        let body = move || {
            own_kicker.get_or_init(Kicker::of_this_thread);
            work.run(&stopped);
            drop(end);
        };
        let thread = thread::Builder::new().name("console".into()).spawn(body);
        thread.map_err(Error::host("starting the console's thread"))?;
        Ok(Self { stop, ended, kicker })
    }

    /// Ends the thread. Where it hangs in a write that nobody reads, it is kicked out once the machine must end.
    pub(crate) fn finish(&mut self, deadline: &Deadline) {
        let _ = self.stop.write(1);
        while self.ended.recv_timeout(REPEAT) == Err(RecvTimeoutError::Timeout) {
            if let Some(kicker) = self.kicker.get().filter(|_| deadline.must_end().is_some()) {
                kicker.kick();
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.finish(&Deadline::after(Some(Duration::ZERO)));
    }
}

/// Where the keys are in an escape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    Plain,
    /// Ctrl-A was the last.
    Escaped,
}

struct Work {
    console: Console,
    ender: Arc<Ender>,
    /// What the port had no room for.
    pending: VecDeque<u8>,
    keys: Keys,
}

impl Work {
    fn run(mut self, stop: &EventFd) {
        let mut prompt_waits = false;
        loop {
            self.deliver();
            let patience = if prompt_waits || self.ender.has_ended() { Some(PROMPT) } else { None };
            let ready = sys::wait_any(
                [
                    Some(sys::borrow(stop)),
                    Some(sys::borrow(&self.console.prompt)).filter(|_| !prompt_waits),
                    Some(sys::borrow(self.console.port.room_event())).filter(|_| !self.pending.is_empty()),
                    self.console.input.as_ref().map(File::as_fd).filter(|_| self.pending.is_empty()),
                ],
                patience,
            );
            let Ok([stopped, prompt, drained, typed]) = ready else { return };
            if stopped {
                return;
            }
            // A machine that shall end may be about to block somewhere.
            self.ender.kick_again();
            if std::mem::replace(&mut prompt_waits, false)
                && let ControlFlow::Break(end) = self.console.output.hand_on_prompt()
            {
                self.ender.end(end);
            }
            if prompt {
                let _ = self.console.prompt.read();
                prompt_waits = true;
            }
            if drained {
                let _ = self.console.port.room_event().read();
            }
            if typed {
                self.read();
            }
        }
    }

    /// Hands on what waits, as far as there is room.
    fn deliver(&mut self) {
        while !self.pending.is_empty() {
            let taken = self.console.port.push(self.pending.make_contiguous());
            if taken == 0 {
                return;
            }
            self.pending.drain(..taken.min(self.pending.len()));
        }
    }

    fn read(&mut self) {
        let Some(input) = &mut self.console.input else { return };
        let mut chunk = [0; CHUNK];
        match input.read(&mut chunk) {
            Ok(0) => self.console.input = None,
            Ok(read) => chunk.get(..read).unwrap_or_default().iter().for_each(|key| self.typed(*key)),
            Err(error) if [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock].contains(&error.kind()) => {
            }
            Err(error) => {
                log::warn!("the console's input cannot be read ({error}); going on without");
                self.console.input = None;
            }
        }
    }

    fn typed(&mut self, key: u8) {
        if !self.console.escapes {
            self.pending.push_back(key);
            return;
        }
        match (std::mem::replace(&mut self.keys, Keys::Plain), key) {
            (Keys::Plain, ESCAPE) => self.keys = Keys::Escaped,
            (Keys::Escaped, b'x' | b'X') => self.ender.end(Stop::Quit),
            (Keys::Escaped, b'h' | b'H' | b'?') => {
                let _ = sys::write(io::stderr().as_fd(), HELP.as_bytes());
            }
            (Keys::Escaped, ESCAPE) | (Keys::Plain, _) => self.pending.push_back(key),
            (Keys::Escaped, _) => self.pending.extend([ESCAPE, key]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::OwnedFd;
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
        ender: Arc<Ender>,
        keyboard: io::PipeWriter,
        _running: Running,
    }

    fn bench(escapes: bool) -> Bench {
        let (reader, keyboard) = io::pipe().unwrap();
        let port = Small(Arc::new((Mutex::default(), EventFd::new(libc::EFD_NONBLOCK).unwrap())));
        let ender = Arc::new(Ender::default());
        let console = Console {
            typed: Vec::new(),
            input: Some(File::from(OwnedFd::from(reader))),
            escapes,
            port: Box::new(port.clone()),
            output: Output::captured().0,
            prompt: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
        };
        let _running = Running::start(console, ender.clone()).unwrap();
        Bench { port, ender, keyboard, _running }
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
        assert!(!bench.ender.has_ended());
    }

    #[test]
    fn the_escape_key_is_found_at_a_terminal() {
        let mut bench = bench(true);
        bench.keyboard.write_all(b"a\x01\x01b\x01c").unwrap();
        assert_eq!(bench.read(5), b"a\x01b\x01c");
        bench.keyboard.write_all(b"\x01").unwrap();
        bench.keyboard.write_all(b"x").unwrap();
        let start = Instant::now();
        while !bench.ender.has_ended() && start.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(matches!(bench.ender.reason(), Some(Stop::Quit)));
    }
}
