//! The explanation of a guest's death: the instruction, the probable fault, the registers, the stack and the mapping.
//!
//! KVM reports only that a guest shut down, or that KVM could not emulate an instruction. The cause is guessed from the
//! state of the vCPU, so the text calls it probable.

mod astray;
mod buried;
mod cause;
mod control;
mod derail;
mod endless;
mod exact;
mod features;
mod foreign;
pub(super) mod frame;
mod idt;
mod instruction;
mod next;
mod other_mode;
mod registers;
mod selectors;
mod stack;
mod state;
mod stray;
mod suspicion;
mod target;
#[cfg(test)]
mod tests;
mod window;

use crate::boot::Image;
use crate::controller::vcpu::Location;
use crate::exit::Stop;
use crate::memory::{Gpa, GuestMemory, PagedMemory, ReadMemory};
use crate::profile::recorder::TracedExit;
use crate::x86::modes::Mode;
use crate::x86::probe::Probe;
use crate::x86::registers::{Regs, Sregs};
use crate::x86::state_check::Finding;
pub use foreign::DeadVcpu;
pub use frame::Frame;
use idt::Idt;
pub(super) use instruction::code_bits;
use instruction::{SHOWN_INVALID_BYTES, decode, format, instruction_bytes, shown_len};
pub use next::{NextInstruction, Store, mode_of};
use softcpu::Cpu;
use std::borrow::Cow;
use std::fmt;
use suspicion::Suspicion;
use target::{Fault, Target, translate};

/// The memory of the guest as its vCPU sees it.
type View<'a> = Probe<&'a dyn ReadMemory>;

/// The number of words that are shown of the stack.
const STACK_WORDS: usize = 4;

/// The way in which a guest died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeathKind {
    /// It ran into a fault: a triple fault, or an instruction that KVM could not emulate.
    Fault,
    /// The processor refused to enter it.
    Entry,
    /// KVM refused the registers, so the guest did not run with them.
    Refused,
    /// It ran into a fault, and the host has lost its state: the registers are those with which it started.
    Lost,
    /// It has not died: its time was over, and it was in KVM_RUN for long.
    Running,
    /// Another way, which says nothing about the cause.
    Unknown,
}

/// The parts of a state that are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    All,
    /// The memory is not known.
    Registers,
    /// The guest is not at this instruction.
    SystemRegisters,
}

/// The state of a guest when its run ended, and the probable cause if it died of a fault.
///
/// The text has one indented line each for the instruction, its mapping, the stack and each rule that the state breaks, and a
/// few lines with the registers.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The translation of the instruction's address, in words.
    mapping: String,
    /// The bytes and the text of the instruction. Empty if it cannot be read.
    instruction: String,
    /// The number of bytes of the instruction that are shown.
    instruction_len: usize,
    suspicion: Option<Suspicion>,
    /// The cause, if the processor knows it.
    cause: Option<String>,
    /// The exceptions of a triple fault, in their order, if the processor knows them.
    exceptions: Vec<String>,
    /// The address in SIMVIRTIO's window that the guest accesses next, if a limit ended it.
    window_access: Option<u64>,
    /// KVM could not emulate the instruction, and the software processor has it.
    runs_on_soft: bool,
    /// The top of the stack, lowest address first. `None` if it cannot be read.
    stack: Option<Vec<u64>>,
    /// The rules that the state breaks, without those that the other fields tell about.
    findings: Vec<Finding>,
    /// The reason why the exception had no handler, if the guest is that of another program.
    handler: Option<String>,
    frame: Frame,
    shown: Shown,
    mode: Mode,
    regs: Regs,
    sregs: Box<Sregs>,
}

impl Explanation {
    /// Explains the state of a vCPU. `None` if the state is lost ([`Location::Reset`]), or the vCPU has not run
    /// ([`Location::NotStarted`]).
    pub(super) fn new(
        location: Location,
        regs: Regs,
        sregs: Sregs,
        memory: &dyn ReadMemory,
        scene: &Scene<'_>,
    ) -> Option<Self> {
        let Location::At { mode, .. } = location else { return None };
        Some(Self::at(mode, regs, sregs, memory, scene))
    }

    /// Explains the state of a vCPU that is in this mode.
    fn at(mode: Mode, regs: Regs, sregs: Sregs, memory: &dyn ReadMemory, scene: &Scene<'_>) -> Self {
        let (probe, rip) = (Probe::new(memory, sregs), regs.rip);
        let code = translate(&probe, memory, probe.linear(sregs.cs.base, rip));
        let bytes = code.gpa.map(|gpa| instruction_bytes(memory, gpa)).unwrap_or_default();
        let instruction = decode(code_bits(&sregs), rip, &bytes);
        let width = match mode {
            Mode::Real => 2,
            Mode::Protected => 4,
            Mode::Long | Mode::User => 8,
        };
        let state = State { regs: &regs, sregs: &sregs, probe: &probe, memory, width, scene };
        let stack = translate(&probe, memory, probe.linear(sregs.ss.base, state.stack_offset())).gpa;
        Self {
            runs_on_soft: scene.is_unemulated
                && instruction.is_some_and(|instruction| cause::runs_on_soft(&instruction, &bytes, &state)),
            suspicion: cause::suspicion(&code, instruction.as_ref(), &bytes, &state),
            window_access: if scene.died { None } else { window::accessed(rip, &state) },
            cause: None,
            exceptions: Vec::new(),
            mapping: code.description,
            instruction_len: instruction.as_ref().map_or(SHOWN_INVALID_BYTES, shown_len),
            instruction: instruction.map(|instruction| format(&instruction, &bytes)).unwrap_or_default(),
            stack: stack.and_then(|gpa| stack_words(memory, gpa, width as usize)),
            findings: Vec::new(),
            handler: None,
            frame: frame::of(mode, &regs, &sregs, &probe),
            shown: Shown::All,
            mode,
            regs,
            sregs: Box::new(sregs),
        }
    }

    /// The probable cause of the guest's fault, as a phrase that follows "probably". `None` if the state shows no cause.
    /// After a timeout, the way in which the guest left its code, if it did.
    pub fn suspicion(&self) -> Option<&str> {
        self.suspicion.as_deref()
    }

    /// True if KVM could not emulate the guest's instruction, and the guest may run on the software processor, which has it.
    pub fn runs_on_soft(&self) -> bool {
        self.runs_on_soft && self.suspicion.is_none()
    }

    /// The cause of the guest's death as the software processor knows it: the first exception of a triple fault. The text of
    /// the explanation lists all of them. After a timeout: the loop that the guest was in. In all cases first: the exception or interrupt whose handler
    /// is no code, after which the guest ran astray. A phrase; `None` with KVM, which does not tell it.
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// The address in SIMVIRTIO's window that the guest accesses next, if it did not end by itself: a driver waits there, if
    /// the window is memory.
    pub fn window_access(&self) -> Option<u64> {
        self.window_access
    }

    /// The rules that the state breaks, without those that the other parts of the explanation tell about.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The innermost frame. `None` if the guest is not at this instruction, or its memory is not known.
    pub fn frame(&self) -> Option<&Frame> {
        (self.shown == Shown::All).then_some(&self.frame)
    }

    /// Adds what the software processor knows about an end.
    #[must_use]
    pub(super) fn with_facts(
        self,
        stop: &Stop,
        processor: &Cpu<PagedMemory>,
        memory: &GuestMemory,
        image: Option<&Image>,
    ) -> Self {
        let ran_astray = matches!(
            stop,
            Stop::TripleFault
                | Stop::Timeout(_)
                | Stop::WallTimeout(_)
                | Stop::EmulationFailure(_)
                | Stop::ProtocolError(_)
                | Stop::OutputLimit(_)
        );
        let probe = Probe::new(memory as &dyn ReadMemory, *self.sregs);
        let stray =
            image.filter(|_| ran_astray).and_then(|image| stray::stray(processor, &probe, memory, image));
        // A guess about what followed would only distract.
        let suspicion = if stray.is_some() { None } else { self.suspicion };
        let mut exceptions = Vec::new();
        let cause = match stop {
            Stop::TripleFault => {
                let death = processor.death();
                let idt = Idt { sregs: &self.sregs, probe: &probe, memory };
                exceptions = death.map(|death| exact::exceptions(death, &idt)).unwrap_or_default();
                let died = death.and_then(|death| exact::first(death, suspicion.as_deref()));
                match (stray, died) {
                    (Some(stray), Some(died)) => Some(format!("{stray}; later {died}")),
                    (stray, died) => stray.or(died),
                }
            }
            Stop::Timeout(_) | Stop::WallTimeout(_) => stray.or_else(|| exact::looped(processor)),
            _ => stray,
        };
        Self { cause, suspicion, exceptions, ..self }
    }

    /// The bytes and the text of the instruction. `None` if it cannot be read.
    pub(super) fn instruction(&self) -> Option<&str> {
        Some(self.instruction.as_str()).filter(|text| !text.is_empty())
    }

    /// The number of bytes of the instruction, or a few if they are not an instruction.
    pub fn instruction_len(&self) -> usize {
        self.instruction_len
    }

    /// Writes the general registers, four in a line.
    fn write_registers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let regs = &self.regs;
        let wide = matches!(self.mode, Mode::Long | Mode::User);
        let mut row = |names: [&str; 4], values: [u64; 4]| {
            for (name, value) in names.into_iter().zip(values) {
                match wide {
                    true => write!(f, "  {name:<3} {value:016x}")?,
                    false => write!(f, "  {name:<3} {value:08x}")?,
                }
            }
            writeln!(f)
        };
        let (first, second) = match wide {
            true => (["rax", "rbx", "rcx", "rdx"], ["rsi", "rdi", "rsp", "rbp"]),
            false => (["eax", "ebx", "ecx", "edx"], ["esi", "edi", "esp", "ebp"]),
        };
        row(first, [regs.rax, regs.rbx, regs.rcx, regs.rdx])?;
        row(second, [regs.rsi, regs.rdi, regs.rsp, regs.rbp])?;
        if wide {
            row(["r8", "r9", "r10", "r11"], [regs.r8, regs.r9, regs.r10, regs.r11])?;
            row(["r12", "r13", "r14", "r15"], [regs.r12, regs.r13, regs.r14, regs.r15])?;
        }
        Ok(())
    }

    /// Writes the flags, the control registers, the segment registers and the descriptor tables.
    fn write_system_registers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { regs, sregs, .. } = self;
        writeln!(
            f,
            "  rflags {:x}  cr0 {:x}  cr2 {:x}  cr3 {:x}  cr4 {:x}  efer {:x}",
            regs.rflags, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer
        )?;
        writeln!(
            f,
            "  cs {:04x}  ds {:04x}  es {:04x}  ss {:04x}  gdt {:x}+{:x}  idt {:x}+{:x}",
            sregs.cs.selector,
            sregs.ds.selector,
            sregs.es.selector,
            sregs.ss.selector,
            sregs.gdt.base,
            sregs.gdt.limit,
            sregs.idt.base,
            sregs.idt.limit
        )
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.shown != Shown::All {
            if self.shown == Shown::Registers {
                self.write_registers(f)?;
            }
            self.write_system_registers(f)?;
            return self.write_findings(f);
        }
        for (number, exception) in (1..).zip(&self.exceptions) {
            let label = if number == 1 { "exceptions" } else { "" };
            writeln!(f, "  {label:<11}  {number}. {exception}")?;
        }
        if !self.instruction.is_empty() {
            writeln!(f, "  instruction  {}", self.instruction)?;
        }
        writeln!(f, "  mapping      {}", self.mapping)?;
        self.write_registers(f)?;
        self.write_system_registers(f)?;
        match &self.stack {
            Some(stack) => {
                write!(f, "  stack       ")?;
                stack.iter().try_for_each(|word| write!(f, " {word:x}"))?;
                writeln!(f)
            }
            None => writeln!(f, "  stack        no memory at the stack pointer"),
        }?;
        if let Some(handler) = &self.handler {
            writeln!(f, "  handler      none: {handler}")?;
        }
        self.write_findings(f)
    }
}

/// The probable cause of a death after which the host has reset the vCPU ([`Location::Reset`]). `last` are the last exits.
pub(super) fn suspicion_without_state(image: &Image, last: &[TracedExit]) -> Option<String> {
    let exits: Vec<_> = last.iter().map(|traced| traced.exit).collect();
    derail::derailed_before_reset(image, &exits).map(Cow::into_owned)
}

/// The modes, such as ":64", that the code of a flat binary seems to be for, if it is not its own.
pub(super) fn other_mode(image: &Image) -> Option<&'static str> {
    other_mode::choice(image)
}

/// The knowledge of the machine about the guest, besides the state of the vCPU.
#[derive(Clone, Copy, Default)]
pub(super) struct Scene<'a> {
    /// `None` for Linux.
    pub(super) image: Option<&'a Image>,
    /// RSP and the base of SS at the start. `None` for Linux.
    pub(super) stack_top: Option<u64>,
    pub(super) stack_base: Option<u64>,
    /// The guest is a kernel that was entered as Linux is, with RSP = 0.
    pub(super) is_kernel: bool,
    /// The machine has SIMVIRTIO.
    pub(super) has_window: bool,
    /// The guest died of a fault. If not, only a guest that left its code is explained.
    pub(super) died: bool,
    /// KVM could not emulate an instruction of the guest.
    pub(super) is_unemulated: bool,
    /// The vCPU is a software processor.
    pub(super) is_soft: bool,
    /// The guest is that of another program, so it has not this machine's ports.
    pub(super) is_foreign: bool,
}

/// The state of a vCPU at an instruction.
struct State<'a> {
    regs: &'a Regs,
    sregs: &'a Sregs,
    probe: &'a View<'a>,
    memory: &'a dyn ReadMemory,
    /// The width of a word on the stack, in bytes.
    width: u64,
    scene: &'a Scene<'a>,
}

impl State<'_> {
    /// The stack pointer, as an offset in the stack segment.
    fn stack_offset(&self) -> u64 {
        match self.width {
            2 => self.regs.rsp & 0xffff,
            4 => self.regs.rsp & 0xffff_ffff,
            _ => self.regs.rsp,
        }
    }

    /// The word on the stack at a distance from the stack pointer, in bytes, which wraps. `None` if it is not in memory.
    fn stack_word(&self, distance: u64) -> Option<u64> {
        let mask = if self.width == 2 { 0xffff } else { u64::MAX };
        let offset = self.stack_offset().wrapping_add(distance) & mask;
        let linear = self.probe.linear(self.sregs.ss.base, offset);
        let gpa = self.probe.translate_linear(linear).ok()?.gpa;
        let mut word = [0; 8];
        let read = word.get_mut(..usize::try_from(self.width).ok()?)?;
        self.memory.read(gpa, read).then(|| u64::from_le_bytes(word))
    }
}

/// Reads the top of the stack, up to the end of memory.
fn stack_words(memory: &dyn ReadMemory, gpa: Gpa, width: usize) -> Option<Vec<u64>> {
    let word = |index: usize| {
        let mut word = [0; 8];
        let at = gpa.0.checked_add((index * width) as u64)?;
        memory.read(Gpa(at), word.get_mut(..width)?).then(|| u64::from_le_bytes(word))
    };
    let words: Vec<u64> = (0..STACK_WORDS).map_while(word).collect();
    (!words.is_empty()).then_some(words)
}
