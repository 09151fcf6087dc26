//! Stores to CR0 and CR4 after which a guest dies: the value is not allowed, or the guest's code is not mapped with it.
//!
//! Intel SDM volume 3, sections 2.5 (control registers), 4.1.2 (enabling of paging) and 10.8.5 (long mode).

use super::registers::register_value;
use super::suspicion::Suspicion;
use super::{State, View};
use crate::x86::modes;
use crate::x86::registers::Sregs;
use iced_x86::{Instruction, Register};

const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;

/// The cause of a death at a store to CR0 or CR4.
pub(super) fn wrong(instruction: &Instruction, state: &State<'_>) -> Option<Suspicion> {
    let value = register_value(instruction.op1_register(), state.regs)?;
    match instruction.op0_register() {
        Register::CR0 => of_cr0(value, instruction, state),
        Register::CR4 => Some(format!("#GP: the value {value:#x} is not allowed in cr4").into()),
        _ => None,
    }
}

fn of_cr0(value: u64, instruction: &Instruction, state: &State<'_>) -> Option<Suspicion> {
    if let Some(why) = refusal(value, state.sregs) {
        return Some(format!("#GP: the value {value:#x} is not allowed in cr0: {why}").into());
    }
    let turns_paging_on = value & !state.sregs.cr0 & modes::CR0_PG != 0;
    if !turns_paging_on {
        return None;
    }
    let probe = View::new(state.memory, Sregs { cr0: value, ..*state.sregs });
    let next = probe.linear(state.sregs.cs.base, state.regs.rip.wrapping_add(instruction.len() as u64));
    if let Err(error) = probe.translate_linear(next) {
        return Some(
            format!("#PF: this turns paging on, and the next instruction is not mapped ({error})").into(),
        );
    }
    let is_plain = state.sregs.cr4 & modes::CR4_PAE == 0;
    (is_plain && !state.scene.is_soft).then(|| {
        let way_out = if state.scene.is_foreign { "" } else { ": try --vcpu soft" };
        format!("this turns 32-bit paging on (CR4.PAE is 0), which KVM on this host may not have{way_out}")
            .into()
    })
}

/// The reason why CR0 does not take a value.
fn refusal(value: u64, sregs: &Sregs) -> Option<&'static str> {
    let has = |bit: u64| value & bit != 0;
    let is_paging = has(modes::CR0_PG);
    let wants_long = sregs.efer & modes::EFER_LME != 0;
    let is_in_64_bit_code = sregs.efer & modes::EFER_LMA != 0 && sregs.cs.l == 1;
    Some(match () {
        () if value >> 32 != 0 => "its bits 32 to 63 must be 0",
        () if has(CR0_NW) && !has(CR0_CD) => "NW (bit 29) needs CD (bit 30)",
        () if is_paging && !has(modes::CR0_PE) => "paging (PG, bit 31) needs protected mode (PE, bit 0)",
        () if is_paging && wants_long && sregs.cr4 & modes::CR4_PAE == 0 => {
            "EFER.LME is 1, so paging (PG, bit 31) needs CR4.PAE (bit 5), which is 0"
        }
        () if !is_paging && is_in_64_bit_code => "64-bit code cannot turn paging off (PG, bit 31)",
        () => return None,
    })
}

/// 64-bit code that runs although long mode is not active.
pub(super) fn not_in_long_mode(sregs: &Sregs) -> Option<Suspicion> {
    let is_protected = sregs.cr0 & modes::CR0_PE != 0;
    if !is_protected || sregs.cs.l == 0 || sregs.efer & modes::EFER_LMA != 0 {
        return None;
    }
    let missing: Vec<_> = [
        ("EFER.LME", sregs.efer & modes::EFER_LME),
        ("CR4.PAE", sregs.cr4 & modes::CR4_PAE),
        ("CR0.PG", sregs.cr0 & modes::CR0_PG),
    ]
    .into_iter()
    .filter(|(_, bit)| *bit == 0)
    .map(|(name, _)| format!("{name} is 0"))
    .collect();
    Some(
        format!(
            "the code segment is for 64-bit code (CS.L is 1), but long mode is not active ({}), so the code runs as 16-bit \
             or 32-bit code",
            missing.join(", ")
        )
        .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_value_of_cr0_has_its_reason() {
        let sregs = Sregs { cr0: modes::CR0_PE, ..Default::default() };
        let long = Sregs { efer: modes::EFER_LME, ..sregs };
        for (value, sregs, why) in [
            (1 << 32 | 1, sregs, Some("its bits 32")),
            (CR0_NW | 1, sregs, Some("NW (bit 29)")),
            (CR0_NW | CR0_CD | 1, sregs, None),
            (modes::CR0_PG, sregs, Some("paging (PG, bit 31) needs protected mode")),
            (modes::CR0_PG | 1, sregs, None),
            (modes::CR0_PG | 1, long, Some("EFER.LME is 1, so paging")),
            (modes::CR0_PG | 1, Sregs { cr4: modes::CR4_PAE, ..long }, None),
        ] {
            let refused = refusal(value, &sregs);
            assert_eq!(refused.is_some(), why.is_some(), "{value:#x}");
            assert!(refused.unwrap_or_default().starts_with(why.unwrap_or_default()), "{refused:?}");
        }
        let mut active = Sregs { efer: modes::EFER_LMA, ..sregs };
        active.cs.l = 1;
        assert!(refusal(1, &active).is_some());
        assert_eq!(not_in_long_mode(&active), None);
    }

    #[test]
    fn code_for_64_bits_without_long_mode_is_told() {
        let mut sregs = Sregs { cr0: modes::CR0_PE, efer: modes::EFER_LME, ..Default::default() };
        assert_eq!(not_in_long_mode(&sregs), None);
        sregs.cs.l = 1;
        let text = not_in_long_mode(&sregs).unwrap();
        assert!(text.contains("long mode is not active (CR4.PAE is 0, CR0.PG is 0)"), "{text}");
    }
}
