//! The jail of a program, as the child enters it between fork and exec. All functions only make system calls.
#![allow(unsafe_code)]

use super::{MEMORY, Missing, PROCESSES};
use crate::captive::DISK;
use crate::captive::calls::FILTER;
use crate::files::Use;
use crate::limits;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::RawFd;
use std::ptr;

/// The first version of Landlock whose kernel counts the processes of a user for each user namespace (Linux 5.14).
const COUNTS_PROCESSES: i32 = 2;
/// The first version whose kernel has a limit of the numbers of processes for each PID namespace (Linux 6.15).
const LIMITS_NUMBERS: i32 = 7;
/// The limit: the kernel gives out 301 again and again, and at most so many are in use.
const NUMBERS: &[u8] = b"512";
/// The rights that root keeps: those to read the files of others.
const KEPT: [i32; 2] = [1, 2];
const LAST_CAPABILITY: i32 = 63;
const RULE_PATH_BENEATH: libc::c_long = 1;

/// The part of a jail that runs in the child.
#[derive(Debug)]
pub struct Child {
    pub(super) scratch: CString,
    /// The other folders in which the program may write.
    pub(super) writable: Vec<CString>,
    /// The options of the file system in memory.
    pub(super) tmpfs: CString,
    pub(super) ruleset: Option<RawFd>,
    pub(super) version: i32,
    pub(super) report: Option<RawFd>,
    pub(super) required: bool,
    /// The limit of the processor time.
    pub(super) seconds: Option<u64>,
}

/// A rule of Landlock (`struct landlock_path_beneath_attr`).
#[repr(C, packed)]
struct PathBeneath {
    rights: u64,
    parent: RawFd,
}

impl Child {
    /// The namespaces that a program should have besides that of its processes.
    pub const NAMESPACES: libc::c_int =
        libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

    /// Enters the jail with the process that becomes the program. It is in these new namespaces.
    ///
    /// # Errors
    /// The jail is required, and a part is missing.
    pub fn enter(&self, namespaces: libc::c_int) -> io::Result<()> {
        let mut missing = 0;
        let mut lacks = |part: Missing, is_missing: bool| {
            if is_missing {
                missing |= part as u32;
            }
        };
        let has = |namespace| namespaces & namespace != 0;
        lacks(Missing::Processes, !has(libc::CLONE_NEWPID));
        lacks(Missing::Network, !has(libc::CLONE_NEWNET));
        // The file for it is read-only after that.
        if has(libc::CLONE_NEWPID) {
            self.limit_numbers();
        }
        let has_mounts = has(libc::CLONE_NEWNS) && self.mount_scratch();
        lacks(Missing::Scratch, !has_mounts);
        lacks(Missing::Limits, !self.limit(has(libc::CLONE_NEWUSER)));
        drop_capabilities();
        // SAFETY: the call takes no memory.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        lacks(Missing::Files, !self.restrict_files());
        lacks(Missing::Calls, !restrict_calls());
        let bytes = missing.to_ne_bytes();
        if let Some(report) = self.report {
            // SAFETY: the bytes have this size.
            unsafe { libc::write(report, bytes.as_ptr().cast(), bytes.len()) };
        }
        if self.required && missing != 0 { Err(io::Error::from_raw_os_error(libc::EPERM)) } else { Ok(()) }
    }

    /// Makes all file systems read-only, for this namespace only, because Landlock has no rules for the mode, the owner and the
    /// times of a file. Then puts a file system in memory into the place of the scratch folder.
    fn mount_scratch(&self) -> bool {
        let none = ptr::null();
        // SAFETY: the texts end with a zero, and the other pointers are null.
        let private =
            unsafe { libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, ptr::null()) };
        let is_read_only = private == 0 && set_read_only(c"/", true);
        let is_writable = self.writable.iter().all(|path| bind(path) && set_read_only(path, false));
        private == 0 && mount(c"tmpfs", &self.scratch, c"tmpfs", &self.tmpfs) && is_read_only && is_writable
    }

    /// Sets the limits of resources.
    fn limit(&self, counts_own: bool) -> bool {
        let processes = (counts_own && self.version >= COUNTS_PROCESSES).then_some(PROCESSES);
        [
            (libc::RLIMIT_AS, Some(MEMORY)),
            (libc::RLIMIT_FSIZE, Some(DISK)),
            (libc::RLIMIT_CORE, Some(0)),
            (libc::RLIMIT_NPROC, processes),
            (libc::RLIMIT_CPU, self.seconds),
        ]
        .into_iter()
        .all(|(resource, limit)| limit.is_none_or(|limit| limits::lower(resource, limit)))
    }

    /// Limits the numbers of processes in the PID namespace, and so their count, also for root. Linux before 6.14 has only one
    /// limit for all namespaces.
    fn limit_numbers(&self) {
        if self.version < LIMITS_NUMBERS {
            return;
        }
        // SAFETY: the path ends with a zero, and the text has this size.
        unsafe {
            let file = libc::open(c"/proc/sys/kernel/pid_max".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file >= 0 {
                libc::write(file, NUMBERS.as_ptr().cast(), NUMBERS.len());
                libc::close(file);
            }
        }
    }

    /// Takes the files away, except those of the ruleset, the scratch folder, and the facts about the own process. `/proc` stays
    /// that of the system, because the observer's library finds the number of its process there.
    fn restrict_files(&self) -> bool {
        let Some(ruleset) = self.ruleset else { return false };
        self.add_rule(ruleset, &self.scratch, Use::All);
        self.add_rule(ruleset, c"/proc/self", Use::Read);
        // SAFETY: the call takes no memory.
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) == 0 }
    }

    fn add_rule(&self, ruleset: RawFd, path: &CStr, to: Use) {
        // SAFETY: the path ends with a zero, and the rule outlives the call.
        unsafe {
            let parent = libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
            if parent >= 0 {
                let rule = PathBeneath { rights: to.bits(self.version), parent };
                libc::syscall(libc::SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &raw const rule, 0);
                libc::close(parent);
            }
        }
    }
}

/// Installs the filter of system calls.
fn restrict_calls() -> bool {
    let len = u16::try_from(FILTER.len()).unwrap_or(0);
    let program = libc::sock_fprog { len, filter: FILTER.as_ptr().cast_mut() };
    // SAFETY: the kernel reads the filter during the call, and does not change it.
    unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0 }
}

/// Makes the file system at a path read-only with all below it, or makes it alone writable again.
fn set_read_only(path: &CStr, is_read_only: bool) -> bool {
    let flag = libc::MOUNT_ATTR_RDONLY;
    let (attr_set, attr_clr) = if is_read_only { (flag, 0) } else { (0, flag) };
    let change = libc::mount_attr { attr_set, attr_clr, propagation: 0, userns_fd: 0 };
    let flags = if is_read_only { libc::AT_RECURSIVE } else { 0 };
    let size = size_of_val(&change);
    // SAFETY: the path ends with a zero, and the change has this size.
    unsafe {
        libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, path.as_ptr(), flags, &raw const change, size)
            == 0
    }
}

/// Makes a folder a file system of its own.
fn bind(path: &CStr) -> bool {
    let none = ptr::null();
    // SAFETY: the path ends with a zero, and the other pointers are null.
    unsafe { libc::mount(path.as_ptr(), path.as_ptr(), none, libc::MS_BIND, ptr::null()) == 0 }
}

fn mount(source: &CStr, target: &CStr, kind: &CStr, options: &CStr) -> bool {
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: the texts end with a zero.
    unsafe {
        let options = options.as_ptr().cast();
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options) == 0
    }
}

/// Gives up the capabilities that a program of root would have.
fn drop_capabilities() {
    for capability in (0..=LAST_CAPABILITY).filter(|capability| !KEPT.contains(capability)) {
        // SAFETY: the call takes no memory. It fails for users who are not root, whose programs get no capabilities.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
}
