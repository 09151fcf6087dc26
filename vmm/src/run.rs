//! The loop: enter the guest, count and time the exit, ask the controllers, go on with their answer.
//!
//! The loop knows no device and no KVM; a scripted [`Vcpu`] runs it in the tests.

use crate::controller::{ExitController, VcpuState};
use crate::error::Error;
use crate::exit::{Exit, Outcome, Stop};
use crate::recorder::Recorder;
use crate::sys;
use crate::team::Team;
use crate::vcpu::{Entry, Vcpu};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// Runs a guest to its end.
///
/// # Errors
/// The host cannot run the vCPU.
pub fn run(
    vcpu: &mut impl Vcpu,
    controllers: &mut impl ExitController,
    mut recorder: Option<&mut Recorder>,
) -> Result<Stop, Error> {
    let mut entry = Entry::Resume;
    recorder.iter_mut().for_each(|recorder| recorder.begin());
    loop {
        let (exit, arrival) = vcpu.enter(entry)?;
        if let Some(recorder) = &mut recorder {
            let rip = if recorder.wants_rip() { vcpu.rip() } else { None };
            recorder.left(&exit, arrival, rip);
        }
        log::trace!("{exit:x?}");
        let outcome = controllers.handle(&exit, vcpu);
        if let Some(recorder) = &mut recorder {
            recorder.answered(&outcome);
        }
        entry = match outcome {
            Outcome::Stop(stop) => return Ok(stop),
            Outcome::Value(value) => Entry::Value(value),
            Outcome::Fault => Entry::Fault,
            Outcome::Resume | Outcome::Unclaimed => Entry::Resume,
        };
    }
}

/// When a run must have ended: its time, or as soon as somebody asks for it. Clones are the same deadline.
///
/// Time in which the guest waits for its input does not count: it moves the deadline on.
#[derive(Clone, Debug, Default)]
pub struct Deadline {
    end: Option<Instant>,
    waited: Arc<AtomicU64>,
    asked: Arc<AtomicBool>,
    abandoned: Arc<AtomicBool>,
}

impl Deadline {
    /// A deadline this long from now; none for `None`.
    pub fn after(timeout: Option<Duration>) -> Self {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Self { end, ..Self::default() }
    }

    /// What is set by whoever wants the run to end, before he kicks the vCPUs.
    pub fn asked(&self) -> &Arc<AtomicBool> {
        &self.asked
    }

    /// Whether somebody has asked for the end.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire) || sys::interrupted()
    }

    /// Asks for the end, and for no patience with what is still on its way.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        self.asked.store(true, Ordering::Release);
    }

    /// Why text that nobody takes is to be given up now, if it is. That the run must end is no reason: it may be over,
    /// with its last words on their way to a slow reader.
    pub fn must_give_up(&self) -> Option<Stop> {
        if self.abandoned.load(Ordering::Acquire) || sys::interrupted() {
            return Some(Stop::Interrupted);
        }
        self.has_passed().then_some(Stop::Timeout)
    }

    /// Why the run must end now, if it must: whoever blocks looks at this when a signal wakes him.
    pub fn must_end(&self) -> Option<Stop> {
        if self.is_asked() {
            return Some(Stop::Interrupted);
        }
        self.has_passed().then_some(Stop::Timeout)
    }

    /// Whether the time is up.
    pub fn has_passed(&self) -> bool {
        let waited = Duration::from_nanos(self.waited.load(Ordering::Relaxed));
        self.end.and_then(|end| end.checked_add(waited)).is_some_and(|end| Instant::now() >= end)
    }

    /// Moves the deadline on by the time since `start`, in which the guest waited for its input.
    pub(crate) fn not_counting_since(&self, start: Instant) {
        let waited = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(waited, Ordering::Relaxed);
    }
}

/// Ends a machine from a thread that is none of its vCPUs'.
#[derive(Debug)]
pub struct Ender {
    /// What tells the vCPUs, and kicks them.
    machine: OnceLock<(Deadline, Arc<Team>)>,
    reason: Mutex<Option<Stop>>,
    /// Written to at the end: the console's thread then repeats the kicks, of which one may be lost.
    event: EventFd,
}

impl Ender {
    /// Nothing to end yet.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self {
            machine: OnceLock::new(),
            reason: Mutex::default(),
            event: sys::event().map_err(Error::host("eventfd"))?,
        })
    }

    /// From now on the machine that ends by this deadline, and has these vCPUs, is the one to end.
    pub(crate) fn attach(&self, deadline: Deadline, team: Arc<Team>) {
        let _ = self.machine.set((deadline, team));
        self.kick_again();
    }

    /// Ends the machine, for this reason unless there was one before.
    pub(crate) fn end(&self, reason: Stop) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.kick_again();
        let _ = self.event.write(1);
    }

    /// Kicks the vCPUs of a machine that shall end.
    pub(crate) fn kick_again(&self) {
        if let Some((deadline, team)) = self.machine.get().filter(|_| self.has_ended()) {
            deadline.abandon();
            team.kick_all();
        }
    }

    /// Written to when the machine shall end.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Whether the machine was ended by this.
    pub fn has_ended(&self) -> bool {
        self.reason().is_some()
    }

    /// Why, if it was.
    pub fn reason(&self) -> Option<Stop> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Decides what an interruption means: the time is up, somebody asked for an end, or nothing.
#[derive(Clone, Debug, Default)]
pub struct Watchdog {
    /// When the run must have ended.
    pub deadline: Deadline,
}

impl ExitController for Watchdog {
    fn handle(&mut self, exit: &Exit, _: &mut dyn VcpuState) -> Outcome {
        if *exit != Exit::Interrupted {
            return Outcome::Unclaimed;
        }
        self.deadline.must_end().map_or(Outcome::Resume, Outcome::Stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Device;
    use crate::clock::Clock;
    use crate::controller::{Devices, Ends, OpenBus, StillVcpu};
    use crate::exit::Arrival;
    use crate::memory::GuestMemory;
    use crate::profile::Count;
    use kvm_bindings::{kvm_regs, kvm_sregs};
    use std::collections::VecDeque;
    use std::ops::ControlFlow;
    use std::sync::Mutex;

    /// A vCPU that makes the exits it is told to, and writes down the answers.
    struct Script {
        exits: VecDeque<(Exit, Arrival)>,
        entries: Vec<Entry>,
        state: StillVcpu,
    }

    impl Script {
        fn new(exits: impl IntoIterator<Item = (Exit, Arrival)>) -> Self {
            Self { exits: exits.into_iter().collect(), entries: Vec::new(), state: StillVcpu::default() }
        }
    }

    impl VcpuState for Script {
        fn id(&self) -> u32 {
            self.state.id()
        }
        fn regs(&mut self) -> Result<kvm_regs, Error> {
            self.state.regs()
        }
        fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), Error> {
            self.state.set_regs(regs)
        }
        fn sregs(&mut self) -> Result<kvm_sregs, Error> {
            self.state.sregs()
        }
        fn msr(&mut self, index: u32) -> Option<u64> {
            self.state.msr(index)
        }
        fn set_msr(&mut self, index: u32, data: u64) -> bool {
            self.state.set_msr(index, data)
        }
        fn memory(&self) -> &GuestMemory {
            self.state.memory()
        }
    }

    impl Vcpu for Script {
        fn enter(&mut self, entry: Entry) -> Result<(Exit, Arrival), Error> {
            self.entries.push(entry);
            Ok(self.exits.pop_front().expect("the loop went on after the script's end"))
        }
    }

    /// A port that gives the next number at each read, and keeps what is written.
    #[derive(Default)]
    struct Fifo {
        next: u64,
        written: Vec<u64>,
    }

    impl Device for Fifo {
        fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
            self.next += 1;
            ControlFlow::Continue(self.next)
        }
        fn write(&mut self, _: u64, _: u8, data: u64) -> ControlFlow<Stop> {
            self.written.push(data);
            ControlFlow::Continue(())
        }
        fn name(&self, _: u64) -> &'static str {
            "fifo"
        }
    }

    /// Devices of one chain's own.
    struct Owned(Devices);

    impl ExitController for Owned {
        fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
            (&self.0).handle(exit, vcpu)
        }
    }

    fn chain(fifo: &Arc<Mutex<Fifo>>) -> impl ExitController {
        let mut devices = Devices::default();
        devices.ports.attach(0xbb, 1, fifo.clone()).unwrap();
        (Watchdog::default(), (Owned(devices), (Ends, OpenBus::default())))
    }

    const FRESH: Arrival = Arrival::FromGuest;
    const NEXT: Arrival = Arrival::NextElement;

    fn input(port: u16) -> Exit {
        Exit::PioIn { port, size: 1 }
    }

    fn output(data: u32) -> Exit {
        Exit::PioOut { port: 0xbb, size: 1, data }
    }

    #[test]
    fn answers_go_back_into_the_guest() {
        let fifo = Arc::default();
        let mut vcpu = Script::new([(input(0xbb), FRESH), (input(0xbc), FRESH), (Exit::Hlt, FRESH)]);
        let stop = run(&mut vcpu, &mut chain(&fifo), None).unwrap();
        assert!(matches!(stop, Stop::Halted));
        assert_eq!(vcpu.entries, [Entry::Resume, Entry::Value(1), Entry::Value(u64::MAX)]);
    }

    #[test]
    fn string_io_is_the_same_to_devices_whether_the_host_batches_or_not() {
        for arrivals in [[FRESH, FRESH, FRESH], [FRESH, NEXT, NEXT]] {
            let fifo: Arc<Mutex<Fifo>> = Arc::default();
            let mut recorder = Recorder::new(Clock::new(None), 0, None, None);
            let elements = (1..=3).map(output).zip(arrivals);
            let mut vcpu = Script::new(elements.chain([(Exit::Hlt, FRESH)]));
            run(&mut vcpu, &mut chain(&fifo), Some(&mut recorder)).unwrap();
            assert_eq!(fifo.lock().unwrap().written, [1, 2, 3]);
            let exits = 1 + arrivals.iter().filter(|arrival| **arrival == FRESH).count() as u64;
            assert_eq!(recorder.finish().profile.total(), Count { exits, elements: 4 });
        }
    }

    #[test]
    fn string_input_is_answered_element_by_element() {
        let fifo = Arc::default();
        let mut vcpu = Script::new([(input(0xbb), FRESH), (input(0xbb), NEXT), (Exit::Hlt, FRESH)]);
        run(&mut vcpu, &mut chain(&fifo), None).unwrap();
        assert_eq!(vcpu.entries, [Entry::Resume, Entry::Value(1), Entry::Value(2)]);
    }

    #[test]
    fn an_msr_that_nobody_has_faults() {
        let exits = [
            (Exit::RdMsr { index: 1 }, FRESH),
            (Exit::WrMsr { index: 1, data: 2 }, FRESH),
            (Exit::Hlt, FRESH),
        ];
        let mut vcpu = Script::new(exits);
        run(&mut vcpu, &mut chain(&Arc::default()), None).unwrap();
        assert_eq!(vcpu.entries, [Entry::Resume, Entry::Fault, Entry::Fault]);
    }

    #[test]
    fn an_interruption_without_a_reason_is_nothing() {
        let mut vcpu = Script::new([(Exit::Interrupted, FRESH), (Exit::Hlt, FRESH)]);
        let stop = run(&mut vcpu, &mut chain(&Arc::default()), None).unwrap();
        assert!(matches!(stop, Stop::Halted));
    }

    #[test]
    fn the_deadline_and_a_request_end_the_run() {
        let interrupted = || Script::new([(Exit::Interrupted, FRESH)]);
        let at = |seconds| Deadline::after(Some(Duration::from_secs(seconds)));
        let mut late = Watchdog { deadline: at(0) };
        assert!(matches!(run(&mut interrupted(), &mut late, None).unwrap(), Stop::Timeout));
        let mut early = Watchdog { deadline: at(60) };
        assert!(matches!(early.handle(&Exit::Interrupted, &mut StillVcpu::default()), Outcome::Resume));
        early.deadline.asked().store(true, Ordering::Release);
        assert!(matches!(run(&mut interrupted(), &mut early, None).unwrap(), Stop::Interrupted));
    }

    #[test]
    fn waiting_for_input_moves_the_deadline_on() {
        let deadline = Deadline::after(Some(Duration::from_millis(20)));
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(30));
        deadline.not_counting_since(start);
        assert!(!deadline.clone().has_passed());
        std::thread::sleep(Duration::from_millis(30));
        assert!(deadline.has_passed());
        assert!(!Deadline::after(None).has_passed());
    }

    #[test]
    fn every_end_ends_the_loop() {
        for exit in [Exit::Hlt, Exit::Shutdown, Exit::EmulationFailure(Default::default()), Exit::Other(1)] {
            run(&mut Script::new([(exit, FRESH)]), &mut chain(&Arc::default()), None).unwrap();
        }
    }
}
