//! The CPUID leaves of a guest: what KVM supports, with this VMM's signature, the vCPU's number, and the user's
//! overrides.
//!
//! [`for_vcpu`] is a pure function. Its result goes to KVM_SET_CPUID2 before the vCPU runs, because with KVM the CPUID
//! instruction itself never exits to this program.
//!
//! Intel SDM volume 2, "CPUID". By convention the leaves of a hypervisor begin at 0x4000_0000 (Linux
//! `Documentation/virt/kvm/x86/cpuid.rst`).

mod overrides;

use crate::x86::registers::CpuidEntry;

pub use overrides::{CpuidOverride, Register};

/// The leaf with the hypervisor's signature.
pub const HYPERVISOR: u32 = 0x4000_0000;
/// This VMM's signature: EBX, ECX and EDX of leaf 0x4000_0000.
pub const SIGNATURE: &[u8; 12] = b"vmm-rust-kvm";
/// The signature as the values of EBX, ECX and EDX.
const SIGNATURE_WORDS: [u32; 3] = {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *SIGNATURE;
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]), u32::from_le_bytes([i, j, k, l])]
};
/// The first of KVM's own leaves, moved up to make room for ours. A guest that searches for them, as Linux does, still
/// finds them.
const KVM_LEAVES: u32 = 0x4000_0100;

/// The leaf with the sizes of addresses: EAX bits 7 to 0 are the number of bits of a physical address.
pub(crate) const ADDRESS_SIZES: u32 = 0x8000_0008;

/// A leaf of this host's processor that all x86-64 processors have. `None` unless it is one.
pub(crate) fn host_leaf(function: u32) -> Option<CpuidEntry> {
    #[cfg(target_arch = "x86_64")]
    let leaf = {
        let leaf = core::arch::x86_64::__cpuid(function);
        let (eax, ebx, ecx, edx) = (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx);
        Some(CpuidEntry { function, eax, ebx, ecx, edx, ..Default::default() })
    };
    #[cfg(not(target_arch = "x86_64"))]
    let leaf = {
        let _ = function;
        None
    };
    leaf
}

/// The number of bits of a guest physical address, from [`ADDRESS_SIZES`]. If it is not known, the largest number that any
/// processor has.
pub(crate) fn physical_bits(sizes: Option<&CpuidEntry>) -> u32 {
    const MOST: u32 = 52;
    sizes.map(|leaf| leaf.eax & 0xff).filter(|bits| (1..MOST).contains(bits)).unwrap_or(MOST)
}

/// The name of the processor's vendor, from EBX, EDX and ECX of leaf 0.
pub(crate) fn vendor(leaf: &CpuidEntry) -> [u8; 12] {
    let mut name = [0; 12];
    let words = [leaf.ebx, leaf.edx, leaf.ecx];
    name.iter_mut().zip(words.into_iter().flat_map(u32::to_le_bytes)).for_each(|(to, from)| *to = from);
    name
}

/// Leaf 1, ECX: a hypervisor is present.
const HYPERVISOR_PRESENT: u32 = 1 << 31;
/// Leaf 1, ECX: the local APIC's timer supports deadlines of the time-stamp counter. KVM supports it, but does not list
/// it (`Documentation/virt/kvm/api.rst`, KVM_GET_SUPPORTED_CPUID).
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, EDX: EBX holds the number of logical processors.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: the logical processors are cores.
const CMP_LEGACY: u32 = 1 << 1;

/// The properties of a vCPU that CPUID shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidContext {
    /// The vCPU's number, which is also its APIC id.
    pub id: u32,
    /// The number of vCPUs. Each is a core of the only package.
    pub count: u32,
    /// Shows the TSC-deadline timer. Requires KVM's local APIC, with that timer.
    pub tsc_deadline: bool,
}

impl CpuidContext {
    /// The number of bits in a core's number.
    fn core_bits(self) -> u32 {
        self.count.max(1).next_power_of_two().trailing_zeros()
    }

    /// The largest number that a core can have.
    fn last_core(self) -> u32 {
        (1u32 << self.core_bits().min(31)).saturating_sub(1)
    }

    /// The extended topology, leaves 0xB and 0x1F: one thread per core, and the cores of the package.
    fn topology(self, leaf: u32) -> [CpuidEntry; 3] {
        let levels = [(0, 1, 1), (self.core_bits(), self.count, 2), (0, 0, 0)];
        let mut index = 0;
        levels.map(|(eax, ebx, kind)| {
            let entry = CpuidEntry {
                function: leaf,
                index,
                flags: CpuidEntry::HAS_INDEX,
                eax,
                ebx,
                ecx: kind << 8 | index,
                edx: self.id,
            };
            index = index.saturating_add(1);
            entry
        })
    }

    /// Sets the sharing bits in EAX of a cache's leaf, by the cache's level in the same register: a core has its own
    /// caches of levels 1 and 2, and the package shares level 3.
    fn sharing(self, eax: u32) -> u32 {
        let shared = if eax >> 5 & 7 >= 3 { self.last_core() } else { 0 };
        eax & !(0xfff << 14) | shared << 14
    }

    /// Adapts a leaf of KVM to this vCPU. Some bits are defined on AMD processors only.
    fn adapt(self, mut entry: CpuidEntry, is_amd: bool) -> CpuidEntry {
        let several = self.count > 1;
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0x0000_ffff | (self.count.min(0xff) << 16) | (self.id & 0xff) << 24;
                entry.ecx |= HYPERVISOR_PRESENT | if self.tsc_deadline { TSC_DEADLINE } else { 0 };
                entry.edx = entry.edx & !HTT | if several { HTT } else { 0 };
            }
            4 if entry.eax & 0x1f != 0 => {
                entry.eax = self.sharing(entry.eax) & !(0x3f << 26) | self.last_core().min(0x3f) << 26;
            }
            0x8000_001d if entry.eax & 0x1f != 0 => entry.eax = self.sharing(entry.eax),
            // These bits are reserved on other vendors' processors.
            0x8000_0001 if is_amd => {
                entry.ecx = entry.ecx & !CMP_LEGACY | if several { CMP_LEGACY } else { 0 };
            }
            0x8000_0008 if is_amd => {
                let cores = self.count.saturating_sub(1).min(0xff);
                entry.ecx = entry.ecx & !0xf0ff | cores | self.core_bits() << 12;
            }
            // Leaf of AMD only: the APIC id, the core with its one thread, and the only node.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (self.id, self.id & 0xff, 0),
            HYPERVISOR..KVM_LEAVES => {
                entry.function = entry.function.saturating_add(KVM_LEAVES - HYPERVISOR);
                if entry.function == KVM_LEAVES && entry.eax >= HYPERVISOR {
                    entry.eax = entry.eax.saturating_add(KVM_LEAVES - HYPERVISOR);
                }
            }
            _ => {}
        }
        entry
    }
}

/// The leaves that a vCPU sees, from those that KVM supports. The user's overrides apply last.
pub fn for_vcpu(supported: &[CpuidEntry], vcpu: CpuidContext, changes: &[CpuidOverride]) -> Vec<CpuidEntry> {
    let [ebx, ecx, edx] = SIGNATURE_WORDS;
    let signature = CpuidEntry { function: HYPERVISOR, eax: HYPERVISOR, ebx, ecx, edx, ..Default::default() };
    let mut entries = vec![signature];
    let vendor = supported.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.ebx);
    // The first word of AuthenticAMD and of HygonGenuine.
    let is_amd = [u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"Hygo")].contains(&vendor);
    for &entry in supported {
        match entry.function {
            // All levels at once, instead of the host's.
            0xb | 0x1f if entry.index == 0 => entries.extend(vcpu.topology(entry.function)),
            0xb | 0x1f => {}
            _ => entries.push(vcpu.adapt(entry, is_amd)),
        }
    }
    changes.iter().for_each(|change| change.apply(&mut entries));
    entries
}

#[cfg(test)]
mod tests;
