//! The queues: rings of bytes with one producer and one consumer.
//!
//! A ring of length `len` holds at most `len - 1` bytes: it is empty when head equals tail and full when
//! the slot after head is tail. The producer owns head, the consumer owns tail. Each side keeps its own
//! index in private memory and publishes it; it checks the other side's index before each use, since the
//! other side may be hostile.

use crate::abi::gpa;
use crate::{Memory, abi};
use core::fmt;

/// Where a ring is: its two indices, its buffer and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    head: u64,
    tail: u64,
    buffer: u64,
    len: u32,
}

impl Ring {
    /// Queue 0: from the driver to the device. `len` is in bytes.
    pub const fn tx(len: u16) -> Self {
        Self { head: gpa::TX_HEAD, tail: gpa::TX_TAIL, buffer: abi::TX_BUFFER, len: len as u32 }
    }

    /// Queue 1: from the device to the driver. `len` is in bytes.
    pub const fn rx(len: u16) -> Self {
        Self { head: gpa::RX_HEAD, tail: gpa::RX_TAIL, buffer: abi::RX_BUFFER, len: len as u32 }
    }

    /// The index after `index`.
    fn after(&self, index: u32) -> u32 {
        match index.saturating_add(1) {
            next if next >= self.len => 0,
            next => next,
        }
    }

    /// GPA of the slot at `index`.
    fn slot(&self, index: u32) -> u64 {
        self.buffer.saturating_add(u64::from(index))
    }

    /// The other side's head, checked.
    fn load_head(&self, memory: &impl Memory) -> Result<u32, WildIndex> {
        let index = memory.load_u32(self.head);
        if index < self.len { Ok(index) } else { Err(WildIndex { end: End::Head, index, len: self.len }) }
    }

    /// The other side's tail, checked.
    fn load_tail(&self, memory: &impl Memory) -> Result<u32, WildIndex> {
        let index = memory.load_u32(self.tail);
        if index < self.len { Ok(index) } else { Err(WildIndex { end: End::Tail, index, len: self.len }) }
    }
}

/// Which of a ring's two indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The producer's index.
    Head,
    /// The consumer's index.
    Tail,
}

/// The other side published an index that is not below the ring's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WildIndex {
    /// Which index.
    pub end: End,
    /// Its value.
    pub index: u32,
    /// The ring's length, in bytes.
    pub len: u32,
}

impl fmt::Display for WildIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match self.end {
            End::Head => "head",
            End::Tail => "tail",
        };
        write!(f, "{end} is {:#x}, and an index must be below the queue's length, {}", self.index, self.len)
    }
}

impl core::error::Error for WildIndex {}

/// Why a byte could not be pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// The ring is full; the byte was not stored.
    Full,
    /// The consumer's index is wild.
    Wild(WildIndex),
}

/// The side that puts bytes in.
#[derive(Debug)]
pub struct Producer {
    ring: Ring,
    head: u32,
}

impl Producer {
    /// The producer of a new ring, whose indices are zero.
    pub const fn new(ring: Ring) -> Self {
        Self { ring, head: 0 }
    }

    /// Takes the ring up where its head stands: at zero in a new machine.
    ///
    /// # Errors
    /// The head is not an index of this ring.
    pub fn attach(ring: Ring, memory: &impl Memory) -> Result<Self, WildIndex> {
        Ok(Self { ring, head: ring.load_head(memory)? })
    }

    /// Puts `byte` in, then publishes the new head: one load of tail, one store to head.
    ///
    /// # Errors
    /// The ring is full, or the consumer's index is wild.
    pub fn push(&mut self, memory: &impl Memory, byte: u8) -> Result<(), PushError> {
        let tail = self.ring.load_tail(memory).map_err(PushError::Wild)?;
        let next = self.ring.after(self.head);
        if next == tail {
            return Err(PushError::Full);
        }
        memory.store_u8(self.ring.slot(self.head), byte);
        memory.store_u32(self.ring.head, next);
        self.head = next;
        Ok(())
    }

    /// The slots that are free now: one load of tail. What is put into them is the consumer's with
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// The consumer's index is wild.
    pub fn space(&self, memory: &impl Memory) -> Result<Space, WildIndex> {
        let tail = self.ring.load_tail(memory)?;
        // One slot stays free; and both indices are below the length.
        let used = match self.head.checked_sub(tail) {
            Some(used) => used,
            None => self.head.saturating_add(self.ring.len).saturating_sub(tail),
        };
        let left = self.ring.len.saturating_sub(used).saturating_sub(1);
        Ok(Space { ring: self.ring, at: self.head, left })
    }

    /// Gives the consumer all that was put into `space`: one store to head.
    pub fn publish(&mut self, memory: &impl Memory, space: &Space) {
        self.head = space.at;
        memory.store_u32(self.ring.head, self.head);
    }

    /// The head as it should stand in shared memory.
    pub(crate) fn head(&self) -> u32 {
        self.head
    }

    /// Whether the consumer has taken everything: one load of tail.
    ///
    /// # Errors
    /// The consumer's index is wild.
    pub fn is_drained(&self, memory: &impl Memory) -> Result<bool, WildIndex> {
        Ok(self.ring.load_tail(memory)? == self.head)
    }
}

/// The side that takes bytes out.
#[derive(Debug)]
pub struct Consumer {
    ring: Ring,
    tail: u32,
}

impl Consumer {
    /// The consumer of a new ring, whose indices are zero.
    pub const fn new(ring: Ring) -> Self {
        Self { ring, tail: 0 }
    }

    /// Takes the ring up where its tail stands: at zero in a new machine.
    ///
    /// # Errors
    /// The tail is not an index of this ring.
    pub fn attach(ring: Ring, memory: &impl Memory) -> Result<Self, WildIndex> {
        Ok(Self { ring, tail: ring.load_tail(memory)? })
    }

    /// The next byte, if there is one: one load of head. The byte stays in the ring until
    /// [`release`](Self::release), so that its effect can be made visible before the tail covers it.
    ///
    /// # Errors
    /// The producer's index is wild.
    pub fn peek(&self, memory: &impl Memory) -> Result<Option<u8>, WildIndex> {
        let head = self.ring.load_head(memory)?;
        Ok((head != self.tail).then(|| memory.load_u8(self.ring.slot(self.tail))))
    }

    /// Gives the slot of the byte that [`peek`](Self::peek) showed back: one store to tail.
    pub fn release(&mut self, memory: &impl Memory) {
        self.tail = self.ring.after(self.tail);
        memory.store_u32(self.ring.tail, self.tail);
    }

    /// All bytes that are there now, up to `most`: one load of head, then one of each byte that is asked for. As with
    /// `peek` they stay in the ring, until [`release_batch`](Self::release_batch).
    ///
    /// # Errors
    /// The producer's index is wild.
    pub fn peek_batch<M: Memory>(&self, memory: &M, most: u32) -> Result<Batch, WildIndex> {
        let head = self.ring.load_head(memory)?;
        // Both are below the length, so this is too.
        let len = match head.checked_sub(self.tail) {
            Some(len) => len,
            None => head.saturating_add(self.ring.len).saturating_sub(self.tail),
        };
        Ok(Batch { ring: self.ring, at: self.tail, left: len.min(most) })
    }

    /// Gives the slots of all bytes of a batch back that were taken out of it: one store to tail.
    pub fn release_batch(&mut self, memory: &impl Memory, batch: &Batch) {
        self.tail = batch.at;
        memory.store_u32(self.ring.tail, self.tail);
    }

    /// The tail as it should stand in shared memory.
    pub(crate) fn tail(&self) -> u32 {
        self.tail
    }
}

/// Free slots of a ring, filled one by one.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    ring: Ring,
    at: u32,
    left: u32,
}

impl Space {
    /// Whether all are filled.
    pub fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Fills the next slot: one store. Does nothing where there is none.
    pub fn put(&mut self, memory: &impl Memory, byte: u8) {
        if let Some(left) = self.left.checked_sub(1) {
            memory.store_u8(self.ring.slot(self.at), byte);
            (self.at, self.left) = (self.ring.after(self.at), left);
        }
    }
}

/// Bytes of a ring, taken one by one.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    ring: Ring,
    at: u32,
    left: u32,
}

impl Batch {
    /// Whether all were taken.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// The next byte: one load.
    pub fn next(&mut self, memory: &impl Memory) -> Option<u8> {
        self.left = self.left.checked_sub(1)?;
        let byte = memory.load_u8(self.ring.slot(self.at));
        self.at = self.ring.after(self.at);
        Some(byte)
    }
}

#[cfg(test)]
mod tests;
