//! Virtio devices (virtio 1.2): a disk, a console and a source of entropy behind the MMIO transport.
//!
//! | file | what | section |
//! |---|---|---|
//! | `mmio.rs` | the registers and the state machine that a driver sees, on the vCPUs' threads | 4.2, 3.1.1 |
//! | `registers.rs` | their offsets and bits | 4.2.2, 2.1 |
//! | `register_mirror.rs` | the registers as the guest reads them, without an exit | |
//! | `thread.rs` | the device's own thread, which serves its queues | |
//! | `queue.rs` | a queue in the device's hands: chains of descriptors, checked | 2.7 |
//! | `interrupt.rs` | what the device tells the driver | 2.9, 4.2.2 |
//! | `block.rs`, `disk.rs` | the disk, and the image behind it | 5.2 |
//! | `console.rs` | the console | 5.3 |
//! | `entropy.rs` | the source of entropy | 5.4 |
//!
//! A store to QueueNotify is taken by the kernel (KVM_IOEVENTFD) and wakes the device's thread; an interrupt
//! goes through the kernel too (KVM_IRQFD). A request therefore costs the vCPU's thread nothing but the exit.
//!
//! A driver that breaks the rules of a queue (a chain that loops, is too long, or whose table lies) gets
//! DEVICE_NEEDS_RESET and a configuration-change interrupt (section 2.1.2): the ring cannot be believed any
//! more. A mistake in one request only, such as a buffer where no memory is, is that request's error, where
//! the device has a way to say so.

pub(crate) mod block;
pub(crate) mod console;
pub(crate) mod disk;
pub(crate) mod entropy;
pub(crate) mod interrupt;
pub(crate) mod mmio;
pub(crate) mod queue;
pub(crate) mod register_mirror;
pub(crate) mod registers;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod thread;

pub use block::Block;
pub use console::{ConsoleDevice, ConsoleInput};
pub use disk::Disk;
pub use entropy::Entropy;
pub use mmio::Mmio;

use queue::{QueueError, Queues};
use vmm_sys_util::eventfd::EventFd;

/// What a kind of device does behind the transport. It runs on the device's own thread.
pub trait Backend: Send {
    /// What kind of device it is (section 5).
    fn id(&self) -> u32;

    /// The name of the device, without blanks, for the exit profile and for log messages.
    fn name(&self) -> &'static str;

    /// The feature bits of its own that it offers; the transport adds those of the rings.
    fn features(&self) -> u64 {
        0
    }

    /// How many entries each queue has at most: powers of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Its configuration space, which neither side changes.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The driver is ready, and has taken these features of those offered.
    fn start(&mut self, features: u64) {
        let _ = features;
    }

    /// The driver has notified queue `index`.
    ///
    /// # Errors
    /// The driver broke the rules, and the device needs a reset.
    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), QueueError>;

    /// What else to wait for, each a descriptor of its own. Its counter is not read: each write counts.
    fn sources(&self) -> Vec<&EventFd> {
        Vec::new()
    }

    /// Source `index` was written to while the driver was ready.
    ///
    /// # Errors
    /// As for [`Self::notified`].
    fn signalled(&mut self, index: usize, queues: &mut Queues) -> Result<(), QueueError> {
        let _ = (index, queues);
        Ok(())
    }

    /// The driver has reset the device.
    fn reset(&mut self) {}

    /// The machine has ended: what is to last is made to last.
    fn close(&mut self) {}
}
