//! The in-kernel interrupt controllers: two 8259, and the I/O APIC.

use crate::error::Error;
use crate::kvm::vm::Vm;
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};

/// The state of the interrupt controllers.
pub(crate) struct Irqchip([kvm_irqchip; 3]);

impl Vm {
    /// Creates the interrupt controllers (KVM_CREATE_IRQCHIP).
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn create_irqchip(&self) -> Result<(), Error> {
        self.fd().create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))
    }

    /// The state of the interrupt controllers (KVM_GET_IRQCHIP).
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn irqchip(&self) -> Result<Irqchip, Error> {
        let mut chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut chips {
            self.fd().get_irqchip(chip).map_err(Error::kvm("KVM_GET_IRQCHIP"))?;
        }
        Ok(Irqchip(chips))
    }

    /// Puts the interrupt controllers into `state` (KVM_SET_IRQCHIP).
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn set_irqchip(&self, state: &Irqchip) -> Result<(), Error> {
        state.0.iter().try_for_each(|chip| self.fd().set_irqchip(chip)).map_err(Error::kvm("KVM_SET_IRQCHIP"))
    }

    /// Masks all lines of the two 8259 interrupt controllers. KVM creates them together with the I/O APIC and connects them to
    /// the same lines. The ACPI tables do not list them, so a kernel would not expect their interrupts.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn mask_legacy_controllers(&self) -> Result<(), Error> {
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.fd().get_irqchip(&mut chip).map_err(Error::kvm("KVM_GET_IRQCHIP"))?;
            chip.chip.pic.imr = 0xff;
            self.fd().set_irqchip(&chip).map_err(Error::kvm("KVM_SET_IRQCHIP"))?;
        }
        Ok(())
    }
}
