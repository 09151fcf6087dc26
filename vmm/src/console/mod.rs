//! The console of a guest: its output, its input, its screen, and the threads that serve the terminal of the host.
//!
//! May import `shutdown`, `exit`, `host` and the errors.

pub(crate) mod core_key;
pub(crate) mod host;
pub(crate) mod input;
pub(crate) mod output;
pub(crate) mod screen;
