//! The program to observe: found as the shell finds it, and checked before it runs.
#![allow(unsafe_code)]

use crate::Error;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use vmm::host::printable;

/// The sizes of the header of an ELF file and of a program header.
const HEADER: usize = 64;
const SEGMENT: usize = 56;
/// The largest number of program headers that is read.
const MOST_SEGMENTS: u16 = 128;
/// `e_machine` of x86-64.
const X86_64: u16 = 62;
/// `p_type` of the segment that names the dynamic loader, and of one with notes.
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
/// The name and the type of the note that each program of Go has: the sizes of the name and of its content, the type, and the
/// name. The size of the content varies.
const GO_TYPE: [u8; 4] = 4u32.to_le_bytes();
const GO_NAME: &[u8; 4] = b"Go\0\0";
/// The largest size of a segment with notes that is read.
const MOST_NOTES: u64 = 4096;

/// A program that can be run.
#[derive(Clone, Debug)]
pub struct Program {
    /// The name as the user gave it, which the program sees as its first argument.
    pub(crate) name: OsString,
    /// The file.
    pub(crate) path: PathBuf,
}

impl Program {
    /// Finds a program: a name without a slash is searched for in PATH.
    ///
    /// # Errors
    /// There is no such file, or it cannot be executed.
    pub fn find(name: &OsStr) -> Result<Self, Error> {
        let wrong = |what: String| Error::Program { program: printable(Path::new(name)), what };
        if name.is_empty() {
            return Err(wrong("its name is empty: give a program after --".into()));
        }
        let is_path = name.as_bytes().contains(&b'/');
        let folders = std::env::var_os("PATH").filter(|_| !is_path).unwrap_or_default();
        let mut tried = match is_path {
            true => vec![PathBuf::from(name)],
            false => std::env::split_paths(&folders).map(|folder| folder.join(name)).collect(),
        };
        tried.retain(|path| path.exists() || is_path);
        if let Some(path) = tried.iter().find(|path| is_executable(path)) {
            return Ok(Self { name: name.into(), path: path.clone() });
        }
        Err(wrong(match tried.first() {
            None if name.as_bytes().starts_with(b"-") => {
                "vmm observe has no such option (`vmm observe --help` lists them), and no folder of PATH has such a program".into()
            }
            None => "no folder of PATH has it: give its path, such as ./PROGRAM".into(),
            Some(path) => match fs::metadata(path) {
                Err(error) => format!("{error}: give a program that can be run"),
                Ok(file) if file.is_dir() => "it is a directory: give a program".into(),
                Ok(_) => "it is not executable: give a program, or run chmod +x".into(),
            },
        }))
    }

    /// The file of the program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the program, without folders, safe to print.
    pub fn short_name(&self) -> String {
        printable(Path::new(self.path.file_name().unwrap_or(self.path.as_os_str())))
    }

    /// The path of the program, safe to print.
    pub fn shown(&self) -> String {
        printable(&self.path)
    }

    /// Checks that the dynamic loader will load a preloaded library into the program. A script may be anything, because its
    /// interpreter, and what it runs, count.
    ///
    /// # Errors
    /// It is statically linked, for another architecture, or it gains privileges.
    pub fn check_preload(&self) -> Result<(), Error> {
        let unfit = |what| Err(Error::Unfit { program: self.shown(), what });
        if self.gains_privileges() {
            return unfit(
                "it is a setuid or setgid program or has capabilities, and the loader does not preload libraries into \
                 such programs",
            );
        }
        let Ok(Some(elf)) = Elf::read(&self.path) else { return Ok(()) };
        match elf {
            Elf { is_native: false, .. } => unfit(OTHER_ARCHITECTURE),
            Elf { is_dynamic: false, .. } => unfit(
                "it is statically linked, and no library can be preloaded into it; --engine ptrace observes it",
            ),
            Elf { .. } => Ok(()),
        }
    }

    /// An error of the engine `ptrace`, without its advice if the other engine cannot observe the program, either.
    pub(crate) fn untraceable(&self, what: &'static str) -> Error {
        let (why, _) = what.split_once("; --engine preload").unwrap_or((what, ""));
        Error::Unfit { program: self.shown(), what: if self.check_preload().is_ok() { what } else { why } }
    }

    /// Checks that the program does the same when it is traced.
    ///
    /// # Errors
    /// It is for another architecture, or it gains privileges.
    pub fn check_ptrace(&self) -> Result<(), Error> {
        let unfit = |what| Err(Error::Unfit { program: self.shown(), what });
        if self.gains_privileges() {
            return unfit(
                "it is a setuid or setgid program or has capabilities, and a program that is traced does not get its \
                 privileges",
            );
        }
        match Elf::read(&self.path) {
            Ok(Some(Elf { is_native: false, .. })) => unfit(OTHER_ARCHITECTURE),
            _ => Ok(()),
        }
    }

    /// True if the program makes system calls without a C library that is dynamically linked: it is static, or one of Go.
    pub(crate) fn makes_system_calls(&self) -> bool {
        matches!(Elf::read(&self.path), Ok(Some(Elf { is_native: true, is_dynamic, is_go })) if !is_dynamic || is_go)
    }

    /// True if the program gets privileges that its caller does not have.
    fn gains_privileges(&self) -> bool {
        let Ok(file) = fs::metadata(&self.path) else { return false };
        // SAFETY: the calls take no arguments, and cannot fail.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        let sets = |bits| file.mode() & bits == bits;
        sets(libc::S_ISUID) && file.uid() != user
            || sets(libc::S_ISGID | libc::S_IXGRP) && file.gid() != group
            || user != 0 && has_capabilities(&self.path)
    }
}

const OTHER_ARCHITECTURE: &str = "it is for another architecture, not x86-64";

fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: both texts end with a zero, and a size of 0 asks only for the size of the value.
    unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

fn is_executable(path: &Path) -> bool {
    let Ok(text) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: the text ends with a zero.
    let may = unsafe { libc::faccessat(libc::AT_FDCWD, text.as_ptr(), libc::X_OK, libc::AT_EACCESS) == 0 };
    may && path.is_file()
}

/// The part of an ELF file that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Elf {
    is_native: bool,
    is_dynamic: bool,
    is_go: bool,
}

impl Elf {
    /// Reads the headers of a file. Returns `None` if it is not an ELF file.
    fn read(path: &Path) -> io::Result<Option<Self>> {
        // A program may put a pipe in the place of its own file, and opening that would wait for ever.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let mut header = [0; HEADER];
        if file.read_exact_at(&mut header, 0).is_err() || !header.starts_with(b"\x7fELF") {
            return Ok(None);
        }
        let is_native = header.get(4..6) == Some(&[2, 1]) && half(&header, 18) == X86_64;
        let (start, count) = (long(&header, 32), half(&header, 56).min(MOST_SEGMENTS));
        let mut elf = Self { is_native, is_dynamic: false, is_go: false };
        for index in 0..u64::from(count) {
            let mut segment = [0; SEGMENT];
            let at = index.saturating_mul(SEGMENT as u64).saturating_add(start);
            if file.read_exact_at(&mut segment, at).is_err() {
                break;
            }
            let kind = segment.first_chunk().copied().map_or(0, u32::from_le_bytes);
            elf.is_dynamic |= kind == PT_INTERP;
            elf.is_go |= kind == PT_NOTE && has_go_note(&file, long(&segment, 8), long(&segment, 32));
        }
        Ok(Some(elf))
    }
}

/// True if this part of a file has the note of Go. Notes begin at multiples of 4.
fn has_go_note(file: &File, offset: u64, size: u64) -> bool {
    let mut notes = vec![0; size.min(MOST_NOTES) as usize];
    let is_name = |words: &[u8]| words.starts_with(&GO_TYPE) && words.ends_with(GO_NAME);
    file.read_exact_at(&mut notes, offset).is_ok() && notes.windows(8).step_by(4).any(is_name)
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_the_shell_finds_them() {
        let sh = Program::find(OsStr::new("sh")).unwrap();
        assert!(sh.path.is_absolute() && sh.short_name() == "sh" && sh.check_preload().is_ok());
        for (name, text) in [
            ("no-such-program-here", "no folder of PATH has it"),
            ("--no-such-option", "vmm observe has no such option"),
            ("./no/such/program", "No such file or directory"),
            ("/etc/passwd", "it is not executable"),
            ("/etc/", "it is a directory"),
            ("", "its name is empty"),
        ] {
            let error = Program::find(OsStr::new(name)).unwrap_err().to_string();
            assert!(error.contains(text), "{name}: {error}");
        }
    }

    #[test]
    fn the_headers_of_a_program_are_read() {
        let own = Elf::read(Path::new("/proc/self/exe")).unwrap().unwrap();
        assert!(own.is_native);
        let folder = tempfile::tempdir().unwrap();
        let read = |bytes: &[u8]| {
            let path = folder.path().join("file");
            fs::write(&path, bytes).unwrap();
            Elf::read(&path).unwrap()
        };
        let mut elf = fs::read("/proc/self/exe").unwrap()[..HEADER].to_vec();
        assert_eq!(
            read(&elf),
            Some(Elf { is_native: true, is_dynamic: false, is_go: false }),
            "its segments are cut off"
        );
        elf[18] = 0xb7;
        assert_eq!(read(&elf), Some(Elf { is_native: false, is_dynamic: false, is_go: false }));
        elf[32..40].fill(0xff);
        assert_eq!(read(&elf), Some(Elf { is_native: false, is_dynamic: false, is_go: false }));
        assert_eq!((read(b"#!/bin/sh\n"), read(b""), read(&elf[..63])), (None, None, None));
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(Elf::read(&pipe).unwrap_or(None), None, "a pipe is not waited for");
    }
}
