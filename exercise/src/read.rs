//! Reads files, up to a limit.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

/// The files that an exercise names.
#[derive(Clone, Copy, Debug)]
pub enum Files<'a> {
    /// Those of a folder.
    Folder(&'a Path),
    /// Those that are a part of this program: name and content.
    Embedded(&'a [(String, Vec<u8>)]),
}

impl Files<'_> {
    /// Reads a file.
    ///
    /// # Errors
    /// It is not there, cannot be read, or has more than `limit` bytes.
    pub fn read(self, name: &str, limit: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::Folder(folder) => find_inside(folder, name).and_then(|path| read_file(&path, limit)),
            Self::Embedded(files) => {
                let file = files.iter().find(|(other, bytes)| other == name && bytes.len() <= limit);
                file.map(|(_, bytes)| bytes.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }

    /// The path of a file.
    ///
    /// # Errors
    /// It is not there, or has none.
    pub fn path(self, name: &str) -> io::Result<PathBuf> {
        match self {
            Self::Folder(folder) => find_inside(folder, name),
            Self::Embedded(_) => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// Reads a regular file or a device such as /dev/null.
///
/// # Errors
/// It cannot be read, is of another kind, or has more than `limit` bytes.
pub fn read_file(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    // Without O_NONBLOCK, opening a pipe waits for a writer.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_char_device() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut bytes)?;
    match bytes.len() <= limit {
        true => Ok(bytes),
        false => Err(io::Error::other(format!("it has more than {}", vmm::host::format_size(limit as u64)))),
    }
}

/// True if a name leads to a place inside a folder, as far as links do not lead elsewhere.
pub fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let is_name = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    !name.is_empty() && parts.all(is_name) && !name.contains('\0')
}

/// The path of a file of a folder, without links.
///
/// # Errors
/// The name or a link leads out of the folder, or there is no such file.
pub fn find_inside(folder: &Path, name: &str) -> io::Result<PathBuf> {
    const OUTSIDE: &str = "it must be in the folder of the exercise, or in a folder there: copy it there";
    if !is_inside(name) {
        return Err(io::Error::other(OUTSIDE));
    }
    let path = folder.join(name).canonicalize()?;
    match path.starts_with(folder.canonicalize()?) {
        true => Ok(path),
        false => Err(io::Error::other(format!("a link leads to another folder; {OUTSIDE}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_within_the_limit_are_read() {
        assert_eq!(read_file(Path::new("/dev/null"), 1).unwrap(), b"");
        let refused = |path: &str, limit| read_file(Path::new(path), limit).unwrap_err().to_string();
        assert_eq!(refused("/dev/zero", 2048), "it has more than 2K");
        assert_eq!(refused("/", 1), "it is not a regular file");
        assert!(refused("/nowhere/at-all", 1).contains("No such file"));
    }

    #[test]
    fn only_files_inside_the_folder_are_found() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("exercise");
        std::fs::create_dir_all(folder.join("data")).unwrap();
        std::fs::write(folder.join("data/a.txt"), "a").unwrap();
        std::fs::write(outer.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink("data/a.txt", folder.join("inside")).unwrap();
        std::os::unix::fs::symlink("../secret", folder.join("out")).unwrap();
        std::os::unix::fs::symlink("..", folder.join("up")).unwrap();
        let found = |name| find_inside(&folder, name).map_err(|error| error.to_string());
        for name in ["data/a.txt", "./data/a.txt", "inside"] {
            assert_eq!(found(name), Ok(folder.join("data/a.txt").canonicalize().unwrap()), "{name}");
        }
        for name in ["../secret", "/etc/passwd", "data/../../secret", "", "a\0b"] {
            assert!(found(name).unwrap_err().starts_with("it must be in the folder"), "{name}");
        }
        for name in ["out", "up/secret"] {
            assert!(found(name).unwrap_err().starts_with("a link leads to another folder"), "{name}");
        }
        assert!(found("missing").unwrap_err().contains("No such file"));
    }
}
