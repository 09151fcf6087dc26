//! A program: code, and the state in which it begins.

use softcpu::State;
use std::fmt;

/// The mode in which a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Config {
    /// 64-bit code in ring 3.
    User,
    Real,
    Protected,
    /// 64-bit code in ring 0.
    Long,
    /// 16-bit code in ring 0 of protected mode, with segments that do not begin at 0.
    Protected16,
}

impl Config {
    pub const ALL: [Self; 5] = [Self::User, Self::Real, Self::Protected, Self::Long, Self::Protected16];

    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Real => "real",
            Self::Protected => "protected",
            Self::Long => "long",
            Self::Protected16 => "protected16",
        }
    }

    pub fn is_64(self) -> bool {
        matches!(self, Self::User | Self::Long)
    }

    /// Each segment covers its own part of memory.
    pub fn is_segmented(self) -> bool {
        matches!(self, Self::Real | Self::Protected16)
    }

    /// Protected mode, without long mode.
    pub fn is_protected(self) -> bool {
        matches!(self, Self::Protected | Self::Protected16)
    }
}

/// The name of a program: its configuration and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    pub config: Config,
    pub number: u64,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.config.name(), self.number)
    }
}

/// An instruction of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The physical address.
    pub at: u64,
    /// The number of bytes.
    pub len: usize,
    /// The width of the code, and the start of its segment.
    pub bits: u32,
    pub base: u64,
}

/// A program.
#[derive(Clone)]
pub struct Program {
    pub id: Id,
    /// The registers.
    pub state: State,
    /// All of memory.
    pub image: Vec<u64>,
    /// The instructions in the order of their addresses.
    pub pieces: Vec<Piece>,
}

impl Program {
    /// The width of the code, in bits.
    pub fn bits(&self) -> u32 {
        self.state.code_bits()
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            if let Some(word) = self.image.get_mut((at / 8) as usize) {
                let shift = at % 8 * 8;
                *word = *word & !(0xff << shift) | u64::from(*byte) << shift;
            }
        }
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        bytes(&self.image, at, len)
    }
}

/// `len` bytes at an address of memory.
pub fn bytes(image: &[u64], at: u64, len: usize) -> Vec<u8> {
    (at..at + len as u64)
        .map(|at| image.get((at / 8) as usize).map_or(0, |word| (word >> (at % 8 * 8)) as u8))
        .collect()
}
