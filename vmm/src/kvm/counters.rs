//! KVM's own counters, by name (`Documentation/virt/kvm/api.rst`, section 4.133).
#![allow(unsafe_code)]

use kvm_bindings::kvm_stats_header;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// Size of a counter's descriptor without its name, in bytes.
const DESCRIPTOR: usize = 16;
/// No kernel has more counters, longer names, or counters further on in the file, than this: what a file says beyond
/// it is not believed.
const SANE: u32 = 4096;
/// A descriptor's flags: the counter's type, of which 0 only grows, 1 is a current value, and 2 a peak. The others
/// are histograms.
const TYPE: u32 = 0xf;
/// See [`TYPE`].
const PEAK: u32 = 2;

/// KVM's own counters, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvmCounters(BTreeMap<String, u64>);

impl KvmCounters {
    /// The counter of this name, where this kernel has it.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// How often the processor left the guest, whoever then handled it.
    pub fn exits(&self) -> Option<u64> {
        self.get("exits")
    }

    /// All counters, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// Adds another vCPU's.
    pub(crate) fn absorb(&mut self, other: &Self) {
        for (name, value) in &other.0 {
            let sum = self.0.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*value);
        }
    }
}

/// KVM's own counters of a VM or vCPU, without the histograms among them.
///
/// # Errors
/// The kernel has no counters, or does not show them.
pub(crate) fn kvm_counters(fd: &impl AsRawFd) -> io::Result<KvmCounters> {
    let stats = kvm_stats(fd)?;
    let mut header = [0; size_of::<kvm_stats_header>()];
    stats.read_exact_at(&mut header, 0)?;
    let field = |at: usize| word(&header, at);
    let (name_size, count, descriptors, data) = (field(4), field(8), field(16), field(20));
    let insane = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's counters have no sane header");
    if name_size > SANE || count > SANE {
        return Err(insane());
    }
    let size = DESCRIPTOR.saturating_add(name_size as usize);
    let mut table = vec![0; size.saturating_mul(count as usize)];
    stats.read_exact_at(&mut table, descriptors.into())?;
    let mut counters = Vec::new();
    for descriptor in table.chunks_exact(size) {
        let (fixed, name) = descriptor.split_at(DESCRIPTOR);
        // One value, not a row of them.
        if word(fixed, 0) & TYPE <= PEAK && word(fixed, 4) >> 16 == 1 {
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            counters.push((String::from_utf8_lossy(name).into_owned(), word(fixed, 8)));
        }
    }
    let end = counters.iter().map(|(_, offset)| *offset).max().unwrap_or(0);
    if end > 16 * SANE {
        return Err(insane());
    }
    let mut values = vec![0; end as usize + 8];
    stats.read_exact_at(&mut values, data.into())?;
    let value = |offset: u32| {
        let bytes = values.get(offset as usize..)?.first_chunk()?;
        Some(u64::from_ne_bytes(*bytes))
    };
    Ok(KvmCounters(counters.into_iter().filter_map(|(name, offset)| Some((name, value(offset)?))).collect()))
}

/// The native word at `at`; zero past the end.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// KVM_GET_STATS_FD, `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;

/// A file with the counters of a VM or vCPU.
fn kvm_stats(fd: &impl AsRawFd) -> io::Result<File> {
    // SAFETY: the call takes no argument and makes a new file descriptor.
    let stats = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_GET_STATS_FD) };
    if stats < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(stats) })
}
