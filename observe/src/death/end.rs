//! The ends of guests in words: the exits after which they do not go on, errors of KVM_RUN, and refused registers.
//!
//! Linux `Documentation/virt/kvm/api.rst`, sections 4.10 (KVM_RUN), 4.12 (KVM_SET_REGS), 4.14 (KVM_SET_SREGS) and 5.

use super::{Instruction, Record, View};
use crate::engine::{Call, Stop, StopCause};
use crate::layout;
use std::io;
use std::time::Duration;
use vmm::RunCopy;
use vmm::exit::{Exit, Stop as RunStop};
use vmm::machine::{DeathKind, Explanation};
use vmm::x86::{Regs, Sregs};

/// KVM_SET_REGS.
pub(super) const SET_REGS: u32 = 0x4090_ae82;
/// KVM_SET_SREGS.
pub(super) const SET_SREGS: u32 = 0x4138_ae84;
/// KVM_SET_SREGS2. Its structure begins like that of KVM_SET_SREGS.
pub(super) const SET_SREGS2: u32 = 0x4140_aecd;
/// KVM_EXIT_SHUTDOWN and KVM_EXIT_FAIL_ENTRY.
const SHUTDOWN: u32 = 8;
const FAIL_ENTRY: u32 = 9;
/// KVM_EXIT_INTERNAL_ERROR.
const INTERNAL_ERROR: u32 = 17;
/// KVM_INTERNAL_ERROR_DELIVERY_EV.
const DELIVERY: u32 = 3;

/// True if a return of KVM_RUN is the end of a guest.
pub(super) fn is_end(record: &Record) -> bool {
    match record.result {
        0.. => [SHUTDOWN, FAIL_ENTRY, INTERNAL_ERROR].contains(&record.reason),
        result => ![libc::EINTR, libc::EAGAIN].contains(&result.saturating_neg()),
    }
}

/// The end of a guest.
pub(super) struct End {
    pub(super) kind: DeathKind,
    text: Text,
}

enum Text {
    /// An end that a run of this program has, too.
    Run(RunStop),
    Other(String),
}

impl End {
    /// The end that an exit is. `None` if the guest can go on.
    pub(super) fn of_exit(record: &Record) -> Option<Self> {
        match record.result {
            result if result < 0 => Self::of_error(result.saturating_neg()),
            _ => {
                let exit = RunCopy::default().decode(record.reason, &record.details).next()?.exit;
                let (kind, stop) = match exit {
                    Exit::Shutdown => (DeathKind::Fault, RunStop::TripleFault),
                    Exit::EmulationFailure(bytes) => (DeathKind::Fault, RunStop::EmulationFailure(bytes)),
                    Exit::FailedEntry { reason } => (DeathKind::Entry, RunStop::FailedEntry(reason)),
                    Exit::Other(INTERNAL_ERROR) => return Some(Self::of_internal_error(record)),
                    _ => return None,
                };
                Some(Self { kind, text: Text::Run(stop) })
            }
        }
    }

    /// An error of KVM other than a failed emulation.
    fn of_internal_error(record: &Record) -> Self {
        let word = |at: usize| record.details.get(at..).and_then(|rest| rest.first_chunk()).copied();
        let half = |at: usize| record.details.get(at..).and_then(|rest| rest.first_chunk()).copied();
        let suberror = half(0).map_or(0, u32::from_ne_bytes);
        let count = half(4).map_or(0, u32::from_ne_bytes);
        let data = |index: u32| {
            let at = (index as usize).saturating_mul(8).saturating_add(8);
            word(at).filter(|_| index < count).map(u64::from_ne_bytes)
        };
        let text = match (suberror, data(0)) {
            (2, _) => "KVM found two exceptions at once".into(),
            (DELIVERY, Some(info)) => format!(
                "KVM could not deliver vector {} to the guest (is its IDT or its stack where no memory is?)",
                info & 0xff
            ),
            (DELIVERY, None) => "KVM could not deliver an exception or an interrupt to the guest".into(),
            (4, Some(reason)) => {
                format!("the processor left the guest for a reason that KVM does not know ({reason:#x})")
            }
            (4, None) => "the processor left the guest for a reason that KVM does not know".into(),
            _ => format!("KVM failed with an internal error (suberror {suberror})"),
        };
        let kind = if suberror == DELIVERY { DeathKind::Fault } else { DeathKind::Unknown };
        Self { kind, text: Text::Other(text) }
    }

    /// An error of KVM_RUN. `None` for an interruption.
    fn of_error(errno: i32) -> Option<Self> {
        if [libc::EINTR, libc::EAGAIN].contains(&errno) {
            return None;
        }
        let error = io::Error::from_raw_os_error(errno);
        let meaning = match errno {
            libc::EFAULT => ": memory of a slot is not mapped in the program, or not for this access",
            libc::EINVAL => ": its argument is not 0, or kvm_run has a bit that KVM does not know",
            libc::EIO => ": another process made the VM, or KVM has given it up after an error of its own",
            libc::ENOEXEC => ": the vCPU is not initialized, or its code is in the memory of a device",
            libc::ENOSPC => ": KVM keeps no page tables for a VM without memory",
            libc::ENOMEM => ": the host has no memory left",
            _ => "",
        };
        Some(Self {
            kind: DeathKind::Unknown,
            text: Text::Other(format!("KVM_RUN failed: {error}{meaning}")),
        })
    }

    /// Registers that KVM refused. `None` if the call sets no registers.
    pub(super) fn of_call(call: &Call) -> Option<Self> {
        let name = match call.request {
            SET_REGS => "KVM_SET_REGS",
            SET_SREGS => "KVM_SET_SREGS",
            SET_SREGS2 => "KVM_SET_SREGS2",
            _ => return None,
        };
        let error = io::Error::from_raw_os_error(call.result.saturating_neg());
        let meaning = match error.raw_os_error() {
            Some(libc::EFAULT) => {
                format!(": its argument, {:#x}, is not the address of a structure", call.argument)
            }
            _ => String::new(),
        };
        let text = Text::Other(format!("{name} failed: {error}{meaning}"));
        Some(Self { kind: DeathKind::Refused, text })
    }

    /// The end of the time limit, in KVM_RUN for this time.
    pub(super) fn of_time(time: Duration) -> Self {
        let text = Text::Other(format!("in KVM_RUN for {:.1} s without an exit", time.as_secs_f64()));
        Self { kind: DeathKind::Running, text }
    }

    /// The end in words. KVM shows as many bytes of an instruction as it has fetched. The explanation knows its length.
    pub(super) fn what(&self, explanation: Option<&Explanation>) -> String {
        match (&self.text, explanation) {
            (Text::Run(RunStop::EmulationFailure(bytes)), Some(explanation)) => {
                let bytes = bytes.bytes().get(..explanation.instruction_len()).unwrap_or(bytes.bytes());
                RunStop::EmulationFailure(Instruction::new(bytes)).to_string()
            }
            (Text::Run(stop), _) => stop.to_string(),
            (Text::Other(text), _) => text.clone(),
        }
    }

    /// The cause, if it is the memory that the program gave to the VM.
    pub(super) fn cause(&self, stop: &Stop, view: &View<'_>) -> Option<String> {
        match &stop.cause {
            StopCause::Exit(_) if !view.has_slots() => Some("the VM has no memory slot".into()),
            StopCause::Exit(record) => {
                let lacks_memory = record.result == libc::EFAULT.saturating_neg();
                let slot = view.missed().or_else(|| view.unmapped_slot().filter(|_| lacks_memory))?;
                Some(format!(
                    "the program has not mapped all of the memory of slot {}: {:#x} bytes at {:#x}",
                    slot.number, slot.size, slot.address
                ))
            }
            _ => None,
        }
    }
}

/// The advice for refused registers that break no rule.
pub(super) fn refusal_advice(cause: &StopCause) -> Option<&'static str> {
    let StopCause::Refused(call) = cause else { return None };
    (call.result == libc::EINVAL.saturating_neg()).then_some(
        "they break no rule that vmm checks; KVM also refuses bits of CR4 that its CPUID does not show (KVM_SET_CPUID2 comes \
         first)",
    )
}

/// The registers that a refused call asked for. The others are those of the vCPU.
pub(super) fn asked(call: &Call, registers: Option<(Regs, Sregs)>) -> Option<(Regs, Sregs)> {
    match call.request {
        SET_REGS => Some((layout::regs(&call.data)?, registers?.1)),
        _ => {
            let reset = Regs { rflags: 2, ..Regs::default() };
            Some((registers.map_or(reset, |(regs, _)| regs), layout::sregs(&call.data)?))
        }
    }
}
