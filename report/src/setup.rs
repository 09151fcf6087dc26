//! The setup of the machines of an observed program, as a part of its profile.

use crate::profile::{check_limit, check_text};
use serde::{Deserialize, Serialize};

/// The maximum number of calls, of memory slots and of remarks that a profile has. Those that are left out are counted in a
/// remark.
pub const MOST_SETUP: usize = 4096;

/// The calls to KVM that built the machines of an observed program, the memory of these machines, and remarks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSetup {
    /// The calls, in the order in which they are shown.
    pub calls: Vec<SavedCall>,
    /// The memory slots at the first entry, in the order of their addresses.
    pub memory: Vec<SavedSlot>,
    /// Sentences about both.
    pub remarks: Vec<String>,
}

/// A call to KVM, or several that are shown together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCall {
    /// The number of the VM, from 1; `None` for a call on `/dev/kvm`.
    pub vm: Option<u32>,
    /// The object of the call: `/dev/kvm`, `VM`, `vCPU 0` or `vCPUs 1 to 3`.
    pub object: String,
    /// The name of the request.
    pub call: String,
    /// The number of calls.
    pub times: u64,
    /// The arguments and results in words. It may be empty.
    pub words: String,
    /// The error with its meaning; `None` if the call succeeded.
    pub failure: Option<String>,
}

/// A memory slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSlot {
    /// The number of the VM, from 1.
    pub vm: u32,
    /// The number of the slot. The upper 16 bits are the address space.
    pub slot: u32,
    /// The guest physical address.
    pub first: u64,
    /// The size in bytes.
    pub size: u64,
    /// The address in the program.
    pub host: u64,
    /// The flags in words. It may be empty.
    pub flags: String,
}

impl SavedSetup {
    /// Checks the limits.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_limit(self.calls.len(), "calls", MOST_SETUP)?;
        check_limit(self.memory.len(), "memory slots", MOST_SETUP)?;
        check_limit(self.remarks.len(), "remarks", MOST_SETUP)?;
        for call in &self.calls {
            let failure = call.failure.as_deref().unwrap_or_default();
            for (name, text) in [
                ("object", &*call.object),
                ("call", &call.call),
                ("words", &call.words),
                ("failure", failure),
            ] {
                check_text(name, text)?;
            }
        }
        self.memory.iter().try_for_each(|slot| check_text("flags", &slot.flags))?;
        self.remarks.iter().try_for_each(|remark| check_text("remarks", remark))
    }
}
