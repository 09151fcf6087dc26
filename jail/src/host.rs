//! The parts that a jail would have on this host, for `vmm doctor`.
#![allow(unsafe_code)]

use crate::captive::Child;
use crate::files;

/// A part of the jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facility {
    /// Its name.
    pub name: &'static str,
    /// The finding, or the reason why the part is missing.
    pub found: Result<String, String>,
}

/// The parts of a jail on this host.
pub fn facilities() -> Vec<Facility> {
    let landlock = match files::version() {
        0 => Err("this kernel has none: use Linux 5.13 or later with landlock in CONFIG_LSM".into()),
        version if version < files::WITH_TCP => {
            Err(format!("version {version}, which has no rules for TCP: use Linux 6.7 or later"))
        }
        version => Ok(format!("version {version}: files and TCP")),
    };
    let seccomp = match has_seccomp() {
        true => Ok("filters of system calls".into()),
        false => Err("this kernel has no filters: CONFIG_SECCOMP_FILTER".into()),
    };
    let namespaces = match namespaces() {
        Some(how) => Ok(format!("user, mount, PID, network, IPC, UTS: {how}")),
        None => Err(
            "this system permits no namespaces: see user.max_user_namespaces and the rules of the container"
                .into(),
        ),
    };
    [("Landlock", landlock), ("seccomp", seccomp), ("namespaces", namespaces)]
        .map(|(name, found)| Facility { name, found })
        .into()
}

fn has_seccomp() -> bool {
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: the call only reads the action.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}

/// Tries the namespaces of a jail in a child. Returns the way in which they were permitted.
fn namespaces() -> Option<&'static str> {
    let flags = Child::NAMESPACES | libc::CLONE_NEWPID;
    let tries = [(flags, "for this user"), (flags | libc::CLONE_NEWUSER, "in a user namespace")];
    tries.into_iter().find(|(flags, _)| can_unshare(*flags)).map(|(_, how)| how)
}

fn can_unshare(flags: libc::c_int) -> bool {
    let mut status = 0;
    // SAFETY: the child makes two system calls, and the status outlives the wait.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(i32::from(libc::unshare(flags) != 0));
        }
        child > 0 && libc::waitpid(child, &mut status, 0) == child && status == 0
    }
}
