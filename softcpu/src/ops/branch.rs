//! Near branches, and conditions (SDM volume 1, section 7.3.8).

use crate::cpu::Cpu;
use crate::linear::is_canonical;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::state::{flag, seg};
use crate::trap::Trap;
use iced_x86::{ConditionCode, FlowControl, Instruction};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    if insn.is_jcc_short_or_near() {
        return Some(jcc);
    }
    if insn.is_jmp_short_or_near() {
        return Some(jmp);
    }
    let _ = FlowControl::Next;
    None
}

/// True if the flags meet a condition (SDM volume 1, appendix B).
#[inline]
pub(crate) fn meets(rflags: u64, condition: ConditionCode) -> bool {
    let has = |flag: u64| rflags & flag != 0;
    let less = has(flag::SF) != has(flag::OF);
    match condition {
        ConditionCode::None => true,
        ConditionCode::o => has(flag::OF),
        ConditionCode::no => !has(flag::OF),
        ConditionCode::b => has(flag::CF),
        ConditionCode::ae => !has(flag::CF),
        ConditionCode::e => has(flag::ZF),
        ConditionCode::ne => !has(flag::ZF),
        ConditionCode::be => has(flag::CF | flag::ZF),
        ConditionCode::a => !has(flag::CF | flag::ZF),
        ConditionCode::s => has(flag::SF),
        ConditionCode::ns => !has(flag::SF),
        ConditionCode::p => has(flag::PF),
        ConditionCode::np => !has(flag::PF),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || has(flag::ZF),
        ConditionCode::g => !less && !has(flag::ZF),
    }
}

impl<M: Memory> Cpu<M> {
    /// Continues at `target` in the same code segment, after this instruction.
    ///
    /// # Errors
    /// #GP(0): the target is not canonical, or is outside of the segment.
    #[inline]
    pub(crate) fn jump(&mut self, target: u64) -> Result<(), Trap> {
        let valid = match self.state.is_64() {
            true => is_canonical(target),
            false => target <= self.state.segments[seg::CS].limit.into(),
        };
        if !valid {
            return Err(Trap::gp());
        }
        self.next_rip = target;
        Ok(())
    }
}

fn jmp<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.jump(op.insn.near_branch_target())
}

fn jcc<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    if meets(cpu.state.rflags, op.insn.condition_code()) {
        return cpu.jump(op.insn.near_branch_target());
    }
    Ok(())
}
