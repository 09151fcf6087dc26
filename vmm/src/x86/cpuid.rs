//! What CPUID shows a guest: what KVM supports, with this VMM's signature, the vCPU's number, and changes of
//! the user's. A pure function; the result goes to KVM_SET_CPUID2 before the vCPU runs, since on KVM the
//! instruction itself never exits.
//!
//! Intel SDM volume 2, "CPUID"; the hypervisor's leaves are at 0x4000_0000 by custom
//! (Linux `Documentation/virt/kvm/x86/cpuid.rst`).

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use std::str::FromStr;

/// The leaf with the hypervisor's signature.
pub const HYPERVISOR: u32 = 0x4000_0000;
/// This VMM's signature: EBX, ECX and EDX of that leaf.
pub const SIGNATURE: &[u8; 12] = b"vmm-rust-kvm";
/// Where KVM's own leaves go, so that a guest that looks for them, as Linux does, still finds them.
const KVM_LEAVES: u32 = 0x4000_0100;

/// The vendor's name that this host's processor gives, as in EBX, EDX and ECX of leaf 0.
pub fn host_vendor() -> [u8; 12] {
    let leaf = core::arch::x86_64::__cpuid(0);
    let mut name = [0; 12];
    let words = [leaf.ebx, leaf.edx, leaf.ecx];
    name.iter_mut().zip(words.into_iter().flat_map(u32::to_le_bytes)).for_each(|(to, from)| *to = from);
    name
}

/// Leaf 1, ECX: a hypervisor is there.
const HYPERVISOR_PRESENT: u32 = 1 << 31;
/// Leaf 1, ECX: the local APIC's timer takes a deadline of the time stamp counter. KVM has it, but does not list it
/// (`Documentation/virt/kvm/api.rst`, KVM_GET_SUPPORTED_CPUID).
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, EDX: EBX says how many logical processors there are.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: those are cores.
const CMP_LEGACY: u32 = 1 << 1;

/// A register that CPUID answers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// A change to what CPUID shows: some bits of a register of a leaf.
///
/// As text: `LEAF[.SUBLEAF].REGISTER[.BIT[-BIT]]=VALUE`, such as `1.ecx.24=1`, `7.0.ebx=0` or
/// `1.ebx.31-24=0xba`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidOverride {
    /// EAX of the question.
    pub leaf: u32,
    /// ECX of the question; `None` where the leaf has no subleaves, or for the first.
    pub subleaf: Option<u32>,
    /// The register that changes.
    pub register: Register,
    /// The lowest bit that changes.
    pub low: u8,
    /// The highest bit that changes.
    pub high: u8,
    /// What the bits become.
    pub value: u32,
}

impl CpuidOverride {
    fn mask(&self) -> u32 {
        let upper = u32::MAX.checked_shr(31u32.saturating_sub(self.high.into())).unwrap_or(0);
        upper & u32::MAX.checked_shl(self.low.into()).unwrap_or(0)
    }

    fn apply(&self, entries: &mut Vec<kvm_cpuid_entry2>) {
        let wanted = self.subleaf.unwrap_or(0);
        let place = entries.iter().position(|entry| {
            let by_index = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
            entry.function == self.leaf && (!by_index || entry.index == wanted)
        });
        let place = place.unwrap_or_else(|| {
            let flags = if self.subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            entries.push(kvm_cpuid_entry2 {
                function: self.leaf,
                index: wanted,
                flags,
                ..Default::default()
            });
            entries.len().saturating_sub(1)
        });
        let Some(entry) = entries.get_mut(place) else { return };
        let register = match self.register {
            Register::Eax => &mut entry.eax,
            Register::Ebx => &mut entry.ebx,
            Register::Ecx => &mut entry.ecx,
            Register::Edx => &mut entry.edx,
        };
        let value = self.value.checked_shl(self.low.into()).unwrap_or(0);
        *register = *register & !self.mask() | value & self.mask();
    }
}

impl FromStr for CpuidOverride {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || {
            format!(
                "{text:?} is no change of CPUID: give LEAF.REGISTER.BIT=VALUE, such as 1.ecx.24=1, 7.0.ebx=0 or \
                 1.ebx.31-24=0xba"
            )
        };
        let (place, value) = text.split_once('=').ok_or_else(wanted)?;
        let mut parts = place.split('.');
        let leaf = parts.next().and_then(number).ok_or_else(wanted)?;
        let mut part = parts.next().ok_or_else(wanted)?;
        let subleaf = number(part);
        if subleaf.is_some() {
            part = parts.next().ok_or_else(wanted)?;
        }
        let register = match part.to_ascii_lowercase().as_str() {
            "eax" => Register::Eax,
            "ebx" => Register::Ebx,
            "ecx" => Register::Ecx,
            "edx" => Register::Edx,
            _ => return Err(wanted()),
        };
        let (high, low) = match parts.next() {
            None => (31, 0),
            Some(bits) => {
                let (high, low) = bits.split_once('-').unwrap_or((bits, bits));
                let bit = |text: &str| text.parse::<u8>().ok().filter(|bit| *bit < 32);
                let (high, low) = bit(high).zip(bit(low)).ok_or_else(wanted)?;
                (high.max(low), high.min(low))
            }
        };
        let value = number(value).filter(|_| parts.next().is_none()).ok_or_else(wanted)?;
        let change = Self { leaf, subleaf, register, low, high, value };
        if value > change.mask() >> low {
            return Err(format!(
                "{text:?}: {value:#x} does not fit into the bits {high} to {low}: give less"
            ));
        }
        Ok(change)
    }
}

/// A number in decimal, or in hexadecimal after 0x.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => u32::from_str_radix(hex, 16).ok(),
        None if text.starts_with(|c: char| c.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

/// A vCPU, as CPUID tells it of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidContext {
    /// Its number, which is also its APIC id.
    pub id: u32,
    /// How many there are, each a core of the one package.
    pub count: u32,
    /// Whether it has a local APIC of the kernel's, with a timer that takes deadlines.
    pub tsc_deadline: bool,
}

impl CpuidContext {
    /// How many bits the number of a core has.
    fn core_bits(self) -> u32 {
        self.count.max(1).next_power_of_two().trailing_zeros()
    }

    /// The largest number of a core.
    fn last_core(self) -> u32 {
        (1u32 << self.core_bits().min(31)).saturating_sub(1)
    }

    /// The extended topology, leaves 0xB and 0x1F: a thread for each core, and the cores of the package.
    fn topology(self, leaf: u32) -> [kvm_cpuid_entry2; 3] {
        let levels = [(0, 1, 1), (self.core_bits(), self.count, 2), (0, 0, 0)];
        let mut index = 0;
        levels.map(|(eax, ebx, kind)| {
            let entry = kvm_cpuid_entry2 {
                function: leaf,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax,
                ebx,
                ecx: kind << 8 | index,
                edx: self.id,
                ..Default::default()
            };
            index = index.saturating_add(1);
            entry
        })
    }

    /// Who shares a cache, where EAX of its leaf has the cache's level: the first two are a core's own, the third is the
    /// package's.
    fn sharing(self, eax: u32) -> u32 {
        let shared = if eax >> 5 & 7 >= 3 { self.last_core() } else { 0 };
        eax & !(0xfff << 14) | shared << 14
    }

    /// A leaf of KVM's, as this vCPU sees it, on a processor of AMD's or of another vendor.
    fn adapt(self, mut entry: kvm_cpuid_entry2, is_amd: bool) -> kvm_cpuid_entry2 {
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
            // Reserved bits elsewhere.
            0x8000_0001 if is_amd => {
                entry.ecx = entry.ecx & !CMP_LEGACY | if several { CMP_LEGACY } else { 0 };
            }
            0x8000_0008 if is_amd => {
                let cores = self.count.saturating_sub(1).min(0xff);
                entry.ecx = entry.ecx & !0xf0ff | cores | self.core_bits() << 12;
            }
            // AMD's own: the number, the core with one thread, the one node.
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

/// What a vCPU sees, where KVM supports `supported`, with the user's changes last.
pub fn for_vcpu(
    supported: &[kvm_cpuid_entry2],
    vcpu: CpuidContext,
    changes: &[CpuidOverride],
) -> Vec<kvm_cpuid_entry2> {
    let word = |at: usize| {
        SIGNATURE.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    let mut entries = vec![kvm_cpuid_entry2 {
        function: HYPERVISOR,
        eax: HYPERVISOR,
        ebx: word(0),
        ecx: word(4),
        edx: word(8),
        ..Default::default()
    }];
    let vendor = supported.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.ebx);
    // "Auth" and "Hygo", of AuthenticAMD and HygonGenuine.
    let is_amd = [u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"Hygo")].contains(&vendor);
    for &entry in supported {
        match entry.function {
            // All levels at once, in the place of the host's.
            0xb | 0x1f if entry.index == 0 => entries.extend(vcpu.topology(entry.function)),
            0xb | 0x1f => {}
            _ => entries.push(vcpu.adapt(entry, is_amd)),
        }
    }
    changes.iter().for_each(|change| change.apply(&mut entries));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn supported() -> Vec<kvm_cpuid_entry2> {
        let leaf = |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        let mut seven = leaf(7, 0, 0xff, 0, 0);
        seven.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        vec![
            leaf(0, 0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
            leaf(1, 0x1234, 0x0102_0304, 1, 2),
            seven,
            leaf(0xb, 0, 0, 0, 99),
            leaf(HYPERVISOR, 0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d),
            leaf(HYPERVISOR + 1, 0x0100_7efb, 0, 0, 0),
        ]
    }

    const ALONE: CpuidContext = CpuidContext { id: 0, count: 1, tsc_deadline: false };

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|entry| entry.function == function).unwrap()
    }

    #[test]
    fn a_vcpu_finds_its_number_and_the_vendor_stays() {
        let seen = for_vcpu(&supported(), CpuidContext { id: 0xba, count: 4, tsc_deadline: false }, &[]);
        assert_eq!(leaf(&seen, 0), supported()[0]);
        assert_eq!(leaf(&seen, 1).ebx, 0xba04_0304);
        assert_eq!(leaf(&seen, 1).ecx, 0x8000_0001);
        assert_eq!(leaf(&seen, 0xb).edx, 0xba);
    }

    #[test]
    fn each_vcpu_is_a_core_of_one_package() {
        let mut supported = supported();
        let index = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        let cache = |n, level: u32| kvm_cpuid_entry2 {
            function: 4,
            index: n,
            flags: index,
            eax: 0xfc00_c001 | level << 5,
            ..Default::default()
        };
        let leaf_of = |function| kvm_cpuid_entry2 {
            function,
            eax: 9,
            ebx: 0x909,
            ecx: 0xffff_ffff,
            ..Default::default()
        };
        supported.extend([cache(0, 1), cache(1, 3)]);
        supported.push(kvm_cpuid_entry2 { function: 0x8000_001d, ..cache(0, 2) });
        supported.extend([0x8000_0001, 0x8000_0008, 0x8000_001e].map(leaf_of));
        let seen = for_vcpu(&supported, CpuidContext { id: 2, count: 3, tsc_deadline: true }, &[]);
        assert_eq!(leaf(&seen, 1).ecx & TSC_DEADLINE, TSC_DEADLINE);
        assert_eq!(leaf(&seen, 1).edx & HTT, HTT);
        let levels: Vec<_> = seen.iter().filter(|entry| entry.function == 0xb).collect();
        let shown: Vec<_> =
            levels.iter().map(|level| (level.index, level.eax, level.ebx, level.ecx)).collect();
        assert_eq!(shown, [(0, 0, 1, 0x100), (1, 2, 3, 0x201), (2, 0, 0, 2)]);
        assert!(levels.iter().all(|level| level.edx == 2));
        let caches: Vec<_> = seen.iter().filter(|entry| entry.function == 4).map(|entry| entry.eax).collect();
        assert_eq!(caches, [3 << 26 | 0x21, 3 << 26 | 3 << 14 | 0x61]);
        assert_eq!(leaf(&seen, 0x8000_0008).ecx, 0xffff_2f02);
        assert_eq!(leaf(&seen, 0x8000_001d).eax, 0xfc00_0041, "the second level is a core's own");
        let amd = leaf(&seen, 0x8000_001e);
        assert_eq!((amd.eax, amd.ebx, amd.ecx), (2, 2, 0));
        let alone = for_vcpu(&supported, ALONE, &[]);
        assert_eq!((leaf(&alone, 1).edx & HTT, leaf(&alone, 1).ecx & TSC_DEADLINE), (0, 0));
        assert_eq!(leaf(&alone, 0x8000_0001).ecx & CMP_LEGACY, 0);
        supported[0].ebx = u32::from_le_bytes(*b"Genu");
        let intel = for_vcpu(&supported, CpuidContext { id: 2, count: 3, tsc_deadline: true }, &[]);
        assert_eq!([0x8000_0001, 0x8000_0008].map(|wanted| leaf(&intel, wanted).ecx), [0xffff_ffff; 2]);
    }

    #[test]
    fn the_signature_is_ours_and_kvm_s_is_further_up() {
        let seen = for_vcpu(&supported(), ALONE, &[]);
        let ours = leaf(&seen, HYPERVISOR);
        let text: Vec<u8> = [ours.ebx, ours.ecx, ours.edx].into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!((text.as_slice(), ours.eax), (SIGNATURE.as_slice(), HYPERVISOR));
        let kvm = leaf(&seen, 0x4000_0100);
        assert_eq!((kvm.eax, kvm.ebx), (0x4000_0101, 0x4b4d_564b));
        assert_eq!(leaf(&seen, 0x4000_0101).eax, 0x0100_7efb);
        assert_eq!(seen.iter().filter(|entry| entry.function == HYPERVISOR).count(), 1);
    }

    #[test]
    fn bits_registers_and_new_leaves_can_be_set() {
        let changes =
            ["1.ecx.24=1", "1.ebx.31-24=0xba", "7.0.ebx.0-3=5", "0x80000008.EAX=0x3030", "7.1.eax=1"];
        let changes = changes.map(|text| text.parse().unwrap());
        let seen = for_vcpu(&supported(), ALONE, &changes);
        assert_eq!((leaf(&seen, 1).ecx, leaf(&seen, 1).ebx), (0x8100_0001, 0xba01_0304));
        assert_eq!(leaf(&seen, 7).ebx, 0xf5);
        assert_eq!(leaf(&seen, 0x8000_0008).eax, 0x3030);
        let second = seen.iter().find(|entry| entry.function == 7 && entry.index == 1).unwrap();
        assert_eq!((second.eax, second.flags), (1, KVM_CPUID_FLAG_SIGNIFCANT_INDEX));
    }

    #[test]
    fn what_is_no_change_is_refused() {
        for text in [
            "",
            "1",
            "1.ecx",
            "ecx.1=1",
            "1.ecx.32=1",
            "1.eex.1=1",
            "1.ecx.1=",
            "1.ecx.1.2=1",
            "1.0.0.ecx=1",
            "x.ecx.1=1",
            "-1.ecx=1",
            "1.ecx.+1-2=1=1",
        ] {
            assert!(text.parse::<CpuidOverride>().is_err(), "{text}");
        }
        assert!("1.ecx.1=2".parse::<CpuidOverride>().unwrap_err().contains("does not fit"));
        assert!("1.ecx=0x100000000".parse::<CpuidOverride>().is_err());
        assert_eq!("1.ecx=4294967295".parse::<CpuidOverride>().unwrap().mask(), u32::MAX);
    }

    proptest! {
        #[test]
        fn a_change_touches_its_bits_only(low in 0u8..32, more in 0u8..32, value: u32, before: u32) {
            let high = low.saturating_add(more).min(31);
            let change = CpuidOverride { leaf: 9, subleaf: None, register: Register::Edx, low, high, value };
            let mut entries = vec![kvm_cpuid_entry2 { function: 9, edx: before, ..Default::default() }];
            change.apply(&mut entries);
            let width = u32::from(high - low) + 1;
            let mask = (((1u64 << width) - 1) << low) as u32;
            prop_assert_eq!(entries[0].edx & !mask, before & !mask);
            prop_assert_eq!(entries[0].edx & mask, (u64::from(value) << low) as u32 & mask);
        }
    }
}
