//! Files that results go to, and come from.
//!
//! A result is written to a file beside its own, which takes its place once it is whole: what was there stays as it
//! was until then, and of two runs that write the same file the last whole one is kept. What is no regular file (a
//! pipe, a device, the program's own streams) is written directly.

use crate::{FileError, Saved, SavedError, profile, trace};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use vmm::host::{self, TimeoutWriter, printable};

/// A file that is being written. One that is not [committed](Self::commit) leaves nothing behind.
#[derive(Debug)]
pub struct OutputFile {
    /// The name that the user gave, fit to be shown.
    shown: String,
    to: To,
}

#[derive(Debug)]
enum To {
    /// A new file beside the one whose place it takes.
    TempFile { file: File, temp: TempFile, place: PathBuf },
    /// What has no name that could be changed.
    Direct(TimeoutWriter<File>),
}

/// The name of a file that is gone when nobody wants it.
#[derive(Debug)]
struct TempFile(Option<PathBuf>);

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

impl OutputFile {
    /// Opens `path` for writing, before there is anything to write. A pipe is waited for until somebody reads it, or
    /// the program is interrupted.
    ///
    /// # Errors
    /// It is a folder, or in none; or it must not, or cannot be written.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let shown = printable(path);
        let to = match resolve(path).and_then(|(place, direct)| open(&place, direct)) {
            Ok(to) => to,
            Err(source) => return Err(refused(shown, source)),
        };
        Ok(Self { shown, to })
    }

    /// Whether both would be put in the same place, of which one would be lost.
    pub fn takes_the_place_of(&self, other: &Self) -> bool {
        match (&self.to, &other.to) {
            (To::TempFile { place: one, .. }, To::TempFile { place: other, .. }) => one == other,
            _ => false,
        }
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// The host fails; then what was there is there still.
    pub fn commit(self) -> Result<(), FileError> {
        let Self { shown, to } = self;
        let put = || match to {
            To::Direct(mut to) => to.flush(),
            To::TempFile { file, mut temp, place } => {
                // A disk across a network may find out only now that it is full.
                file.sync_all()?;
                if let Some(path) = &temp.0 {
                    fs::rename(path, place)?;
                    temp.0 = None;
                }
                Ok(())
            }
        };
        put().map_err(|source| FileError::Write { path: shown, source })
    }

    /// The error of a write to this file, which names it.
    pub fn failed(&self, source: io::Error) -> FileError {
        FileError::Write { path: self.shown.clone(), source }
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.to {
            To::TempFile { file, .. } => file.write(bytes),
            To::Direct(to) => to.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.to {
            To::TempFile { file, .. } => file.flush(),
            To::Direct(to) => to.flush(),
        }
    }
}

/// A mistake of the user's, or a failure of the host's.
fn refused(path: String, source: io::Error) -> FileError {
    use io::ErrorKind::{
        AlreadyExists, InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound,
        PermissionDenied, ReadOnlyFilesystem,
    };
    match source.kind() {
        NotFound | NotADirectory => {
            FileError::Path { path, what: format!("{source}: make its folder, or correct the path") }
        }
        IsADirectory => FileError::Path { path, what: "it is a folder: give the name of a file".into() },
        AlreadyExists | InvalidFilename | InvalidInput | PermissionDenied | ReadOnlyFilesystem => {
            FileError::Path { path, what: format!("{source}: give another file") }
        }
        _ => FileError::Write { path, source },
    }
}

/// Follows symbolic links to what is to be replaced, and says whether it has to be written directly instead:
/// what the kernel shows as a file is none that could be replaced, even where it leads to one, as `/dev/stdout` does.
fn resolve(path: &Path) -> io::Result<(PathBuf, bool)> {
    const MOST_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = fs::canonicalize(folder.unwrap_or(Path::new(".")))?;
        let place = folder.join(name);
        if ["/dev", "/proc"].iter().any(|kernels| folder.starts_with(kernels)) && place.exists() {
            return Ok((place, true));
        }
        match fs::symlink_metadata(&place) {
            Ok(is) if is.is_symlink() => path = folder.join(fs::read_link(&place)?),
            Ok(is) if is.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(is) => return Ok((place, !is.is_file())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((place, false)),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

fn open(place: &Path, direct: bool) -> io::Result<To> {
    if direct {
        return Ok(To::Direct(TimeoutWriter::new(open_directly(place)?, None)));
    }
    let known = fs::metadata(place).ok();
    if known.is_some() {
        // Whoever must not write a file must not replace it either.
        File::options().append(true).open(place)?;
    }
    let folder = place.parent().unwrap_or(Path::new("/"));
    let mut number = 0u32;
    let (file, temp) = loop {
        let temp = folder.join(format!(".vmm-{}-{number}.tmp", std::process::id()));
        match File::options().write(true).create_new(true).open(&temp) {
            Ok(file) => break (file, TempFile(Some(temp))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 10_000 => {
                number = number.saturating_add(1);
            }
            Err(error) => return Err(error),
        }
    };
    if let Some(known) = known {
        file.set_permissions(Permissions::from_mode(known.permissions().mode() & 0o777))?;
    }
    Ok(To::TempFile { file, temp, place: place.to_owned() })
}

fn open_directly(place: &Path) -> io::Result<File> {
    const TURN: Duration = Duration::from_millis(20);
    loop {
        // What leads to a file goes to its end: the shell that opened it said whether it begins anew.
        let opened = File::options().append(true).custom_flags(libc::O_NONBLOCK).open(place);
        match opened {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) && is_pipe(place) => {
                if host::interrupted() {
                    return Err(io::Error::from_raw_os_error(libc::ECANCELED));
                }
                thread::sleep(TURN);
            }
            opened => return opened,
        }
    }
}

fn is_pipe(place: &Path) -> bool {
    fs::metadata(place).is_ok_and(|is| is.file_type().is_fifo())
}

/// Reads the profile or the trace in a file, or from a pipe.
///
/// # Errors
/// The file cannot be read, or is no profile or trace.
pub fn read(path: &Path) -> Result<Saved, FileError> {
    let shown = || printable(path);
    let failed = |source| FileError::Read { path: shown(), source };
    let unusable = |source| FileError::Content { path: shown(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    (&mut file).take(trace::MAGIC.len() as u64).read_to_end(&mut bytes).map_err(failed)?;
    let (what, limit) = match bytes == trace::MAGIC {
        true => ("trace", trace::MAX_SIZE),
        false => ("profile", profile::MAX_SIZE),
    };
    // Nothing else begins as JSON does; a disk image need not be read to its end.
    if what == "profile" && bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Saved::read(&bytes).map_err(unusable);
    }
    let known = file.metadata().map_or(0, |metadata| metadata.len());
    if known > limit {
        return Err(unusable(SavedError::TooLarge { what, size: known, limit }));
    }
    let room = bytes.try_reserve_exact(usize::try_from(known).unwrap_or(0));
    room.map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    Saved::read(&bytes).map_err(unusable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder() -> tempfile::TempDir {
        tempfile::TempDir::new().unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_when_it_is_whole() {
        let folder = folder();
        let path = folder.path().join("a");
        let mut target = OutputFile::open(&path).unwrap();
        target.write_all(b"one").unwrap();
        assert!(!path.exists());
        target.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn what_is_not_committed_leaves_all_as_it_was() {
        let folder = folder();
        let path = folder.path().join("a");
        fs::write(&path, b"before").unwrap();
        let mut target = OutputFile::open(&path).unwrap();
        target.write_all(b"half").unwrap();
        drop(target);
        assert_eq!(fs::read(&path).unwrap(), b"before");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn the_last_of_two_wins_whole() {
        let folder = folder();
        let path = folder.path().join("a");
        let mut one = OutputFile::open(&path).unwrap();
        let mut two = OutputFile::open(&path).unwrap();
        one.write_all(b"the first").unwrap();
        two.write_all(b"two").unwrap();
        two.commit().unwrap();
        one.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"the first");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn links_stay_links_and_modes_stay_modes() {
        let folder = folder();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        symlink("file", &link).unwrap();
        // Through a link that leads nowhere yet, too.
        for text in [b"one", b"two"] {
            let mut target = OutputFile::open(&link).unwrap();
            target.write_all(text).unwrap();
            target.commit().unwrap();
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            assert_eq!(fs::read(&file).unwrap(), text);
            fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        }
        let mut target = OutputFile::open(&file).unwrap();
        target.write_all(b"three").unwrap();
        target.commit().unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        let round = folder.path().join("round");
        symlink("round", &round).unwrap();
        assert!(matches!(OutputFile::open(&round), Err(FileError::Write { .. })));
    }

    #[test]
    fn devices_and_pipes_are_written_directly() {
        let folder = folder();
        let mut null = OutputFile::open(Path::new("/dev/null")).unwrap();
        null.write_all(b"x").unwrap();
        null.commit().unwrap();
        let mut full = OutputFile::open(Path::new("/dev/full")).unwrap();
        let failed = full.write_all(b"x").unwrap_err();
        let said = full.failed(failed).to_string();
        assert!(said.starts_with("cannot write /dev/full: No space left on device"), "{said}");
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let reader = {
            let pipe = pipe.clone();
            thread::spawn(move || fs::read(pipe).unwrap())
        };
        let mut target = OutputFile::open(&pipe).unwrap();
        target.write_all(&vec![b'x'; 200_000]).unwrap();
        target.commit().unwrap();
        assert_eq!(reader.join().unwrap().len(), 200_000);
        assert_eq!(names(folder.path()), ["pipe"]);
    }

    /// As with `-o /dev/stdout >> log`.
    #[test]
    fn a_stream_that_is_a_file_goes_on_at_its_end() {
        use std::os::fd::AsRawFd;
        let folder = folder();
        let path = folder.path().join("log");
        fs::write(&path, b"before ").unwrap();
        let log = File::options().append(true).open(&path).unwrap();
        let link = folder.path().join("link");
        symlink(format!("/dev/fd/{}", log.as_raw_fd()), &link).unwrap();
        let mut target = OutputFile::open(&link).unwrap();
        target.write_all(b"after").unwrap();
        target.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"before after");
        assert_eq!(names(folder.path()), ["link", "log"]);
    }

    #[test]
    fn what_cannot_be_written_is_told_at_once() {
        let folder = folder();
        let said = |path: &Path| match OutputFile::open(path) {
            Err(FileError::Path { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        assert!(said(folder.path()).ends_with("it is a folder: give the name of a file"));
        assert!(said(Path::new("/")).contains("it is a folder"));
        assert!(said(Path::new("")).contains("it is a folder"));
        assert!(said(&folder.path().join("no/such")).contains("make its folder, or correct the path"));
        fs::write(folder.path().join("file"), b"").unwrap();
        assert!(said(&folder.path().join("file/x")).contains("make its folder"));
        assert!(said(&folder.path().join("x".repeat(300))).contains("give another file"));
        assert!(said(Path::new("/dev/no-such-device/x")).contains("make its folder"));
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn what_is_read_need_not_be_read_to_its_end() {
        let read = |path: &str| read(Path::new(path)).unwrap_err();
        assert!(matches!(read("/dev/zero"), FileError::Content { source: SavedError::Neither, .. }));
        assert!(matches!(read("/"), FileError::Read { .. }));
        assert!(matches!(read("/no/such"), FileError::Read { .. }));
        let folder = folder();
        for (begins, what) in [(&b"vmmtrace"[..], "trace"), (b" {", "profile")] {
            let path = folder.path().join(what);
            fs::write(&path, begins).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
            let error = super::read(&path).unwrap_err();
            assert!(
                matches!(&error, FileError::Content { source: SavedError::TooLarge { what: is, .. }, .. } if *is == what),
                "{error}"
            );
        }
    }
}
