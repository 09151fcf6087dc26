//! VM exits, the answers to them, and the chain of controllers that gives the answers.
//!
//! An [`Exit`] is an owned value, and so is its answer, an [`Outcome`]. An [`ExitController`] looks at an
//! exit and claims it or lets it pass; controllers compose as nested pairs, `(yours, (next, last))`, and
//! the first that claims an exit wins.

use crate::profile::Site;
use simvirtio::device::Violation;
use std::fmt;
use std::io;

/// Why the vCPU left the guest.
///
/// Linux `Documentation/virt/kvm/api.rst`, section 5, "The kvm_run structure".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest reads a port. Answered by a value.
    PioIn {
        /// The port.
        port: u16,
        /// Width in bytes: 1, 2 or 4.
        size: u8,
    },
    /// The guest writes a port.
    PioOut {
        /// The port.
        port: u16,
        /// Width in bytes: 1, 2 or 4.
        size: u8,
        /// The value, zero-extended.
        data: u32,
    },
    /// The guest reads an address with no memory behind it. Answered by a value.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// Width in bytes, 1 to 8.
        size: u8,
    },
    /// The guest writes an address with no memory behind it.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// Width in bytes, 1 to 8.
        size: u8,
        /// The value, zero-extended.
        data: u64,
    },
    /// The guest halted.
    Hlt,
    /// The CPU shut down: a triple fault.
    Shutdown,
    /// KVM had to emulate an instruction and could not.
    EmulationFailure(Instruction),
    /// The processor refused to enter the guest.
    FailedEntry {
        /// The hardware's own reason: on Intel the VM-instruction error or exit reason (SDM volume 3,
        /// appendix C), on AMD the VMCB's exit code.
        reason: u64,
    },
    /// A signal, or a request to leave: not an exit of the guest's, and not counted as one.
    Interrupted,
    /// A reason that this VMM has no use for: KVM's number of it.
    Other(u32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::PioIn { port, size } => write!(f, "in{} {port:#x}", width(size)),
            Self::PioOut { port, size, data } => write!(f, "out{} {port:#x} {data:#x}", width(size)),
            Self::MmioRead { address, size } => write!(f, "read{} {address:#x}", width(size)),
            Self::MmioWrite { address, size, data } => {
                write!(f, "write{} {address:#x} {data:#x}", width(size))
            }
            Self::Hlt => f.write_str("hlt"),
            Self::Shutdown => f.write_str("shutdown"),
            Self::EmulationFailure(_) => f.write_str("emulation failure"),
            Self::FailedEntry { .. } => f.write_str("failed entry"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Other(reason) => write!(f, "reason {reason}"),
        }
    }
}

/// The width of an access in bits, as a suffix.
fn width(size: u8) -> &'static str {
    match size {
        1 => "8",
        2 => "16",
        4 => "32",
        8 => "64",
        _ => "",
    }
}

/// The bytes of an instruction that KVM could not emulate, where it says which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    bytes: [u8; 15],
    len: u8,
}

impl Instruction {
    /// The first 15 of `bytes`, the longest that an x86 instruction can be.
    pub fn new(bytes: &[u8]) -> Self {
        let mut instruction = Self::default();
        for (to, from) in instruction.bytes.iter_mut().zip(bytes) {
            *to = *from;
            instruction.len = instruction.len.saturating_add(1);
        }
        instruction
    }

    /// The bytes; none where KVM did not say.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or_default()
    }
}

/// What is to be done about an exit.
#[derive(Debug)]
pub enum Outcome {
    /// Not mine: ask the next controller.
    Unclaimed,
    /// Done; go back into the guest.
    Resume,
    /// The value that the guest reads; go back into the guest.
    Value(u64),
    /// The run ends here.
    Stop(Stop),
}

/// How a run ended.
#[derive(Debug)]
pub enum Stop {
    /// The guest halted.
    Halted,
    /// The guest asked for an end with this code.
    Exited(u64),
    /// The guest triple-faulted.
    TripleFault,
    /// KVM could not emulate an instruction of the guest's.
    EmulationFailure(Instruction),
    /// The processor refused to enter the guest, with the hardware's own reason.
    FailedEntry(u64),
    /// The guest broke the SIMVIRTIO protocol.
    ProtocolError(Violation),
    /// The guest did not end in the time that it was given.
    Timeout,
    /// Somebody asked for the run to end.
    Interrupted,
    /// The guest wrote more than it may: so many bytes.
    OutputLimit(u64),
    /// What the guest wrote could not be handed on.
    OutputFailed(io::Error),
    /// What the guest wants to read could not be had.
    InputFailed(io::Error),
    /// An exit that nobody claimed and that cannot be passed over: KVM's number of the reason.
    UnknownExit(u32),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Halted => f.write_str("halted"),
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::TripleFault => f.write_str("triple fault (an exception, and no handler for it)"),
            Self::EmulationFailure(instruction) => {
                f.write_str("KVM had to emulate an instruction of the guest and could not")?;
                match instruction.bytes() {
                    [] => Ok(()),
                    bytes => {
                        f.write_str(":")?;
                        bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
                    }
                }
            }
            Self::FailedEntry(reason) => {
                write!(f, "the processor refused to enter the guest (hardware reason {reason:#x})")
            }
            Self::ProtocolError(violation) => write!(f, "SIMVIRTIO protocol error: {violation}"),
            Self::Timeout => f.write_str("timeout: the guest did not end in the time it was given"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::OutputLimit(limit) => write!(f, "output limit: the guest wrote more than {limit} bytes"),
            Self::OutputFailed(error) => write!(f, "the guest's output could not be written: {error}"),
            Self::InputFailed(error) => write!(f, "the guest's input could not be read: {error}"),
            Self::UnknownExit(reason) => {
                write!(f, "exit reason {reason} of KVM, which this VMM does not handle")
            }
        }
    }
}

/// Handles some of a vCPU's exits.
///
/// ```
/// use vmm::exit::{Exit, ExitController, Outcome};
///
/// /// A port that counts how often it was read.
/// struct Counter(u64);
///
/// impl ExitController for Counter {
///     fn handle(&mut self, exit: &Exit) -> Outcome {
///         match exit {
///             Exit::PioIn { port: 0x42, .. } => {
///                 self.0 += 1;
///                 Outcome::Value(self.0)
///             }
///             _ => Outcome::Unclaimed,
///         }
///     }
/// }
///
/// let mut chain = (Counter(0), vmm::exit::OpenBus::default());
/// assert!(matches!(chain.handle(&Exit::PioIn { port: 0x42, size: 1 }), Outcome::Value(1)));
/// assert!(matches!(chain.handle(&Exit::PioIn { port: 0x43, size: 1 }), Outcome::Value(u64::MAX)));
/// ```
pub trait ExitController {
    /// Claims `exit` and says what is to be done, or answers [`Outcome::Unclaimed`].
    fn handle(&mut self, exit: &Exit) -> Outcome;
}

impl<A: ExitController, B: ExitController> ExitController for (A, B) {
    fn handle(&mut self, exit: &Exit) -> Outcome {
        match self.0.handle(exit) {
            Outcome::Unclaimed => self.1.handle(exit),
            outcome => outcome,
        }
    }
}

impl<C: ExitController + ?Sized> ExitController for &mut C {
    fn handle(&mut self, exit: &Exit) -> Outcome {
        (**self).handle(exit)
    }
}

/// Ends the run at the exits that are an end: a halt, a shutdown, and what cannot be resumed.
#[derive(Clone, Copy, Debug)]
pub struct Ends;

impl ExitController for Ends {
    fn handle(&mut self, exit: &Exit) -> Outcome {
        match *exit {
            Exit::Hlt => Outcome::Stop(Stop::Halted),
            Exit::Shutdown => Outcome::Stop(Stop::TripleFault),
            Exit::EmulationFailure(instruction) => Outcome::Stop(Stop::EmulationFailure(instruction)),
            Exit::FailedEntry { reason } => Outcome::Stop(Stop::FailedEntry(reason)),
            Exit::Other(reason) => Outcome::Stop(Stop::UnknownExit(reason)),
            _ => Outcome::Unclaimed,
        }
    }
}

/// The end of every chain: nobody is there, so reads give all ones and writes vanish. Remembers who was
/// looked for.
#[derive(Clone, Debug, Default)]
pub struct OpenBus {
    first: Vec<(Site, u64)>,
    total: u64,
}

/// How many sites an open bus tells apart.
const REMEMBERED: usize = 8;

impl OpenBus {
    /// The first few sites at which nobody was, and how often each was looked for.
    pub fn seen(&self) -> impl Iterator<Item = (Site, u64)> {
        self.first.iter().copied()
    }

    /// All accesses at which nobody was.
    pub fn total(&self) -> u64 {
        self.total
    }

    fn remember(&mut self, exit: &Exit) {
        let Some(site) = Site::of(exit) else { return };
        self.total = self.total.saturating_add(1);
        if let Some((_, count)) = self.first.iter_mut().find(|(seen, _)| *seen == site) {
            *count = count.saturating_add(1);
        } else if self.first.len() < REMEMBERED {
            self.first.push((site, 1));
        }
    }
}

impl ExitController for OpenBus {
    fn handle(&mut self, exit: &Exit) -> Outcome {
        match exit {
            Exit::PioIn { .. } | Exit::MmioRead { .. } => {
                self.remember(exit);
                Outcome::Value(u64::MAX)
            }
            Exit::PioOut { .. } | Exit::MmioWrite { .. } => {
                self.remember(exit);
                Outcome::Resume
            }
            _ => Outcome::Resume,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Claims(u16, u64);

    impl ExitController for Claims {
        fn handle(&mut self, exit: &Exit) -> Outcome {
            match exit {
                Exit::PioIn { port, .. } if *port == self.0 => Outcome::Value(self.1),
                _ => Outcome::Unclaimed,
            }
        }
    }

    fn value(outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Value(value) => value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_claimant_wins_and_the_open_bus_answers_the_rest() {
        let mut chain = (Claims(1, 10), (Claims(1, 20), (Claims(2, 30), OpenBus::default())));
        let mut read = |port| value(chain.handle(&Exit::PioIn { port, size: 1 }));
        assert_eq!((read(1), read(2), read(3)), (10, 30, u64::MAX));
        assert!(matches!(chain.handle(&Exit::PioOut { port: 1, size: 1, data: 0 }), Outcome::Resume));
        let read = Exit::MmioRead { address: 0xdead_0000, size: 4 };
        assert_eq!(value(chain.handle(&read)), u64::MAX);
    }

    #[test]
    fn an_open_bus_remembers_the_first_and_counts_all() {
        let mut bus = OpenBus::default();
        for port in (0..100).chain(0..3) {
            bus.handle(&Exit::PioOut { port, size: 1, data: 0 });
        }
        bus.handle(&Exit::Hlt);
        assert_eq!(bus.total(), 103);
        let counts: Vec<_> = bus.seen().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 2, 2, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn what_is_an_end_ends() {
        let instruction = Instruction::new(&[0x0f, 0x0b]);
        let expect = [
            (Exit::Hlt, "halted"),
            (Exit::Shutdown, "triple fault (an exception, and no handler for it)"),
            (
                Exit::EmulationFailure(instruction),
                "KVM had to emulate an instruction of the guest and could not: 0f 0b",
            ),
            (
                Exit::FailedEntry { reason: 7 },
                "the processor refused to enter the guest (hardware reason 0x7)",
            ),
            (Exit::Other(99), "exit reason 99 of KVM, which this VMM does not handle"),
        ];
        for (exit, text) in expect {
            match Ends.handle(&exit) {
                Outcome::Stop(stop) => assert_eq!(stop.to_string(), text),
                other => panic!("{exit:?}: {other:?}"),
            }
        }
        assert!(matches!(Ends.handle(&Exit::PioIn { port: 0, size: 1 }), Outcome::Unclaimed));
    }

    #[test]
    fn an_instruction_holds_fifteen_bytes() {
        assert_eq!(Instruction::new(&[0x90; 20]).bytes(), [0x90; 15]);
        assert_eq!(Instruction::default().bytes(), []);
    }
}
