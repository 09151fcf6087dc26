//! The encodings that programs are made of.

use crate::program::Config;
use fastrand::Rng;
use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind as Kind};
use std::collections::BTreeMap;

/// The features whose instructions softcpu has.
const FEATURES: [CpuidFeature; 27] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL8086_ONLY,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::ADX,
    CpuidFeature::BMI1,
    CpuidFeature::BMI2,
    CpuidFeature::POPCNT,
    CpuidFeature::LZCNT,
    CpuidFeature::MOVBE,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::PAUSE,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::CLFSH,
    CpuidFeature::PREFETCHW,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::FXSR,
    CpuidFeature::SMAP,
];

/// The instructions of the x87 that softcpu has. It has no x87 arithmetic.
const X87: [Mnemonic; 9] = [
    Mnemonic::Fninit,
    Mnemonic::Fldcw,
    Mnemonic::Fnstcw,
    Mnemonic::Fnstsw,
    Mnemonic::Fnclex,
    Mnemonic::Wait,
    Mnemonic::Fldenv,
    Mnemonic::Fnstenv,
    Mnemonic::Emms,
];

/// Instructions whose result depends on the processor or on the time, or that stop the machine.
const NEVER: [Mnemonic; 22] = [
    Mnemonic::Rdtsc,
    Mnemonic::Rdtscp,
    Mnemonic::Cpuid,
    Mnemonic::Rdpmc,
    Mnemonic::Invd,
    Mnemonic::Rdmsr,
    Mnemonic::Wrmsr,
    Mnemonic::Sysenter,
    Mnemonic::Sysexit,
    Mnemonic::Syscall,
    Mnemonic::Sysret,
    Mnemonic::Sysretq,
    Mnemonic::Sysexitq,
    Mnemonic::Rsm,
    Mnemonic::Fxsave,
    Mnemonic::Fxrstor,
    Mnemonic::Fxsave64,
    Mnemonic::Fxrstor64,
    Mnemonic::Fldenv,
    Mnemonic::Fnstenv,
    Mnemonic::Clac,
    Mnemonic::Stac,
];

/// Instructions that see the tables of the host in ring 3 on a host without hardware virtualization.
const TABLES: [Mnemonic; 21] = [
    Mnemonic::Sgdt,
    Mnemonic::Sidt,
    Mnemonic::Sldt,
    Mnemonic::Str,
    Mnemonic::Smsw,
    Mnemonic::Lar,
    Mnemonic::Lsl,
    Mnemonic::Verr,
    Mnemonic::Verw,
    Mnemonic::Lds,
    Mnemonic::Les,
    Mnemonic::Lfs,
    Mnemonic::Lgs,
    Mnemonic::Lss,
    Mnemonic::Retf,
    Mnemonic::Iret,
    Mnemonic::Iretd,
    Mnemonic::Iretq,
    Mnemonic::Lldt,
    Mnemonic::Ltr,
    Mnemonic::Lmsw,
];

/// Instructions that often end a program.
const RARE: [Mnemonic; 46] = [
    Mnemonic::Hlt,
    Mnemonic::Cli,
    Mnemonic::Sti,
    Mnemonic::In,
    Mnemonic::Out,
    Mnemonic::Insb,
    Mnemonic::Insw,
    Mnemonic::Insd,
    Mnemonic::Outsb,
    Mnemonic::Outsw,
    Mnemonic::Outsd,
    Mnemonic::Ud0,
    Mnemonic::Ud1,
    Mnemonic::Ud2,
    Mnemonic::Int,
    Mnemonic::Int1,
    Mnemonic::Int3,
    Mnemonic::Into,
    Mnemonic::Wbinvd,
    Mnemonic::Invlpg,
    Mnemonic::Clts,
    Mnemonic::Lgdt,
    Mnemonic::Lidt,
    Mnemonic::Lldt,
    Mnemonic::Ltr,
    Mnemonic::Lmsw,
    Mnemonic::Iret,
    Mnemonic::Iretd,
    Mnemonic::Iretq,
    Mnemonic::Ret,
    Mnemonic::Retf,
    Mnemonic::Swapgs,
    Mnemonic::Bound,
    Mnemonic::Lds,
    Mnemonic::Les,
    Mnemonic::Lfs,
    Mnemonic::Lgs,
    Mnemonic::Lss,
    Mnemonic::Wait,
    Mnemonic::Fldcw,
    Mnemonic::Fnstcw,
    Mnemonic::Fnstsw,
    Mnemonic::Fninit,
    Mnemonic::Fnclex,
    Mnemonic::Popf,
    Mnemonic::Popfd,
];

/// The encodings of one mnemonic.
type Group = Vec<Code>;

/// The encodings for one configuration, by mnemonic.
pub struct Opcodes {
    common: Vec<Group>,
    rare: Vec<Group>,
}

impl Opcodes {
    /// The encodings that are valid in code of this width.
    pub fn new(config: Config, bits: u32) -> Self {
        let mut groups: BTreeMap<(bool, usize), Group> = BTreeMap::new();
        for code in Code::values().filter(|code| is_wanted(*code, config, bits)) {
            let mnemonic = code.mnemonic();
            let kinds = code.op_code().op_kinds();
            let is_rare = RARE.contains(&mnemonic)
                || kinds.iter().any(|kind| {
                    matches!(
                        kind,
                        Kind::cr_reg | Kind::dr_reg | Kind::seg_reg | Kind::farbr4_2 | Kind::farbr2_2
                    )
                })
                || is_indirect(code);
            groups.entry((is_rare, mnemonic as usize)).or_default().push(code);
        }
        let (mut common, mut rare) = (Vec::new(), Vec::new());
        for ((is_rare, _), group) in groups {
            if is_rare { rare.push(group) } else { common.push(group) }
        }
        Self { common, rare }
    }

    /// Chooses an encoding.
    pub fn choose(&self, rng: &mut Rng) -> Code {
        let groups = if rng.u8(..24) == 0 && !self.rare.is_empty() { &self.rare } else { &self.common };
        let group = &groups[rng.usize(..groups.len())];
        group[rng.usize(..group.len())]
    }
}

/// True for a jump or call to an address in a register or in memory.
fn is_indirect(code: Code) -> bool {
    use iced_x86::FlowControl::{IndirectBranch, IndirectCall};
    matches!(code.flow_control(), IndirectBranch | IndirectCall)
}

fn is_wanted(code: Code, config: Config, bits: u32) -> bool {
    let info = code.op_code();
    let mnemonic = code.mnemonic();
    let available = match bits {
        16 => info.mode16(),
        32 => info.mode32(),
        _ => info.mode64(),
    };
    let features = code.cpuid_features();
    let is_x87 = features
        .iter()
        .any(|feature| matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387));
    if !available
        || !info.is_instruction()
        || !matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        || !features.iter().all(|feature| FEATURES.contains(feature))
        || NEVER.contains(&mnemonic)
        || is_x87 && !X87.contains(&mnemonic)
        // softcpu has no MMX.
        || info.op_kinds().iter().any(|kind| {
            matches!(kind, Kind::tr_reg | Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem)
        })
        // In 64-bit mode, processors of Intel ignore the prefix for 16 bits; else it leads to the vectors of real mode.
        || bits != 16 && info.op_kinds().iter().any(|kind| matches!(kind, Kind::br16_1 | Kind::br16_2))
    {
        return false;
    }
    match config {
        Config::User => {
            // Nor does it show its own selectors.
            let uses_segment = info
                .op_kinds()
                .iter()
                .any(|kind| matches!(kind, Kind::farbr4_2 | Kind::seg_reg | Kind::fs | Kind::gs));
            let uses_segment = uses_segment || code.is_jmp_far_indirect() || code.is_call_far_indirect();
            !TABLES.contains(&mnemonic) && !uses_segment
        }
        // The emulators of KVM hosts have few of the other instructions.
        _ => {
            !features.iter().any(|feature| {
                matches!(
                    feature,
                    CpuidFeature::SSE
                        | CpuidFeature::SSE2
                        | CpuidFeature::POPCNT
                        | CpuidFeature::BMI1
                        | CpuidFeature::BMI2
                        | CpuidFeature::ADX
                        | CpuidFeature::LZCNT
                )
            }) && mnemonic != Mnemonic::Cmpxchg16b
        }
    }
}
