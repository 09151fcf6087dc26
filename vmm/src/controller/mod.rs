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

pub(crate) mod devices;
pub(crate) mod hypercall;
pub(crate) mod kev;
pub(crate) mod msr;
mod open_bus;
pub(crate) mod vcpu;
pub(crate) mod watchdog;

pub use devices::Devices;
pub use hypercall::{Hypercalls, number};
pub use kev::{
    CONSTANT_PORT as KEV_CONSTANT_PORT, FIFO_MSR as KEV_FIFO_MSR, FIFO_PORT as KEV_FIFO_PORT, MmioPrinter,
    PRINTER as KEV_PRINTER,
};
pub use msr::{MsrForwarder, MsrPolicy, MsrRule};
pub use open_bus::{OpenBus, TerminalExits};
pub use vcpu::{Entry, FakeVcpu, Location, Vcpu, VcpuState};
pub use watchdog::Watchdog;

use crate::exit::{Exit, Outcome};

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

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut read = |port| value(chain.handle(&Exit::PioIn { port, size: 1 }, &mut FakeVcpu::default()));
        assert_eq!((read(1), read(2), read(3)), (10, 30, u64::MAX));
        assert!(matches!(
            chain.handle(&Exit::PioOut { port: 1, size: 1, data: 0 }, &mut FakeVcpu::default()),
            Outcome::Resume
        ));
        let read = Exit::MmioRead { address: 0xdead_0000, size: 4 };
        assert_eq!(value(chain.handle(&read, &mut FakeVcpu::default())), u64::MAX);
    }

    #[test]
    fn lists_options_and_boxes_are_controllers_too() {
        let read = Exit::PioIn { port: 1, size: 1 };
        let vcpu = &mut FakeVcpu::default();
        let boxed = |port, answer| -> Box<dyn ExitController> { Box::new(Claims(port, answer)) };
        let mut list = vec![boxed(2, 20), boxed(1, 10), boxed(1, 11)];
        assert_eq!(value(list.handle(&read, vcpu)), 10);
        assert_eq!(value(Some(Claims(1, 5)).handle(&read, vcpu)), 5);
        assert!(matches!(None::<Claims>.handle(&read, vcpu), Outcome::Unclaimed));
    }
}
