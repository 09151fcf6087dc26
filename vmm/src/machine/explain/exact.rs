//! The facts of the software processor about the end of a guest: the faults of its death, and the loop of a timeout. With
//! KVM, both can only be guessed.

use super::idt::Idt;
use crate::host::sort_by_key;
use crate::memory::PagedMemory;
use softcpu::{Cpu, Death, Fault};

/// #PF.
const PAGE_FAULT: u8 = 14;
/// #DF.
const DOUBLE_FAULT: u8 = 8;
/// The bit of an error code that names an entry of the IDT.
const IDT_ENTRY: u32 = 2;
/// The most blocks of a loop that are listed.
const MAX_BLOCKS: usize = 4;

/// The first exception of a triple fault, as a phrase. `cause` is what the explanation has found: the exception in words, or
/// the mistake of the guest that led to it, which remains a guess.
pub(super) fn first(death: &Death, cause: Option<&str>) -> Option<String> {
    let first = death.faults.first()?;
    let name = Fault::name(first.vector).unwrap_or("an exception");
    Some(match cause {
        Some(cause) if cause.starts_with(name) => cause.to_owned(),
        // A cause of another exception is not that of this death.
        Some(cause) if !cause.starts_with('#') => {
            format!("probably {cause}; then {}", describe(first, Some(death.rip)))
        }
        _ => describe(first, Some(death.rip)),
    })
}

/// The exceptions of a triple fault, a line for each. `idt` is the IDT through which they could not be delivered.
pub(super) fn exceptions(death: &Death, idt: &Idt<'_>) -> Vec<String> {
    // The double fault itself follows from the second exception.
    let raised = death.faults.iter().filter(|fault| fault.vector != DOUBLE_FAULT);
    raised
        .map(|fault| match fault.while_delivering {
            None => describe(fault, Some(death.rip)),
            Some(vector) => at_delivery(fault, vector, idt),
        })
        .collect()
}

/// An exception that was raised at the delivery of the exception `vector`.
fn at_delivery(fault: &Fault, vector: u8, idt: &Idt<'_>) -> String {
    let delivered = match vector {
        DOUBLE_FAULT => "the double fault (#DF)".into(),
        _ => Fault::name(vector).map_or_else(|| format!("int {vector:#x}"), str::to_owned),
    };
    // The error code names the entry (SDM volume 3, section 6.13).
    let mistake = fault.error.filter(|error| error & IDT_ENTRY != 0 && fault.vector != PAGE_FAULT);
    match mistake.and_then(|error| idt.mistake((error >> 3 & 0xff) as u8)) {
        Some(mistake) => format!("{fault} at the delivery of {delivered}: {mistake}"),
        None => format!("{} at the delivery of {delivered}", describe(fault, None)),
    }
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
        (_, Some(error), _) if error & IDT_ENTRY != 0 => {
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
    sort_by_key(&mut blocks, |block| *block);
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
    use crate::machine::explain::View;
    use crate::memory::{Gpa, GuestMemory};
    use crate::x86::registers::Sregs;

    fn fault(vector: u8, error: Option<u32>, while_delivering: Option<u8>) -> Fault {
        Fault { vector, error, cr2: (vector == PAGE_FAULT).then_some(0xdead_0000), while_delivering }
    }

    fn chain() -> Death {
        let faults = vec![
            fault(PAGE_FAULT, Some(2), None),
            fault(13, Some(0x72), Some(14)),
            fault(DOUBLE_FAULT, Some(0), Some(13)),
            fault(13, Some(0x42), Some(8)),
        ];
        Death { faults, cs: 8, rip: 0x1000 }
    }

    /// An IDT of one page at 0x1000 in 32-bit code.
    fn with_idt<R>(limit: u16, then: impl FnOnce(&Idt<'_>) -> R) -> R {
        let memory = GuestMemory::new(&[(Gpa(0), 0x2000)]).unwrap();
        memory.write(Gpa(0x1000 + 14 * 8), &0x8e00_0008_1000u64.to_le_bytes()).unwrap();
        let mut sregs = Sregs { cr0: 1, ..Default::default() };
        (sregs.idt.base, sregs.idt.limit) = (0x1000, limit);
        let probe = View::new(&memory, sregs);
        then(&Idt { sregs: &sregs, probe: &probe, memory: &memory })
    }

    #[test]
    fn a_death_names_each_exception() {
        assert_eq!(
            with_idt(0, |idt| exceptions(&chain(), idt)),
            [
                "#PF (error code 0x2) for a write to 0xdead0000, which is not mapped",
                "#GP (error code 0x72) at the delivery of #PF: the IDT has no entry 14 (its limit is 0x0)",
                "#GP (error code 0x42) at the delivery of the double fault (#DF): the IDT has no entry 8 (its limit is 0x0)",
            ]
        );
        let listed = with_idt(0x7f, |idt| exceptions(&chain(), idt));
        assert_eq!(listed[1], "#GP (error code 0x72) for entry 14 of the IDT at the delivery of #PF");
        assert!(listed[2].ends_with("(#DF): entry 8 of the IDT is empty"), "{listed:?}");
    }

    #[test]
    fn the_first_exception_is_the_cause() {
        let cause = |known| first(&chain(), known).unwrap();
        assert_eq!(cause(None), "#PF (error code 0x2) for a write to 0xdead0000, which is not mapped");
        assert_eq!(cause(Some("#PF: it wrote")), "#PF: it wrote");
        assert!(cause(Some("#GP: another")).starts_with("#PF (error code 0x2)"));
        let mistake = cause(Some("the entry point returned"));
        assert!(
            mistake.starts_with("probably the entry point returned; then #PF (error code 0x2)"),
            "{mistake}"
        );
        assert_eq!(first(&Death::default(), None), None);
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
