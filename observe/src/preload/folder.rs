//! The temporary folder with the library and its channel.

use super::channel::Channel;
use crate::Error;
use jail::{Place, Use};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The library.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));
/// The text in the library that the path of the folder replaces.
const PLACE: &[u8] = b"vmm-observe-folder:";
/// The beginning of the name of a folder, and the name of the channel in it.
const NAME: &str = "vmm-observe-";
const CHANNEL: &str = "channel";
/// The room for the path in the library, with a zero at its end.
const PATH: usize = 96;

/// A folder that only this user can read.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The library stays for processes that still run.
    is_kept: bool,
}

impl Folder {
    /// Creates the folder in memory if possible, because the channel is written all the time.
    ///
    /// # Errors
    /// No place for temporary files has room for the channel, permits execution, and has a short path.
    pub(super) fn new() -> Result<(Self, Channel), Error> {
        let temporary = std::env::temp_dir();
        let places = [Path::new("/dev/shm"), &temporary, Path::new("/tmp"), Path::new("/var/tmp")];
        let mut failure =
            io::Error::other("the paths of all temporary folders are too long, or have blanks or colons");
        for place in places.into_iter().filter(|place| is_suitable(place)) {
            remove_stale(place);
            match Self::in_place(place) {
                Ok(folder) => return Ok(folder),
                Err(error) => failure = error,
            }
        }
        Err(Error::host("creating a temporary folder for the preloaded library (TMPDIR)")(failure))
    }

    fn in_place(place: &Path) -> io::Result<(Self, Channel)> {
        for attempt in 0..64u32 {
            let path = place.join(format!("{NAME}{}-{attempt}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    // From here on the folder is removed on failure.
                    let folder = Self { path, is_kept: false };
                    fs::write(folder.library(), library(&folder.path))?;
                    let channel = Channel::new(folder.create_channel()?)?;
                    // Before the lock, another observer may have taken it for a stale one.
                    if folder.path.join(CHANNEL).exists() {
                        return Ok((folder, channel));
                    }
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The path of the library.
    pub(super) fn library(&self) -> PathBuf {
        self.path.join("preload.so")
    }

    /// The path of the socket.
    pub(super) fn link(&self) -> PathBuf {
        self.path.join("link")
    }

    /// The files for a program in a jail.
    pub(super) fn places(&self) -> Vec<Place> {
        vec![
            Place::new(self.library(), Use::Execute),
            Place::new(self.path.join(CHANNEL), Use::Replace),
            Place::new(self.link(), Use::All),
        ]
    }

    /// Creates the file of the channel.
    fn create_channel(&self) -> io::Result<File> {
        File::options().read(true).write(true).create_new(true).open(self.path.join(CHANNEL))
    }

    /// Keeps the library when this is dropped.
    pub(super) fn keep_library(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.link());
        let _ = fs::remove_file(self.path.join(CHANNEL));
        if !self.is_kept {
            // The program may have put other files there.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes the folders of observers that were killed: up to 260 MiB of memory each. The library stays as long as a process uses
/// it.
#[allow(unsafe_code)]
fn remove_stale(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    // SAFETY: the call takes no arguments, and cannot fail.
    let own = unsafe { libc::geteuid() };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(observer) = observer_of(&name) else { continue };
        // Another user may have put a symbolic link there.
        if !entry.metadata().is_ok_and(|folder| folder.is_dir() && folder.uid() == own) {
            continue;
        }
        let path = entry.path().join(CHANNEL);
        let mut options = File::options();
        // The file may have become a pipe or a link.
        let file = options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(&path);
        // An observer that lives has locked its file. One that begins waits for this lock, and then misses its file.
        let is_unlocked = match &file {
            Ok(file) => file.try_lock().is_ok(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if is_unlocked {
            let _ = fs::remove_file(path);
            let _ = fs::remove_file(entry.path().join("link"));
            if !Path::new("/proc").join(observer).exists() && !is_used(&entry.path()) {
                // The program may have put other files there.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// The process that made a folder with this name, `vmm-observe-PID-ATTEMPT`, as text.
fn observer_of(name: &OsStr) -> Option<&str> {
    let (pid, attempt) = name.to_str()?.strip_prefix(NAME)?.split_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(pid) && is_number(attempt)).then_some(pid)
}

/// True if a process has mapped a file of this folder, or hands its path on to programs that it executes.
fn is_used(folder: &Path) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return true };
    let path = [folder.as_os_str().as_bytes(), b"/"].concat();
    let has =
        |file: PathBuf| fs::read(file).is_ok_and(|text| text.windows(path.len()).any(|bytes| bytes == path));
    let is_number =
        |name: &OsStr| name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let numbers = processes.flatten().filter(|entry| is_number(&entry.file_name()));
    numbers.map(|entry| entry.path()).any(|process| has(process.join("maps")) || has(process.join("environ")))
}

/// True if the loader accepts the path of a file in this folder, and may execute it.
fn is_suitable(place: &Path) -> bool {
    let bytes = place.as_os_str().as_bytes();
    // The loader splits its list at blanks and colons.
    let is_plain = bytes.iter().all(|byte| !b" :;\t\n".contains(byte));
    place.is_absolute() && is_plain && bytes.len() < PATH / 2 && !is_noexec(place)
}

/// True if the file system does not permit to execute its files.
#[allow(unsafe_code)]
fn is_noexec(place: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(place.as_os_str().as_bytes()) else { return true };
    // SAFETY: all zeroes are a valid value.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero, and the result outlives the call.
    unsafe { libc::statvfs(path.as_ptr(), &mut found) != 0 || found.f_flag & libc::ST_NOEXEC != 0 }
}

/// The library with the path of its folder.
fn library(folder: &Path) -> Vec<u8> {
    let mut library = LIBRARY.to_vec();
    let path = folder.as_os_str().as_bytes();
    if let Some(at) = library.windows(PLACE.len()).position(|bytes| bytes == PLACE)
        && let Some(room) = library.get_mut(at..).and_then(|rest| rest.get_mut(..PATH))
    {
        room.fill(0);
        // The last byte stays zero.
        for (to, from) in room.iter_mut().zip(path.iter().take(PATH.saturating_sub(1))) {
            *to = *from;
        }
    }
    library
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_knows_its_folder() {
        let count =
            |library: &[u8], text: &[u8]| library.windows(text.len()).filter(|bytes| *bytes == text).count();
        assert_eq!(count(LIBRARY, PLACE), 1);
        let patched = library(Path::new("/tmp/folder"));
        assert_eq!((count(&patched, PLACE), count(&patched, b"/tmp/folder\0")), (0, 1));
        assert_eq!(patched.len(), LIBRARY.len());
    }

    #[test]
    fn the_folder_is_removed_at_the_end() {
        let (folder, _channel) = Folder::new().unwrap();
        let path = folder.path.clone();
        assert!(folder.library().is_file() && path.join(CHANNEL).is_file());
        // A file of the program.
        fs::create_dir_all(path.join("more/files")).unwrap();
        drop(folder);
        assert!(!path.exists());
        let (mut folder, _channel) = Folder::new().unwrap();
        folder.keep_library();
        let library = folder.library();
        drop(folder);
        assert!(library.is_file());
        fs::remove_dir_all(library.parent().unwrap()).unwrap();
    }

    #[test]
    fn the_channel_of_a_killed_observer_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let (live, channel) = Folder::in_place(place.path()).unwrap();
        let (mut dead, _) = Folder::in_place(place.path()).unwrap();
        let path = dead.path.join(CHANNEL);
        remove_stale(place.path());
        assert!(live.path.join(CHANNEL).is_file() && !path.exists() && dead.library().is_file());
        dead.keep_library();
        drop(channel);
    }

    #[test]
    fn the_folder_of_a_killed_observer_is_removed_when_nothing_uses_it() {
        let place = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sh").args(["-c", "exit 0"]).spawn().unwrap();
        child.wait().unwrap();
        let stale = place.path().join(format!("{NAME}{}-0", child.id()));
        let other = place.path().join(format!("{NAME}files"));
        for folder in [&stale, &other] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("preload.so"), "x").unwrap();
        }
        let mut user = std::process::Command::new("cat");
        user.env("LD_PRELOAD_LATER", stale.join("preload.so")).stdin(std::process::Stdio::piped());
        let mut user = user.spawn().unwrap();
        // The environment is that of this process until the other program begins.
        while !is_used(&stale) {
            std::thread::yield_now();
        }
        remove_stale(place.path());
        assert!(stale.exists());
        user.kill().unwrap();
        user.wait().unwrap();
        remove_stale(place.path());
        assert!(!stale.exists() && other.exists());
    }

    #[test]
    fn folders_with_blanks_are_not_used() {
        assert!(is_suitable(Path::new("/tmp")));
        for bad in ["tmp", "/tmp/a b", "/tmp:b", "/no/such/folder"] {
            assert!(!is_suitable(Path::new(bad)), "{bad}");
        }
    }
}
