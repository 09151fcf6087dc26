//! The older hardware of a PC: what Linux needs of it, and what kernels for a classic PC expect.
//!
//! May import what [`crate::device`] may import.

pub(crate) mod ata;
pub(crate) mod cmos;
pub(crate) mod i8042;
pub(crate) mod keyboard;
pub(crate) mod legacy;
pub(crate) mod pci;
pub(crate) mod pit;
pub(crate) mod pm_timer;
pub(crate) mod post_code;
pub(crate) mod power;
pub(crate) mod rtc;
pub(crate) mod system_control;
pub(crate) mod vga;
