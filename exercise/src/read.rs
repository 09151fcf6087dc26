//! Reads files, up to a limit.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

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
}
