//! The names of the place where a guest runs between two exits.

use crate::profile::SavedProcessor;

/// The words of a report for the time outside of the VMM.
pub(super) struct Labels {
    /// The place, in one word.
    pub(super) name: &'static str,
    /// The time.
    pub(super) time: &'static str,
    /// The time in the first and in the second of two runs.
    pub(super) of_each: [&'static str; 2],
    /// Its mean, as a head of columns.
    pub(super) mean: &'static str,
    /// Its 99th percentile, as a head of columns.
    pub(super) p99: &'static str,
    /// The explanation of the time, for a legend.
    pub(super) legend: &'static str,
}

const KVM: Labels = Labels {
    name: "KVM",
    time: "in KVM",
    of_each: ["A in KVM", "B in KVM"],
    mean: "in KVM, mean",
    p99: "in KVM, p99",
    legend: "in KVM: the guest and the kernel",
};
const SOFT: Labels = Labels {
    name: "CPU",
    time: "in the CPU",
    of_each: ["A in the CPU", "B in the CPU"],
    mean: "in the CPU, mean",
    p99: "in the CPU, p99",
    legend: "in the software processor, which executes the guest",
};
/// A run with KVM, and one on the software processor.
const MIXED: Labels = Labels {
    name: "guest",
    time: "in KVM or CPU",
    of_each: ["A in KVM or CPU", "B in KVM or CPU"],
    mean: "in KVM or CPU, mean",
    p99: "in KVM or CPU, p99",
    legend: "in KVM or in the software processor",
};

/// The words for a run on this processor.
pub(super) fn of(processor: SavedProcessor) -> &'static Labels {
    match processor {
        SavedProcessor::Kvm => &KVM,
        SavedProcessor::Soft => &SOFT,
    }
}

/// The words for two runs.
pub(super) fn of_both(a: SavedProcessor, b: SavedProcessor) -> &'static Labels {
    if a == b { of(a) } else { &MIXED }
}
