//! Who answers exits: the trait [`ExitController`], how controllers compose, and what one sees of its vCPU.
//!
//! A controller looks at an exit and claims it, or lets it pass. Controllers compose as nested pairs,
//! `(yours, (next, last))`, and the first that claims an exit wins. A machine's own chain is
//!
//! ```text
//! Watchdog, yours..., Hypercalls, MsrPolicy, MmioPrinter (with --kev), Devices, Ends, OpenBus
//! ```
//!
//! so that yours, given to [`Builder::controller`](crate::Builder::controller), comes before all that the
//! machine has itself, and an exit that nobody claims falls through to the open bus. Each vCPU has a chain of
//! its own and calls it on its own thread, so a controller needs no lock; devices are shared, and have one.
//!
//! What an exit wants for an answer:
//!
//! | exit | answer |
//! |---|---|
//! | [`PioIn`](Exit::PioIn), [`MmioRead`](Exit::MmioRead) | [`Value`](Outcome::Value); its low bytes count |
//! | [`PioOut`](Exit::PioOut), [`MmioWrite`](Exit::MmioWrite) | [`Resume`](Outcome::Resume) |
//! | [`RdMsr`](Exit::RdMsr) | `Value`, or [`Fault`](Outcome::Fault) for #GP |
//! | [`WrMsr`](Exit::WrMsr) | `Resume`, or `Fault` for #GP |
//! | [`Hypercall`](Exit::Hypercall) | `Resume`, with the result in RAX ([`VcpuState::set_regs`]) |
//! | [`Hlt`](Exit::Hlt) and other ends | [`Stop`](Outcome::Stop), or `Resume` to go on after a HLT |
//!
//! String I/O comes element by element, whatever the host does. Any exit may be answered with `Stop`. A
//! controller that cannot go on answers [`Outcome::failed`]; one that panics ends the run in the same way,
//! with the machine's other vCPUs.
//!
//! ```
//! use vmm::controller::{ExitController, StillVcpu, VcpuState};
//! use vmm::exit::{Exit, Outcome};
//!
//! /// A port that counts how often it was read.
//! struct Counter(u64);
//!
//! impl ExitController for Counter {
//!     fn handle(&mut self, exit: &Exit, _: &mut dyn VcpuState) -> Outcome {
//!         match exit {
//!             Exit::PioIn { port: 0x42, .. } => {
//!                 self.0 += 1;
//!                 Outcome::Value(self.0)
//!             }
//!             _ => Outcome::Unclaimed,
//!         }
//!     }
//! }
//!
//! // Without KVM, over a vCPU that stands still:
//! let mut vcpu = StillVcpu::default();
//! let mut chain = (Counter(0), vmm::controller::OpenBus::default());
//! let mut read = |port| chain.handle(&Exit::PioIn { port, size: 1 }, &mut vcpu);
//! assert!(matches!(read(0x42), Outcome::Value(1)));
//! assert!(matches!(read(0x43), Outcome::Value(u64::MAX)));
//! ```
//!
//! `vmm/examples/controller.rs` runs one with a guest; the crate's page shows it.

mod devices;
mod watchdog;

pub use devices::Devices;
pub use watchdog::Watchdog;

use crate::error::Error;
use crate::exit::{Exit, Outcome, Site, Stop};
use crate::memory::{Gpa, GuestMemory};
use crate::probe::Probe;
use kvm_bindings::{kvm_regs, kvm_sregs};
use std::collections::BTreeMap;

/// What a controller sees of the vCPU whose exit it handles.
pub trait VcpuState {
    /// The vCPU's number, which is also its APIC id.
    fn id(&self) -> u32;

    /// The general registers, RIP and RFLAGS. Where they stand in the instruction that made the exit depends
    /// on the host: RIP may be at it or behind it.
    ///
    /// # Errors
    /// The kernel refused.
    fn regs(&mut self) -> Result<kvm_regs, Error>;

    /// Changes the general registers. RIP is best left as it is: the instruction that made the exit is
    /// completed when the guest goes on.
    ///
    /// # Errors
    /// The kernel refused.
    fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), Error>;

    /// The segment and control registers.
    ///
    /// # Errors
    /// The kernel refused.
    fn sregs(&mut self) -> Result<kvm_sregs, Error>;

    /// The value that KVM has for a model-specific register; `None` where it has none.
    fn msr(&mut self, index: u32) -> Option<u64>;

    /// Gives KVM a value for a model-specific register. Returns whether it took it.
    fn set_msr(&mut self, index: u32, data: u64) -> bool;

    /// Where the processor itself says that a linear address leads, if that can be asked (KVM_TRANSLATE): a
    /// guest physical address, or nowhere. A second opinion on [`Probe::translate_linear`].
    fn translate(&mut self, _linear: u64) -> Option<Option<Gpa>> {
        None
    }

    /// The guest's memory, by physical address.
    fn memory(&self) -> &GuestMemory;

    /// The guest's memory, by virtual address, as this vCPU sees it now.
    ///
    /// # Errors
    /// The kernel refused.
    fn probe(&mut self) -> Result<Probe, Error> {
        let sregs = self.sregs()?;
        Ok(Probe::new(self.memory().clone(), sregs))
    }
}

/// Handles some of a vCPU's exits.
pub trait ExitController {
    /// Claims `exit` of `vcpu` and says what is to be done, or answers [`Outcome::Unclaimed`].
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome;
}

impl<A: ExitController, B: ExitController> ExitController for (A, B) {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        match self.0.handle(exit, vcpu) {
            Outcome::Unclaimed => self.1.handle(exit, vcpu),
            outcome => outcome,
        }
    }
}

impl<C: ExitController + ?Sized> ExitController for &mut C {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        (**self).handle(exit, vcpu)
    }
}

impl<C: ExitController + ?Sized> ExitController for Box<C> {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        (**self).handle(exit, vcpu)
    }
}

/// As many as there are: the first claimant wins.
impl<C: ExitController> ExitController for Vec<C> {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        for controller in self {
            match controller.handle(exit, vcpu) {
                Outcome::Unclaimed => {}
                outcome => return outcome,
            }
        }
        Outcome::Unclaimed
    }
}

/// One, or none.
impl<C: ExitController> ExitController for Option<C> {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        match self {
            Some(controller) => controller.handle(exit, vcpu),
            None => Outcome::Unclaimed,
        }
    }
}

/// A vCPU that stands still, to try controllers without KVM: registers, MSRs and memory as they are set.
#[derive(Clone, Debug)]
pub struct StillVcpu {
    /// Its number.
    pub id: u32,
    /// Its general registers.
    pub regs: kvm_regs,
    /// Its segment and control registers.
    pub sregs: kvm_sregs,
    /// The model-specific registers that it has.
    pub msrs: BTreeMap<u32, u64>,
    /// The guest's memory.
    pub memory: GuestMemory,
}

/// Number 0, all registers zero, and no memory.
impl Default for StillVcpu {
    fn default() -> Self {
        Self {
            id: 0,
            regs: kvm_regs::default(),
            sregs: kvm_sregs::default(),
            msrs: BTreeMap::new(),
            memory: GuestMemory::none(),
        }
    }
}

impl VcpuState for StillVcpu {
    fn id(&self) -> u32 {
        self.id
    }
    fn regs(&mut self) -> Result<kvm_regs, Error> {
        Ok(self.regs)
    }
    fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), Error> {
        self.regs = *regs;
        Ok(())
    }
    fn sregs(&mut self) -> Result<kvm_sregs, Error> {
        Ok(self.sregs)
    }
    fn msr(&mut self, index: u32) -> Option<u64> {
        self.msrs.get(&index).copied()
    }
    fn set_msr(&mut self, index: u32, data: u64) -> bool {
        self.msrs.get_mut(&index).map(|value| *value = data).is_some()
    }
    fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}

/// Ends the run at the exits that are an end: a halt, a shutdown, and what cannot be resumed.
#[derive(Clone, Copy, Debug)]
pub struct Ends;

impl ExitController for Ends {
    fn handle(&mut self, exit: &Exit, _: &mut dyn VcpuState) -> Outcome {
        match *exit {
            Exit::Hlt => Outcome::Stop(Stop::Halted),
            Exit::Shutdown => Outcome::Stop(Stop::TripleFault),
            Exit::EmulationFailure(instruction) => Outcome::Stop(Stop::EmulationFailure(instruction)),
            Exit::FailedEntry { reason } => Outcome::Stop(Stop::FailedEntry(reason)),
            Exit::Other(reason) => Outcome::Stop(Stop::UnknownExit(reason)),
            _ => Outcome::Unclaimed,
        }
    }
}

/// The end of every chain: nobody is there, so reads give all ones, writes vanish, and an access to an MSR
/// faults, as on the processor. Remembers who was looked for.
#[derive(Clone, Debug, Default)]
pub struct OpenBus {
    first: Vec<(Site, u64)>,
    total: u64,
}

/// How many sites an open bus tells apart.
const REMEMBERED: usize = 8;

impl OpenBus {
    /// The first few sites at which nobody was, and how often each was looked for.
    pub fn seen(&self) -> impl Iterator<Item = (Site, u64)> {
        self.first.iter().copied()
    }

    /// All accesses at which nobody was.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Adds what another vCPU's bus has seen.
    pub fn absorb(&mut self, other: &Self) {
        self.total = self.total.saturating_add(other.total);
        other.seen().for_each(|(site, count)| self.add(site, count));
    }

    fn add(&mut self, site: Site, times: u64) {
        if let Some((_, count)) = self.first.iter_mut().find(|(seen, _)| *seen == site) {
            *count = count.saturating_add(times);
        } else if self.first.len() < REMEMBERED {
            self.first.push((site, times));
        }
    }

    fn remember(&mut self, exit: &Exit) {
        let Some(site) = Site::of(exit) else { return };
        self.total = self.total.saturating_add(1);
        self.add(site, 1);
    }
}

impl ExitController for OpenBus {
    fn handle(&mut self, exit: &Exit, _: &mut dyn VcpuState) -> Outcome {
        match exit {
            Exit::PioIn { .. } | Exit::MmioRead { .. } => {
                self.remember(exit);
                Outcome::Value(u64::MAX)
            }
            Exit::PioOut { .. } | Exit::MmioWrite { .. } | Exit::Hypercall { .. } => {
                self.remember(exit);
                Outcome::Resume
            }
            Exit::RdMsr { .. } | Exit::WrMsr { .. } => {
                self.remember(exit);
                Outcome::Fault
            }
            _ => Outcome::Resume,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Instruction;

    struct Claims(u16, u64);

    impl ExitController for Claims {
        fn handle(&mut self, exit: &Exit, _: &mut dyn VcpuState) -> Outcome {
            match exit {
                Exit::PioIn { port, .. } if *port == self.0 => Outcome::Value(self.1),
                _ => Outcome::Unclaimed,
            }
        }
    }

    fn value(outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Value(value) => value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_claimant_wins_and_the_open_bus_answers_the_rest() {
        let mut chain = (Claims(1, 10), (Claims(1, 20), (Claims(2, 30), OpenBus::default())));
        let mut read = |port| value(chain.handle(&Exit::PioIn { port, size: 1 }, &mut StillVcpu::default()));
        assert_eq!((read(1), read(2), read(3)), (10, 30, u64::MAX));
        assert!(matches!(
            chain.handle(&Exit::PioOut { port: 1, size: 1, data: 0 }, &mut StillVcpu::default()),
            Outcome::Resume
        ));
        let read = Exit::MmioRead { address: 0xdead_0000, size: 4 };
        assert_eq!(value(chain.handle(&read, &mut StillVcpu::default())), u64::MAX);
    }

    #[test]
    fn an_open_bus_remembers_the_first_and_counts_all() {
        let mut bus = OpenBus::default();
        for port in (0..100).chain(0..3) {
            bus.handle(&Exit::PioOut { port, size: 1, data: 0 }, &mut StillVcpu::default());
        }
        bus.handle(&Exit::Hlt, &mut StillVcpu::default());
        assert_eq!(bus.total(), 103);
        let counts: Vec<_> = bus.seen().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 2, 2, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn what_is_an_end_ends() {
        let instruction = Instruction::new(&[0x0f, 0x0b]);
        let expect = [
            (Exit::Hlt, "halted"),
            (Exit::Shutdown, "triple fault (an exception, and no handler for it)"),
            (
                Exit::EmulationFailure(instruction),
                "KVM had to emulate an instruction of the guest and could not: 0f 0b",
            ),
            (
                Exit::FailedEntry { reason: 7 },
                "the processor refused to enter the guest (hardware reason 0x7)",
            ),
            (Exit::Other(99), "exit reason 99 of KVM, which this VMM does not handle"),
        ];
        for (exit, text) in expect {
            match Ends.handle(&exit, &mut StillVcpu::default()) {
                Outcome::Stop(stop) => assert_eq!(stop.to_string(), text),
                other => panic!("{exit:?}: {other:?}"),
            }
        }
        assert!(matches!(
            Ends.handle(&Exit::PioIn { port: 0, size: 1 }, &mut StillVcpu::default()),
            Outcome::Unclaimed
        ));
    }

    #[test]
    fn what_nobody_has_of_an_msr_faults() {
        let mut bus = OpenBus::default();
        let mut vcpu = StillVcpu::default();
        for exit in [Exit::RdMsr { index: 7 }, Exit::WrMsr { index: 7, data: 1 }] {
            assert!(matches!(bus.handle(&exit, &mut vcpu), Outcome::Fault));
        }
        let mut all = OpenBus::default();
        all.handle(&Exit::RdMsr { index: 7 }, &mut vcpu);
        all.absorb(&bus);
        assert_eq!((all.total(), all.seen().map(|(_, count)| count).collect()), (3, vec![2, 1]));
    }

    #[test]
    fn lists_options_and_boxes_are_controllers_too() {
        let read = Exit::PioIn { port: 1, size: 1 };
        let vcpu = &mut StillVcpu::default();
        let boxed = |port, answer| -> Box<dyn ExitController> { Box::new(Claims(port, answer)) };
        let mut list = vec![boxed(2, 20), boxed(1, 10), boxed(1, 11)];
        assert_eq!(value(list.handle(&read, vcpu)), 10);
        assert_eq!(value(Some(Claims(1, 5)).handle(&read, vcpu)), 5);
        assert!(matches!(None::<Claims>.handle(&read, vcpu), Outcome::Unclaimed));
    }
}
