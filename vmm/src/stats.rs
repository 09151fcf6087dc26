//! KVM's own counters, by name (`Documentation/virt/kvm/api.rst`, section 4.133).

use crate::sys;
use kvm_bindings::kvm_stats_header;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Size of a counter's descriptor without its name, in bytes.
const DESCRIPTOR: usize = 16;
/// No kernel has more counters, or longer names, than this: what a file says beyond it is not believed.
const SANE: u32 = 4096;

/// The value of KVM's own counter `name` of a VM or vCPU; `None` where this kernel has no such counter.
///
/// # Errors
/// The kernel has no counters, or does not show them.
pub(crate) fn kvm_counter(fd: &impl AsRawFd, name: &str) -> io::Result<Option<u64>> {
    let stats = sys::kvm_stats(fd)?;
    let mut header = [0; size_of::<kvm_stats_header>()];
    stats.read_exact_at(&mut header, 0)?;
    let field = |at: usize| word(&header, at);
    let (name_size, count, descriptors, data) = (field(4), field(8), field(16), field(20));
    if name_size > SANE || count > SANE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's counters have no sane header"));
    }
    let mut descriptor = vec![0; DESCRIPTOR + name_size as usize];
    for place in (u64::from(descriptors)..).step_by(descriptor.len()).take(count as usize) {
        stats.read_exact_at(&mut descriptor, place)?;
        let (fixed, text) = descriptor.split_at(DESCRIPTOR);
        if text.split(|&byte| byte == 0).next() == Some(name.as_bytes()) {
            let mut value = [0; 8];
            stats.read_exact_at(&mut value, u64::from(data) + u64::from(word(fixed, 8)))?;
            return Ok(Some(u64::from_ne_bytes(value)));
        }
    }
    Ok(None)
}

/// The native word at `at`; zero past the end.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}
