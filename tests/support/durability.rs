//! Files that a Linux guest has written and synced survive a kill of the program.

use crate::QUIET;
use crate::linux_guest::Linux;
use crate::support::Files;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

/// The number of lines of each file.
const LINES: u32 = 3000;
/// A guest of this loop is killed. File N of a round has [`LINES`] numbers, from ROUND * 100000 + N on. The mark is typed in
/// pieces, so that the echo of the terminal does not contain it.
const LOOP: &str = "n=0; while :; do n=$((n+1)); seq $((ROUND*100000+n)) $((ROUND*100000+n+LINES-1)) > /tmp/disk/ROUND-$n; \
                    sync; echo SYN''CED $n.; done";

/// Kills a guest in each round while it writes files to an ext4 disk, and syncs each of them. (Debian builds ext4 into the
/// kernel.) Afterwards the file system is
/// sound, and has all files that were synced in this round and in the earlier ones.
pub fn kills(rounds: u32) {
    let files = Files::new();
    let image = files.write("disk", b"");
    fs::File::options().write(true).open(&image).unwrap().set_len(96 << 20).unwrap();
    assert_status(&tool("mkfs.ext4", &["-q", "-F", &image]), &[0], "mkfs.ext4");
    let mut synced = Vec::new();
    for round in 1..=rounds {
        synced.push(killed(round, &image));
        // The first check replays the journal, as a mount does. Status 1: the file system was corrected.
        assert_status(&tool("e2fsck", &["-p", &image]), &[0, 1], "e2fsck -p");
        assert_status(&tool("e2fsck", &["-f", "-n", &image]), &[0], "e2fsck -fn");
        let folder = files.0.path().join(format!("round {round}"));
        fs::create_dir(&folder).unwrap();
        let dump = format!("rdump / \"{}\"", folder.display());
        assert_status(&tool("debugfs", &["-R", &dump, &image]), &[0], "debugfs");
        for (of, last) in (1..).zip(&synced) {
            check(&folder, of, *last);
        }
        fs::remove_dir_all(&folder).unwrap();
        println!("round {round} of {rounds}: killed after {} files were synced", synced.last().unwrap());
    }
}

/// Boots a guest, and kills it at a random time. Returns the number of files that it had synced.
fn killed(round: u32, image: &str) -> u32 {
    let mut linux = Linux::boot("vmlinux", &["--cmdline", QUIET, "--disk", image]);
    linux.ask("mkdir -p /tmp/disk && mount -t ext4 /dev/vda /tmp/disk");
    linux.type_line(&LOOP.replace("ROUND", &round.to_string()).replace("LINES", &LINES.to_string()));
    for _ in 0..1 + random(4) {
        linux.expect("SYNCED ");
    }
    thread::sleep(Duration::from_millis(random(500)));
    let text = linux.kill();
    let last = text.rsplit("SYNCED ").find_map(|rest| rest.split_once('.')?.0.parse().ok());
    last.expect("the guest has synced a file")
}

/// Checks the files 1 to `last` of a round.
fn check(folder: &Path, round: u32, last: u32) {
    for number in 1..=last {
        let first = round * 100_000 + number;
        let expected: String = (first..first + LINES).map(|line| format!("{line}\n")).collect();
        let found = fs::read_to_string(folder.join(format!("{round}-{number}")));
        let found =
            found.unwrap_or_else(|error| panic!("file {number} of round {round} was synced: {error}"));
        assert!(found == expected, "file {number} of round {round} was synced, and has other content now");
    }
}

/// Returns a number below `limit`.
fn random(limit: u64) -> u64 {
    RandomState::new().build_hasher().finish() % limit
}

fn tool(name: &str, arguments: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("env").arg(format!("PATH={path}")).arg(name).args(arguments).output();
    output.expect("the program starts")
}

fn assert_status(output: &Output, good: &[i32], what: &str) {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some_and(|code| good.contains(&code)), "{what}: {text}{errors}");
}
