//! Landlock: the files that a process may still open, and no network (Linux `Documentation/userspace-api/landlock.rst`).

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, Scope,
};
use std::io;
use std::path::PathBuf;

/// The newest version whose rights are denied. An older kernel knows fewer of them.
const NEWEST: ABI = ABI::V9;
/// The first version with rules for TCP.
pub(crate) const WITH_TCP: i32 = 4;

/// The way in which a place may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A file is read, or all files below a folder.
    Read,
    /// Files are read and executed.
    Execute,
    /// A device is read, written and controlled.
    Device,
    /// Files are created in a folder, replaced and removed.
    Replace,
    /// Everything but devices.
    All,
}

impl Use {
    fn rights(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        match self {
            Self::Read => read,
            Self::Execute => read | AccessFs::Execute,
            Self::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
            Self::Replace => {
                AccessFs::ReadFile
                    | AccessFs::WriteFile
                    | AccessFs::MakeReg
                    | AccessFs::RemoveFile
                    | AccessFs::Truncate
            }
            Self::All => {
                AccessFs::from_all(NEWEST) & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev)
            }
        }
    }

    /// The rights as a number, of those that this version of Landlock knows.
    pub(crate) fn bits(self, version: i32) -> u64 {
        let known =
            [(5, AccessFs::IoctlDev.into()), (3, AccessFs::Truncate.into()), (2, AccessFs::Refer.into())];
        let unix: (i32, BitFlags<AccessFs>) = (9, AccessFs::ResolveUnix.into());
        let missing = known.into_iter().chain([unix]).filter(|(first, _)| version < *first);
        missing.fold(self.rights(), |rights, (_, right)| rights & !right).bits()
    }
}

/// A file or folder that stays usable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its path. One that does not exist is left out.
    pub path: PathBuf,
    /// The use.
    pub to: Use,
}

impl Place {
    /// A place.
    pub fn new(path: impl Into<PathBuf>, to: Use) -> Self {
        Self { path: path.into(), to }
    }
}

/// The version of Landlock that the kernel has; 0 for none.
#[allow(unsafe_code)]
pub(crate) fn version() -> i32 {
    // SAFETY: with this flag and no memory, the call only returns the version.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0usize, 0usize, 1u32) };
    i32::try_from(version).unwrap_or(0).max(0)
}

/// Creates a ruleset that denies all files and TCP, except these places.
///
/// # Errors
/// The kernel refuses it.
pub(crate) fn ruleset<'a>(places: impl Iterator<Item = &'a Place>) -> io::Result<RulesetCreated> {
    // The texts of the crate's errors would take more room than all else here.
    let wrong = |_: RulesetError| io::Error::last_os_error();
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI::V4)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create)
        .map_err(wrong)?;
    for Place { path, to } in places {
        // It is missing, or this user cannot reach it anyway.
        let Ok(file) = PathFd::new(path) else { continue };
        let rights = match path.is_dir() {
            true => to.rights(),
            false => to.rights() & AccessFs::from_file(NEWEST),
        };
        ruleset = ruleset.add_rule(PathBeneath::new(file, rights)).map_err(wrong)?;
    }
    Ok(ruleset)
}

/// Takes all files and the network away from this thread, except these places.
///
/// # Errors
/// The kernel refuses it.
pub(crate) fn restrict(places: &[Place]) -> io::Result<()> {
    ruleset(places.iter())?.restrict_self().map(drop).map_err(|_| io::Error::last_os_error())
}
