//! The number of exits: in all, at a site, or at a device.

use super::Check;
use crate::facts::{Facts, SiteExits};
use vmm::exit::{Arrival, Reason, Site};
use vmm::host::{parse_number, printable_text};

/// A limit of the number of exits.
#[derive(Clone, Debug)]
pub struct ExitLimit {
    sites: Sites,
    relation: Relation,
    number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    AtMost,
    AtLeast,
    Exactly,
}

/// The sites whose exits are added up.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sites {
    All,
    /// Exits with one of these reasons: all of them, or those with this place, and this width in bytes.
    Reasons {
        name: String,
        reasons: Vec<Reason>,
        place: Option<(u64, Option<u8>)>,
    },
    /// Exits at a device, or at one of its registers.
    Device(String),
}

/// The names of two reasons together.
const PAIRS: [(&str, [Reason; 2]); 4] = [
    ("pio", [Reason::PioIn, Reason::PioOut]),
    ("port", [Reason::PioIn, Reason::PioOut]),
    ("mmio", [Reason::MmioRead, Reason::MmioWrite]),
    ("msr", [Reason::RdMsr, Reason::WrMsr]),
];

impl ExitLimit {
    /// Parses `[SITE]RELATION NUMBER`, such as `<=40`, `HLT=1`, `PIO out 0xe9<=14`, `port 0xe9>=1` or `simvirtio=0`. The
    /// relation is `<=`, `>=` or `=`. A site is a reason, with or without a place, or a device: as in the table of exits. A
    /// place may have the width of the access in bytes: `PIO out 0xbb/4>=1`.
    ///
    /// # Errors
    /// The relation or the number is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str =
            "give [SITE]<=N, [SITE]>=N or [SITE]=N, such as <=40, HLT=1, port 0xe9<=14 or simvirtio=0";
        let at = text.find(['<', '>', '=']).ok_or(FORM)?;
        let (site, rest) = text.split_at_checked(at).ok_or(FORM)?;
        let relations =
            [("<=", Relation::AtMost), (">=", Relation::AtLeast), ("=", Relation::Exactly)].into_iter();
        let mut found = relations.filter_map(|(sign, relation)| Some((relation, rest.strip_prefix(sign)?)));
        let (relation, number) = found.next().ok_or(FORM)?;
        let number = parse_number(number.trim()).map_err(|_| FORM)?;
        Ok(Self { sites: sites(site.trim()), relation, number })
    }

    /// The site whose exits are counted, if it is one with a place and a width in bytes.
    pub fn site(&self) -> Option<(Reason, u64, u8)> {
        match &self.sites {
            Sites::Reasons { reasons, place: Some((place, Some(width))), .. } => match reasons.as_slice() {
                [reason] => Some((*reason, *place, *width)),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn check(&self, facts: &Facts) -> Check {
        let Some(exits) = &facts.exits else { return self.result(None, "were not counted".into()) };
        let here = exits.iter().filter(|site| self.sites.contains(site));
        let (mut sites, mut total) = (0u64, 0u64);
        for site in here {
            sites = sites.saturating_add(1);
            total = total.saturating_add(site.exits);
        }
        if let (Sites::Device(name), 0) = (&self.sites, sites)
            && !facts.devices.iter().any(|device| begins_with(name, device))
        {
            let devices = match facts.devices.join(", ") {
                devices if devices.is_empty() => "it has no devices".into(),
                devices => format!("its devices are: {devices}"),
            };
            let seen = format!("the machine has no such device or reason of exits; {devices}");
            return Check { possible: false, ..self.result(None, seen) };
        }
        let seen = if total == 1 { "there was 1".into() } else { format!("there were {total}") };
        let seen = seen + &self.surplus(facts).unwrap_or_default();
        self.result(Some(total), seen)
    }

    /// Describes the first exit that is one too many, if all exits were recorded.
    fn surplus(&self, facts: &Facts) -> Option<String> {
        let trace = facts.trace.filter(|trace| trace.seen() == trace.exits().len() as u64)?;
        let exits = facts.exits.as_ref().filter(|_| self.relation != Relation::AtLeast)?;
        let here: Vec<Site> =
            exits.iter().filter(|site| self.sites.contains(site)).map(|site| site.site).collect();
        let all = trace.exits().iter().filter(|(_, traced)| traced.arrival == Arrival::FromGuest);
        let sites = all.filter_map(|(_, traced)| Site::of(&traced.exit));
        let mut matching = (1u64..).zip(sites).filter(|(_, site)| here.contains(site));
        let (number, site) = matching.nth(usize::try_from(self.number).ok()?)?;
        let place = site.place.map(|(place, _)| format!(" {place:#x}")).unwrap_or_default();
        Some(format!("; the first one too many is exit {number} of the run: {}{place}", site.reason))
    }

    fn result(&self, total: Option<u64>, seen: String) -> Check {
        let passed = total.is_some_and(|total| match self.relation {
            Relation::AtMost => total <= self.number,
            Relation::AtLeast => total >= self.number,
            Relation::Exactly => total == self.number,
        });
        let place = match &self.sites {
            Sites::All => String::new(),
            Sites::Reasons { name, place: None, .. } => format!(" ({name})"),
            Sites::Reasons { name, place: Some((place, None)), .. } => format!(" ({name} {place:#x})"),
            Sites::Reasons { name, place: Some((place, Some(width))), .. } => {
                format!(" ({name} {place:#x}/{width})")
            }
            Sites::Device(name) => format!(" at {}", printable_text(name)),
        };
        let relation = match self.relation {
            Relation::AtMost => "at most",
            Relation::AtLeast => "at least",
            Relation::Exactly => "exactly",
        };
        let subject = format!("exits{place}");
        let seen = if passed { format!("are {relation} {}: {seen}", self.number) } else { seen };
        Check {
            passed,
            subject,
            expected: format!("must be {relation} {}", self.number),
            seen,
            possible: true,
        }
    }
}

/// Finds the sites that a text names.
fn sites(text: &str) -> Sites {
    if text.is_empty() {
        return Sites::All;
    }
    let of = |name: &str, place| {
        let reasons = reasons(name)?;
        Some(Sites::Reasons { name: name.into(), reasons, place })
    };
    let with_place = text.rsplit_once(' ').and_then(|(name, place)| {
        let (place, width) = match place.split_once('/') {
            Some((place, width)) => (place, Some(width.parse().ok()?)),
            None => (place, None),
        };
        of(name.trim_end(), Some((parse_number(place).ok()?, width)))
    });
    of(text, None).or(with_place).unwrap_or_else(|| Sites::Device(text.into()))
}

/// The reasons with this name.
fn reasons(name: &str) -> Option<Vec<Reason>> {
    let pair = PAIRS.iter().find(|(pair, _)| pair.eq_ignore_ascii_case(name));
    let named = || Reason::NAMED.into_iter().find(|reason| reason.to_string().eq_ignore_ascii_case(name));
    pair.map(|(_, reasons)| reasons.to_vec())
        .or_else(|| named().map(|reason| vec![reason]))
        .or_else(|| name.parse().ok().map(|reason| vec![reason]))
}

impl Sites {
    fn contains(&self, site: &SiteExits) -> bool {
        match self {
            Self::All => true,
            Self::Reasons { reasons, place, .. } => {
                let is_there = |(at, width): (u64, Option<u8>)| {
                    site.site
                        .place
                        .is_some_and(|(place, size)| place == at && width.is_none_or(|width| width == size))
                };
                reasons.contains(&site.site.reason) && place.is_none_or(is_there)
            }
            Self::Device(name) => site.device.as_deref().is_some_and(|device| begins_with(device, name)),
        }
    }
}

/// True if `text` is `name`, or has more words after it.
fn begins_with(text: &str, name: &str) -> bool {
    let (Some(start), Some(rest)) = (text.get(..name.len()), text.get(name.len()..)) else { return false };
    start.eq_ignore_ascii_case(name) && (rest.is_empty() || rest.starts_with(' '))
}
