//! The in-kernel interrupt controllers: two 8259, and the I/O APIC.

use crate::error::Error;
use crate::kvm::vm::Vm;
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};

/// The mask of an input of the I/O APIC, in its entry of the redirection table.
const IOAPIC_MASK: u64 = 1 << 16;

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

    /// True if an interrupt controller lets interrupt `irq`, below 8, pass to a processor. False if the kernel does not tell
    /// (KVM_GET_IRQCHIP).
    #[allow(unsafe_code)]
    pub(crate) fn accepts_interrupt(&self, irq: u32) -> bool {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.fd().get_irqchip(&mut chip).ok().map(|()| chip)
        };
        // SAFETY: the kernel has filled the part of the union that belongs to this controller; all of its bits are valid.
        let pic = chip(KVM_IRQCHIP_PIC_MASTER).map(|chip| unsafe { chip.chip.pic.imr });
        // SAFETY: as above.
        let ioapic = chip(KVM_IRQCHIP_IOAPIC).and_then(|chip| unsafe {
            let entry = chip.chip.ioapic.redirtbl.get(usize::try_from(irq).ok()?).copied()?;
            Some(entry.bits)
        });
        let passes_pic = pic.is_some_and(|mask| mask.checked_shr(irq).is_some_and(|mask| mask & 1 == 0));
        passes_pic || ioapic.is_some_and(|entry| entry & IOAPIC_MASK == 0)
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
