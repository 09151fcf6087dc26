//! Runs a program on both processors.

use crate::outcome::{self, End, Outcome, byte, is_end, ranges, words};
use crate::program::{Config, Id, Program};
use crate::{kvm, layout, quirks, ring_0, soft};
use iced_x86::{Decoder, DecoderOptions};
use softcpu::{State, flag, seg};
use std::fmt;

type Error = Box<dyn std::error::Error>;

/// The judgement of a program.
#[derive(Clone, Debug)]
pub enum Verdict {
    Same,
    NotComparable(Why, String),
    /// Only flags differ that the manual leaves undefined, after this instruction.
    UndefinedFlags(String, Vec<String>),
    Different(Vec<String>),
}

/// The reason why a program is not comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    Emulator,
    Listed,
    Translation,
    Endless,
    Unstable,
    Unsupported,
    Error,
}

impl Why {
    pub const ALL: [Self; 7] = [
        Self::Emulator,
        Self::Listed,
        Self::Translation,
        Self::Endless,
        Self::Unstable,
        Self::Unsupported,
        Self::Error,
    ];
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Emulator => "that KVM cannot emulate",
            Self::Listed => "with a known difference of KVM or of the host",
            Self::Translation => "that use a translation that they have changed and not flushed",
            Self::Endless => "endless",
            Self::Unstable => "with another result each time on KVM",
            Self::Unsupported => "that softcpu does not implement",
            Self::Error => "with an error of KVM_RUN",
        })
    }
}

/// The number of times that a program with a difference is repeated on new machines.
const REPETITIONS: usize = 3;

/// The instruction MOV ES, AX, and a selector beyond the GDT, with which it raises #GP.
const LOAD_SEGMENT: [u8; 2] = [0x8e, 0xc0];
const NO_SEGMENT: u64 = 0xfff8;

/// Both processors.
pub struct Runner {
    kvm: kvm::Machine,
    pub soft: soft::Machine,
    /// The configuration of the last program.
    last: Option<Config>,
    pub faults: u64,
    /// Compare KVM with itself.
    pub self_check: bool,
    /// The processor leaves RF out of the frame of a fault, as that of QEMU does.
    pub lacks_rf: bool,
}

impl Runner {
    pub fn new() -> Result<Self, Error> {
        let mut runner = Self {
            kvm: kvm::Machine::new()?,
            soft: soft::Machine::new(),
            last: None,
            faults: 0,
            self_check: false,
            lacks_rf: false,
        };
        let (config, id) = (Config::Protected, Id { config: Config::Protected, number: 0 });
        let mut program =
            Program { id, state: layout::state(config), image: layout::image(config), pieces: Vec::new() };
        program.state.gpr[4] = layout::KERNEL_STACK_TOP;
        program.state.gpr[0] = NO_SEGMENT;
        program.write(layout::CODE, &LOAD_SEGMENT);
        let (kvm, _) = runner.both(&program)?;
        let is_fault = layout::vector(&kvm.state) == Some(13);
        runner.lacks_rf = is_fault && outcome::flags(config, &kvm) & flag::RF == 0;
        Ok(runner)
    }

    /// Starts with new machines.
    pub fn fresh(&mut self) -> Result<(), Error> {
        self.kvm = kvm::Machine::new()?;
        self.soft = soft::Machine::new();
        self.last = None;
        Ok(())
    }

    /// Puts a program into both memories.
    pub fn load(&mut self, program: &Program) -> Result<(), Error> {
        let config = program.id.config;
        let everything = [(0, layout::MEMORY)];
        let ranges = if self.last == Some(config) { ranges(config) } else { &everything };
        for (start, end) in ranges {
            let words = &program.image[(start / 8) as usize..(end / 8) as usize];
            self.kvm.write(*start, words)?;
            self.soft.write(*start, words);
        }
        self.last = Some(config);
        Ok(())
    }

    /// Runs a program through KVM.
    fn run_kvm(&mut self, program: &Program) -> Result<Outcome, Error> {
        let config = program.id.config;
        let mut state = program.state.clone();
        let mut accesses = Vec::new();
        self.kvm.set(&state)?;
        let end = self.kvm.run(&mut accesses)?;
        self.kvm.get(&mut state)?;
        // Programs with system tables also change debug registers.
        if end != End::Halted || ring_0::is_extended(config) {
            self.kvm.reset()?;
        }
        let mut memory = vec![0; words(config)];
        let mut rest = memory.as_mut_slice();
        for (start, end) in ranges(config) {
            let (part, after) = rest.split_at_mut(((end - start) / 8) as usize);
            self.kvm.read(*start, part)?;
            rest = after;
        }
        if end == End::Endless {
            // An emulated string instruction that was interrupted would go on in the next program.
            self.kvm = kvm::Machine::new()?;
            self.last = None;
        }
        Ok(Outcome { end, state, accesses, memory, vectors: Vec::new() })
    }

    fn run_soft(&mut self, program: &Program) -> Outcome {
        let config = program.id.config;
        let mut accesses = Vec::new();
        self.soft.set(&program.state);
        let end = self.soft.run(&mut accesses);
        let mut memory = vec![0; words(config)];
        let mut rest = memory.as_mut_slice();
        for (start, end) in ranges(config) {
            let (part, after) = rest.split_at_mut(((end - start) / 8) as usize);
            self.soft.read(*start, part);
            rest = after;
        }
        let vectors = self.soft.vectors(&end);
        Outcome { end, state: self.soft.state().clone(), accesses, memory, vectors }
    }

    /// Runs a program on both and compares.
    pub fn judge(&mut self, program: &Program) -> Result<Verdict, Error> {
        let config = program.id.config;
        let (kvm, soft) = self.both(program)?;
        if soft.end == End::Endless {
            return Ok(Verdict::NotComparable(Why::Endless, "on softcpu".into()));
        }
        match &kvm.end {
            End::Unsupported => {
                return Ok(Verdict::NotComparable(Why::Emulator, name_at(&kvm)));
            }
            End::Endless => return Ok(Verdict::NotComparable(Why::Endless, "on KVM".into())),
            End::Other(why) => return Ok(Verdict::NotComparable(Why::Error, why.clone())),
            End::Halted | End::Shutdown => {}
        }
        if layout::vector(&kvm.state).is_some_and(|vector| vector != 13 || !is_end(config, &kvm)) {
            self.faults += 1;
        }
        if soft.end == End::Unsupported {
            return Ok(Verdict::NotComparable(Why::Unsupported, name_at(&soft)));
        }
        let lines = outcome::compare(config, &kvm, &soft, 0);
        if lines.is_empty() {
            return Ok(Verdict::Same);
        }
        let (again, soft) = self.both(program)?;
        if outcome::compare(config, &again, &soft, 0).is_empty() {
            return Ok(Verdict::NotComparable(Why::Unstable, "equal when it is repeated".into()));
        }
        if config == Config::Long && self.is_stale(program, &again)? {
            return Ok(Verdict::NotComparable(Why::Translation, "in the TLB of softcpu".into()));
        }
        Ok(match self.culprit(program)? {
            Ok(culprit) => match quirks::allowed(config, &culprit) {
                Some(why) => Verdict::NotComparable(Why::Listed, why.into()),
                None if culprit.undefined.was_read => {
                    Verdict::UndefinedFlags(culprit.undefined.name(), lines)
                }
                None => Verdict::Different(lines),
            },
            Err(undefined) if undefined.cause.is_some() => Verdict::UndefinedFlags(undefined.name(), lines),
            Err(undefined) if undefined.is_rewritten && config != Config::User => {
                let why = "KVM's emulator goes on with an instruction that has overwritten itself";
                Verdict::NotComparable(Why::Listed, why.into())
            }
            // It cannot be cut into parts.
            Err(_) => Verdict::Different(lines),
        })
    }

    /// Judges a program that showed a difference again, on new machines. A result of KVM that is not always the same is not
    /// comparable; one of softcpu is an error.
    pub fn confirm(&mut self, program: &Program) -> Result<Verdict, Error> {
        let config = program.id.config;
        let (first_kvm, first_soft) = self.both(program)?;
        self.fresh()?;
        for _ in 0..REPETITIONS {
            let (kvm, soft) = self.both(program)?;
            let lines = outcome::compare(config, &first_soft, &soft, 0);
            if !lines.is_empty() {
                let first = "softcpu has another result on a new machine (kvm: the first, soft: the new one)";
                return Ok(Verdict::Different([vec![first.into()], lines].concat()));
            }
            if !outcome::compare(config, &first_kvm, &kvm, 0).is_empty() {
                return Ok(Verdict::NotComparable(Why::Unstable, "different on a new machine".into()));
            }
        }
        match self.judge(program)? {
            Verdict::Same => Ok(Verdict::NotComparable(Why::Unstable, "equal on a new machine".into())),
            verdict => Ok(verdict),
        }
    }

    /// Runs a program on both. KVM does not run what is endless on softcpu: it would take as long as the timer lets it.
    pub fn both(&mut self, program: &Program) -> Result<(Outcome, Outcome), Error> {
        self.load(program)?;
        if self.self_check {
            let first = self.run_kvm(program)?;
            self.load(program)?;
            return Ok((first, self.run_kvm(program)?));
        }
        let soft = self.run_soft(program);
        if soft.end == End::Endless {
            return Ok((soft.clone(), soft));
        }
        let mut kvm = self.run_kvm(program)?;
        if self.lacks_rf {
            outcome::copy_flags(program.id.config, &mut kvm, &soft, flag::RF);
        }
        Ok((kvm, soft))
    }
}

/// The name of the instruction at which a program ended.
fn name_at(outcome: &Outcome) -> String {
    let state: &State = &outcome.state;
    let config = if outcome.memory.len() == words(Config::User) { Config::User } else { Config::Long };
    let base = if state.is_64() { 0 } else { state.segments[seg::CS].base };
    let start = base.wrapping_add(state.rip);
    let bytes: Vec<u8> =
        (0..15).map_while(|offset| byte(outcome, config, start.wrapping_add(offset))).collect();
    let insn = Decoder::with_ip(state.code_bits(), &bytes, state.rip, DecoderOptions::NONE).decode();
    let mut name = format!("{:?}", insn.code());
    if insn.has_lock_prefix() {
        name.insert_str(0, "lock ");
    }
    name
}
