//! The probable causes of a boot that stands still, from the states of the vCPUs and the text on the console.

use super::{INTERRUPTS_ON, spin};
use crate::controller::inquiry::Answer;
use crate::controller::vcpu::Activity;
use crate::machine::boot_progress::SoFar;
use crate::memory::GuestMemory;
use crate::x86::probe::Probe;
use crate::x86::registers::{Regs, Sregs};
use spin::Spin;

/// The usual causes, if nothing points to one of them.
const USUAL: &str = "usual causes: this host's KVM cannot run Linux (`vmm doctor` checks it); the command line has no \
    console=ttyS0; the kernel waits for a device, or for a timer (--clock pit gives it all of them)";
/// The kernel waits for the timer.
const NO_TIMER: &str = "the kernel waits for a timer interrupt, such as while it calibrates its delay loop, and this machine \
    has no PIT: give it one with --clock pit, or leave out --clock";
const ROOT: &str = "the kernel waits for its root device: attach it with --disk FILE, which is /dev/vda, and name it with \
    root=/dev/vda; its driver (virtio_mmio, virtio_blk) must be in the kernel or in the initrd";
const NO_CONSOLE: &str = "the kernel idles, and its command line names no console of this machine: add console=ttyS0 to \
    --cmdline";
const NO_DRIVER: &str = "the kernel idles without text: it may lack the driver of its console (CONFIG_SERIAL_8250_CONSOLE, \
    CONFIG_VIRTIO_CONSOLE)";
const DEAD: &str = "hlt with interrupts off never wakes: early boot code ends so after an error, and a kernel after \
    `halt`; earlyprintk=ttyS0 on the command line may show the error";
const SELF: &str = "a jump to itself never ends: code ends so after an error; earlyprintk=ttyS0 on the command line may \
    show the error";
const FAULTS: &str = "is not mapped, and it was the last address with a page fault: a handler that returns without mapping it \
    repeats the fault for ever";
const POLLS: &str = "a loop with interrupts off reads memory until another vCPU or a device changes it: a lock that is never \
    released, or a device that this machine does not have";
const WAITS: &str =
    "a loop reads memory until an interrupt or another vCPU changes it, and that does not come";

/// The facts about a machine that the causes depend on.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::machine) struct Facts {
    /// The guest can use a PIT.
    pub(in crate::machine) has_pit: bool,
    /// The command line names a console of the machine.
    pub(in crate::machine) names_console: bool,
}

/// The causes that the console's text and the vCPUs point to, or the usual ones.
pub(super) fn causes(answers: &[Option<Answer>], memory: &GuestMemory, facts: Facts, seen: &SoFar) -> String {
    match text_cause(seen).or_else(|| vcpu_cause(answers, memory, facts, seen)) {
        Some(cause) => format!("  probable cause: {cause}"),
        None => format!("  {USUAL}"),
    }
}

/// The cause that the console's text names.
pub(super) fn text_cause(seen: &SoFar) -> Option<String> {
    if let Some(reason) = &seen.panic {
        return Some(format!(
            "the kernel has panicked ({reason}), and waits: with panic=-1 on its command line it ends the machine"
        ));
    }
    seen.last_lines.contains("Waiting for root device").then(|| ROOT.into())
}

/// The cause that a vCPU points to. A vCPU that runs tells more than one that sleeps.
fn vcpu_cause(
    answers: &[Option<Answer>],
    memory: &GuestMemory,
    facts: Facts,
    seen: &SoFar,
) -> Option<String> {
    let with = |activity: Activity| {
        let states = answers.iter().flatten().filter(move |answer| answer.activity == activity);
        states.filter_map(|answer| answer.registers.as_ref())
    };
    if let Some(cause) = with(Activity::Running).find_map(|(regs, sregs)| running(regs, sregs, memory, facts))
    {
        return Some(cause);
    }
    if with(Activity::Running).next().is_some() {
        return None;
    }
    let sleepers: Vec<_> = with(Activity::Halted).map(|(regs, _)| regs.rflags & INTERRUPTS_ON != 0).collect();
    match &sleepers[..] {
        [] => None,
        sleepers if sleepers.iter().all(|wakes| !wakes) => Some(DEAD.into()),
        _ if seen.bytes > 0 => None,
        _ if facts.names_console => Some(NO_DRIVER.into()),
        _ => Some(NO_CONSOLE.into()),
    }
}

/// The cause that a running vCPU points to.
fn running(regs: &Regs, sregs: &Sregs, memory: &GuestMemory, facts: Facts) -> Option<String> {
    let probe = Probe::new(memory.clone(), *sregs);
    if sregs.cr2 != 0 && probe.translate_linear(sregs.cr2).is_err() {
        return Some(format!("the address {:#x} in CR2 {FAULTS}", sregs.cr2));
    }
    let interrupts = regs.rflags & INTERRUPTS_ON != 0;
    match spin::at(regs, sregs, &probe)? {
        Spin::Itself => Some(SELF.into()),
        Spin::Reads | Spin::Counts if interrupts && !facts.has_pit => Some(NO_TIMER.into()),
        Spin::Reads if interrupts => Some(WAITS.into()),
        Spin::Reads => Some(POLLS.into()),
        Spin::Counts => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Gpa;
    use crate::x86::modes::{self, Mode, VcpuIndex};

    const PIT: Facts = Facts { has_pit: true, names_console: true };

    fn seen(bytes: u64, last_lines: &str, panic: Option<&str>) -> SoFar {
        SoFar {
            bytes,
            in_userland: false,
            is_halted: false,
            last_lines: last_lines.into(),
            panic: panic.map(str::to_string),
        }
    }

    fn answer(activity: Activity, rflags: u64) -> Option<Answer> {
        let registers = Some((Regs { rip: 0x1000, rflags, ..Default::default() }, Sregs::default()));
        Some(Answer { activity, registers, nmi_pending: false })
    }

    fn memory(code: &[u8]) -> GuestMemory {
        let memory = GuestMemory::new(&[(Gpa(0), 0x2000)]).unwrap();
        memory.write(Gpa(0x1000), code).unwrap();
        memory
    }

    #[test]
    fn the_text_names_a_panic_and_a_missing_root_device() {
        let cause = |seen: &SoFar| causes(&[], &memory(&[]), PIT, seen);
        assert!(cause(&seen(9, "", Some("out of tea"))).contains("has panicked (out of tea)"));
        let waiting = seen(9, "[    1.0] Waiting for root device /dev/vda...", None);
        assert!(cause(&waiting).contains("attach it with --disk"));
        assert!(cause(&seen(9, "", None)).contains("usual causes"));
    }

    #[test]
    fn a_loop_is_told_by_its_instructions_and_by_the_interrupts() {
        // In real mode: again: cmp ax, [bx]; je again. Also: again: dec ax; jnz again.
        let (reads, counts): (&[u8], &[u8]) = (&[0x3b, 0x07, 0x74, 0xfc], &[0x48, 0x75, 0xfd]);
        let no_pit = Facts { has_pit: false, names_console: true };
        for (code, rflags, facts, text) in [
            (reads, 0x202, no_pit, "--clock pit"),
            (counts, 0x202, no_pit, "--clock pit"),
            (reads, 0x202, PIT, "until an interrupt or another vCPU"),
            (reads, 2, no_pit, "with interrupts off reads memory"),
            (&[0xeb, 0xfe], 0x202, no_pit, "a jump to itself"),
            (counts, 2, PIT, "usual causes"),
            (&[0x90, 0xc3], 2, PIT, "usual causes"),
        ] {
            let text_of =
                causes(&[answer(Activity::Running, rflags)], &memory(code), facts, &seen(0, "", None));
            assert!(text_of.contains(text), "{code:x?}: {text_of}");
        }
    }

    #[test]
    fn sleepers_point_to_the_console_or_are_dead() {
        let (asleep, dead) = (answer(Activity::Halted, 0x202), answer(Activity::Halted, 2));
        let no_console = Facts { names_console: false, ..PIT };
        for (answers, facts, bytes, text) in [
            (vec![asleep.clone()], no_console, 0, "add console=ttyS0"),
            (vec![asleep.clone(), dead.clone()], PIT, 0, "lack the driver"),
            (vec![dead.clone()], PIT, 0, "never wakes"),
            (vec![dead.clone()], PIT, 5, "never wakes"),
            (vec![asleep], PIT, 5, "usual causes"),
            (vec![dead, answer(Activity::Running, 2)], PIT, 5, "usual causes"),
        ] {
            let found = causes(&answers, &memory(&[0x90, 0xc3]), facts, &seen(bytes, "", None));
            assert!(found.contains(text), "{text}: {found}");
        }
    }

    #[test]
    fn an_unmapped_page_fault_address_is_named() {
        let memory = memory(&[0xeb, 0xfe]);
        // The page tables are at 0x0, and empty.
        let sregs = modes::sregs(Mode::Long, Default::default(), Gpa(0), VcpuIndex::ALONE);
        let sregs = Sregs { cr2: 0xdead_b000, cr3: 0, ..sregs };
        let registers = Some((Regs { rip: 0x1000, rflags: 2, ..Default::default() }, sregs));
        let answers = [Some(Answer { activity: Activity::Running, registers, nmi_pending: false })];
        let found = causes(&answers, &memory, PIT, &seen(0, "", None));
        assert!(found.contains("0xdeadb000 in CR2 is not mapped"), "{found}");
    }
}
