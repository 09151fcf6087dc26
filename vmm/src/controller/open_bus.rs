//! The end of every chain: the exits that end a run, and the open bus.

use super::{ExitController, VcpuState};
use crate::exit::{Exit, Outcome, Site, Stop};

/// Ends the run at the exits that are an end: a halt, a shutdown, and what cannot be resumed.
#[derive(Clone, Copy, Debug)]
pub struct TerminalExits;

impl ExitController for TerminalExits {
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
    use super::super::FakeVcpu;
    use super::*;
    use crate::exit::Instruction;

    #[test]
    fn an_open_bus_remembers_the_first_and_counts_all() {
        let mut bus = OpenBus::default();
        for port in (0..100).chain(0..3) {
            bus.handle(&Exit::PioOut { port, size: 1, data: 0 }, &mut FakeVcpu::default());
        }
        bus.handle(&Exit::Hlt, &mut FakeVcpu::default());
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
            match TerminalExits.handle(&exit, &mut FakeVcpu::default()) {
                Outcome::Stop(stop) => assert_eq!(stop.to_string(), text),
                other => panic!("{exit:?}: {other:?}"),
            }
        }
        assert!(matches!(
            TerminalExits.handle(&Exit::PioIn { port: 0, size: 1 }, &mut FakeVcpu::default()),
            Outcome::Unclaimed
        ));
    }

    #[test]
    fn what_nobody_has_of_an_msr_faults() {
        let mut bus = OpenBus::default();
        let mut vcpu = FakeVcpu::default();
        for exit in [Exit::RdMsr { index: 7 }, Exit::WrMsr { index: 7, data: 1 }] {
            assert!(matches!(bus.handle(&exit, &mut vcpu), Outcome::Fault));
        }
        let mut all = OpenBus::default();
        all.handle(&Exit::RdMsr { index: 7 }, &mut vcpu);
        all.absorb(&bus);
        assert_eq!((all.total(), all.seen().map(|(_, count)| count).collect()), (3, vec![2, 1]));
    }
}
