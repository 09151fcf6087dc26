//! The file with the image of a guest that a VMM of a submission gets.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::absolute;
use std::sync::atomic::{AtomicU32, Ordering};

/// The most files with taken names that are passed over.
const ATTEMPTS: u32 = 10_000;

/// A temporary file that only this user can read. It is removed with this value.
#[derive(Debug)]
pub struct ImageFile(String);

impl ImageFile {
    /// Writes the image to a new file.
    ///
    /// # Errors
    /// There is no place for it, or the path of temporary files is not UTF-8.
    pub fn write(image: &[u8]) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..ATTEMPTS {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("vmm-image-{}-{number}", std::process::id()));
            // The program has another current folder.
            let path = absolute(path)?.into_os_string().into_string();
            let path = path.map_err(|_| io::Error::other("TMPDIR must be UTF-8"))?;
            let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
            match made {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(mut file) => {
                    // From here on the file is removed on failure.
                    let written = Self(path);
                    file.write_all(image)?;
                    return Ok(written);
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Its path.
    pub fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for ImageFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
