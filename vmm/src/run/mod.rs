//! The run loop: enter the guest, count and time the exit, ask the controllers, continue with their answer.
//! `vcpu_threads.rs` runs the loop of each vCPU on its own thread.
//!
//! The loop does not depend on devices or KVM. Its tests use a scripted [`Vcpu`].
//!
//! Imports: KVM's vCPU, controllers, profiles, the deadline.

pub(crate) mod vcpu_threads;

use crate::controller::ExitController;
use crate::controller::vcpu::{Entry, Vcpu};
use crate::exit::{Exit, Outcome, Stop};
use crate::profile::recorder::Recorder;
use crate::shutdown::{Deadline, Wait};
use std::ops::ControlFlow;

/// Runs a vCPU until a controller stops it, or until the host cannot run it any more ([`Stop::HostFailed`]). Returns the
/// reason.
pub fn run(
    vcpu: &mut impl Vcpu,
    controllers: &mut impl ExitController,
    mut recorder: Option<&mut Recorder>,
) -> Stop {
    let mut entry = Entry::Resume;
    if let ControlFlow::Break(stop) = controllers.begin(vcpu) {
        return stop;
    }
    recorder.iter_mut().for_each(|recorder| recorder.begin());
    loop {
        match step(vcpu, controllers, recorder.as_deref_mut(), entry) {
            ControlFlow::Continue((next, _)) => entry = next,
            ControlFlow::Break(stop) => return stop,
        }
    }
}

/// Runs a vCPU of a software processor until it has used its share of instructions, or until a controller stops it. `entry`
/// is the answer to its last exit, and then that to the next one. A wait that gives way ends the share, too; `again` is
/// then the exit that must be handled again, if it waits for input. Returns the reason if the vCPU stopped.
pub(crate) fn run_slice(
    vcpu: &mut impl Vcpu,
    controllers: &mut impl ExitController,
    mut recorder: Option<&mut Recorder>,
    entry: &mut Entry,
    deadline: &Deadline,
    again: &mut Option<Exit>,
) -> Option<Stop> {
    loop {
        let left =
            again.take().map_or_else(|| leave(vcpu, recorder.as_deref_mut(), *entry), ControlFlow::Continue);
        let exit = match left {
            ControlFlow::Continue(exit) => exit,
            ControlFlow::Break(stop) => return Some(stop),
        };
        let outcome = controllers.handle(&exit, vcpu);
        let wait = deadline.gave_way();
        if wait == Some(Wait::Input) && !matches!(outcome, Outcome::Stop(_)) {
            *again = Some(exit);
            return None;
        }
        match answer(outcome, recorder.as_deref_mut()) {
            ControlFlow::Continue(next) => *entry = next,
            ControlFlow::Break(stop) => return Some(stop),
        }
        if exit == Exit::Interrupted || wait.is_some() {
            return None;
        }
    }
}

/// Enters the guest, and asks the controllers about the next exit. Returns their answer, and true if the guest was
/// interrupted.
#[inline(always)]
fn step(
    vcpu: &mut impl Vcpu,
    controllers: &mut impl ExitController,
    mut recorder: Option<&mut Recorder>,
    entry: Entry,
) -> ControlFlow<Stop, (Entry, bool)> {
    let exit = leave(vcpu, recorder.as_deref_mut(), entry)?;
    let outcome = controllers.handle(&exit, vcpu);
    answer(outcome, recorder).map_continue(|entry| (entry, exit == Exit::Interrupted))
}

/// Enters the guest, and returns the next exit.
#[inline(always)]
fn leave(vcpu: &mut impl Vcpu, recorder: Option<&mut Recorder>, entry: Entry) -> ControlFlow<Stop, Exit> {
    let (exit, arrival) = match vcpu.enter(entry) {
        Ok(entered) => entered,
        Err(error) => return ControlFlow::Break(error.into()),
    };
    if let Some(recorder) = recorder {
        let rip = if recorder.wants_rip() { vcpu.rip() } else { None };
        recorder.left(&exit, arrival, rip);
    }
    log::trace!("{exit:x?}");
    ControlFlow::Continue(exit)
}

/// The entry with the answer of the controllers.
#[inline(always)]
fn answer(outcome: Outcome, recorder: Option<&mut Recorder>) -> ControlFlow<Stop, Entry> {
    if let Some(recorder) = recorder {
        recorder.answered(&outcome);
    }
    ControlFlow::Continue(match outcome {
        Outcome::Stop(stop) => return ControlFlow::Break(stop),
        Outcome::Value(value) => Entry::Value(value),
        Outcome::Fault => Entry::Fault,
        Outcome::Resume | Outcome::Unclaimed => Entry::Resume,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::{Devices, FakeVcpu, OpenBus, TerminalExits, VcpuState, Watchdog};
    use crate::device::bus::{Device, DeviceName};
    use crate::error::Error;
    use crate::exit::Arrival;
    use crate::memory::GuestMemory;
    use crate::profile::Count;
    use crate::profile::clock::Clock;
    use crate::shutdown::Deadline;
    use crate::x86::registers::{Regs, Sregs};
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    /// A vCPU with scripted exits. It keeps the answers.
    struct Script {
        exits: VecDeque<(Exit, Arrival)>,
        entries: Vec<Entry>,
        state: FakeVcpu,
    }

    impl Script {
        fn new(exits: impl IntoIterator<Item = (Exit, Arrival)>) -> Self {
            Self { exits: exits.into_iter().collect(), entries: Vec::new(), state: FakeVcpu::default() }
        }
    }

    impl VcpuState for Script {
        fn id(&self) -> u32 {
            self.state.id()
        }
        fn regs(&mut self) -> Result<Regs, Error> {
            self.state.regs()
        }
        fn set_regs(&mut self, regs: &Regs) -> Result<(), Error> {
            self.state.set_regs(regs)
        }
        fn sregs(&mut self) -> Result<Sregs, Error> {
            self.state.sregs()
        }
        fn set_sregs(&mut self, sregs: &Sregs) -> Result<(), Error> {
            self.state.set_sregs(sregs)
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
            Ok(self.exits.pop_front().expect("the loop continued after the end of the script"))
        }
    }

    /// A port that returns the next number at each read, and keeps the written values.
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
        fn name(&self, _: u64) -> DeviceName {
            DeviceName::device("fifo")
        }
    }

    /// Devices that the chain owns.
    struct Owned(Devices);

    impl ExitController for Owned {
        fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
            (&self.0).handle(exit, vcpu)
        }
    }

    fn chain(fifo: &Arc<Mutex<Fifo>>) -> impl ExitController {
        let mut devices = Devices::default();
        devices.ports.attach(0xbb, 1, fifo.clone()).unwrap();
        (Watchdog::default(), (Owned(devices), (TerminalExits, OpenBus::default())))
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
        let stop = run(&mut vcpu, &mut chain(&fifo), None);
        assert!(matches!(stop, Stop::Halted));
        assert_eq!(vcpu.entries, [Entry::Resume, Entry::Value(1), Entry::Value(u64::MAX)]);
    }

    #[test]
    fn devices_see_string_io_in_the_same_way_with_and_without_batches() {
        for arrivals in [[FRESH, FRESH, FRESH], [FRESH, NEXT, NEXT]] {
            let fifo: Arc<Mutex<Fifo>> = Arc::default();
            let mut recorder = Recorder::new(Clock::new(None), 0, None, false, None);
            let elements = (1..=3).map(output).zip(arrivals);
            let mut vcpu = Script::new(elements.chain([(Exit::Hlt, FRESH)]));
            run(&mut vcpu, &mut chain(&fifo), Some(&mut recorder));
            assert_eq!(fifo.lock().unwrap().written, [1, 2, 3]);
            let exits = 1 + arrivals.iter().filter(|arrival| **arrival == FRESH).count() as u64;
            assert_eq!(recorder.finish().profile.total(), Count { exits, elements: 4 });
        }
    }

    #[test]
    fn string_input_is_answered_element_by_element() {
        let fifo = Arc::default();
        let mut vcpu = Script::new([(input(0xbb), FRESH), (input(0xbb), NEXT), (Exit::Hlt, FRESH)]);
        run(&mut vcpu, &mut chain(&fifo), None);
        assert_eq!(vcpu.entries, [Entry::Resume, Entry::Value(1), Entry::Value(2)]);
    }

    #[test]
    fn an_access_to_an_unclaimed_msr_faults() {
        let exits = [
            (Exit::RdMsr { index: 1 }, FRESH),
            (Exit::WrMsr { index: 1, data: 2 }, FRESH),
            (Exit::Hlt, FRESH),
        ];
        let mut vcpu = Script::new(exits);
        run(&mut vcpu, &mut chain(&Arc::default()), None);
        assert_eq!(vcpu.entries, [Entry::Resume, Entry::Fault, Entry::Fault]);
    }

    #[test]
    fn an_interruption_without_a_reason_resumes_the_guest() {
        let mut vcpu = Script::new([(Exit::Interrupted, FRESH), (Exit::Hlt, FRESH)]);
        let stop = run(&mut vcpu, &mut chain(&Arc::default()), None);
        assert!(matches!(stop, Stop::Halted));
    }

    #[test]
    fn a_passed_deadline_or_a_stop_request_ends_the_run() {
        let interrupted = || Script::new([(Exit::Interrupted, FRESH)]);
        let at = |seconds| Deadline::after(Some(Duration::from_secs(seconds)));
        let mut late = Watchdog::new(at(0));
        assert!(matches!(run(&mut interrupted(), &mut late, None), Stop::Timeout(_)));
        let mut early = Watchdog::new(at(60));
        assert!(matches!(early.handle(&Exit::Interrupted, &mut FakeVcpu::default()), Outcome::Resume));
        early.deadline.request_stop();
        assert!(matches!(run(&mut interrupted(), &mut early, None), Stop::Interrupted));
    }

    #[test]
    fn each_terminal_exit_ends_the_loop() {
        for exit in [Exit::Hlt, Exit::Shutdown, Exit::EmulationFailure(Default::default()), Exit::Other(1)] {
            run(&mut Script::new([(exit, FRESH)]), &mut chain(&Arc::default()), None);
        }
    }
}
