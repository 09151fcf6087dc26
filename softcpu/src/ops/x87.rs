//! The control instructions of x87, FXSAVE and FXRSTOR (SDM volume 1, sections 8.1 and 10.5). There is no x87 arithmetic.
//!
//! The selectors of the last instruction and of its operand are not kept: current processors store zeros.

use crate::cpu::Cpu;
use crate::exit::Missing;
use crate::float::mxcsr;
use crate::memory::{Memory, PAGE};
use crate::op::{Handler, Op};
use crate::paging::Access;
use crate::state::{Fpu, State, cr0, cr4, flag};
use crate::trap::{MF, NM, Trap};
use iced_x86::{Instruction, Mnemonic};

/// The bits of the control word that can be set. Bit 6 always is.
const CONTROL: u16 = 0x1f3f;
/// The exceptions in the status word, and their masks in the control word.
const EXCEPTIONS: u16 = 0x3f;
/// The number of the register ST(0) in the status word.
const TOP: u16 = 7 << 11;
/// The bits of the status word that tell of an unmasked exception: the error summary, and the busy bit.
const SUMMARY: u16 = 1 << 15 | 1 << 7;
/// The number of bytes of an FXSAVE image that are written, without XMM8 to XMM15 and with them.
const IMAGE: usize = 288;
const IMAGE_64: usize = 416;

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Fninit => fninit,
        Mnemonic::Fnclex => fnclex,
        Mnemonic::Fldcw => fldcw,
        Mnemonic::Fnstcw => fnstcw,
        Mnemonic::Fnstsw => fnstsw,
        Mnemonic::Fnstenv => fnstenv,
        Mnemonic::Fldenv => fldenv,
        Mnemonic::Fnsave => fnsave,
        Mnemonic::Frstor => frstor,
        Mnemonic::Wait => wait,
        Mnemonic::Emms => emms,
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => fxsave,
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => fxrstor,
        _ => return None,
    })
}

impl Fpu {
    /// The number of the register ST(0).
    fn top(&self) -> usize {
        usize::from(self.status >> 11 & 7)
    }

    /// The register ST(`number`).
    fn register(&mut self, number: usize) -> &mut [u8; 10] {
        let top = self.top();
        &mut self.registers[(top + number) & 7]
    }

    /// Sets the control word and the status word.
    fn set_words(&mut self, control: u16, status: u16) {
        self.control = control & CONTROL | 0x40;
        let pending = status & !control & EXCEPTIONS != 0;
        self.status = status & !SUMMARY | if pending { SUMMARY } else { 0 };
    }

    /// The tag word, with two bits for each register: valid, zero, special or empty (SDM volume 1, section 8.1.7).
    fn tags(&self) -> u16 {
        let tag = |number: usize| {
            let bytes = &self.registers[number & 7];
            let exponent = u16::from_le_bytes([bytes[8], bytes[9]]) & 0x7fff;
            let is_zero = bytes[..8].iter().all(|byte| *byte == 0);
            match exponent {
                _ if self.tag >> number & 1 == 0 => 3,
                0 if is_zero => 1,
                1..=0x7ffe if bytes[7] & 0x80 != 0 => 0,
                _ => 2,
            }
        };
        (0..8).fold(0, |tags, number| tags | tag(number) << (2 * number))
    }
}

impl<M: Memory> Cpu<M> {
    fn check_x87(&self) -> Result<(), Trap> {
        if self.state.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(Trap::fault(NM));
        }
        Ok(())
    }

    /// Raises the exception that an earlier instruction left pending. An error that is signalled through a pin instead,
    /// because CR0.NE is clear, is not supported.
    fn check_pending(&self) -> Result<(), Trap> {
        match self.state.fpu.status & SUMMARY {
            0 => Ok(()),
            _ if self.state.cr0 & cr0::NE != 0 => Err(Trap::fault(MF)),
            _ => Err(Trap::Unsupported(Missing::FpuInterrupt)),
        }
    }

    /// Checks an access to the `len` bytes of the memory operand. Returns their linear address.
    fn image(&mut self, op: &Op<M>, len: usize, access: Access, unit: u8) -> Result<u64, Trap> {
        let (offset, len, user) = (self.effective_address(op), len as u64, self.is_user());
        let linear = self.linear(op.address.segment.into(), offset, len, access)?;
        self.check_alignment(linear, unit)?;
        if len > 128 && linear & 15 != 0 {
            return Err(Trap::gp());
        }
        self.translate(linear, access, user)?;
        let last = linear.wrapping_add(len.wrapping_sub(1)) & self.linear_mask();
        if (linear ^ last) & !(PAGE - 1) != 0 {
            self.translate(last & !(PAGE - 1), access, user)?;
        }
        Ok(linear)
    }

    fn read_image(&mut self, linear: u64, image: &mut [u8]) -> Result<(), Trap> {
        let user = self.is_user();
        for (number, bytes) in image.chunks_mut(8).enumerate() {
            let at = linear.wrapping_add(8 * number as u64) & self.linear_mask();
            let value = self.load_linear(at, bytes.len() as u8, user)?;
            bytes.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
        Ok(())
    }

    fn write_image(&mut self, linear: u64, image: &[u8]) -> Result<(), Trap> {
        let user = self.is_user();
        for (number, bytes) in image.chunks(8).enumerate() {
            let at = linear.wrapping_add(8 * number as u64) & self.linear_mask();
            self.store_linear(at, bytes.len() as u8, number_at(bytes, 0, bytes.len()), user)?;
        }
        Ok(())
    }

    /// True if the x87 environment has the format of real mode.
    fn has_real_environment(&self) -> bool {
        !self.state.is_protected() || self.state.has(flag::VM)
    }

    /// The image of FNSTENV: 28 bytes, or 14 (SDM volume 1, section 8.1.10).
    fn environment(&self, wide: bool) -> Vec<u8> {
        let fpu = &self.state.fpu;
        let (ip, dp, opcode) = (fpu.instruction as u32, fpu.operand as u32, u32::from(fpu.opcode & 0x7ff));
        let words = [fpu.control, fpu.status, fpu.tags()].map(u32::from);
        if wide {
            let pointers = match self.has_real_environment() {
                true => [ip | 0xffff_0000, ip >> 16 << 12 | opcode, dp | 0xffff_0000, dp >> 16 << 12],
                false => [ip, opcode << 16, dp, 0xffff_0000],
            };
            let words = words.map(|word| word | 0xffff_0000);
            return words.into_iter().chain(pointers).flat_map(u32::to_le_bytes).collect();
        }
        let pointers = match self.has_real_environment() {
            true => [ip, (ip >> 16 & 15) << 12 | opcode, dp, (dp >> 16 & 15) << 12],
            false => [ip, 0, dp, 0],
        };
        words.into_iter().chain(pointers).flat_map(|word| (word as u16).to_le_bytes()).collect()
    }

    /// The state after FLDENV of an image.
    fn loaded_environment(&self, image: &[u8], wide: bool) -> Fpu {
        let unit = if wide { 4 } else { 2 };
        let field = |number: usize| number_at(image, unit * number, unit);
        let mut fpu = self.state.fpu;
        fpu.set_words(field(0) as u16, field(1) as u16);
        fpu.tag = (0..8).fold(0, |tag, number| tag | u8::from(field(2) >> (2 * number) & 3 != 3) << number);
        let (ip, code, dp, data) = (field(3), field(4), field(5), field(6));
        (fpu.instruction, fpu.operand, fpu.opcode) = match (self.has_real_environment(), wide) {
            (false, true) => (ip, dp, (code >> 16) as u16),
            (false, false) => (ip, dp, 0),
            (true, _) => {
                let pointer = |low: u64, high: u64| low & 0xffff | (high >> 12 & 0xffff) << 16;
                (pointer(ip, code), pointer(dp, data), code as u16)
            }
        };
        fpu.opcode &= 0x7ff;
        fpu
    }
}

/// The `len` bytes, at most 8, at `start`, as a number.
fn number_at(bytes: &[u8], start: usize, len: usize) -> u64 {
    bytes.iter().skip(start).take(len).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn fninit<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    cpu.check_x87()?;
    let registers = cpu.state.fpu.registers;
    cpu.state.fpu = Fpu { registers, ..Fpu::default() };
    Ok(())
}

fn fnclex<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    cpu.check_x87()?;
    cpu.state.fpu.status &= 0x7f00;
    Ok(())
}

fn fldcw<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_x87()?;
    cpu.check_pending()?;
    let control = cpu.get(op, 0)? as u16;
    let status = cpu.state.fpu.status;
    cpu.state.fpu.set_words(control, status);
    Ok(())
}

fn fnstcw<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_x87()?;
    cpu.set(op, 0, cpu.state.fpu.control.into())
}

fn fnstsw<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_x87()?;
    cpu.set(op, 0, cpu.state.fpu.status.into())
}

/// Stores the environment, then masks all exceptions.
fn fnstenv<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_x87()?;
    let wide = op.operands[0].size == 28;
    let linear = cpu.image(op, op.operands[0].size.into(), Access::Write, if wide { 4 } else { 2 })?;
    let image = cpu.environment(wide);
    cpu.write_image(linear, &image)?;
    let Fpu { control, status, .. } = cpu.state.fpu;
    cpu.state.fpu.set_words(control | EXCEPTIONS, status);
    Ok(())
}

fn fldenv<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_x87()?;
    cpu.check_pending()?;
    let wide = op.operands[0].size == 28;
    let mut image = vec![0; op.operands[0].size.into()];
    let linear = cpu.image(op, image.len(), Access::Read, if wide { 4 } else { 2 })?;
    cpu.read_image(linear, &mut image)?;
    cpu.state.fpu = cpu.loaded_environment(&image, wide);
    Ok(())
}

/// Stores the environment and the registers, then initializes the unit.
fn fnsave<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_x87()?;
    let wide = op.operands[0].size == 108;
    let linear = cpu.image(op, op.operands[0].size.into(), Access::Write, if wide { 4 } else { 2 })?;
    let mut image = cpu.environment(wide);
    for number in 0..8 {
        image.extend(*cpu.state.fpu.register(number));
    }
    cpu.write_image(linear, &image)?;
    fninit(cpu, op)
}

fn frstor<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_x87()?;
    cpu.check_pending()?;
    let wide = op.operands[0].size == 108;
    let mut image = vec![0; op.operands[0].size.into()];
    let linear = cpu.image(op, image.len(), Access::Read, if wide { 4 } else { 2 })?;
    cpu.read_image(linear, &mut image)?;
    let (environment, registers) = image.split_at(if wide { 28 } else { 14 });
    let mut fpu = cpu.loaded_environment(environment, wide);
    for (number, register) in registers.chunks_exact(10).enumerate() {
        fpu.register(number).copy_from_slice(register);
    }
    cpu.state.fpu = fpu;
    Ok(())
}

/// WAIT, which CR0.TS disturbs only if CR0.MP is set (SDM volume 3, section 2.5).
fn wait<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    if cpu.state.cr0 & cr0::MP != 0 && cpu.state.cr0 & cr0::TS != 0 {
        return Err(Trap::fault(NM));
    }
    cpu.check_pending()
}

fn emms<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    if cpu.state.cr0 & cr0::EM != 0 {
        return Err(Trap::ud());
    }
    cpu.check_x87()?;
    cpu.check_pending()?;
    cpu.state.fpu.tag = 0;
    cpu.state.fpu.status &= !TOP;
    Ok(())
}

impl State {
    /// The x87 and SSE registers as FXSAVE64 stores them (SDM volume 1, section 10.5.1).
    pub fn fx_image(&self) -> [u8; 512] {
        let mut fpu = self.fpu;
        let mut image = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let words = [fpu.control, fpu.status, fpu.tag.into(), fpu.opcode & 0x7ff];
        put(0, &words.map(u16::to_le_bytes).concat());
        put(8, &[fpu.instruction, fpu.operand].map(u64::to_le_bytes).concat());
        put(24, &[self.mxcsr, mxcsr::VALID].map(u32::to_le_bytes).concat());
        for number in 0..8 {
            put(32 + 16 * number, fpu.register(number));
        }
        for (at, register) in (160..).step_by(16).zip(&self.xmm) {
            put(at, &register.to_le_bytes());
        }
        image
    }

    /// Sets the x87 registers from an image of FXSAVE64. Returns false, and changes nothing, if it has a bit in MXCSR that does
    /// not exist.
    pub fn set_fx_image(&mut self, image: &[u8; 512]) -> bool {
        let new_mxcsr = number_at(image, 24, 4) as u32;
        if new_mxcsr & !mxcsr::VALID != 0 {
            return false;
        }
        self.set_x87(image, 8);
        self.mxcsr = new_mxcsr;
        self.set_xmm(&image[160..IMAGE_64]);
        true
    }

    /// Sets the x87 registers from an image, whose pointers have this many bytes.
    fn set_x87(&mut self, image: &[u8], width: usize) {
        let field = |start, len| number_at(image, start, len);
        let fpu = &mut self.fpu;
        fpu.set_words(field(0, 2) as u16, field(2, 2) as u16);
        (fpu.tag, fpu.opcode) = (field(4, 1) as u8, field(6, 2) as u16 & 0x7ff);
        // The pointer to the instruction has 57 bits.
        fpu.instruction = ((field(8, width) as i64) << 7 >> 7) as u64;
        fpu.operand = field(16, width);
        for number in 0..8 {
            let at = 32 + 16 * number;
            fpu.register(number).copy_from_slice(&image[at..at + 10]);
        }
    }

    /// Sets the first XMM registers.
    fn set_xmm(&mut self, bytes: &[u8]) {
        for (register, bytes) in self.xmm.iter_mut().zip(bytes.chunks_exact(16)) {
            *register = bytes.iter().rev().fold(0, |value, byte| value << 8 | u128::from(*byte));
        }
    }
}

/// Stores the state of x87 and SSE (SDM volume 1, table 10-2). The XMM registers and MXCSR are left out if the operating
/// system has not enabled them.
fn fxsave<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_x87()?;
    let linear = cpu.image(op, 512, Access::Write, 4)?;
    let mut image = cpu.state.fx_image();
    if op.insn.mnemonic() == Mnemonic::Fxsave {
        // The pointers have 32 bits.
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    if cpu.state.cr4 & cr4::OSFXSR == 0 {
        cpu.write_image(linear, &image[..24])?;
        return cpu.write_image(linear.wrapping_add(32), &image[32..160]);
    }
    let len = if cpu.state.is_64() { IMAGE_64 } else { IMAGE };
    cpu.write_image(linear, &image[..len])
}

fn fxrstor<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_x87()?;
    let linear = cpu.image(op, 512, Access::Read, 4)?;
    let mut image = [0; IMAGE_64];
    let len = if cpu.state.is_64() { IMAGE_64 } else { IMAGE };
    cpu.read_image(linear, &mut image[..len])?;
    let has_sse = cpu.state.cr4 & cr4::OSFXSR != 0;
    let new_mxcsr = number_at(&image, 24, 4) as u32;
    if has_sse && new_mxcsr & !mxcsr::VALID != 0 {
        return Err(Trap::gp());
    }
    cpu.state.set_x87(&image, if op.insn.mnemonic() == Mnemonic::Fxrstor64 { 8 } else { 4 });
    if has_sse {
        cpu.state.mxcsr = new_mxcsr;
        cpu.state.set_xmm(&image[160..len]);
    }
    Ok(())
}

#[cfg(test)]
#[path = "../tests/x87.rs"]
mod tests;
