//! The files of a machine: the kernel, its initial RAM disks, and its disks. A file that is given twice is refused if that is a
//! mistake.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use vmm::Error;
use vmm::device::Disk;
use vmm::host::{printable, printable_text};

/// A disk as `--disk FILE[,ro][,raw]` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskFile<'a> {
    pub path: &'a Path,
    pub read_only: bool,
    /// The bytes are a raw disk, whatever they look like.
    is_raw: bool,
}

impl<'a> DiskFile<'a> {
    /// Splits the text. If a file has the whole text as its name, it is that file.
    pub fn new(text: &'a OsStr) -> Self {
        let mut disk = Self { path: Path::new(text), read_only: false, is_raw: false };
        while !disk.path.exists() {
            let name = disk.path.as_os_str().as_bytes();
            let rest = if let Some(rest) = name.strip_suffix(b",ro").filter(|_| !disk.read_only) {
                disk.read_only = true;
                rest
            } else if let Some(rest) = name.strip_suffix(b",raw").filter(|_| !disk.is_raw) {
                disk.is_raw = true;
                rest
            } else {
                break;
            };
            disk.path = Path::new(OsStr::from_bytes(rest));
        }
        disk
    }

    /// Opens the disk.
    fn open(self) -> Result<Disk, Error> {
        if self.is_raw {
            Disk::open_raw(self.path, self.read_only)
        } else {
            Disk::open(self.path, self.read_only)
        }
    }
}

/// The use of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Kernel,
    Initrd,
    /// A disk, and true if the guest may write it.
    Disk(bool),
}

impl Use {
    /// The reason why a file cannot have both uses, and the next step. `None` if it can.
    fn conflict(self, other: Self) -> Option<&'static str> {
        match (self, other) {
            (Self::Disk(false), Self::Disk(false)) => None,
            (Self::Disk(_), Self::Disk(_)) => Some("give it once, or read-only each time (FILE,ro)"),
            (Self::Disk(true), _) | (_, Self::Disk(true)) => {
                Some("once as a disk that the guest may write: give that disk as FILE,ro, or a copy")
            }
            (Self::Disk(false), _) | (_, Self::Disk(false)) => None,
            (Self::Kernel, _) | (_, Self::Kernel) => {
                Some("as the kernel and with --initrd: give another file for one of them")
            }
            (Self::Initrd, Self::Initrd) => Some("with --initrd: give it once"),
        }
    }
}

/// Opens the disks of `--disk`, after a check of all files. `kernel` is the guest's file, and `initrds` are its RAM disks.
///
/// # Errors
/// The name of a disk ends in an unknown option, a file is given twice by mistake, or a disk cannot be used.
pub fn open_disks(
    kernel: Option<&Path>,
    initrds: &[PathBuf],
    disks: &[OsString],
) -> Result<Vec<Disk>, Error> {
    let kernel = kernel.map(|path| (path, Use::Kernel));
    let initrds = initrds.iter().map(|path| (path.as_path(), Use::Initrd));
    let disks: Vec<_> = disks.iter().map(|text| DiskFile::new(text)).collect();
    let disk_uses = disks.iter().map(|disk| (disk.path, Use::Disk(!disk.read_only)));
    let mut seen: Vec<((u64, u64), Use)> = Vec::new();
    for (path, found) in kernel.into_iter().chain(initrds).chain(disk_uses) {
        let Ok(metadata) = fs::metadata(path) else {
            refuse_option(path, found)?;
            continue;
        };
        let identity = (metadata.dev(), metadata.ino());
        let conflict = seen.iter().filter(|(other, _)| *other == identity).find_map(|(_, earlier)| {
            let next_step = earlier.conflict(found)?;
            let what = if let (Use::Disk(_), Use::Disk(_)) = (earlier, found) {
                "the disk image"
            } else {
                "the file"
            };
            Some(format!("{what} {} is given twice: {next_step}", printable(path)))
        });
        if let Some(conflict) = conflict {
            return Err(Error::Config(conflict));
        }
        seen.push((identity, found));
    }
    disks.into_iter().map(DiskFile::open).collect()
}

/// Refuses a disk that does not exist because its name ends in an unknown option. The error of opening another file says
/// more.
fn refuse_option(path: &Path, found: Use) -> Result<(), Error> {
    let name = path.as_os_str().as_bytes();
    let comma = name.iter().rposition(|byte| *byte == b',').filter(|_| matches!(found, Use::Disk(_)));
    match comma.and_then(|at| name.split_at_checked(at)) {
        Some((file, option)) if Path::new(OsStr::from_bytes(file)).is_file() => Err(Error::Config(format!(
            "{} after the disk image {} is not an option: only ,ro and ,raw may follow the name",
            printable_text(&String::from_utf8_lossy(option)),
            printable(Path::new(OsStr::from_bytes(file))),
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_name_of_a_disk_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).into_os_string();
        fs::write(path("a"), "").unwrap();
        fs::write(path("b,ro"), "").unwrap();
        for (text, file, read_only, is_raw) in [
            ("a", "a", false, false),
            ("a,ro", "a", true, false),
            ("a,raw", "a", false, true),
            ("a,ro,raw", "a", true, true),
            ("a,raw,ro", "a", true, true),
            ("a,ro,ro", "a,ro", true, false),
            ("b,ro", "b,ro", false, false),
            ("b,ro,ro", "b,ro", true, false),
            ("a,rw", "a,rw", false, false),
        ] {
            let (text, file): (OsString, _) = (path(text), path(file));
            assert_eq!(
                DiskFile::new(&text),
                DiskFile { path: Path::new(&file), read_only, is_raw },
                "{text:?}"
            );
        }
    }
}
