//! A queue in the device's hands: takes chains of descriptors, checked, and gives them back (virtio 1.2,
//! section 2.7).
//!
//! The split ring itself is `virtio-queue`'s, which reads each field of the guest's once and keeps its own
//! index. A chain is copied here before anybody looks at it: the guest may change its tables at any time.

use crate::device::virtio::interrupt::Interrupt;
use crate::host::signal;
use crate::memory::{Gpa, GuestMemory, Span};
use std::sync::Arc;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// The driver broke the rules of a queue, so that nothing in it can be believed.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The ring or its indices cannot be.
    #[error("{0}")]
    Ring(#[from] Error),
    /// A chain of descriptors cannot be.
    #[error("{0}")]
    Chain(&'static str),
}

/// The queues of a device whose driver is ready; those that it does not use are absent.
#[derive(Debug, Default)]
pub struct Queues(Vec<Option<Virtqueue>>);

impl Queues {
    /// These, in the order of their indices.
    pub fn new(queues: Vec<Option<Virtqueue>>) -> Self {
        Self(queues)
    }

    /// Queue `index`, if the driver uses it.
    pub fn get(&mut self, index: usize) -> Option<&mut Virtqueue> {
        self.0.get_mut(index)?.as_mut()
    }

    /// Whether the driver is not ready.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The buffers of one request: first those that the device reads, then those that it writes.
#[derive(Debug, Default)]
pub struct Chain {
    readable: Vec<Span>,
    /// So many of the readable buffers have been read.
    read: usize,
    writable: Vec<Span>,
}

impl Chain {
    /// Place for all chains that a queue of `size` entries can hold: none is ever allocated again.
    fn with_capacity(size: u16) -> Self {
        let place = || Vec::with_capacity(size.into());
        Self { readable: place(), read: 0, writable: place() }
    }

    /// What the device may read, and has not read yet.
    pub fn readable(&self) -> &[Span] {
        self.readable.get(self.read..).unwrap_or_default()
    }

    /// What the device may write.
    pub fn writable(&self) -> &[Span] {
        &self.writable
    }

    /// Copies the next readable bytes into `data`, wherever the driver has put the borders of its buffers
    /// (section 2.7.4.2). Returns how many there were.
    ///
    /// # Errors
    /// A buffer is not in memory.
    pub fn read(&mut self, memory: &GuestMemory, data: &mut [u8]) -> Result<usize, QueueError> {
        let mut done: usize = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some(span) = self.readable.get_mut(self.read) else { break };
            let len = rest.len().min(span.len as usize);
            let Some(part) = rest.get_mut(..len) else { break };
            if !memory.read(span.start, part) {
                return Err(QueueError::Chain("a buffer is not in memory"));
            }
            done = done.saturating_add(len);
            // `len` is at most the span's.
            span.len = span.len.saturating_sub(u32::try_from(len).unwrap_or(u32::MAX));
            span.start = Gpa(span.start.0.saturating_add(len as u64));
            if span.len == 0 {
                self.read = self.read.saturating_add(1);
            }
        }
        Ok(done)
    }

    /// Takes the last byte off what the device may write.
    pub fn take_last_byte(&mut self) -> Option<Gpa> {
        let last = self.writable.last_mut()?;
        last.len = last.len.checked_sub(1)?;
        let byte = last.start.0.checked_add(last.len.into())?;
        if last.len == 0 {
            self.writable.pop();
        }
        Some(Gpa(byte))
    }

    /// Leaves the first `limit` bytes of what the device may write.
    pub fn limit_writable(&mut self, mut limit: u32) {
        for span in &mut self.writable {
            span.len = span.len.min(limit);
            limit = limit.saturating_sub(span.len);
        }
    }

    /// Copies the chain. A chain is no longer than its queue, also where its table is an indirect one
    /// (section 2.7.5.3.1), and what the device reads comes before what it writes (section 2.7.4.2).
    fn fill(&mut self, chain: DescriptorChain<&GuestMemoryMmap>, size: u16) -> Result<(), QueueError> {
        self.readable.clear();
        self.writable.clear();
        self.read = 0;
        let mut is_whole = false;
        for (count, descriptor) in (0..).zip(chain) {
            if count == size {
                return Err(QueueError::Chain("a chain of descriptors is longer than its queue"));
            }
            // The iterator ends early, without a word, at whatever it cannot follow.
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
            return Err(QueueError::Chain("a chain of descriptors loops, or leads where no table is"));
        }
        // Buffers without a byte mean nothing, and would be in the way of whoever wants the last one.
        self.readable.retain(|span| span.len > 0);
        self.writable.retain(|span| span.len > 0);
        Ok(())
    }
}

/// What a device makes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done, and so many bytes were written into its buffers.
    Done(u32),
    /// Not now: it stays in the queue, and the device looks for it when it can go on.
    Later,
}

/// A queue, with what belongs to it on the host's side.
#[derive(Debug)]
pub struct Virtqueue {
    queue: Queue,
    memory: GuestMemory,
    /// The request in the device's hands.
    chain: Chain,
    interrupt: Arc<Interrupt>,
    notifier: Arc<EventFd>,
}

/// Why no further request is taken.
enum Pause {
    /// There is none.
    Empty,
    /// The device wants none.
    Later,
    /// Enough for one turn.
    Spent,
    /// Somebody waits for the device to let go of its queues.
    Halted,
}

impl Virtqueue {
    /// A queue that was found valid, in `memory`. A write to `notifier` brings the device back to it.
    pub fn new(queue: Queue, memory: GuestMemory, interrupt: Arc<Interrupt>, notifier: Arc<EventFd>) -> Self {
        let chain = Chain::with_capacity(queue.size());
        Self { queue, memory, chain, interrupt, notifier }
    }

    /// Hands all requests that are in the queue to `handle`, and then tells the driver, once and if it wants
    /// to be told.
    ///
    /// While the queue is served the driver need not notify it. A turn ends after as many requests as the
    /// queue has entries, so that neither a busy driver nor a wrong one holds the device for ever.
    ///
    /// # Errors
    /// The driver broke the rules.
    pub fn serve(
        &mut self,
        mut handle: impl FnMut(&GuestMemory, &mut Chain) -> Result<Answer, QueueError>,
    ) -> Result<(), QueueError> {
        let before = self.queue.next_used();
        let mut left = self.queue.size();
        loop {
            self.queue.disable_notification(self.memory.slots())?;
            match self.drain(&mut left, &mut handle)? {
                // A request may have come in between, of which nobody was told. Each such look counts as one.
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

    fn drain(
        &mut self,
        left: &mut u16,
        handle: &mut impl FnMut(&GuestMemory, &mut Chain) -> Result<Answer, QueueError>,
    ) -> Result<Pause, QueueError> {
        loop {
            if self.interrupt.is_halted() {
                return Ok(Pause::Halted);
            }
            // An index that is further ahead than the queue is long is an error here.
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
