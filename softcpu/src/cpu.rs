//! The processor: its parts, its exits and the answers to them.

use crate::blocks::Blocks;
use crate::cpuid::CpuidLeaf;
use crate::debug::Watch;
use crate::exit::{Death, Delivery, Exit, Missing};
use crate::memory::Memory;
use crate::state::{State, flag, seg};
use crate::tlb::Tlb;
use crate::trap::{Exception, Trap};

/// The number of block entries that [`Cpu::recent`] remembers.
pub(crate) const RECENT: usize = 64;
/// The number of deliveries that [`Cpu::origins`] remembers.
pub(crate) const ORIGINS: usize = 8;

/// An x86 processor.
pub struct Cpu<M: Memory> {
    /// The registers.
    pub state: State,
    pub(crate) memory: M,
    pub(crate) tlb: Tlb<M::Page>,
    pub(crate) blocks: Blocks<M>,
    /// RIP after the instruction that is executed. A branch changes it.
    pub(crate) next_rip: u64,
    /// The number of instructions that may still be executed in this run.
    pub(crate) left: u64,
    /// The number of instructions that this run may execute.
    pub(crate) allowed: u64,
    /// The number of instructions that were executed before this run.
    executed: u64,
    /// The access that needs an answer.
    pub(crate) pending: Option<Exit>,
    /// The answer to the last exit.
    reply: Option<Reply>,
    /// The answers to the accesses of the instruction that is executed again.
    pub(crate) answers: Vec<u64>,
    /// The index of the next one.
    pub(crate) next_answer: usize,
    /// The code or its translation may have changed, so the next instruction is looked up anew.
    pub(crate) leave_block: bool,
    /// The instruction before this one was a MOV SS, POP SS or STI, after which no trap or interrupt is taken.
    pub(crate) shadow: bool,
    /// The instruction that is executed with RFLAGS.TF set raises no single-step trap.
    pub(crate) skip_single_step: bool,
    /// The exception that is delivered first in the next run: an access of its delivery needs an answer, or it is the
    /// single-step trap after a HLT.
    pub(crate) undelivered: Option<Exception>,
    pub(crate) death: Option<Death>,
    /// The last exception or interrupt that was delivered.
    pub(crate) last_delivery: Option<Delivery>,
    /// The last ones whose instruction was not the first one of a handler, a ring.
    pub(crate) origins: [Option<Delivery>; ORIGINS],
    pub(crate) next_origin: usize,
    /// The first one in real mode whose entry of the interrupt vector table was zero.
    pub(crate) first_empty: Option<Delivery>,
    /// The CPUID leaves.
    pub(crate) cpuid: Vec<CpuidLeaf>,
    /// The model-specific registers whose accesses are exits.
    pub(crate) trapped_msrs: Vec<u32>,
    /// The addresses of the blocks that were entered last, a ring.
    pub(crate) recent: [u64; RECENT],
    pub(crate) next_recent: usize,
    /// The addresses whose accesses a debugger wants to know of.
    pub(crate) watches: Vec<Watch>,
    /// The index of the first of them that was met.
    pub(crate) hit: Option<usize>,
    /// The last instruction is to be started again.
    pub(crate) starts_again: bool,
}

/// The answer to an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Value(u64),
    Refused,
}

impl<M: Memory> Cpu<M> {
    /// A processor after a reset (SDM volume 3, section 10.1).
    pub fn new(memory: M) -> Self {
        Self {
            state: State::default(),
            memory,
            tlb: Tlb::new(),
            blocks: Blocks::new(),
            next_rip: 0,
            left: 0,
            allowed: 0,
            executed: 0,
            pending: None,
            reply: None,
            answers: Vec::new(),
            next_answer: 0,
            leave_block: false,
            shadow: false,
            skip_single_step: false,
            undelivered: None,
            death: None,
            last_delivery: None,
            origins: [None; ORIGINS],
            next_origin: 0,
            first_empty: None,
            cpuid: Vec::new(),
            trapped_msrs: Vec::new(),
            recent: [0; RECENT],
            next_recent: 0,
            watches: Vec::new(),
            hit: None,
            starts_again: false,
        }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Makes CS a real-mode segment with this base.
    pub fn set_code_segment_base(&mut self, base: u64) {
        let code = &mut self.state.segments[seg::CS];
        (code.selector, code.base) = ((base >> 4) as u16, base);
    }

    /// Sets the CPUID leaves. A leaf that is not among them reads as zero.
    pub fn set_cpuid(&mut self, leaves: Vec<CpuidLeaf>) {
        self.cpuid = leaves;
    }

    /// Makes accesses to these model-specific registers exits.
    pub fn trap_msrs(&mut self, indices: Vec<u32>) {
        self.trapped_msrs = indices;
    }

    /// The caller has changed registers in [`state`](Self::state): forgets what was derived from them, and the access of
    /// the last exit.
    pub fn state_changed(&mut self) {
        self.flush_translations();
        self.forget_exit();
    }

    /// The caller has changed control or segment registers between an exit and its answer: forgets the translations.
    pub fn flush_translations(&mut self) {
        self.tlb.flush();
        self.tlb.set_privilege(self.is_user());
    }

    /// True if the next instruction completes before an interrupt is taken: it follows a load of SS or an STI.
    pub fn is_in_shadow(&self) -> bool {
        self.shadow
    }

    /// Forgets the access of the last exit: the instruction will be executed from its start.
    pub fn forget_exit(&mut self) {
        self.pending = None;
        self.undelivered = None;
        self.reply = None;
        self.forget_answers();
    }

    /// Resets the processor: all registers, the time-stamp counter and the history. The CPUID leaves, the trapped
    /// registers and the decoded code stay.
    pub fn reset(&mut self) {
        self.state = State::default();
        (self.allowed, self.left, self.executed) = (0, 0, 0);
        (self.leave_block, self.shadow, self.death) = (false, false, None);
        (self.last_delivery, self.first_empty) = (None, None);
        (self.origins, self.next_origin) = ([None; ORIGINS], 0);
        self.next_recent = 0;
        self.blocks.forget_counts();
        self.state_changed();
    }

    /// Answers the last exit with a value.
    pub fn answer(&mut self, value: u64) {
        self.reply = Some(Reply::Value(value));
    }

    /// Answers the last exit, an access to a model-specific register, with #GP(0).
    pub fn refuse(&mut self) {
        self.reply = Some(Reply::Refused);
    }

    /// The faults of the triple fault after which [`run`](Self::run) returned [`Exit::Shutdown`].
    pub fn death(&self) -> Option<&Death> {
        self.death.as_ref()
    }

    /// The last exception or software interrupt whose handler was entered.
    pub fn last_delivery(&self) -> Option<&Delivery> {
        self.last_delivery.as_ref()
    }

    /// The last 8 exceptions and software interrupts whose handlers were entered, newest first, without those of the first
    /// instruction of a handler: a handler that cannot be executed raises these without end.
    pub fn origins(&self) -> impl Iterator<Item = &Delivery> {
        let (newer, older) = self.origins.split_at(self.next_origin % ORIGINS);
        newer.iter().rev().chain(older.iter().rev()).flatten()
    }

    /// The first exception or software interrupt that went through an entry of the interrupt vector table that is zero, to
    /// 0000:0000. A guest that has no handler there executes what is at address 0, and may cause any others.
    pub fn first_empty_delivery(&self) -> Option<&Delivery> {
        self.first_empty.as_ref()
    }

    /// The number of instructions that were executed. An iteration of a repeated string instruction counts as one.
    #[inline]
    pub fn instructions(&self) -> u64 {
        self.executed.wrapping_add(self.allowed.wrapping_sub(self.left))
    }

    /// The time-stamp counter.
    #[inline]
    pub(crate) fn tsc(&self) -> u64 {
        self.instructions().wrapping_add(self.state.tsc_offset)
    }

    /// The addresses (RIP) of the blocks of code that were entered last, oldest first.
    pub fn recent(&self) -> impl Iterator<Item = u64> {
        let (newer, older) = self.recent.split_at(self.next_recent % RECENT);
        let known = self.next_recent.min(RECENT);
        older.iter().chain(newer).copied().skip(RECENT - known)
    }

    /// The number of bytes of the block of code that begins at `rip`, and the number of times that it was entered. `None`
    /// if it is not known any more.
    pub fn block(&self, rip: u64) -> Option<(u64, u64)> {
        let mut blocks = self.blocks.iter().filter(|block| block.key.rip == rip);
        blocks.next().map(|block| (block.len(), block.entered))
    }

    /// Executes at most `instructions` instructions, until an exit. Memory may have changed since the last run.
    pub fn run(&mut self, instructions: u64) -> Exit {
        self.executed = self.instructions();
        (self.allowed, self.left) = (instructions, instructions);
        self.blocks.epoch = self.blocks.epoch.wrapping_add(1);
        if self.state.has(flag::VM) && self.state.is_protected() {
            // Virtual-8086 mode. The guest cannot enter it.
            return Exit::Unsupported(Missing::Virtual8086);
        }
        if let Some(exit) = self.complete_exit() {
            return exit;
        }
        loop {
            if self.left == 0 {
                return Exit::SliceEnd;
            }
            let Err(trap) = self.execute_blocks() else { continue };
            if let Some(exit) = self.handle(trap) {
                return exit;
            }
        }
    }

    /// Executes the instruction of the last exit again, or delivers its exception again, now with an answer.
    fn complete_exit(&mut self) -> Option<Exit> {
        let Some(pending) = self.pending.take() else {
            let exception = self.undelivered.take()?;
            return self.deliver_exception(exception);
        };
        match self.reply.take().unwrap_or(Reply::Value(u64::MAX)) {
            Reply::Refused if matches!(pending, Exit::RdMsr { .. } | Exit::WrMsr { .. }) => {
                return self.handle(Trap::gp());
            }
            Reply::Refused => self.answers.push(u64::MAX),
            Reply::Value(value) => self.answers.push(value),
        }
        self.next_answer = 0;
        // At least this instruction is executed.
        (self.allowed, self.left) = (self.allowed.max(1), self.left.max(1));
        if let Some(exception) = self.undelivered.take() {
            return self.deliver_exception(exception);
        }
        let result = self.execute(1);
        match result {
            Err(Trap::Exit) => {}
            _ => self.forget_answers(),
        }
        result.err().and_then(|trap| self.handle(trap))
    }

    fn forget_answers(&mut self) {
        self.answers.clear();
        self.next_answer = 0;
    }

    /// Handles the end of an instruction that is not complete. Returns an exit, or `None` if the guest goes on.
    fn handle(&mut self, trap: Trap) -> Option<Exit> {
        match trap {
            Trap::Again => {
                self.starts_again = true;
                None
            }
            Trap::Exit => {
                self.next_answer = 0;
                Some(self.pending.unwrap_or(Exit::Unsupported(Missing::Instruction)))
            }
            Trap::Halted => Some(Exit::Halted),
            Trap::Unsupported(missing) => Some(Exit::Unsupported(missing)),
            Trap::Fault(exception) => {
                // The answers of the instruction, which is not executed again.
                self.forget_answers();
                self.shadow = false;
                // A fault counts as an instruction: a guest whose handlers fault at once must not run for ever.
                if !exception.is_single_step() {
                    self.left = self.left.saturating_sub(1);
                }
                self.deliver_exception(exception)
            }
        }
    }

    /// Delivers an exception. Returns an exit, or `None` if the guest goes on.
    fn deliver_exception(&mut self, exception: Exception) -> Option<Exit> {
        let Err(trap) = self.raise(exception) else {
            self.forget_answers();
            return None;
        };
        match trap {
            Trap::Exit => {
                self.next_answer = 0;
                self.undelivered = Some(exception);
                Some(self.pending.unwrap_or(Exit::Unsupported(Missing::Instruction)))
            }
            // `raise` returns a fault only for the third one.
            Trap::Fault(_) => Some(Exit::Shutdown),
            other => self.handle(other),
        }
    }
}

#[cfg(test)]
#[path = "tests/cpu.rs"]
mod tests;
