//! A boot that stands still: for some seconds, the guest makes no exits and shows no text.
//!
//! A boot has no time limit by default, and a kernel that loops or halts early says nothing. A thread of the console
//! calls [`Standstill::check`] at intervals until userland has started. If nothing moves, the vCPUs are asked for their
//! state, and a warning says where they are.

mod causes;
mod spin;

use crate::controller::inquiry::{Answer, Inquiry};
use crate::controller::vcpu::{Activity, Location};
use crate::exit::Stop;
use crate::host;
use crate::machine::boot_progress::{BootProgress, SoFar};
use crate::machine::explain::{Explanation, Scene};
use crate::machine::linux::OnHalt;
use crate::memory::GuestMemory;
use crate::shutdown::StopHandle;
use crate::x86::modes::Mode;
pub(super) use causes::Facts;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// The interval between two checks.
const INTERVAL: Duration = Duration::from_secs(2);
/// The number of checks in a row without a change after which the boot stands still.
const QUIET_CHECKS: u32 = 5;
/// The time that the vCPUs have to answer.
const ANSWER_TIME: Duration = Duration::from_millis(100);
/// The number of times that the vCPUs are asked if they are halted for good, after the kernel has said so.
const HALT_TRIES: u32 = 50;
/// The most warnings of one boot.
const MAX_WARNINGS: u32 = 3;
/// The most vCPUs that have a line of their own.
const MAX_LINES: usize = 8;
/// RFLAGS: interrupts are on.
const INTERRUPTS_ON: u64 = 1 << 9;

/// Watches the progress of a boot.
pub(super) struct Standstill {
    pub(super) inquiry: Arc<Inquiry>,
    pub(super) progress: BootProgress,
    /// Kicks the vCPUs.
    pub(super) vcpus: Arc<StopHandle>,
    pub(super) memory: GuestMemory,
    pub(super) facts: Facts,
    pub(super) on_halt: OnHalt,
    pub(super) state: State,
}

/// The state of the watch.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The number of exits and of bytes of text at the last check.
    last: (u64, u64),
    /// The number of checks in a row that saw no change.
    quiet: u32,
    /// Set while the vCPUs have been asked.
    asked: bool,
    /// Set while the vCPUs have been asked if they are halted for good.
    asked_for_halt: bool,
    /// The number of times that they have been asked, and were not.
    halt_tries: u32,
    /// Set after a warning, or after the decision that none is needed, until something moves.
    settled: bool,
    warnings: u32,
}

impl Standstill {
    /// Checks if the boot stands still, and warns. Returns the time until the next check; `None` if no more checks are
    /// needed. It does not block.
    pub(super) fn check(&mut self) -> Option<Duration> {
        let seen = self.progress.so_far();
        if seen.is_halted && self.on_halt == OnHalt::Exit {
            return Some(self.check_halt());
        }
        if seen.in_userland || self.state.warnings >= MAX_WARNINGS {
            return None;
        }
        let now = (self.inquiry.progress(), seen.bytes);
        let state = &mut self.state;
        if now != state.last {
            *state = State { last: now, warnings: state.warnings, ..State::default() };
        } else if state.asked {
            (state.asked, state.settled) = (false, true);
            let answers = self.inquiry.take();
            if answers.iter().flatten().any(is_in_userland) {
                return None;
            }
            self.warn(&answers, &seen);
        } else if !state.settled {
            state.quiet = state.quiet.saturating_add(1);
            if state.quiet >= QUIET_CHECKS {
                state.asked = true;
                self.inquiry.ask();
                self.vcpus.kick_all();
                return Some(ANSWER_TIME);
            }
        }
        Some(INTERVAL)
    }

    /// Ends the machine if no vCPU can wake again. The message of a halt alone is no proof, because a program can print it.
    fn check_halt(&mut self) -> Duration {
        if !std::mem::replace(&mut self.state.asked_for_halt, true) {
            self.state.asked = false;
            self.inquiry.ask();
            self.vcpus.kick_all();
            return ANSWER_TIME;
        }
        self.state.asked_for_halt = false;
        let answers = self.inquiry.take();
        let is_idle =
            |answer: &Option<Answer>| answer.as_ref().is_some_and(|answer| answer.activity.is_idle());
        let has_halted = answers.iter().all(is_idle) && !waits_for_interrupt(&answers);
        if has_halted {
            self.vcpus.end(Stop::Halted);
        }
        // After the message, the kernel still shuts its devices down.
        self.state.halt_tries = self.state.halt_tries.saturating_add(1);
        if has_halted || self.state.halt_tries >= HALT_TRIES {
            self.state.halt_tries = 0;
            self.progress.forget_halt();
        }
        ANSWER_TIME
    }

    fn warn(&mut self, answers: &[Option<Answer>], seen: &SoFar) {
        // A guest that has shown text and then halts may have reached userland, and wait for a key.
        let is_told = causes::text_cause(seen).is_some();
        if seen.bytes > 0 && waits_for_interrupt(answers) && !is_told {
            return;
        }
        // A reader of stderr that takes nothing does not hold up the prompts. The next check tries again.
        if !host::wait_writable(io::stderr().as_fd(), Some(Duration::ZERO)).unwrap_or(false) {
            self.state.settled = false;
            return;
        }
        self.state.warnings = self.state.warnings.saturating_add(1);
        log::warn!("{}", describe(answers, &self.memory, self.facts, seen));
    }
}

/// True if no vCPU runs, and an interrupt can wake one of them. A HLT with interrupts off never ends.
fn waits_for_interrupt(answers: &[Option<Answer>]) -> bool {
    let is_idle = |answer: &Option<Answer>| answer.as_ref().is_some_and(|answer| answer.activity.is_idle());
    let can_wake = |answer: &Answer| {
        answer.activity == Activity::Halted
            && answer.registers.as_ref().is_none_or(|(regs, _)| regs.rflags & INTERRUPTS_ON != 0)
    };
    answers.iter().all(is_idle) && answers.iter().flatten().any(can_wake)
}

/// True if the vCPU was in ring 3. A kernel that prints little, such as with `quiet`, does not say that userland runs.
fn is_in_userland(answer: &Answer) -> bool {
    let location = answer.registers.as_ref().map(|(regs, sregs)| Location::of(sregs, regs.rip));
    matches!(location, Some(Location::At { mode: Mode::User, .. }))
}

/// The text of the warning.
fn describe(answers: &[Option<Answer>], memory: &GuestMemory, facts: Facts, seen: &SoFar) -> String {
    let seconds = INTERVAL.as_secs().saturating_mul(QUIET_CHECKS.into());
    let mut lines = vec![format!("the guest has made no exits and shown no text for {seconds} s")];
    let is_unstarted = |answer: &Option<Answer>| {
        answer.as_ref().is_some_and(|answer| answer.activity == Activity::NotStarted)
    };
    let started = || answers.iter().enumerate().filter(|(_, answer)| !is_unstarted(answer));
    let line = |(number, answer): (usize, &Option<Answer>)| {
        format!(
            "  vCPU {number}: {}",
            answer.as_ref().map_or("in the VMM".into(), |answer| place(answer, memory))
        )
    };
    lines.extend(started().take(MAX_LINES).map(line));
    let more = started().skip(MAX_LINES).count();
    if more > 0 {
        lines.push(format!("  and {more} more vCPUs"));
    }
    match answers.iter().filter(|answer| is_unstarted(answer)).count() {
        0 => {}
        1 => lines.push("  1 vCPU has not been started".into()),
        count => lines.push(format!("  {count} vCPUs have not been started")),
    }
    lines.push(causes::causes(answers, memory, facts, seen));
    lines.join("\n")
}

/// The activity and the place of a vCPU, with its instruction.
fn place(answer: &Answer, memory: &GuestMemory) -> String {
    let Some((regs, sregs)) = answer.registers else { return format!("{}", answer.activity) };
    let location = Location::of(&sregs, regs.rip);
    let mut text = format!("{} {location}, CS {:#06x}", answer.activity, sregs.cs.selector);
    let explanation = Explanation::new(location, regs, sregs, memory, &Scene::default());
    if let Some(instruction) = explanation.as_ref().and_then(Explanation::instruction) {
        text += ": ";
        text += instruction;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::inquiry::Respondent;
    use crate::controller::{ExitController, FakeVcpu, Watchdog};
    use crate::exit::Exit;
    use crate::memory::Gpa;
    use crate::x86::modes;
    use crate::x86::registers::Regs;

    fn standstill(vcpus: u32) -> Standstill {
        Standstill {
            inquiry: Arc::new(Inquiry::new(vcpus)),
            progress: BootProgress::new(Arc::default(), Some("ready")),
            vcpus: Arc::new(StopHandle::new().unwrap()),
            memory: GuestMemory::new(&[(Gpa(0), 0x2000)]).unwrap(),
            facts: Facts::default(),
            on_halt: OnHalt::Exit,
            state: State::default(),
        }
    }

    /// Checks until the vCPUs are asked. Returns the number of checks.
    fn checks_until_asked(standstill: &mut Standstill) -> u32 {
        (1..100).find(|_| standstill.check() == Some(ANSWER_TIME)).unwrap()
    }

    fn respond(standstill: &Standstill, exit: &Exit) {
        let respondent = Respondent { inquiry: standstill.inquiry.clone(), index: 0 };
        let mut watchdog = Watchdog { respondent: Some(respondent.clone()), ..Watchdog::default() };
        (&mut watchdog, respondent).handle(exit, &mut FakeVcpu::default());
    }

    #[test]
    fn the_vcpus_are_asked_when_nothing_moves_and_again_after_a_move() {
        let mut boot = standstill(1);
        for round in 1..=MAX_WARNINGS {
            assert_eq!(checks_until_asked(&mut boot), QUIET_CHECKS + u32::from(round > 1), "{round}");
            respond(&boot, &Exit::Interrupted);
            if boot.check().is_none() {
                panic!("the check that reads the answers is not the last one");
            }
            // Stderr may be full. Then the warning comes later, which another test covers.
            boot.state = State { settled: true, warnings: round, ..boot.state };
            for _ in 0..20 {
                assert_ne!(boot.check(), Some(ANSWER_TIME), "nothing has moved");
            }
            respond(&boot, &Exit::Hlt);
        }
        assert_eq!(boot.check(), None, "the number of warnings is bounded");
    }

    #[test]
    fn text_and_exits_are_progress_and_userland_ends_the_checks() {
        let mut boot = standstill(1);
        for _ in 0..5 {
            for _ in 0..QUIET_CHECKS - 1 {
                assert_eq!(boot.check(), Some(INTERVAL));
            }
            let _ = boot.progress.see(b"x");
            assert_eq!(boot.check(), Some(INTERVAL));
            respond(&boot, &Exit::Hlt);
            assert_eq!(boot.check(), Some(INTERVAL));
        }
        let _ = boot.progress.see(b"ready");
        assert_eq!(boot.check(), None);
    }

    #[test]
    fn a_halt_ends_the_machine_if_no_vcpu_can_wake() {
        for (on_halt, activity, rflags, ends) in [
            (OnHalt::Exit, Activity::Halted, 2, true),
            (OnHalt::Exit, Activity::Halted, 0x202, false),
            (OnHalt::Exit, Activity::Running, 2, false),
            (OnHalt::Wait, Activity::Halted, 2, false),
        ] {
            let mut boot = Standstill { on_halt, ..standstill(1) };
            assert!(boot.progress.see(b"ready\n[    2.1] reboot: System halted\r\n"));
            let asks = boot.check() == Some(ANSWER_TIME);
            assert_eq!(asks, on_halt == OnHalt::Exit);
            let respondent = Respondent { inquiry: boot.inquiry.clone(), index: 0 };
            let mut watchdog = Watchdog { respondent: Some(respondent), ..Watchdog::default() };
            let regs = Regs { rflags, ..Default::default() };
            watchdog.handle(&Exit::Interrupted, &mut FakeVcpu { regs, activity, ..Default::default() });
            boot.check();
            assert_eq!(boot.vcpus.has_ended(), ends, "{on_halt:?} {activity:?} {rflags:#x}");
            let tries = (0..1000).take_while(|_| boot.check().is_some()).count();
            assert!(tries < 2 * HALT_TRIES as usize, "in userland");
        }
    }

    #[test]
    fn a_vcpu_in_ring_3_ends_the_checks() {
        let mut boot = standstill(1);
        checks_until_asked(&mut boot);
        let sregs = modes::sregs(Mode::User, Default::default(), Gpa(0), modes::VcpuIndex::ALONE);
        let respondent = Respondent { inquiry: boot.inquiry.clone(), index: 0 };
        let mut watchdog = Watchdog { respondent: Some(respondent), ..Watchdog::default() };
        watchdog.handle(&Exit::Interrupted, &mut FakeVcpu { sregs, ..Default::default() });
        assert_eq!((boot.check(), boot.state.warnings), (None, 0));
    }

    #[test]
    fn a_halt_waits_for_an_interrupt_only_if_interrupts_are_on() {
        let answer = |activity, rflags| {
            let registers = Some((Regs { rflags, ..Default::default() }, Default::default()));
            Some(Answer { activity, nmi_pending: false, registers })
        };
        let (asleep, dead) = (answer(Activity::Halted, 0x202), answer(Activity::Halted, 2));
        let (running, unstarted) = (answer(Activity::Running, 0x202), answer(Activity::NotStarted, 2));
        for (answers, waits) in [
            (&[asleep.clone()][..], true),
            (std::slice::from_ref(&dead), false),
            (&[dead.clone(), unstarted.clone()], false),
            // Linux halts a processor that it takes offline with interrupts off.
            (&[asleep.clone(), dead.clone()], true),
            (&[asleep.clone(), unstarted], true),
            (&[asleep.clone(), running], false),
            (&[asleep, None], false),
        ] {
            assert_eq!(waits_for_interrupt(answers), waits, "{answers:x?}");
        }
    }

    #[test]
    fn the_warning_names_the_place_and_the_instruction_of_each_vcpu() {
        let boot = standstill(1);
        boot.memory.write(Gpa(0x1000), &[0xeb, 0xfe]).unwrap();
        let answer = |activity| {
            let registers = Some((Regs { rip: 0x1000, ..Default::default() }, Default::default()));
            Some(Answer { activity, nmi_pending: false, registers })
        };
        let answers =
            [answer(Activity::Running), answer(Activity::Halted), None, answer(Activity::NotStarted)];
        let text = describe(&answers, &boot.memory, Facts::default(), &boot.progress.so_far());
        for line in [
            "no exits and shown no text for 10 s\n",
            "\n  vCPU 0: running in real mode at 0000:1000, CS 0x0000: eb fe  jmp short 1000h\n",
            "\n  vCPU 1: halted in real mode at 0000:1000",
            "\n  vCPU 2: in the VMM\n",
            "\n  1 vCPU has not been started\n",
            "a jump to itself never ends",
        ] {
            assert!(text.contains(line), "{line:?}: {text}");
        }
        let many = describe(
            &vec![answer(Activity::Running); 32],
            &boot.memory,
            Facts::default(),
            &boot.progress.so_far(),
        );
        assert!(many.lines().count() == 3 + MAX_LINES && many.contains("  and 24 more vCPUs"), "{many}");
    }
}
