//! The threads that connect the terminal of the host with the console of a guest.
//!
//! The keys thread reads the terminal, passes the keys to the guest's port as it has room, and handles the escape key.
//! The prompts thread writes a prompt that the guest printed without the end of its line. It also watches the progress of a
//! boot.
//!
//! The keys thread waits for keys only, so that the escape key ends every machine. It does not wait for a guest that
//! does not read its input, for a vCPU that holds the lock of the port, or for the reader of the output.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic)]

use crate::console::core_key::CoreKey;
use crate::console::output::Output;
use crate::error::Error;
use crate::exit::Stop;
use crate::host::ThreadKind;
use crate::host::{self, EventFd, REPEAT, event, terminal};
use crate::shutdown::{Deadline, StopHandle, Worker};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// The escape key, Ctrl-A: the next key is a command for the VMM.
const ESCAPE: u8 = 0x01;
/// The text that Ctrl-A h prints. It has two lines, because as many are seen above the screen of a PC on a small terminal.
const HELP: &str = "\nvmm: Ctrl-A x  ends the machine; Ctrl-A c  writes a core; Ctrl-A h  shows this\n\
                    vmm: Ctrl-A Ctrl-A  sends Ctrl-A to the guest\n";
/// The text that Ctrl-A c prints if the run has no core.
const NO_CORE: &str = "\nvmm: Ctrl-A c needs --core FILE at the start, without --gdb, --step and --sample\n";
/// The time that a prompt waits for the end of its line.
const PROMPT_DELAY: Duration = REPEAT;
/// The most input that one read takes, in bytes.
const CHUNK: usize = 1024;
/// The most keys that wait for a guest that does not read its input. Further keys are lost.
const MAX_KEYS: usize = 64 << 10;
/// The time between two looks if this job has come to the foreground, or if the guest's driver can be told a size.
const LOOK: Duration = Duration::from_millis(100);

/// The host side of a guest's port.
pub(crate) trait Port: Send {
    /// Passes `bytes` to the guest, as far as there is room. Returns the number of bytes passed. Does not block.
    fn push(&mut self, bytes: &[u8]) -> usize;
    /// The event that is signalled when there is room again.
    fn room_event(&self) -> &EventFd;
    /// Tells the guest the columns and the rows of the terminal, if the port can. Returns false to be called again. Does not
    /// block.
    fn resize(&mut self, columns: u16, rows: u16) -> bool {
        let _ = (columns, rows);
        true
    }
}

/// The resources of the threads.
pub(crate) struct ConsoleSetup {
    /// The input that is available at the start.
    pub(crate) typed: Vec<u8>,
    /// The file to read input from, until its end.
    pub(crate) input: Option<File>,
    /// Enables the escape key.
    pub(crate) escapes: bool,
    /// The key that asks for a core. `None` if the run writes none.
    pub(crate) core_key: Option<CoreKey>,
    /// The port that gets the input.
    pub(crate) port: Box<dyn Port>,
    /// The output with the prompts.
    pub(crate) output: Output,
    /// Signalled when text waits for the end of its line.
    pub(crate) prompt: EventFd,
    /// Signalled to call `watch` at once.
    pub(crate) look: Arc<EventFd>,
    /// Called by the prompts thread. Returns the time until the next call; `None` if there is none.
    pub(crate) watch: Watch,
}

/// A function that the prompts thread calls at intervals. It does not block.
pub(crate) type Watch = Box<dyn FnMut() -> Option<Duration> + Send>;

/// The running threads. Dropping this ends them.
#[derive(Debug)]
pub(crate) struct ConsoleThreads {
    stop: [Arc<EventFd>; 2],
    threads: Vec<Worker<()>>,
}

impl ConsoleThreads {
    /// Starts the threads. They end the machine through `stop_handle`.
    ///
    /// # Errors
    /// The host has no thread or file descriptor left.
    pub(crate) fn start(console: ConsoleSetup, stop_handle: Arc<StopHandle>) -> Result<Self, Error> {
        let ConsoleSetup { typed, input, escapes, core_key, port, output, prompt, look, watch } = console;
        let stop = [
            Arc::new(event().map_err(Error::host("eventfd"))?),
            Arc::new(event().map_err(Error::host("eventfd"))?),
        ];
        let mut running = Self { stop, threads: Vec::new() };
        let [stop_keys, stop_prompts] = running.stop.clone();
        let failed = "starting a thread of the console";
        let prompts = Prompts { output, prompt, look, stop_handle: stop_handle.clone(), watch };
        running
            .threads
            .push(Worker::spawn("prompts", ThreadKind::Console, failed, move || prompts.run(&stop_prompts))?);
        let pending = typed.into();
        let (escaped, resized, message) = (false, escapes, None);
        let keys = Keys { input, escapes, core_key, port, stop_handle, pending, escaped, resized, message };
        running
            .threads
            .push(Worker::spawn("console", ThreadKind::Console, failed, move || keys.run(&stop_keys))?);
        Ok(running)
    }

    /// Ends the threads. A thread that blocks in a write is kicked out of it after `deadline`.
    pub(crate) fn finish(&mut self, deadline: &Deadline) {
        self.stop.iter().for_each(|stop| drop(stop.write(1)));
        for thread in self.threads.drain(..) {
            if thread.join(deadline).is_none() {
                log::error!("a thread of the console panicked; this is a bug in the VMM");
            }
        }
    }
}

impl Drop for ConsoleThreads {
    fn drop(&mut self) {
        self.finish(&Deadline::after(Some(Duration::ZERO)));
    }
}

/// The prompts thread.
struct Prompts {
    output: Output,
    prompt: EventFd,
    look: Arc<EventFd>,
    stop_handle: Arc<StopHandle>,
    watch: Watch,
}

impl Prompts {
    fn run(mut self, stop: &EventFd) {
        let after = |pause: Duration| Instant::now().checked_add(pause);
        let mut next = (self.watch)().and_then(after);
        loop {
            if next.is_some_and(|next| Instant::now() >= next) {
                next = (self.watch)().and_then(after);
            }
            let pause = next.map(|next| next.saturating_duration_since(Instant::now()));
            let [prompt, look] = [&self.prompt, &*self.look].map(|event| Some(host::borrow(event)));
            match host::wait_any([Some(host::borrow(stop)), prompt, look], pause) {
                Ok([true, ..]) => return,
                Ok([_, _, true]) => {
                    let _ = self.look.read();
                    next = Some(Instant::now());
                    continue;
                }
                Ok([_, false, _]) => continue,
                Ok([_, true, _]) => {}
                Err(error) => return self.stop_handle.end(Stop::OutputFailed(Arc::new(error))),
            }
            let _ = self.prompt.read();
            // The guest may still end the line.
            if let Ok([true]) = host::wait_any([Some(host::borrow(stop))], Some(PROMPT_DELAY)) {
                return;
            }
            if let ControlFlow::Break(end) = self.output.flush_prompt() {
                self.stop_handle.end(end);
            }
        }
    }
}

/// The keys thread.
struct Keys {
    input: Option<File>,
    escapes: bool,
    core_key: Option<CoreKey>,
    port: Box<dyn Port>,
    stop_handle: Arc<StopHandle>,
    /// The keys that the port had no room for.
    pending: VecDeque<u8>,
    /// Set if the last key was the escape key.
    escaped: bool,
    /// Set if the guest does not know the size of the terminal yet.
    resized: bool,
    /// The answer to a key for the VMM that the terminal has not taken yet.
    message: Option<&'static str>,
}

impl Keys {
    fn run(mut self, stop: &EventFd) {
        loop {
            self.deliver();
            self.message = self.message.filter(|message| !has_said(message));
            let (waits, may_read) = (!self.pending.is_empty(), self.look_at_terminal());
            // A kick may be lost, and a port whose lock is taken signals no room event, so repeat both at intervals.
            let timeout = (self.stop_handle.has_ended() || waits || self.message.is_some())
                .then_some(REPEAT)
                .or((self.resized || !may_read).then_some(LOOK));
            let ready = host::wait_any(
                [
                    Some(host::borrow(stop)),
                    Some(host::borrow(self.stop_handle.event())),
                    Some(host::borrow(self.port.room_event())).filter(|_| waits),
                    self.input.as_ref().map(File::as_fd).filter(|_| may_read && (self.escapes || !waits)),
                    terminal::changed().map(host::borrow).filter(|_| self.escapes),
                ],
                timeout,
            );
            let [stopped, ended, room, typed, changed] = match ready {
                Ok(ready) => ready,
                Err(error) => return self.fail(stop, error),
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
            if changed {
                let _ = terminal::changed().map(EventFd::read);
                self.resized = true;
            }
            // The job may have gone to the background meanwhile.
            if typed && (!self.escapes || terminal::may_read()) {
                self.read();
            }
        }
    }

    /// Takes the terminal if this job has come to the foreground, and tells the guest a new size. Returns false if the
    /// terminal must not be read.
    fn look_at_terminal(&mut self) -> bool {
        if !self.escapes {
            return true;
        }
        if let Err(error) = terminal::refresh() {
            log::debug!("the terminal cannot be set: {error}");
        }
        if self.resized {
            let told = terminal::size().is_none_or(|(columns, rows)| self.port.resize(columns, rows));
            self.resized = !told;
        }
        terminal::may_read()
    }

    /// Ends the run, because the thread cannot wait for keys. Repeats the kicks until `stop` is signalled.
    fn fail(&self, stop: &EventFd, error: io::Error) {
        self.stop_handle.end(Stop::InputFailed(Arc::new(error)));
        while stop.read().is_err() {
            self.stop_handle.kick_again();
            thread::sleep(REPEAT);
        }
    }

    /// Passes pending keys to the port, as far as there is room.
    fn deliver(&mut self) {
        while !self.pending.is_empty() {
            let taken = self.port.push(self.pending.make_contiguous());
            if taken == 0 {
                return;
            }
            self.pending.drain(..taken.min(self.pending.len()));
        }
    }

    /// Reads keys. After the end of the input or an error, the thread goes on without input.
    fn read(&mut self) {
        let Some(input) = &mut self.input else { return };
        let mut chunk = [0; CHUNK];
        match input.read(&mut chunk) {
            Ok(0) => self.input = None,
            Ok(read) => chunk.get(..read).unwrap_or_default().iter().for_each(|key| self.typed(*key)),
            Err(error) if [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock].contains(&error.kind()) => {
            }
            Err(error) => {
                log::warn!("the console input cannot be read ({error}): the guest gets no more input");
                self.input = None;
            }
        }
    }

    /// Handles one key: a command for the VMM after the escape key, or input for the guest.
    fn typed(&mut self, key: u8) {
        let was_escaped = std::mem::take(&mut self.escaped);
        match key {
            _ if !self.escapes => self.pending.push_back(key),
            ESCAPE if !was_escaped => self.escaped = true,
            b'x' | b'X' if was_escaped => self.stop_handle.end(Stop::Quit),
            b'h' | b'H' | b'?' if was_escaped => self.message = Some(HELP),
            b'c' | b'C' if was_escaped => match &self.core_key {
                Some(key) => key.press(),
                None => self.message = Some(NO_CORE),
            },
            _ if self.pending.len() >= MAX_KEYS => {}
            _ if was_escaped && key != ESCAPE => self.pending.extend([ESCAPE, key]),
            _ => self.pending.push_back(key),
        }
    }
}

/// Prints a text on stderr. Returns false if that would block: the caller repeats it later.
fn has_said(text: &str) -> bool {
    let stderr = io::stderr();
    match host::wait_writable(stderr.as_fd(), Some(Duration::ZERO)) {
        Ok(true) => drop(host::write(stderr.as_fd(), text.as_bytes())),
        Ok(false) => return false,
        Err(_) => {}
    }
    true
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::sync::Mutex;

    /// A port with room for four bytes.
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
        core_key: CoreKey,
        _running: ConsoleThreads,
    }

    fn bench(escapes: bool) -> Bench {
        let (reader, keyboard) = io::pipe().unwrap();
        let port = Small(Arc::new((Mutex::default(), event().unwrap())));
        let stop_handle = Arc::new(StopHandle::new().unwrap());
        let core_key = CoreKey::default();
        let console = ConsoleSetup {
            typed: Vec::new(),
            input: Some(File::from(OwnedFd::from(reader))),
            escapes,
            core_key: Some(core_key.clone()),
            port: Box::new(port.clone()),
            output: Output::captured().0,
            prompt: event().unwrap(),
            look: Arc::new(event().unwrap()),
            watch: Box::new(|| None),
        };
        let _running = ConsoleThreads::start(console, stop_handle.clone()).unwrap();
        Bench { port, stop_handle, keyboard, core_key, _running }
    }

    impl Bench {
        /// Plays the guest: reads until `count` bytes have arrived, for at most five seconds.
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
    fn input_that_exceeds_the_room_arrives_in_order() {
        let mut bench = bench(false);
        let text: Vec<u8> = (0..=255).cycle().take(3000).collect();
        bench.keyboard.write_all(&text).unwrap();
        assert_eq!(bench.read(text.len()), text);
        assert!(!bench.stop_handle.has_ended());
    }

    #[test]
    fn the_escape_key_works_behind_more_keys_than_the_guest_reads() {
        let mut bench = bench(true);
        bench.keyboard.write_all(&[b'a'; MAX_KEYS + 5000]).unwrap();
        bench.keyboard.write_all(b"\x01x").unwrap();
        let start = Instant::now();
        while !bench.stop_handle.has_ended() && start.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(bench.stop_handle.has_ended());
    }

    #[test]
    fn escape_commands_are_handled_and_other_keys_pass() {
        let mut bench = bench(true);
        bench.keyboard.write_all(b"a\x01\x01b\x01z\x01c").unwrap();
        assert_eq!(bench.read(5), b"a\x01b\x01z");
        assert!(bench.core_key.wait(Some(Duration::from_secs(5))), "Ctrl-A c asks for a core");
        bench.keyboard.write_all(b"\x01").unwrap();
        bench.keyboard.write_all(b"x").unwrap();
        let start = Instant::now();
        while !bench.stop_handle.has_ended() && start.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(matches!(bench.stop_handle.reason(), Some(Stop::Quit)));
    }
}
