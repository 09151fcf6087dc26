//! Instructions that need a feature of the processor which the guest has not switched on.
//!
//! Intel SDM volume 3, section 2.5 (CR0, CR4) and 2.2.1 (EFER); volume 2, SYSCALL; tables "Exception Conditions" of SSE
//! and AVX.

use super::State;
use super::suspicion::Suspicion;
use crate::x86::modes;
use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};

/// CR0: no floating-point unit.
const CR0_EM: u64 = 1 << 2;
/// CR0: the floating-point state belongs to another task.
const CR0_TS: u64 = 1 << 3;
/// CR4: SSE is enabled.
const CR4_OSFXSR: u64 = 1 << 9;
/// CR4: XSAVE, which AVX needs, is enabled.
const CR4_OSXSAVE: u64 = 1 << 18;
/// EFER: SYSCALL and SYSRET are enabled.
const EFER_SCE: u64 = 1 << 0;

/// The feature that is off, although the instruction needs it.
pub(super) fn missing(instruction: &Instruction, state: &State<'_>) -> Option<Suspicion> {
    let sregs = state.sregs;
    let is_protected = sregs.cr0 & modes::CR0_PE != 0;
    let features = instruction.cpuid_features();
    let is_x87 = features
        .iter()
        .any(|feature| matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387));
    let is_mmx = features.contains(&CpuidFeature::MMX);
    let text: &'static str = match instruction.mnemonic() {
        Mnemonic::Syscall | Mnemonic::Sysret | Mnemonic::Sysretq if sregs.efer & EFER_SCE == 0 => {
            "#UD: syscall and sysret are not enabled: set EFER.SCE, and the MSRs STAR and LSTAR"
        }
        Mnemonic::Sysenter if !is_protected => "#GP: sysenter does not exist in real mode",
        Mnemonic::Wait => return None,
        _ if instruction.encoding() != EncodingKind::Legacy && sregs.cr4 & CR4_OSXSAVE == 0 => {
            "#UD: AVX is not enabled (CR4.OSXSAVE is 0): set the bit and XCR0, or compile with -mgeneral-regs-only"
        }
        _ if uses_vectors(instruction) && sregs.cr0 & CR0_EM != 0 => {
            "#UD: SSE is not enabled (CR0.EM is 1): clear the bit, or compile with -mgeneral-regs-only"
        }
        _ if uses_vectors(instruction) && sregs.cr4 & CR4_OSFXSR == 0 => {
            "#UD: SSE is not enabled (CR4.OSFXSR is 0): set the bit, or compile with -mgeneral-regs-only"
        }
        _ if is_mmx && sregs.cr0 & CR0_EM != 0 => "#UD: MMX is not enabled (CR0.EM is 1): clear the bit",
        _ if is_x87 && sregs.cr0 & CR0_EM != 0 => {
            "#NM: the floating-point unit is off (CR0.EM is 1): clear the bit, or compile with -mgeneral-regs-only"
        }
        _ if (is_x87 || is_mmx || uses_vectors(instruction)) && sregs.cr0 & CR0_TS != 0 => {
            "#NM: the floating-point state is not available (CR0.TS is 1): clear it (clts)"
        }
        _ => return None,
    };
    Some(text.into())
}

/// True if the instruction uses a vector register, which needs SSE.
fn uses_vectors(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| {
        let register = instruction.op_kind(operand) == OpKind::Register;
        register && instruction.op_register(operand).is_vector_register()
    })
}
