//! The jail of another program: its own namespaces, a scratch folder, few files, and limits.
//!
//! The parent prepares what needs memory ([`Captive`]). After the fork, the child only makes system calls ([`Child`]).

mod calls;
mod child;
mod scratch;

pub use child::Child;

use crate::files::{self, Place, Use};
use scratch::Scratch;
use std::ffi::CString;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The most memory that a process may map.
pub const MEMORY: u64 = 8 << 30;
/// The most processes and threads. As root, this limit has no effect, and that of the numbers of processes has.
pub const PROCESSES: u64 = 256;
/// The size of the scratch folder, and of a file.
pub const DISK: u64 = 256 << 20;

/// The folders with programs and libraries.
const SYSTEM: [&str; 11] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/nix/store",
    "/gnu/store",
    "/etc/alternatives",
];
/// The files that the C library and run-time systems read.
const READ: [&str; 8] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/sys/devices/system",
    "/sys/kernel/mm/transparent_hugepage",
    "/sys/module",
];
const DEVICES: [&str; 6] = ["/dev/kvm", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// A part of the jail that the system lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Missing {
    /// Landlock.
    Files = 1,
    /// A network namespace.
    Network = 2,
    /// A mount namespace in which only a file system in memory can be written.
    Scratch = 4,
    /// Limits of resources.
    Limits = 8,
    /// A PID namespace.
    Processes = 16,
    /// A seccomp filter.
    Calls = 32,
}

impl Missing {
    const ALL: [Self; 6] =
        [Self::Files, Self::Network, Self::Scratch, Self::Limits, Self::Processes, Self::Calls];

    /// The consequence, as a sentence without a point.
    pub fn text(self) -> &'static str {
        match self {
            Self::Files => {
                "this kernel has no Landlock (Linux 5.13 or later, in CONFIG_LSM), so the program can use all files of this user"
            }
            Self::Network => {
                "this system permits no network namespace, so the program can reach this computer's network (TCP only before Linux 6.7)"
            }
            Self::Scratch => {
                "this system permits no mount namespace, so the program can change the rights of this user's files, and only the size of each of its files is limited"
            }
            Self::Limits => "the limits of the program could not be set",
            Self::Processes => "this system permits no PID namespace, so the program sees other processes",
            Self::Calls => {
                "this kernel has no seccomp filters, so the program can use keyrings and all families of sockets"
            }
        }
    }
}

/// The jail of a program, as its parent has it.
#[derive(Debug)]
pub struct Captive {
    scratch: Scratch,
    /// The other folders in which the program may write.
    writable: Vec<PathBuf>,
    ruleset: Option<OwnedFd>,
    report: PipeReader,
    /// The other end, until the program was started.
    writer: Option<PipeWriter>,
    required: bool,
    timeout: Option<Duration>,
}

impl Captive {
    /// Prepares a jail for a program that uses these places besides the system's programs and libraries. It may use as much
    /// processor time as the CPUs can give until `timeout`.
    ///
    /// # Errors
    /// A temporary folder or a pipe cannot be made, or the kernel refuses a Landlock rule.
    pub fn prepare(places: &[Place], timeout: Option<Duration>, required: bool) -> io::Result<Self> {
        let scratch = Scratch::new()?;
        let captive = |ruleset| -> io::Result<Self> {
            let (report, writer) = io::pipe()?;
            let writable = places.iter().filter(|place| matches!(place.to, Use::All | Use::Replace));
            let writable = writable.map(|place| place.path.clone()).collect();
            Ok(Self { scratch, writable, ruleset, report, writer: Some(writer), required, timeout })
        };
        ruleset(places).and_then(captive)
    }

    /// The only folder in which the program can write.
    pub fn scratch(&self) -> &Path {
        &self.scratch.path
    }

    /// True if the program is not started without all parts.
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// The part that runs in the child.
    ///
    /// # Errors
    /// The path of the folder has a zero.
    pub fn child(&self) -> io::Result<Child> {
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        let seconds = self.timeout.map(|limit| limit.as_secs().saturating_add(2).saturating_mul(cpus));
        Ok(Child {
            scratch: CString::new(self.scratch.path.as_os_str().as_bytes())?,
            writable: self
                .writable
                .iter()
                .map(|path| CString::new(path.as_os_str().as_bytes()))
                .collect::<Result<_, _>>()?,
            tmpfs: CString::new(format!("size={DISK},nr_inodes=8192,mode=0755"))?,
            ruleset: self.ruleset.as_ref().map(|fd| fd.as_raw_fd()),
            version: files::version(),
            report: self.writer.as_ref().map(|writer| writer.as_raw_fd()),
            required: self.required,
            seconds,
        })
    }

    /// The parts that were missing, after the program was started or could not be.
    pub fn missing(&mut self) -> Vec<Missing> {
        drop(self.writer.take());
        let mut bits = [0; 4];
        // Without a report, the child ended before it was in the jail.
        if self.report.read_exact(&mut bits).is_err() {
            return Vec::new();
        }
        let bits = u32::from_ne_bytes(bits);
        Missing::ALL.into_iter().filter(|part| bits & *part as u32 != 0).collect()
    }
}

/// Creates the ruleset; `None` without Landlock.
fn ruleset(places: &[Place]) -> io::Result<Option<OwnedFd>> {
    if files::version() == 0 {
        return Ok(None);
    }
    let system = SYSTEM.iter().map(|path| Place::new(*path, Use::Execute));
    let read = READ.iter().map(|path| Place::new(*path, Use::Read));
    let devices = DEVICES.iter().map(|path| Place::new(*path, Use::Device));
    let system: Vec<_> = system.chain(read).chain(devices).collect();
    Ok(files::ruleset(system.iter().chain(places))?.into())
}
