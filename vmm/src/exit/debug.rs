//! The reasons for which a vCPU stops for a debugger.

/// The accesses to an address that stop a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointKind {
    /// The execution of the instruction there. The vCPU stops before it.
    Execute,
    /// A write. The vCPU stops after the instruction, as for all accesses to data.
    Write,
    /// A read.
    Read,
    /// A read or a write.
    Access,
}

/// The reason why a vCPU stopped for a debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// It has executed one instruction.
    Step,
    /// It is at the instruction with this linear address.
    Breakpoint(u64),
    /// It has accessed the address of a watchpoint, which is of this kind.
    Watchpoint(u64, PointKind),
    /// It is at an `int3`.
    Software,
}
