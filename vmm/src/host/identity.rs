//! The user that the program runs as.

/// A user, as the kernel's permission checks see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    /// The effective user id.
    pub(crate) uid: u32,
    /// The effective group id, and the supplementary groups.
    pub(crate) groups: Vec<u32>,
}

impl User {
    /// The user that this process runs as.
    pub(crate) fn current() -> Self {
        // SAFETY: neither call takes a pointer.
        let (uid, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        let mut groups = supplementary_groups();
        groups.push(group);
        Self { uid, groups }
    }
}

/// The supplementary groups. Empty if the kernel does not return them.
fn supplementary_groups() -> Vec<u32> {
    // SAFETY: with a count of 0 the kernel writes nothing, and returns the number of groups.
    let count = unsafe { libc::getgroups(0, std::ptr::null_mut()) };
    let mut groups = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: the buffer has room for `count` groups. The kernel fails if there are more.
    let count = unsafe { libc::getgroups(count, groups.as_mut_ptr()) };
    groups.truncate(usize::try_from(count).unwrap_or(0));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_the_one_in_proc() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let field = |name: &str| -> Vec<u32> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().map(|number| number.parse().unwrap()).collect()
        };
        let mut groups = field("Groups:");
        groups.push(field("Gid:")[1]);
        assert_eq!(User::current(), User { uid: field("Uid:")[1], groups });
    }
}
