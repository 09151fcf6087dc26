//! The in-kernel timer of a PC: the 8254 (PIT), and port 0x61, which controls its third counter.
//!
//! Linux `Documentation/virt/kvm/api.rst`, 4.71 "KVM_CREATE_PIT2", 4.72 "KVM_GET_PIT2", 4.26 "KVM_SET_GSI_ROUTING".

use crate::boot::mp::{CASCADE_IRQ, ISA_IRQS, TIMER_IRQ, TIMER_PIN};
use crate::device::pc::pit::FirstUse;
use crate::error::Error;
use crate::kvm::vm::Vm;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_pit_config,
};

/// The number of inputs of the I/O APIC.
const IOAPIC_PINS: u8 = 24;
/// The number of inputs of one 8259.
const PIC_PINS: u8 = 8;

impl Vm {
    /// Creates the PIT and port 0x61 (KVM_CREATE_PIT2). Its interrupt goes to input 0 of the first 8259 and to input 2 of the
    /// I/O APIC, as the ACPI and MP tables say (KVM_SET_GSI_ROUTING). The interrupt controllers must exist.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn create_pit(&self) -> Result<(), Error> {
        let routes: Vec<_> = routes().map(entry).collect();
        let routes = KvmIrqRouting::from_entries(&routes)
            .map_err(|_| Error::Config("there are more interrupt routes than KVM takes".into()))?;
        self.fd().set_gsi_routing(&routes).map_err(Error::kvm("KVM_SET_GSI_ROUTING"))?;
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.fd().create_pit2(config).map_err(Error::kvm("KVM_CREATE_PIT2"))
    }

    /// Creates the PIT as [`create_pit`](Self::create_pit), in the state after the guest's first access to it.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn create_used_pit(&self, first: FirstUse) -> Result<(), Error> {
        self.create_pit()?;
        let mut state = self.fd().get_pit2().map_err(Error::kvm("KVM_GET_PIT2"))?;
        match first {
            FirstUse::Gate => {
                if let Some(counter) = state.channels.get_mut(2) {
                    counter.gate = 1;
                }
            }
            FirstUse::Control { counter, access, mode, bcd } => {
                if let Some(counter) = state.channels.get_mut(usize::from(counter)) {
                    (counter.rw_mode, counter.read_state, counter.write_state) = (access, access, access);
                    (counter.mode, counter.bcd) = (mode, bcd);
                }
            }
            FirstUse::Other => return Ok(()),
        }
        self.fd().set_pit2(&state).map_err(Error::kvm("KVM_SET_PIT2"))
    }
}

/// An interrupt, an interrupt controller, and its input.
type Route = (u8, u32, u8);

/// The inputs of the interrupt controllers for each interrupt. Without them, KVM connects the PIT to input 0 of the I/O APIC.
fn routes() -> impl Iterator<Item = Route> {
    let pic = |irq: u8| match irq.checked_sub(PIC_PINS) {
        None => (irq, KVM_IRQCHIP_PIC_MASTER, irq),
        Some(pin) => (irq, KVM_IRQCHIP_PIC_SLAVE, pin),
    };
    let ioapic = |irq: u8| match irq {
        TIMER_IRQ => Some((irq, KVM_IRQCHIP_IOAPIC, TIMER_PIN)),
        CASCADE_IRQ => None,
        pin => Some((irq, KVM_IRQCHIP_IOAPIC, pin)),
    };
    (0..ISA_IRQS).map(pic).chain((0..IOAPIC_PINS).filter_map(ioapic))
}

/// A route as KVM takes it.
fn entry((irq, irqchip, pin): Route) -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip, pin: pin.into() };
    let u = kvm_irq_routing_entry__bindgen_ty_1 { irqchip };
    kvm_irq_routing_entry { gsi: irq.into(), type_: KVM_IRQ_ROUTING_IRQCHIP, u, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_interrupt_has_its_inputs_and_the_timer_has_input_2() {
        let places: Vec<_> = routes().collect();
        assert_eq!(places.len(), 16 + 23);
        for place in
            [(0, 0, 0), (0, 2, 2), (2, 0, 2), (4, 0, 4), (4, 2, 4), (9, 1, 1), (15, 1, 7), (23, 2, 23)]
        {
            assert!(places.contains(&place), "{place:?}");
        }
        assert!(!places.iter().any(|(gsi, chip, pin)| *chip == 2 && (*pin == 0 || *gsi == 2)));
    }
}
