//! Values in the structures of calls, and their text.

use vmm::x86::CpuidEntry;

/// The 4-byte number at this place.
pub(super) fn half(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

/// The 8-byte number at this place.
pub(super) fn long(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

/// A number of bytes, in the largest unit that divides it. Many KiB are shown as MiB.
pub(super) fn size(bytes: u64) -> String {
    /// The number of KiB from which on MiB are easier to read.
    const MANY: u64 = 10_000;
    if !bytes.is_multiple_of(1 << 20) && bytes.is_multiple_of(1 << 10) && bytes >> 10 >= MANY {
        return format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    }
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    match (unit, bytes) {
        (Some((shift, name)), _) => format!("{} {name}", bytes >> shift),
        (None, 1) => "1 byte".into(),
        (None, _) => format!("{bytes} bytes"),
    }
}

/// The first and the last address of a range, which may run past the end of the address space.
pub(super) fn range(start: u64, size: u64) -> String {
    match start.checked_add(size.saturating_sub(1)) {
        Some(last) => format!("{start:#x} to {last:#x}"),
        None => format!("{start:#x} to past the last address"),
    }
}

/// A list of at most `most` texts, and the number of others.
pub(super) fn list(texts: impl ExactSizeIterator<Item = String>, most: usize) -> String {
    let more = texts.len().saturating_sub(most);
    let mut all: Vec<_> = texts.take(most).collect();
    if more > 0 {
        all.push(format!("and {more} more"));
    }
    all.join(", ")
}

/// The leaves in a `kvm_cpuid2`.
pub(super) fn leaves(data: &[u8]) -> Vec<CpuidEntry> {
    const LEAF: usize = 40;
    let count = half(data, 0).unwrap_or(0) as usize;
    let entries = data.get(8..).unwrap_or_default().chunks_exact(LEAF).take(count);
    let word = |entry: &[u8], index: usize| half(entry, index.saturating_mul(4)).unwrap_or(0);
    entries
        .map(|entry| CpuidEntry {
            function: word(entry, 0),
            index: word(entry, 1),
            flags: word(entry, 2),
            eax: word(entry, 3),
            ebx: word(entry, 4),
            ecx: word(entry, 5),
            edx: word(entry, 6),
        })
        .collect()
}

/// The registers of CPUID leaves as text, such as `KVMKVMKVM`. Characters that cannot be printed become `?`.
fn letters(registers: [u32; 3]) -> String {
    let bytes = registers.into_iter().flat_map(u32::to_le_bytes).filter(|byte| *byte != 0);
    bytes.map(|byte| if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '?' }).collect()
}

/// CPUID leaves in words: their number, the largest leaf, the vendor and the hypervisor.
pub(super) fn cpuid(leaves: &[CpuidEntry]) -> String {
    let leaf = |function| leaves.iter().find(|leaf| leaf.function == function);
    let mut words = vec![match leaves.len() {
        1 => "1 leaf".into(),
        count => format!("{count} leaves"),
    }];
    match leaf(0) {
        Some(basic) => {
            words.push(format!("up to {:#x}", basic.eax));
            words.push(letters([basic.ebx, basic.edx, basic.ecx]));
        }
        None => words.push("without leaf 0".into()),
    }
    words.push(match leaf(0x4000_0000) {
        Some(leaf) => format!("hypervisor {}", letters([leaf.ebx, leaf.ecx, leaf.edx])),
        None => "no hypervisor leaf".into(),
    });
    words.join(", ")
}

/// The name of an MSR (Intel SDM volume 4, and KVM's own), or its number.
pub(super) fn msr(number: u32) -> String {
    let name = match number {
        0x10 => "TSC",
        0x1b => "APIC_BASE",
        0x3a => "FEATURE_CONTROL",
        0x3b => "TSC_ADJUST",
        0x8b => "BIOS_SIGN_ID",
        0xce => "PLATFORM_INFO",
        0xfe => "MTRRCAP",
        0x10a => "ARCH_CAPABILITIES",
        0x174 => "SYSENTER_CS",
        0x175 => "SYSENTER_ESP",
        0x176 => "SYSENTER_EIP",
        0x1a0 => "MISC_ENABLE",
        0x277 => "PAT",
        0x2ff => "MTRR_DEF_TYPE",
        0x345 => "PERF_CAPABILITIES",
        0x6e0 => "TSC_DEADLINE",
        0x4b56_4d00 => "KVM_WALL_CLOCK_NEW",
        0x4b56_4d01 => "KVM_SYSTEM_TIME_NEW",
        0xc000_0080 => "EFER",
        0xc000_0081 => "STAR",
        0xc000_0082 => "LSTAR",
        0xc000_0083 => "CSTAR",
        0xc000_0084 => "FMASK",
        0xc000_0100 => "FS_BASE",
        0xc000_0101 => "GS_BASE",
        0xc000_0102 => "KERNEL_GS_BASE",
        0xc000_0103 => "TSC_AUX",
        _ => return format!("{number:#x}"),
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (4097, "4097 bytes"),
            (0x1_0000, "64 KiB"),
            (4_193_600 << 10, "4095.3 MiB"),
            (3 << 30, "3 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(range(0x1000, 0x1000), "0x1000 to 0x1fff");
        assert_eq!(range(0x1000, u64::MAX), "0x1000 to past the last address");
        assert_eq!(list(["a", "b", "c"].map(String::from).into_iter(), 2), "a, b, and 1 more");
    }

    #[test]
    fn cpuid_is_summed_up() {
        let entry = |words: [u32; 7]| {
            let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
            bytes.resize(40, 0);
            bytes
        };
        let mut data = 2u64.to_ne_bytes().to_vec();
        data.extend(entry([0, 0, 0, 0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]));
        data.extend(entry([0x4000_0000, 0, 0, 1, 0x4b4d_564b, 0x564b_4d56, 0x4d]));
        assert_eq!(cpuid(&leaves(&data)), "2 leaves, up to 0xd, GenuineIntel, hypervisor KVMKVMKVM");
        // The program says that there are more than there are.
        data[0] = 0xff;
        assert_eq!(leaves(&data).len(), 2);
        data.truncate(60);
        data[8] = 7;
        assert_eq!(cpuid(&leaves(&data)), "1 leaf, without leaf 0, no hypervisor leaf");
        assert_eq!(letters([0x1b41, 0, 0]), "A?");
    }
}
