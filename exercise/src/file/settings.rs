//! The machine of a task, and the limits of its run.

use super::fields::Fields;
use crate::expect::mode_named;
use crate::read::Files;
use crate::toml::{Problem, Value};
use std::path::PathBuf;
use std::time::Duration;
use vmm::device::Transport;
use vmm::host::{parse_number, printable_text};
use vmm::machine::MachineKind;
use vmm::x86::Mode;

/// The keys of the settings.
pub const KEYS: [&str; 12] = [
    "kind",
    "mode",
    "address",
    "machine",
    "memory",
    "cpus",
    "transport",
    "cmdline",
    "initrd",
    "args",
    "timeout",
    "output_limit",
];

const KINDS: [(&str, Kind); 3] = [("image", Kind::Image), ("linux", Kind::Linux), ("vmm", Kind::Vmm)];

/// The keys that do not suit a kind.
const UNSUITED: [(Kind, &[&str]); 3] = [
    (Kind::Image, &["cmdline", "initrd", "args", "image", "image_text"]),
    (
        Kind::Linux,
        &["mode", "address", "machine", "transport", "args", "input_at", "registers", "image", "image_text"],
    ),
    (
        Kind::Vmm,
        &[
            "mode",
            "address",
            "machine",
            "memory",
            "cpus",
            "transport",
            "cmdline",
            "initrd",
            "input_at",
            "registers",
        ],
    ),
];

const MACHINES: [(&str, MachineKind); 3] =
    [("bare", MachineKind::Bare), ("pc", MachineKind::Pc), ("bios", MachineKind::Bios)];

const TRANSPORTS: [(&str, Transport); 4] = [
    ("exit", Transport::Exit),
    ("coalesced", Transport::Coalesced),
    ("doorbell", Transport::Doorbell),
    ("polling", Transport::Polling),
];

/// The longest time limit, in seconds.
const MAX_SECONDS: f64 = 3600.0;
/// The smallest memory.
const MIN_MEMORY: u64 = 1 << 20;
/// The largest memory.
const MAX_MEMORY: u64 = 3 << 30;
/// The largest output.
const MAX_OUTPUT: u64 = 1 << 20;
/// The most vCPUs.
const MAX_CPUS: u64 = 32;

/// The longest command line of a kernel, in bytes. Linux has at most 2048 on x86.
const MAX_CMDLINE: usize = 2047;

/// The kind of a submission's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A flat binary, an ELF executable, or a multiboot or PVH kernel.
    Image,
    /// A Linux kernel.
    Linux,
    /// A VMM, which is run as a program and observed.
    Vmm,
}

/// The machine of a task, and the limits of its run. A field that is `None` has the default of `vmm run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The kind of the submission's file.
    pub kind: Kind,
    /// The mode in which a flat binary starts.
    pub mode: Option<Mode>,
    /// The address of a flat binary.
    pub address: Option<u64>,
    /// The kind of machine.
    pub machine: Option<MachineKind>,
    /// The size of memory.
    pub memory: Option<u64>,
    /// The number of vCPUs.
    pub cpus: u32,
    /// The transport of SIMVIRTIO.
    pub transport: Option<Transport>,
    /// The command line of a Linux kernel.
    pub cmdline: Option<String>,
    /// The initial RAM disk of a Linux kernel.
    pub initrd: Option<PathBuf>,
    /// The arguments of a VMM, with expressions.
    pub args: Vec<String>,
    /// The time limit of a run.
    pub timeout: Duration,
    /// The limit of the output, in bytes.
    pub output_limit: u64,
    /// The keys that were given, and their offsets in the file.
    given: Vec<(String, usize)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kind: Kind::Image,
            mode: None,
            address: None,
            machine: None,
            memory: None,
            cpus: 1,
            transport: None,
            cmdline: None,
            initrd: None,
            args: Vec::new(),
            timeout: Duration::from_secs(10),
            output_limit: MAX_OUTPUT,
            given: Vec::new(),
        }
    }
}

impl Settings {
    /// Replaces the settings that a table has, which names some of these files.
    pub fn with(self, fields: &Fields, files: Files, problems: &mut Vec<Problem>) -> Self {
        let kind = fields.choice("kind", &KINDS, problems).unwrap_or(self.kind);
        refuse_unsuited(fields, kind, problems);
        let memory = fields.size("memory", MIN_MEMORY, MAX_MEMORY, problems);
        let cpus = fields.number("cpus", 1, MAX_CPUS, problems).and_then(|cpus| u32::try_from(cpus).ok());
        let address = address(fields, "address", problems);
        let args = fields.texts("args", problems).into_iter().map(|(text, _)| text.to_string());
        let args: Vec<_> = args.collect();
        let mut given = self.given;
        for key in KEYS {
            if let Some(entry) = fields.get(key) {
                given.retain(|(other, _)| other != key);
                given.push((key.into(), entry.at));
            }
        }
        Self {
            kind,
            mode: mode(fields, problems).or(self.mode),
            address: address.or(self.address),
            machine: fields.choice("machine", &MACHINES, problems).or(self.machine),
            memory: memory.or(self.memory),
            cpus: cpus.unwrap_or(self.cpus),
            transport: fields.choice("transport", &TRANSPORTS, problems).or(self.transport),
            cmdline: cmdline(fields, problems).or(self.cmdline),
            initrd: initrd(fields, files, problems).or(self.initrd),
            args: if fields.get("args").is_some() { args } else { self.args },
            timeout: fields.seconds("timeout", MAX_SECONDS, problems).unwrap_or(self.timeout),
            output_limit: fields.size("output_limit", 1, MAX_OUTPUT, problems).unwrap_or(self.output_limit),
            given,
        }
    }

    /// The offset of the first of these keys that was given.
    pub fn place(&self, keys: &[&str]) -> Option<usize> {
        let place = |key: &&str| self.given.iter().find(|(given, _)| given == key).map(|(_, at)| *at);
        keys.iter().find_map(place)
    }
}

/// Refuses the keys that do not suit a kind.
fn refuse_unsuited(fields: &Fields, kind: Kind, problems: &mut Vec<Problem>) {
    let unsuited = UNSUITED.iter().find(|(of, _)| *of == kind).map_or(&[][..], |(_, keys)| keys);
    let name = KINDS.iter().find(|(_, of)| *of == kind).map_or("", |(name, _)| name);
    for entry in unsuited.iter().filter_map(|key| fields.get(key)) {
        let message = format!("{} has no meaning for kind = \"{name}\": leave it out", entry.key);
        problems.push(Problem::new(entry.at, message));
    }
}

fn cmdline(fields: &Fields, problems: &mut Vec<Problem>) -> Option<String> {
    let (text, at) = fields.text("cmdline", problems)?;
    if text.len() > MAX_CMDLINE || text.contains('\0') {
        let message = format!("cmdline must have at most {MAX_CMDLINE} bytes, and no zero byte");
        problems.push(Problem::new(at, message));
    }
    Some(text.into())
}

fn initrd(fields: &Fields, files: Files, problems: &mut Vec<Problem>) -> Option<PathBuf> {
    let (name, at) = fields.text("initrd", problems)?;
    let failed = |error| Problem::new(at, format!("cannot use {} for initrd: {error}", printable_text(name)));
    let found = files.path(name).map_err(&failed);
    let found = found.and_then(|path| match path.is_file() {
        true => Ok(path),
        false => Err(failed(std::io::Error::other("it is not a regular file"))),
    });
    found.map_err(|problem| problems.push(problem)).ok()
}

/// The mode of a flat binary: a name, or the number of its bits.
fn mode(fields: &Fields, problems: &mut Vec<Problem>) -> Option<Mode> {
    let entry = fields.get("mode")?;
    let mode = match &entry.node.value {
        Value::Text(name) => mode_named(name),
        Value::Integer(bits) => mode_named(&bits.to_string()),
        _ => None,
    };
    if mode.is_none() {
        let message = "mode must be real (16), protected (32), long (64) or user64";
        problems.push(Problem::new(entry.node.at, message));
    }
    mode
}

/// An address: a number, or a text such as "0x1000".
pub fn address(fields: &Fields, key: &str, problems: &mut Vec<Problem>) -> Option<u64> {
    let entry = fields.get(key)?;
    let address = match &entry.node.value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::Text(text) => parse_number(text).ok(),
        _ => None,
    };
    if address.is_none() {
        problems.push(Problem::new(entry.node.at, format!("{key} must be an address, such as 0x1000")));
    }
    address
}
