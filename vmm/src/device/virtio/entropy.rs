//! The entropy device (virtio 1.2, section 5.4): fills the driver's buffers with random numbers of the host.

use crate::device::virtio::Backend;
use crate::device::virtio::queue::{Answer, Chain, QueueError, Queues};
use crate::error::Error;
use crate::exit::Stop;
use crate::memory::{GuestMemory, TransferError};
use std::fs::File;
use virtio_bindings::virtio_ids;

/// The maximum size of the queue, in entries.
pub const QUEUE_SIZE: u16 = 64;
/// The most bytes that a request gets, so that one request cannot keep the host busy.
pub const MAX_BYTES: u32 = 64 << 10;

/// The back end of the entropy device.
#[derive(Debug)]
pub struct Entropy {
    source: File,
}

impl Entropy {
    /// Creates a device that reads `/dev/urandom`.
    ///
    /// # Errors
    /// `/dev/urandom` cannot be opened.
    pub fn new() -> Result<Self, Error> {
        let source = File::open("/dev/urandom").map_err(Error::host("opening /dev/urandom"))?;
        Ok(Self { source })
    }

    fn fill(&self, memory: &GuestMemory, chain: &mut Chain) -> Result<Answer, QueueError> {
        chain.limit_writable(MAX_BYTES);
        // This file has no offsets.
        match memory.read_from_file_at(&self.source, 0, chain.writable(), &|| chain.must_give_up()) {
            Ok(written) => Ok(Answer::Done(u32::try_from(written).unwrap_or(MAX_BYTES))),
            Err(TransferError::CutOff) => Ok(Answer::Later),
            Err(TransferError::NotMemory) => {
                Err(QueueError::Chain("a buffer for random numbers is not in guest memory"))
            }
            Err(TransferError::Host(error)) => {
                Err(QueueError::End(Stop::host(format!("/dev/urandom could not be read: {error}"))))
            }
        }
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

    /// Requests random numbers into `buffers`. Returns the number of bytes.
    fn fill(memory: &GuestMemory, buffers: &[Buffer]) -> Result<u32, QueueError> {
        let mut ring = Ring::new(memory, 0x1_0000, QUEUE_SIZE);
        let interrupt = Arc::new(Interrupt::new("virtio-rng").unwrap());
        let mut queues = Queues::new(vec![Some(ring.queue(&interrupt))]);
        ring.add(buffers);
        Entropy::new().unwrap().notified(0, &mut queues)?;
        Ok(ring.used().expect("the request is complete").1)
    }

    #[test]
    fn buffers_are_filled_and_differ() {
        let memory = testing::memory();
        assert_eq!(fill(&memory, &[Buffer(DATA, 32, true), Buffer(DATA + 64, 32, true)]).unwrap(), 64);
        let [first, gap, second] = [0, 32, 64].map(|at| bytes(&memory, DATA + at, 32));
        assert!(first != second && first != gap && gap == [0; 32]);
    }

    #[test]
    fn a_request_gets_a_bounded_number_of_bytes() {
        let memory = testing::memory();
        assert_eq!(
            fill(&memory, &[Buffer(DATA, MAX_BYTES - 1, true), Buffer(DATA, MAX_BYTES, true)]).unwrap(),
            MAX_BYTES
        );
        assert_eq!(bytes(&memory, DATA + u64::from(MAX_BYTES), 64), [0; 64]);
        assert_eq!(fill(&memory, &[Buffer(DATA, 8, false)]).unwrap(), 0, "no writable buffer");
    }

    #[test]
    fn a_buffer_outside_memory_breaks_the_device() {
        assert!(fill(&testing::memory(), &[Buffer(RAM, 8, true)]).is_err());
    }
}
