//! The device side of a queue: takes descriptor chains, checks them, and returns them as used (virtio 1.2, section
//! 2.7).
//!
//! The crate `virtio-queue` implements the split ring. It reads each field of the guest once, and keeps its own index.
//! This file copies a chain before it uses it, because the guest may change its tables at any time.

use crate::device::virtio::interrupt::Interrupt;
use crate::host::signal;
use crate::memory::{Gpa, GuestMemory, Span};
use std::sync::Arc;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// A violation of the rules of a queue by the driver. The content of the queue can no longer be trusted.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The ring or its indices are invalid.
    #[error("{0}")]
    Ring(#[from] Error),
    /// A descriptor chain is invalid.
    #[error("{0}")]
    Chain(&'static str),
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

/// The buffers of one request: those that the device reads, and those that it writes.
#[derive(Debug, Default)]
pub struct Chain {
    readable: Vec<Span>,
    /// The number of readable buffers that have been read.
    read: usize,
    writable: Vec<Span>,
}

impl Chain {
    /// Creates a chain with capacity for every chain of a queue with `size` entries, so that it never allocates again.
    fn with_capacity(size: u16) -> Self {
        let buffers = || Vec::with_capacity(size.into());
        Self { readable: buffers(), read: 0, writable: buffers() }
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

    /// Copies and checks a chain. A chain must not be longer than its queue, even with an indirect table (section
    /// 2.7.5.3.1), and its readable buffers must come before its writable ones (section 2.7.4.2).
    fn fill(&mut self, chain: DescriptorChain<&GuestMemoryMmap>, size: u16) -> Result<(), QueueError> {
        self.readable.clear();
        self.writable.clear();
        self.read = 0;
        let mut is_whole = false;
        for (count, descriptor) in (0..).zip(chain) {
            if count == size {
                return Err(QueueError::Chain("a descriptor chain is longer than its queue"));
            }
            // The iterator ends early without an error if it cannot follow the chain.
            is_whole = !descriptor.has_next();
            let span = Span { start: descriptor.addr(), len: descriptor.len() };
            match (descriptor.is_write_only(), self.writable.is_empty()) {
                (true, _) => self.writable.push(span),
                (false, true) => self.readable.push(span),
                (false, false) => {
                    return Err(QueueError::Chain("a readable descriptor comes after a writable one"));
                }
            }
        }
        if !is_whole {
            return Err(QueueError::Chain("a descriptor chain loops, or leaves its table"));
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
    /// Wraps a valid queue in `memory`. Signalling `notifier` makes the device serve the queue again.
    pub fn new(queue: Queue, memory: GuestMemory, interrupt: Arc<Interrupt>, notifier: Arc<EventFd>) -> Self {
        let chain = Chain::with_capacity(queue.size());
        Self { queue, memory, chain, interrupt, notifier }
    }

    /// Calls `handle` for each request in the queue, and then interrupts the driver once, if it wants an interrupt.
    ///
    /// Notifications are disabled meanwhile. A turn ends after as many requests as the queue has entries, so that a
    /// busy or malicious driver cannot occupy the device without end.
    ///
    /// # Errors
    /// The driver broke the rules of the queue.
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
        loop {
            if self.interrupt.is_halted() {
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
            self.chain.fill(chain, self.queue.size())?;
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
