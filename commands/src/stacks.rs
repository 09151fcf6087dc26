//! The names of sampled stacks.

use debug::{Place, Symbols, attribute};
use report::Samples;
use report::stacks::{Part, StackFrame};
use std::collections::HashMap;
use vmm::Report;
use vmm::exit::{Reason, Site};
use vmm::host::sort_by;
use vmm::machine::{SampleBy, SampleReport};
use vmm::profile::{SampleKind, StackSample};

/// The names of addresses, each looked up once.
struct Named<'a> {
    symbols: Option<&'a Symbols>,
    /// By the address, and true for one to which a call returns.
    known: HashMap<(u64, bool), Vec<StackFrame>>,
    /// The instructions that cause exits.
    causes: HashMap<(Reason, u64), Vec<StackFrame>>,
}

/// The samples of a run, with the names of their functions.
pub fn named(taken: &SampleReport, symbols: Option<&Symbols>, report: &Report) -> Samples {
    let entries = taken.stacks.entries();
    let mut named = Named { symbols, known: HashMap::new(), causes: HashMap::new() };
    named.find_causes(report, entries.iter().map(|(sample, _)| *sample));
    let mut samples = Samples::default();
    if let SampleBy::Rate(rate) = taken.by {
        samples.rate = Some(rate);
    }
    samples.lost = taken.stacks.lost();
    samples.cost_ns = taken.cost;
    samples.may_be_kvm = taken.stacks.of_kind(SampleKind::GuestOrKvm) > 0;
    let several = report.vcpus.len() > 1;
    for (sample, count) in entries {
        let vcpu = several.then(|| StackFrame::guest(&format!("vCPU {}", sample.vcpu), None));
        let stack = vcpu.into_iter().chain(named.stack(sample)).chain(part(sample.kind, report));
        samples.add(stack, count);
    }
    samples
}

/// The frame for another part than the guest.
fn part(kind: SampleKind, report: &Report) -> Option<StackFrame> {
    let site_name = |site: Site| {
        let name = match site.place {
            Some((place, _)) => format!("{} {place:#x}", site.reason),
            None => site.reason.to_string(),
        };
        report.device_at(&site).map_or(name.clone(), |device| format!("{name} ({device})"))
    };
    Some(match kind {
        SampleKind::Guest | SampleKind::GuestOrKvm => return None,
        SampleKind::Kvm => StackFrame::part(Part::Kvm, ""),
        SampleKind::Halted => StackFrame::part(Part::Halted, ""),
        SampleKind::Vmm(None) => StackFrame::part(Part::Vmm, "between exits"),
        SampleKind::Vmm(Some(site)) => StackFrame::part(Part::Vmm, &site_name(site)),
        SampleKind::Exit(site) => StackFrame::part(Part::Exit, &site_name(site)),
    })
}

/// The reason of the exit at which a sample was taken.
fn reason(kind: SampleKind) -> Option<Reason> {
    match kind {
        SampleKind::Vmm(Some(site)) | SampleKind::Exit(site) => Some(site.reason),
        SampleKind::Halted => Some(Reason::Hlt),
        _ => None,
    }
}

impl Named<'_> {
    /// Finds the instructions that cause exits: RIP may be behind them.
    fn find_causes<'a>(&mut self, report: &Report, samples: impl Iterator<Item = &'a StackSample>) {
        let Some(symbols) = self.symbols else { return };
        let exit = |sample: &StackSample| Some((reason(sample.kind)?, *sample.addresses.first()?));
        let mut exits: Vec<_> = samples.filter_map(exit).collect();
        sort_by(&mut exits, Ord::cmp);
        exits.dedup();
        let found = attribute(symbols, report.processor, &exits);
        let known = exits.into_iter().zip(found);
        self.causes = known.filter_map(|(exit, found)| Some((exit, frames(found?.place)))).collect();
    }

    /// The frames of a sample, the outermost first.
    fn stack(&mut self, sample: &StackSample) -> Vec<StackFrame> {
        let Some((rip, callers)) = sample.addresses.split_first() else { return Vec::new() };
        let mut stack = Vec::new();
        for address in callers.iter().rev() {
            stack.extend_from_slice(self.at(*address, true));
        }
        let cause = reason(sample.kind).and_then(|reason| self.causes.get(&(reason, *rip)));
        match cause {
            Some(frames) => stack.extend_from_slice(frames),
            None => stack.extend_from_slice(self.at(*rip, false)),
        }
        stack
    }

    /// The frames of an address: its function, with those that are inlined at it.
    fn at(&mut self, address: u64, returns: bool) -> &[StackFrame] {
        let symbols = self.symbols;
        self.known.entry((address, returns)).or_insert_with(|| {
            // The call itself is before the address to which it returns.
            let place = symbols.and_then(|symbols| symbols.place(address.wrapping_sub(u64::from(returns))));
            place.map_or_else(|| vec![StackFrame::guest(&format!("{address:#x}"), None)], frames)
        })
    }
}

/// The frames of a place, the outermost first.
fn frames(place: Place) -> Vec<StackFrame> {
    let frame = |call: &debug::Call| {
        let source = call.source.as_ref().map(|source| (source.file.as_str(), source.line));
        StackFrame::guest(&call.function, source)
    };
    place.calls.iter().rev().map(frame).collect()
}
