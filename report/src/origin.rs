//! The origin of a measurement: when, where and by which command it was taken.

use crate::profile::{MOST_TEXT, check_text};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

/// The most bytes of a file in /proc that are read. The first processor of /proc/cpuinfo is in them.
const MOST_READ: u64 = 4096;
/// The most bytes of the command line that are kept.
const MOST_COMMAND: usize = 2000;

/// The origin of a profile or a trace. A text is empty if it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedOrigin {
    /// The time of the start in UTC, such as `2026-11-29T07:16:40Z` (RFC 3339).
    pub date: String,
    /// The name of the host.
    pub host: String,
    /// The name of the processor.
    pub cpu: String,
    /// The release of the host's kernel.
    pub kernel: String,
    /// The command line, with quotes as for a shell.
    pub command: String,
    /// The transport of SIMVIRTIO, if the guest used this device.
    pub transport: String,
}

impl SavedOrigin {
    /// Describes this host, this moment, and the command line of this program.
    pub fn here() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let cpuinfo = read("/proc/cpuinfo");
        let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let mut names = fields.filter(|(key, _)| key.trim() == "model name");
        Self {
            date: vmm::host::utc(seconds),
            host: read("/proc/sys/kernel/hostname").trim().into(),
            cpu: names.next().map_or("", |(_, name)| name.trim()).into(),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            command: command(std::env::args_os().map(|word| word.to_string_lossy().into_owned())),
            transport: String::new(),
        }
    }

    /// The texts, with their keys and their captions.
    pub(crate) fn texts(&self) -> [(&'static str, &'static str, &str); 6] {
        [
            ("date", "date", &self.date),
            ("transport", "transport", &self.transport),
            ("command", "command line", &self.command),
            ("host", "host", &self.host),
            ("cpu", "CPU", &self.cpu),
            ("kernel", "kernel", &self.kernel),
        ]
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        self.texts().iter().try_for_each(|(key, _, text)| check_text(key, text))
    }
}

/// The beginning of a file. Empty if it cannot be read.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST_READ).read_to_end(&mut bytes));
    read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&bytes).into_owned())
}

/// The words as a shell reads them.
fn command(words: impl Iterator<Item = String>) -> String {
    const _: () = assert!(MOST_COMMAND < MOST_TEXT);
    let mut line = String::new();
    for word in words {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
        let separator = if line.is_empty() { "" } else { " " };
        line += separator;
        match !word.is_empty() && word.chars().all(is_plain) {
            true => line += &word,
            false => line += &format!("'{}'", word.replace('\'', "'\\''")),
        }
        if line.len() > MOST_COMMAND {
            let end = (0..=MOST_COMMAND).rev().find(|end| line.is_char_boundary(*end));
            line.truncate(end.unwrap_or(0));
            return line + "...";
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_has_quotes_and_a_limit() {
        let line = |words: &[&str]| command(words.iter().map(|word| (*word).to_owned()));
        assert_eq!(line(&["vmm", "run", "a b", "it's", ""]), r"vmm run 'a b' 'it'\''s' ''");
        let long = line(&["vmm", &"ä".repeat(3000)]);
        assert!(long.len() <= MOST_COMMAND + 3 && long.ends_with("..."), "{}", long.len());
    }

    #[test]
    fn this_host_has_an_origin() {
        let here = SavedOrigin::here();
        assert_eq!(here.check(), Ok(()));
        assert!(here.date.starts_with("20") && !here.command.is_empty(), "{here:?}");
    }
}
