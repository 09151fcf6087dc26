//! The next instruction of a vCPU, for a trace.

use super::instruction::{code_bits, decode, format, shown_len};
use super::registers::register_value;
use crate::controller::VcpuState;
use crate::error::Error;
use crate::memory::Gpa;
use crate::x86::modes::Mode;
use crate::x86::probe::Probe;
use crate::x86::registers::{Regs, Sregs};
use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register};

/// The maximum length of an x86 instruction, in bytes.
const MAX_INSTRUCTION: u64 = super::instruction::MAX_INSTRUCTION as u64;

/// The most stores of an instruction that are listed.
const MAX_STORES: usize = 4;

/// A store of an instruction to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// The linear address of the first byte.
    pub linear: u64,
    /// The number of bytes. For a repeated string instruction, that of one iteration.
    pub len: u64,
    /// The instruction may leave it out.
    pub is_conditional: bool,
}

/// The next instruction of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextInstruction {
    /// The linear address.
    pub linear: u64,
    /// The linear address of the instruction after it in memory.
    pub following: u64,
    /// The bytes in hexadecimal, two blanks, and the text. `None` if the instruction cannot be read.
    pub text: Option<String>,
    /// It continues with the instruction after it, unless it raises an exception.
    pub goes_on: bool,
    /// It is a string instruction with a repeat prefix.
    pub repeats: bool,
    /// A processor may take no trap after it: it loads SS, or sets IF.
    pub shadows: bool,
    /// The stores that it makes, also to the stack; at most four.
    pub stores: Vec<Store>,
}

impl NextInstruction {
    /// The instruction at RIP.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn of(vcpu: &mut dyn VcpuState) -> Result<Self, Error> {
        let (regs, sregs) = (vcpu.regs()?, vcpu.sregs()?);
        Ok(Self::at(&regs, &sregs, &Probe::new(vcpu.memory().clone(), sregs)))
    }

    /// The instruction at RIP in this state.
    fn at(regs: &Regs, sregs: &Sregs, probe: &Probe) -> Self {
        let linear = probe.linear(sregs.cs.base, regs.rip);
        let bytes: Vec<u8> =
            (0..MAX_INSTRUCTION).map_while(|at| byte(probe, linear.checked_add(at)?)).collect();
        let Some(instruction) = decode(code_bits(sregs), regs.rip, &bytes) else {
            let following = linear;
            let (text, stores) = (None, Vec::new());
            return Self { linear, following, text, goes_on: false, repeats: false, shadows: false, stores };
        };
        let loads_ss = instruction.op0_register() == Register::SS
            && matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Pop);
        Self {
            linear,
            following: linear.wrapping_add(shown_len(&instruction) as u64),
            text: Some(format(&instruction, &bytes)),
            goes_on: instruction.flow_control() == FlowControl::Next,
            repeats: instruction.is_string_instruction()
                && (instruction.has_rep_prefix() || instruction.has_repne_prefix()),
            shadows: loads_ss || instruction.mnemonic() == Mnemonic::Sti,
            stores: stores(&instruction, regs, sregs, probe),
        }
    }
}

/// The stores that an instruction makes if it raises no exception.
fn stores(instruction: &Instruction, regs: &Regs, sregs: &Sregs, probe: &Probe) -> Vec<Store> {
    let is_64 = code_bits(sregs) == 64;
    let base = |segment: Register| match segment {
        Register::FS => sregs.fs.base,
        Register::GS => sregs.gs.base,
        _ if is_64 => 0,
        Register::CS => sregs.cs.base,
        Register::ES => sregs.es.base,
        Register::SS => sregs.ss.base,
        _ => sregs.ds.base,
    };
    let mut factory = InstructionInfoFactory::new();
    let used = factory.info(instruction).used_memory().iter();
    let store = |used: &iced_x86::UsedMemory| {
        let is_conditional = match used.access() {
            OpAccess::Write | OpAccess::ReadWrite => false,
            OpAccess::CondWrite | OpAccess::ReadCondWrite => true,
            _ => return None,
        };
        let offset = used.virtual_address(0, |register, _, _| register_value(register, regs))?;
        let linear = probe.linear(base(used.segment()), offset);
        // The size of the memory of all iterations is not known.
        let len = match used.memory_size().size() {
            0 => instruction.memory_size().size(),
            len => len,
        };
        Some(Store { linear, len: len as u64, is_conditional })
    };
    used.filter_map(store).take(MAX_STORES).collect()
}

/// A byte at a linear address. `None` if it is not mapped, or not memory.
fn byte(probe: &Probe, linear: u64) -> Option<u8> {
    let Gpa(gpa) = probe.translate_linear(linear).ok()?.gpa;
    let mut byte = [0];
    probe.memory().read(Gpa(gpa), &mut byte).then_some(byte[0])
}

/// The mode that a vCPU with these registers is in.
pub fn mode_of(sregs: &Sregs) -> Mode {
    match crate::controller::Location::of(sregs, 0) {
        crate::controller::Location::At { mode, .. } => mode,
        _ => Mode::Real,
    }
}
