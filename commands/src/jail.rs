//! The option `--jail`: this program gives up its rights before it runs a guest, and runs other programs with few rights
//! (docs/security.md).

use crate::debugger::GdbArgs;
use crate::measure::MeasureArgs;
use crate::streams::print_stderr;
use crate::{outputs, status};
use clap::{Args, ValueEnum};
use jail::{Entered, Inherited, Kind, Place, Policy, Use};
use observe::{Confinement, Program};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use vmm::host::{ThreadKind, on_thread_start};
use vmm::lab::{Check, CheckOutcome};
use vmm::{Error, Machine};

/// The memory that a run may map besides that of its guest: threads, symbols, results.
const OWN_MEMORY: u64 = 4 << 30;
/// The largest result file of a run without disks and cores.
const FILE_SIZE: u64 = 4 << 30;

/// A value of `--jail`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum JailArg {
    /// as far as this system permits; a line on stderr says what is missing
    On,
    /// no jail
    Off,
    /// the whole jail, or an error
    Require,
}

// A doc comment would become the description of the subcommands.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct JailArgs {
    /// Give up all rights that the run does not need: files, network, system calls (docs/security.md); `vmm doctor` shows
    /// which parts this system has [default: on for `grade`, otherwise off]
    #[arg(long, value_name = "WHEN", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "on")]
    jail: Option<JailArg>,
    /// The folder of a program has files of others, too.
    #[arg(skip)]
    is_shared: bool,
}

/// A jail that this process will enter.
#[derive(Debug)]
pub struct Jail {
    required: bool,
    inherited: Inherited,
}

impl JailArgs {
    /// The option for a process that this one starts.
    pub fn argument(self) -> Option<OsString> {
        let value = self.jail?.to_possible_value()?;
        Some(format!("--jail={}", value.get_name()).into())
    }

    /// The jail, if there is to be one. Call it before this process opens a file.
    pub fn prepare(self, is_default: bool) -> Option<Jail> {
        self.required(is_default).map(|required| Jail { required, inherited: Inherited::find() })
    }

    /// The same, for a program whose folder has files of others, too, if it `is_shared`: the program may not use it.
    pub fn in_folder(self, is_shared: bool) -> Self {
        Self { is_shared, ..self }
    }

    /// The jail of another program. It may use the folder of its file, the files that its `words` name, and `more`.
    pub fn confinement(
        self,
        is_default: bool,
        program: &Program,
        words: &[OsString],
        more: Option<Place>,
    ) -> Option<Confinement> {
        let required = self.required(is_default)?;
        let file = program.path().canonicalize().unwrap_or_else(|_| program.path().to_owned());
        let folder = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
        let own = [program.path(), &file];
        let own = own.map(|path| if self.is_shared { path.to_owned() } else { folder(path) });
        let loaded = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let loaded = std::env::split_paths(&loaded).filter(|path| !path.as_os_str().is_empty());
        let executed = own.into_iter().filter(|path| !path.as_os_str().is_empty()).chain(loaded);
        let executed = executed.map(|path| Place::new(path, Use::Execute));
        let read = words.iter().map(|word| Place::new(word, Use::Read)).filter(|place| place.path.is_file());
        Some(Confinement { required, places: executed.chain(read).chain(more).collect() })
    }

    /// True if all parts are required. `None` without a jail.
    fn required(self, is_default: bool) -> Option<bool> {
        match self.jail {
            Some(JailArg::Off) => None,
            None if !is_default => None,
            None | Some(JailArg::On) => Some(false),
            Some(JailArg::Require) => Some(true),
        }
    }
}

/// The parts of a jail that this host has, for `vmm doctor`.
pub fn checks() -> Vec<Check> {
    let check = |part: jail::Facility| {
        let (outcome, found) = match part.found {
            Ok(found) => (CheckOutcome::Good, found),
            Err(what) => (CheckOutcome::Missing, what),
        };
        Check { what: format!("jail: {}", part.name), outcome, found }
    };
    jail::facilities().into_iter().map(check).collect()
}

/// The rights that a run keeps.
#[derive(Debug, Default)]
pub struct Rights {
    /// The files that may still be read, and folders with all of their files.
    pub read: Vec<PathBuf>,
    /// The results, which were opened before. A file takes its place by a rename in its folder.
    pub results: Vec<PathBuf>,
    /// True if machines are built in the jail.
    pub builds: bool,
    /// True if a server for gdb runs in it.
    pub debugs: bool,
    /// True if files of any size are written, such as disks.
    pub any_size: bool,
}

impl Rights {
    /// The rights of a run with these options. It reads `read`, and writes files of `any_size` besides its results.
    ///
    /// # Errors
    /// An option is wrong.
    pub fn of(
        measure: &MeasureArgs,
        step: Option<&Path>,
        gdb: &GdbArgs,
        read: Vec<PathBuf>,
        any_size: bool,
    ) -> Result<Self, Error> {
        let results = outputs::results(measure, step)?;
        let results = results.into_iter().map(|(_, path)| path.to_owned()).chain(gdb.socket());
        Ok(Self {
            read,
            results: results.collect(),
            builds: false,
            debugs: gdb.is_given() || measure.core.is_some(),
            any_size: any_size || measure.core.is_some(),
        })
    }

    fn places(&self) -> Vec<Place> {
        let folder = |path: &PathBuf| {
            let place = report::replaced_place(path).unwrap_or_else(|| path.clone());
            Place::new(place.parent().unwrap_or(Path::new("/")), Use::Replace)
        };
        let read = self.read.iter().map(|path| Place::new(path, Use::Read));
        let kvm = self.builds.then(|| Place::new("/dev/kvm", Use::Device));
        read.chain(self.results.iter().map(folder)).chain(kvm).collect()
    }
}

impl Jail {
    /// Enters the jail, before the first instruction of a guest.
    ///
    /// # Errors
    /// The jail is required, and a part is missing.
    pub fn enter(self, rights: &Rights, machine: Option<&Machine>) -> Result<(), Error> {
        on_thread_start(|kind| {
            jail::thread_started(match kind {
                ThreadKind::Vcpu => Kind::Vcpu,
                ThreadKind::Device => Kind::Device,
                ThreadKind::Console => Kind::Console,
                ThreadKind::Debugger => Kind::Debugger,
            });
        });
        let memory = machine.map(|machine| {
            let ranges = machine.memory().ranges();
            ranges.map(|(first, last)| last.0.saturating_sub(first.0)).fold(OWN_MEMORY, u64::saturating_add)
        });
        let policy = Policy {
            places: rights.places(),
            debugs: rights.debugs,
            memory,
            file_size: (!rights.any_size).then_some(FILE_SIZE),
            inherited: self.inherited,
            status: status::JAIL_BROKEN,
            before_end: Some(vmm::host::restore_terminal),
        };
        match jail::enter(policy, self.required) {
            Ok(Entered { missing }) => {
                missing.iter().for_each(|what| print_stderr(&format!("vmm: jail: {what}\n")));
                Ok(())
            }
            Err(what) => Err(Error::Host {
                operation: "entering the jail (--jail=require)",
                source: io::Error::other(what),
            }),
        }
    }
}
