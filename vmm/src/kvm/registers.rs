//! KVM's structures for registers and CPUID leaves, and their counterparts in [`x86::registers`](crate::x86::registers).

use crate::x86::registers::{CpuidEntry, DescriptorTable, Regs, Segment, Sregs};
use kvm_bindings::{kvm_cpuid_entry2, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// Implements `From` in both directions for structures with fields of the same names.
macro_rules! convert {
    ($ours:ident, $theirs:ident, $($field:ident),+) => {
        impl From<$theirs> for $ours {
            fn from(from: $theirs) -> Self {
                Self { $($field: from.$field.into()),+ }
            }
        }
        impl From<$ours> for $theirs {
            fn from(from: $ours) -> Self {
                // Some structures of the kernel have padding.
                #[allow(clippy::needless_update)]
                Self { $($field: from.$field.into(),)+ ..Default::default() }
            }
        }
    };
}

convert!(
    Regs, kvm_regs, rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags
);
convert!(Segment, kvm_segment, base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable);
convert!(DescriptorTable, kvm_dtable, base, limit);
convert!(
    Sregs,
    kvm_sregs,
    cs,
    ds,
    es,
    fs,
    gs,
    ss,
    tr,
    ldt,
    gdt,
    idt,
    cr0,
    cr2,
    cr3,
    cr4,
    cr8,
    efer,
    apic_base,
    interrupt_bitmap
);
convert!(CpuidEntry, kvm_cpuid_entry2, function, index, flags, eax, ebx, ecx, edx);
