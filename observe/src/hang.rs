//! The place where a program stands that did not end within its time, from `/proc`.

use std::fs;

/// KVM_RUN.
const RUN: u64 = 0xae80;
/// The most processes, and the most threads of each, that are looked at.
const MOST: usize = 64;

/// The place of a thread. A later one says more about a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// It waits for its children, as a shell does.
    Children,
    /// In a system call.
    Call(u64),
    /// It computes.
    Busy,
    /// It reads standard input.
    Input,
    /// In KVM_RUN.
    Run,
}

impl Place {
    /// The place in the text of `/proc/PID/task/TID/syscall`: `running`, or the number of the call and its arguments. `None` for a
    /// thread that ends.
    fn of(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let first = words.next()?;
        if first == "running" {
            return Some(Self::Busy);
        }
        let mut arguments =
            words.map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap_or(u64::MAX));
        let (call, one, two) = (first.parse::<u64>().ok()?, arguments.next(), arguments.next());
        let is = |number: i64| call == number.unsigned_abs();
        Some(match (one, two) {
            (_, Some(RUN)) if is(libc::SYS_ioctl) => Self::Run,
            (Some(0), _) if is(libc::SYS_read) || is(libc::SYS_readv) => Self::Input,
            _ if is(libc::SYS_wait4) || is(libc::SYS_waitid) => Self::Children,
            _ => Self::Call(call),
        })
    }
}

/// A sentence about the place of a program, without its subject. `family` are its processes. `None` if the system does not tell.
pub(crate) fn place(family: &[i32]) -> Option<String> {
    let mut place = None;
    for process in family.iter().take(MOST) {
        let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { continue };
        for thread in threads.take(MOST) {
            let Ok(thread) = thread else { continue };
            let text = fs::read_to_string(thread.path().join("syscall")).unwrap_or_default();
            place = place.max(Place::of(&text));
        }
    }
    Some(match place? {
        Place::Children => "waited for a child".into(),
        Place::Call(call) => match i32::try_from(call).ok().and_then(jail::call_name) {
            Some(name) => format!("was in the system call {name}"),
            None => format!("was in the system call {call}"),
        },
        Place::Busy => "computed, and was not in KVM_RUN".into(),
        Place::Input => "waited for input (read of file descriptor 0)".into(),
        Place::Run => "was in KVM_RUN".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn the_text_of_proc_has_a_place() {
        for (text, place) in [
            ("running\n", Some(Place::Busy)),
            ("16 0x5 0xae80 0x0 0x0 0x0 0x0 0x7ffd 0x7f12\n", Some(Place::Run)),
            ("16 0x5 0xae81 0x0 0x0 0x0 0x0 0x7ffd 0x7f12\n", Some(Place::Call(16))),
            ("0 0x0 0x7f12 0x20000 0x22 0x0 0x0 0x7ffd 0x7f12\n", Some(Place::Input)),
            ("0 0x3 0x7f12 0x20000 0x22 0x0 0x0 0x7ffd 0x7f12\n", Some(Place::Call(0))),
            ("61 0xffffffffffffffff 0x7f12 0x0", Some(Place::Children)),
            ("-1 0x7ffd 0x7f12\n", None),
            ("", None),
        ] {
            assert_eq!(Place::of(text), place, "{text}");
        }
    }

    #[test]
    fn a_program_that_waits_is_told_with_its_reason() {
        // Some systems lack the file.
        let is_told = fs::read_to_string("/proc/self/syscall").is_ok();
        for (program, expected) in
            [("cat", "waited for input (read of file descriptor 0)"), ("sleep", "nanosleep")]
        {
            let mut child = Command::new(program)
                .args((program == "sleep").then_some("60"))
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let family = [i32::try_from(child.id()).unwrap()];
            let found = (0..500).any(|_| {
                thread::sleep(Duration::from_millis(10));
                place(&family).map_or(!is_told, |place| place.ends_with(expected))
            });
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(found, "{program}");
        }
        assert_eq!(place(&[]), None);
    }
}
