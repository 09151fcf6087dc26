//! The machine that the results are from, and when.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a reader has to know of the machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Host {
    /// The processor's name.
    pub processor: String,
    /// How many CPUs the program may use.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
    /// What is behind `/dev/kvm`.
    pub kvm: String,
    /// The day, as 2026-11-22, in UTC.
    pub date: String,
}

impl Host {
    /// This one, today.
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name: &str| {
            let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
        };
        let processor = field("model name").unwrap_or_else(|| "unknown processor".into());
        let loaded = |name: &str| Path::new("/sys/module").join(name).is_dir();
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self {
            processor,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            kvm: back_end(loaded).into(),
            date: date(seconds),
        }
    }
}

/// What runs KVM's guests: which of its modules is there, loaded or built in.
fn back_end(loaded: impl Fn(&str) -> bool) -> &'static str {
    ["kvm_pvm", "kvm_intel", "kvm_amd"].into_iter().find(|name| loaded(name)).unwrap_or("KVM")
}

/// The day of a time in seconds since 1970-01-01.
///
/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_795_305_600, "2026-11-22"),
            (4_102_444_799, "2099-12-31"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn back_ends() {
        assert_eq!(back_end(|name| name == "kvm_amd"), "kvm_amd");
        assert_eq!(back_end(|_| false), "KVM");
    }

    #[test]
    fn this_host_has_a_name() {
        let host = Host::this();
        assert!(!host.processor.is_empty() && !host.kernel.is_empty() && host.cpus > 0);
    }
}
