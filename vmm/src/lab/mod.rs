//! Experiments on a host: the comparison of the transports, and the checks of `vmm doctor`.

// Imports: `machine`.

mod check;
pub(crate) mod compare;
mod debugging;
#[cfg_attr(not(has_kvm), path = "absent.rs")]
pub(crate) mod doctor;
mod small_guests;
pub(crate) mod stats;
pub(crate) mod variant;
pub(crate) mod workload;

pub use check::{Check, CheckOutcome};
pub use compare::run as run_comparison;
pub use compare::{MAX_BYTES, MAX_MESSAGES, MAX_ROUNDS, Row};
pub use debugging::{DebugFacilities, probe_debugging};

pub use stats::{Spread, percentile};
pub use variant::{Ring, Variant, Workload};
pub use workload::{ComparisonError, Echoes, Message, run_echoes, run_handshake, run_message};

/// Checks everything that a run needs, in the order in which a run needs it. After a check that is
/// [`CheckOutcome::Bad`], checks that depend on it are left out. The last check is that of the software processor, which
/// needs none of the others.
pub fn examine() -> Vec<Check> {
    let mut checks = doctor::examine();
    checks.push(small_guests::run_without_kvm());
    checks
}
