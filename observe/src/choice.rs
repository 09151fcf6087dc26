//! The choice of the engine for a program.

use crate::engine::Engine;
use crate::error::Error;
use crate::preload::Preload;
use crate::program::Program;
use crate::ptrace::Ptrace;

/// The engine that the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// `ptrace` for statically linked programs and for those of Go, and `preload` for all others.
    #[default]
    Auto,
    /// A library in front of `ioctl`.
    Preload,
    /// Stops at the system calls.
    Ptrace,
}

impl Choice {
    /// Checks that a program can be observed in this way.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(self, program: &Program) -> Result<(), Error> {
        match self.is_ptrace(program) {
            true => program.check_ptrace(),
            false => program.check_preload(),
        }
    }

    /// Checks a program, and creates its engine.
    ///
    /// # Errors
    /// The program cannot be observed in this way, or a resource of the host is missing.
    pub fn engine(self, program: &Program) -> Result<Box<dyn Engine>, Error> {
        self.check(program)?;
        Ok(match self.is_ptrace(program) {
            true => Box::new(Ptrace::new(program)?),
            false => Box::new(Preload::new()?),
        })
    }

    fn is_ptrace(self, program: &Program) -> bool {
        match self {
            Self::Auto => program.makes_system_calls(),
            Self::Preload => false,
            Self::Ptrace => true,
        }
    }
}
