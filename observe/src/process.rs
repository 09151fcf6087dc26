//! The observed process: its start, its signals, its end, and that of its children.
#![allow(unsafe_code)]

use crate::Error;
use crate::descendants;
use crate::engine::{Engine, Event};
use crate::isolation::{self, Isolation, Pids, Protection};
use jail::{Captive, Missing};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::ptr;
use std::time::{Duration, Instant};

/// The signals that this process hands on to the program, and SIGCHLD.
const SIGNALS: [libc::c_int; 7] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2, libc::SIGCHLD];
/// The longest wait for killed processes.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// The largest number of states of children that are taken at a time.
const MOST_STATES: u32 = 1 << 12;

/// Signals of this process, which arrive on a file while this lives.
#[derive(Debug)]
pub(crate) struct Signals {
    file: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    /// Blocks the signals, and opens the file.
    pub(crate) fn catch() -> Result<Self, Error> {
        // SAFETY: all zeroes are a valid set, and the sets outlive the calls. The descriptor is new.
        unsafe {
            let (mut set, mut before): (libc::sigset_t, libc::sigset_t) = (mem::zeroed(), mem::zeroed());
            libc::sigemptyset(&mut set);
            for signal in SIGNALS {
                libc::sigaddset(&mut set, signal);
            }
            let failed = libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if failed != 0 || fd < 0 {
                let source = io::Error::last_os_error();
                libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
                return Err(Error::Host { operation: "catching signals (signalfd)", source });
            }
            Ok(Self { file: OwnedFd::from_raw_fd(fd), before })
        }
    }

    /// Takes the next signal: its number, and true if a process sent it. The terminal sends its signals to the program
    /// itself.
    fn next(&self) -> Option<(libc::c_int, bool)> {
        // SAFETY: all zeroes are a valid value, and it outlives the call.
        let mut info: libc::signalfd_siginfo = unsafe { mem::zeroed() };
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: as above.
        let read = unsafe { libc::read(self.file.as_raw_fd(), (&raw mut info).cast(), size) };
        let whole = usize::try_from(read).is_ok_and(|read| read == size);
        whole.then(|| (info.ssi_signo.cast_signed(), info.ssi_code <= libc::SI_USER))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // A signal that waits was handed on already, or came when the program had ended.
        while self.next().is_some() {}
        // SAFETY: the set is the one of before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, ptr::null_mut()) };
    }
}

/// True if this process ignores a signal, as in the background of a shell.
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: all zeroes are a valid value. With a null action the call only fills `now`.
    unsafe {
        let mut now: libc::sigaction = mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}

/// Sends a signal to this thread.
pub(crate) fn raise(signal: libc::c_int) {
    // SAFETY: the call takes no memory.
    unsafe { libc::raise(signal) };
}

/// The observed process.
#[derive(Debug)]
pub(crate) struct Process {
    pid: libc::pid_t,
    signals: Signals,
    ended: Option<ExitStatus>,
    /// The PID namespace of a captive program.
    isolation: Option<Isolation>,
    /// The init process of that namespace.
    init: Option<libc::pid_t>,
    protection: Protection,
    /// The jail of the program, and the parts that it lacks.
    jail: Option<Captive>,
    missing: Vec<Missing>,
    /// The last signal that asked this process to end.
    asked_to_end: Option<libc::c_int>,
}

impl Process {
    /// Starts the program with the signals that this process was started with. A captive program, which is isolated, gets no
    /// files of this process but its standard streams.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(
        command: &mut Command,
        engine: &mut dyn Engine,
        isolation: Option<Isolation>,
        jail: Option<Captive>,
    ) -> Result<Self, Error> {
        let is_captive = isolation.is_some();
        let signals = Signals::catch()?;
        // Orphans of the program become children of this process, so that a timeout can end them.
        // SAFETY: the call takes no memory.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
        let own = jail.as_ref().map(Captive::child).transpose().map_err(Error::host("preparing the jail"))?;
        let before = signals.before;
        let restore = move || {
            vmm::host::unprepare();
            // SAFETY: the set is valid, and the call is allowed between fork and exec.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut()) };
            if is_captive {
                // Before Linux 5.11 this fails, and the program has what this process was given without O_CLOEXEC.
                // SAFETY: the call takes no memory. The descriptors close when the program begins.
                unsafe {
                    libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
                };
            }
            own.as_ref().map_or(Ok(()), |jail| jail.enter(isolation::namespaces()))
        };
        // SAFETY: the closure makes only calls that are allowed between fork and exec.
        let started = engine.start(unsafe { command.pre_exec(restore) });
        let (init, protection) = (None, Protection::None);
        let mut process = Self {
            pid: 0,
            signals,
            ended: None,
            isolation,
            init,
            protection,
            jail,
            missing: Vec::new(),
            asked_to_end: None,
        };
        match started {
            Ok(pid) => process.pid = pid,
            Err(error) => {
                process.isolation.take().into_iter().for_each(Isolation::give_up);
                return Err(process.jail_error().unwrap_or(error));
            }
        }
        if let Some(isolation) = &mut process.isolation {
            let (protection, pids) = isolation.started();
            process.protection = protection;
            if let Some(Pids { init, program }) = pids {
                (process.pid, process.init) = (program, Some(init));
            }
        }
        process.missing = process.jail.as_mut().map(Captive::missing).unwrap_or_default();
        Ok(process)
    }

    /// The reason why a program was not started, if its jail is required and lacks a part.
    fn jail_error(&mut self) -> Option<Error> {
        let jail = self.jail.as_mut().filter(|jail| jail.is_required())?;
        jail.missing().first().map(|part| Error::Jail(part.text()))
    }

    /// The parts of the jail that the system lacks.
    pub(crate) fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// The protection of other processes.
    pub(crate) fn protection(&self) -> Protection {
        self.protection
    }

    /// The status of the program, once it has ended.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        self.ended
    }

    /// The signal that asked this process to end, if there was one.
    pub(crate) fn asked_to_end(&self) -> Option<libc::c_int> {
        self.asked_to_end
    }

    /// Waits until something happens, at most for about this time. Hands over what a tracing engine has seen.
    pub(crate) fn wait(&mut self, engine: &mut dyn Engine, limit: Duration, to: &mut dyn FnMut(Event)) {
        if engine.traces() {
            self.trace(engine, limit, to);
            self.forward_signals();
            return;
        }
        let entry = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // A negative descriptor is ignored.
        let wakes = engine.wakes().map_or(-1, |file| file.as_raw_fd());
        let mut files = [entry(self.signals.file.as_raw_fd()), entry(wakes)];
        let limit = libc::timespec {
            tv_sec: limit.as_secs().min(3600).cast_signed(),
            tv_nsec: limit.subsec_nanos().into(),
        };
        // SAFETY: both outlive the call.
        unsafe { libc::ppoll(files.as_mut_ptr(), files.len() as libc::nfds_t, &limit, ptr::null()) };
        self.forward_signals();
        self.reap(engine, to);
    }

    /// Hands states of traced threads to their engine, for this time, or until the program has ended. The timer of the engine
    /// interrupts the wait.
    fn trace(&mut self, engine: &mut dyn Engine, limit: Duration, to: &mut dyn FnMut(Event)) {
        let began = Instant::now();
        while let Ok(Some(())) = self.take_state(engine, 0, to) {
            if self.ended.is_some() || began.elapsed() >= limit {
                return;
            }
        }
    }

    /// Hands the signals that processes have sent on to the program.
    fn forward_signals(&mut self) {
        while let Some((signal, is_sent)) = self.signals.next() {
            let asks = [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP].contains(&signal);
            if asks && !is_ignored(signal) {
                self.asked_to_end = Some(signal);
            }
            if signal != libc::SIGCHLD && is_sent {
                self.send(signal);
            }
        }
    }

    /// The program with all of its children, also those that it has left behind.
    pub(crate) fn family(&self) -> Vec<libc::pid_t> {
        let own = std::process::id().cast_signed();
        descendants::of(own).into_iter().filter(|process| Some(*process) != self.init).collect()
    }

    /// Sends a signal to the program, if it has not ended.
    pub(crate) fn send(&self, signal: libc::c_int) {
        if self.ended.is_none() {
            // SAFETY: the process is not reaped, so the number is its own.
            unsafe { libc::kill(self.pid, signal) };
        }
    }

    /// Takes the next state of a child, or of a thread that this one traces. Returns `None` if there is none.
    fn take_state(
        &mut self,
        engine: &mut dyn Engine,
        flags: libc::c_int,
        to: &mut dyn FnMut(Event),
    ) -> io::Result<Option<()>> {
        let mut status = 0;
        // SAFETY: the status outlives the call.
        let pid = unsafe { libc::waitpid(-1, &mut status, flags | libc::__WALL) };
        if pid <= 0 {
            return if pid == 0 { Ok(None) } else { Err(io::Error::last_os_error()) };
        }
        if pid == self.pid && !libc::WIFSTOPPED(status) {
            self.ended = Some(ExitStatus::from_raw(status));
        }
        if Some(pid) != self.init {
            engine.changed(pid, status, to);
        }
        Ok(Some(()))
    }

    /// Reaps all children that have ended. Returns false if there are no children.
    fn reap(&mut self, engine: &mut dyn Engine, to: &mut dyn FnMut(Event)) -> bool {
        // A traced program may always have a next state.
        for _ in 0..MOST_STATES {
            match self.take_state(engine, libc::WNOHANG, to) {
                Ok(Some(())) => {}
                Ok(None) => return true,
                Err(error) => return error.raw_os_error() != Some(libc::ECHILD),
            }
        }
        true
    }

    /// True if children of the program still run.
    pub(crate) fn has_children(&mut self, engine: &mut dyn Engine, to: &mut dyn FnMut(Event)) -> bool {
        let own = std::process::id().cast_signed();
        self.reap(engine, to)
            && (self.init.is_none() || descendants::of(own).into_iter().any(|pid| Some(pid) != self.init))
    }

    /// Ends the program and all of its children.
    pub(crate) fn kill_all(&mut self, engine: &mut dyn Engine, to: &mut dyn FnMut(Event)) {
        let began = Instant::now();
        self.send(libc::SIGKILL);
        while self.reap(engine, to) && began.elapsed() < KILL_LIMIT {
            for pid in descendants::of(std::process::id().cast_signed()) {
                // SAFETY: the call takes no memory. The number was that of a descendant a moment ago.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
