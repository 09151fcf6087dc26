//! The queues: rings of bytes with one producer and one consumer (`docs/abi.md`, section 4.2).
//!
//! Head is the index of the next free slot, and tail is the index of the next byte to take. The producer owns head,
//! and the consumer owns tail. Both are below the length `len`, and wrap to 0. A ring is empty if head equals tail,
//! and full if the index after head equals tail, so it holds at most `len - 1` bytes.
//!
//! To push a byte, the producer waits until the ring is not full, stores the byte at `buffer + head`, and then stores
//! the new head. To take a byte, the consumer waits until head differs from tail, loads the byte at `buffer + tail`,
//! and then stores the new tail. An index only moves forward, and a reset leaves it unchanged.
//!
//! Each side keeps its own index in private memory and publishes it. It checks the other side's index before each use,
//! because the other side may be hostile.

use crate::abi::gpa;
use crate::{Memory, abi};
use core::fmt;

/// The location of a ring: the GPAs of its two indices and of its buffer, and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    head: u64,
    tail: u64,
    buffer: u64,
    len: u32,
}

impl Ring {
    /// Returns queue 0 (TX), from the driver to the device. `len` is in bytes.
    pub const fn tx(len: u16) -> Self {
        Self { head: gpa::TX_HEAD, tail: gpa::TX_TAIL, buffer: abi::TX_BUFFER, len: len as u32 }
    }

    /// Returns queue 1 (RX), from the device to the driver. `len` is in bytes.
    pub const fn rx(len: u16) -> Self {
        Self { head: gpa::RX_HEAD, tail: gpa::RX_TAIL, buffer: abi::RX_BUFFER, len: len as u32 }
    }

    /// Returns the index after `index`.
    fn after(&self, index: u32) -> u32 {
        match index.saturating_add(1) {
            next if next >= self.len => 0,
            next => next,
        }
    }

    /// Returns the GPA of the slot at `index`.
    fn slot(&self, index: u32) -> u64 {
        self.buffer.saturating_add(u64::from(index))
    }

    /// Loads and checks the head.
    fn load_head(&self, memory: &impl Memory) -> Result<u32, WildIndex> {
        let index = memory.load_u32(self.head);
        if index < self.len { Ok(index) } else { Err(WildIndex { end: End::Head, index, len: self.len }) }
    }

    /// Loads and checks the tail.
    fn load_tail(&self, memory: &impl Memory) -> Result<u32, WildIndex> {
        let index = memory.load_u32(self.tail);
        if index < self.len { Ok(index) } else { Err(WildIndex { end: End::Tail, index, len: self.len }) }
    }
}

/// One of a ring's two indices.
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
    /// The index that is wrong.
    pub end: End,
    /// The value.
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
        let Self { index, len, .. } = self;
        write!(f, "{end} is {index:#x}, and an index must be below the queue's length, {len}")?;
        // A driver that does not wrap its index gets here.
        if index == len { write!(f, " ({len:#x}): after {} comes 0", len.saturating_sub(1)) } else { Ok(()) }
    }
}

impl core::error::Error for WildIndex {}

/// The reason why a byte was not pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// The ring is full.
    Full,
    /// The consumer's index is not below the ring's length.
    Wild(WildIndex),
}

/// The side that pushes bytes.
#[derive(Debug)]
pub struct Producer {
    ring: Ring,
    head: u32,
}

impl Producer {
    /// Returns the producer of a new ring, whose indices are zero.
    pub const fn new(ring: Ring) -> Self {
        Self { ring, head: 0 }
    }

    /// Attaches to a ring that may be in use: continues at the head in shared memory.
    ///
    /// # Errors
    /// The head is not below the length.
    pub fn attach(ring: Ring, memory: &impl Memory) -> Result<Self, WildIndex> {
        Ok(Self { ring, head: ring.load_head(memory)? })
    }

    /// Pushes `byte` and publishes the new head: one load of tail, one store to head.
    ///
    /// # Errors
    /// The ring is full, or the consumer's index is not below the length. The byte is then not stored.
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

    /// Returns the slots that are free now: one load of tail. The consumer sees the bytes after
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// The consumer's index is not below the length.
    pub fn space(&self, memory: &impl Memory) -> Result<Space, WildIndex> {
        let tail = self.ring.load_tail(memory)?;
        // Both indices are below the length. One slot stays free.
        let used = match self.head.checked_sub(tail) {
            Some(used) => used,
            None => self.head.saturating_add(self.ring.len).saturating_sub(tail),
        };
        let left = self.ring.len.saturating_sub(used).saturating_sub(1);
        Ok(Space { ring: self.ring, at: self.head, left })
    }

    /// Gives the consumer all bytes in `space`: one store to head.
    pub fn publish(&mut self, memory: &impl Memory, space: &Space) {
        self.head = space.at;
        memory.store_u32(self.ring.head, self.head);
    }

    /// Returns the head that shared memory should hold.
    pub(crate) fn head(&self) -> u32 {
        self.head
    }

    /// Returns true if the consumer has taken all bytes: one load of tail.
    ///
    /// # Errors
    /// The consumer's index is not below the length.
    pub fn is_drained(&self, memory: &impl Memory) -> Result<bool, WildIndex> {
        Ok(self.ring.load_tail(memory)? == self.head)
    }
}

/// The side that takes bytes.
#[derive(Debug)]
pub struct Consumer {
    ring: Ring,
    tail: u32,
}

impl Consumer {
    /// Returns the consumer of a new ring, whose indices are zero.
    pub const fn new(ring: Ring) -> Self {
        Self { ring, tail: 0 }
    }

    /// Attaches to a ring that may be in use: continues at the tail in shared memory.
    ///
    /// # Errors
    /// The tail is not below the length.
    pub fn attach(ring: Ring, memory: &impl Memory) -> Result<Self, WildIndex> {
        Ok(Self { ring, tail: ring.load_tail(memory)? })
    }

    /// Returns the next byte, if the ring is not empty: one load of head. The byte stays in the ring until
    /// [`release`](Self::release), so that the caller can publish its effect before the new tail.
    ///
    /// # Errors
    /// The producer's index is not below the length.
    pub fn peek(&self, memory: &impl Memory) -> Result<Option<u8>, WildIndex> {
        let head = self.ring.load_head(memory)?;
        Ok((head != self.tail).then(|| memory.load_u8(self.ring.slot(self.tail))))
    }

    /// Frees the slot of the byte that [`peek`](Self::peek) returned: one store to tail.
    pub fn release(&mut self, memory: &impl Memory) {
        self.tail = self.ring.after(self.tail);
        memory.store_u32(self.ring.tail, self.tail);
    }

    /// Returns the bytes that the ring holds now, at most `most`: one load of head, then one load for each byte that
    /// the caller takes. As with `peek`, they stay in the ring until [`release_batch`](Self::release_batch).
    ///
    /// # Errors
    /// The producer's index is not below the length.
    pub fn peek_batch<M: Memory>(&self, memory: &M, most: u32) -> Result<Batch, WildIndex> {
        let head = self.ring.load_head(memory)?;
        // Both indices are below the length, so the difference is too.
        let len = match head.checked_sub(self.tail) {
            Some(len) => len,
            None => head.saturating_add(self.ring.len).saturating_sub(self.tail),
        };
        Ok(Batch { ring: self.ring, at: self.tail, left: len.min(most) })
    }

    /// Frees the slots of all bytes that were taken from a batch: one store to tail.
    pub fn release_batch(&mut self, memory: &impl Memory, batch: &Batch) {
        self.tail = batch.at;
        memory.store_u32(self.ring.tail, self.tail);
    }

    /// Returns the tail that shared memory should hold.
    pub(crate) fn tail(&self) -> u32 {
        self.tail
    }
}

/// Free slots of a ring, which the producer fills one by one.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    ring: Ring,
    at: u32,
    left: u32,
}

impl Space {
    /// Returns true if no free slot is left.
    pub fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Fills the next slot: one store. Does nothing if no slot is left.
    pub fn put(&mut self, memory: &impl Memory, byte: u8) {
        if let Some(left) = self.left.checked_sub(1) {
            memory.store_u8(self.ring.slot(self.at), byte);
            (self.at, self.left) = (self.ring.after(self.at), left);
        }
    }
}

/// Bytes of a ring, which the consumer takes one by one.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    ring: Ring,
    at: u32,
    left: u32,
}

impl Batch {
    /// Returns true if no byte is left.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Takes the next byte: one load. Returns `None` if no byte is left.
    pub fn next(&mut self, memory: &impl Memory) -> Option<u8> {
        self.left = self.left.checked_sub(1)?;
        let byte = memory.load_u8(self.ring.slot(self.at));
        self.at = self.ring.after(self.at);
        Some(byte)
    }
}

#[cfg(test)]
mod tests;
