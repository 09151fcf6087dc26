//! The console of a guest: its text, its input, and the threads that serve the host's terminal.
//!
//! Imports: the end of a run ([`crate::shutdown`]).

pub(crate) mod host;
pub(crate) mod input;
pub(crate) mod output;
