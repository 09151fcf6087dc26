//! The vCPU.
//!
//! [`SoftVcpu::enter`] gives the answer of the last exit to the processor, runs it, and turns what it returns into an
//! [`Exit`]. The processor executes a bounded number of instructions, a slice. Then the vCPU returns [`Exit::Interrupted`],
//! so that the deadline is checked, devices take their turn, and the next vCPU runs. A slice counts instructions and
//! exits, not time, so two runs of a guest are the same.

use super::debug::Debugging;
use super::{cpuid, registers};
use crate::controller::vcpu::{Entry, Location, Vcpu};
use crate::controller::{DebugControl, VcpuState};
use crate::error::Error;
use crate::exit::{Arrival, Exit, HYPERCALL_PORT, Instruction};
use crate::memory::{Gpa, GuestMemory, PagedMemory};
use crate::x86::modes::{Start, VcpuIndex};
use crate::x86::registers::{CpuidEntry, FxImage, Regs, Sregs};
use simvirtio::abi;
use softcpu::{Cpu, Missing, State};
use std::fmt;

/// The share of a slice that an exit takes, in instructions. An exit takes a few microseconds.
pub(super) const EXIT_COST: u64 = 100;

/// A vCPU that is a software processor.
pub(crate) struct SoftVcpu {
    pub(super) cpu: Cpu<PagedMemory>,
    id: u32,
    memory: GuestMemory,
    /// The number of instructions in a slice.
    slice: u64,
    /// The number of instructions that are left of the current slice. 0 while the vCPU is debugged, whose instructions are
    /// counted elsewhere: so debugging needs no test of its own in each entry.
    pub(super) left: u64,
    /// Set if the last exit waits for a value.
    pub(super) awaits_value: bool,
    /// The number of rings of SIMVIRTIO's doorbell that were not taken yet. `None` if the machine has none.
    rings: Option<u64>,
    /// The registers with which the guest starts.
    start: Option<Box<(Regs, Sregs)>>,
    /// The reasons to stop for a debugger.
    pub(super) debug: Option<Box<Debugging>>,
}

impl fmt::Debug for SoftVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rip = self.cpu.state.rip;
        f.debug_struct("SoftVcpu").field("id", &self.id).field("rip", &rip).finish_non_exhaustive()
    }
}

impl SoftVcpu {
    /// Creates vCPU number `id` over the machine's memory, in the processor's reset state. It runs `slice` instructions at
    /// a time.
    ///
    /// # Errors
    /// The memory has too many slots.
    pub(crate) fn new(id: u32, memory: &GuestMemory, slice: u64) -> Result<Self, Error> {
        let paged = PagedMemory::new(memory.clone()).ok_or_else(|| {
            Error::Config("the software processor has no room for so many memory slots".into())
        })?;
        Ok(Self {
            cpu: Cpu::new(paged),
            id,
            memory: memory.clone(),
            slice,
            left: slice,
            awaits_value: false,
            rings: None,
            start: None,
            debug: None,
        })
    }

    /// Sets the CPUID leaves that the guest sees.
    pub(crate) fn set_cpuid(&mut self, leaves: &[CpuidEntry]) {
        self.cpu.set_cpuid(leaves.iter().map(cpuid::leaf).collect());
    }

    /// Makes accesses to these model-specific registers exits. Accesses to those that the processor does not have are
    /// exits anyway.
    pub(crate) fn filter_msrs(&mut self, filtered: &[u32]) {
        self.cpu.trap_msrs(filtered.into());
    }

    /// Connects the SIMVIRTIO doorbell: a store of a queue's number to its page is counted, and ends the slice.
    pub(crate) fn connect_doorbell(&mut self) {
        self.rings = Some(0);
    }

    /// The number of rings of the doorbell since the last call.
    pub(crate) fn take_rings(&mut self) -> u64 {
        self.rings.as_mut().map_or(0, std::mem::take)
    }

    /// Sets the registers of an image's start, and remembers them for [`restore`](Self::restore).
    pub(crate) fn set_start(&mut self, start: &Start, tables: Gpa, index: VcpuIndex) {
        let reset = registers::sregs(&State::default());
        let sregs = start.sregs(reset, tables, index);
        self.start = Some(Box::new((start.regs(index), sregs)));
        self.restore();
    }

    /// Puts the vCPU back to its start.
    pub(crate) fn restore(&mut self) {
        self.cpu.reset();
        if let Some(start) = &self.start {
            registers::set_sregs(&mut self.cpu.state, &start.1, &self.memory);
            registers::set_regs(&mut self.cpu.state, &start.0);
        }
        self.begin_slice();
        self.rings = self.rings.map(|_| 0);
        self.forget_exit();
    }

    /// Forgets the last exit: its instruction is executed from its start.
    pub(crate) fn forget_exit(&mut self) {
        self.awaits_value = false;
        self.debug.iter_mut().for_each(|debug| debug.goes_on = false);
        self.cpu.forget_exit();
    }

    /// The base of SS and RSP at the start.
    pub(crate) fn start_of_stack(&self) -> Option<(u64, u64)> {
        self.start.as_ref().map(|start| (start.1.ss.base, start.0.rsp))
    }

    /// The vCPU's location in the guest's code.
    pub(crate) fn location(&self) -> Location {
        Location::of(&registers::sregs(&self.cpu.state), self.cpu.state.rip)
    }

    /// The processor.
    pub(crate) fn cpu(&self) -> &Cpu<PagedMemory> {
        &self.cpu
    }

    /// Runs the processor until something outside of it must answer, or its slice ends.
    fn run(&mut self) -> softcpu::Exit {
        let before = self.cpu.instructions();
        let exit = self.cpu.run(self.left);
        let used = self.cpu.instructions().wrapping_sub(before);
        self.left = self.left.saturating_sub(used.saturating_add(EXIT_COST));
        exit
    }

    /// The number of instructions in a slice.
    pub(crate) fn slice(&self) -> u64 {
        self.slice
    }

    /// Enters the guest like [`Vcpu::enter`]. Returns `None` if the processor has executed `instructions`, and made no exit:
    /// its slice then goes on. Reduces `instructions` by those that it has executed.
    pub(crate) fn enter_for(&mut self, entry: Entry, instructions: &mut u64) -> Option<(Exit, Arrival)> {
        self.give_answer(entry);
        let exit = if self.left == 0 {
            self.run_debugged()
        } else {
            let before = self.cpu.instructions();
            let exit = self.cpu.run(self.left.min(*instructions));
            let used = self.cpu.instructions().wrapping_sub(before);
            *instructions = instructions.saturating_sub(used);
            if exit == softcpu::Exit::SliceEnd && used < self.left {
                self.left = self.left.saturating_sub(used);
                return None;
            }
            self.left = self.left.saturating_sub(used.saturating_add(EXIT_COST));
            self.translate_exit(exit)
        };
        self.awaits_value = exit.is_access();
        Some((exit, Arrival::FromGuest))
    }

    /// Gives the answer to the last exit to the processor, which keeps it until the next entry.
    fn give_answer(&mut self, entry: Entry) {
        match entry {
            Entry::Value(value) if self.awaits_value => self.cpu.answer(value),
            Entry::Fault if self.awaits_value => self.cpu.refuse(),
            Entry::Value(_) | Entry::Fault | Entry::Resume => {}
        }
        self.awaits_value = false;
    }

    /// Begins a slice.
    pub(super) fn begin_slice(&mut self) {
        self.left = self.slice;
        if let Some(debug) = &mut self.debug {
            debug.left = std::mem::take(&mut self.left);
        }
    }

    /// Ends the slice.
    pub(super) fn end_slice(&mut self) -> Exit {
        self.begin_slice();
        Exit::Interrupted
    }

    /// Counts a ring of the doorbell. Returns false if the store is not one.
    fn is_ring(&mut self, address: u64, size: u8, data: u64) -> bool {
        let is_ring = address == abi::DOORBELL
            && size == 4
            && [abi::doorbell::TX, abi::doorbell::RX].map(u64::from).contains(&data);
        match &mut self.rings {
            Some(rings) if is_ring => {
                *rings = rings.saturating_add(1);
                true
            }
            _ => false,
        }
    }

    /// The exit as all vCPUs report it.
    pub(super) fn translate_exit(&mut self, exit: softcpu::Exit) -> Exit {
        match exit {
            softcpu::Exit::PortIn { port, size } => Exit::PioIn { port, size },
            softcpu::Exit::PortOut { port: HYPERCALL_PORT, size: 4, data } => {
                Exit::Hypercall { number: data }
            }
            softcpu::Exit::PortOut { port, size, data } => Exit::PioOut { port, size, data },
            softcpu::Exit::MmioRead { address, size } => Exit::MmioRead { address, size },
            softcpu::Exit::MmioWrite { address, size, data } if self.is_ring(address, size, data) => {
                self.end_slice()
            }
            softcpu::Exit::MmioWrite { address, size, data } => Exit::MmioWrite { address, size, data },
            softcpu::Exit::RdMsr { index } => Exit::RdMsr { index },
            softcpu::Exit::WrMsr { index, data } => Exit::WrMsr { index, data },
            softcpu::Exit::Halted => Exit::Hlt,
            softcpu::Exit::Shutdown => Exit::Shutdown,
            softcpu::Exit::Unsupported(missing) => {
                let bytes = self.cpu.instruction_bytes();
                Exit::EmulationFailure(Instruction::unsupported(&bytes, reason(missing, &bytes)))
            }
            softcpu::Exit::SliceEnd => self.end_slice(),
        }
    }
}

/// The reason why the processor could not execute the instruction with these bytes, as a sentence.
fn reason(missing: Missing, bytes: &[u8]) -> &'static str {
    match missing {
        Missing::Instruction => "the software processor does not have an instruction",
        Missing::TaskSwitch => {
            "the software processor does not have hardware task switches, which the guest needs here (a TSS or a task gate is \
             the target)"
        }
        Missing::Virtual8086 => {
            "the software processor does not have virtual-8086 mode, which the guest needs here"
        }
        Missing::Breakpoint => {
            "the software processor does not have breakpoints in debug registers, which this value of dr7 sets"
        }
        Missing::FpuInterrupt => {
            "the software processor does not have interrupts for FPU errors, which the guest needs here (CR0.NE is 0)"
        }
        Missing::CodeMemory if bytes.is_empty() => "the guest continued at an address without memory",
        Missing::CodeMemory => "the guest reached the end of its memory in the middle of an instruction",
    }
}

impl Vcpu for SoftVcpu {
    fn enter(&mut self, entry: Entry) -> Result<(Exit, Arrival), Error> {
        self.give_answer(entry);
        let exit = if self.left == 0 {
            self.run_debugged()
        } else {
            let exit = self.run();
            self.translate_exit(exit)
        };
        self.awaits_value = exit.is_access();
        Ok((exit, Arrival::FromGuest))
    }

    fn rip(&mut self) -> Option<u64> {
        Some(self.cpu.state.rip)
    }
}

impl VcpuState for SoftVcpu {
    fn id(&self) -> u32 {
        self.id
    }

    fn regs(&mut self) -> Result<Regs, Error> {
        Ok(registers::regs(&self.cpu.state))
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), Error> {
        // The instruction of the last exit is completed, unless the guest continues elsewhere.
        if regs.rip != self.cpu.state.rip {
            self.forget_exit();
        }
        registers::set_regs(&mut self.cpu.state, regs);
        Ok(())
    }

    fn sregs(&mut self) -> Result<Sregs, Error> {
        Ok(registers::sregs(&self.cpu.state))
    }

    fn set_sregs(&mut self, sregs: &Sregs) -> Result<(), Error> {
        registers::set_sregs(&mut self.cpu.state, sregs, &self.memory);
        self.cpu.flush_translations();
        Ok(())
    }

    fn msr(&mut self, index: u32) -> Option<u64> {
        self.cpu.msr(index)
    }

    fn set_msr(&mut self, index: u32, data: u64) -> bool {
        self.cpu.set_msr(index, data)
    }

    fn fpu(&mut self) -> Option<FxImage> {
        Some(self.cpu.state.fx_image())
    }

    fn set_fpu(&mut self, image: &FxImage) -> bool {
        self.cpu.state.set_fx_image(image)
    }

    fn is_in_shadow(&mut self) -> bool {
        self.cpu.is_in_shadow()
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), Error> {
        self.set_debugging(control);
        Ok(())
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}
