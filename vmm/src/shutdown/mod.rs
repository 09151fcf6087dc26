//! The end of a run: its deadline, a handle that ends it from another thread, and worker threads that always stop.
//!
//! Imports: errors, exits and host functions.

mod deadline;
mod stop_handle;
mod worker;

pub use deadline::Deadline;
pub(crate) use deadline::Wait;
pub(crate) use stop_handle::Kick;
pub use stop_handle::StopHandle;
pub(crate) use worker::Worker;
