//! The instructions that cause exits: those that KVM's RIP may be at or behind.

use crate::exit::Reason;
use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess};

/// The most bytes of code that are decoded to find where an instruction starts.
pub const MOST_DECODED: usize = 4096;

/// The length of the instruction at the start of `code`, if it can cause an exit with this reason. `bits` is the width of the
/// code. Exits of which the instruction is not known, such as a shutdown, may have any.
pub fn causing_instruction(reason: Reason, bits: u32, code: &[u8]) -> Option<usize> {
    let instruction = Decoder::try_new(bits, code, DecoderOptions::NONE).ok()?.decode();
    let memory = |wanted: fn(OpAccess) -> bool| {
        let mut factory = InstructionInfoFactory::new();
        factory.info(&instruction).used_memory().iter().any(|used| wanted(used.access()))
    };
    let mnemonic = instruction.mnemonic();
    let can = match reason {
        Reason::PioIn => {
            matches!(mnemonic, Mnemonic::In | Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd)
        }
        // A hypercall of this machine is a write to a port.
        Reason::PioOut | Reason::Hypercall => {
            matches!(mnemonic, Mnemonic::Out | Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd)
        }
        Reason::MmioRead => memory(|access| {
            use OpAccess::{CondRead, Read, ReadCondWrite, ReadWrite};
            matches!(access, Read | CondRead | ReadWrite | ReadCondWrite)
        }),
        Reason::MmioWrite => memory(|access| {
            use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
            matches!(access, Write | CondWrite | ReadWrite | ReadCondWrite)
        }),
        Reason::RdMsr => mnemonic == Mnemonic::Rdmsr,
        Reason::WrMsr => mnemonic == Mnemonic::Wrmsr,
        Reason::Hlt => mnemonic == Mnemonic::Hlt,
        Reason::Shutdown | Reason::EmulationFailure | Reason::FailedEntry | Reason::Other(_) => true,
    };
    (can && !instruction.is_invalid()).then_some(instruction.len())
}

/// The length of the instruction at the start of `code`. `None` if there is none.
pub(crate) fn instruction_length(bits: u32, code: &[u8]) -> Option<usize> {
    let instruction = Decoder::try_new(bits, code, DecoderOptions::NONE).ok()?.decode();
    (!instruction.is_invalid()).then_some(instruction.len())
}

/// The start of the instruction that ends at `end`. An instruction must start at the first byte of `code`: it is the code
/// of a function. `None` if no instruction ends there, or if it is far from the start.
pub fn instruction_before(bits: u32, code: &[u8], end: usize) -> Option<usize> {
    let code = code.get(..end).filter(|_| end <= MOST_DECODED)?;
    let mut decoder = Decoder::try_new(bits, code, DecoderOptions::NONE).ok()?;
    let mut start = None;
    while decoder.can_decode() {
        start = Some(decoder.position());
        if decoder.decode().is_invalid() {
            return None;
        }
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_causes_exits_of_its_kind_only() {
        for (code, length, reasons) in [
            (&[0xee, 0x90][..], 1, &[Reason::PioOut, Reason::Hypercall][..]),
            (&[0x66, 0xe7, 0x80], 3, &[Reason::PioOut, Reason::Hypercall]),
            (&[0xf3, 0x6e], 2, &[Reason::PioOut, Reason::Hypercall, Reason::MmioRead]),
            (&[0xec], 1, &[Reason::PioIn]),
            (&[0xf3, 0x6c], 2, &[Reason::PioIn, Reason::MmioWrite]),
            (&[0x8b, 0x07], 2, &[Reason::MmioRead]),
            (&[0x89, 0x07], 2, &[Reason::MmioWrite]),
            (&[0xff, 0x07], 2, &[Reason::MmioRead, Reason::MmioWrite]),
            // lea computes an address, and reads nothing.
            (&[0x8d, 0x07], 2, &[]),
            (&[0x0f, 0x32], 2, &[Reason::RdMsr]),
            (&[0x0f, 0x30], 2, &[Reason::WrMsr]),
            (&[0xf4], 1, &[Reason::Hlt]),
            (&[0xc3], 1, &[Reason::MmioRead]),
        ] {
            for reason in Reason::NAMED.into_iter().take(8) {
                let expected = reasons.contains(&reason).then_some(length);
                assert_eq!(causing_instruction(reason, 64, code), expected, "{code:x?} {reason}");
            }
        }
        assert_eq!(causing_instruction(Reason::Shutdown, 64, &[0x0f, 0x0b]), Some(2));
        for cut in [&[][..], &[0xe6], &[0x0f]] {
            assert_eq!(causing_instruction(Reason::Shutdown, 64, cut), None);
        }
    }

    #[test]
    fn the_instruction_before_an_address_is_found_from_the_start_of_its_function() {
        // mov al, 0xee; out dx, al; ret
        let code = [0xb0, 0xee, 0xee, 0xc3];
        let starts = [0, 1, 2, 3, 4, 5].map(|end| instruction_before(64, &code, end));
        assert_eq!(starts, [None, None, Some(0), Some(2), Some(3), None]);
        assert_eq!(instruction_before(64, &[0x90; 5000], 4096), Some(4095));
        assert_eq!(instruction_before(64, &[0x90; 5000], 4097), None);
    }
}
