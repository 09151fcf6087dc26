//! Exceptions and interrupts that led a guest away from its code, as the software processor remembers them.
//!
//! In real mode the interrupt vector table is at address 0, and the VMM leaves it zero: an exception without a handler goes
//! to 0000:0000 (SDM volume 3, section 21.1.4). With KVM, only its stack frame may be found (`derail.rs`).

use super::instruction::instruction_bytes;
use super::{Target, View, translate};
use crate::boot::Image;
use crate::machine::doubt::empty_because;
use crate::memory::{PagedMemory, ReadMemory};
use softcpu::{Cpu, Delivery};

/// The exception or interrupt that entered a handler that is no code, as a phrase. `None` if its instruction is outside of
/// the image: the guest had left its code before.
pub(super) fn stray(
    cpu: &Cpu<PagedMemory>,
    probe: &View<'_>,
    memory: &dyn ReadMemory,
    image: &Image,
) -> Option<String> {
    let is_of_image = |delivery: &&Delivery| {
        // Vectors are empty only in real mode, where a segment begins at 16 times its selector.
        let base = if cpu.state.is_protected() { 0 } else { u64::from(delivery.cs) << 4 };
        image.byte_at(base.wrapping_add(delivery.rip)).is_some()
    };
    if let Some(delivery) = cpu.first_empty_delivery() {
        return Some(delivery).filter(is_of_image).map(|delivery| through_empty_vector(delivery, image));
    }
    // The guest may have caused others since, at the wrong place.
    cpu.origins().filter(is_of_image).find_map(|delivery| {
        let place = no_code(&translate(probe, memory, delivery.handler), memory, image)?;
        let handler = format!("{:04x}:{:04x}", delivery.handler_cs, delivery.handler_rip);
        Some(format!("{} entered its handler at {handler}, {place}", event(delivery)))
    })
}

fn through_empty_vector(delivery: &Delivery, image: &Image) -> String {
    let vector = delivery.fault.vector;
    let advice = match delivery.is_software {
        true => empty_because(vector, image),
        false => "the guest has set none".into(),
    };
    format!(
        "{} went through the empty vector {vector} of the IVT, which has no handler, because {advice}",
        event(delivery)
    )
}

/// The exception or interrupt in words, with the address of its instruction.
fn event(delivery: &Delivery) -> String {
    let Delivery { fault, cs, rip, .. } = delivery;
    let at = format!("at {cs:04x}:{rip:04x}");
    match (delivery.is_software, meaning(fault.vector)) {
        (true, _) => format!("int {:#x} {at}", fault.vector),
        (false, Some(meaning)) => format!("{fault} ({meaning}) {at}"),
        (false, None) => format!("{fault} {at}"),
    }
}

/// The meaning of an exception's vector.
fn meaning(vector: u8) -> Option<&'static str> {
    Some(match vector {
        0 => "a division by zero, or a quotient that does not fit",
        1 => "a debug exception",
        5 => "an index outside its bounds",
        6 => "an undefined instruction, or one of a feature that is off",
        7 => "an FPU, MMX or SSE instruction while CR0 has them off",
        12 => "an access beyond the stack segment",
        13 => "an access beyond a segment's limit, or another general protection fault",
        14 => "an access to a page that is not mapped, or does not allow it",
        16 | 19 => "a floating-point exception",
        17 => "a misaligned access",
        _ => return None,
    })
}

/// The reason why no handler can be at an address, as a clause. A guest may have built a handler outside its image, so there
/// any bytes but zeroes count as code.
fn no_code(target: &Target, memory: &dyn ReadMemory, image: &Image) -> Option<&'static str> {
    if target.fault.is_some() {
        return Some("which is not mapped");
    }
    let Some(gpa) = target.gpa else { return Some("where there is no memory") };
    let is_zero =
        image.byte_at(gpa.0).is_none() && instruction_bytes(memory, gpa).iter().all(|byte| *byte == 0);
    is_zero.then_some("where there are zeroes and no code")
}

#[cfg(test)]
mod tests {
    use super::*;
    use softcpu::Fault;

    #[test]
    fn deliveries_in_words() {
        let delivery = |vector, is_software| Delivery {
            fault: Fault { vector, error: None, cr2: None, while_delivering: None },
            is_software,
            cs: 0,
            rip: 0x1003,
            instructions: 1,
            handler_cs: 0,
            handler_rip: 0,
            handler: 0,
        };
        assert_eq!(
            through_empty_vector(&delivery(0, false), &Image::default()),
            "#DE (a division by zero, or a quotient that does not fit) at 0000:1003 went through the empty vector 0 of the IVT, \
             which has no handler, because the guest has set none"
        );
        assert_eq!(
            through_empty_vector(&delivery(0x21, true), &Image::default()),
            "int 0x21 at 0000:1003 went through the empty vector 33 of the IVT, which has no handler, because this machine has \
             no BIOS and no DOS: print with port 0xe9"
        );
        let disk = through_empty_vector(&delivery(0x10, true), &Image::disk(vec![1; 512]).unwrap());
        assert!(disk.ends_with("because the guest has overwritten its vector"), "{disk}");
    }
}
