//! A question to the running vCPUs from another thread: how many exits have they made, and what is their state?
//!
//! The other thread asks, and then kicks the vCPUs out of their guests. The [`Watchdog`](super::Watchdog) of each vCPU
//! answers, and the guest continues.

use super::vcpu::Activity;
use super::{ExitController, VcpuState};
use crate::exit::{Exit, Outcome};
use crate::x86::registers::{Regs, Sregs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The state of a vCPU when it answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) activity: Activity,
    /// A non-maskable interrupt is on its way.
    pub(crate) nmi_pending: bool,
    /// The registers. `None` if the host did not tell them.
    pub(crate) registers: Option<(Regs, Sregs)>,
}

/// The questions to the vCPUs of one machine, and their answers.
#[derive(Debug)]
pub(crate) struct Inquiry {
    places: Vec<Place>,
    /// All vCPUs are halted for good, so the run ends.
    ended: AtomicBool,
    /// The number of times that a debugger was seen to keep the guest stopped.
    stops: AtomicU64,
}

/// The part of one vCPU.
#[derive(Debug, Default)]
struct Place {
    /// The number of exits. Only the vCPU's own thread adds to it.
    exits: AtomicU64,
    asked: AtomicBool,
    answer: Mutex<Option<Answer>>,
}

impl Inquiry {
    /// An inquiry for this number of vCPUs.
    pub(crate) fn new(vcpus: u32) -> Self {
        Self {
            places: (0..vcpus).map(|_| Place::default()).collect(),
            ended: AtomicBool::new(false),
            stops: AtomicU64::new(0),
        }
    }

    /// Notes that a debugger keeps the guest stopped, so that it does not stand still by itself.
    pub(crate) fn note_stop(&self) {
        self.stops.fetch_add(1, Ordering::Relaxed);
    }

    /// A number that grows with each exit that a controller or device had to answer, and while a debugger keeps the guest
    /// stopped.
    pub(crate) fn progress(&self) -> u64 {
        let stops = self.stops.load(Ordering::Relaxed);
        self.places.iter().fold(stops, |sum, place| sum.wrapping_add(place.exits.load(Ordering::Relaxed)))
    }

    /// Tells the vCPUs that all of them are halted for good. Each ends its run when it is kicked next.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Asks all vCPUs, which answer when they are kicked next.
    pub(crate) fn ask(&self) {
        for place in &self.places {
            *place.answer.lock().unwrap_or_else(PoisonError::into_inner) = None;
            place.asked.store(true, Ordering::Release);
        }
    }

    /// Takes the answers, in the order of the vCPUs. `None` for a vCPU that has not answered.
    pub(crate) fn take(&self) -> Vec<Option<Answer>> {
        let take = |place: &Place| {
            place.asked.store(false, Ordering::Release);
            place.answer.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        self.places.iter().map(take).collect()
    }
}

/// The side of one vCPU: it counts the exits, and answers. As a controller it claims nothing.
#[derive(Clone, Debug)]
pub(crate) struct Respondent {
    pub(crate) inquiry: Arc<Inquiry>,
    /// The index of the vCPU.
    pub(crate) index: usize,
}

impl Respondent {
    /// Answers if another thread has asked.
    pub(super) fn answer(&self, vcpu: &mut dyn VcpuState) {
        let Some(place) = self.inquiry.places.get(self.index) else { return };
        if place.asked.swap(false, Ordering::AcqRel) {
            let registers = vcpu.regs().and_then(|regs| Ok((regs, vcpu.sregs()?))).ok();
            let nmi_pending = vcpu.nmi_is_pending();
            let answer = Answer { activity: vcpu.activity(), nmi_pending, registers };
            *place.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        }
    }

    /// True if the run ends because all vCPUs are halted for good.
    pub(super) fn has_ended(&self) -> bool {
        self.inquiry.ended.load(Ordering::Acquire)
    }
}

impl ExitController for Respondent {
    fn handle(&mut self, _: &Exit, _: &mut dyn VcpuState) -> Outcome {
        if let Some(place) = self.inquiry.places.get(self.index) {
            // No atomic addition is needed, because no other thread writes.
            place.exits.store(place.exits.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
        Outcome::Unclaimed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::{FakeVcpu, Watchdog};

    #[test]
    fn a_vcpu_answers_once_when_it_is_interrupted() {
        let inquiry = Arc::new(Inquiry::new(2));
        let respondent = |index| Respondent { inquiry: inquiry.clone(), index };
        let mut watchdog = Watchdog { respondent: Some(respondent(1)), ..Watchdog::default() };
        let mut vcpu = FakeVcpu { regs: Regs { rip: 0x1000, ..Default::default() }, ..Default::default() };
        watchdog.handle(&Exit::Interrupted, &mut vcpu);
        assert!(inquiry.take().iter().all(Option::is_none), "it was not asked");
        inquiry.ask();
        watchdog.handle(&Exit::Hlt, &mut vcpu);
        assert!(matches!(watchdog.handle(&Exit::Interrupted, &mut vcpu), Outcome::Resume));
        let answers = inquiry.take();
        assert!(answers[0].is_none());
        let (regs, _) = answers[1].as_ref().unwrap().registers.unwrap();
        assert_eq!(regs.rip, 0x1000);
        assert!(inquiry.take()[1].is_none(), "an answer is taken once");
    }

    #[test]
    fn the_exits_of_all_vcpus_are_added_up() {
        let inquiry = Arc::new(Inquiry::new(2));
        for index in [0, 1, 1, 9] {
            let mut respondent = Respondent { inquiry: inquiry.clone(), index };
            assert!(matches!(respondent.handle(&Exit::Hlt, &mut FakeVcpu::default()), Outcome::Unclaimed));
        }
        assert_eq!(inquiry.progress(), 3);
        inquiry.note_stop();
        assert_eq!(inquiry.progress(), 4, "a debugger keeps the guest stopped");
    }
}
