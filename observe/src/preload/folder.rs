//! The temporary folder with the library and its channel.

use crate::Error;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The library.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));
/// The text in the library that the path of the folder replaces.
const PLACE: &[u8] = b"vmm-observe-folder:";
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
    /// No place for temporary files can be written, permits execution, and has a short path.
    pub(super) fn new() -> Result<Self, Error> {
        let temporary = std::env::temp_dir();
        let places = [Path::new("/dev/shm"), &temporary, Path::new("/tmp"), Path::new("/var/tmp")];
        let mut failure =
            io::Error::other("the paths of all temporary folders are too long, or have blanks or colons");
        for place in places.into_iter().filter(|place| is_suitable(place)) {
            match Self::in_place(place) {
                Ok(folder) => return Ok(folder),
                Err(error) => failure = error,
            }
        }
        Err(Error::host("creating a temporary folder for the preloaded library (TMPDIR)")(failure))
    }

    fn in_place(place: &Path) -> io::Result<Self> {
        for attempt in 0..64u32 {
            let path = place.join(format!("vmm-observe-{}-{attempt}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    // From here on the folder is removed on failure.
                    let folder = Self { path, is_kept: false };
                    fs::write(folder.library(), library(&folder.path))?;
                    return Ok(folder);
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

    /// Creates the file of the channel.
    pub(super) fn channel(&self) -> io::Result<File> {
        File::options().read(true).write(true).create_new(true).open(self.path.join("channel"))
    }

    /// Keeps the library when this is dropped.
    pub(super) fn keep_library(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.link());
        let _ = fs::remove_file(self.path.join("channel"));
        if !self.is_kept {
            let _ = fs::remove_file(self.library());
            let _ = fs::remove_dir(&self.path);
        }
    }
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
        let folder = Folder::new().unwrap();
        let path = folder.path.clone();
        assert!(folder.library().is_file() && folder.channel().is_ok());
        drop(folder);
        assert!(!path.exists());
        let mut folder = Folder::new().unwrap();
        folder.keep_library();
        let library = folder.library();
        drop(folder);
        assert!(library.is_file());
        fs::remove_dir_all(library.parent().unwrap()).unwrap();
    }

    #[test]
    fn folders_with_blanks_are_not_used() {
        assert!(is_suitable(Path::new("/tmp")));
        for bad in ["tmp", "/tmp/a b", "/tmp:b", "/no/such/folder"] {
            assert!(!is_suitable(Path::new(bad)), "{bad}");
        }
    }
}
