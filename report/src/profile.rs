//! Profile files: JSON, written by `--profile json=FILE`.
//!
//! Each struct is one object of the file, and its fields are the members of that object in their order. Times are in
//! nanoseconds.

mod counters;

use crate::code::{SavedAddress, SavedName, check_addresses, check_names};
use crate::setup::SavedSetup;
use crate::stacks::SavedSamples;
use crate::{SavedError, SavedOrigin};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use vmm::exit::Reason;
use vmm::profile::{MAX_MARKS, MAX_SITES};

/// The `format` member of the file.
pub const FORMAT: &str = "vmm-profile";
/// The version of the format that this package writes and reads.
pub const VERSION: u64 = 1;
/// The largest file that is read, in bytes: a few times the size of the largest profile.
pub const MAX_SIZE: u64 = 64 << 20;
/// The maximum number of sites of one vCPU: those counted one by one, and one without a place for each reason.
pub const MOST_SITES: usize = MAX_SITES + 128;
/// The maximum number of bins of one histogram: 8 for each power of two.
pub const MOST_BINS: usize = 64 * 8;
/// The maximum number of vCPUs: more than a machine of this program has, because an observed program has any number of
/// machines.
pub const MOST_VCPUS: u32 = 128;
/// The maximum length of a text, in bytes.
pub const MOST_TEXT: usize = 64 << 10;

/// A profile: the exits of a run with their sites and times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedProfile {
    /// The name and version of the program that wrote the file.
    pub program: String,
    /// The kind of processor that ran the guest.
    #[serde(default)]
    pub processor: SavedProcessor,
    /// The guest's name or path.
    pub guest: String,
    /// The end of the run, in one line.
    pub ended: String,
    /// The date, the host and the command. Older files have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Box<SavedOrigin>>,
    /// The time from the first entry to the last exit.
    pub elapsed_ns: u64,
    /// The clock of all times.
    pub clock: SavedClock,
    /// The limits on the memory of a profile.
    pub limits: SavedLimits,
    /// The cost of taking the profile, over all vCPUs.
    pub profiling_ns: u64,
    /// The marks of a boot. Empty for guests other than Linux.
    pub marks: Vec<SavedMark>,
    /// The sums over all vCPUs.
    pub machine: SavedVcpu,
    /// The vCPUs, at least one.
    pub vcpus: Vec<SavedVcpu>,
    /// The setup of the machines of an observed program, if it was asked for, or a guest died. Files without the member are
    /// those of other runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<SavedSetup>,
    /// The exits per address of the guest's code, if they were recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<SavedAddress>,
    /// The names of these addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<SavedName>,
    /// The samples of the vCPUs, if some were taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<SavedSamples>,
}

/// A kind of processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SavedProcessor {
    /// The host's, by KVM. Files without the member have this.
    #[default]
    Kvm,
    /// The software processor. The times in KVM are then those in it.
    Soft,
}

impl SavedProcessor {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Soft => "software processor",
        }
    }
}

/// The clock of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedClock {
    /// The kind of clock.
    pub source: ClockSource,
    /// The frequency in kHz.
    pub khz: u64,
    /// The number of times that the clock went backwards.
    pub steps: u64,
}

/// A kind of clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockSource {
    /// The processor's time-stamp counter.
    #[default]
    Tsc,
    /// CLOCK_MONOTONIC, in nanoseconds.
    Monotonic,
}

/// The limits on the memory of a profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLimits {
    /// The number of sites that are counted one by one.
    pub sites: u64,
    /// The number of sites with histograms.
    pub timed_sites: u64,
    /// The number of significant decimal digits of a histogram.
    pub digits: u64,
}

/// A mark of a boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMark {
    /// The event.
    pub event: String,
    /// The time since the start of the program.
    pub at_ns: u64,
    /// The number of exits since the previous mark.
    pub exits: u64,
}

/// The exits of one vCPU, or the sums over all vCPUs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedVcpu {
    /// The number of the vCPU; `None` for the sums.
    pub id: Option<u32>,
    /// The end of this vCPU, in one line.
    pub ended: String,
    /// The number of exits to the VMM.
    pub exits: u64,
    /// The number of elements. An exit has one element. String I/O has one for each element of the string, and a store
    /// that the kernel queued is an element without an exit.
    pub elements: u64,
    /// KVM's own counters by name; `None` if the kernel has no counters.
    #[serde(default, deserialize_with = "counters::distinct")]
    pub kernel: Option<BTreeMap<String, u64>>,
    /// The time in KVM_RUN, guest and kernel together: one sample for each exit.
    pub in_kvm: SavedTimes,
    /// The time in the VMM: one sample for each element.
    pub in_vmm: SavedTimes,
    /// The sites, most exits first.
    pub sites: Vec<SavedSite>,
}

/// The exits of one site: a reason, a place and a width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedSite {
    /// The reason, which includes the direction of an access.
    #[serde(with = "crate::saved::reason")]
    pub reason: Reason,
    /// The port, guest physical address, or number of an MSR or hypercall. `None` if the reason has no place, and for
    /// the site that sums up those past the limit.
    pub place: Option<u64>,
    /// The width of the access in bytes; `None` if there is no place.
    pub width: Option<u8>,
    /// The device at this place; `None` for unclaimed accesses.
    pub device: Option<String>,
    /// The number of exits.
    pub exits: u64,
    /// The number of elements, as in [`SavedVcpu::elements`].
    pub elements: u64,
    /// The time in KVM_RUN before the exit.
    pub in_kvm: SavedTimes,
    /// The time in the VMM.
    pub in_vmm: SavedTimes,
}

/// Statistics over samples of a duration, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTimes {
    /// The number of samples.
    pub count: u64,
    /// The sum of the samples.
    pub sum: u64,
    /// The smallest sample; 0 without samples.
    pub min: u64,
    /// The largest sample; 0 without samples.
    pub max: u64,
    /// The median; `None` without a histogram.
    pub p50: Option<u64>,
    /// The 99th percentile: 99 of 100 samples are not above it. `None` without a histogram.
    pub p99: Option<u64>,
    /// The histogram: lower bound and count of each bin that is not empty, in ascending order. Each power of two has 8
    /// bins.
    pub bins: Vec<(u64, u64)>,
}

/// A profile file as it is written.
#[derive(Serialize)]
struct Document<'a> {
    format: &'static str,
    version: u64,
    #[serde(flatten)]
    profile: &'a SavedProfile,
}

/// The members that every version of the format has.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    format: String,
    #[serde(default)]
    version: u64,
}

impl SavedProfile {
    /// Reads a profile. Unknown members are ignored.
    ///
    /// # Errors
    /// The bytes are not a profile, have another version, or are damaged: invalid JSON, a member that is missing,
    /// occurs twice or has the wrong type, an impossible value, or a value above a limit.
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

    /// Writes the profile as one line of JSON.
    ///
    /// # Errors
    /// Writing to `to` fails.
    pub fn write(&self, to: impl Write) -> io::Result<()> {
        let mut to = io::BufWriter::with_capacity(1 << 16, to);
        let document = Document { format: FORMAT, version: VERSION, profile: self };
        let written = serde_json::to_writer(&mut to, &document).map_err(io::Error::from);
        let written = written.and_then(|()| to.write_all(b"\n")).and_then(|()| to.flush());
        // Dropping the writer would try once more to write the rest of its buffer.
        let _ = to.into_parts();
        written
    }

    /// Checks the values and limits that the JSON types do not. The error names the wrong value.
    fn check(&self) -> Result<(), String> {
        self.check_run().map_err(|why| format!("it has {why}"))?;
        self.machine.check().map_err(|why| format!("the machine has {why}"))?;
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            vcpu.check().map_err(|why| format!("vCPU {index} has {why}"))?;
        }
        Ok(())
    }

    fn check_run(&self) -> Result<(), String> {
        let texts = [("program", &self.program), ("guest", &self.guest), ("ended", &self.ended)];
        texts.iter().try_for_each(|(name, text)| check_text(name, text))?;
        check_limit(self.marks.len(), "marks", MAX_MARKS)?;
        self.marks.iter().try_for_each(|mark| check_text("event", &mark.event))?;
        if self.vcpus.is_empty() {
            return Err("no vCPU".into());
        }
        check_limit(self.vcpus.len(), "vCPUs", MOST_VCPUS as usize)?;
        self.origin.as_deref().map_or(Ok(()), SavedOrigin::check)?;
        check_addresses(&self.addresses)?;
        check_names(&self.names)?;
        self.samples.as_ref().map_or(Ok(()), SavedSamples::check)?;
        self.setup.as_ref().map_or(Ok(()), SavedSetup::check)
    }
}

impl SavedVcpu {
    fn check(&self) -> Result<(), String> {
        check_text("ended", &self.ended)?;
        check_limit(self.sites.len(), "sites", MOST_SITES)?;
        self.in_kvm.check().map_err(|why| format!("{why} in in_kvm"))?;
        self.in_vmm.check().map_err(|why| format!("{why} in in_vmm"))?;
        let mut known = HashSet::with_capacity(self.sites.len());
        for site in &self.sites {
            site.check().map_err(|why| format!("{why} at {}", site.name()))?;
            if !known.insert(site.key()) {
                return Err(format!("the same site twice: {}", site.name()));
            }
        }
        Ok(())
    }
}

impl SavedSite {
    fn check(&self) -> Result<(), String> {
        match (self.place, self.width) {
            (Some(_), None) => return Err("a place without a width".into()),
            (None, Some(_)) => return Err("a width without a place".into()),
            (Some(_), Some(_)) if !self.reason.has_place() => {
                return Err("a place for a reason without one".into());
            }
            _ => {}
        }
        check_text("device", self.device.as_deref().unwrap_or_default())?;
        self.in_kvm.check().map_err(|why| format!("{why} in in_kvm"))?;
        self.in_vmm.check().map_err(|why| format!("{why} in in_vmm"))
    }

    /// Returns reason, place and width, which identify a site.
    pub fn key(&self) -> (Reason, Option<u64>, Option<u8>) {
        (self.reason, self.place, self.width)
    }

    /// Returns the reason and the place as text, such as `PIO out 0xe9`.
    pub fn name(&self) -> String {
        match self.place {
            Some(place) => format!("{} {place:#x}", self.reason),
            None if self.reason.has_place() => format!("{} at other places", self.reason),
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

impl SavedTimes {
    fn check(&self) -> Result<(), String> {
        if self.min > self.max {
            return Err("a min above max".into());
        }
        check_limit(self.bins.len(), "bins", MOST_BINS)?;
        let ascending = self.bins.iter().zip(self.bins.iter().skip(1)).all(|(one, next)| one.0 < next.0);
        if ascending { Ok(()) } else { Err("bins that do not ascend".into()) }
    }

    /// Returns the mean, rounded down; 0 without samples.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }
}

pub(crate) fn check_text(name: &str, text: &str) -> Result<(), String> {
    match text.len() {
        size if size > MOST_TEXT => {
            Err(format!("{size} bytes of text in {name:?} (the limit is {MOST_TEXT})"))
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_limit(count: usize, what: &str, limit: usize) -> Result<(), String> {
    if count > limit { Err(format!("{count} {what} (the limit is {limit})")) } else { Ok(()) }
}

#[cfg(test)]
#[path = "profile/tests.rs"]
mod tests;
