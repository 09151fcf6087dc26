//! The older hardware of a PC, as far as Linux needs it.
//!
//! May import what [`crate::device`] may import.

pub(crate) mod i8042;
pub(crate) mod pit;
pub(crate) mod pm_timer;
pub(crate) mod post_code;
pub(crate) mod power;
pub(crate) mod rtc;
pub(crate) mod system_control;
