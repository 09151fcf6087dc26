//! The facts that the catalogue states about each guest.

use std::fmt;

/// The CPU mode in which a guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit real mode, cs = 0.
    Real,
    /// 32-bit protected mode, flat segments, no paging.
    Protected,
    /// 64-bit long mode, identity-mapped.
    Long,
    /// The same in ring 3, with all ports allowed.
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

/// The memory map that a guest is written for (`docs/abi.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// RAM of 1 MiB with the SIMVIRTIO window above it.
    So2,
    /// RAM only, as much as asked for.
    Plain,
}

/// How a guest's run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With HLT, or in ring 3 with code 0 to the exit port, leaving 42 in RAX (EAX, AX) and at 0x400.
    FortyTwo,
    /// With HLT, promising nothing about its result.
    Halts,
    /// With HLT, leaving another value than the 42 that it should.
    WrongResult,
    /// By this code, to the exit port or by hypercall.
    ExitCode(u64),
    /// With a triple fault.
    TripleFault,
    /// With a triple fault or a failed emulation, as the host likes.
    Dies,
    /// With an error of the SIMVIRTIO protocol.
    ProtocolError,
    /// Never by itself.
    Never,
}

/// How many VM exits a guest makes, where that does not depend on speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exits {
    /// So many.
    Exactly(u64),
    /// String I/O: so many elements, in as many exits as the host likes.
    Elements(u64),
    /// As many as it happens to make before it is stopped.
    Unspecified,
}

/// How the VMM treats accesses to a model-specific register (`--msr`, `docs/abi.md` section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrRule {
    /// The guest gets #GP.
    Deny,
    /// A read returns 0, and a write has no effect.
    Ignore,
    /// The VMM logs the access and treats it as if there were no rule.
    Log,
}

/// What a guest is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Shows a way of running or of talking to the VMM.
    Example,
    /// Does something wrong, or odd, for the tests.
    Test,
}

/// An embedded guest and what is expected of it.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Its name on the command line.
    pub name: &'static str,
    /// The source below `guest/payloads` that the build makes its image from; `None` for the image of another guest.
    pub source: Option<&'static str>,
    /// Macros that its source is compiled with.
    pub defines: &'static [&'static str],
    /// What it is, in a line.
    pub about: &'static str,
    /// Its flat image.
    pub image: &'static [u8],
    /// Guest physical address of the image's first byte, which is also the entry point.
    pub load_at: u64,
    /// The mode that it is entered in.
    pub mode: Mode,
    /// The memory map that it is written for.
    pub map: Map,
    /// Whether it reads CPUID or changes the CPU's mode by itself, so that the vCPU needs KVM_SET_CPUID2.
    pub cpuid: bool,
    /// How many vCPUs it is written for.
    pub cpus: u32,
    /// Whether it needs the devices of KeV's second project.
    pub kev: bool,
    /// The rules that it needs for model-specific registers: the register's number and its rule.
    pub msrs: &'static [(u32, MsrRule)],
    /// The length of the queues that its output and its exits are those for, in bytes; `None` for the usual.
    pub queue_len: Option<u16>,
    /// The input that its output and its exits are those for.
    pub input: &'static str,
    /// All that it prints.
    pub output: &'static str,
    /// How it ends.
    pub end: End,
    /// Its exits over the exit transport.
    pub exits: Exits,
    /// Its exits over the polling transport; `None` where it has nothing to do with SIMVIRTIO.
    pub polling_exits: Option<Exits>,
    /// What it is there for.
    pub part: Part,
}
