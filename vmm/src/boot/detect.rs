//! Recognises Linux kernels.

use super::elf;
use super::file::open;
use object::ReadCache;
use std::fs::File;
use std::io::{BufReader, Read};
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
    // Other kernels also use the kernel code model, so look for the banner of Linux as well.
    elf::layout(&ReadCache::new(&file)).is_ok_and(|layout| layout.is_high && layout.is_64)
        && names_linux(file)
}

/// True if a file has the signature of a bzImage.
pub(super) fn is_bzimage(file: &File) -> bool {
    let mut signature = [0; 4];
    file.read_exact_at(&mut signature, SIGNATURE.0).is_ok() && signature == SIGNATURE.1
}

/// True if a file contains the version banner of Linux.
fn names_linux(file: File) -> bool {
    const BANNER: &[u8] = b"Linux version ";
    const CHUNK: usize = 1 << 20;
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
