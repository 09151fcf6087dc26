//! The older hardware of a PC: what Linux needs of it, and what kernels for a classic PC expect.
//!
//! May import what [`crate::device`] may import.

#[cfg(has_kvm)]
pub(crate) mod ata;
#[cfg(has_kvm)]
pub(crate) mod cmos;
#[cfg(has_kvm)]
pub(crate) mod fw_cfg;
#[cfg(has_kvm)]
pub(crate) mod i8042;
#[cfg(has_kvm)]
pub(crate) mod keyboard;
#[cfg(has_kvm)]
pub(crate) mod legacy;
pub(crate) mod medium;
#[cfg(has_kvm)]
pub(crate) mod pci;
#[cfg(has_kvm)]
pub(crate) mod pit;
#[cfg(has_kvm)]
pub(crate) mod pm_timer;
#[cfg(has_kvm)]
pub(crate) mod post_code;
#[cfg(has_kvm)]
pub(crate) mod power;
#[cfg(has_kvm)]
pub(crate) mod rtc;
#[cfg(has_kvm)]
pub(crate) mod system_control;
pub(crate) mod vga;
