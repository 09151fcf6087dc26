//! The registers and CPUID leaves of a vCPU, in the shape in which every kind of vCPU reads and sets them.
//!
//! The names and meanings are those of KVM's structures (Linux `Documentation/virt/kvm/api.rst`, sections KVM_GET_REGS,
//! KVM_GET_SREGS and KVM_GET_SUPPORTED_CPUID). They are types of their own, because the library also builds where there is
//! no KVM.

/// The flags in RFLAGS: bits and names, in ascending order (Intel SDM volume 1, section 3.4.3).
pub const FLAGS: [(u8, &str); 16] = [
    (0, "CF"),
    (2, "PF"),
    (4, "AF"),
    (6, "ZF"),
    (7, "SF"),
    (8, "TF"),
    (9, "IF"),
    (10, "DF"),
    (11, "OF"),
    (14, "NT"),
    (16, "RF"),
    (17, "VM"),
    (18, "AC"),
    (19, "VIF"),
    (20, "VIP"),
    (21, "ID"),
];

/// The general registers, RIP and RFLAGS (`Regs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// The x87 and SSE registers, as FXSAVE64 stores them (Intel SDM volume 1, section 10.5.1).
pub type FxImage = [u8; 512];

/// The segment and control registers (`Sregs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Sregs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    /// A bit for each external interrupt that is pending.
    pub interrupt_bitmap: [u64; 4],
}

/// A segment register with its hidden part (`Segment`; Intel SDM volume 3, section 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The base address.
    pub base: u64,
    /// The last offset in bytes, whatever the granularity is.
    pub limit: u32,
    /// The selector.
    pub selector: u16,
    /// The type field of the descriptor, 4 bits.
    pub type_: u8,
    /// 1: present.
    pub present: u8,
    /// The descriptor's privilege level.
    pub dpl: u8,
    /// 1: the default size is 32 bits.
    pub db: u8,
    /// 1: a code or data segment; 0: a system segment.
    pub s: u8,
    /// 1: 64-bit code.
    pub l: u8,
    /// 1: the limit in the descriptor counts pages.
    pub g: u8,
    /// Available to software.
    pub avl: u8,
    /// 1: the register holds a null selector.
    pub unusable: u8,
}

/// The base and limit of the GDT or the IDT (`DescriptorTable`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// The linear address.
    pub base: u64,
    /// The offset of the last byte.
    pub limit: u16,
}

/// A CPUID leaf (`CpuidEntry`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidEntry {
    /// EAX before CPUID: the leaf.
    pub function: u32,
    /// ECX before CPUID: the subleaf.
    pub index: u32,
    /// [`Self::HAS_INDEX`], or 0.
    pub flags: u32,
    /// EAX after CPUID.
    pub eax: u32,
    /// EBX after CPUID.
    pub ebx: u32,
    /// ECX after CPUID.
    pub ecx: u32,
    /// EDX after CPUID.
    pub edx: u32,
}

impl CpuidEntry {
    /// The flag of a leaf with subleaves (HAS_INDEX).
    pub const HAS_INDEX: u32 = 1;
}
