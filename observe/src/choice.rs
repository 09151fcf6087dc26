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
    /// Checks a program, and creates its engine.
    ///
    /// # Errors
    /// The program cannot be observed in this way, or a resource of the host is missing.
    pub fn engine(self, program: &Program) -> Result<Box<dyn Engine>, Error> {
        let is_ptrace = match self {
            Self::Auto => program.makes_system_calls(),
            Self::Preload => false,
            Self::Ptrace => true,
        };
        if is_ptrace {
            program.check_ptrace()?;
            return Ok(Box::new(Ptrace::new(program)?));
        }
        program.check_preload()?;
        Ok(Box::new(Preload::new()?))
    }
}
