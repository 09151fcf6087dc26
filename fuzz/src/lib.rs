//! Builders for the fuzz targets: they turn any bytes into files, queues and accesses that are valid in most parts.
//!
//! A fuzzer that only changes bytes rarely gets past the first checks of a reader. A builder reads its input as a
//! [`Script`], so almost every input leads to a file that is accepted, and a small change of the input changes one
//! property of the file. The last bytes of a script damage what was built ([`Script::damage`]).

pub mod chains;
pub mod elf;
pub mod kernel;
pub mod loader;
pub mod processor;
pub mod race;
pub mod saved;
pub mod twice;
pub mod virtio_mmio;

use libfuzzer_sys::arbitrary::{Arbitrary, Unstructured};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;

/// The input of a target, read as a sequence of choices. After its end every choice is the first one.
pub struct Script<'a>(Unstructured<'a>);

impl<'a> Script<'a> {
    /// Begins at the first byte of `input`.
    pub fn new(input: &'a [u8]) -> Self {
        Self(Unstructured::new(input))
    }

    /// True if no byte is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A number below `end`, which is at least 1. Takes one byte if `end` is at most 256.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0.int_in_range(0..=end - 1).unwrap_or(0)
    }

    /// True in one of `n` cases, and false after the end.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == n - 1
    }

    /// One of `choices`, which is not empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Any number of this type; 0 after the end.
    pub fn any<T: Arbitrary<'a> + Default>(&mut self) -> T {
        self.0.arbitrary().unwrap_or_default()
    }

    /// All bytes that are left.
    pub fn rest(&mut self) -> &'a [u8] {
        let len = self.0.len();
        self.0.bytes(len).unwrap_or_default()
    }

    /// Changes bytes of `file`, and cuts it in some cases, as long as the script has bytes. Returns true if it did.
    pub fn damage(&mut self, file: &mut Vec<u8>) -> bool {
        let before = self.0.len();
        while !self.is_empty() && !file.is_empty() {
            if self.one_in(16) {
                file.truncate(self.below(file.len() as u64) as usize);
                continue;
            }
            let place = self.below(file.len() as u64) as usize;
            file[place] = self.any();
        }
        before > 0
    }
}

/// A file in memory, with a path by which the program can open it.
pub struct ScratchFile(File);

impl ScratchFile {
    /// Creates an empty file.
    pub fn new() -> Self {
        // SAFETY: the name is a C string, and the descriptor of a successful call is new.
        let file = unsafe {
            let descriptor = libc::memfd_create(c"fuzz".as_ptr(), 0);
            assert!(descriptor >= 0, "memfd_create: {}", std::io::Error::last_os_error());
            File::from_raw_fd(descriptor)
        };
        Self(file)
    }

    /// Replaces the content.
    pub fn set(&mut self, content: &[u8]) {
        self.0.set_len(0).expect("memory");
        self.0.seek(SeekFrom::Start(0)).expect("a file");
        self.0.write_all(content).expect("memory");
    }

    /// The path.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.0.metadata().expect("a file").len()
    }
}

impl Default for ScratchFile {
    fn default() -> Self {
        Self::new()
    }
}
