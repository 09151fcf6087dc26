//! Exceptions that a host without hardware virtualization delivers itself: it knows usual gates and flat stacks only.

use super::Case;
use super::tables::translate;
use crate::layout::{CODE, GDT, MEMORY, RING_0_CODE, TABLES};
use crate::outcome::{self, End, Outcome};
use softcpu::{State, efer, flag, seg};

/// The bytes of the largest frame, and of its alignment.
const LARGEST_FRAME: u64 = 0x40;
/// The bytes of a frame of real mode: FLAGS, CS and IP.
const REAL_FRAME: u64 = 6;

impl Case<'_> {
    /// Differences of the delivery of an exception, if the gates or the stack are not the usual ones. Elsewhere, the
    /// delivery is compared.
    pub(super) fn delivery(&self) -> Option<&'static str> {
        let soft = &self.culprit.soft;
        let delivered = self.vectors();
        if delivered.is_empty() {
            return None;
        }
        let undefined = self.culprit.undefined.flags & flag::STATUS;
        if undefined != 0 && self.is_equal_with(|kvm, soft| saved_flags(kvm, soft, undefined)) {
            return Some("a frame holds flags that are undefined");
        }
        if self.is_real() {
            let ss = &self.step.before.segments[seg::SS];
            if ss.big {
                return Some("the host delivers exceptions of real mode on a stack of 16 bits");
            }
            let pointer = ss.base.wrapping_add(self.step.before.gpr[4] & 0xffff);
            if pointer > u32::MAX.into() {
                return Some("the host does not wrap the stack of real mode around at 4 GiB");
            }
            // The SDM lets the processor shut down (vol. 2, PUSH).
            let pointer = self.step.before.gpr[4] & 0xffff;
            if pointer % 2 == 1 && pointer < REAL_FRAME {
                return Some("the host lets the stack of real mode go past address 0 within a word");
            }
            let is_short = ss.limit < 0xffff || ss.kind & 4 != 0;
            return is_short.then_some("the host does not check the limit of SS in real mode");
        }
        let differs = outcome::flags(self.config, soft) ^ outcome::flags(self.config, &self.culprit.kvm);
        if differs == flag::AC
            && self.is_equal_with(|kvm, soft| outcome::copy_flags(self.config, kvm, soft, u64::MAX))
        {
            return Some(
                "the host clears AC when it delivers an exception, so a fault of the handler does not show it",
            );
        }
        if self.is_equal_with(|kvm, soft| kvm.state.rflags |= soft.state.rflags & flag::AC) {
            return Some("the host clears AC when it delivers an exception");
        }
        if delivered.contains(&8) && self.is_equal_with(|kvm, soft| kvm.state.cr2 = soft.state.cr2) {
            return Some(
                "KVM does not load CR2 with the address of a page fault that becomes a double fault",
            );
        }
        let mut vectors = delivered.iter().copied().chain(self.kvm);
        vectors.find_map(|vector| self.gate(vector)).or_else(|| self.stack())
    }

    /// Stacks on which the host cannot deliver an exception, so that it ends with a triple fault.
    pub(super) fn shutdown(&self) -> Option<&'static str> {
        let (kvm, soft) = (&self.culprit.kvm, &self.culprit.soft);
        if self.vectors().is_empty() {
            return None;
        }
        let writes = |outcome: &Outcome| {
            let accesses = outcome.accesses.get(self.step.accesses..).unwrap_or_default();
            accesses.iter().any(|access| access.kind == 'w')
        };
        if self.is_elsewhere() && writes(soft) && !writes(kvm) {
            return Some("KVM cannot deliver an exception to memory-mapped I/O");
        }
        let is_low = self.step.before.is_protected() && self.step.before.gpr[4] < LARGEST_FRAME;
        if is_low && self.is_elsewhere() {
            return Some("the host cannot deliver an exception to a stack that goes past address 0");
        }
        if kvm.end != End::Shutdown {
            return None;
        }
        if soft.end == End::Shutdown {
            return self
                .is_equal_with(frame)
                .then_some("the host writes a frame before it sees that the delivery faults");
        }
        let entry = |vector: u8| soft.state.idtr.base.wrapping_add(u64::from(vector) * 4);
        if self.is_real() && self.vectors().iter().any(|vector| entry(*vector) > MEMORY - 4) {
            return Some("the host cannot read the interrupt table of real mode from memory-mapped I/O");
        }
        let pointers = [self.step.before.gpr[4], soft.state.gpr[4]];
        // The frame may have overwritten the entry of its own page.
        let is_table = |at: u64| {
            let mut memories = [&self.culprit.image, &kvm.memory, &soft.memory].into_iter();
            memories.any(|memory| {
                let place = translate(memory, self.step.before.cr3, at);
                place.is_some_and(|at| (TABLES..CODE).contains(&at))
            })
        };
        if self.step.before.is_long() && pointers.into_iter().any(is_table) {
            return Some("the host cannot deliver an exception to a stack in page tables");
        }
        None
    }

    /// The property of a gate that the host takes for another one.
    fn gate(&self, vector: u8) -> Option<&'static str> {
        let soft = &self.culprit.soft;
        let is_long = soft.state.efer & efer::LMA != 0;
        let size = if is_long { 16 } else { 8 };
        let offset = u64::from(vector) * size;
        if offset + size - 1 > soft.state.idtr.limit.into() {
            return Some("the host does not check the limit of the IDT in the delivery of an exception");
        }
        let at = soft.state.idtr.base.wrapping_add(offset);
        let (raw, upper) = (soft.word(at), if is_long { soft.word(at.wrapping_add(8)) } else { 0 });
        if at % 8 != 0 || raw == 0 {
            return Some("the host does not read an IDT at any place");
        }
        if !matches!(raw >> 40 & 0x1f, 14 | 15) {
            return Some(
                "the host delivers an exception through a gate of any type as if it had 32 or 64 bits",
            );
        }
        if raw >> 47 & 1 == 0 {
            return Some("the host takes a gate that is not present for a double fault");
        }
        let selector = (raw >> 16) as u16;
        let is_usual =
            selector == RING_0_CODE && soft.state.gdtr.base == GDT && soft.state.gdtr.limit > RING_0_CODE + 7;
        if !is_usual {
            return Some("the host does not check the code segment of a gate");
        }
        // Present code of ring 0 from address 0 to its end, which a program may have overwritten.
        let code = soft.word(GDT + u64::from(RING_0_CODE));
        if code >> 40 & 0xfc != 0x98
            || code >> 16 & 0xff_ffff != 0
            || code >> 56 != 0
            || code & 0xffff != 0xffff
        {
            return Some("the host does not check the code segment of a gate");
        }
        if upper & 0xffff_ffff != 0 || raw >> 48 != 0 || raw & 0xffff >= 0x4000 {
            return Some("the host does not check the offset of a gate");
        }
        (is_long && raw >> 32 & 7 != 0).then_some("the host does not check the stacks of the TSS")
    }

    /// The property of the stack that the host ignores.
    fn stack(&self) -> Option<&'static str> {
        let state: &State = &self.step.before;
        let ss = &self.culprit.soft.state.segments[seg::SS];
        let old = &state.segments[seg::SS];
        let is_flat = |ss: &softcpu::Segment| {
            !ss.unusable && ss.base == 0 && ss.limit == u32::MAX && ss.kind & 4 == 0 && ss.big
        };
        let is_low = state.gpr[4] < 0xffff && state.gpr[4] > 64;
        let is_usual = |ss: &softcpu::Segment| {
            is_flat(ss) || !ss.unusable && ss.base == 0 && ss.limit >= 0xffff && ss.kind & 4 == 0 && is_low
        };
        if state.efer & efer::LMA == 0 && state.is_protected() && !(is_usual(ss) && is_usual(old)) {
            return Some("the host delivers exceptions as if SS were flat and had 32 bits");
        }
        let has_trap = self.step.before.rflags & flag::TF != 0;
        (has_trap && self.kvm.is_none() && self.soft == Some(1))
            .then_some("the host does not trap after this instruction")
    }
}

/// Takes a frame from softcpu, which begins at the first word that differs.
fn frame(kvm: &mut Outcome, soft: &Outcome) {
    let words = kvm.memory.iter_mut().zip(&soft.memory).skip_while(|(kvm, soft)| kvm == soft);
    words.take((LARGEST_FRAME / 8) as usize).for_each(|(kvm, soft)| *kvm = *soft);
}

/// Takes the flags that a frame holds at any address from softcpu, if only these differ.
pub fn saved_flags(kvm: &mut Outcome, soft: &Outcome, undefined: u64) {
    for (kvm, soft) in kvm.memory.iter_mut().zip(&soft.memory) {
        if *kvm != *soft && (0..8).any(|byte| (*kvm ^ soft) & !(undefined << (byte * 8)) == 0) {
            *kvm = *soft;
            return;
        }
    }
}
