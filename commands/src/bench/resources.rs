//! The resources of this process: memory, file descriptors, mappings, threads, timers. They come from `/proc/self`, see
//! proc(5).

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

/// The resources that a VM takes, and must release when it is dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The number of open file descriptors.
    pub descriptors: usize,
    /// The number of memory mappings.
    pub mappings: usize,
    /// The number of threads, including those that the kernel runs for a VM.
    pub threads: usize,
    /// The number of POSIX timers; `None` if the kernel does not list them (CONFIG_CHECKPOINT_RESTORE).
    pub timers: Option<usize>,
}

impl Resources {
    /// Counts the resources of this process.
    ///
    /// # Errors
    /// `/proc/self` cannot be read.
    pub fn now() -> io::Result<Self> {
        let entries = |path: &str| Ok::<_, io::Error>(fs::read_dir(path)?.count());
        let timers = match fs::read_to_string("/proc/self/timers") {
            Ok(text) => Some(text.lines().filter(|line| line.starts_with("ID:")).count()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            // One descriptor belongs to the directory that is being read.
            descriptors: entries("/proc/self/fd")?.saturating_sub(1),
            mappings: fs::read_to_string("/proc/self/maps")?.lines().count(),
            threads: entries("/proc/self/task")?,
            timers,
        })
    }

    /// The resources beyond those of `before`.
    fn beyond(self, before: Self) -> Self {
        Self {
            descriptors: self.descriptors.saturating_sub(before.descriptors),
            mappings: self.mappings.saturating_sub(before.mappings),
            threads: self.threads.saturating_sub(before.threads),
            timers: self.timers.zip(before.timers).map(|(now, before)| now.saturating_sub(before)),
        }
    }

    /// Returns the resources that were taken since `before` and are not released. Waits up to two seconds for the kernel
    /// to end the threads that it ran for VMs.
    ///
    /// # Errors
    /// `/proc/self` cannot be read.
    pub fn left_over_since(before: Self) -> io::Result<Self> {
        const TIMEOUT: Duration = Duration::from_secs(2);
        let started = Instant::now();
        loop {
            let left_over = Self::now()?.beyond(before);
            if left_over.is_empty() || started.elapsed() > TIMEOUT {
                return Ok(left_over);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns true if all counts are zero or unknown.
    pub fn is_empty(self) -> bool {
        let Self { descriptors, mappings, threads, timers } = self;
        (descriptors, mappings, threads, timers.unwrap_or(0)) == (0, 0, 0, 0)
    }

    /// Converts the counts to JSON; an unknown count is null.
    pub fn as_json(self) -> Value {
        json!({
            "descriptors": self.descriptors,
            "mappings": self.mappings,
            "threads": self.threads,
            "timers": self.timers,
        })
    }

    /// Reads what [`as_json`](Self::as_json) writes.
    pub fn parse(value: &Value) -> Option<Self> {
        let count = |name: &str| usize::try_from(value.get(name)?.as_u64()?).ok();
        let timers = match value.get("timers")? {
            Value::Null => None,
            _ => Some(count("timers")?),
        };
        Some(Self {
            descriptors: count("descriptors")?,
            mappings: count("mappings")?,
            threads: count("threads")?,
            timers,
        })
    }
}

/// Returns the memory that this process uses (RSS), in bytes. It comes from smaps_rollup, which is exact; statm may lag
/// behind.
///
/// # Errors
/// The kernel does not provide smaps_rollup (CONFIG_PROC_PAGE_MONITOR).
pub fn resident_bytes() -> io::Result<u64> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib.saturating_mul(1024)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_counted() {
        let before = Resources::now().unwrap();
        assert!(before.descriptors >= 3 && before.mappings > 3 && before.threads >= 1);
        assert!(resident_bytes().unwrap() > 100 << 10);
        // Other tests open and close some files at the same time.
        let files: Vec<_> = (0..40).map(|_| fs::File::open("/proc/self/maps").unwrap()).collect();
        let more = Resources::left_over_since(before).unwrap();
        assert!(more.descriptors >= 20, "{more:?}");
        assert!(!more.is_empty() && Resources { timers: None, ..Resources::default() }.is_empty());
        drop(files);
    }

    #[test]
    fn unknown_timers_survive_json() {
        for timers in [None, Some(3)] {
            let resources = Resources { descriptors: 1, mappings: 2, threads: 4, timers };
            assert_eq!(Resources::parse(&resources.as_json()), Some(resources));
        }
        assert_eq!(Resources::parse(&json!({ "descriptors": 1 })), None);
    }
}
