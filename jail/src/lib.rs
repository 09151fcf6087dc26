//! The jail: rights that a process gives up before it runs the code of a stranger (docs/security.md).
//!
//! [`enter`] is for this process, which runs a guest: it keeps the files that it has opened, and the system calls that a run
//! needs. [`Captive`] is for another program, such as a student's VMM.
//!
//! The kernel may lack a part. Then the rest still holds, and [`Entered::missing`] says what is open, unless the jail is required.

mod calls;
mod captive;
mod files;
mod filter;
mod host;
mod limits;
mod names;
mod trap;

pub use calls::{CALLS, Call, Kind, Limit, REPLACED, of};
pub use captive::{Captive, Child, Missing};
pub use files::{Place, Use};
pub use host::{Facility, facilities};
pub use limits::Inherited;
pub use names::name as call_name;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// The rights that a process keeps.
#[derive(Debug, Default)]
pub struct Policy {
    /// The files and folders that it may still open.
    pub places: Vec<Place>,
    /// True if a server for gdb runs in it.
    pub debugs: bool,
    /// The most memory that it may map, in bytes.
    pub memory: Option<u64>,
    /// The largest file that it may write, in bytes.
    pub file_size: Option<u64>,
    /// The descriptors to close.
    pub inherited: Inherited,
    /// The exit status of a program that makes a forbidden system call.
    pub status: u8,
    /// The last call before that, for example to give the terminal back. It may only do what a signal handler may.
    pub before_end: Option<fn()>,
}

/// A jail that was entered.
#[derive(Debug)]
pub struct Entered {
    /// A sentence for each part that the system lacks.
    pub missing: Vec<String>,
}

/// True once the system calls of this process are limited.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// Enters the jail with this thread, and with all that it starts from now on. There is no way back.
///
/// # Errors
/// The jail is `required`, and a part is missing. This process is then partly in the jail, and should end.
pub fn enter(policy: Policy, required: bool) -> Result<Entered, String> {
    let mut missing = Vec::new();
    policy.inherited.close();
    match files::version() {
        0 => missing.push(
            "this kernel has no Landlock (Linux 5.13 or later, in CONFIG_LSM), so the files of this user and the network stay \
             open"
                .into(),
        ),
        version => {
            if let Err(error) = files::restrict(&policy.places) {
                missing.push(format!("Landlock failed, so the files of this user stay open: {error}"));
            }
            if version < files::WITH_TCP {
                missing.push(format!("Landlock has no rules for TCP (version {version}, Linux 6.7 has 4)"));
            }
        }
    }
    let limits = [(libc::RLIMIT_AS, policy.memory), (libc::RLIMIT_FSIZE, policy.file_size)];
    for (resource, limit) in limits {
        if limit.is_some_and(|limit| !limits::lower(resource, limit)) {
            missing.push("a limit of memory or file size could not be set".into());
        }
    }
    if required && let Some(first) = missing.first() {
        return Err(first.clone());
    }
    if let Err(error) = restrict_calls(policy.debugs, policy.status, policy.before_end) {
        missing.push(format!("seccomp failed, so all system calls stay open: {error}"));
    }
    match missing.first().filter(|_| required) {
        Some(first) => Err(first.clone()),
        None => Ok(Entered { missing }),
    }
}

/// Limits the system calls of this thread.
fn restrict_calls(debugs: bool, status: u8, before_end: Option<fn()>) -> io::Result<()> {
    trap::install(status, before_end)?;
    filter::install(&filter::program(Kind::Main, debugs)?)?;
    ENTERED.store(true, Ordering::SeqCst);
    Ok(())
}

/// Limits the system calls of a thread that starts in the jail to those of its kind. Outside of the jail it does nothing.
pub fn thread_started(kind: Kind) {
    trap::set_kind(kind);
    // Threads of the debugger need all calls of the first one.
    if !ENTERED.load(Ordering::SeqCst) || [Kind::Main, Kind::Debugger].contains(&kind) {
        return;
    }
    // Without a filter of its own, the thread keeps that of the first one.
    let installed = filter::program(kind, false).and_then(|program| filter::install(&program));
    debug_assert!(installed.is_ok(), "the filter of a thread: {installed:?}");
}
