//! Recognises Linux kernels.

use super::elf;
use super::file::open;
use object::ReadCache;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The offset of the setup header's signature in a bzImage, and the signature.
pub(super) const SIGNATURE: (u64, [u8; 4]) = (0x202, *b"HdrS");

/// True if a file looks like a Linux kernel. False for a file that cannot be read.
pub fn is_kernel(path: &Path) -> bool {
    let Ok((file, _)) = open(path) else { return false };
    if is_bzimage(&file) {
        return true;
    }
    // Other kernels also use the kernel code model. Most builds of Linux have notes that tell them; the search for the banner
    // reads 20 MB.
    let layout = elf::layout(&ReadCache::new(&file)).ok().filter(|layout| layout.is_high && layout.is_64);
    layout.is_some_and(|layout| layout.notes.is_linux || names_linux(file))
}

/// True if a file has the signature of a bzImage.
pub(super) fn is_bzimage(file: &File) -> bool {
    let mut signature = [0; 4];
    file.read_exact_at(&mut signature, SIGNATURE.0).is_ok() && signature == SIGNATURE.1
}

/// True if a file contains the version banner of Linux.
fn names_linux(mut file: File) -> bool {
    const BANNER: &[u8] = b"Linux version ";
    const CHUNK: usize = 1 << 20;
    // The headers and notes were read before. The banner may stand in front of them.
    if file.rewind().is_err() {
        return false;
    }
    let mut reader = BufReader::with_capacity(CHUNK, file);
    let mut window = Vec::new();
    loop {
        let kept = window.len().saturating_sub(BANNER.len());
        window.drain(..kept);
        match reader.by_ref().take(CHUNK as u64).read_to_end(&mut window) {
            Ok(0) | Err(_) => return false,
            Ok(_) if memchr::memmem::find(&window, BANNER).is_some() => return true,
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::SeekFrom;

    #[test]
    fn the_banner_is_found_in_front_of_what_was_read() {
        let folder = tempfile::tempdir().unwrap();
        for (content, expected) in [("..Linux version 6.1..", true), ("..Linux  version 6.1..", false)] {
            let path = folder.path().join("kernel");
            std::fs::write(&path, content).unwrap();
            let mut file = File::open(&path).unwrap();
            file.seek(SeekFrom::End(0)).unwrap();
            assert_eq!(names_linux(file), expected, "{content}");
        }
    }
}
