//! The general registers by name, and the values that a user gives them: `rax=2`.

use crate::host::parse_number;
use crate::x86::modes::Mode;
use crate::x86::registers::Regs;
use std::fmt;
use std::str::FromStr;

/// A general register. Intel SDM volume 1, section 3.4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum GeneralRegister {
    Rax,
    Rbx,
    Rcx,
    Rdx,
    Rsi,
    Rdi,
    Rbp,
    Rsp,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

use GeneralRegister::{R8, R9, R10, R11, R12, R13, R14, R15, Rax, Rbp, Rbx, Rcx, Rdi, Rdx, Rsi, Rsp};

/// The names of the registers that every mode has: of 64, 32 and 16 bits.
const NAMES: [(GeneralRegister, [&str; 3]); 8] = [
    (Rax, ["rax", "eax", "ax"]),
    (Rbx, ["rbx", "ebx", "bx"]),
    (Rcx, ["rcx", "ecx", "cx"]),
    (Rdx, ["rdx", "edx", "dx"]),
    (Rsi, ["rsi", "esi", "si"]),
    (Rdi, ["rdi", "edi", "di"]),
    (Rbp, ["rbp", "ebp", "bp"]),
    (Rsp, ["rsp", "esp", "sp"]),
];
/// The registers that only long mode has, with their names of 64 bits.
const NEW: [(GeneralRegister, &str); 8] = [
    (R8, "r8"),
    (R9, "r9"),
    (R10, "r10"),
    (R11, "r11"),
    (R12, "r12"),
    (R13, "r13"),
    (R14, "r14"),
    (R15, "r15"),
];

impl GeneralRegister {
    /// The register of this name, and the width that the name has, in bits.
    fn named(name: &str) -> Option<(Self, u32)> {
        let old = NAMES.iter().find_map(|(register, names)| {
            let width = [64, 32, 16].into_iter().zip(names).find(|(_, known)| **known == name)?.0;
            Some((*register, width))
        });
        old.or_else(|| NEW.iter().find(|(_, known)| *known == name).map(|(register, _)| (*register, 64)))
    }

    /// The register in `regs`.
    pub(crate) fn of(self, regs: &mut Regs) -> &mut u64 {
        match self {
            Rax => &mut regs.rax,
            Rbx => &mut regs.rbx,
            Rcx => &mut regs.rcx,
            Rdx => &mut regs.rdx,
            Rsi => &mut regs.rsi,
            Rdi => &mut regs.rdi,
            Rbp => &mut regs.rbp,
            Rsp => &mut regs.rsp,
            R8 => &mut regs.r8,
            R9 => &mut regs.r9,
            R10 => &mut regs.r10,
            R11 => &mut regs.r11,
            R12 => &mut regs.r12,
            R13 => &mut regs.r13,
            R14 => &mut regs.r14,
            R15 => &mut regs.r15,
        }
    }
}

/// The value of a register at the start of a guest. Its text is `REGISTER=VALUE`.
///
/// ```
/// use vmm::x86::{GeneralRegister, InitialValue};
///
/// let rax: InitialValue = "rax=2".parse()?;
/// assert_eq!((rax.register, rax.value), (GeneralRegister::Rax, 2));
/// assert!("ax=0x10000".parse::<InitialValue>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitialValue {
    /// The register.
    pub register: GeneralRegister,
    /// The value. The whole register gets it.
    pub value: u64,
}

impl InitialValue {
    /// Checks that the register exists in `mode`, and can hold the value there.
    ///
    /// # Errors
    /// It does not. The message is for the user.
    pub(crate) fn check(&self, mode: Mode) -> Result<(), String> {
        if matches!(mode, Mode::Long | Mode::User) {
            return Ok(());
        }
        if NEW.iter().any(|(register, _)| *register == self.register) {
            return Err(format!("--set {self}: {mode} mode has no such register: set one of rax to rsp"));
        }
        if self.value > u64::from(u32::MAX) {
            return Err(format!("--set {self}: registers have 32 bits in {mode} mode: give a smaller value"));
        }
        Ok(())
    }
}

impl fmt::Display for InitialValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = NAMES.iter().map(|(register, names)| (*register, names[0])).chain(NEW);
        let name = names.into_iter().find(|(register, _)| *register == self.register);
        write!(f, "{}={:#x}", name.map_or("", |(_, name)| name), self.value)
    }
}

impl FromStr for InitialValue {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("give REGISTER=VALUE, such as rax=2")?;
        let name = name.trim().to_ascii_lowercase();
        if ["rip", "eip", "ip"].contains(&name.as_str()) {
            return Err(
                "the instruction pointer is the entry point: give it with the address, FILE@ADDR".into()
            );
        }
        if ["rflags", "eflags", "flags"].contains(&name.as_str()) {
            return Err("the flags have fixed values at the start: set them in the guest (popf)".into());
        }
        let (register, width) = GeneralRegister::named(&name)
            .ok_or("give a general register, such as rax, ebx, cx or r8, as in rax=2")?;
        let value =
            parse_number(value.trim()).map_err(|_| "give a number, such as 2 or 0x1000, as in rax=2")?;
        if value.checked_shr(width).unwrap_or(0) != 0 {
            return Err(format!("{name} has {width} bits: give a smaller value"));
        }
        Ok(Self { register, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_register_of_its_own() {
        let mut regs = Regs::default();
        let names = NAMES.iter().flat_map(|(_, names)| names.iter().copied());
        for name in names.chain(NEW.iter().map(|(_, name)| *name)) {
            let set: InitialValue = format!("{name}=7").parse().unwrap();
            assert!(GeneralRegister::named(name).is_some_and(|(register, _)| register == set.register));
            *set.register.of(&mut regs) += 1;
        }
        let eight = [regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.rsp];
        assert_eq!(eight, [3; 8]);
        assert_eq!([regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15], [1; 8]);
        assert_eq!((regs.rip, regs.rflags), (0, 0));
    }

    #[test]
    fn what_is_no_general_register_or_too_large_is_refused() {
        for (text, why) in [
            ("rax", "REGISTER=VALUE"),
            ("rip=1", "FILE@ADDR"),
            ("EFLAGS=1", "popf"),
            ("al=1", "a general register"),
            ("cs=1", "a general register"),
            ("rax=two", "give a number"),
            ("ax=0x10000", "ax has 16 bits"),
            ("eax=0x100000000", "eax has 32 bits"),
            ("rax=0x10000000000000000", "give a number"),
        ] {
            let error = text.parse::<InitialValue>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let whole: InitialValue = "R8=0xffffffffffffffff".parse().unwrap();
        assert_eq!(whole.value, u64::MAX);
        assert!(whole.check(Mode::Long).is_ok());
        assert!(whole.check(Mode::Real).unwrap_err().contains("real mode has no such register"));
        let wide: InitialValue = "rax=0x100000000".parse().unwrap();
        assert!(
            wide.check(Mode::Protected).unwrap_err().contains("--set rax=0x100000000: registers have 32")
        );
        assert!(wide.check(Mode::User).is_ok());
    }
}
