//! Exit controllers, which answer exits: the trait [`ExitController`], and the controllers of this crate.
//!
//! A controller either claims an exit or leaves it to the next controller. Controllers compose as nested pairs,
//! `(yours, (next, last))`. The first controller that claims an exit answers it. The chain of a machine is
//!
//! ```text
//! Bios (of a boot disk), Watchdog, yours..., Hypercalls, MsrPolicy, MmioPrinter (with --kev), Devices, MsrForwarder, TerminalExits, OpenBus
//! ```
//!
//! Your controllers, which you add with [`Builder::controller`](crate::Builder::controller), come before those of the
//! machine. Unclaimed exits reach the open bus. Each vCPU has its own chain and calls it on its own thread, so a
//! controller needs no lock. Devices are shared by the vCPUs, and each has a lock.
//!
//! The answers to an exit:
//!
//! | exit | answer |
//! |---|---|
//! | [`PioIn`](Exit::PioIn), [`MmioRead`](Exit::MmioRead) | [`Value`](Outcome::Value). The guest reads its low bytes |
//! | [`PioOut`](Exit::PioOut), [`MmioWrite`](Exit::MmioWrite) | [`Resume`](Outcome::Resume) |
//! | [`RdMsr`](Exit::RdMsr) | `Value`, or [`Fault`](Outcome::Fault) for #GP |
//! | [`WrMsr`](Exit::WrMsr) | `Resume`, or `Fault` for #GP |
//! | [`Hypercall`](Exit::Hypercall) | `Resume`, with the result in RAX ([`VcpuState::set_regs`]) |
//! | [`Hlt`](Exit::Hlt) and other terminal exits | [`Stop`](Outcome::Stop), or `Resume` to continue after a HLT |
//!
//! String I/O arrives element by element on all hosts. `Stop` is a valid answer to any exit. A controller that fails
//! answers [`Outcome::failed`]. A controller that panics ends the run in the same way. Both end all vCPUs of the machine.
//!
//! ```
//! use vmm::controller::{ExitController, FakeVcpu, OpenBus, VcpuState};
//! use vmm::exit::{Exit, Outcome};
//!
//! /// A port that counts its reads.
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
//! // A test without KVM:
//! let mut vcpu = FakeVcpu::default();
//! let mut chain = (Counter(0), OpenBus::default());
//! let mut read = |port| chain.handle(&Exit::PioIn { port, size: 1 }, &mut vcpu);
//! assert!(matches!(read(0x42), Outcome::Value(1)));
//! assert!(matches!(read(0x43), Outcome::Value(u64::MAX)));
//! ```
//!
//! `vmm/examples/controller.rs` runs a controller with a guest. The crate's documentation shows it.

// Imports: devices, the processor's state, the console's output, the deadline.

pub(crate) mod bios;
mod debug;
pub(crate) mod devices;
pub(crate) mod hypercall;
pub(crate) mod inquiry;
pub(crate) mod kev;
pub(crate) mod msr;
mod open_bus;
pub(crate) mod vcpu;
pub(crate) mod watchdog;

pub use debug::{DebugControl, DebugPoint};
pub use devices::Devices;
pub use hypercall::{HYPERCALL_HALT_CPU, HYPERCALL_PRINT, Hypercalls};
pub use kev::{
    CONSTANT_PORT as KEV_CONSTANT_PORT, FIFO_MSR as KEV_FIFO_MSR, FIFO_PORT as KEV_FIFO_PORT, MmioPrinter,
    PRINTER as KEV_PRINTER,
};
pub use msr::{MsrForwarder, MsrPolicy, MsrRule, parse_msr_rule};
pub use open_bus::{OpenBus, TerminalExits};
pub use vcpu::{Activity, Entry, FakeVcpu, KvmTranslation, Location, Vcpu, VcpuState};
pub use watchdog::Watchdog;

use crate::exit::{Exit, Outcome, Stop};
use std::ops::ControlFlow;

/// Handles some of a vCPU's exits.
pub trait ExitController {
    /// Claims `exit` of `vcpu` and returns the answer, or returns [`Outcome::Unclaimed`].
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome;

    /// A run begins: the vCPU has not been entered. Controllers that come later in the chain are asked afterwards, unless
    /// this one ends the run.
    fn begin(&mut self, _vcpu: &mut dyn VcpuState) -> ControlFlow<Stop> {
        ControlFlow::Continue(())
    }
}

impl<A: ExitController, B: ExitController> ExitController for (A, B) {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        match self.0.handle(exit, vcpu) {
            Outcome::Unclaimed => self.1.handle(exit, vcpu),
            outcome => outcome,
        }
    }
    fn begin(&mut self, vcpu: &mut dyn VcpuState) -> ControlFlow<Stop> {
        self.0.begin(vcpu)?;
        self.1.begin(vcpu)
    }
}

impl<C: ExitController + ?Sized> ExitController for &mut C {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        (**self).handle(exit, vcpu)
    }
    fn begin(&mut self, vcpu: &mut dyn VcpuState) -> ControlFlow<Stop> {
        (**self).begin(vcpu)
    }
}

impl<C: ExitController + ?Sized> ExitController for Box<C> {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        (**self).handle(exit, vcpu)
    }
    fn begin(&mut self, vcpu: &mut dyn VcpuState) -> ControlFlow<Stop> {
        (**self).begin(vcpu)
    }
}

/// A list: the first controller that claims an exit answers it.
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
    fn begin(&mut self, vcpu: &mut dyn VcpuState) -> ControlFlow<Stop> {
        self.iter_mut().try_for_each(|controller| controller.begin(vcpu))
    }
}

/// An optional controller. `None` claims nothing.
impl<C: ExitController> ExitController for Option<C> {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        match self {
            Some(controller) => controller.handle(exit, vcpu),
            None => Outcome::Unclaimed,
        }
    }
    fn begin(&mut self, vcpu: &mut dyn VcpuState) -> ControlFlow<Stop> {
        self.as_mut().map_or(ControlFlow::Continue(()), |controller| controller.begin(vcpu))
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
    fn the_first_claimant_answers_and_the_open_bus_answers_the_rest() {
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
