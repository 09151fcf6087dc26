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
/// The limit for the number of counters and the length of a name. Real kernels stay far below. A header with larger
/// values is refused, so that it cannot make this program allocate much memory.
const MAX_FIELD: u32 = 4096;
/// The limit for the offset of a counter's value, in bytes.
const MAX_OFFSET: u32 = 16 * MAX_FIELD;
/// The mask of the type in a descriptor's flags: 0 is a counter that only grows, 1 a current value, 2 a peak. Higher
/// types are histograms.
const TYPE: u32 = 0xf;
/// The last type that is not a histogram.
const PEAK: u32 = 2;

/// KVM's own counters, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvmCounters(BTreeMap<String, u64>);

impl KvmCounters {
    /// The counter of this name, if this kernel has it.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// The number of times that the processor left the guest, including exits that the kernel handled itself.
    pub fn exits(&self) -> Option<u64> {
        self.get("exits")
    }

    /// All counters, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// Adds the counters of another vCPU.
    pub(crate) fn absorb(&mut self, other: &Self) {
        for (name, value) in &other.0 {
            let sum = self.0.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*value);
        }
    }
}

/// Reads KVM's own counters of a VM or vCPU, without histograms.
///
/// # Errors
/// The kernel has no counters, or does not show them.
pub(crate) fn kvm_counters(fd: &impl AsRawFd) -> io::Result<KvmCounters> {
    let stats = kvm_stats(fd)?;
    let mut header = [0; size_of::<kvm_stats_header>()];
    stats.read_exact_at(&mut header, 0)?;
    let field = |at: usize| word(&header, at);
    let (name_size, count, descriptors, data) = (field(4), field(8), field(16), field(20));
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "the header of KVM's counters is invalid");
    if name_size > MAX_FIELD || count > MAX_FIELD {
        return Err(invalid());
    }
    let size = DESCRIPTOR.saturating_add(name_size as usize);
    let mut table = vec![0; size.saturating_mul(count as usize)];
    stats.read_exact_at(&mut table, descriptors.into())?;
    let mut counters = Vec::new();
    for descriptor in table.chunks_exact(size) {
        let (fixed, name) = descriptor.split_at(DESCRIPTOR);
        // Only counters with a single value.
        if word(fixed, 0) & TYPE <= PEAK && word(fixed, 4) >> 16 == 1 {
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            counters.push((String::from_utf8_lossy(name).into_owned(), word(fixed, 8)));
        }
    }
    let end = counters.iter().map(|(_, offset)| *offset).max().unwrap_or(0);
    if end > MAX_OFFSET {
        return Err(invalid());
    }
    let mut values = vec![0; end as usize + 8];
    stats.read_exact_at(&mut values, data.into())?;
    let value = |offset: u32| {
        let bytes = values.get(offset as usize..)?.first_chunk()?;
        Some(u64::from_ne_bytes(*bytes))
    };
    Ok(KvmCounters(counters.into_iter().filter_map(|(name, offset)| Some((name, value(offset)?))).collect()))
}

/// The 32-bit word at offset `at`, in native byte order; 0 past the end.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// KVM_GET_STATS_FD, `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;

/// Opens the file with the counters of a VM or vCPU.
fn kvm_stats(fd: &impl AsRawFd) -> io::Result<File> {
    // SAFETY: the call takes no argument and makes a new file descriptor.
    let stats = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_GET_STATS_FD) };
    if stats < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(stats) })
}
