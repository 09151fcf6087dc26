//! A profile in a file: JSON, written by `--profile json=FILE`.
//!
//! The structs are the objects of the file, by name and in order. Times are nanoseconds, counts have 64 bits.

use crate::SavedError;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::{self, Write};
use vmm::exit::Reason;
use vmm::memory::MAX_CPUS;
use vmm::profile::{MAX_MARKS, MAX_SITES};

/// What the file says that it is.
pub const FORMAT: &str = "vmm-profile";
/// The version of the format that is written and read.
pub const VERSION: u64 = 1;
/// The most bytes that are read: a few times what the largest profile has.
pub const MAX_SIZE: u64 = 64 << 20;
/// The most sites of one vCPU: those that are told apart, and one without a place for each reason.
pub const MOST_SITES: usize = MAX_SITES + 128;
/// The most bins of one histogram: 8 for each power of two.
pub const MOST_BINS: usize = 64 * 8;
/// The most bytes of a text.
pub const MOST_TEXT: usize = 64 << 10;

/// A profile: what a run did, and where each exit of it came from and what it cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedProfile {
    /// The program that wrote it, and its version.
    pub program: String,
    /// The guest, by name or path.
    pub guest: String,
    /// How the run ended, in a line.
    pub ended: String,
    /// How long it took, from the first entry to the last exit.
    pub elapsed_ns: u64,
    /// What the times were taken with.
    pub clock: Clock,
    /// What bounds the memory of a profile.
    pub limits: Limits,
    /// What taking the profile has cost, of all vCPUs.
    pub profiling_ns: u64,
    /// When a boot got where; empty for other guests.
    pub marks: Vec<Mark>,
    /// All vCPUs added up.
    pub machine: Vcpu,
    /// Each vCPU; at least one.
    pub vcpus: Vec<Vcpu>,
}

/// The clock of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Which clock it is.
    pub source: Source,
    /// How often it ticks, in kHz.
    pub khz: u64,
    /// How often it was seen to step back, or to leap.
    pub steps: u64,
}

/// A clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The processor's time-stamp counter.
    #[default]
    Tsc,
    /// CLOCK_MONOTONIC, in nanoseconds.
    Monotonic,
}

/// What bounds the memory of a profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Sites that are told apart.
    pub sites: u64,
    /// Sites with histograms.
    pub timed_sites: u64,
    /// Significant digits of a histogram.
    pub digits: u64,
}

/// An event of a boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What happened.
    pub event: String,
    /// When, from the start of the program.
    pub at_ns: u64,
    /// Exits since the mark before.
    pub exits: u64,
}

/// The exits of one vCPU, or of all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Vcpu {
    /// Its number; `None` for all of a machine.
    pub id: Option<u32>,
    /// How it ended.
    pub ended: String,
    /// Times that the guest was left for the VMM.
    pub exits: u64,
    /// Accesses: one for each exit, but for string I/O one for each element, and one for each store that the kernel
    /// queued.
    pub elements: u64,
    /// KVM's own counters by name, where the kernel has them.
    #[serde(default, deserialize_with = "distinct")]
    pub kernel: Option<BTreeMap<String, u64>>,
    /// Time in KVM_RUN, guest and kernel together: a sample for each exit.
    pub in_kvm: Times,
    /// Time in the VMM: a sample for each element.
    pub in_vmm: Times,
    /// Each site, most exits first.
    pub sites: Vec<Site>,
}

/// Where exits come from, and what they cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// The reason, which includes the direction.
    #[serde(with = "crate::reason")]
    pub reason: Reason,
    /// Port, guest physical address, number of an MSR or of a hypercall. `None` where the reason has none, and for
    /// the sites past the limit.
    pub place: Option<u64>,
    /// Width in bytes, where there is a place.
    pub width: Option<u8>,
    /// The device that is there.
    pub device: Option<String>,
    /// Exits.
    pub exits: u64,
    /// Accesses, as of a [`Vcpu`].
    pub elements: u64,
    /// Time in KVM_RUN before the exit.
    pub in_kvm: Times,
    /// Time in the VMM.
    pub in_vmm: Times,
}

/// Samples of a duration, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// How many samples.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// The smallest; 0 where there is none.
    pub min: u64,
    /// The largest; 0 where there is none.
    pub max: u64,
    /// The median; `None` where no histogram was kept.
    pub p50: Option<u64>,
    /// What 99 of 100 samples do not exceed; `None` where no histogram was kept.
    pub p99: Option<u64>,
    /// The histogram: lower bound and count of each bin that is not empty, ascending; 8 bins for each power of two.
    pub bins: Vec<(u64, u64)>,
}

/// The file as it is written: the profile after what it is.
#[derive(Serialize)]
struct Document<'a> {
    format: &'static str,
    version: u64,
    #[serde(flatten)]
    profile: &'a SavedProfile,
}

/// The beginning of any file of this format, of whatever version.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

impl SavedProfile {
    /// Reads a profile. Members that this version does not know are passed over.
    ///
    /// # Errors
    /// It is no profile, or of another version; or it is damaged: no JSON, something missing, twice or of the wrong
    /// type, more of something than there can be.
    pub fn read(bytes: &[u8]) -> Result<Self, SavedError> {
        let size = bytes.len() as u64;
        if size > MAX_SIZE {
            return Err(SavedError::TooLarge { what: "profile", size, limit: MAX_SIZE });
        }
        let json = |error| SavedError::json("profile", &error);
        let head: Head = serde_json::from_slice(bytes).map_err(json)?;
        if head.format != FORMAT {
            return Err(SavedError::Neither);
        }
        if head.version != VERSION {
            return Err(SavedError::Version { what: "profile", found: head.version, known: VERSION });
        }
        let profile: Self = serde_json::from_slice(bytes).map_err(json)?;
        profile.check().map_err(|why| SavedError::damaged("profile", &why))?;
        Ok(profile)
    }

    /// Writes the profile, as one line.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, to: impl Write) -> io::Result<()> {
        let mut to = io::BufWriter::with_capacity(1 << 16, to);
        let document = Document { format: FORMAT, version: VERSION, profile: self };
        let written = serde_json::to_writer(&mut to, &document).map_err(io::Error::from);
        let written = written.and_then(|()| to.write_all(b"\n")).and_then(|()| to.flush());
        // What is left in the buffer of a file that failed is not tried again.
        let _ = to.into_parts();
        written
    }

    /// Says what in the profile cannot be.
    fn check(&self) -> Result<(), String> {
        let texts = [("program", &self.program), ("guest", &self.guest), ("ended", &self.ended)];
        texts.iter().try_for_each(|(name, text)| check_text(name, text))?;
        if self.marks.len() > MAX_MARKS {
            return Err(format!("{} marks, and there are at most {MAX_MARKS}", self.marks.len()));
        }
        self.marks.iter().try_for_each(|mark| check_text("event", &mark.event))?;
        match self.vcpus.len() {
            0 => return Err("it has no vCPU".into()),
            count if count > MAX_CPUS as usize => {
                return Err(format!("{count} vCPUs, and there are at most {MAX_CPUS}"));
            }
            _ => {}
        }
        self.machine.check().map_err(|why| format!("the machine {why}"))?;
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            vcpu.check().map_err(|why| format!("vCPU {index} {why}"))?;
        }
        Ok(())
    }
}

impl Vcpu {
    fn check(&self) -> Result<(), String> {
        check_text("ended", &self.ended)?;
        if self.sites.len() > MOST_SITES {
            return Err(format!("has {} sites, and there are at most {MOST_SITES}", self.sites.len()));
        }
        self.in_kvm.check().map_err(|why| format!("has {why} in in_kvm"))?;
        self.in_vmm.check().map_err(|why| format!("has {why} in in_vmm"))?;
        let mut known = HashSet::with_capacity(self.sites.len());
        for site in &self.sites {
            let wrong = |why: &str| format!("has {why} at {}", site.name());
            let whole = site.place.is_some() == site.width.is_some();
            if !whole || site.place.is_some() && !site.reason.has_place() {
                return Err(wrong("no matching place and width"));
            }
            if !known.insert(site.key()) {
                return Err(wrong("two sites"));
            }
            check_text("device", site.device.as_deref().unwrap_or_default())?;
            site.in_kvm.check().map_err(|why| wrong(&format!("{why} in in_kvm")))?;
            site.in_vmm.check().map_err(|why| wrong(&format!("{why} in in_vmm")))?;
        }
        Ok(())
    }
}

impl Site {
    /// What tells this site from another.
    pub fn key(&self) -> (Reason, Option<u64>, Option<u8>) {
        (self.reason, self.place, self.width)
    }

    /// The site in a few words: reason and place.
    pub fn name(&self) -> String {
        match self.place {
            Some(place) => format!("{} {place:#x}", self.reason),
            None if self.reason.has_place() => format!("{} elsewhere", self.reason),
            None => self.reason.to_string(),
        }
    }
}

/// Splits the `device` text of a saved file into the device and its register, at the first blank: "simvirtio TX head"
/// is the register "TX head" of the device "simvirtio".
///
/// A file has one text for both (`docs/formats.md`), the one that [`DeviceName`](vmm::device::DeviceName) prints. The
/// split is exact for every device that names its registers. A device that names none may have a blank in its own name,
/// such as "exit port": a caller that groups sites by device keeps a text whole if no other text has the same first
/// word.
///
/// Earlier versions wrote a comma after some devices ("simvirtio, reserved"), which is dropped.
pub fn split_device(text: &str) -> (&str, Option<&str>) {
    let (device, register) = match text.split_once(' ') {
        Some((device, register)) => (device, Some(register)),
        None => (text, None),
    };
    (device.trim_end_matches(','), register)
}

impl Times {
    fn check(&self) -> Result<(), String> {
        if self.min > self.max {
            return Err("a min above max".into());
        }
        if self.bins.len() > MOST_BINS {
            return Err(format!("{} bins, of at most {MOST_BINS},", self.bins.len()));
        }
        let ascending = self.bins.iter().zip(self.bins.iter().skip(1)).all(|(one, next)| one.0 < next.0);
        if ascending { Ok(()) } else { Err("bins that do not ascend".into()) }
    }

    /// The mean; 0 where there is no sample.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }
}

fn check_text(name: &str, text: &str) -> Result<(), String> {
    match text.len() {
        size if size > MOST_TEXT => Err(format!("{size} bytes of text in {name:?}, of at most {MOST_TEXT}")),
        _ => Ok(()),
    }
}

/// Counters by name, each of them once.
fn distinct<'de, D: Deserializer<'de>>(from: D) -> Result<Option<BTreeMap<String, u64>>, D::Error> {
    /// KVM has about 50 for a vCPU.
    const MOST: usize = 4096;

    struct Counters;

    impl<'de> Visitor<'de> for Counters {
        type Value = Option<BTreeMap<String, u64>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("KVM's counters by name, or null")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<M: MapAccess<'de>>(self, mut from: M) -> Result<Self::Value, M::Error> {
            let mut counters = BTreeMap::new();
            while let Some((name, value)) = from.next_entry::<String, u64>()? {
                if name.len() > MOST_TEXT || counters.len() >= MOST {
                    return Err(M::Error::custom("too many counters of KVM"));
                }
                if counters.insert(name, value).is_some() {
                    return Err(M::Error::custom("a counter of KVM twice"));
                }
            }
            Ok(Some(counters))
        }
    }

    from.deserialize_any(Counters)
}

#[cfg(test)]
#[path = "profile/tests.rs"]
mod tests;
