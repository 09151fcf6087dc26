//! The reasons why the processor stops executing the guest.

use std::fmt;

/// The reason why [`Cpu::run`](crate::Cpu::run) returned.
///
/// After `PortIn`, `MmioRead` and `RdMsr`, call [`Cpu::answer`](crate::Cpu::answer) with the value before the next run. An
/// access without an answer reads all ones. After `RdMsr` and `WrMsr`, [`Cpu::refuse`](crate::Cpu::refuse) raises #GP
/// instead. RIP is at the instruction that caused the exit, except for `Halted`, where it is behind the HLT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest reads a port.
    PortIn {
        /// The port.
        port: u16,
        /// Width in bytes: 1, 2 or 4.
        size: u8,
    },
    /// The guest writes to a port.
    PortOut {
        /// The port.
        port: u16,
        /// Width in bytes: 1, 2 or 4.
        size: u8,
        /// The value, zero-extended.
        data: u32,
    },
    /// The guest reads an address without memory.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// Width in bytes, 1 to 8.
        size: u8,
    },
    /// The guest writes to an address without memory.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// Width in bytes, 1 to 8.
        size: u8,
        /// The value, zero-extended.
        data: u64,
    },
    /// The guest reads a model-specific register that is trapped, or that the processor does not have.
    RdMsr {
        /// The register's number.
        index: u32,
    },
    /// The guest writes a model-specific register that is trapped, or that the processor does not have.
    WrMsr {
        /// The register's number.
        index: u32,
        /// The value.
        data: u64,
    },
    /// The guest executed HLT.
    Halted,
    /// A triple fault. [`Cpu::death`](crate::Cpu::death) has the faults.
    Shutdown,
    /// The guest needs a part of a processor that this one does not have, at the instruction at RIP.
    Unsupported(Missing),
    /// The number of instructions that the caller allowed has been executed.
    SliceEnd,
}

/// A part of a processor that this one does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The instruction itself.
    Instruction,
    /// Hardware task switches: a far transfer to a TSS or through a task gate, an exception or interrupt whose entry of the
    /// IDT is a task gate, or IRET with RFLAGS.NT set (SDM volume 3, section 7.3).
    TaskSwitch,
    /// Virtual-8086 mode (SDM volume 3, section 21.2).
    Virtual8086,
    /// Breakpoints in debug registers (SDM volume 3, section 18.2).
    Breakpoint,
    /// Errors of the FPU that are reported with an external interrupt, because CR0.NE is clear (SDM volume 1, section 8.7).
    FpuInterrupt,
    /// Code at a physical address without memory: it would have to be read from a device.
    CodeMemory,
}

/// An exception, and what the processor did when it occurred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The vector.
    pub vector: u8,
    /// The error code, if the exception has one.
    pub error: Option<u32>,
    /// The address that caused a page fault.
    pub cr2: Option<u64>,
    /// The vector that the processor was delivering; `None` if it executed an instruction.
    pub while_delivering: Option<u8>,
}

/// A triple fault: the exceptions in order, the first of them raised by the instruction at `rip`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Death {
    /// The faults: the first one, the one that became a double fault, and the one at the delivery of the double fault.
    pub faults: Vec<Fault>,
    /// The selector of CS at the first fault.
    pub cs: u16,
    /// RIP at the first fault.
    pub rip: u64,
}

/// An exception or software interrupt whose handler was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The exception or interrupt.
    pub fault: Fault,
    /// INT n, INT3 or INTO, not an exception.
    pub is_software: bool,
    /// The selector of CS at the instruction.
    pub cs: u16,
    /// RIP at the instruction. After a single-step trap: at the instruction after it.
    pub rip: u64,
    /// The number of instructions before this one ([`Cpu::instructions`](crate::Cpu::instructions)).
    pub instructions: u64,
    /// The selector of the handler's code segment.
    pub handler_cs: u16,
    /// The offset of the handler in it.
    pub handler_rip: u64,
    /// The linear address of the handler.
    pub handler: u64,
}

impl Fault {
    /// The abbreviation of the exception in the SDM, for example "#GP". `None` for a vector without a name.
    pub fn name(vector: u8) -> Option<&'static str> {
        const NAMES: [&str; 22] = [
            "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "", "#TS", "#NP", "#SS", "#GP",
            "#PF", "", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
        ];
        NAMES.get(usize::from(vector)).copied().filter(|name| !name.is_empty())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::name(self.vector) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "interrupt {:#x}", self.vector)?,
        }
        if let Some(error) = self.error {
            write!(f, " (error code {error:#x})")?;
        }
        Ok(())
    }
}
