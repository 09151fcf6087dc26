//! What this process has: memory, file descriptors, mappings, threads, timers. From `/proc/self`, see proc(5).

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use std::{fs, thread};

/// What may be left over by machines that have gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Open file descriptors.
    pub descriptors: usize,
    /// Mappings.
    pub mappings: usize,
    /// Threads, among them those that the kernel runs for a VM.
    pub threads: usize,
    /// POSIX timers; none where the kernel does not list them.
    pub timers: usize,
}

impl Holdings {
    /// What there is now.
    pub fn now() -> Self {
        let entries = |path: &str| fs::read_dir(path).map_or(0, Iterator::count);
        let lines = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            // One is that of the directory itself.
            descriptors: entries("/proc/self/fd").saturating_sub(1),
            mappings: lines("/proc/self/maps").lines().count(),
            threads: entries("/proc/self/task"),
            timers: lines("/proc/self/timers").lines().filter(|line| line.starts_with("ID:")).count(),
        }
    }

    /// What there is more than `before`. A VM's own thread in the kernel takes a moment to go.
    pub fn left_over_since(before: Self) -> Self {
        const PATIENCE: Duration = Duration::from_secs(2);
        let started = Instant::now();
        loop {
            let now = Self::now();
            let more = Self {
                descriptors: now.descriptors.saturating_sub(before.descriptors),
                mappings: now.mappings.saturating_sub(before.mappings),
                threads: now.threads.saturating_sub(before.threads),
                timers: now.timers.saturating_sub(before.timers),
            };
            if more == Self::default() || started.elapsed() > PATIENCE {
                return more;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The same as JSON.
    pub fn as_json(self) -> Value {
        json!({
            "descriptors": self.descriptors,
            "mappings": self.mappings,
            "threads": self.threads,
            "timers": self.timers,
        })
    }
}

/// Memory that this process has in use (RSS), in bytes: the sum of what smaps_rollup lists, which is exact where statm may
/// lag behind.
pub fn resident() -> u64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_is_counted() {
        let before = Holdings::now();
        assert!(before.descriptors >= 3 && before.mappings > 3 && before.threads >= 1);
        assert!(resident() > 100 << 10);
        // Other tests open and close some files meanwhile.
        let files: Vec<_> = (0..40).map(|_| fs::File::open("/proc/self/maps").unwrap()).collect();
        let more = Holdings::left_over_since(before);
        assert!(more.descriptors >= 20, "{more:?}");
        drop(files);
    }
}
