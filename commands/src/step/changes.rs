//! The registers that an instruction has changed.

use std::fmt::Write as _;
use vmm::machine::mode_of;
use vmm::x86::{FLAGS, Mode, Regs, Sregs};

/// The names of the general registers, without the letter of their width, and without the new ones of 64-bit code.
const GENERAL: [&str; 8] = ["ax", "bx", "cx", "dx", "si", "di", "bp", "sp"];

/// The changes between two states of a vCPU, as a list of `name=value`. RIP is not among them, because the next line shows it.
pub fn changes(before: (&Regs, &Sregs), after: (&Regs, &Sregs)) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut add = |name: &str, value: u64| {
        let _ = write!(text, "{name}={value:#x} ");
    };
    let mode = mode_of(after.1);
    for ((name, old), new) in GENERAL.iter().zip(general(before.0)).zip(general(after.0)) {
        if old != new {
            // A 16-bit name if the rest is as it was.
            let prefix = match mode {
                Mode::Real if (old ^ new) >> 16 == 0 => "",
                Mode::Real | Mode::Protected => "e",
                Mode::Long | Mode::User => "r",
            };
            let value = if prefix.is_empty() { new & 0xffff } else { new };
            add(&format!("{prefix}{name}"), value);
        }
    }
    for ((number, old), new) in (8..).zip(upper(before.0)).zip(upper(after.0)) {
        if old != new {
            add(&format!("r{number}"), new);
        }
    }
    let special = special(before.1).into_iter().zip(special(after.1));
    for (_, (name, new)) in special.filter(|(old, new)| old.1 != new.1) {
        add(name, new);
    }
    if before.0.rflags != after.0.rflags {
        let set = FLAGS.iter().filter(|(bit, _)| after.0.rflags >> bit & 1 != 0);
        let names: Vec<_> = set.map(|(_, name)| *name).collect();
        let _ = write!(text, "flags={}", if names.is_empty() { "none".into() } else { names.join(",") });
    }
    text.trim_end().into()
}

fn general(regs: &Regs) -> [u64; 8] {
    [regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.rsp]
}

fn upper(regs: &Regs) -> [u64; 8] {
    [regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15]
}

/// The segment, control and table registers.
fn special(sregs: &Sregs) -> [(&'static str, u64); 19] {
    [
        ("cs", sregs.cs.selector.into()),
        ("ds", sregs.ds.selector.into()),
        ("es", sregs.es.selector.into()),
        ("fs", sregs.fs.selector.into()),
        ("gs", sregs.gs.selector.into()),
        ("ss", sregs.ss.selector.into()),
        ("fs.base", sregs.fs.base),
        ("gs.base", sregs.gs.base),
        ("tr", sregs.tr.selector.into()),
        ("ldtr", sregs.ldt.selector.into()),
        ("gdt", sregs.gdt.base),
        ("gdt.limit", sregs.gdt.limit.into()),
        ("idt", sregs.idt.base),
        ("idt.limit", sregs.idt.limit.into()),
        ("cr0", sregs.cr0),
        ("cr2", sregs.cr2),
        ("cr3", sregs.cr3),
        ("cr4", sregs.cr4),
        ("efer", sregs.efer),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut Regs, &mut Sregs)) -> String {
        let before = (Regs { rflags: 2, ..Regs::default() }, Sregs::default());
        let mut after = before;
        change(&mut after.0, &mut after.1);
        changes((&before.0, &before.1), (&after.0, &after.1))
    }

    #[test]
    fn names_have_the_width_of_the_mode() {
        assert_eq!(of(|regs, _| regs.rax = 0x12), "ax=0x12");
        assert_eq!(of(|regs, _| regs.rax = 0x1_0000), "eax=0x10000");
        let protected = |regs: &mut Regs, sregs: &mut Sregs| (regs.rsp, sregs.cr0) = (4, 1);
        assert_eq!(of(protected), "esp=0x4 cr0=0x1");
        assert_eq!(of(|regs, _| (regs.rip, regs.r9) = (7, 1)), "r9=0x1");
        assert_eq!(of(|_, _| ()), "");
    }

    #[test]
    fn flags_have_their_names() {
        let before = Regs { rflags: 0x46, ..Regs::default() };
        let after = Regs { rflags: 2, ..Regs::default() };
        let sregs = Sregs::default();
        assert_eq!(changes((&after, &sregs), (&before, &sregs)), "flags=PF,ZF");
        assert_eq!(changes((&before, &sregs), (&after, &sregs)), "flags=none");
    }
}
