//! The device side of a queue: takes descriptor chains, checks them, and returns them as used (virtio 1.2, section
//! 2.7).
//!
//! The crate `virtio-queue` implements the split ring. It reads each field of the guest once, and keeps its own index.
//! This file follows the chains itself, because the crate accepts some that the specification forbids. It copies a chain
//! before it uses it, because the guest may change its tables at any time.

use crate::device::virtio::interrupt::Interrupt;
use crate::exit::Stop;
use crate::host::{EventFd, signal};
use crate::memory::{Gpa, GuestMemory, Span};
use std::sync::Arc;
use virtio_bindings::virtio_ring;
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};

/// The reason why a device stops serving its queues.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The ring or its indices are invalid.
    #[error("{0}")]
    Ring(#[from] Error),
    /// A descriptor chain is invalid.
    #[error("{0}")]
    Chain(&'static str),
    /// The run must end, for this reason. This is no mistake of the driver.
    #[error("{0}")]
    End(Stop),
}

impl QueueError {
    /// The kind of mistake, without the values of this one.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Ring(error) => format!("{:?}", std::mem::discriminant(error)),
            Self::Chain(what) => (*what).into(),
            Self::End(stop) => stop.to_string(),
        }
    }
}

/// The queues of a device whose driver is ready. Queues that the driver does not use are `None`.
#[derive(Debug, Default)]
pub struct Queues(Vec<Option<Virtqueue>>);

impl Queues {
    /// Creates the set from `queues`, in the order of their indices.
    pub fn new(queues: Vec<Option<Virtqueue>>) -> Self {
        Self(queues)
    }

    /// The queue `index`. `None` if the driver does not use it.
    pub fn get(&mut self, index: usize) -> Option<&mut Virtqueue> {
        self.0.get_mut(index)?.as_mut()
    }

    /// True if the driver is not ready.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Descriptor flag: the chain continues at `next`.
const NEXT: u16 = virtio_ring::VRING_DESC_F_NEXT as u16;
/// Descriptor flag: the device writes the buffer.
const WRITE: u16 = virtio_ring::VRING_DESC_F_WRITE as u16;
/// Descriptor flag: the buffer is a table of descriptors.
const INDIRECT: u16 = virtio_ring::VRING_DESC_F_INDIRECT as u16;
/// The size of a descriptor, in bytes.
const DESCRIPTOR: u32 = 16;
/// The maximum length of a chain's buffers together, in bytes (section 2.7.5.2).
const MAX_BYTES: u64 = 1 << 32;

/// A table of descriptors: that of the queue, or an indirect one.
#[derive(Clone, Copy, Debug)]
struct Table {
    start: u64,
    /// The number of descriptors.
    entries: u32,
    is_indirect: bool,
}

/// A descriptor (section 2.7.5).
struct Descriptor {
    span: Span,
    flags: u16,
    next: u16,
}

impl Table {
    /// Reads the descriptor `index`, once.
    fn get(&self, memory: &GuestMemory, index: u16) -> Result<Descriptor, QueueError> {
        if u32::from(index) >= self.entries {
            return Err(QueueError::Chain("a descriptor chain leaves its table"));
        }
        let offset = u64::from(index).saturating_mul(DESCRIPTOR.into());
        // struct virtq_desc: le64 addr, le32 len, le16 flags, le16 next.
        let mut raw = [0; DESCRIPTOR as usize];
        let is_read = self.start.checked_add(offset).is_some_and(|at| memory.read(Gpa(at), &mut raw));
        if !is_read {
            return Err(QueueError::Chain("a table of descriptors is not in guest memory"));
        }
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = raw;
        let start = Gpa(u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]));
        let span = Span { start, len: u32::from_le_bytes([l0, l1, l2, l3]) };
        Ok(Descriptor { span, flags: u16::from_le_bytes([f0, f1]), next: u16::from_le_bytes([n0, n1]) })
    }

    /// The indirect table that a descriptor of this table refers to (section 2.7.5.3.1).
    fn indirect(&self, descriptor: &Descriptor) -> Result<Self, QueueError> {
        let Span { start, len } = descriptor.span;
        if self.is_indirect {
            return Err(QueueError::Chain("an indirect table refers to another one"));
        }
        if descriptor.flags & NEXT != 0 {
            return Err(QueueError::Chain("a descriptor with an indirect table has a next one"));
        }
        let entries = len / DESCRIPTOR;
        if len == 0 || !len.is_multiple_of(DESCRIPTOR) || entries > u16::MAX.into() {
            return Err(QueueError::Chain("an indirect table has an invalid length"));
        }
        Ok(Self { start: start.0, entries, is_indirect: true })
    }
}

/// The buffers of one request: those that the device reads, and those that it writes.
#[derive(Debug)]
pub struct Chain {
    readable: Vec<Span>,
    /// The number of readable buffers that have been read.
    read: usize,
    writable: Vec<Span>,
    interrupt: Arc<Interrupt>,
}

impl Chain {
    /// Creates a chain with capacity for every chain of a queue with `size` entries, so that it never allocates again.
    fn with_capacity(size: u16, interrupt: Arc<Interrupt>) -> Self {
        let buffers = || Vec::with_capacity(size.into());
        Self { readable: buffers(), read: 0, writable: buffers(), interrupt }
    }

    /// True if the run must end now. The device then leaves the request incomplete ([`Answer::Later`]). A device whose
    /// request takes more than a few milliseconds asks this again and again.
    pub fn must_give_up(&self) -> bool {
        self.interrupt.must_give_up()
    }

    /// The buffers that the device may read and has not read yet.
    pub fn readable(&self) -> &[Span] {
        self.readable.get(self.read..).unwrap_or_default()
    }

    /// The buffers that the device may write.
    pub fn writable(&self) -> &[Span] {
        &self.writable
    }

    /// Copies the next readable bytes into `data`, regardless of the boundaries of the driver's buffers (section
    /// 2.7.4.2). Returns the number of bytes: fewer than `data` has only at the end of the chain.
    ///
    /// # Errors
    /// A buffer is not in guest memory.
    pub fn read(&mut self, memory: &GuestMemory, data: &mut [u8]) -> Result<usize, QueueError> {
        let mut done: usize = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some(span) = self.readable.get_mut(self.read) else { break };
            let len = rest.len().min(span.len as usize);
            let Some(part) = rest.get_mut(..len) else { break };
            if !memory.read(span.start, part) {
                return Err(QueueError::Chain("a buffer is not in guest memory"));
            }
            done = done.saturating_add(len);
            // `len` is at most the length of the span.
            span.len = span.len.saturating_sub(u32::try_from(len).unwrap_or(u32::MAX));
            span.start = Gpa(span.start.0.saturating_add(len as u64));
            if span.len == 0 {
                self.read = self.read.saturating_add(1);
            }
        }
        Ok(done)
    }

    /// Removes the last byte from the writable buffers and returns its address. `None` if there is no writable byte, or
    /// the address is above the last one.
    pub fn take_last_byte(&mut self) -> Option<Gpa> {
        let last = self.writable.last_mut()?;
        last.len = last.len.checked_sub(1)?;
        let byte = last.start.0.checked_add(last.len.into())?;
        if last.len == 0 {
            self.writable.pop();
        }
        Some(Gpa(byte))
    }

    /// Shortens the writable buffers to `limit` bytes in total.
    pub fn limit_writable(&mut self, mut limit: u32) {
        for span in &mut self.writable {
            span.len = span.len.min(limit);
            limit = limit.saturating_sub(span.len);
        }
    }

    /// Copies and checks the chain that begins at descriptor `head` of `table`. A chain must not be longer than its queue,
    /// even with an indirect table (section 2.7.5.3.1), and its readable buffers must come before its writable ones
    /// (section 2.7.4.2). `allows_indirect` is true if the driver has accepted indirect tables.
    fn fill(
        &mut self,
        memory: &GuestMemory,
        mut table: Table,
        head: u16,
        allows_indirect: bool,
    ) -> Result<(), QueueError> {
        self.readable.clear();
        self.writable.clear();
        self.read = 0;
        let (mut left, mut bytes, mut index) = (table.entries, 0_u64, head);
        loop {
            let descriptor = table.get(memory, index)?;
            if descriptor.flags & INDIRECT != 0 {
                if !allows_indirect {
                    return Err(QueueError::Chain("the driver uses an indirect table without the feature"));
                }
                (table, index) = (table.indirect(&descriptor)?, 0);
                continue;
            }
            // This also ends a chain that loops.
            left = left
                .checked_sub(1)
                .ok_or(QueueError::Chain("a descriptor chain is longer than its queue"))?;
            bytes = bytes.saturating_add(descriptor.span.len.into());
            if bytes > MAX_BYTES {
                return Err(QueueError::Chain("a descriptor chain has more than 4 GiB"));
            }
            match (descriptor.flags & WRITE != 0, self.writable.is_empty()) {
                (true, _) => self.writable.push(descriptor.span),
                (false, true) => self.readable.push(descriptor.span),
                (false, false) => {
                    return Err(QueueError::Chain("a readable descriptor comes after a writable one"));
                }
            }
            if descriptor.flags & NEXT == 0 {
                break;
            }
            index = descriptor.next;
        }
        // Empty buffers have no meaning, and would hide the last byte from `take_last_byte`.
        self.readable.retain(|span| span.len > 0);
        self.writable.retain(|span| span.len > 0);
        Ok(())
    }
}

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request is complete. The value is the number of bytes written into its buffers.
    Done(u32),
    /// The device cannot complete it now. The request stays in the queue, and the device returns to it later.
    Later,
}

/// A queue with its host side: memory, interrupt and notification event.
#[derive(Debug)]
pub struct Virtqueue {
    queue: Queue,
    memory: GuestMemory,
    /// The buffers of the current request.
    chain: Chain,
    interrupt: Arc<Interrupt>,
    notifier: Arc<EventFd>,
    /// Set if the driver has accepted indirect tables.
    allows_indirect: bool,
}

/// The reason why the device takes no further request.
enum Pause {
    /// The queue is empty.
    Empty,
    /// The device answered [`Answer::Later`].
    Later,
    /// The limit of one turn is reached.
    Spent,
    /// A reset or the end of the machine waits for the queues.
    Halted,
}

impl Virtqueue {
    /// Wraps a valid queue in `memory`, whose driver has accepted indirect tables. Signalling `notifier` makes the device
    /// serve the queue again.
    pub fn new(queue: Queue, memory: GuestMemory, interrupt: Arc<Interrupt>, notifier: Arc<EventFd>) -> Self {
        let chain = Chain::with_capacity(queue.size(), interrupt.clone());
        Self { queue, memory, chain, interrupt, notifier, allows_indirect: true }
    }

    /// Sets whether the driver has accepted indirect tables (VIRTIO_F_INDIRECT_DESC).
    #[must_use]
    pub fn allow_indirect(self, yes: bool) -> Self {
        Self { allows_indirect: yes, ..self }
    }

    /// Calls `handle` for each request in the queue, and then interrupts the driver once, if it wants an interrupt.
    ///
    /// Notifications are disabled meanwhile. A turn ends after as many requests as the queue has entries, so that a
    /// busy or malicious driver cannot occupy the device without end. It also ends when the run must end: a request that is
    /// not complete then stays in the queue, and is never returned to the driver.
    ///
    /// # Errors
    /// The driver broke the rules of the queue, or `handle` failed.
    pub fn serve(
        &mut self,
        mut handle: impl FnMut(&GuestMemory, &mut Chain) -> Result<Answer, QueueError>,
    ) -> Result<(), QueueError> {
        let before = self.queue.next_used();
        let mut left = self.queue.size();
        loop {
            self.queue.disable_notification(self.memory.slots())?;
            match self.drain(&mut left, &mut handle)? {
                // A request may have arrived before notifications were enabled again, so look once more. Each of these
                // looks counts as one request.
                Pause::Empty if self.queue.enable_notification(self.memory.slots())? => {
                    if left == 0 {
                        signal(&self.notifier);
                        break;
                    }
                    left = left.saturating_sub(1);
                }
                Pause::Empty | Pause::Later | Pause::Halted => break,
                Pause::Spent => {
                    signal(&self.notifier);
                    break;
                }
            }
        }
        if self.queue.next_used() != before && self.queue.needs_notification(self.memory.slots())? {
            self.interrupt.used_buffer();
        }
        Ok(())
    }

    /// Calls `handle` for each request until there is a reason to pause. `left` is the number of requests left in this
    /// turn.
    fn drain(
        &mut self,
        left: &mut u16,
        handle: &mut impl FnMut(&GuestMemory, &mut Chain) -> Result<Answer, QueueError>,
    ) -> Result<Pause, QueueError> {
        let (start, entries) = (self.queue.desc_table(), self.queue.size().into());
        let table = Table { start, entries, is_indirect: false };
        loop {
            if self.interrupt.is_halted() || self.interrupt.must_give_up() {
                return Ok(Pause::Halted);
            }
            // `iter` fails if the driver's index is further ahead than the size of the queue.
            let Some(chain) = self.queue.iter(self.memory.slots())?.next() else { return Ok(Pause::Empty) };
            let Some(now_left) = left.checked_sub(1) else {
                self.queue.go_to_previous_position();
                return Ok(Pause::Spent);
            };
            *left = now_left;
            let head = chain.head_index();
            self.chain.fill(&self.memory, table, head, self.allows_indirect)?;
            match handle(&self.memory, &mut self.chain)? {
                Answer::Done(written) => self.queue.add_used(self.memory.slots(), head, written)?,
                Answer::Later => {
                    self.queue.go_to_previous_position();
                    return Ok(Pause::Later);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
