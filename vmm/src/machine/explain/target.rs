//! Linear addresses, and what they are mapped to.

use super::registers::register_value;
use super::suspicion::{Suspicion, operand_address};
use super::{State, View};
use crate::memory::{Gpa, ReadMemory};
use crate::x86::probe::ProbeError;
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind};

/// The translation of a linear address.
pub(super) struct Target {
    /// The linear address.
    pub(super) linear: u64,
    /// The guest physical address. `None` if the address is not mapped, or if there is no memory.
    pub(super) gpa: Option<Gpa>,
    /// The translation in words.
    pub(super) description: String,
    /// The exception that an access raises. `None` if the address is mapped.
    pub(super) fault: Option<Fault>,
    /// The size of the page, in bytes. `None` if the address is not mapped, or without paging.
    pub(super) page: Option<u64>,
}

/// The exception that an access to a linear address raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// #PF.
    NotMapped,
    /// #GP.
    NotCanonical,
}

impl From<ProbeError> for Fault {
    fn from(error: ProbeError) -> Self {
        match error {
            ProbeError::NotCanonical { .. } => Self::NotCanonical,
            _ => Self::NotMapped,
        }
    }
}

/// The suspicion for a near jump, call or return to an address that is not canonical: the processor refuses it at the branch.
pub(super) fn of_branch(instruction: &Instruction, state: &State<'_>) -> Option<Suspicion> {
    let target = match (instruction.flow_control(), instruction.op0_kind()) {
        (FlowControl::IndirectBranch | FlowControl::IndirectCall, OpKind::Register) => {
            register_value(instruction.op0_register(), state.regs)?
        }
        (FlowControl::IndirectBranch | FlowControl::IndirectCall, OpKind::Memory) => {
            let linear = operand_address(instruction, 0, state)?;
            let mut word = [0; 8];
            let gpa = state.probe.translate_linear(linear).ok()?.gpa;
            state.memory.read(gpa, &mut word).then(|| u64::from_le_bytes(word))?
        }
        (FlowControl::Return, _) if instruction.mnemonic() == Mnemonic::Ret => state.stack_word(0)?,
        _ => return None,
    };
    let is_wrong = state.probe.is_long()
        && state.probe.translate_linear(target).is_err_and(|error| Fault::from(error) == Fault::NotCanonical);
    is_wrong.then(|| format!("#GP: a jump to an address that is not canonical, {target:#x}").into())
}

/// Translates a linear address, and describes the translation.
pub(super) fn translate(probe: &View<'_>, memory: &dyn ReadMemory, linear: u64) -> Target {
    let mapping = match probe.translate_linear(linear) {
        Ok(mapping) => mapping,
        Err(error) => {
            return Target {
                linear,
                gpa: None,
                description: error.to_string(),
                fault: Some(error.into()),
                page: None,
            };
        }
    };
    let gpa = mapping.gpa.0;
    let mut description = match mapping.page {
        None => format!("{linear:#x} is a physical address (paging is off)"),
        Some(size) => {
            let size =
                if size < 1 << 20 { format!("{} KiB", size >> 10) } else { format!("{} MiB", size >> 20) };
            let access = if mapping.writable { "writable" } else { "read-only" };
            format!("{linear:#x} maps to {gpa:#x} ({size} page, {access})")
        }
    };
    let has_memory = memory.read(mapping.gpa, &mut [0]);
    if !has_memory {
        description += ", where there is no memory";
    }
    Target { linear, gpa: has_memory.then_some(mapping.gpa), description, fault: None, page: mapping.page }
}
