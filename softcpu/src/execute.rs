//! Executes blocks of instructions, one after the other.

use crate::blocks::{Block, Key};
use crate::cpu::{Cpu, RECENT};
use crate::exit::Missing;
use crate::memory::{Memory, PAGE};
use crate::op::Op;
use crate::paging::Access;
use crate::state::flag;
use crate::trap::Trap;

impl<M: Memory> Cpu<M> {
    /// Executes blocks, as far as the run allows, until one goes to another page or to another code segment.
    #[inline]
    pub(crate) fn execute_blocks(&mut self) -> Result<(), Trap> {
        self.execute(if self.is_stepped() { 1 } else { self.left })
    }

    /// True if something happens before or after the next instruction. An instruction that makes it true is the last of its
    /// block, or sets [`leave_block`](Self::leave_block).
    #[inline]
    fn is_stepped(&self) -> bool {
        self.state.rflags & (flag::TF | flag::RF) != 0 || self.shadow
    }

    /// Executes at most `most` instructions.
    pub(crate) fn execute(&mut self, most: u64) -> Result<(), Trap> {
        if !self.state.is_64() {
            self.state.rip &= 0xffff_ffff;
        }
        let rip = self.state.rip;
        let linear = self.code_address(rip)?;
        // The privilege does not change before this function returns: an instruction that may change it ends the chain of
        // blocks.
        let user = self.is_user();
        self.tlb.set_privilege(user);
        let entry = self.translate(linear, Access::Execute, user)?;
        // Code in memory-mapped I/O is not supported.
        let page = entry.page.ok_or(Trap::Unsupported(Missing::CodeMemory))?;
        let mut key = Key { gpa: entry.gpa | linear & (PAGE - 1), rip, bits: self.state.code_bits() };
        let stop = self.left.saturating_sub(most);
        // An instruction that goes on after its exit is no new entry.
        let counts = self.answers.is_empty();
        loop {
            let (block, more_code) = self.blocks.take(key, &self.memory, page);
            if let Some(code) = more_code {
                self.tlb.mark_code(key.gpa, code);
            }
            let Some(block) = block else { return self.execute_uncached() };
            if !self.is_within_limit(key.rip, block.len()) {
                self.blocks.put_back(block, false);
                return self.execute_uncached();
            }
            if counts {
                self.recent[self.next_recent % RECENT] = key.rip;
                self.next_recent =
                    if self.next_recent == 2 * RECENT - 1 { RECENT } else { self.next_recent + 1 };
            }
            let result = self.execute_ops(&block, self.left - stop);
            let chains = block.chains && !self.leave_block;
            self.blocks.put_back(block, counts);
            result?;
            // The next block is in the same page, so that its translation is the same.
            let distance = self.state.rip.wrapping_sub(key.rip);
            let gpa = key.gpa.wrapping_add(distance);
            if !chains || self.left <= stop || (gpa ^ key.gpa) >= PAGE {
                return Ok(());
            }
            (key.gpa, key.rip) = (gpa, self.state.rip);
        }
    }

    /// Executes at most `most` instructions of a block.
    #[inline]
    fn execute_ops(&mut self, block: &Block<M>, most: u64) -> Result<(), Trap> {
        self.leave_block = false;
        if most == 1 {
            return block.ops.first().map_or(Ok(()), |op| self.execute_op(op));
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        // Only the last instruction of a block changes the address of the next one, so it need not be read after each.
        self.next_rip = self.state.rip;
        let mut next_rip = self.state.rip;
        for op in block.ops.iter().take(most) {
            self.state.rip = next_rip;
            next_rip = next_rip.wrapping_add(op.len.into());
            self.next_rip = next_rip;
            (op.run)(self, op)?;
            self.left = self.left.saturating_sub(1);
            if self.leave_block {
                break;
            }
        }
        self.state.rip = self.next_rip;
        Ok(())
    }

    /// Executes one instruction, and the traps after it.
    #[inline]
    pub(crate) fn execute_op(&mut self, op: &Op<M>) -> Result<(), Trap> {
        if self.is_stepped() {
            return self.execute_stepped(op);
        }
        self.execute_plain(op)
    }

    /// Executes one instruction.
    #[inline]
    pub(crate) fn execute_plain(&mut self, op: &Op<M>) -> Result<(), Trap> {
        self.next_rip = self.state.rip.wrapping_add(op.len.into());
        (op.run)(self, op)?;
        self.state.rip = self.next_rip;
        self.left = self.left.saturating_sub(1);
        Ok(())
    }

    /// The guest has written `len` bytes at a physical address, in one page: forgets the code that was decoded from them.
    pub(crate) fn code_written(&mut self, gpa: u64, len: u64) {
        if self.blocks.remove(gpa, len) {
            self.leave_block = true;
        }
    }
}
