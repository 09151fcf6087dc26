//! Expectations of a run, and exercises with points.
//!
//! An [`Expectation`] is one condition, such as `rax=42`. It is checked against the [`Facts`] of a run that has ended:
//! its output, registers, memory, exits and its end. A check reads the facts only. It runs no guest, and needs no KVM.
//!
//! | module | contents |
//! |---|---|
//! | [`expect`] | the expectations, and a file for each kind |
//! | [`mod@file`] | exercises in files |
//! | [`toml`], [`template`] | TOML documents, and texts with numbers from a seed |
//! | [`facts`] | the facts of a run |
//! | [`read`] | reads files |
//! | [`watch`] | records the modes of vCPUs during a run |

pub mod expect;
pub mod facts;
pub mod file;
pub mod read;
pub mod template;
pub mod toml;
pub mod watch;

pub use expect::{Check, Expectation};
pub use facts::{Facts, Memory, RunEnd, SiteExits};
pub use file::Exercise;
pub use watch::ModeWatch;
