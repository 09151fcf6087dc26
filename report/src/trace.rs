//! Trace files: the last exits of a machine one by one, written by `--trace FILE`.
//!
//! A file has a header of 64 bytes, records of 48 bytes, and a trailer in JSON. All numbers are little-endian.

mod record;

use crate::code::{SavedName, check_names};
use crate::profile::{MOST_TEXT, MOST_VCPUS, SavedProcessor};
use crate::{SavedError, SavedOrigin};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, Write};
use vmm::exit::Reason;
use vmm::host::sort_by_key;

/// The first bytes of the file.
pub const MAGIC: [u8; 8] = *b"vmmtrace";
/// The version of the format that this package writes and reads.
pub const VERSION: u16 = 1;
/// The size of the header in bytes.
pub const HEADER: usize = 64;
/// The size of a record in bytes.
pub const RECORD: usize = 48;
/// The maximum number of records of a file; they take 192 MiB.
pub const MOST_RECORDS: u64 = 4 << 20;
/// The maximum length of the trailer in bytes.
pub const MOST_TRAILER: u64 = 16 << 20;
/// The largest file that is read, in bytes.
pub const MAX_SIZE: u64 =
    MOST_RECORDS.saturating_mul(RECORD as u64).saturating_add(HEADER as u64 + MOST_TRAILER);

/// The last exits of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedTrace {
    /// The number of vCPUs.
    pub vcpus: u32,
    /// The number of elements in the whole run.
    pub seen: u64,
    /// The duration of the run in nanoseconds.
    pub elapsed_ns: u64,
    /// The frequency of the clock in kHz; 0 for CLOCK_MONOTONIC.
    pub khz: u64,
    /// The last elements of the run, in the order of time.
    pub records: Vec<Record>,
    /// The name and version of the program that wrote the file.
    pub program: String,
    /// The kind of processor that ran the guest.
    pub processor: SavedProcessor,
    /// The guest's name or path.
    pub guest: String,
    /// The end of the run, in one line.
    pub ended: String,
    /// The date, the host and the command. Older files have none.
    pub origin: Option<Box<SavedOrigin>>,
    /// The devices at the sites of the records.
    pub devices: Vec<SavedDevice>,
    /// The names of the addresses in the guest's code, if they are known.
    pub names: Vec<SavedName>,
}

/// One element: an exit, a further element of string I/O, or a store that the kernel queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The time when KVM_RUN returned, in nanoseconds since the start of the run.
    pub when: u64,
    /// The port, guest physical address, or number of an MSR or hypercall; `None` if the reason has no place.
    pub place: Option<u64>,
    /// The value that the guest wrote or read, if it is known.
    pub value: Option<u64>,
    /// The guest's RIP at the exit, if it is known.
    pub rip: Option<u64>,
    /// The time in KVM_RUN before this exit, in nanoseconds; 0 if the element has no exit.
    pub in_kvm: u32,
    /// The time in the VMM, in nanoseconds.
    pub in_vmm: u32,
    /// The number of the vCPU, from 0.
    pub vcpu: u16,
    /// The reason, which includes the direction.
    pub reason: Reason,
    /// The width in bytes; 0 if there is none.
    pub width: u8,
    /// True if the element has no exit: a further element of string I/O, or a store that the kernel had queued.
    pub next_element: bool,
    /// True if the guest got #GP.
    pub fault: bool,
}

/// The name of the device at a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDevice {
    /// The reason of its exits.
    #[serde(with = "crate::saved::reason")]
    pub reason: Reason,
    /// The port, address or number.
    pub place: u64,
    /// The width of the access in bytes.
    pub width: u8,
    /// The name of the device.
    pub device: String,
}

/// The trailer as it is written. It borrows the texts of the trace.
#[derive(Serialize)]
struct TrailerOut<'a> {
    program: &'a str,
    processor: SavedProcessor,
    guest: &'a str,
    ended: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<&'a SavedOrigin>,
    devices: &'a [SavedDevice],
    #[serde(skip_serializing_if = "no_names")]
    names: &'a [SavedName],
}

fn no_names(names: &&[SavedName]) -> bool {
    names.is_empty()
}

/// The trailer as it is read.
#[derive(Default, Deserialize)]
struct Trailer {
    program: String,
    #[serde(default)]
    processor: SavedProcessor,
    guest: String,
    ended: String,
    #[serde(default)]
    origin: Option<Box<SavedOrigin>>,
    devices: Vec<SavedDevice>,
    #[serde(default)]
    names: Vec<SavedName>,
}

/// The extent of a trace that is cut short, for example by a full disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The number of complete records in the file.
    pub records: u64,
    /// The number of records in the header.
    pub of: u64,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { records, of } = self;
        match records == of {
            true => {
                write!(f, "the trace is cut short: the names of the guest and of the devices are missing")
            }
            false => write!(f, "the trace is cut short after {records} of {of} records"),
        }
    }
}

/// A trace was not written completely.
#[derive(Debug, thiserror::Error)]
#[error("cut short after {records} of {of} records: {source}")]
pub struct Unfinished {
    /// The number of complete records that were written.
    pub records: u64,
    /// The number of records in the trace.
    pub of: u64,
    /// The error of the kernel.
    pub source: io::Error,
}

/// A writer that counts the bytes it takes.
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
    /// Writes the trace, and returns the number of records. After an error, the bytes written so far are a trace that
    /// is cut short, which can be read.
    ///
    /// # Errors
    /// Writing to `to` fails.
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
        let (processor, devices, names) = (self.processor, self.devices.as_slice(), self.names.as_slice());
        let origin = self.origin.as_deref();
        let trailer = TrailerOut { program, processor, guest, ended, origin, devices, names };
        let trailer = serde_json::to_vec(&trailer)?;
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

    /// Reads a trace. The [`Cut`] is set if the trace is cut short. The records are sorted by time.
    ///
    /// # Errors
    /// The bytes are not a trace, have another version, end within the header, or are damaged.
    pub fn read(bytes: &[u8]) -> Result<(Self, Option<Cut>), SavedError> {
        let damaged = |why: String| SavedError::damaged("trace", &why);
        let size = bytes.len() as u64;
        if size > MAX_SIZE {
            return Err(SavedError::TooLarge { what: "trace", size, limit: MAX_SIZE });
        }
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(SavedError::CutHeader { there: bytes.len() });
        };
        let Header { vcpus, seen, records: of, trailer, elapsed_ns, khz } = Header::read(header)?;
        let wanted = usize::try_from(of).unwrap_or(usize::MAX);
        let mut records = Vec::with_capacity(wanted.min(rest.len() / RECORD));
        for (index, bytes) in rest.as_chunks::<RECORD>().0.iter().take(wanted).enumerate() {
            let record = Record::read(bytes, vcpus);
            records.push(record.map_err(|why| damaged(format!("record {index} has {why}")))?);
        }
        if !records.is_sorted_by_key(|record| record.when) {
            sort_by_key(&mut records, |record| record.when);
        }
        let there = records.len() as u64;
        let rest = rest.get(wanted.saturating_mul(RECORD)..).unwrap_or_default();
        let excess = (rest.len() as u64).saturating_sub(trailer);
        if excess > 0 {
            return Err(damaged(format!("it has {excess} bytes after its end")));
        }
        let cut = there < of || (rest.len() as u64) < trailer;
        let trailer = if cut { Trailer::default() } else { Trailer::read(rest)? };
        let Trailer { program, processor, guest, ended, origin, devices, names } = trailer;
        let trace = Self {
            vcpus,
            seen,
            elapsed_ns,
            khz,
            records,
            program,
            processor,
            guest,
            ended,
            origin,
            devices,
            names,
        };
        Ok((trace, cut.then_some(Cut { records: there, of })))
    }
}

/// The fields of the header.
struct Header {
    vcpus: u32,
    seen: u64,
    records: u64,
    trailer: u64,
    elapsed_ns: u64,
    khz: u64,
}

impl Header {
    fn read(bytes: &[u8; HEADER]) -> Result<Self, SavedError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(SavedError::Neither);
        }
        let version = half(bytes, 8);
        if version != VERSION {
            return Err(SavedError::Version { what: "trace", found: version.into(), known: VERSION.into() });
        }
        let header = Self {
            vcpus: u32::try_from(word(bytes, 8) >> 32).unwrap_or(u32::MAX),
            seen: word(bytes, 16),
            records: word(bytes, 24),
            trailer: word(bytes, 32),
            elapsed_ns: word(bytes, 40),
            khz: word(bytes, 48),
        };
        header.check(half(bytes, 10), word(bytes, 56)).map_err(|why| SavedError::damaged("trace", &why))?;
        Ok(header)
    }

    fn check(&self, record: u16, reserved: u64) -> Result<(), String> {
        let Self { vcpus, seen, records, trailer, .. } = *self;
        if usize::from(record) != RECORD {
            return Err(format!("its records have {record} bytes, not {RECORD}"));
        }
        if !(1..=MOST_VCPUS).contains(&vcpus) {
            return Err(format!("it has {vcpus} vCPUs, not 1 to {MOST_VCPUS}"));
        }
        if records > seen {
            return Err(format!("it has {records} records of a run with {seen} elements"));
        }
        if records > MOST_RECORDS {
            return Err(format!("it has {records} records (the limit is {MOST_RECORDS})"));
        }
        if trailer > MOST_TRAILER {
            return Err(format!("its trailer has {trailer} bytes (the limit is {MOST_TRAILER})"));
        }
        if reserved != 0 {
            return Err("the reserved field of its header is not 0".into());
        }
        Ok(())
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
            let why = format!("it has {longest} bytes of text in its trailer (the limit is {MOST_TEXT})");
            return Err(SavedError::damaged("trace", &why));
        }
        let parts = trailer.origin.as_deref().map_or(Ok(()), SavedOrigin::check);
        parts
            .and_then(|()| check_names(&trailer.names))
            .map_err(|why| SavedError::damaged("trace", &format!("its trailer has {why}")))?;
        Ok(trailer)
    }
}

/// Returns the 64-bit number at `at`; zero past the end.
fn word(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Returns the 16-bit number at `at`; zero past the end.
fn half(bytes: &[u8], at: usize) -> u16 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

#[cfg(test)]
#[path = "trace/tests.rs"]
mod tests;
