//! The instructions that cause exits, by the RIP that KVM leaves.
//!
//! At an exit RIP is at the instruction or behind it. That depends on the reason, on the way in which KVM handles the
//! instruction, and on the host. The code decides: only one of the two instructions can usually cause the exit. If both can,
//! the other exits of the run with this reason decide, and then what is known of KVM. Decoding backwards is ambiguous, so the
//! instruction before RIP is found from the start of its function.

use crate::symbols::{Place, Symbols};
use std::collections::HashMap;
use vmm::exit::Reason;
use vmm::machine::Processor;
use vmm::x86::{causing_instruction, instruction_before};

/// The longest instruction, in bytes (Intel SDM volume 2A, section 2.3.11).
const MAX_INSTRUCTION: u64 = 15;

/// The place of the instruction that caused an exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribution {
    /// The place.
    pub place: Place,
    /// True if it may be another instruction, in another function or line.
    pub unsure: bool,
}

/// The instructions that may have caused an exit.
#[derive(Clone, Copy)]
struct Candidates {
    /// The instruction at RIP can.
    at: bool,
    /// The address of the instruction before RIP, if that one can.
    behind: Option<u64>,
}

/// The places of the instructions that caused exits, each given by its reason and RIP. `None` for those without a name.
pub fn attribute(
    symbols: &Symbols,
    processor: Processor,
    exits: &[(Reason, u64)],
) -> Vec<Option<Attribution>> {
    let candidates: Vec<_> = exits.iter().map(|(reason, rip)| candidates(symbols, *reason, *rip)).collect();
    // For each reason, whether RIP was at the instruction, and whether it was behind it.
    let mut seen: HashMap<Reason, (bool, bool)> = HashMap::new();
    for ((reason, _), Candidates { at, behind }) in exits.iter().zip(&candidates) {
        let (was_at, was_behind) = seen.entry(*reason).or_default();
        match (at, behind) {
            (true, None) => *was_at = true,
            (false, Some(_)) => *was_behind = true,
            _ => {}
        }
    }
    let attributed = exits.iter().zip(candidates).map(|((reason, rip), found)| {
        let is_behind = match (found.at, found.behind) {
            (true, None) => Some(false),
            (false, Some(_)) => Some(true),
            _ => match seen.get(reason) {
                Some((true, false)) => Some(false),
                Some((false, true)) => Some(true),
                _ => usual(processor, *reason),
            },
        };
        let before = found.behind.unwrap_or(rip.wrapping_sub(1));
        let place = |behind: bool| symbols.place(if behind { before } else { *rip });
        match is_behind {
            Some(behind) => Some(Attribution { place: place(behind)?, unsure: false }),
            None => {
                let (at, behind) = (place(false), place(true));
                let unsure = at.as_ref().map(same) != behind.as_ref().map(same);
                Some(Attribution { place: behind.or(at)?, unsure })
            }
        }
    });
    attributed.collect()
}

/// The parts of a place that a report shows: the function and its line.
fn same(place: &Place) -> (&str, Option<&crate::symbols::Source>) {
    (place.function(), place.calls.last().and_then(|call| call.source.as_ref()))
}

/// True if RIP is usually behind the instruction, as far as that does not depend on the host. KVM completes a read only at the
/// next entry, and skips HLT before it returns (Linux, arch/x86/kvm/x86.c).
fn usual(processor: Processor, reason: Reason) -> Option<bool> {
    match (processor, reason) {
        (_, Reason::Hlt) => Some(true),
        (Processor::Soft, _) => Some(false),
        (Processor::Kvm, Reason::PioOut | Reason::Hypercall | Reason::MmioWrite) => None,
        (Processor::Kvm, _) => Some(false),
    }
}

fn candidates(symbols: &Symbols, reason: Reason, rip: u64) -> Candidates {
    let bits = symbols.bits();
    let at = symbols.code_at(rip).is_some_and(|code| causing_instruction(reason, bits, code).is_some());
    let is_without_instruction = matches!(
        reason,
        Reason::Shutdown | Reason::EmulationFailure | Reason::FailedEntry | Reason::Other(_)
    );
    let behind = if is_without_instruction { None } else { before(symbols, reason, bits, rip) };
    Candidates { at: at || is_without_instruction, behind }
}

/// The address of the instruction that ends at `rip`, if it can cause the exit.
fn before(symbols: &Symbols, reason: Reason, bits: u32, rip: u64) -> Option<u64> {
    let causes = |start: u64| {
        let length = causing_instruction(reason, bits, symbols.code_at(start)?)? as u64;
        (start.checked_add(length)? == rip).then_some(start)
    };
    let last = rip.checked_sub(1)?;
    if let Some(offset) = symbols.offset(last) {
        let function = last.checked_sub(offset)?;
        let end = usize::try_from(offset).ok()?.checked_add(1)?;
        if let Some(start) = instruction_before(bits, symbols.code_at(function)?, end) {
            return causes(function.checked_add(start as u64)?);
        }
    }
    (1..=MAX_INSTRUCTION).find_map(|length| causes(rip.checked_sub(length)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::elf_of;

    /// first: mov al, 0x41; out 0xe9, al (in both functions); in al, 0x60; out 0xe9, al; out 0xe9, al; hlt; ret
    const CODE: [u8; 12] = [0xb0, 0x41, 0xe6, 0xe9, 0xe4, 0x60, 0xe6, 0xe9, 0xe6, 0xe9, 0xf4, 0xc3];

    /// Two functions: `first` has the first four bytes, `second` the rest.
    fn symbols() -> Symbols {
        Symbols::parse("test", &elf_of(0x1000, &CODE, &[("first", 0x1000, 4), ("second", 0x1004, 8)]))
            .unwrap()
    }

    fn found(exits: &[(Reason, u64)]) -> Vec<String> {
        let attributed = attribute(&symbols(), Processor::Kvm, exits);
        let text = |one: &Option<Attribution>| match one {
            Some(one) => format!("{}{}", one.place, if one.unsure { "?" } else { "" }),
            None => "none".into(),
        };
        attributed.iter().map(text).collect()
    }

    #[test]
    fn the_code_tells_on_which_side_of_rip_the_instruction_is() {
        use Reason::{Hlt, PioIn, PioOut};
        // Behind the last instruction of `first`; at the `in`, and behind it; HLT.
        assert_eq!(found(&[(PioOut, 0x1004)]), ["first+0x2"]);
        assert_eq!(found(&[(PioOut, 0x1002)]), ["first+0x2"]);
        assert_eq!(found(&[(PioIn, 0x1004), (PioIn, 0x1006)]), ["second+0x0", "second+0x0"]);
        assert_eq!(found(&[(Hlt, 0x100b), (Hlt, 0x100a)]), ["second+0x6", "second+0x6"]);
        assert_eq!(found(&[(Reason::Shutdown, 0x1004)]), ["second+0x0"]);
        assert_eq!(found(&[(PioOut, 0x5000)]), ["none"]);
    }

    #[test]
    fn other_exits_of_the_run_decide_between_two_instructions() {
        use Reason::PioOut;
        // Between two `out`: with RIP behind the others it is the first one, and with RIP at them the second.
        assert_eq!(found(&[(PioOut, 0x1008), (PioOut, 0x1004)]), ["second+0x2", "first+0x2"]);
        assert_eq!(found(&[(PioOut, 0x1008), (PioOut, 0x1002)]), ["second+0x4", "first+0x2"]);
        // Both are in one function without lines, so it does not matter.
        assert_eq!(found(&[(PioOut, 0x1008)]), ["second+0x2"]);
    }

    #[test]
    fn an_exit_between_two_functions_that_both_can_cause_it_is_not_sure() {
        let code = [0xe6, 0xe9, 0xe6, 0xe9];
        let file = elf_of(0x1000, &code, &[("first", 0x1000, 2), ("second", 0x1002, 2)]);
        let symbols = Symbols::parse("test", &file).unwrap();
        let find = |processor| attribute(&symbols, processor, &[(Reason::PioOut, 0x1002)]).remove(0).unwrap();
        let (kvm, soft) = (find(Processor::Kvm), find(Processor::Soft));
        assert_eq!((kvm.place.function(), kvm.unsure), ("first", true));
        assert_eq!((soft.place.function(), soft.unsure), ("second", false));
    }
}
