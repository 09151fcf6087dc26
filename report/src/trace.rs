//! A trace in a file: the last exits of a machine one by one, written by `--trace FILE`.
//!
//! A header of 64 bytes, records of 48 bytes, and a trailer in JSON; all numbers are little-endian.

use crate::SavedError;
use crate::profile::MOST_TEXT;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, Write};
use vmm::exit::Reason;
use vmm::memory::MAX_CPUS;

/// The first bytes of the file.
pub const MAGIC: [u8; 8] = *b"vmmtrace";
/// The version of the format that is written and read.
pub const VERSION: u16 = 1;
/// Size of the header in bytes.
pub const HEADER: usize = 64;
/// Size of a record in bytes.
pub const RECORD: usize = 48;
/// The most records of a file that is read: 192 MiB of them.
pub const MOST_RECORDS: u64 = 4 << 20;
/// The most bytes of a trailer.
pub const MOST_TRAILER: u64 = 16 << 20;
/// The most bytes of a file that is read.
pub const MAX_SIZE: u64 =
    MOST_RECORDS.saturating_mul(RECORD as u64).saturating_add(HEADER as u64 + MOST_TRAILER);

const OTHER: u8 = Reason::NAMED.len() as u8;

const NEXT_ELEMENT: u8 = 1;
const RIP_KNOWN: u8 = 2;
const VALUE_KNOWN: u8 = 4;
const FAULT: u8 = 8;
const FLAGS: u8 = NEXT_ELEMENT | RIP_KNOWN | VALUE_KNOWN | FAULT;

/// The last exits of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedTrace {
    /// How many vCPUs it had.
    pub vcpus: u32,
    /// Exits and further elements that there were in all.
    pub seen: u64,
    /// How long the run took, in nanoseconds.
    pub elapsed_ns: u64,
    /// How often the clock ticks, in kHz; 0 for CLOCK_MONOTONIC.
    pub khz: u64,
    /// The last of them, in order of time.
    pub records: Vec<Record>,
    /// The program that wrote it, and its version.
    pub program: String,
    /// The guest, by name or path.
    pub guest: String,
    /// How the run ended, in a line.
    pub ended: String,
    /// What is at the places of the records.
    pub devices: Vec<SavedDevice>,
}

/// One exit, or one further element of string I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When KVM_RUN returned, in nanoseconds from the run's start.
    pub when: u64,
    /// Port, guest physical address, number of an MSR or of a hypercall, where the reason has one.
    pub place: Option<u64>,
    /// What was written, or what the guest read, where that is known.
    pub value: Option<u64>,
    /// The guest's RIP at the exit, where it is known.
    pub rip: Option<u64>,
    /// Nanoseconds in KVM_RUN before this exit; 0 for a further element.
    pub in_kvm: u32,
    /// Nanoseconds that the VMM took for it.
    pub in_vmm: u32,
    /// The vCPU's number.
    pub vcpu: u16,
    /// The reason, which includes the direction.
    pub reason: Reason,
    /// Width in bytes; 0 where there is none.
    pub width: u8,
    /// The guest was not left for it: a further element of string I/O, or a store that the kernel had queued.
    pub next_element: bool,
    /// The guest got #GP for it.
    pub fault: bool,
}

/// What is at a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDevice {
    /// How it is reached.
    #[serde(with = "crate::reason")]
    pub reason: Reason,
    /// The place.
    pub place: u64,
    /// The width of the access in bytes.
    pub width: u8,
    /// Its name.
    pub device: String,
}

/// The trailer as it is written.
#[derive(Serialize)]
struct TrailerOut<'a> {
    program: &'a str,
    guest: &'a str,
    ended: &'a str,
    devices: &'a [SavedDevice],
}

/// The trailer as it is read.
#[derive(Default, Deserialize)]
struct Trailer {
    program: String,
    guest: String,
    ended: String,
    devices: Vec<SavedDevice>,
}

/// What a trace on a full disk lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The whole records that are there.
    pub records: u64,
    /// How many there should be.
    pub of: u64,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { records, of } = self;
        match records == of {
            true => write!(f, "the trace is cut after its {of} records: guest and devices have no names"),
            false => write!(f, "the trace is cut after {records} of {of} records"),
        }
    }
}

/// A trace could not be written to its end.
#[derive(Debug, thiserror::Error)]
#[error("cut after {records} of {of} records: {source}")]
pub struct Unfinished {
    /// The whole records that were written.
    pub records: u64,
    /// How many there are.
    pub of: u64,
    /// What the kernel said.
    pub source: io::Error,
}

/// Counts what a writer takes.
struct Counted<W> {
    to: W,
    taken: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.to.write(bytes)?;
        self.taken = self.taken.saturating_add(taken as u64);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl SavedTrace {
    /// Writes the trace, and says how many whole records that were. What was written before an error is a trace
    /// that is cut, which can be read.
    ///
    /// # Errors
    /// It cannot be written to its end.
    pub fn write(&self, to: impl Write) -> Result<u64, Unfinished> {
        let mut to = Counted { to, taken: 0 };
        let of = self.records.len() as u64;
        match self.write_all(&mut to) {
            Ok(()) => Ok(of),
            Err(source) => {
                let taken = to.taken.saturating_sub(HEADER as u64);
                let records = taken.checked_div(RECORD as u64).unwrap_or(0);
                Err(Unfinished { records: records.min(of), of, source })
            }
        }
    }

    fn write_all(&self, to: &mut impl Write) -> io::Result<()> {
        const AT_ONCE: usize = 1024;
        let (program, guest, ended) = (&self.program, &self.guest, &self.ended);
        let trailer = serde_json::to_vec(&TrailerOut { program, guest, ended, devices: &self.devices })?;
        let mut bytes = Vec::with_capacity(AT_ONCE * RECORD);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((RECORD as u16).to_le_bytes());
        bytes.extend(self.vcpus.to_le_bytes());
        for word in [self.seen, self.records.len() as u64, trailer.len() as u64, self.elapsed_ns, self.khz, 0]
        {
            bytes.extend(word.to_le_bytes());
        }
        for records in self.records.chunks(AT_ONCE) {
            records.iter().for_each(|record| record.write(&mut bytes));
            to.write_all(&bytes)?;
            bytes.clear();
        }
        bytes.extend(trailer);
        to.write_all(&bytes)?;
        to.flush()
    }

    /// Reads a trace, and says what is missing where it is cut. Records that are not in order of time are put so.
    ///
    /// # Errors
    /// It is no trace, or of another version; or it is damaged, or cut within its header.
    pub fn read(bytes: &[u8]) -> Result<(Self, Option<Cut>), SavedError> {
        let damaged = |why: String| SavedError::damaged("trace", &why);
        let size = bytes.len() as u64;
        if size > MAX_SIZE {
            return Err(SavedError::TooLarge { what: "trace", size, limit: MAX_SIZE });
        }
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(SavedError::CutHeader { there: bytes.len() });
        };
        if !header.starts_with(&MAGIC) {
            return Err(SavedError::Neither);
        }
        let version = half(header, 8);
        if version != VERSION {
            return Err(SavedError::Version { what: "trace", found: version.into(), known: VERSION.into() });
        }
        if usize::from(half(header, 10)) != RECORD {
            return Err(damaged(format!("its records have {} bytes, not {RECORD}", half(header, 10))));
        }
        let vcpus = u32::try_from(word(header, 8) >> 32).unwrap_or(u32::MAX);
        if !(1..=MAX_CPUS).contains(&vcpus) {
            return Err(damaged(format!("{vcpus} vCPUs, and there are 1 to {MAX_CPUS}")));
        }
        let (seen, of, trailer_len) = (word(header, 16), word(header, 24), word(header, 32));
        if of > MOST_RECORDS || of > seen {
            let most = seen.min(MOST_RECORDS);
            return Err(damaged(format!("its header says {of} records, and there can be {most}")));
        }
        if trailer_len > MOST_TRAILER {
            return Err(damaged(format!("its trailer has {trailer_len} bytes, of at most {MOST_TRAILER}")));
        }
        if word(header, 56) != 0 {
            return Err(damaged("its header ends with what this version does not know".into()));
        }
        let wanted = usize::try_from(of).unwrap_or(usize::MAX);
        let mut records = Vec::with_capacity(wanted.min(rest.len() / RECORD));
        for (index, bytes) in rest.as_chunks::<RECORD>().0.iter().take(wanted).enumerate() {
            let record = Record::read(bytes, vcpus);
            records.push(record.map_err(|why| damaged(format!("record {index} has {why}")))?);
        }
        if !records.is_sorted_by_key(|record| record.when) {
            records.sort_by_key(|record| record.when);
        }
        let there = records.len() as u64;
        let rest = rest.get(wanted.saturating_mul(RECORD)..).unwrap_or_default();
        let excess = (rest.len() as u64).saturating_sub(trailer_len);
        if excess > 0 {
            return Err(damaged(format!("{excess} bytes after its end")));
        }
        let cut = there < of || (rest.len() as u64) < trailer_len;
        let trailer = if cut { Trailer::default() } else { Trailer::read(rest)? };
        let Trailer { program, guest, ended, devices } = trailer;
        let (elapsed_ns, khz) = (word(header, 40), word(header, 48));
        let trace = Self { vcpus, seen, elapsed_ns, khz, records, program, guest, ended, devices };
        Ok((trace, cut.then_some(Cut { records: there, of })))
    }
}

impl Trailer {
    fn read(bytes: &[u8]) -> Result<Self, SavedError> {
        let trailer: Self =
            serde_json::from_slice(bytes).map_err(|error| SavedError::json("trace", &error))?;
        let devices = trailer.devices.iter().map(|device| &device.device);
        let texts = [&trailer.program, &trailer.guest, &trailer.ended].into_iter().chain(devices);
        let longest = texts.map(String::len).max().unwrap_or(0);
        if longest > MOST_TEXT {
            let why = format!("{longest} bytes of text in its trailer, of at most {MOST_TEXT}");
            return Err(SavedError::damaged("trace", &why));
        }
        Ok(trailer)
    }
}

impl Record {
    fn write(&self, to: &mut Vec<u8>) {
        let (code, place) = match self.reason {
            Reason::Other(number) => (OTHER, Some(number.into())),
            reason => (reason.code(), self.place),
        };
        for word in [self.when, place.unwrap_or(0), self.value.unwrap_or(0), self.rip.unwrap_or(0)] {
            to.extend(word.to_le_bytes());
        }
        to.extend(self.in_kvm.to_le_bytes());
        to.extend(self.in_vmm.to_le_bytes());
        to.extend(self.vcpu.to_le_bytes());
        let flags = [
            (self.next_element, NEXT_ELEMENT),
            (self.rip.is_some(), RIP_KNOWN),
            (self.value.is_some(), VALUE_KNOWN),
            (self.fault, FAULT),
        ];
        let flags = flags.iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag);
        to.extend([code, self.width, flags, 0, 0, 0]);
    }

    /// Reads a record, or says what in it cannot be.
    fn read(bytes: &[u8; RECORD], vcpus: u32) -> Result<Self, String> {
        let [.., code, width, flags, zero0, zero1, zero2] = *bytes;
        let (when, place, value, rip) = (word(bytes, 0), word(bytes, 8), word(bytes, 16), word(bytes, 24));
        let reason = match Reason::NAMED.get(usize::from(code)) {
            Some(reason) => *reason,
            None if code == OTHER => u32::try_from(place)
                .map(Reason::Other)
                .map_err(|_| format!("the number {place:#x} of an exit, which has 32 bits"))?,
            None => return Err(format!("the reason {code}, of 0 to {OTHER}")),
        };
        if flags & !FLAGS != 0 || [zero0, zero1, zero2] != [0; 3] {
            return Err("flags that this version does not know".into());
        }
        let vcpu = half(bytes, 40);
        if u32::from(vcpu) >= vcpus {
            return Err(format!("the vCPU {vcpu}, of {vcpus}"));
        }
        let [in_kvm, in_vmm] = [word(bytes, 32) as u32, (word(bytes, 32) >> 32) as u32];
        Ok(Self {
            when,
            place: reason.has_place().then_some(place),
            value: (flags & VALUE_KNOWN != 0).then_some(value),
            rip: (flags & RIP_KNOWN != 0).then_some(rip),
            in_kvm,
            in_vmm,
            vcpu,
            reason,
            width,
            next_element: flags & NEXT_ELEMENT != 0,
            fault: flags & FAULT != 0,
        })
    }
}

/// The 64-bit number at `at`; zero past the end.
fn word(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The 16-bit number at `at`; zero past the end.
fn half(bytes: &[u8], at: usize) -> u16 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

#[cfg(test)]
#[path = "trace/tests.rs"]
mod tests;
