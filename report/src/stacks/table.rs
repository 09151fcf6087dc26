//! The hottest functions, as the text that `vmm` prints after a run.

use super::{Part, Samples};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use vmm::host::sort_by_key;

/// The number of functions that are listed.
const ROWS: usize = 12;

/// The shares of the parts in one line, and the functions with most samples. Empty without samples.
///
/// `self` is the share of the samples in which the function was the innermost one, also if KVM or the VMM worked for it.
/// `total` is the share in which it was on the stack.
pub fn hottest(samples: &Samples) -> String {
    let total = samples.total();
    if total == 0 {
        return String::new();
    }
    let share = |count: u64| 100.0 * count as f64 / total as f64;
    let mut text = String::new();
    if samples.rate.is_some() {
        let parts: Vec<_> =
            Part::ALL.into_iter().zip(samples.parts()).filter(|(_, count)| *count > 0).collect();
        let name = |part: Part| match part {
            Part::Guest if samples.may_be_kvm => "guest or KVM (this host does not tell)",
            part => part.name(),
        };
        let parts: Vec<_> =
            parts.into_iter().map(|(part, count)| format!("{:.1}% {}", share(count), name(part))).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "vmm: the samples are {}", parts.join(", "));
    }
    let functions = functions(samples);
    let _ = writeln!(text, "{:>10}  {:>6} {:>6}  function", samples.unit(), "self", "total");
    for Function { name, own, all } in functions.iter().take(ROWS) {
        let _ = writeln!(text, "{own:>10}  {:>5.1}% {:>5.1}%  {name}", share(*own), share(*all));
    }
    let rest = functions.get(ROWS..).unwrap_or_default();
    if !rest.is_empty() {
        let own = rest.iter().fold(0u64, |sum, function| sum.saturating_add(function.own));
        let _ = writeln!(text, "{own:>10}  {:>5.1}%         in {} more", share(own), rest.len());
    }
    text
}

/// A function of the guest in the samples.
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    /// The number of samples in which it was the innermost function.
    pub(crate) own: u64,
    /// The number of samples in which it was on the stack.
    pub(crate) all: u64,
}

/// The functions, those with most samples first.
pub(crate) fn functions(samples: &Samples) -> Vec<Function<'_>> {
    let mut functions: HashMap<&str, (u64, u64)> = HashMap::new();
    for (stack, count) in &samples.stacks {
        let mut seen = HashSet::new();
        let mut is_innermost = true;
        for frame in samples.resolve(stack).rev().filter(|frame| frame.part == Part::Guest) {
            if seen.insert(frame.name()) {
                let (own, all) = functions.entry(frame.name()).or_default();
                *all = all.saturating_add(*count);
                if is_innermost {
                    *own = own.saturating_add(*count);
                }
            }
            is_innermost = false;
        }
    }
    let functions = functions.into_iter().map(|(name, (own, all))| Function { name, own, all });
    let mut functions: Vec<_> = functions.collect();
    sort_by_key(&mut functions, |function| (Reverse(function.own), Reverse(function.all), function.name));
    functions
}
