//! The flags that instructions leave undefined.

use iced_x86::{Instruction, Mnemonic, RflagsBits};
use softcpu::flag;

/// Flags of iced-x86 as bits of RFLAGS.
fn bits(flags: u32) -> u64 {
    let pairs = [
        (RflagsBits::CF, flag::CF),
        (RflagsBits::PF, flag::PF),
        (RflagsBits::AF, flag::AF),
        (RflagsBits::ZF, flag::ZF),
        (RflagsBits::SF, flag::SF),
        (RflagsBits::OF, flag::OF),
    ];
    pairs.into_iter().filter(|(from, _)| flags & from != 0).fold(0, |bits, (_, to)| bits | to)
}

/// The flags that may be undefined, from instruction to instruction.
#[derive(Default)]
pub struct Undefined {
    /// They may be undefined now.
    pub flags: u64,
    /// One of them was read, so that other results may be undefined as well.
    pub was_read: bool,
    /// A repetition has overwritten itself, so that no instruction can be found.
    pub is_rewritten: bool,
    /// The instruction that made them so.
    pub cause: Option<Mnemonic>,
}

impl Undefined {
    /// The name of the cause.
    pub fn name(&self) -> String {
        self.cause.map_or_else(String::new, |cause| format!("{cause:?}").to_lowercase())
    }

    /// An instruction begins.
    pub fn read(&mut self, insn: &Instruction) {
        if bits(insn.rflags_read()) & self.flags != 0
            || matches!(
                insn.mnemonic(),
                Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq | Mnemonic::Lahf
            ) && self.flags != 0
        {
            self.was_read = true;
        }
    }

    /// An instruction ends.
    pub fn step(&mut self, insn: &Instruction) {
        self.read(insn);
        let written = bits(insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set());
        let mut undefined = bits(insn.rflags_undefined());
        match insn.mnemonic() {
            // CF after a count of the width or more; all counts, because the manual leaves more open than it says.
            Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr => undefined |= flag::CF,
            Mnemonic::Shld | Mnemonic::Shrd => undefined |= flag::STATUS,
            _ => {}
        }
        // A count of zero writes no flags: those that were undefined stay so.
        let conditional = matches!(
            insn.mnemonic(),
            Mnemonic::Shl
                | Mnemonic::Sal
                | Mnemonic::Shr
                | Mnemonic::Sar
                | Mnemonic::Rol
                | Mnemonic::Ror
                | Mnemonic::Rcl
                | Mnemonic::Rcr
                | Mnemonic::Shld
                | Mnemonic::Shrd
        );
        if !conditional && !insn.has_rep_prefix() && !insn.has_repne_prefix() {
            self.flags &= !written;
        }
        if undefined != 0 {
            self.cause = Some(insn.mnemonic());
        }
        self.flags |= undefined;
    }
}
