//! Decides if a run ended as every run must end.

use crate::program::{KILLED, Ran};

/// The result of a run.
#[derive(Debug)]
pub struct Verdict {
    /// The exit status.
    pub status: i32,
    /// The fault, in a sentence.
    pub wrong: Option<String>,
    /// The command line.
    pub command: String,
}

/// The status of options that contradict each other.
pub const USAGE: i32 = 110;
/// The status of an image that cannot be run with these options.
pub const BAD_IMAGE: i32 = 116;
/// The status of a host that failed.
pub const HOST_ERROR: i32 = 115;
/// The statuses of the program itself, as `commands/src/status.rs` defines them. 1 to 99 are those of a guest.
const OWN: std::ops::RangeInclusive<i32> = 110..=119;
/// The longest sentence that is taken for a clear one, in characters.
const LONGEST: usize = 400;

/// Checks a run that was not told what its guest does. Returns what is wrong.
pub fn check(ran: &Ran) -> Option<String> {
    match ran.status {
        KILLED => return Some("did not end within its time limit".into()),
        status if status > 128 => return Some(format!("was ended by signal {}", status - 128)),
        101 => return Some(format!("panicked: {}", first_line(&ran.stderr))),
        status if !(0..=99).contains(&status) && !OWN.contains(&status) => {
            return Some(format!("has the exit status {status}, which does not exist"));
        }
        _ => {}
    }
    // The program also says that a guest's stack has probably overflowed. Rust says this of the program's own stack.
    if ["panicked at", "RUST_BACKTRACE", "overflowed its stack"].iter().any(|text| ran.stderr.contains(text))
    {
        return Some(format!("prints the text of a panic: {}", first_line(&ran.stderr)));
    }
    errors(ran)
}

/// Checks the number and the form of the error sentences.
fn errors(ran: &Ran) -> Option<String> {
    let errors: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("vmm: error: ")).collect();
    if let Some(long) = errors.iter().find(|line| line.chars().count() > LONGEST) {
        return Some(format!("prints an error of {} characters: {long}", long.chars().count()));
    }
    match errors[..] {
        // A run that has begun tells its end in the first line of its report.
        [] if ran.status != HOST_ERROR => None,
        [] => {
            let is_reason = |line: &str| ["could not be ", "failed: "].iter().any(|text| line.contains(text));
            let is_told = ran.stderr.lines().any(|line| line.starts_with("vmm: ") && is_reason(line));
            (!is_told)
                .then(|| format!("ends with {HOST_ERROR}, and says no reason: {:?}", first_line(&ran.stderr)))
        }
        [_] if ran.status == 0 => Some(format!("ends with 0, and prints an error: {}", errors[0])),
        [_] => None,
        // Each result file has its own sentence.
        [one, other] if one != other && errors.iter().all(|line| line.contains("cannot write run.")) => None,
        _ => Some(format!("prints {} errors: {}", errors.len(), errors.join(" | "))),
    }
}

/// Checks a run whose guest prints `stdout` and ends with 0 on a host that works. A status of 0 promises all of it.
pub fn check_complete(ran: &Ran, stdout: &[u8]) -> Option<String> {
    check(ran).or_else(|| {
        let is_lost = ran.status == 0 && ran.stdout != stdout;
        let lengths = (ran.stdout.len(), stdout.len());
        is_lost.then(|| format!("ends with 0, and prints {} of {} bytes", lengths.0, lengths.1))
    })
}

fn first_line(text: &str) -> &str {
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(status: i32, stderr: &str) -> Option<String> {
        check(&Ran { status, stdout: Vec::new(), stderr: stderr.into() })
    }

    #[test]
    fn right_ends_are_accepted() {
        assert_eq!(wrong(0, "vmm: a: halted\n"), None);
        assert_eq!(wrong(42, "vmm: a: exited with code 42\n"), None);
        assert_eq!(wrong(112, "vmm: a: triple fault: probably a stack overflow: the stack pointer\n"), None);
        assert_eq!(wrong(115, "vmm: error: cannot open /dev/kvm: x\n"), None);
        assert_eq!(wrong(115, "vmm: a: the guest's output could not be written: x\nvmm: 3 exits\n"), None);
        assert_eq!(wrong(115, "vmm: a: an exit controller failed: creating a thread failed: x\n"), None);
        let both = "vmm: error: cannot write run.json: x\nvmm: error: cannot write run.trace: x\n";
        assert_eq!(wrong(115, both), None);
    }

    #[test]
    fn wrong_ends_are_found() {
        for (status, stderr) in [
            (KILLED, ""),
            (128 + 11, ""),
            (101, "thread 'main' panicked"),
            (120, ""),
            (-1, ""),
            (112, "thread 'vcpu' panicked at x"),
            (0, "thread 'vcpu' has overflowed its stack\nfatal runtime error: stack overflow"),
            (115, ""),
            (115, "vmm: a: halted\n"),
            (115, "vmm: error: a\nvmm: error: b\n"),
            (115, "vmm: error: cannot write run.json: x\nvmm: error: cannot write run.json: x\n"),
            (0, "vmm: error: a\n"),
        ] {
            assert!(wrong(status, stderr).is_some(), "{status} {stderr}");
        }
        assert!(wrong(115, &format!("vmm: error: {}", "x".repeat(500))).is_some());
    }

    #[test]
    fn success_promises_all_of_the_output() {
        let ran = |status| Ran { status, stdout: b"ab".to_vec(), stderr: String::new() };
        assert_eq!(check_complete(&ran(0), b"ab"), None);
        assert!(check_complete(&ran(0), b"abc").is_some());
        assert_eq!(check_complete(&ran(114), b"abc"), None);
    }
}
