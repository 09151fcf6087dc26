//! Virtio devices (virtio 1.2): a disk, a console and an entropy device behind the MMIO transport.
//!
//! | file | content | section |
//! |---|---|---|
//! | `mmio.rs` | the registers and the state machine that a driver sees, on the threads of the vCPUs | 4.2, 3.1.1 |
//! | `registers.rs` | the offsets and bits of the registers | 4.2.2, 2.1 |
//! | `register_mirror.rs` | a read-only memory slot from which guests read the registers, without an exit | |
//! | `thread.rs` | the device's own thread, which serves its queues | |
//! | `queue.rs` | the device side of a queue: checked descriptor chains | 2.7 |
//! | `interrupt.rs` | interrupts and the device status | 2.9, 4.2.2 |
//! | `block.rs`, `disk.rs`, `image.rs` | the block device, its disk, and the image file | 5.2 |
//! | `console.rs` | the console | 5.3 |
//! | `entropy.rs` | the entropy device | 5.4 |
//!
//! The kernel handles a store to QueueNotify (KVM_IOEVENTFD) and wakes the device's thread. Interrupts also go through
//! the kernel (KVM_IRQFD). A request therefore costs the vCPU's thread only the exit inside the kernel.
//!
//! A driver that breaks the rules of a queue (a chain that loops, a chain that is too long, an invalid indirect table)
//! gets DEVICE_NEEDS_RESET and a configuration-change interrupt (section 2.1.2), because the content of the ring can no
//! longer be trusted. A mistake in a single request, such as a buffer outside memory, is an error of this request if
//! the device can report it.
//!
//! May import what [`crate::device`] may import.

pub(crate) mod block;
pub(crate) mod console;
pub(crate) mod disk;
pub(crate) mod entropy;
pub(crate) mod image;
pub(crate) mod interrupt;
pub(crate) mod mmio;
pub(crate) mod queue;
pub(crate) mod register_mirror;
pub(crate) mod registers;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod thread;

pub use block::Block;
pub(crate) use console::ConsolePort;
pub use console::{ConsoleDevice, ConsoleInput};
pub use disk::Disk;
pub use entropy::Entropy;
pub use mmio::Mmio;

use crate::exit::Stop;
use crate::host::EventFd;
use queue::{QueueError, Queues};

/// A kind of device behind the transport. Runs on the device's own thread.
pub trait Backend: Send {
    /// The device type (section 5).
    fn id(&self) -> u32;

    /// The name of the device, without blanks, for the exit profile and for log messages.
    fn name(&self) -> &'static str;

    /// The feature bits of this device type that it offers. The transport adds those of the rings.
    fn features(&self) -> u64 {
        0
    }

    /// The maximum size of each queue, in entries. Powers of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// The configuration space at the start. The driver does not change it, and the device only through `Mmio::set_config`.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Called when the driver is ready. `features` are the offered features that the driver accepted.
    fn start(&mut self, features: u64) {
        let _ = features;
    }

    /// Called when the driver has notified queue `index`. A request that takes more than a few milliseconds asks its chain
    /// again and again if the run must end (`queue::Chain::must_give_up`).
    ///
    /// # Errors
    /// The driver broke the rules of the queue, and the device needs a reset; or the run must end.
    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), QueueError>;

    /// Further events that the thread waits for, each with its own descriptor. Their counters are not read: each write
    /// is a new event.
    fn sources(&self) -> Vec<&EventFd> {
        Vec::new()
    }

    /// Called when source `index` was signalled while the driver was ready.
    ///
    /// # Errors
    /// As for [`Self::notified`].
    fn signalled(&mut self, index: usize, queues: &mut Queues) -> Result<(), QueueError> {
        let _ = (index, queues);
        Ok(())
    }

    /// Called when the driver has reset the device.
    fn reset(&mut self) {}

    /// Called when the machine has ended. Writes cached data to its storage, until `must_give_up` returns true.
    ///
    /// # Errors
    /// The host failed, and the run must not end as a success.
    fn close(&mut self, must_give_up: &dyn Fn() -> bool) -> Result<(), Stop> {
        let _ = must_give_up;
        Ok(())
    }
}
