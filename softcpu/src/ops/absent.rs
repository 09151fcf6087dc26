//! Instructions of features that this processor does not have, and that its CPUID does not show: they are undefined.
//!
//! These are system features and vector extensions that need a bit in CR4 which a guest cannot set. An instruction of
//! SSE3 and later is not among them, but is an emulation failure: it would work on each processor of today.

use super::undefined;
use crate::memory::Memory;
use crate::op::Handler;
use iced_x86::{EncodingKind, Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    let absent = is_virtualization(insn) || is_extension(insn) || insn.encoding() != EncodingKind::Legacy;
    absent.then_some(undefined)
}

/// VMX, SVM, SMX, SGX and TDX.
fn is_virtualization(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        insn.mnemonic(),
        Vmcall
            | Vmmcall
            | Vmlaunch
            | Vmresume
            | Vmxon
            | Vmxoff
            | Vmclear
            | Vmptrld
            | Vmptrst
            | Vmread
            | Vmwrite
            | Vmfunc
            | Invept
            | Invvpid
            | Vmrun
            | Vmload
            | Vmsave
            | Stgi
            | Clgi
            | Skinit
            | Invlpga
            | Vmgexit
            | Invlpgb
            | Tlbsync
            | Psmash
            | Pvalidate
            | Rmpadjust
            | Rmpupdate
            | Getsec
            | Rsm
            | Encls
            | Enclu
            | Enclv
            | Pconfig
            | Seamcall
            | Seamops
            | Seamret
            | Tdcall
    )
}

/// Features with a CR4 bit of their own, and those whose absence CPUID tells.
fn is_extension(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        insn.mnemonic(),
        // CR4.OSXSAVE.
        Xgetbv | Xsetbv | Xsave | Xsave64 | Xrstor | Xrstor64 | Xsavec | Xsavec64 | Xsaveopt | Xsaveopt64
            | Xsaves | Xsaves64 | Xrstors | Xrstors64
            // CR4.FSGSBASE, CR4.SMAP, CR4.PKE.
            | Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase | Stac | Clac | Rdpkru | Wrpkru
            // CR4.CET and user interrupts.
            | Incsspd | Incsspq | Saveprevssp | Rstorssp | Wrssd | Wrssq | Wrussd | Wrussq | Setssbsy | Clrssbsy
            | Clui | Stui | Testui | Uiret | Senduipi
            // CPUID alone.
            | Monitor | Mwait | Monitorx | Mwaitx | Umonitor | Umwait | Tpause | Invpcid | Xbegin | Xend | Xabort
            | Xtest | Serialize | Hreset | Clwb | Clzero | Rdpru | Mcommit | Enqcmd | Enqcmds | Movdir64b
            | Movdiri
    )
}
