//! The value of a register of the first vCPU.

use super::Check;
use super::number::{parse, shown};
use crate::facts::Facts;
use vmm::x86::{FLAGS, Regs, Sregs};

/// A register, or a part of one.
type Read = fn(&Regs, &Sregs) -> u64;

/// The whole registers: name, width in bits, and value.
const WHOLE: [(&str, u32, Read); 32] = [
    ("rax", 64, |regs, _| regs.rax),
    ("rbx", 64, |regs, _| regs.rbx),
    ("rcx", 64, |regs, _| regs.rcx),
    ("rdx", 64, |regs, _| regs.rdx),
    ("rsi", 64, |regs, _| regs.rsi),
    ("rdi", 64, |regs, _| regs.rdi),
    ("rbp", 64, |regs, _| regs.rbp),
    ("rsp", 64, |regs, _| regs.rsp),
    ("r8", 64, |regs, _| regs.r8),
    ("r9", 64, |regs, _| regs.r9),
    ("r10", 64, |regs, _| regs.r10),
    ("r11", 64, |regs, _| regs.r11),
    ("r12", 64, |regs, _| regs.r12),
    ("r13", 64, |regs, _| regs.r13),
    ("r14", 64, |regs, _| regs.r14),
    ("r15", 64, |regs, _| regs.r15),
    ("rip", 64, |regs, _| regs.rip),
    ("rflags", 64, |regs, _| regs.rflags),
    ("cs", 16, |_, sregs| sregs.cs.selector.into()),
    ("ds", 16, |_, sregs| sregs.ds.selector.into()),
    ("es", 16, |_, sregs| sregs.es.selector.into()),
    ("fs", 16, |_, sregs| sregs.fs.selector.into()),
    ("gs", 16, |_, sregs| sregs.gs.selector.into()),
    ("ss", 16, |_, sregs| sregs.ss.selector.into()),
    ("tr", 16, |_, sregs| sregs.tr.selector.into()),
    ("ldtr", 16, |_, sregs| sregs.ldt.selector.into()),
    ("cr0", 64, |_, sregs| sregs.cr0),
    ("cr2", 64, |_, sregs| sregs.cr2),
    ("cr3", 64, |_, sregs| sregs.cr3),
    ("cr4", 64, |_, sregs| sregs.cr4),
    ("cr8", 64, |_, sregs| sregs.cr8),
    ("efer", 64, |_, sregs| sregs.efer),
];

/// The value that a register must have at the end of the run.
#[derive(Clone, Debug)]
pub struct RegisterValue {
    name: String,
    read: Read,
    shift: u32,
    bits: u32,
    value: u64,
}

impl RegisterValue {
    /// Parses the name of a register and its value. A name has 64, 32, 16 or 8 bits, such as rax, eax, ax, al and ah. A
    /// flag, such as zf, has one bit.
    ///
    /// # Errors
    /// There is no such register, or the value does not fit.
    pub fn parse(name: &str, value: &str) -> Result<Self, String> {
        let name = name.to_ascii_lowercase();
        let (read, shift, bits) = find(&name).ok_or(
            "there is no such register: give one such as rax, eax, ax, al, r8, rip, rflags, zf, cs, cr0 or efer",
        )?;
        let value = parse(value, bits).map_err(|error| format!("{name}: {error}"))?;
        Ok(Self { name, read, shift, bits, value })
    }

    pub(super) fn check(&self, facts: &Facts) -> Check {
        let mask = u64::MAX >> 64u32.saturating_sub(self.bits);
        let read =
            |(regs, sregs): &(Regs, Sregs)| (self.read)(regs, sregs).checked_shr(self.shift).unwrap_or(0);
        let seen = facts.registers.as_ref().map(|registers| read(registers) & mask);
        Check {
            passed: seen == Some(self.value),
            subject: self.name.clone(),
            expected: format!("must be {}", shown(self.value)),
            seen: match seen {
                Some(seen) => format!("is {}", shown(seen)),
                None if facts.is_observed() => "is not known, because no HLT of the guest was seen".into(),
                None => "is not known, because the host has reset the vCPU".into(),
            },
            possible: true,
        }
    }
}

/// The register of this name: its value, and the place of its bits.
fn find(name: &str) -> Option<(Read, u32, u32)> {
    let whole = |wanted: &str| WHOLE.iter().find(|(name, ..)| *name == wanted);
    if let Some((_, bits, read)) = whole(name) {
        return Some((*read, 0, *bits));
    }
    if let Some((bit, _)) = FLAGS.iter().find(|(_, flag)| flag.eq_ignore_ascii_case(name)) {
        return Some((|regs, _| regs.rflags, (*bit).into(), 1));
    }
    if let Some((new, bits)) = name.get(..name.len().checked_sub(1)?).and_then(|new| {
        let bits = match name.get(new.len()..)? {
            "d" => 32,
            "w" => 16,
            "b" => 8,
            _ => return None,
        };
        let is_new = new.strip_prefix('r').is_some_and(|number| number.parse::<u8>().is_ok());
        is_new.then_some((new, bits))
    }) {
        return whole(new).map(|(_, _, read)| (*read, 0, bits));
    }
    let has_parts = |name: &str| whole(name).map(|(_, _, read)| *read);
    if let Some(rest) = name.strip_prefix('e') {
        return has_parts(&format!("r{rest}")).map(|read| (read, 0, 32));
    }
    let is_byte = name.len() == 2 && name.starts_with(['a', 'b', 'c', 'd']);
    match name.get(..1).zip(name.get(1..)) {
        Some((letter, "l")) if is_byte => has_parts(&format!("r{letter}x")).map(|read| (read, 0, 8)),
        Some((letter, "h")) if is_byte => has_parts(&format!("r{letter}x")).map(|read| (read, 8, 8)),
        _ => match name.strip_suffix('l').filter(|name| ["si", "di", "bp", "sp"].contains(name)) {
            Some(name) => has_parts(&format!("r{name}")).map(|read| (read, 0, 8)),
            None => has_parts(&format!("r{name}")).map(|read| (read, 0, 16)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_selects_its_bits() {
        let regs = Regs { rax: 0x1122_3344_5566_7788, r9: 0xffee_ddcc, rflags: 0x42, ..Regs::default() };
        let value = |name: &str| {
            let (read, shift, bits) = find(name).unwrap_or_else(|| panic!("{name}"));
            read(&regs, &Sregs::default()) >> shift & u64::MAX >> (64 - bits)
        };
        let names = ["rax", "eax", "ax", "al", "ah", "r9d", "r9w", "r9b", "zf", "cf", "eflags", "flags"];
        let values = [regs.rax, 0x5566_7788, 0x7788, 0x88, 0x77, 0xffee_ddcc, 0xddcc, 0xcc, 1, 0, 0x42, 0x42];
        assert_eq!(names.map(value), values);
        for name in ["esi", "si", "sil", "spl", "ip", "eip", "r15b", "cr0", "efer", "ldtr", "bh"] {
            assert!(find(name).is_some(), "{name}");
        }
        for name in ["", "r", "r16", "r7d", "eex", "sih", "xl", "e", "rr8", "al=", "cr1", "é"] {
            assert!(find(name).is_none(), "{name}");
        }
    }
}
