//! The machine of a task, and the limits of its run.

use super::fields::Fields;
use crate::expect::mode_named;
use crate::toml::{Problem, Value};
use std::time::Duration;
use vmm::device::Transport;
use vmm::host::parse_number;
use vmm::machine::MachineKind;
use vmm::x86::Mode;

/// The keys of the settings.
pub const KEYS: [&str; 9] =
    ["kind", "mode", "address", "machine", "memory", "cpus", "transport", "timeout", "output_limit"];

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

/// The machine of a task, and the limits of its run. A field that is `None` has the default of `vmm run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
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
    /// The time limit of a run.
    pub timeout: Duration,
    /// The limit of the output, in bytes.
    pub output_limit: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: None,
            address: None,
            machine: None,
            memory: None,
            cpus: 1,
            transport: None,
            timeout: Duration::from_secs(10),
            output_limit: MAX_OUTPUT,
        }
    }
}

impl Settings {
    /// Replaces the settings that a table has.
    pub fn with(self, fields: &Fields, problems: &mut Vec<Problem>) -> Self {
        refuse_kinds(fields, problems);
        let memory = fields.size("memory", MIN_MEMORY, MAX_MEMORY, problems);
        let cpus = fields.number("cpus", 1, MAX_CPUS, problems).and_then(|cpus| u32::try_from(cpus).ok());
        let address = address(fields, "address", problems);
        Self {
            mode: mode(fields, problems).or(self.mode),
            address: address.or(self.address),
            machine: fields.choice("machine", &MACHINES, problems).or(self.machine),
            memory: memory.or(self.memory),
            cpus: cpus.unwrap_or(self.cpus),
            transport: fields.choice("transport", &TRANSPORTS, problems).or(self.transport),
            timeout: fields.seconds("timeout", MAX_SECONDS, problems).unwrap_or(self.timeout),
            output_limit: fields.size("output_limit", 1, MAX_OUTPUT, problems).unwrap_or(self.output_limit),
        }
    }
}

/// Refuses what this version does not run.
fn refuse_kinds(fields: &Fields, problems: &mut Vec<Problem>) {
    let Some((kind, at)) = fields.text("kind", problems) else { return };
    let message = match kind {
        "image" => return,
        "vmm" => "an exercise cannot observe a VMM yet: use `vmm grade so2 PROGRAM`, or kind = \"image\"",
        "linux" => {
            "an exercise cannot boot Linux yet: give an image, an ELF file, or a multiboot or PVH kernel"
        }
        _ => {
            "kind must be image, which is the default: a flat binary, an ELF file, or a multiboot or PVH kernel"
        }
    };
    problems.push(Problem::new(at, message));
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
