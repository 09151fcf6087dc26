//! Decoded code: blocks of instructions that are executed one after the other.
//!
//! A block begins at an instruction, and ends at the first instruction that may go elsewhere, at the end of its page, or
//! after [`MAX_OPS`] instructions. It is found by its physical address. A store of the guest into its bytes removes it. The
//! program may change memory between two runs, so a block compares its bytes with memory at its first use in each run.

use crate::memory::{Memory, PAGE};
use crate::op::Op;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use std::collections::HashMap;

/// The most instructions of a block.
const MAX_OPS: usize = 32;
/// The number of blocks that are kept.
const SLOTS: usize = 4096;
/// The number of pages that are known to have code. If there are more, all blocks are removed.
const MAX_PAGES: usize = 8192;
/// The bytes of a page that one bit of [`PageCode::granules`] stands for.
const GRANULE: u64 = PAGE / 64;
/// The maximum length of an instruction, in bytes.
pub(crate) const MAX_INSTRUCTION: usize = 15;

/// The place of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// The physical address of the first instruction.
    pub(crate) gpa: u64,
    /// RIP at the first instruction.
    pub(crate) rip: u64,
    /// The default width of the code, in bits.
    pub(crate) bits: u32,
}

impl Key {
    fn slot(&self) -> usize {
        (self.gpa ^ self.gpa >> 12 ^ self.rip >> 8) as usize & (SLOTS - 1)
    }
}

/// A sequence of instructions.
pub(crate) struct Block<M: Memory> {
    pub(crate) key: Key,
    pub(crate) ops: Box<[Op<M>]>,
    bytes: Box<[u8]>,
    /// The run in which the bytes were last compared with memory.
    epoch: u64,
    /// The number of times that the block was entered.
    pub(crate) entered: u64,
    /// The next instruction is in the same code segment, with the same rights.
    pub(crate) chains: bool,
}

impl<M: Memory> Block<M> {
    /// The physical address after the last byte.
    fn end(&self) -> u64 {
        self.key.gpa + self.bytes.len() as u64
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// The blocks of a page.
#[derive(Default)]
struct PageCode {
    /// A bit for each 64 bytes of the page that contain code.
    granules: u64,
    slots: Vec<u16>,
}

/// The decoded code.
pub(crate) struct Blocks<M: Memory> {
    slots: Vec<Option<Box<Block<M>>>>,
    pages: HashMap<u64, PageCode>,
    /// The block that is executed, which is not in its slot. `None` if it was removed meanwhile.
    current: Option<(u64, u64)>,
    /// The number of the current run.
    pub(crate) epoch: u64,
}

impl<M: Memory> Blocks<M> {
    pub(crate) fn new() -> Self {
        let slots = std::iter::repeat_with(|| None).take(SLOTS).collect();
        Self { slots, pages: HashMap::new(), current: None, epoch: 0 }
    }

    /// The parts of the page at `gpa` from which blocks were decoded, as in [`granules`].
    pub(crate) fn code_of(&self, gpa: u64) -> u64 {
        self.pages.get(&(gpa & !(PAGE - 1))).map_or(0, |page| page.granules)
    }

    /// Takes the block at `key` out of its slot, to execute it. `page` is the page of its code. Returns with it the parts of
    /// its page that have code, if these are now more. A block without instructions is not kept: its first instruction
    /// crosses the end of the page.
    pub(crate) fn take(
        &mut self,
        key: Key,
        memory: &M,
        page: M::Page,
    ) -> (Option<Box<Block<M>>>, Option<u64>) {
        let slot = &mut self.slots[key.slot()];
        let found = slot.take_if(|block| block.key == key);
        let (block, more_code) = match found {
            Some(mut block) if block.epoch == self.epoch || is_same(&block, memory, page) => {
                block.epoch = self.epoch;
                (block, None)
            }
            changed => {
                if let Some(block) = changed {
                    self.forget(&block);
                }
                let Some(block) = decode(key, memory, page, self.epoch) else { return (None, None) };
                let before = self.code_of(key.gpa);
                let now = self.register(&block);
                (block, (now != before).then_some(now))
            }
        };
        self.current = Some((key.gpa, block.end()));
        (Some(block), more_code)
    }

    /// Puts a block back after it was executed. `counts` if this was an entry, and not the rest of an instruction.
    pub(crate) fn put_back(&mut self, mut block: Box<Block<M>>, counts: bool) {
        if self.current.take().is_none() {
            return;
        }
        block.entered = block.entered.wrapping_add(counts.into());
        let slot = block.key.slot();
        if let Some(other) = self.slots[slot].replace(block) {
            self.forget(&other);
        }
    }

    /// Removes the blocks that contain a byte of this range, which is in one page. Returns true if one of them is being
    /// executed.
    pub(crate) fn remove(&mut self, gpa: u64, len: u64) -> bool {
        let Some(page) = self.pages.get_mut(&(gpa & !(PAGE - 1))) else { return false };
        let end = gpa + len;
        if page.granules & granules(gpa, end) == 0 {
            return false;
        }
        let overlaps = |start: u64, stop: u64| start < end && gpa < stop;
        let slots = &mut self.slots;
        page.slots.retain(|slot| {
            let slot = &mut slots[usize::from(*slot)];
            slot.take_if(|block| overlaps(block.key.gpa, block.end())).is_none()
        });
        match self.current {
            Some((start, stop)) if overlaps(start, stop) => {
                self.current = None;
                true
            }
            _ => false,
        }
    }

    /// The number of pages with blocks.
    #[cfg(test)]
    pub(crate) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Removes all blocks.
    fn clear(&mut self) {
        self.slots.iter_mut().for_each(|slot| *slot = None);
        self.pages.clear();
        self.current = None;
    }

    /// Sets the number of times that each block was entered to 0.
    pub(crate) fn forget_counts(&mut self) {
        self.slots.iter_mut().flatten().for_each(|block| block.entered = 0);
    }

    /// The blocks, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Block<M>> {
        self.slots.iter().flatten().map(|block| &**block)
    }

    /// Notes a block in its page. Returns the parts of the page that have code.
    fn register(&mut self, block: &Block<M>) -> u64 {
        if self.pages.len() >= MAX_PAGES {
            self.clear();
        }
        let page = self.pages.entry(block.key.gpa & !(PAGE - 1)).or_default();
        page.granules |= granules(block.key.gpa, block.end());
        let slot = block.key.slot() as u16;
        if !page.slots.contains(&slot) {
            page.slots.push(slot);
        }
        page.granules
    }

    /// Removes a block, which is in no slot any more, from its page.
    fn forget(&mut self, block: &Block<M>) {
        let slot = block.key.slot();
        let page = block.key.gpa & !(PAGE - 1);
        let same_page = |other: &Block<M>| other.key.gpa & !(PAGE - 1) == page;
        if self.slots[slot].as_deref().is_some_and(same_page) {
            return;
        }
        if let Some(code) = self.pages.get_mut(&page) {
            code.slots.retain(|other| usize::from(*other) != slot);
        }
    }
}

/// True for a string instruction with a repeat prefix.
pub(crate) fn repeats(insn: &Instruction) -> bool {
    insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix())
}

/// True if an instruction, if it is complete, leaves CS as it is.
fn is_near(insn: &Instruction) -> bool {
    match insn.flow_control() {
        FlowControl::Next => true,
        FlowControl::ConditionalBranch => true,
        FlowControl::UnconditionalBranch => insn.is_jmp_short_or_near(),
        FlowControl::IndirectBranch => insn.is_jmp_near_indirect(),
        FlowControl::Call => insn.is_call_near(),
        FlowControl::IndirectCall => insn.is_call_near_indirect(),
        FlowControl::Return => insn.mnemonic() == Mnemonic::Ret,
        _ => false,
    }
}

/// The granules of a range that is in one page: a bit for each 64 bytes of the page.
pub(crate) fn granules(start: u64, end: u64) -> u64 {
    let first = (start % PAGE) / GRANULE;
    let last = (end.saturating_sub(1).max(start) % PAGE) / GRANULE;
    if last < first { u64::MAX } else { (u64::MAX << first) & (u64::MAX >> (63 - last)) }
}

/// True if memory still has the bytes of a block.
fn is_same<M: Memory>(block: &Block<M>, memory: &M, page: M::Page) -> bool {
    let start = (block.key.gpa % PAGE) as usize;
    let mut chunks = block.bytes.chunks_exact(8);
    let mut at = start;
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        if memory.load::<8>(page, at) != u64::from_le_bytes(word) {
            return false;
        }
        at += 8;
    }
    chunks
        .remainder()
        .iter()
        .enumerate()
        .all(|(index, byte)| memory.load::<1>(page, at + index) == u64::from(*byte))
}

/// Decodes a block. `None` if its first instruction is not complete before the end of the page.
fn decode<M: Memory>(key: Key, memory: &M, page: M::Page, epoch: u64) -> Option<Box<Block<M>>> {
    let start = (key.gpa % PAGE) as usize;
    let len = (PAGE as usize - start).min(MAX_OPS * MAX_INSTRUCTION);
    let bytes: Vec<u8> = (start..start + len).map(|at| memory.load::<1>(page, at) as u8).collect();
    let mut decoder = Decoder::with_ip(key.bits, &bytes, key.rip, DecoderOptions::NONE);
    let mut ops: Vec<Op<M>> = Vec::new();
    let mut used = 0;
    while ops.len() < MAX_OPS && decoder.can_decode() {
        let insn = decoder.decode();
        // An instruction that continues in the next page, and those that are not valid, are decoded with all their bytes.
        if insn.is_invalid() {
            break;
        }
        used = decoder.position();
        let op = Op::new(insn, key.bits);
        // The iterations of a string instruction count, so what may be executed after it is not known before.
        let ends = op.ends_block || repeats(&insn);
        ops.push(op);
        if ends {
            break;
        }
    }
    if ops.is_empty() {
        return None;
    }
    let bytes = bytes.get(..used).unwrap_or_default().into();
    let chains = ops.last().is_some_and(|op| is_near(&op.insn));
    Some(Box::new(Block { key, ops: ops.into(), bytes, epoch, entered: 0, chains }))
}
