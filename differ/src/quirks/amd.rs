//! Differences between processors of AMD and those of Intel, which softcpu follows (AMD64 Architecture Programmer's Manual, volume 3).
//! They are seen in ring 3 on a host that runs it natively.

use super::Case;
use core::arch::x86_64::__cpuid;
use iced_x86::Mnemonic;

const APPROXIMATIONS: [Mnemonic; 4] =
    [Mnemonic::Rcpps, Mnemonic::Rcpss, Mnemonic::Rsqrtps, Mnemonic::Rsqrtss];
const BRANCHES: [Mnemonic; 3] = [Mnemonic::Call, Mnemonic::Jmp, Mnemonic::Ret];
const UNALIGNED: [Mnemonic; 3] = [Mnemonic::Movups, Mnemonic::Movupd, Mnemonic::Movdqu];
const ROTATIONS: [Mnemonic; 2] = [Mnemonic::Rcl, Mnemonic::Rcr];
const DOUBLE_SHIFTS: [Mnemonic; 2] = [Mnemonic::Shld, Mnemonic::Shrd];
const COMPARISONS: [Mnemonic; 8] = [
    Mnemonic::Cmpsb,
    Mnemonic::Cmpsw,
    Mnemonic::Cmpsd,
    Mnemonic::Cmpsq,
    Mnemonic::Scasb,
    Mnemonic::Scasw,
    Mnemonic::Scasd,
    Mnemonic::Scasq,
];
/// MXCSR.MM.
const MISALIGNED: u32 = 1 << 17;
/// The operand-size prefix, and the address-size prefix.
const OPERAND_SIZE: [u8; 1] = [0x66];
const ADDRESS_SIZE: [u8; 1] = [0x67];

/// True if the processor of this host is one of AMD.
fn is_amd() -> bool {
    // "AuthenticAMD" in EBX, EDX and ECX.
    let vendor = __cpuid(0);
    (vendor.ebx, vendor.edx, vendor.ecx) == (0x6874_7541, 0x6974_6e65, 0x444d_4163)
}

impl Case<'_> {
    /// Those of ring 3 on a host with a processor of AMD.
    pub(super) fn amd(&self) -> Option<&'static str> {
        let is_branch = self.is(&BRANCHES);
        let why = if self.is(&APPROXIMATIONS) {
            "processors approximate reciprocals in their own ways"
        } else if is_branch && self.step.has_prefix(&OPERAND_SIZE) {
            "AMD's near branches of 64-bit mode have 16 bits with the prefix 66"
        } else if is_branch && (self.kvm, self.soft) == (Some(13), Some(13)) {
            "AMD checks the target of a call before it pushes the return address"
        } else if self.mnemonic == Mnemonic::Int1 && self.kvm == self.soft {
            "the return address of INT1 differs if ring 3 executes it under KVM"
        } else if self.is(&DOUBLE_SHIFTS) {
            "a double shift of 16 bits by more than 16 is undefined"
        } else if self.is(&COMPARISONS) && self.kvm == self.soft && matches!(self.soft, Some(12..=14 | 17)) {
            "AMD sets the flags of the repetitions before a fault"
        } else if self.step.insn.is_string_instruction() && self.step.has_prefix(&ADDRESS_SIZE) {
            "AMD has its own upper halves of the registers of a repetition with the prefix 67"
        } else if self.step.insn.is_string_instruction() && (self.kvm, self.soft) == (Some(1), Some(1)) {
            "AMD does not set RFLAGS.RF for a single step in a repetition"
        } else if self.kvm == Some(17) && (self.soft == Some(13) || self.is(&UNALIGNED)) {
            "AMD checks the alignment of an operand before its other rules, also that of MOVUPS"
        } else if self.mnemonic == Mnemonic::Ldmxcsr && self.culprit.kvm.state.mxcsr & MISALIGNED != 0 {
            "AMD's MXCSR has a bit for misaligned operands"
        } else if self.is(&ROTATIONS) {
            "a rotation through carry by more than 1 leaves OF undefined"
        } else {
            return None;
        };
        is_amd().then_some(why)
    }
}
