//! The host that the results are from, and the date.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The properties of the host that the results depend on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Host {
    /// The name of the processor.
    pub processor: String,
    /// The number of CPUs that the program may use.
    pub cpus: usize,
    /// The release of the kernel.
    pub kernel: String,
    /// The KVM module behind `/dev/kvm`.
    pub kvm: String,
    /// The date in UTC, as 2026-11-22.
    pub date: String,
}

impl Host {
    /// Describes this host, with the date of today.
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
            date: vmm::host::utc(seconds).get(..10).unwrap_or_default().into(),
        }
    }
}

/// Returns the name of the KVM module that runs guests, loaded or built in. `KVM` if it is unknown.
fn back_end(loaded: impl Fn(&str) -> bool) -> &'static str {
    ["kvm_pvm", "kvm_intel", "kvm_amd"].into_iter().find(|name| loaded(name)).unwrap_or("KVM")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaded_kvm_module_is_the_back_end() {
        assert_eq!(back_end(|name| name == "kvm_amd"), "kvm_amd");
        assert_eq!(back_end(|_| false), "KVM");
    }

    #[test]
    fn this_host_has_a_processor_a_kernel_and_cpus() {
        let host = Host::this();
        assert!(!host.processor.is_empty() && !host.kernel.is_empty() && host.cpus > 0);
    }
}
