//! The end of a guest that halts for good.
//!
//! With in-kernel interrupt controllers HLT makes no exit: KVM waits in KVM_RUN for an interrupt. A guest that ends with
//! `cli; hlt` would wait for ever. So a thread watches the number of exits. If it does not change for some milliseconds,
//! the vCPUs are asked for their state; if all of them are halted with interrupts off, the run ends. A guest that computes
//! without exits is asked less and less often.

use crate::controller::inquiry::{Answer, Inquiry};
use crate::controller::vcpu::Activity;
use crate::shutdown::StopHandle;
use std::sync::Arc;
use std::time::Duration;

/// The interval between two checks of a guest that makes exits.
const INTERVAL: Duration = Duration::from_millis(5);
/// The longest interval between two questions to a guest that makes none.
const LONGEST: Duration = Duration::from_millis(80);
/// The time that the vCPUs have to answer.
const ANSWER_TIME: Duration = Duration::from_millis(1);
/// RFLAGS: interrupts are on.
const INTERRUPTS_ON: u64 = 1 << 9;

/// Watches for a halt that nothing ends.
pub(super) struct HaltWatch {
    inquiry: Arc<Inquiry>,
    /// Kicks the vCPUs.
    vcpus: Arc<StopHandle>,
    /// The number of exits at the last check.
    last: u64,
    /// The time until the next question, while the guest makes no exits.
    pause: Duration,
    state: State,
}

/// The state of the watch.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// The vCPUs run, or wait for interrupts.
    Runs,
    /// They have been asked. In the round before, they were halted for good at these places, if any.
    Asked(Option<Vec<Place>>),
    /// They are halted for good, and have been told to end the run.
    Ends,
}

/// The place of a vCPU that is halted for good. `None` if the guest has not started it.
type Place = Option<u64>;

impl HaltWatch {
    pub(super) fn new(inquiry: Arc<Inquiry>, vcpus: Arc<StopHandle>) -> Self {
        Self { inquiry, vcpus, last: 0, pause: INTERVAL, state: State::Runs }
    }

    /// Checks if the guest has halted for good, and ends the run then. Returns the time until the next check. It does not
    /// block.
    pub(super) fn check(&mut self) -> Duration {
        let exits = self.inquiry.progress();
        let moved = std::mem::replace(&mut self.last, exits) != exits;
        match std::mem::replace(&mut self.state, State::Runs) {
            State::Ends => {
                // A kick that comes just before KVM_RUN may be lost.
                self.vcpus.kick_all();
                self.state = State::Ends;
                INTERVAL
            }
            _ if moved => {
                self.pause = INTERVAL;
                INTERVAL
            }
            State::Runs => self.ask(None),
            State::Asked(before) => self.look(before),
        }
    }

    /// Asks the vCPUs. `before` are their places in the round before, if they were halted for good.
    fn ask(&mut self, before: Option<Vec<Place>>) -> Duration {
        self.inquiry.ask();
        self.vcpus.kick_all();
        self.state = State::Asked(before);
        ANSWER_TIME
    }

    /// Looks at the answers.
    fn look(&mut self, before: Option<Vec<Place>>) -> Duration {
        let answers = self.inquiry.take();
        let Some(places) = places(&answers) else {
            let pause = self.pause;
            self.pause = pause.saturating_mul(2).min(LONGEST);
            return pause;
        };
        // Between the answers of two vCPUs, one may have woken the other. Then the second round shows other places.
        if places.len() > 1 && before.as_ref() != Some(&places) {
            return self.ask(Some(places));
        }
        self.inquiry.end();
        self.vcpus.kick_all();
        self.state = State::Ends;
        ANSWER_TIME
    }
}

/// The places of the vCPUs. `None` if one of them runs, can be woken by an interrupt, or has not answered.
fn places(answers: &[Option<Answer>]) -> Option<Vec<Place>> {
    let place = |answer: &Option<Answer>| {
        let answer = answer.as_ref()?;
        let (regs, _) = answer.registers.as_ref()?;
        let is_dead = answer.activity == Activity::Halted && regs.rflags & INTERRUPTS_ON == 0;
        match answer.activity {
            Activity::NotStarted => Some(None),
            _ if is_dead && !answer.nmi_pending => Some(Some(regs.rip)),
            _ => None,
        }
    };
    let places: Vec<Place> = answers.iter().map(place).collect::<Option<_>>()?;
    places.iter().any(Option::is_some).then_some(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::inquiry::Respondent;
    use crate::controller::{ExitController, FakeVcpu, Watchdog};
    use crate::exit::{Exit, Outcome, Stop};
    use crate::x86::registers::Regs;

    fn answer(activity: Activity, rip: u64, rflags: u64) -> Option<Answer> {
        let registers = Some((Regs { rip, rflags, ..Default::default() }, Default::default()));
        Some(Answer { activity, nmi_pending: false, registers })
    }

    #[test]
    fn only_a_halt_with_interrupts_off_is_for_good() {
        let dead = answer(Activity::Halted, 5, 2);
        let asleep = answer(Activity::Halted, 5, 0x202);
        let running = answer(Activity::Running, 5, 2);
        let unstarted = answer(Activity::NotStarted, 0xfff0, 2);
        let nmi = dead.clone().map(|answer| Answer { nmi_pending: true, ..answer });
        for (answers, expected) in [
            (vec![dead.clone()], Some(vec![Some(5)])),
            (vec![dead.clone(), unstarted.clone()], Some(vec![Some(5), None])),
            (vec![dead.clone(), dead.clone()], Some(vec![Some(5), Some(5)])),
            (vec![unstarted], None),
            (vec![dead.clone(), asleep], None),
            (vec![dead.clone(), running], None),
            (vec![dead.clone(), None], None),
            (vec![dead, nmi], None),
        ] {
            assert_eq!(places(&answers), expected, "{answers:?}");
        }
    }

    fn watch(vcpus: u32) -> HaltWatch {
        HaltWatch::new(Arc::new(Inquiry::new(vcpus)), Arc::new(StopHandle::new().unwrap()))
    }

    fn respond(watch: &HaltWatch, index: usize, vcpu: &mut FakeVcpu) -> Outcome {
        let respondent = Some(Respondent { inquiry: watch.inquiry.clone(), index });
        Watchdog { respondent, ..Watchdog::default() }.handle(&Exit::Interrupted, vcpu)
    }

    fn halted(rip: u64) -> FakeVcpu {
        let regs = Regs { rip, rflags: 2, ..Default::default() };
        FakeVcpu { regs, activity: Activity::Halted, ..Default::default() }
    }

    #[test]
    fn a_halted_vcpu_ends_the_run() {
        let mut watch = watch(1);
        assert_eq!(watch.check(), ANSWER_TIME);
        assert!(matches!(respond(&watch, 0, &mut halted(7)), Outcome::Resume));
        watch.check();
        assert_eq!(watch.state, State::Ends);
        assert!(matches!(respond(&watch, 0, &mut halted(7)), Outcome::Stop(Stop::Halted)));
        assert_eq!(watch.check(), INTERVAL, "it goes on kicking");
    }

    #[test]
    fn two_vcpus_must_be_at_the_same_places_twice() {
        let mut watch = watch(2);
        watch.check();
        for places in [[7, 9], [7, 10], [7, 10]] {
            assert!(matches!(watch.state, State::Asked(_)));
            for (index, rip) in places.into_iter().enumerate() {
                assert!(matches!(respond(&watch, index, &mut halted(rip)), Outcome::Resume));
            }
            assert_eq!(watch.check(), ANSWER_TIME);
        }
        assert_eq!(watch.state, State::Ends);
    }

    #[test]
    fn a_guest_that_computes_is_asked_less_and_less_often() {
        let mut watch = watch(1);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert_eq!(watch.check(), ANSWER_TIME);
            respond(&watch, 0, &mut FakeVcpu::default());
            pauses.push(watch.check());
        }
        assert_eq!((pauses[0], pauses[7]), (INTERVAL, LONGEST));
        assert!(pauses.is_sorted());
        let mut respondent = Respondent { inquiry: watch.inquiry.clone(), index: 0 };
        respondent.handle(&Exit::Hlt, &mut FakeVcpu::default());
        assert_eq!(watch.check(), INTERVAL, "it has made an exit");
    }
}
