//! The entropy device (virtio 1.2, section 5.4): fills the driver's buffers from the host's random numbers.

use crate::device::virtio::Backend;
use crate::device::virtio::queue::{Answer, Chain, QueueError, Queues};
use crate::error::Error;
use crate::memory::GuestMemory;
use std::fs::File;
use virtio_bindings::virtio_ids;

/// How many entries the queue has at most.
pub const QUEUE_SIZE: u16 = 64;
/// How much a request gets at most, in bytes: a guest shall not keep the host busy with one.
pub const MOST: u32 = 64 << 10;

/// The back end of the entropy device.
#[derive(Debug)]
pub struct Entropy {
    source: File,
}

impl Entropy {
    /// A source of the host's random numbers.
    ///
    /// # Errors
    /// The host has none.
    pub fn new() -> Result<Self, Error> {
        let source = File::open("/dev/urandom").map_err(Error::host("opening /dev/urandom"))?;
        Ok(Self { source })
    }

    fn fill(&self, memory: &GuestMemory, chain: &mut Chain) -> Result<Answer, QueueError> {
        chain.limit_writable(MOST);
        // The offset means nothing to this file.
        let answer = memory.read_from_file_at(&self.source, 0, chain.writable());
        let written =
            answer.map_err(|_| QueueError::Chain("a buffer for random numbers is not in memory"))?;
        Ok(Answer::Done(u32::try_from(written).unwrap_or(MOST)))
    }
}

impl Backend for Entropy {
    fn id(&self) -> u32 {
        virtio_ids::VIRTIO_ID_RNG
    }

    fn name(&self) -> &'static str {
        "virtio-rng"
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), QueueError> {
        let Some(queue) = queues.get(index) else { return Ok(()) };
        queue.serve(|memory, chain| self.fill(memory, chain))
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::device::virtio::interrupt::Interrupt;
    use crate::device::virtio::testing::{self, Buffer, RAM, Ring, bytes};
    use std::sync::Arc;

    const DATA: u64 = 0x3_0000;

    /// Asks for random numbers into these buffers. Returns how many bytes came.
    fn fill(memory: &GuestMemory, buffers: &[Buffer]) -> Result<u32, QueueError> {
        let mut ring = Ring::new(memory, 0x1_0000, QUEUE_SIZE);
        let interrupt = Arc::new(Interrupt::new("virtio-rng").unwrap());
        let mut queues = Queues::new(vec![Some(ring.queue(&interrupt))]);
        ring.add(buffers);
        Entropy::new().unwrap().notified(0, &mut queues)?;
        Ok(ring.used().expect("the request came back").1)
    }

    #[test]
    fn buffers_are_filled_and_differ() {
        let memory = testing::memory();
        assert_eq!(fill(&memory, &[Buffer(DATA, 32, true), Buffer(DATA + 64, 32, true)]).unwrap(), 64);
        let [first, gap, second] = [0, 32, 64].map(|at| bytes(&memory, DATA + at, 32));
        assert!(first != second && first != gap && gap == [0; 32]);
    }

    #[test]
    fn a_request_gets_a_bounded_part() {
        let memory = testing::memory();
        assert_eq!(fill(&memory, &[Buffer(DATA, MOST - 1, true), Buffer(DATA, MOST, true)]).unwrap(), MOST);
        assert_eq!(bytes(&memory, DATA + u64::from(MOST), 64), [0; 64]);
        assert_eq!(fill(&memory, &[Buffer(DATA, 8, false)]).unwrap(), 0, "nothing to be written");
    }

    #[test]
    fn a_buffer_where_nothing_is_breaks_the_device() {
        assert!(fill(&testing::memory(), &[Buffer(RAM, 8, true)]).is_err());
    }
}
