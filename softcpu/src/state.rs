//! The registers of the processor.

/// The bits of RFLAGS (SDM volume 1, section 3.4.3).
#[allow(missing_docs)]
pub mod flag {
    pub const CF: u64 = 1 << 0;
    pub const ONE: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The flags of an arithmetic instruction.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// The bits of CR0 (SDM volume 3, section 2.5).
#[allow(missing_docs)]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// The bits of CR4.
#[allow(missing_docs)]
pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
}

/// The bits of IA32_EFER.
#[allow(missing_docs)]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// The indices of the segment registers, in the order of their encoding.
#[allow(missing_docs)]
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// The indices of the general registers, in the order of their encoding.
pub(crate) mod gpr {
    pub(crate) const AX: usize = 0;
    pub(crate) const CX: usize = 1;
    pub(crate) const DX: usize = 2;
    pub(crate) const BX: usize = 3;
    pub(crate) const SP: usize = 4;
    pub(crate) const BP: usize = 5;
    pub(crate) const SI: usize = 6;
    pub(crate) const DI: usize = 7;
}

/// A segment register with its hidden part (SDM volume 3, sections 3.4.3 and 3.4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// The base address.
    pub base: u64,
    /// The last offset, in bytes: the granularity is already applied.
    pub limit: u32,
    /// The type field of the descriptor, 4 bits.
    pub kind: u8,
    /// True for a code or data segment, false for a system segment.
    pub code_or_data: bool,
    /// The descriptor's privilege level.
    pub dpl: u8,
    /// The segment is present.
    pub present: bool,
    /// Available to software.
    pub available: bool,
    /// 64-bit code.
    pub long: bool,
    /// The default size is 32 bits.
    pub big: bool,
    /// The granularity bit: the limit in the descriptor counts pages.
    pub pages: bool,
    /// The register holds a null selector, so that it cannot be used.
    pub unusable: bool,
}

impl Segment {
    /// A segment in real mode, as after a reset.
    pub(crate) const fn real(selector: u16, base: u64, kind: u8) -> Self {
        Self {
            selector,
            base,
            limit: 0xffff,
            kind,
            code_or_data: true,
            dpl: 0,
            present: true,
            available: false,
            long: false,
            big: false,
            pages: false,
            unusable: false,
        }
    }

    /// True for a code segment.
    pub fn is_code(&self) -> bool {
        self.code_or_data && self.kind & 8 != 0
    }

    /// True for a data segment that can be written.
    pub(crate) fn is_writable(&self) -> bool {
        self.code_or_data && self.kind & 0b1010 == 0b0010
    }

    /// True for a segment that can be read: data, or readable code.
    pub(crate) fn is_readable(&self) -> bool {
        self.code_or_data && self.kind & 0b1010 != 0b1000
    }

    /// True for an expand-down data segment.
    pub(crate) fn expands_down(&self) -> bool {
        self.code_or_data && self.kind & 0b1100 == 0b0100
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The linear address.
    pub base: u64,
    /// The offset of the last byte.
    pub limit: u16,
}

/// The x87 state that FXSAVE stores. The processor has no x87 arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fpu {
    /// The control word.
    pub control: u16,
    /// The status word.
    pub status: u16,
    /// The abridged tag word: a bit for each register that is in use.
    pub tag: u8,
    /// The last opcode.
    pub opcode: u16,
    /// The address of the last instruction.
    pub instruction: u64,
    /// The address of its operand.
    pub operand: u64,
    /// The registers R0 to R7, 80 bits each. ST(0) is the one that the status word names.
    pub registers: [[u8; 10]; 8],
}

/// The state after FNINIT.
impl Default for Fpu {
    fn default() -> Self {
        Self {
            control: 0x37f,
            status: 0,
            tag: 0,
            opcode: 0,
            instruction: 0,
            operand: 0,
            registers: [[0; 10]; 8],
        }
    }
}

/// The registers of the processor.
///
/// Change CR0, CR3, CR4, EFER and the segment registers only between runs, and call
/// [`Cpu::state_changed`](crate::Cpu::state_changed) afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of their encoding.
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS: see [`seg`].
    pub segments: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: Table,
    pub idtr: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    /// The page-directory pointers, which PAE paging loads with CR3 (SDM volume 3, section 4.4.1).
    pub pdptrs: [u64; 4],
    /// DR0 to DR7; 4 and 5 are not used.
    pub dr: [u64; 8],
    pub xmm: [u128; 16],
    pub mxcsr: u32,
    pub fpu: Fpu,
    /// IA32_SYSENTER_CS, IA32_SYSENTER_ESP, IA32_SYSENTER_EIP.
    pub sysenter: [u64; 3],
    /// IA32_STAR, IA32_LSTAR, IA32_CSTAR, IA32_FMASK.
    pub syscall: [u64; 4],
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub pat: u64,
    pub apic_base: u64,
    pub misc_enable: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_default: u64,
    /// The fixed-range MTRRs, in the order of their numbers.
    pub mtrr_fixed: [u64; 11],
    /// IA32_MTRR_PHYSBASE0, IA32_MTRR_PHYSMASK0, and so on.
    pub mtrr_variable: [u64; 16],
    pub tsc_adjust: u64,
    /// The difference between the time-stamp counter and the number of executed instructions.
    pub tsc_offset: u64,
}

/// The state after a reset (SDM volume 3, table 9-1).
impl Default for State {
    fn default() -> Self {
        let data = Segment::real(0, 0, 0b0011);
        let mut segments = [data; 6];
        segments[seg::CS] = Segment::real(0xf000, 0xffff_0000, 0b1011);
        let system = |kind| Segment { kind, code_or_data: false, ..data };
        let mut gpr = [0; 16];
        gpr[gpr::DX] = 0x600;
        Self {
            gpr,
            rip: 0xfff0,
            rflags: flag::ONE,
            segments,
            ldtr: system(0b0010),
            tr: system(0b1011),
            gdtr: Table { base: 0, limit: 0xffff },
            idtr: Table { base: 0, limit: 0xffff },
            cr0: cr0::ET | cr0::NW | cr0::CD,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            pdptrs: [0; 4],
            dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            xmm: [0; 16],
            mxcsr: 0x1f80,
            fpu: Fpu::default(),
            sysenter: [0; 3],
            syscall: [0; 4],
            kernel_gs_base: 0,
            tsc_aux: 0,
            pat: 0x0007_0406_0007_0406,
            apic_base: 0xfee0_0900,
            misc_enable: 1,
            mtrr_default: 0,
            mtrr_fixed: [0; 11],
            mtrr_variable: [0; 16],
            tsc_adjust: 0,
            tsc_offset: 0,
        }
    }
}

impl State {
    /// True in protected mode, which includes long mode.
    #[inline]
    pub fn is_protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    /// True in long mode: 64-bit or compatibility mode.
    #[inline]
    pub fn is_long(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// True in 64-bit mode.
    #[inline]
    pub fn is_64(&self) -> bool {
        self.is_long() && self.segments[seg::CS].long
    }

    /// The current privilege level.
    #[inline]
    pub fn cpl(&self) -> u8 {
        if self.is_protected() { self.segments[seg::SS].dpl } else { 0 }
    }

    /// The default width of the code, in bits: 16, 32 or 64.
    #[inline]
    pub fn code_bits(&self) -> u32 {
        match (self.is_64(), self.segments[seg::CS].big) {
            (true, _) => 64,
            (_, true) => 32,
            (_, false) => 16,
        }
    }

    /// True if RFLAGS has this bit.
    #[inline]
    pub fn has(&self, flag: u64) -> bool {
        self.rflags & flag != 0
    }
}
