//! Reading and writing of the files.
//!
//! A file is written to a temporary file in the same directory, which is renamed when it is complete. Until then an
//! existing file stays unchanged. If two runs write the same file, the one that finishes last is kept. Pipes, devices
//! and the program's own streams are written directly.

use crate::{FileError, Saved, SavedError, profile, trace};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use vmm::host::{self, TimeoutWriter, printable};
use vmm::machine::SparseWrite;

/// A file that is being written. Without a [`commit`](Self::commit) nothing of it is left.
#[derive(Debug)]
pub struct OutputFile {
    /// The path that the user gave, safe to print.
    shown: String,
    to: To,
}

#[derive(Debug)]
enum To {
    /// A temporary file that a commit renames to `place`.
    TempFile { file: File, temp: TempFile, place: PathBuf },
    /// A pipe, device or stream, which cannot be replaced by a rename.
    Direct(TimeoutWriter<File>),
}

/// The path of a temporary file. Dropping it removes the file; a commit clears it first.
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
    /// Opens `path` for writing. Call it before the run, so that a wrong path is an error before the work is done. For a
    /// pipe, it waits until the pipe has a reader or the program is interrupted.
    ///
    /// # Errors
    /// `path` is a directory, is in a directory that does not exist, or cannot be written.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Self::open_with(path, None)
    }

    /// Opens `path` like [`open`](Self::open), for a program that must end. The wait for a reader of a pipe, and the wait of
    /// each write to a pipe, device or stream, is at most `limit`.
    ///
    /// # Errors
    /// As for [`open`](Self::open), or a pipe has no reader after `limit`.
    pub fn open_within(path: &Path, limit: Duration) -> Result<Self, FileError> {
        Self::open_with(path, Some(limit))
    }

    fn open_with(path: &Path, limit: Option<Duration>) -> Result<Self, FileError> {
        let shown = printable(path);
        match resolve(path).and_then(|(place, direct)| open(&place, direct, limit)) {
            Ok(to) => Ok(Self { shown, to }),
            Err(source) => Err(open_error(shown, source)),
        }
    }

    /// The path that the user gave, safe to print.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Returns true if both would replace the same file, so that one of them would be lost.
    pub fn takes_the_place_of(&self, other: &Self) -> bool {
        match (&self.to, &other.to) {
            (To::TempFile { place: one, .. }, To::TempFile { place: other, .. }) => one == other,
            _ => false,
        }
    }

    /// Completes the file: it replaces an existing file of its name.
    ///
    /// # Errors
    /// The host fails. An existing file then stays unchanged.
    pub fn commit(self) -> Result<(), FileError> {
        let Self { shown, to } = self;
        let put = || match to {
            To::Direct(mut to) => to.flush(),
            To::TempFile { file, mut temp, place } => {
                // A network file system may report a full disk only here.
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

    /// Returns the error of a failed write to this file.
    pub fn failed(&self, source: io::Error) -> FileError {
        FileError::Write { path: self.shown.clone(), source }
    }
}

impl SparseWrite for OutputFile {
    fn skip(&mut self, len: u64) -> io::Result<()> {
        match &mut self.to {
            To::TempFile { file, .. } => {
                let end = file.stream_position()?.saturating_add(len);
                file.set_len(end)?;
                file.seek(SeekFrom::Start(end)).map(drop)
            }
            To::Direct(to) => io::copy(&mut io::repeat(0).take(len), to).map(drop),
        }
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

/// Returns the error of opening a file: [`FileError::Path`] for a wrong path, [`FileError::Write`] if the host fails.
fn open_error(path: String, source: io::Error) -> FileError {
    use io::ErrorKind::{
        AlreadyExists, InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound,
        PermissionDenied, ReadOnlyFilesystem, TimedOut,
    };
    match source.raw_os_error() {
        Some(libc::ELOOP) => return FileError::Path { path, what: format!("{source}: give another file") },
        Some(libc::ECANCELED) => {
            return FileError::Write {
                path,
                source: io::Error::other("interrupted before the pipe had a reader"),
            };
        }
        _ => {}
    }
    match source.kind() {
        TimedOut => FileError::Path { path, what: "the pipe has no reader: start its reader first".into() },
        NotFound | NotADirectory => {
            FileError::Path { path, what: format!("{source}: create the directory, or correct the path") }
        }
        IsADirectory => FileError::Path { path, what: "it is a directory: give the name of a file".into() },
        AlreadyExists | InvalidFilename | InvalidInput | PermissionDenied | ReadOnlyFilesystem => {
            FileError::Path { path, what: format!("{source}: give another file") }
        }
        _ => FileError::Write { path, source },
    }
}

/// Follows symbolic links to the file that is to be replaced. Returns its path, and true if it must be written directly
/// instead. Files in /dev and /proc are never replaced, even if they lead to a regular file as `/dev/stdout` can.
fn resolve(path: &Path) -> io::Result<(PathBuf, bool)> {
    const MOST_LINKS: usize = 40;
    // `file_name` ignores the end of such a path.
    if [&b"/"[..], b"/."].iter().any(|end| path.as_os_str().as_bytes().ends_with(end)) {
        return Err(io::ErrorKind::IsADirectory.into());
    }
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

/// The file that a result with this path creates or replaces. `None` for a pipe, a device or a stream, which several results can
/// share, and for a path that cannot be written.
pub fn replaced_place(path: &Path) -> Option<PathBuf> {
    resolve(path).ok().and_then(|(place, direct)| (!direct).then_some(place))
}

fn open(place: &Path, direct: bool, limit: Option<Duration>) -> io::Result<To> {
    if direct {
        return Ok(To::Direct(TimeoutWriter::new(open_directly(place, limit)?, limit)));
    }
    let known = fs::metadata(place).ok();
    if known.is_some() {
        // A rename needs no permission to write the old file, so check that permission here.
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

fn open_directly(place: &Path, limit: Option<Duration>) -> io::Result<File> {
    /// The time between two attempts to open a pipe without a reader.
    const TURN: Duration = Duration::from_millis(20);
    let start = Instant::now();
    loop {
        // Append: if the stream is a file, the shell has truncated it already or wants its content kept (`>>`).
        let opened = File::options().append(true).custom_flags(libc::O_NONBLOCK).open(place);
        match opened {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) && is_pipe(place) => {
                if host::interrupted() {
                    return Err(io::Error::from_raw_os_error(libc::ECANCELED));
                }
                if limit.is_some_and(|limit| start.elapsed() >= limit) {
                    return Err(io::ErrorKind::TimedOut.into());
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

/// Reads a profile or a trace from a file or a pipe.
///
/// # Errors
/// The file cannot be read, or it is not a usable profile or trace.
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
    // Refuse any other file here, so that a large disk image is not read to its end.
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
#[path = "file/tests.rs"]
mod tests;
