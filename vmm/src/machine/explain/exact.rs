//! The facts of the software processor about the end of a guest: the faults of its death, and the loop of a timeout. With
//! KVM, both can only be guessed.

use crate::memory::PagedMemory;
use softcpu::{Cpu, Death, Fault};

/// #PF.
const PAGE_FAULT: u8 = 14;
/// #DF.
const DOUBLE_FAULT: u8 = 8;
/// The most blocks of a loop that are listed.
const MAX_BLOCKS: usize = 4;

/// The faults of a triple fault, as a phrase. `cause` is what the explanation has found: the first fault in words, or the
/// mistake of the guest that led to it, which remains a guess.
pub(super) fn death(death: &Death, cause: Option<&str>) -> Option<String> {
    let (first, later) = death.faults.split_first()?;
    let name = Fault::name(first.vector).unwrap_or("an exception");
    let mut text = match cause {
        Some(cause) if cause.starts_with(name) => cause.to_owned(),
        // A cause of another exception is not that of this death.
        Some(cause) if !cause.starts_with('#') => {
            format!("probably {cause}; then {}", describe(first, Some(death.rip)))
        }
        _ => describe(first, Some(death.rip)),
    };
    // The double fault itself follows from the second exception.
    for fault in later.iter().filter(|fault| fault.vector != DOUBLE_FAULT) {
        let delivered = match fault.while_delivering {
            Some(DOUBLE_FAULT) => ", and that of the double fault",
            _ => "; its delivery raised",
        };
        text += &format!("{delivered} {}", describe(fault, None));
    }
    Some(text)
}

/// An exception with its error code in words. `rip` is that of the instruction, if one raised it.
fn describe(fault: &Fault, rip: Option<u64>) -> String {
    match (fault.vector, fault.error, fault.cr2) {
        (PAGE_FAULT, Some(error), Some(address)) => {
            let access = match (error & 0x10 != 0 || rip == Some(address), error & 2 != 0) {
                (true, _) => "fetch from",
                (false, true) => "write to",
                (false, false) => "read of",
            };
            let reason = match (error & 8 != 0, error & 1 != 0) {
                (true, _) => "whose page-table entry has a reserved bit set",
                (false, true) => "which does not allow it",
                (false, false) => "which is not mapped",
            };
            format!("{fault} for a {access} {address:#x}, {reason}")
        }
        // The error code names an entry of the IDT (SDM volume 3, section 6.13).
        (_, Some(error), _) if error & 2 != 0 => {
            format!("{fault} for entry {} of the IDT", error >> 3 & 0xff)
        }
        (_, Some(error), _) if error & !1 != 0 && fault.vector != PAGE_FAULT => {
            let table = if error & 4 != 0 { "LDT" } else { "GDT" };
            format!("{fault} for selector {:#x} of the {table}", error & 0xfff8)
        }
        _ => fault.to_string(),
    }
}

/// The loop that the guest ran in, as a phrase. `None` if its last blocks are not a short loop.
pub(super) fn looped(cpu: &Cpu<PagedMemory>) -> Option<String> {
    let recent: Vec<u64> = cpu.recent().collect();
    let mut blocks: Vec<u64> = recent.clone();
    blocks.sort_unstable();
    blocks.dedup();
    // A block that was entered once is not a loop.
    let times = |rip: u64| cpu.block(rip).map(|(_, entered)| entered).filter(|times| *times > 1);
    if recent.is_empty() || blocks.len() > MAX_BLOCKS {
        return None;
    }
    let listed: Option<Vec<_>> =
        blocks.iter().map(|rip| Some(format!("{rip:#x} (entered {} times)", times(*rip)?))).collect();
    Some(format!("it looped at {}", listed?.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(vector: u8, error: Option<u32>, while_delivering: Option<u8>) -> Fault {
        Fault { vector, error, cr2: (vector == PAGE_FAULT).then_some(0xdead_0000), while_delivering }
    }

    #[test]
    fn a_death_names_each_fault() {
        let faults = vec![
            fault(PAGE_FAULT, Some(2), None),
            fault(13, Some(0x72), Some(14)),
            fault(DOUBLE_FAULT, Some(0), Some(13)),
            fault(13, Some(0x42), Some(8)),
        ];
        let chain = Death { faults, cs: 8, rip: 0x1000 };
        assert_eq!(
            death(&chain, None).unwrap(),
            "#PF (error code 0x2) for a write to 0xdead0000, which is not mapped; its delivery raised #GP (error code 0x72) for \
             entry 14 of the IDT, and that of the double fault #GP (error code 0x42) for entry 8 of the IDT"
        );
        let known = death(&chain, Some("#PF: it wrote")).unwrap();
        assert!(known.starts_with("#PF: it wrote; its delivery raised #GP"), "{known}");
        assert!(death(&chain, Some("#GP: another")).unwrap().starts_with("#PF (error code 0x2)"));
        let mistake = death(&chain, Some("the entry point returned")).unwrap();
        assert!(
            mistake.starts_with("probably the entry point returned; then #PF (error code 0x2)"),
            "{mistake}"
        );
        assert_eq!(death(&Death::default(), None), None);
    }

    #[test]
    fn error_codes_are_decoded() {
        let text = |vector, error| describe(&fault(vector, Some(error), None), None);
        assert_eq!(text(13, 0x18), "#GP (error code 0x18) for selector 0x18 of the GDT");
        assert_eq!(text(11, 0x1c), "#NP (error code 0x1c) for selector 0x18 of the LDT");
        assert_eq!(text(13, 0), "#GP (error code 0x0)");
        assert!(text(14, 0x11).contains("fetch from 0xdead0000, which does not allow it"));
        assert!(text(14, 9).ends_with("read of 0xdead0000, whose page-table entry has a reserved bit set"));
        assert_eq!(describe(&fault(0, None, None), None), "#DE");
    }
}
