//! The options of a run and of a boot, and how their values are read.

use crate::measure::MeasureArgs;
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use vmm::controller::MsrRule;
use vmm::device::Transport;
use vmm::x86::{CpuidOverride, Mode};

// The defaults are those of the options: `a_run_without_options_needs_no_parser` compares them.
#[derive(Debug, Default, Args)]
pub(super) struct RunArgs {
    /// A built-in guest (`vmm guests` lists them), an ELF64 executable, or a flat binary as
    /// FILE[@ADDR][:MODE], such as guest.bin@0x1000:32
    #[arg(value_name = "NAME|FILE")]
    pub(super) guest: OsString,

    /// Mode to enter a flat binary in, or 16, 32, 64; user64 is long mode in ring 3, also for an ELF file
    /// [default: real, and long from 1 MiB up]
    #[arg(long, value_enum)]
    pub(super) mode: Option<ModeArg>,

    /// Guest physical address to load a flat binary at, and to enter it [default: 0]
    #[arg(long, value_name = "ADDR", value_parser = parse_number)]
    pub(super) load_at: Option<u64>,

    /// Guest memory, such as 0x100000, 64M or 2G; above 1M there is no SIMVIRTIO
    /// [default: 1M, and 250M for a guest at 1 MiB or above]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) mem: Option<u64>,

    /// How the guest's SIMVIRTIO driver reaches the device [default: exit, or polling in a build
    /// with that feature]
    #[arg(long, value_enum)]
    pub(super) transport: Option<TransportArg>,

    /// Length of SIMVIRTIO's queues in bytes, 2 to 4096 [default: 256]
    #[arg(long, value_name = "BYTES")]
    pub(super) queue_len: Option<u16>,

    /// File to read the input of the guest's SIMVIRTIO driver from [default: standard input]
    #[arg(long, value_name = "FILE")]
    pub(super) input: Option<PathBuf>,

    /// Seconds that the guest may run, 0 for no limit; waiting for input does not count
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_timeout)]
    pub(super) timeout: Timeout,

    /// The guest must leave 42 in RAX (EAX, AX) and at 0x400; built-in guests that promise it are
    /// verified without asking
    #[arg(long)]
    pub(super) verify: bool,

    /// What CPUID shows the guest: `host`, `none` (starts faster), or a change to what the host shows,
    /// LEAF[.SUBLEAF].REGISTER[.BITS]=VALUE, such as 1.ecx.24=1 or 1.ebx.31-24=0xba; may be given again
    /// [default: host for files, none for most built-in guests]
    #[arg(long, value_name = "WHAT", value_parser = parse_cpuid)]
    pub(super) cpuid: Vec<CpuidArg>,

    /// How many vCPUs run the guest, 1 to 32, each on a thread of its own; RDI and CPUID say which is which
    /// [default: 1]
    #[arg(long, value_name = "N")]
    pub(super) cpus: Option<u32>,

    /// What happens to accesses to a model-specific register, such as 0x1a0=deny: `deny` (#GP), `ignore`
    /// (reads 0) or `log`; may be given again for others
    #[arg(long, value_name = "MSR=RULE", value_parser = parse_msr_rule)]
    pub(super) msr: Vec<(u32, MsrRule)>,

    /// Add the devices of KeV's project 2: FIFOs on port 0xbb and MSR 0xabc, a constant on port 3, and a
    /// printer at 0xcafe0000
    #[arg(long)]
    pub(super) kev: bool,

    /// Bytes of text that the guest may write, such as 64K [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) output_limit: Option<u64>,

    #[command(flatten)]
    pub(super) report: MeasureArgs,
}

#[derive(Debug, Args)]
pub(super) struct BootArgs {
    /// A Linux kernel for x86-64: a vmlinux (ELF64) or a bzImage
    #[arg(value_name = "KERNEL")]
    pub(super) kernel: PathBuf,

    /// Initial RAM disk: a cpio archive, compressed or not
    #[arg(long, value_name = "FILE")]
    pub(super) initrd: Option<PathBuf>,

    /// The kernel's command line; panic=-1 has a crash end the machine
    /// [default: console=ttyS0 panic=-1 reboot=k; with --console virtio, console=hvc0]
    #[arg(long, value_name = "TEXT")]
    pub(super) cmdline: Option<String>,

    /// A raw disk image, /dev/vda and so on in this order; `,ro` after it keeps it as it is; may be given again
    #[arg(long, value_name = "FILE[,ro]")]
    pub(super) disk: Vec<OsString>,

    /// Where the console is: the serial port (ttyS0), or a virtio console (hvc0), which is faster and later
    #[arg(long, value_enum, default_value_t)]
    pub(super) console: ConsoleArg,

    /// The machine's memory, such as 64M or 8G
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub(super) mem: u64,

    /// How many vCPUs it has, 1 to 32
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) cpus: u32,

    /// Seconds that it may run, 0 for no limit
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = parse_timeout)]
    pub(super) timeout: Timeout,

    /// Text on the console that says that userland runs, for the boot's timeline [default: the kernel's message
    /// that it runs init]
    #[arg(long, value_name = "TEXT")]
    pub(super) marker: Option<String>,

    /// A change to what CPUID shows, LEAF[.SUBLEAF].REGISTER[.BITS]=VALUE, such as 1.ecx.24=0; may be given again
    #[arg(long, value_name = "CHANGE")]
    pub(super) cpuid: Vec<CpuidOverride>,

    /// What happens to accesses to a model-specific register, as for `vmm run`
    #[arg(long, value_name = "MSR=RULE", value_parser = parse_msr_rule)]
    pub(super) msr: Vec<(u32, MsrRule)>,

    /// Bytes of text that the guest may write, such as 64K [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) output_limit: Option<u64>,

    #[command(flatten)]
    pub(super) report: MeasureArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ModeArg {
    /// 16-bit real mode
    #[value(alias = "16")]
    Real,
    /// 32-bit protected mode
    #[value(alias = "32")]
    Protected,
    /// 64-bit long mode
    #[value(alias = "64")]
    Long,
    /// 64-bit long mode, in ring 3: end by port 0xf4, since HLT is for ring 0
    #[value(name = "user64", aliases = ["user", "ring3"])]
    User,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Real => Self::Real,
            ModeArg::Protected => Self::Protected,
            ModeArg::Long => Self::Long,
            ModeArg::User => Self::User,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum TransportArg {
    /// each access to the device is a VM exit
    Exit,
    /// the same, but the kernel queues the stores that send, until the next exit
    Coalesced,
    /// shared memory, and a host thread that sleeps until the driver rings
    Doorbell,
    /// shared memory, watched by a host thread
    Polling,
}

impl From<TransportArg> for Transport {
    fn from(transport: TransportArg) -> Self {
        match transport {
            TransportArg::Exit => Self::Exit,
            TransportArg::Coalesced => Self::Coalesced,
            TransportArg::Doorbell => Self::Doorbell,
            TransportArg::Polling => Self::Polling,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum ConsoleArg {
    #[default]
    Serial,
    Virtio,
}

/// What `--cpuid` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CpuidArg {
    /// All that KVM supports on this host.
    Host,
    /// Nothing.
    None,
    /// A change to the former.
    Change(CpuidOverride),
}

pub(super) fn parse_cpuid(text: &str) -> Result<CpuidArg, String> {
    match text {
        "host" => Ok(CpuidArg::Host),
        "none" => Ok(CpuidArg::None),
        _ => text.parse().map(CpuidArg::Change),
    }
}

pub(super) fn parse_msr_rule(text: &str) -> Result<(u32, MsrRule), String> {
    let (index, rule) = text.split_once('=').ok_or("give MSR=RULE, such as 0x1a0=deny")?;
    let index = parse_number(index)?.try_into().map_err(|_| "an MSR's number has 32 bits")?;
    Ok((index, rule.parse()?))
}

/// How long a guest may run; nothing for as long as it likes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeout(pub(super) Option<Duration>);

/// That of a run.
impl Default for Timeout {
    fn default() -> Self {
        Self(Some(Duration::from_secs(10)))
    }
}

pub(super) fn parse_timeout(text: &str) -> Result<Timeout, String> {
    const MOST: f64 = 1e9;
    match text.parse::<f64>() {
        // Not what is so small that it rounds to zero.
        Ok(0.0)
            if !text
                .split(['e', 'E'])
                .next()
                .is_some_and(|text| text.contains(|c| ('1'..='9').contains(&c))) =>
        {
            Ok(Timeout(None))
        }
        Ok(seconds) if seconds > 0.0 && seconds <= MOST => {
            Ok(Timeout(Some(Duration::from_secs_f64(seconds))))
        }
        _ => Err("give seconds, such as 10 or 0.5, or 0 for no limit".into()),
    }
}

/// A number in decimal, or in hexadecimal after 0x.
pub(super) fn parse_number(text: &str) -> Result<u64, String> {
    let digits = text.replace('_', "");
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        // from_str_radix would take a sign.
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16),
        None if digits.starts_with(|c: char| c.is_ascii_digit()) => digits.parse(),
        _ => return Err("give a number, such as 4096 or 0x1000".into()),
    }
    .map_err(|_| "give a number of at most 64 bits, such as 4096 or 0x1000".into())
}

/// A number of bytes, with K, M or G for the powers of 1024.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    const WANTED: &str = "give a size, such as 0x100000, 64M or 2G";
    let hex = text.starts_with("0x") || text.starts_with("0X");
    let unit = match text.chars().last().map(|unit| unit.to_ascii_uppercase()) {
        Some('K') if !hex => 10,
        Some('M') if !hex => 20,
        Some('G') if !hex => 30,
        _ => return parse_number(text).map_err(|_| WANTED.into()),
    };
    let number = text.get(..text.len() - 1).unwrap_or_default();
    parse_number(number).ok().and_then(|number| number.checked_mul(1 << unit)).ok_or_else(|| WANTED.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes() {
        assert_eq!(parse_number("0x10_0000"), Ok(1 << 20));
        assert_eq!(parse_number("4096"), Ok(4096));
        for bad in ["", "0x", "-1", "+1", "0x-1", "4k", "18446744073709551616", "1.5"] {
            assert!(parse_number(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_size("250M"), Ok(250 << 20));
        assert_eq!(parse_size("4k"), Ok(4096));
        assert_eq!(parse_size("0x1000"), Ok(4096));
        assert_eq!(parse_size("9223372036854775808"), Ok(1 << 63));
        for bad in ["", "M", "17179869184G", "-1M", "0x1M", "1T", "é"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn policies() {
        assert_eq!(parse_msr_rule("0x1a0=deny"), Ok((0x1a0, MsrRule::Deny)));
        for bad in ["", "1", "1=", "=deny", "1=allow", "0x100000000=deny", "x=log"] {
            assert!(parse_msr_rule(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_cpuid("none"), Ok(CpuidArg::None));
        assert!(matches!(parse_cpuid("1.ecx.24=1"), Ok(CpuidArg::Change(_))));
        assert!(parse_cpuid("some").is_err());
    }

    #[test]
    fn timeouts() {
        assert_eq!(parse_timeout("0.5").unwrap().0, Some(Duration::from_millis(500)));
        assert_eq!(parse_timeout("0").unwrap().0, None);
        assert_eq!(parse_timeout("0.0e9").unwrap().0, None);
        for bad in ["", "1e-400", "-1", "nan", "inf", "1e10", "ten"] {
            assert!(parse_timeout(bad).is_err(), "{bad}");
        }
    }
}
