//! Experiments on a host: the comparison of the transports, and the checks of `vmm doctor`.

// Imports: `machine`.

mod check;
pub(crate) mod compare;
#[cfg_attr(not(has_kvm), path = "absent.rs")]
pub(crate) mod doctor;
pub(crate) mod stats;
pub(crate) mod variant;
pub(crate) mod workload;

pub use check::{Check, CheckOutcome};
pub use compare::run as run_comparison;
pub use compare::{MAX_BYTES, MAX_MESSAGES, MAX_ROUNDS, Row};

pub use doctor::examine;
pub use stats::{Spread, percentile};
pub use variant::{Ring, Variant, Workload};
pub use workload::{ComparisonError, Echoes, Message, run_echoes, run_handshake, run_message};
