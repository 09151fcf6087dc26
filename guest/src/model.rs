//! The facts that the catalogue states about each guest.

use std::fmt;
use std::str::FromStr;

/// The CPU mode in which a guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit real mode, cs = 0.
    Real,
    /// 32-bit protected mode, flat segments, no paging.
    Protected,
    /// 64-bit long mode, identity-mapped.
    Long,
    /// 64-bit long mode in ring 3, with access to all ports.
    User,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Real => "real",
            Self::Protected => "protected",
            Self::Long => "long",
            Self::User => "user64",
        })
    }
}

/// A name of the mode on the command line, in upper or lower case.
impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        match name.to_ascii_lowercase().as_str() {
            "real" | "16" => Ok(Self::Real),
            "protected" | "32" => Ok(Self::Protected),
            "long" | "64" => Ok(Self::Long),
            "user64" | "user" | "ring3" => Ok(Self::User),
            _ => Err(UnknownMode),
        }
    }
}

/// The error for a text that does not name a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownMode;

/// The memory map that a guest is written for (`docs/abi.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// RAM of 1 MiB with the SIMVIRTIO window above it.
    So2,
    /// RAM only, of the size that the user selects.
    Plain,
}

/// The expected end of a guest's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// HLT, or in ring 3 code 0 on the exit port, with 42 in RAX (EAX, AX) and at 0x400.
    FortyTwo,
    /// HLT, with an unspecified result.
    Halts,
    /// HLT, with another value than 42 where 42 is required.
    WrongResult,
    /// This code, on the exit port or by hypercall.
    ExitCode(u64),
    /// A triple fault.
    TripleFault,
    /// A triple fault or a failed emulation, depending on the host.
    Dies,
    /// A SIMVIRTIO protocol error.
    ProtocolError,
    /// None: the guest runs until it is stopped.
    Never,
}

/// The expected number of VM exits of a run, if it does not depend on timing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exits {
    /// This number of exits.
    Exactly(u64),
    /// This number of elements of string I/O. The number of exits depends on the host.
    Elements(u64),
    /// Unknown: it depends on the moment at which the run is stopped.
    Unspecified,
}

/// The treatment of accesses to a model-specific register (`--msr`, `docs/abi.md` section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrRule {
    /// The guest gets #GP.
    Deny,
    /// A read returns 0, and a write has no effect.
    Ignore,
    /// The VMM logs the access and treats it as if there were no rule.
    Log,
}

/// The purpose of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Shows a CPU mode or an interface of the VMM.
    Example,
    /// Does something wrong or unusual, for the tests.
    Test,
}

/// An embedded guest and its expected behaviour.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// The name on the command line.
    pub name: &'static str,
    /// The source file below `guest/payloads`; `None` if the guest shares the image of another one.
    pub source: Option<&'static str>,
    /// Preprocessor macros that a C source is compiled with.
    pub defines: &'static [&'static str],
    /// A description in one line, which begins with a verb.
    pub about: &'static str,
    /// The flat image.
    pub image: &'static [u8],
    /// Guest physical address of the image's first byte, which is also the entry point.
    pub load_at: u64,
    /// The CPU mode at entry.
    pub mode: Mode,
    /// The memory map that the guest needs.
    pub map: Map,
    /// If set, the vCPU needs KVM_SET_CPUID2: the guest reads CPUID or changes the CPU mode itself.
    pub cpuid: bool,
    /// The number of vCPUs that the guest needs.
    pub cpus: u32,
    /// If set, the guest needs the devices of KeV's second project.
    pub kev: bool,
    /// The MSR rules that the guest needs: register number and rule.
    pub msrs: &'static [(u32, MsrRule)],
    /// If set, the guest writes to ports without a device, or makes hypercalls that fail, on purpose.
    pub loses_stores: bool,
    /// If set, the driver uses the layout of the assignment's struct `device_t`, not that of its table.
    pub struct_layout: bool,
    /// The length of the SIMVIRTIO queues in bytes that `output` and the exits are for; `None` for the default.
    pub queue_len: Option<u16>,
    /// The input that `output` and the exits are for.
    pub input: &'static str,
    /// The complete output.
    pub output: &'static str,
    /// The end of the run.
    pub end: End,
    /// The exits over the exit transport.
    pub exits: Exits,
    /// The exits over the polling transport; `None` if the guest does not use SIMVIRTIO.
    pub polling_exits: Option<Exits>,
    /// The purpose of the guest.
    pub part: Part,
}
