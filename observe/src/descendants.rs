//! The processes that descend from this one.

use std::collections::HashMap;
use std::fs;

/// Returns the living descendants of `ancestor`, from `/proc`. Orphans are among them, because this process adopts them
/// (PR_SET_CHILD_SUBREAPER).
pub(crate) fn of(ancestor: i32) -> Vec<i32> {
    let Ok(folder) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parents: HashMap<i32, i32> = pids
        .filter_map(|pid| Some((pid, parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect();
    let descends = |pid: &i32| {
        // A chain is no longer than there are processes.
        let mut chain = std::iter::successors(Some(*pid), |pid| parents.get(pid).copied());
        chain.by_ref().skip(1).take(parents.len()).any(|pid| pid == ancestor)
    };
    parents.keys().copied().filter(|pid| descends(pid)).collect()
}

/// True for a living descendant of this process.
pub(crate) fn is_own(process: i32) -> bool {
    /// The longest chain of parents.
    const LONGEST: usize = 4096;
    let own = std::process::id().cast_signed();
    let above = |pid: &i32| parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?);
    std::iter::successors(Some(process), above).skip(1).take(LONGEST).any(|pid| pid == own)
}

/// Returns the parent from the text of `/proc/PID/stat`: `PID (NAME) STATE PARENT ...`. The name may have any characters.
/// Returns `None` for a process that has ended (a zombie).
fn parent(stat: &str) -> Option<i32> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    fields.next()?.parse().ok().filter(|_| state != "Z" && state != "X")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn children_of_children_are_descendants() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut child = Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let family = loop {
            let family = of(pid);
            if !family.is_empty() {
                break family;
            }
        };
        assert!(of(own).contains(&pid) && of(own).contains(&family[0]) && !of(pid).contains(&own));
        assert!(is_own(pid) && is_own(family[0]) && !is_own(own) && !is_own(1) && !is_own(0) && !is_own(-1));
        child.kill().unwrap();
        child.wait().unwrap();
        Command::new("kill").arg(family[0].to_string()).status().unwrap();
    }

    #[test]
    fn the_name_of_a_process_cannot_mislead() {
        assert_eq!(parent("7 (a) b (c) S 5 6 7"), Some(5));
        assert_eq!(parent("7 () S 1 2) S 5 6 7"), Some(5));
        assert_eq!((parent("7 (a) Z 5 6"), parent(""), parent("7 (a)")), (None, None, None));
    }
}
