//! The last controllers of a chain: the exits that end a run, and the open bus.

use super::{ExitController, VcpuState};
use crate::exit::{Exit, Outcome, Reason, Site, Stop};

/// The number of a stop for a debugger in KVM (KVM_EXIT_DEBUG).
const DEBUG: u32 = 4;

/// Ends the run at terminal exits: a halt, a shutdown, and exits that cannot be resumed.
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
            // No controller has switched debugging on.
            Exit::Debug(_) => Outcome::Stop(Stop::UnknownExit(DEBUG)),
            _ => Outcome::Unclaimed,
        }
    }
}

/// The last controller of a chain. It answers unclaimed accesses like an open bus: reads return all ones, and writes have
/// no effect. An access to an MSR raises #GP, as on the processor. It keeps the first sites and counts all accesses.
#[derive(Clone, Debug, Default)]
pub struct OpenBus {
    first: Vec<(Site, u64)>,
    total: u64,
    /// The first store that had no effect, and the number of such stores.
    lost_stores: Option<(Site, u64)>,
}

/// Ports of a PC's legacy devices. Guests write to them to switch these devices off or to wait, which needs no device:
/// the DMA controllers with their pages, the interrupt controllers with their mode and edge registers, the timer, the
/// keyboard controller with system control ports B and A, the clock, the boot mark, a port for delays, the numeric
/// coprocessor, the disk and floppy controllers' control registers, the registers of the text screen, and the PCI
/// configuration address.
const QUIET_PORTS: [std::ops::RangeInclusive<u64>; 17] = [
    0x00..=0x0f,
    0x20..=0x23,
    0x40..=0x43,
    0x60..=0x61,
    0x64..=0x64,
    0x70..=0x71,
    0x80..=0x8f,
    0x92..=0x92,
    0xa0..=0xa1,
    0xc0..=0xdf,
    0xed..=0xed,
    0xf0..=0xf1,
    0x376..=0x376,
    0x3d4..=0x3d5,
    0x3f2..=0x3f7,
    0x4d0..=0x4d1,
    0xcf8..=0xcf8,
];

/// The number of sites that an open bus keeps.
const MAX_SEEN: usize = 8;

impl OpenBus {
    /// The sites of the first unclaimed accesses, each with its number of accesses.
    pub fn seen(&self) -> impl Iterator<Item = (Site, u64)> {
        self.first.iter().copied()
    }

    /// The number of all unclaimed accesses.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The first unclaimed store to memory or a port, and the number of all of them. Writes to the ports of a PC's legacy
    /// devices do not count.
    pub fn lost_stores(&self) -> Option<(Site, u64)> {
        self.lost_stores
    }

    /// Adds the accesses of another vCPU's open bus.
    pub fn absorb(&mut self, other: &Self) {
        self.total = self.total.saturating_add(other.total);
        if let Some((site, count)) = other.lost_stores {
            self.add_lost_stores(site, count);
        }
        other.seen().for_each(|(site, count)| self.add(site, count));
    }

    fn add(&mut self, site: Site, times: u64) {
        if let Some((_, count)) = self.first.iter_mut().find(|(seen, _)| *seen == site) {
            *count = count.saturating_add(times);
        } else if self.first.len() < MAX_SEEN {
            self.first.push((site, times));
        }
    }

    fn add_lost_stores(&mut self, site: Site, times: u64) {
        let (_, count) = self.lost_stores.get_or_insert((site, 0));
        *count = count.saturating_add(times);
    }

    fn count(&mut self, exit: &Exit) {
        let Some(site) = Site::of(exit) else { return };
        self.total = self.total.saturating_add(1);
        self.add(site, 1);
        let is_quiet = |(port, _): (u64, u8)| QUIET_PORTS.iter().any(|ports| ports.contains(&port));
        match site.reason {
            Reason::MmioWrite => self.add_lost_stores(site, 1),
            Reason::PioOut if !site.place.is_some_and(is_quiet) => self.add_lost_stores(site, 1),
            _ => {}
        }
    }
}

impl ExitController for OpenBus {
    fn handle(&mut self, exit: &Exit, _: &mut dyn VcpuState) -> Outcome {
        match exit {
            Exit::PioIn { .. } | Exit::MmioRead { .. } => {
                self.count(exit);
                Outcome::Value(u64::MAX)
            }
            Exit::PioOut { .. } | Exit::MmioWrite { .. } | Exit::Hypercall { .. } => {
                self.count(exit);
                Outcome::Resume
            }
            Exit::RdMsr { .. } | Exit::WrMsr { .. } => {
                self.count(exit);
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
    fn an_open_bus_keeps_the_first_sites_and_counts_all_accesses() {
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
    fn stores_without_effect_are_counted_but_not_those_to_legacy_ports() {
        let lost = |exits: &[Exit]| {
            let mut bus = OpenBus::default();
            exits.iter().for_each(|exit| drop(bus.handle(exit, &mut FakeVcpu::default())));
            let mut all = OpenBus::default();
            all.absorb(&bus);
            all.absorb(&bus);
            all.lost_stores().map(|(site, count)| (site.reason, site.place, count))
        };
        let out = |port| Exit::PioOut { port, size: 1, data: 0 };
        let store = Exit::MmioWrite { address: 0xd000_0000, size: 4, data: 0 };
        assert_eq!(
            lost(&[
                out(0x21),
                out(0x43),
                out(0x80),
                out(0x3f2),
                out(0x4d0),
                Exit::PioIn { port: 0xe8, size: 1 }
            ]),
            None
        );
        assert_eq!(lost(&[out(0x80), out(0xe8), store]), Some((Reason::PioOut, Some((0xe8, 1)), 4)));
        assert_eq!(lost(&[store]), Some((Reason::MmioWrite, Some((0xd000_0000, 4)), 2)));
        assert_eq!(lost(&[Exit::MmioRead { address: 0xd000_0000, size: 4 }]), None);
    }

    #[test]
    fn terminal_exits_end_the_run() {
        let instruction = Instruction::new(&[0x0f, 0x0b]);
        let expect = [
            (Exit::Hlt, "halted"),
            (Exit::Shutdown, "triple fault (an exception without a working handler)"),
            (Exit::EmulationFailure(instruction), "KVM could not emulate a guest instruction: 0f 0b"),
            (
                Exit::FailedEntry { reason: 7 },
                "the processor refused to enter the guest (hardware reason 0x7: KVM has set invalid control fields)",
            ),
            (
                Exit::FailedEntry { reason: 0x8000_0021 },
                "the processor refused to enter the guest (hardware reason 0x80000021: invalid guest state)",
            ),
            (
                Exit::FailedEntry { reason: 0x1_0000_0000 },
                "the processor refused to enter the guest (hardware reason 0x100000000)",
            ),
            (Exit::Other(99), "unhandled KVM exit reason 99 (KVM_EXIT_* in linux/kvm.h)"),
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
    fn an_unclaimed_access_to_an_msr_faults() {
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
