//! The option `--jail` on systems that have no jail.

use crate::debugger::GdbArgs;
use crate::measure::MeasureArgs;
use crate::streams::print_stderr;
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use vmm::lab::Check;
use vmm::{Error, Machine};

/// A value of `--jail`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum JailArg {
    /// a line on stderr says that there is none
    On,
    /// no jail
    Off,
    /// an error
    Require,
}

// A doc comment would become the description of the subcommands.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct JailArgs {
    /// Give up all rights that the run does not need, which needs Linux on x86-64 [default: on for `grade`, otherwise off]
    #[arg(long, value_name = "WHEN", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "on")]
    jail: Option<JailArg>,
}

/// A jail that was asked for.
#[derive(Debug)]
pub struct Jail {
    required: bool,
}

/// There are no parts of a jail to check.
pub fn checks() -> Vec<Check> {
    Vec::new()
}

/// The rights that a run would keep.
#[derive(Debug, Default)]
pub struct Rights {
    pub read: Vec<PathBuf>,
    pub results: Vec<PathBuf>,
    pub builds: bool,
    pub debugs: bool,
    pub any_size: bool,
}

impl Rights {
    /// The rights of a run with these options.
    ///
    /// # Errors
    /// None.
    pub fn of(
        _: &MeasureArgs,
        _: Option<&Path>,
        _: &GdbArgs,
        _: Vec<PathBuf>,
        _: bool,
    ) -> Result<Self, Error> {
        Ok(Self::default())
    }
}

impl JailArgs {
    /// The option for a process that this one starts.
    pub fn argument(self) -> Option<OsString> {
        let value = self.jail?.to_possible_value()?;
        Some(format!("--jail={}", value.get_name()).into())
    }

    /// The same: there is no jail that a folder could matter for.
    pub fn in_folder(self, _is_shared: bool) -> Self {
        self
    }

    /// The jail, if there is to be one.
    pub fn prepare(self, is_default: bool) -> Option<Jail> {
        match self.jail {
            Some(JailArg::Off) => None,
            None if !is_default => None,
            None | Some(JailArg::On) => Some(Jail { required: false }),
            Some(JailArg::Require) => Some(Jail { required: true }),
        }
    }
}

impl Jail {
    /// Says that there is no jail.
    ///
    /// # Errors
    /// The jail is required.
    pub fn enter(self, rights: &Rights, _machine: Option<&Machine>) -> Result<(), Error> {
        let _ = (&rights.read, &rights.results, rights.builds, rights.debugs, rights.any_size);
        const MISSING: &str = "this system has no jail, which needs Linux on x86-64";
        if self.required {
            return Err(Error::Config(format!("--jail=require: {MISSING}: leave out the option")));
        }
        print_stderr(&format!("vmm: jail: {MISSING}\n"));
        Ok(())
    }
}
