//! The guest's code in files: the addresses that exits come from, and the names of functions and lines.

use crate::profile::{check_limit, check_text};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use vmm::exit::Reason;
use vmm::profile::MAX_ADDRESSES;

/// The maximum number of addresses of a profile: those counted one by one, and one for each reason.
pub const MOST_ADDRESSES: usize = MAX_ADDRESSES + 128;
/// The maximum number of names of a file.
pub const MOST_NAMES: usize = 1 << 14;
/// The maximum length of all names of a file that is written, in bytes.
pub const MOST_NAME_TEXT: usize = 4 << 20;

/// The exits at one address of the guest's code, for one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedAddress {
    /// RIP at the exit, as KVM leaves it: at the instruction, or behind it. `None` for the exits past the limit.
    pub rip: Option<u64>,
    /// The reason of the exits.
    #[serde(with = "crate::saved::reason")]
    pub reason: Reason,
    /// The place of the site.
    pub place: Option<u64>,
    /// The width of the access in bytes.
    pub width: Option<u8>,
    /// The number of exits.
    pub exits: u64,
    /// The number of elements.
    pub elements: u64,
    /// The time in KVM_RUN before the exits.
    pub in_kvm_ns: u64,
    /// The time in the VMM.
    pub in_vmm_ns: u64,
}

/// The name of the code at an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedName {
    /// RIP at the exit.
    pub rip: u64,
    /// The reason of the exit: together with RIP it tells the instruction.
    #[serde(with = "crate::saved::reason")]
    pub reason: Reason,
    /// The function of the instruction.
    pub function: String,
    /// The distance of the instruction from the start of the function, in bytes.
    pub offset: u64,
    /// The file and the line, such as `uart.c:12`. `None` without debug information.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// True if the instruction may be the other one: that at RIP, or that before it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unsure: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(flag: &bool) -> bool {
    !*flag
}

impl SavedName {
    /// The function with the distance from its start, such as `putc+0x12`.
    pub fn place(&self) -> String {
        format!("{}+{:#x}", self.function, self.offset)
    }
}

/// The names of a file by RIP and reason.
pub(crate) fn by_place(names: &[SavedName]) -> HashMap<(u64, Reason), &SavedName> {
    names.iter().map(|name| ((name.rip, name.reason), name)).collect()
}

/// Checks the limits on the names of a file.
pub(crate) fn check_names(names: &[SavedName]) -> Result<(), String> {
    check_limit(names.len(), "names", MOST_NAMES)?;
    names.iter().try_for_each(|name| {
        check_text("function", &name.function)?;
        check_text("line", name.line.as_deref().unwrap_or_default())
    })
}

/// Checks the limit on the addresses of a file, and their places.
pub(crate) fn check_addresses(addresses: &[SavedAddress]) -> Result<(), String> {
    check_limit(addresses.len(), "addresses", MOST_ADDRESSES)?;
    match addresses.iter().any(|address| address.place.is_some() != address.width.is_some()) {
        true => Err("an address with a place without a width, or a width without a place".into()),
        false => Ok(()),
    }
}
