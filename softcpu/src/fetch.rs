//! Instructions that no block holds: they cross the end of a page or of the segment, or are not valid.

use crate::blocks::{MAX_INSTRUCTION, repeats};
use crate::cpu::Cpu;
use crate::exit::Missing;
use crate::memory::{Memory, PAGE};
use crate::op::Op;
use crate::paging::Access;
use crate::state::seg;
use crate::trap::Trap;
use iced_x86::{Decoder, DecoderError, DecoderOptions};

impl<M: Memory> Cpu<M> {
    /// The address of the code at `rip`.
    #[inline]
    pub(crate) fn code_address(&self, rip: u64) -> Result<u64, Trap> {
        self.linear(seg::CS, rip, 1, Access::Execute).map_err(|_| Trap::gp())
    }

    /// True if `len` bytes of code are within the limit of CS.
    #[inline]
    pub(crate) fn is_within_limit(&self, rip: u64, len: u64) -> bool {
        self.state.is_64()
            || rip.saturating_add(len.saturating_sub(1)) <= self.state.segments[seg::CS].limit.into()
    }

    /// Decodes and executes one instruction that is not kept: it crosses the end of a page or of the segment, or is not
    /// valid.
    #[cold]
    pub(crate) fn execute_uncached(&mut self) -> Result<(), Trap> {
        let op = self.decode_uncached()?;
        self.leave_block = false;
        if !repeats(&op.insn) {
            return self.execute_op(&op);
        }
        // A store to the instruction is not noticed, so it is decoded anew for each element.
        let others = self.left.saturating_sub(1);
        (self.left, self.allowed) = (self.left - others, self.allowed - others);
        let result = self.execute_op(&op);
        (self.left, self.allowed) = (self.left + others, self.allowed + others);
        result
    }

    /// Decodes the instruction at RIP.
    ///
    /// # Errors
    /// It cannot be fetched, or is longer than 15 bytes.
    fn decode_uncached(&mut self) -> Result<Op<M>, Trap> {
        let (bits, rip) = (self.state.code_bits(), self.state.rip);
        let mut bytes = Vec::with_capacity(MAX_INSTRUCTION);
        loop {
            if !bytes.is_empty() {
                let mut decoder = Decoder::with_ip(bits, &bytes, rip, DecoderOptions::NONE);
                let insn = decoder.decode();
                if insn.is_invalid() && is_too_long(bits, &bytes) {
                    return Err(Trap::gp());
                }
                if decoder.last_error() != DecoderError::NoMoreBytes || is_undefined_opcode(bits, &bytes) {
                    return Ok(Op::new(insn, bits));
                }
            }
            // Fetch as far as the end of the page, and the next page only if the instruction needs it.
            let at = rip.wrapping_add(bytes.len() as u64);
            let linear = self.code_address(at)?;
            let entry = self.translate(linear, Access::Execute, self.is_user())?;
            let page = entry.page.ok_or(Trap::Unsupported(Missing::CodeMemory))?;
            let start = (linear & (PAGE - 1)) as usize;
            let mut end = start.saturating_add(MAX_INSTRUCTION - bytes.len()).min(PAGE as usize);
            if !self.state.is_64() {
                let limit = u64::from(self.state.segments[seg::CS].limit);
                let rest = usize::try_from(limit.saturating_sub(at)).unwrap_or(usize::MAX);
                end = end.min(start.saturating_add(rest).saturating_add(1));
            }
            bytes.extend((start..end).map(|offset| self.memory.load::<1>(page, offset) as u8));
        }
    }

    /// The bytes of the instruction at RIP, as far as they can be read.
    pub fn instruction_bytes(&mut self) -> Vec<u8> {
        let rip = self.state.rip;
        let byte = |at: u64| {
            let linear = self.code_address(rip.wrapping_add(at)).ok()?;
            let entry = self.translate(linear, Access::Execute, self.is_user()).ok()?;
            Some(self.memory.load::<1>(entry.page?, (linear & (PAGE - 1)) as usize) as u8)
        };
        (0..MAX_INSTRUCTION as u64).map_while(byte).collect()
    }
}

/// True if an instruction that begins with these bytes has more than 15. Such an instruction has a prefix that it does not
/// need: without it, the decoder reads as far as the last byte, and misses further ones.
fn is_too_long(bits: u32, bytes: &[u8]) -> bool {
    let Some((_, rest)) = bytes.split_first().filter(|_| bytes.len() == MAX_INSTRUCTION) else {
        return false;
    };
    let mut decoder = Decoder::new(bits, rest, DecoderOptions::NONE);
    let _ = decoder.decode();
    decoder.last_error() == DecoderError::NoMoreBytes
}

/// True if 64-bit code begins with an opcode of one byte that is not defined there. The processor then needs no further
/// byte, but the decoder reads one.
fn is_undefined_opcode(bits: u32, bytes: &[u8]) -> bool {
    const PREFIXES: [u8; 11] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];
    const UNDEFINED: [u8; 18] = [
        0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0x9a, 0xce, 0xd4, 0xd5,
        0xea,
    ];
    let mut rest = bytes.iter().skip_while(|byte| PREFIXES.contains(byte) || *byte & 0xf0 == 0x40);
    bits == 64 && rest.next().is_some_and(|opcode| UNDEFINED.contains(opcode))
}
