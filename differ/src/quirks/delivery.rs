//! Exceptions that a host without hardware virtualization delivers itself: it knows usual gates and flat stacks only.

use super::Case;
use crate::layout::{GDT, HANDLERS, RING_0_CODE};
use crate::outcome;
use softcpu::{State, efer, flag, seg};

impl Case<'_> {
    /// Differences of the delivery of an exception, if the gates or the stack are not the usual ones. Elsewhere, the
    /// delivery is compared.
    pub(super) fn delivery(&self) -> Option<&'static str> {
        let soft = &self.culprit.soft;
        if soft.vectors.is_empty() {
            return None;
        }
        if self.is_real() {
            let ss = &self.culprit.step.before.segments[seg::SS];
            if ss.big {
                return Some("the host delivers exceptions of real mode on a stack of 16 bits");
            }
            let is_short = ss.limit < 0xffff || ss.kind & 4 != 0;
            return is_short.then_some("the host does not check the limit of SS in real mode");
        }
        let differs = outcome::flags(self.config, soft) ^ outcome::flags(self.config, &self.culprit.kvm);
        if differs == flag::AC && self.is_equal_with(|kvm, soft| outcome::copy_flags(self.config, kvm, soft))
        {
            return Some(
                "the host clears AC when it delivers an exception, so a fault of the handler does not show it",
            );
        }
        if self.is_equal_with(|kvm, soft| kvm.state.rflags |= soft.state.rflags & flag::AC) {
            return Some("the host clears AC when it delivers an exception");
        }
        if soft.vectors.contains(&8) && self.is_equal_with(|kvm, soft| kvm.state.cr2 = soft.state.cr2) {
            return Some(
                "KVM does not load CR2 with the address of a page fault that becomes a double fault",
            );
        }
        let mut vectors = soft.vectors.iter().copied().chain(self.kvm);
        vectors.find_map(|vector| self.gate(vector)).or_else(|| self.stack())
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
        let is_other = raw & 0xffff != HANDLERS + u64::from(vector) * 4;
        if is_other && self.culprit.undefined.flags != 0 {
            return Some("a frame, which is that of another vector, holds flags that are undefined");
        }
        let selector = (raw >> 16) as u16;
        let is_usual =
            selector == RING_0_CODE && soft.state.gdtr.base == GDT && soft.state.gdtr.limit > RING_0_CODE + 7;
        if !is_usual {
            return Some("the host does not check the code segment of a gate");
        }
        // Present code of ring 0, which a program may have overwritten.
        if soft.word(GDT + u64::from(RING_0_CODE)) >> 40 & 0xfc != 0x98 {
            return Some("the host does not check the code segment of a gate");
        }
        if upper & 0xffff_ffff != 0 || raw >> 48 != 0 || raw & 0xffff >= 0x4000 {
            return Some("the host does not check the offset of a gate");
        }
        (is_long && raw >> 32 & 7 != 0).then_some("the host does not check the stacks of the TSS")
    }

    /// The property of the stack that the host ignores.
    fn stack(&self) -> Option<&'static str> {
        let state: &State = &self.culprit.step.before;
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
        let has_trap = self.culprit.step.before.rflags & flag::TF != 0;
        (has_trap && self.kvm.is_none() && self.soft == Some(1))
            .then_some("the host does not trap after this instruction")
    }
}
