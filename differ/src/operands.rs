//! Makes the operands of instructions.

use crate::generate::{address, good_address};
use crate::program::Config;
use crate::values::{integer, pick};
use fastrand::Rng;
use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register};
use softcpu::State;

/// Chooses operands for the instructions of one program.
pub struct Maker {
    /// The registers at the start.
    gpr: [u64; 16],
    bits: u32,
    config: Config,
    /// Registers that hold addresses.
    pointers: Vec<usize>,
    /// A register with a small number.
    small: usize,
}

const BYTES: [Register; 16] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::SPL,
    Register::BPL,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
];
const HIGH: [Register; 4] = [Register::AH, Register::CH, Register::DH, Register::BH];
/// The bases and indices of 16-bit addresses.
const PAIRS: [(Register, Register); 7] = [
    (Register::BX, Register::SI),
    (Register::BX, Register::DI),
    (Register::BP, Register::SI),
    (Register::SI, Register::None),
    (Register::DI, Register::None),
    (Register::BP, Register::None),
    (Register::BX, Register::None),
];

fn general(number: usize, size: u32) -> Register {
    let number = number as u32;
    match size {
        1 => BYTES[number as usize],
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

impl Maker {
    pub fn new(state: &State, bits: u32, config: Config) -> Self {
        let mut pointers = vec![3, 6, 7];
        if bits == 64 {
            let values = (8..16).filter(|number| (0x1_4000..0x1_d000).contains(&state.gpr[*number]));
            pointers.extend(values);
        }
        Self { gpr: state.gpr, bits, config, pointers, small: 1 }
    }

    fn registers(&self) -> usize {
        if self.bits == 64 { 16 } else { 8 }
    }

    /// A general register. `written`: it is the destination, which is rarely an address.
    fn register(&self, size: u32, written: bool, rng: &mut Rng) -> Register {
        let mut number = rng.usize(..self.registers());
        for _ in 0..4 {
            let spared = matches!(number, 4) || self.pointers.contains(&number) && rng.u8(..4) != 0;
            if !written || !spared {
                break;
            }
            number = rng.usize(..self.registers());
        }
        if size == 1 && (self.bits != 64 || rng.u8(..6) == 0) {
            return if (4..8).contains(&number) { HIGH[number & 3] } else { BYTES[number & 3] };
        }
        general(number, size)
    }

    /// Makes an instruction. `None` if its operands are not known.
    pub fn instruction(&self, code: Code, rip: u64, rng: &mut Rng) -> Option<Instruction> {
        let mut insn = Instruction::default();
        insn.set_code(code);
        let info = code.op_code();
        for (number, kind) in info.op_kinds().iter().enumerate() {
            self.operand(&mut insn, number as u32, *kind, rip, rng)?;
        }
        let memory = (0..insn.op_count()).any(|number| insn.op_kind(number) == OpKind::Memory);
        if memory && insn.op0_kind() == OpKind::Memory && info.can_use_lock_prefix() && rng.u8(..4) == 0 {
            insn.set_has_lock_prefix(true);
        }
        if info.can_use_rep_prefix() && rng.bool() {
            insn.set_has_rep_prefix(true);
        } else if info.can_use_repne_prefix() && info.can_use_rep_prefix() && rng.bool() {
            insn.set_has_repne_prefix(true);
        }
        if memory && rng.u8(..12) == 0 {
            let segments =
                [Register::ES, Register::SS, Register::DS, Register::FS, Register::GS, Register::CS];
            insn.set_segment_prefix(*pick(rng, &segments));
        }
        Some(insn)
    }

    fn operand(
        &self,
        insn: &mut Instruction,
        number: u32,
        kind: Kind,
        rip: u64,
        rng: &mut Rng,
    ) -> Option<()> {
        let written = number == 0;
        let register = match kind {
            Kind::r8_or_mem | Kind::r16_or_mem | Kind::r32_or_mem | Kind::r64_or_mem | Kind::xmm_or_mem => {
                if rng.bool() {
                    return self.memory(insn, number, rip, rng);
                }
                match kind {
                    Kind::r8_or_mem => self.register(1, written, rng),
                    Kind::r16_or_mem => self.register(2, written, rng),
                    Kind::r32_or_mem => self.register(4, written, rng),
                    Kind::r64_or_mem => self.register(8, written, rng),
                    _ => self.xmm(rng),
                }
            }
            Kind::mem => return self.memory(insn, number, rip, rng),
            Kind::mem_offs => return self.offset(insn, number, rng),
            Kind::r8_reg | Kind::r8_opcode => self.register(1, written, rng),
            Kind::r16_reg | Kind::r16_rm | Kind::r16_opcode => self.register(2, written, rng),
            Kind::r32_reg | Kind::r32_rm | Kind::r32_opcode | Kind::r32_vvvv => {
                self.register(4, written, rng)
            }
            Kind::r64_reg | Kind::r64_rm | Kind::r64_opcode | Kind::r64_vvvv => {
                self.register(8, written, rng)
            }
            Kind::xmm_reg | Kind::xmm_rm => self.xmm(rng),
            Kind::seg_reg => Register::ES + rng.u32(..6),
            Kind::cr_reg => {
                *pick(rng, &[Register::CR0, Register::CR2, Register::CR3, Register::CR4, Register::CR8])
            }
            Kind::dr_reg => Register::DR0 + rng.u32(..8),
            Kind::es => Register::ES,
            Kind::cs => Register::CS,
            Kind::ss => Register::SS,
            Kind::ds => Register::DS,
            Kind::fs => Register::FS,
            Kind::gs => Register::GS,
            Kind::al => Register::AL,
            Kind::cl => Register::CL,
            Kind::ax => Register::AX,
            Kind::dx => Register::DX,
            Kind::eax => Register::EAX,
            Kind::rax => Register::RAX,
            _ => return self.special(insn, number, kind, rip, rng),
        };
        let register =
            if matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
                && number == 1
                && insn.op0_kind() == OpKind::Memory
                && rng.u8(..8) != 0
            {
                general(self.small, register.size() as u32)
            } else {
                register
            };
        insn.set_op_register(number, register);
        Some(())
    }

    fn xmm(&self, rng: &mut Rng) -> Register {
        Register::XMM0 + rng.u32(..self.registers() as u32)
    }

    /// Immediate values, branches and implicit memory.
    fn special(
        &self,
        insn: &mut Instruction,
        number: u32,
        kind: Kind,
        rip: u64,
        rng: &mut Rng,
    ) -> Option<()> {
        let value = integer(rng);
        let op_kind = match kind {
            Kind::imm8 if number == 1 && insn.mnemonic() == Mnemonic::Enter => OpKind::Immediate8_2nd,
            Kind::imm8 => OpKind::Immediate8,
            Kind::imm8_const_1 => {
                insn.set_op_kind(number, OpKind::Immediate8);
                insn.set_immediate8(1);
                return Some(());
            }
            Kind::imm8sex16 => OpKind::Immediate8to16,
            Kind::imm8sex32 => OpKind::Immediate8to32,
            Kind::imm8sex64 => OpKind::Immediate8to64,
            Kind::imm16 => OpKind::Immediate16,
            Kind::imm32 => OpKind::Immediate32,
            Kind::imm32sex64 => OpKind::Immediate32to64,
            Kind::imm64 => OpKind::Immediate64,
            Kind::br16_1 | Kind::br16_2 => OpKind::NearBranch16,
            Kind::br32_1 | Kind::br32_4 => OpKind::NearBranch32,
            Kind::br64_1 | Kind::br64_4 => OpKind::NearBranch64,
            Kind::farbr2_2 => OpKind::FarBranch16,
            Kind::farbr4_2 => OpKind::FarBranch32,
            _ => return self.implicit(insn, number, kind, rng),
        };
        insn.set_op_kind(number, op_kind);
        match op_kind {
            // A host without hardware virtualization does not raise #GP for other interrupts in ring 3.
            OpKind::Immediate8 if insn.mnemonic() == Mnemonic::Int && self.config == Config::User => {
                insn.set_immediate8(3 + rng.u8(..2));
            }
            OpKind::Immediate8 => insn.set_immediate8(value as u8),
            OpKind::Immediate8_2nd => {
                insn.set_immediate8_2nd(if rng.u8(..4) == 0 { value as u8 } else { value as u8 & 3 });
            }
            OpKind::Immediate8to16 => insn.set_immediate8to16((value as i8).into()),
            OpKind::Immediate8to32 => insn.set_immediate8to32((value as i8).into()),
            OpKind::Immediate8to64 => insn.set_immediate8to64((value as i8).into()),
            OpKind::Immediate16
                if matches!(insn.mnemonic(), Mnemonic::Enter | Mnemonic::Ret) && rng.u8(..4) != 0 =>
            {
                insn.set_immediate16(value as u16 & 0x7f);
            }
            OpKind::Immediate16 => insn.set_immediate16(value as u16),
            OpKind::Immediate32 => insn.set_immediate32(value as u32),
            OpKind::Immediate32to64 => insn.set_immediate32to64((value as i32).into()),
            OpKind::Immediate64 => insn.set_immediate64(value),
            OpKind::NearBranch16 => insn.set_near_branch16(rip as u16),
            OpKind::NearBranch32 => insn.set_near_branch32(rip as u32),
            OpKind::NearBranch64 => insn.set_near_branch64(rip),
            OpKind::FarBranch16 => {
                insn.set_far_branch16(rip as u16);
                insn.set_far_branch_selector(self.selector(rng));
            }
            _ => {
                insn.set_far_branch32(rip as u32);
                insn.set_far_branch_selector(self.selector(rng));
            }
        }
        Some(())
    }

    fn selector(&self, rng: &mut Rng) -> u16 {
        match self.config {
            Config::Real => 0x1100,
            _ => (rng.u16(..20) << 3) | if rng.u8(..4) == 0 { rng.u16(..4) } else { 0 },
        }
    }

    /// The memory operands of string instructions and the like.
    fn implicit(&self, insn: &mut Instruction, number: u32, kind: Kind, rng: &mut Rng) -> Option<()> {
        // Most have the address size of the code.
        let choices: &[u32] = match self.bits {
            64 => &[64, 64, 64, 32],
            32 => &[32, 32, 32, 16],
            _ => &[16, 16, 16, 32],
        };
        // Both operands of an instruction have the same address size.
        let size = match (number, insn.op0_kind()) {
            (1, OpKind::MemoryESDI | OpKind::MemorySegSI) => 16,
            (1, OpKind::MemoryESEDI | OpKind::MemorySegESI) => 32,
            (1, OpKind::MemoryESRDI | OpKind::MemorySegRSI) => 64,
            _ => *pick(rng, choices),
        };
        let op_kind = match (kind, size) {
            (Kind::seg_rSI, 16) => OpKind::MemorySegSI,
            (Kind::seg_rSI, 32) => OpKind::MemorySegESI,
            (Kind::seg_rSI, _) => OpKind::MemorySegRSI,
            (Kind::es_rDI, 16) => OpKind::MemoryESDI,
            (Kind::es_rDI, 32) => OpKind::MemoryESEDI,
            (Kind::es_rDI, _) => OpKind::MemoryESRDI,
            (Kind::seg_rDI, 16) => OpKind::MemorySegDI,
            (Kind::seg_rDI, 32) => OpKind::MemorySegEDI,
            (Kind::seg_rDI, _) => OpKind::MemorySegRDI,
            (Kind::seg_rBX_al, _) => {
                insn.set_op_kind(number, OpKind::Memory);
                insn.set_memory_base(general(3, size / 8));
                insn.set_memory_index(Register::AL);
                return Some(());
            }
            _ => return None,
        };
        insn.set_op_kind(number, op_kind);
        Some(())
    }

    /// An address without registers.
    fn offset(&self, insn: &mut Instruction, number: u32, rng: &mut Rng) -> Option<()> {
        insn.set_op_kind(number, OpKind::Memory);
        let mut at = address(rng);
        insn.set_memory_displ_size(match self.bits {
            64 => *pick(rng, &[8, 8, 4]),
            32 => 4,
            _ => 2,
        });
        if self.bits == 16 {
            at &= 0xfff;
        }
        insn.set_memory_displacement64(if insn.memory_displ_size() == 4 { at & 0xffff_ffff } else { at });
        Some(())
    }

    /// A memory operand that most likely has an address of data.
    fn memory(&self, insn: &mut Instruction, number: u32, rip: u64, rng: &mut Rng) -> Option<()> {
        insn.set_op_kind(number, OpKind::Memory);
        let info = insn.op_code();
        let size = info.memory_size().size() as u64;
        let mut target = if rng.u8(..4) == 0 { address(rng) } else { good_address(rng) };
        if size >= 16 && rng.u8(..12) != 0 || rng.u8(..3) == 0 {
            target &= !15;
        }
        let size16 = match self.bits {
            64 => false,
            32 => rng.u8(..8) == 0,
            _ => rng.u8(..6) != 0,
        };
        if size16 {
            let (base, index) = *pick(rng, &PAIRS);
            insn.set_memory_base(base);
            insn.set_memory_index(index);
            insn.set_memory_displ_size(*pick(rng, &[1, 1, 2]));
            insn.set_memory_displacement64((rng.i16(-128..128) as u16).into());
            return Some(());
        }
        let wide = self.bits == 64 && rng.u8(..10) != 0;
        let size = if wide { 8 } else { 4 };
        let mask = if wide { u64::MAX } else { 0xffff_ffff };
        if self.bits == 64 && rng.u8(..10) == 0 {
            insn.set_memory_base(if wide { Register::RIP } else { Register::EIP });
            let near = rip.wrapping_add((target.wrapping_sub(rip) as i32) as i64 as u64);
            insn.set_memory_displacement64(near & mask);
            insn.set_memory_displ_size(size);
            return Some(());
        }
        let mut sum = 0u64;
        if rng.u8(..10) != 0 {
            let base =
                if rng.u8(..8) == 0 { rng.usize(..self.registers()) } else { *pick(rng, &self.pointers) };
            sum = self.gpr[base];
            insn.set_memory_base(general(base, size));
        }
        if rng.u8(..3) == 0 {
            let mut index = if rng.bool() { self.small } else { rng.usize(..self.registers()) };
            if index == 4 {
                index = self.small;
            }
            let scale = 1 << rng.u32(..4);
            sum = sum.wrapping_add(self.gpr[index].wrapping_mul(scale));
            insn.set_memory_index(general(index, size));
            insn.set_memory_index_scale(scale as u32);
        }
        let mut displacement = target.wrapping_sub(sum) & mask;
        if self.config.is_segmented() {
            displacement = rng.u64(..0x100);
        }
        if wide && displacement as i32 as i64 as u64 != displacement {
            displacement = rng.i8(..) as i64 as u64;
        }
        insn.set_memory_displacement64(displacement);
        insn.set_memory_displ_size(if displacement == 0 && rng.bool() {
            0
        } else {
            *pick(rng, &[1, 1, 1, size])
        });
        if insn.memory_base() == Register::None && insn.memory_index() == Register::None {
            insn.set_memory_displ_size(size);
        }
        Some(())
    }
}
