//! Profiles: the exits of a vCPU, counted and timed per reason and per site.

// `recorder.rs` notes each exit of the run loop with the times of `clock.rs`. `sites.rs` counts them per site, with the
// distributions of `latency.rs`, and `addresses.rs` per address of the guest's code. `stacks.rs` counts samples by stack. `trace.rs` keeps the last exits of a machine. `timeline.rs` marks the events of
// its run.
//
// Imports: exits and host functions.

mod addresses;
pub(crate) mod clock;
mod latency;
pub(crate) mod recorder;
mod sites;
mod stacks;
pub(crate) mod timeline;
pub(crate) mod trace;

pub use addresses::{AddressProfile, Addresses, MAX_ADDRESSES};
pub use clock::Clock;
pub use latency::{DIGITS, Latency, lower_bound};
pub use recorder::{Recorder, Recording, TracedExit};
pub use sites::{Count, MAX_SITES, MAX_TIMED_SITES, Profile, SiteProfile, Times};
pub use stacks::{MAX_DEPTH, MAX_STACKS, SampleKind, StackSample, Stacks};
pub use timeline::{Event, MAX_MARKS, Mark, Timeline};
pub use trace::{MAX_TRACED_EXITS, Trace};
