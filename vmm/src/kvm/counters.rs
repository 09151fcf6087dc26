//! KVM's own counters, by name (`Documentation/virt/kvm/api.rst`, section 4.133).
#![allow(unsafe_code)]

use crate::host::sort_by_key;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// Size of `struct kvm_stats_header`, in bytes.
const HEADER: usize = 24;
/// Size of a counter's descriptor without its name, in bytes.
const DESCRIPTOR: usize = 16;
/// The limit for the number of counters and the length of a name. Real kernels stay far below. A header with larger
/// values is refused, so that it cannot make this program allocate much memory.
const MAX_FIELD: u32 = 4096;
/// The limit for the offset of a counter's value, in bytes.
const MAX_OFFSET: usize = 16 * MAX_FIELD as usize;
/// The mask of the type in a descriptor's flags: 0 is a counter that only grows, 1 a current value, 2 a peak. Higher
/// types are histograms.
const TYPE: u32 = 0xf;
/// The last type that is not a histogram.
const PEAK: u32 = 2;

/// KVM's own counters, by name.
///
/// They stay in KVM's own format until they are asked for, because most runs ask for one of about fifty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvmCounters {
    /// The descriptors, each of `descriptor_size` bytes: 16 bytes of `struct kvm_stats_desc`, and the name.
    descriptors: Vec<u8>,
    descriptor_size: usize,
    /// The block of values.
    values: Vec<u8>,
}

impl KvmCounters {
    /// The counter of this name, if this kernel has it.
    pub fn get(&self, name: &str) -> Option<u64> {
        let offset = self.offset_of(name)?;
        self.value(offset)
    }

    /// The number of times that the processor left the guest, including exits that the kernel handled itself.
    pub fn exits(&self) -> Option<u64> {
        self.get("exits")
    }

    /// All counters, sorted by name.
    pub fn iter<'a>(&'a self) -> impl Iterator<Item = (&'a str, u64)> {
        let named = |(field, offset): (&'a [u8], usize)| {
            let name = field.split(|byte| *byte == 0).next()?;
            Some((str::from_utf8(name).ok()?, self.value(offset)?))
        };
        let mut counters: Vec<_> = self.fields().filter_map(named).collect();
        sort_by_key(&mut counters, |counter| *counter);
        counters.into_iter()
    }

    /// Adds the counters of another vCPU. Both have the same descriptors, because they are from the same kernel.
    pub fn absorb(&mut self, other: &Self) {
        let offsets: Vec<_> = self.fields().map(|(_, offset)| offset).collect();
        for offset in offsets {
            let sum = self.value(offset).unwrap_or(0).saturating_add(other.value(offset).unwrap_or(0));
            if let Some(bytes) = self.values.get_mut(offset..).and_then(|rest| rest.first_chunk_mut()) {
                *bytes = sum.to_ne_bytes();
            }
        }
    }

    /// Reads the counters from the file that KVM_GET_STATS_FD has opened for a VM or vCPU, without histograms.
    ///
    /// # Errors
    /// The file cannot be read, or it is not such a file.
    pub fn read(stats: &File) -> io::Result<Self> {
        let mut header = [0; HEADER];
        stats.read_exact_at(&mut header, 0)?;
        let field = |at: usize| word(&header, at);
        let (name_size, count, descriptors, data) = (field(4), field(8), field(16), field(20));
        let invalid =
            || io::Error::new(io::ErrorKind::InvalidData, "the header of KVM's counters is invalid");
        if name_size > MAX_FIELD || count > MAX_FIELD {
            return Err(invalid());
        }
        let descriptor_size = DESCRIPTOR.saturating_add(name_size as usize);
        let table = vec![0; descriptor_size.saturating_mul(count as usize)];
        let mut counters = Self { descriptors: table, descriptor_size, values: Vec::new() };
        stats.read_exact_at(&mut counters.descriptors, descriptors.into())?;
        let end = counters.fields().map(|(_, offset)| offset).max().unwrap_or(0);
        if end > MAX_OFFSET {
            return Err(invalid());
        }
        counters.values = vec![0; end + size_of::<u64>()];
        stats.read_exact_at(&mut counters.values, data.into())?;
        Ok(counters)
    }

    /// The offset of the counter of this name in the block of values.
    fn offset_of(&self, name: &str) -> Option<usize> {
        let is_named = |field: &[u8]| {
            let rest = field.strip_prefix(name.as_bytes());
            rest.is_some_and(|rest| rest.first().is_none_or(|byte| *byte == 0))
        };
        self.fields().find(|(field, _)| is_named(field)).map(|(_, offset)| offset)
    }

    /// The name, filled up with zeroes, and the offset of each counter that has a single value.
    fn fields(&self) -> impl Iterator<Item = (&[u8], usize)> {
        self.descriptors.chunks_exact(self.descriptor_size.max(1)).filter_map(|descriptor| {
            let (fixed, name) = descriptor.split_at_checked(DESCRIPTOR)?;
            let is_single = word(fixed, 0) & TYPE <= PEAK && word(fixed, 4) >> 16 == 1;
            is_single.then_some((name, word(fixed, 8) as usize))
        })
    }

    /// The value at an offset of the block; `None` past its end.
    fn value(&self, offset: usize) -> Option<u64> {
        self.values.get(offset..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
    }
}

/// One of KVM's own counters of a vCPU, which is read again and again.
#[derive(Debug)]
pub(crate) struct OneCounter {
    stats: File,
    /// Its offset in the file.
    at: u64,
}

impl OneCounter {
    /// Opens a counter of a vCPU. `None` if the kernel does not have it.
    ///
    /// # Errors
    /// The kernel has no counters, or does not show them.
    pub(crate) fn open(fd: &impl AsRawFd, name: &str) -> io::Result<Option<Self>> {
        let stats = kvm_stats(fd)?;
        let Some(offset) = KvmCounters::read(&stats)?.offset_of(name) else { return Ok(None) };
        let mut header = [0; HEADER];
        stats.read_exact_at(&mut header, 0)?;
        Ok(Some(Self { stats, at: u64::from(word(&header, 20)).saturating_add(offset as u64) }))
    }

    /// The value of the counter.
    ///
    /// # Errors
    /// The host failed.
    pub(crate) fn read(&self) -> io::Result<u64> {
        let mut value = [0; size_of::<u64>()];
        self.stats.read_exact_at(&mut value, self.at)?;
        Ok(u64::from_ne_bytes(value))
    }
}

/// Reads KVM's own counters of a VM or vCPU, without histograms.
///
/// # Errors
/// The kernel has no counters, or does not show them.
pub(crate) fn kvm_counters(fd: &impl AsRawFd) -> io::Result<KvmCounters> {
    KvmCounters::read(&kvm_stats(fd)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Counters of two kinds and a histogram, with names of 8 bytes.
    fn counters(values: &[u64]) -> KvmCounters {
        let mut descriptors = Vec::new();
        for (flags, sizes, offset, name) in
            [(0u32, 1u32, 8u32, b"exits\0xx"), (4, 2, 0, b"histo\0\0\0"), (1, 1, 0, b"a_fault\0")]
        {
            let words = [flags, sizes << 16, offset, 0];
            descriptors.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
            descriptors.extend(name);
        }
        let values = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        KvmCounters { descriptors, descriptor_size: DESCRIPTOR + 8, values }
    }

    #[test]
    fn counters_have_names_and_are_sorted() {
        let counters = counters(&[3, 7]);
        assert_eq!((counters.exits(), counters.get("a_fault")), (Some(7), Some(3)));
        assert_eq!(
            (counters.get("histo"), counters.get("exit"), counters.get("exitsxx")),
            (None, None, None)
        );
        assert_eq!(counters.iter().collect::<Vec<_>>(), [("a_fault", 3), ("exits", 7)]);
        assert_eq!(KvmCounters::default().iter().count(), 0);
    }

    #[test]
    fn the_counters_of_vcpus_add_up() {
        let mut sum = counters(&[3, 7]);
        sum.absorb(&counters(&[u64::MAX, 5]));
        assert_eq!(sum, counters(&[u64::MAX, 12]));
        // A value past the end of the block counts as missing.
        let mut short = counters(&[3]);
        short.absorb(&counters(&[1, 1]));
        assert_eq!((short.get("a_fault"), short.exits()), (Some(4), None));
    }
}
