//! The names of places in the code of observed guests.

use crate::{names, places};
use debug::{Fit, Guest, SymbolError, Symbols};
use observe::{Death, Event, Observation, ObservedMemory, StopCause};
use report::SavedName;
use std::path::Path;
use vmm::machine::Processor;
use vmm::memory::Gpa;

/// The most VMs whose code is compared with the symbols.
const MOST_VMS: usize = 64;

/// The symbols of observed guests. Their code is compared with the memory of a VM when one of its vCPUs stops.
pub(super) struct ObservedNames {
    symbols: Symbols,
    /// The VMs that were compared, each with the result.
    vms: Vec<(u32, Fit)>,
}

impl ObservedNames {
    /// Reads the symbols.
    ///
    /// # Errors
    /// The file cannot be read, or has no symbols.
    pub(super) fn open(argument: &Path) -> Result<Self, SymbolError> {
        Ok(Self { symbols: names::open(argument)?, vms: Vec::new() })
    }

    /// Compares the code of a VM whose vCPU has stopped.
    pub(super) fn see(&mut self, event: &Event, memory: &ObservedMemory) {
        let Event::Stopped(stop) = event else { return };
        let vm = stop.vcpu.vm;
        let is_known = self.vms.len() >= MOST_VMS || self.vms.iter().any(|(known, _)| *known == vm);
        if is_known || !matches!(stop.cause, StopCause::Exit(_) | StopCause::Running(_)) {
            return;
        }
        let end = memory.slots(vm).map(|slot| slot.gpa.saturating_add(slot.size)).max().unwrap_or(0);
        let guest = Guest { bases: &[], memory: end, may_move: self.symbols.is_linux() };
        let read = |address, bytes: &mut [u8]| memory.read(vm, stop.process, Gpa(address), bytes);
        self.vms.push((vm, self.symbols.find(&guest, read)));
    }

    /// The lines about the places where a guest died. Empty if they are not known.
    pub(super) fn places(&self, death: &Death) -> String {
        let fits = self.fit(death.vcpu.vm) == Some(Fit::Same);
        let frame = death.explanation.as_ref().and_then(|explanation| explanation.frame()).filter(|_| fits);
        frame.map(|frame| places::lines(frame, &self.symbols)).unwrap_or_default()
    }

    /// The names of the addresses that exits come from.
    pub(super) fn saved(&self, observation: &Observation) -> Vec<SavedName> {
        let exits = names::exits(Some(&observation.profile), observation.trace.as_ref());
        let symbols = self.usable();
        symbols.map(|symbols| names::saved(symbols, Processor::Kvm, &exits)).unwrap_or_default()
    }

    /// The symbols. `None` if they fit no VM that was compared, which the log says. VMs that never stopped are not compared.
    fn usable(&self) -> Option<&Symbols> {
        let fits = self.vms.is_empty() || self.vms.iter().any(|(_, fit)| *fit == Fit::Same);
        let worst = self.vms.first().map_or(Fit::Same, |(_, fit)| *fit);
        names::is_usable(if fits { Fit::Same } else { worst }, &self.symbols).then_some(&self.symbols)
    }

    fn fit(&self, vm: u32) -> Option<Fit> {
        self.vms.iter().find(|(known, _)| *known == vm).map(|(_, fit)| *fit)
    }
}
