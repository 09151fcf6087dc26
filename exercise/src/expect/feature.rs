//! Features of the processor and of KVM that may not be used.

use super::Check;
use crate::facts::Facts;
use vmm::exit::Reason;
use vmm::x86::Mode;

/// The features of a guest that show in its exits.
const OF_GUESTS: [(&str, Sign); 8] = [
    ("port-io", Sign::Exit(&[Reason::PioIn, Reason::PioOut])),
    ("mmio", Sign::Exit(&[Reason::MmioRead, Reason::MmioWrite])),
    ("hypercall", Sign::Exit(&[Reason::Hypercall])),
    ("msr", Sign::Exit(&[Reason::RdMsr, Reason::WrMsr])),
    ("real-mode", Sign::Mode(Mode::Real)),
    ("protected-mode", Sign::Mode(Mode::Protected)),
    ("long-mode", Sign::Mode(Mode::Long)),
    ("user-mode", Sign::Mode(Mode::User)),
];

/// The features of KVM, the requests that use them, and the capability that KVM_ENABLE_CAP enables for them.
const OF_VMMS: [(&str, &[u32], Option<u32>); 13] = [
    ("irqchip", &[0xae60], None),
    ("split-irqchip", &[], Some(121)),
    ("pit", &[0xae64, 0x4040_ae77], None),
    ("ioeventfd", &[0x4040_ae79], None),
    ("irqfd", &[0x4020_ae76], None),
    ("coalesced-io", &[0x4010_ae67], None),
    ("cpuid", &[0x4008_ae8a, 0x4008_ae90], None),
    ("msrs", &[0x4008_ae89], None),
    ("msr-filter", &[0x4188_aec6], None),
    ("user-space-msr", &[], Some(188)),
    ("guest-debug", &[0x4048_ae9b], None),
    ("device", &[0xc00c_aee0], None),
    ("guest-memfd", &[0xc040_aed4], None),
];

/// KVM_ENABLE_CAP.
const ENABLE_CAP: u32 = 0x4068_aea3;

/// A sign that a guest has used a feature.
#[derive(Clone, Copy, Debug)]
enum Sign {
    /// An exit for one of these reasons.
    Exit(&'static [Reason]),
    /// An exit in this mode.
    Mode(Mode),
}

/// A feature that may not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forbidden {
    name: &'static str,
    is_of_vmm: bool,
}

/// The feature of KVM that a successful call uses: its request, and its structure.
pub fn kvm_feature(request: u32, data: &[u8]) -> Option<&'static str> {
    let cap = data.first_chunk().map(|cap| u32::from_le_bytes(*cap)).filter(|_| request == ENABLE_CAP);
    let uses = |(_, requests, enabled): &&(&str, &[u32], Option<u32>)| {
        requests.contains(&request) || (cap.is_some() && *enabled == cap)
    };
    OF_VMMS.iter().find(uses).map(|(name, ..)| *name)
}

impl Forbidden {
    /// The feature with this name, of a guest or of a VMM.
    ///
    /// # Errors
    /// There is none.
    pub fn parse(name: &str, is_of_vmm: bool) -> Result<Self, String> {
        let names: Vec<&'static str> = match is_of_vmm {
            true => OF_VMMS.iter().map(|(name, ..)| *name).collect(),
            false => OF_GUESTS.iter().map(|(name, _)| *name).collect(),
        };
        if let Some(name) = names.iter().copied().find(|known| *known == name) {
            return Ok(Self { name, is_of_vmm });
        }
        let who = if is_of_vmm { "VMM" } else { "guest" };
        let why = match name {
            "cpuid" => "the processor and KVM answer CPUID without an exit; ",
            _ => "",
        };
        Err(format!("there is no such feature of a {who}: {why}the features are {}", names.join(", ")))
    }

    /// True if the modes of the exits must be recorded.
    pub(super) fn needs_modes(self) -> bool {
        matches!(self.sign(), Some(Sign::Mode(_)))
    }

    fn sign(self) -> Option<Sign> {
        let sign = OF_GUESTS.iter().find(|(name, _)| *name == self.name).map(|(_, sign)| *sign);
        sign.filter(|_| !self.is_of_vmm)
    }

    /// True if the feature was used; `None` if this is not known.
    fn is_used(self, facts: &Facts) -> Option<bool> {
        match self.sign() {
            Some(Sign::Exit(reasons)) => {
                let exits = facts.exits.as_ref()?;
                Some(exits.iter().any(|one| reasons.contains(&one.site.reason)))
            }
            Some(Sign::Mode(mode)) => Some(facts.modes.as_ref()?.contains(&mode)),
            None => Some(facts.features.as_ref()?.contains(&self.name)),
        }
    }

    pub(super) fn check(self, facts: &Facts) -> Check {
        let used = self.is_used(facts);
        Check {
            passed: used == Some(false),
            subject: self.name.into(),
            expected: "may not be used".into(),
            seen: match used {
                Some(true) => "was used".into(),
                Some(false) => "was not used".into(),
                None => "it is not known if it was".into(),
            },
            possible: true,
        }
    }
}
