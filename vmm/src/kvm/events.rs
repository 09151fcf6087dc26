//! Events that the kernel delivers without an exit: interrupts, doorbells, queue notifications, coalesced stores.

use crate::error::Error;
use crate::host::EventFd;
use crate::kvm::vm::Vm;
use kvm_bindings::{KVM_CAP_COALESCED_MMIO, KVM_CAP_IOEVENTFD};
use kvm_ioctls::IoEventAddress;
use simvirtio::abi;

impl Vm {
    /// Connects an event to an interrupt: a write to `line` raises `irq` in the guest (KVM_IRQFD).
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn connect_interrupt(&self, line: &EventFd, irq: u32) -> Result<(), Error> {
        self.fd().register_irqfd(line, irq).map_err(Error::kvm("KVM_IRQFD"))
    }

    /// Connects the SIMVIRTIO doorbell: a store of either queue's number to the doorbell page signals `bell` (KVM_IOEVENTFD).
    ///
    /// # Errors
    /// The kernel lacks KVM_CAP_IOEVENTFD, or refused.
    pub(crate) fn connect_doorbell(&self, bell: &EventFd) -> Result<(), Error> {
        if self.fd().check_extension_raw(KVM_CAP_IOEVENTFD.into()) <= 0 {
            return Err(Error::TransportNeeds { transport: "doorbell", capability: "KVM_CAP_IOEVENTFD" });
        }
        let place = IoEventAddress::Mmio(abi::DOORBELL);
        [abi::doorbell::TX, abi::doorbell::RX]
            .into_iter()
            .try_for_each(|queue| self.fd().register_ioevent(bell, &place, queue))
            .map_err(Error::kvm("KVM_IOEVENTFD"))
    }

    /// Makes the kernel queue stores to TX head. A store that is not completely within that word still exits.
    ///
    /// # Errors
    /// The kernel lacks KVM_CAP_COALESCED_MMIO, or refused.
    pub(crate) fn coalesce_tx_head(&self) -> Result<(), Error> {
        if self.fd().check_extension_raw(KVM_CAP_COALESCED_MMIO.into()) <= 0 {
            return Err(Error::TransportNeeds {
                transport: "coalesced",
                capability: "KVM_CAP_COALESCED_MMIO",
            });
        }
        let place = IoEventAddress::Mmio(abi::WINDOW.saturating_add(abi::offset::TX_HEAD));
        self.fd().register_coalesced_mmio(place, 4).map_err(Error::kvm("KVM_REGISTER_COALESCED_MMIO"))
    }

    /// Connects the notifications of a virtio queue: a store of the queue's number `queue` at `address` signals `event`
    /// (KVM_IOEVENTFD).
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn connect_queue(&self, event: &EventFd, address: u64, queue: u32) -> Result<(), Error> {
        let address = IoEventAddress::Mmio(address);
        self.fd().register_ioevent(event, &address, queue).map_err(Error::kvm("KVM_IOEVENTFD"))
    }
}
