//! Runs a program on both processors.

use crate::outcome::{self, End, Outcome, byte, is_end, ranges, words};
use crate::program::{Config, Program};
use crate::{kvm, layout, quirks, ring_0, soft};
use iced_x86::{Decoder, DecoderOptions};
use softcpu::{State, seg};

type Error = Box<dyn std::error::Error>;

/// The judgement of a program.
#[derive(Clone, Debug)]
pub enum Verdict {
    Same,
    /// KVM cannot run it.
    NotComparable(String),
    /// softcpu does not implement an instruction.
    Unsupported(String),
    /// Only flags differ that the manual leaves undefined, after this instruction.
    UndefinedFlags(String, Vec<String>),
    Different(Vec<String>),
}

/// Both processors.
pub struct Runner {
    kvm: kvm::Machine,
    pub soft: soft::Machine,
    /// The configuration of the last program.
    last: Option<Config>,
    pub faults: u64,
    /// Compare KVM with itself.
    pub self_check: bool,
}

impl Runner {
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            kvm: kvm::Machine::new()?,
            soft: soft::Machine::new(),
            last: None,
            faults: 0,
            self_check: false,
        })
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
        self.kvm.get(&mut state, kvm::has_sse(config))?;
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
        match &kvm.end {
            End::Unsupported => {
                return Ok(Verdict::NotComparable(format!("KVM cannot emulate {}", name_at(&kvm))));
            }
            End::Endless => return Ok(Verdict::NotComparable("endless".into())),
            End::Other(why) => return Ok(Verdict::NotComparable(why.clone())),
            End::Halted | End::Shutdown => {}
        }
        if layout::vector(&kvm.state).is_some_and(|vector| vector != 13 || !is_end(config, &kvm)) {
            self.faults += 1;
        }
        match soft.end {
            End::Unsupported => return Ok(Verdict::Unsupported(name_at(&soft))),
            End::Endless => return Ok(Verdict::NotComparable("endless on softcpu".into())),
            _ => {}
        }
        let lines = outcome::compare(config, &kvm, &soft, 0);
        if lines.is_empty() {
            return Ok(Verdict::Same);
        }
        let (again, soft) = self.both(program)?;
        if outcome::compare(config, &again, &soft, 0).is_empty() {
            return Ok(Verdict::NotComparable(
                "KVM's result is another one when the program is repeated".into(),
            ));
        }
        if config == Config::Long && self.is_stale(program, &again)? {
            let why = "a translation that the program has changed is still in the TLB of softcpu";
            return Ok(Verdict::NotComparable(why.into()));
        }
        Ok(match self.culprit(program)? {
            Ok(culprit) => match quirks::allowed(config, &culprit) {
                Some(why) => Verdict::NotComparable(why.into()),
                None if culprit.undefined.was_read => {
                    Verdict::UndefinedFlags(culprit.undefined.name(), lines)
                }
                None => Verdict::Different(lines),
            },
            Err(undefined) if undefined.cause.is_some() => Verdict::UndefinedFlags(undefined.name(), lines),
            Err(undefined) if undefined.is_rewritten && config != Config::User => {
                let why = "KVM's emulator goes on with an instruction that has overwritten itself";
                Verdict::NotComparable(why.into())
            }
            // It cannot be cut into parts.
            Err(_) => Verdict::Different(lines),
        })
    }

    /// Runs a program on both.
    pub fn both(&mut self, program: &Program) -> Result<(Outcome, Outcome), Error> {
        self.load(program)?;
        let kvm = self.run_kvm(program)?;
        if kvm.end == End::Endless {
            // An emulated string instruction that was interrupted would go on in the next program.
            self.kvm = kvm::Machine::new()?;
            self.last = None;
        }
        self.load(program)?;
        let soft = if self.self_check { self.run_kvm(program)? } else { self.run_soft(program) };
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
