//! The connection: one debugger at a time, and its events.
//!
//! A thread waits for connections, and one reads what the debugger sends. Both hand on events to the thread that serves
//! the guest ([`Debugger::serve`]), which writes the answers.

use crate::address::Address;
use crate::mailbox::Mailbox;
use crate::registers::Width;
use crate::session::{Session, Settings};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};
use vmm::boot::ElfCode;
use vmm::machine::debug::{DebugGuest, Debugger, Facilities, GuestStatus, Plan, Waker, Why};

/// The most bytes that are read at once.
const CHUNK: usize = 4096;
/// The interval at which the guest's status is checked without an event.
const TICK: Duration = Duration::from_millis(20);
/// The time that a debugger has to take an answer.
const WRITE_LIMIT: Duration = Duration::from_secs(2);
/// The time that a guest has to stop for a debugger that connects.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// The end of a connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(WRITE_LIMIT))
            }
            Self::Unix(stream) => stream.set_write_timeout(Some(WRITE_LIMIT)),
        }
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    fn close(&self, how: Shutdown) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }

    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
        }
    }
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// A socket whose shutdown ends the wait of [`accept`](Self::accept).
    fn end(&self) -> io::Result<TcpStream> {
        let file: OwnedFd = match self {
            Self::Tcp(listener) => listener.try_clone()?.into(),
            Self::Unix(listener) => listener.try_clone()?.into(),
        };
        Ok(file.into())
    }

    fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
            Self::Unix(listener) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

#[derive(Debug)]
enum Event {
    /// A debugger has connected.
    Connected(Stream),
    /// Bytes from the debugger of this connection.
    Bytes(u64, Vec<u8>),
    /// The debugger of this connection has gone.
    Closed(u64),
    /// The guest has stopped or ended.
    Woken,
}

/// A server for gdb.
#[derive(Debug)]
pub struct Server {
    address: Address,
    /// The socket, until a thread waits at it.
    listener: Option<Listener>,
    /// The same socket, whose shutdown ends the thread.
    waiting: Option<TcpStream>,
    on_death: bool,
    settings: Settings,
    events: Arc<Mailbox<Event>>,
    /// Set while a debugger is connected.
    attached: Arc<AtomicBool>,
    /// Set when the server is dropped.
    closing: Arc<AtomicBool>,
    connections: u64,
    /// The debugger that was connected at the end of the run, and waits for news of the guest.
    last: Option<Stream>,
}

impl Server {
    /// Waits for a debugger at this address. With `on_death` the guest runs, and stops only where it dies.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn bind(address: &Address, on_death: bool) -> io::Result<Self> {
        let (listener, address) = match address {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                let address = listener.local_addr()?;
                (Listener::Tcp(listener), Address::Tcp(address))
            }
            Address::Unix(path) => {
                // A socket that an earlier run has left is not in use if nothing answers.
                let is_stale = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
                    && UnixStream::connect(path).is_err();
                if is_stale {
                    fs::remove_file(path)?;
                }
                (Listener::Unix(UnixListener::bind(path)?), Address::Unix(path.clone()))
            }
        };
        Ok(Self {
            address,
            listener: Some(listener),
            waiting: None,
            on_death,
            settings: Settings::default(),
            events: Arc::new(Mailbox::new()),
            attached: Arc::default(),
            closing: Arc::default(),
            connections: 0,
            last: None,
        })
    }

    /// Starts the thread that waits for debuggers. A debugger can connect before: it then waits for its answer. The thread starts
    /// with the run, because the process may give up rights before.
    fn wait(&mut self) -> io::Result<()> {
        let Some(listener) = self.listener.take() else { return Ok(()) };
        self.waiting = Some(listener.end()?);
        let (events, attached, closing) = (self.events.clone(), self.attached.clone(), self.closing.clone());
        let wait = move || wait_for_debuggers(&listener, &events, &attached, &closing);
        thread::Builder::new().name("gdb".into()).spawn(wait).map(drop)
    }

    /// The facilities of the guest's processor, and a text about them for `monitor info`.
    pub fn set_facilities(&mut self, facilities: Facilities, info: String) {
        self.settings.facilities = facilities;
        self.settings.info = info;
    }

    /// The width of the processor that gdb sees. By default it is that of the guest's code when gdb connects. A symbol file
    /// of 64 bits needs [`Width::Bits64`].
    pub fn set_width(&mut self, width: Option<Width>) {
        self.settings.width = width;
    }

    /// The guest's file, if it is an executable: breakpoints in memory need it for code that is not mapped yet.
    pub fn set_file(&mut self, file: Option<ElfCode>) {
        self.settings.file = file.map(Arc::new);
    }

    /// The address at which it waits. A TCP port that was 0 is now the one that the host has chosen.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Tells the debugger that the guest has ended, and with which status.
    pub fn finish(&mut self, status: u8) {
        if let Some(mut stream) = self.last.take() {
            let packet = format!("W{status:02x}");
            let sum = packet.bytes().fold(0u8, u8::wrapping_add);
            let _ = stream.write_all(format!("${packet}#{sum:02x}").as_bytes());
            stream.close(Shutdown::Write);
            self.attached.store(false, Ordering::SeqCst);
        }
    }

    fn say(&self, text: &str) {
        let _ = writeln!(io::stderr(), "vmm: gdb: {text}");
    }

    /// Starts to serve a debugger.
    fn attach<'g>(&mut self, stream: Stream, guest: &'g dyn DebugGuest) -> Option<Session<'g>> {
        self.connections = self.connections.wrapping_add(1);
        let id = self.connections;
        let reader = stream.prepare().and_then(|()| stream.try_clone());
        let started = reader.and_then(|reader| {
            let events = self.events.clone();
            let read = move || read_from(reader, &events, id);
            thread::Builder::new().name("gdb reader".into()).spawn(read).map(drop)
        });
        if let Err(error) = started {
            log::warn!("gdb: the connection cannot be used: {error}");
            self.attached.store(false, Ordering::SeqCst);
            return None;
        }
        // gdb expects a guest that stands still.
        let asked = Instant::now();
        guest.stop();
        while guest.status() == GuestStatus::Running && asked.elapsed() < STOP_LIMIT {
            thread::sleep(Duration::from_millis(1));
        }
        let session = Session::new(stream, id, guest, self.settings.clone());
        if session.is_none() {
            self.attached.store(false, Ordering::SeqCst);
        }
        session
    }

    /// Ends a session: the guest goes on.
    fn detach(&mut self, session: Session<'_>, guest: &dyn DebugGuest) {
        let (stream, kill) = session.end();
        stream.close(Shutdown::Both);
        self.attached.store(false, Ordering::SeqCst);
        if kill {
            self.say("the debugger has killed the guest");
            return guest.end();
        }
        self.say("the debugger is gone; the guest goes on without it");
        guest.resume(Plan { catches_death: self.on_death, ..Plan::default() });
    }

    /// Tells the user that the guest waits, and for what. A guest that need not wait goes on.
    fn without_debugger(&self, why: Why, guest: &dyn DebugGuest) {
        let how = format!("gdb -ex \"target remote {}\"", self.address);
        match why {
            Why::Start => self.say(&format!("the guest waits before its first instruction for: {how}")),
            Why::Died(exit) => self.say(&format!("the guest has died ({exit}), and waits for: {how}")),
            _ => guest.resume(Plan { catches_death: self.on_death, ..Plan::default() }),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        self.events.close();
        // Wakes the thread that waits for debuggers. A process in a jail cannot connect to itself, and other systems than Linux do
        // not wake it at a shutdown.
        if let Some(waiting) = &self.waiting
            && waiting.shutdown(Shutdown::Both).is_err()
        {
            match &self.address {
                Address::Tcp(address) => drop(TcpStream::connect_timeout(address, WRITE_LIMIT)),
                Address::Unix(path) => drop(UnixStream::connect(path)),
            }
        }
        if let Address::Unix(path) = &self.address {
            let _ = fs::remove_file(path);
        }
    }
}

impl Debugger for Server {
    fn stops_at_start(&self) -> bool {
        !self.on_death
    }

    fn waker(&self) -> Waker {
        let events = self.events.clone();
        // If there are many events, the status is checked soon anyway.
        Box::new(move || events.try_put(Event::Woken))
    }

    fn serve(&mut self, guest: &dyn DebugGuest) {
        if let Err(error) = self.wait() {
            log::warn!("gdb: no debugger can connect: {error}");
        }
        let mut session: Option<Session<'_>> = None;
        let mut told = None;
        loop {
            let event = self.events.take(TICK);
            match (event, &mut session) {
                (Some(Event::Connected(stream)), None) => {
                    session = self.attach(stream, guest);
                    told = None;
                }
                (Some(Event::Bytes(id, bytes)), Some(session)) if session.id() == id => {
                    session.receive(&bytes);
                }
                (Some(Event::Closed(id)), Some(session)) if session.id() == id => session.close(),
                _ => {}
            }
            let status = guest.status();
            if status == GuestStatus::Ended {
                self.last = session.filter(Session::waits).map(|session| session.end().0);
                self.attached.store(self.last.is_some(), Ordering::SeqCst);
                return;
            }
            if let Some(session) = &mut session {
                session.guest_is(status);
            }
            if let Some(ended) = session.take_if(|session| session.has_ended()) {
                self.detach(ended, guest);
                continue;
            }
            match status {
                GuestStatus::Stopped(_, why) if session.is_none() && told != Some(why) => {
                    told = Some(why);
                    self.without_debugger(why, guest);
                }
                _ => {}
            }
        }
    }
}

/// Accepts connections. A debugger that connects while there is one is refused.
fn wait_for_debuggers(
    listener: &Listener,
    events: &Mailbox<Event>,
    attached: &AtomicBool,
    closing: &AtomicBool,
) {
    loop {
        let accepted = listener.accept();
        if closing.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok(stream) if attached.swap(true, Ordering::SeqCst) => refuse(stream),
            Ok(stream) => {
                if !events.put(Event::Connected(stream)) {
                    return;
                }
            }
            // A shortage of descriptors may pass.
            Err(_) => thread::sleep(TICK),
        }
    }
}

/// Tells a second debugger why it is refused.
fn refuse(mut stream: Stream) {
    log::warn!("gdb: a second debugger was refused: one is connected");
    // gdb shows the text as the answer to its first request. The sum is that of the packet.
    const TEXT: &str = "E.another debugger is connected to this guest";
    let sum = TEXT.bytes().fold(0u8, u8::wrapping_add);
    if stream.prepare().is_ok() {
        let _ = stream.write_all(format!("+${TEXT}#{sum:02x}").as_bytes());
    }
    stream.close(Shutdown::Write);
}

/// Hands on what a debugger sends.
fn read_from(mut stream: Stream, events: &Mailbox<Event>, id: u64) {
    let mut bytes = vec![0; CHUNK];
    loop {
        let event = match stream.read(&mut bytes) {
            Ok(len @ 1..) => Event::Bytes(id, bytes.get(..len).unwrap_or_default().to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => {
                events.put(Event::Closed(id));
                return;
            }
        };
        if !events.put(event) {
            return;
        }
    }
}
