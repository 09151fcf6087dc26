//! The command line: one file for each subcommand. Turns a report into text and an exit status.

mod boot;
mod doctor;
mod grade;
mod guests;
mod report;
mod run;
mod status;
mod target;

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vmm::boot::linux;
use vmm::cpuid::Override;
use vmm::device::simvirtio::Transport;
use vmm::modes::Mode;
use vmm::msr::MsrRule;
use vmm::stdio::Patient;

/// The version, and what sets this build apart.
const VERSION: &str = match cfg!(feature = "polling") {
    true => concat!(env!("CARGO_PKG_VERSION"), " (SIMVIRTIO by polling unless --transport says otherwise)"),
    false => env!("CARGO_PKG_VERSION"),
};

/// Runs 16-, 32- and 64-bit guests on KVM, and counts and explains every VM exit.
#[derive(Debug, Parser)]
#[command(
    name = "vmm",
    version = VERSION,
    arg_required_else_help = true,
    override_usage = "vmm [run] [OPTIONS] <NAME|FILE>\n       vmm [boot] [OPTIONS] <KERNEL>\n       vmm guests\n       vmm grade [so2|kev] [OPTIONS]\n       vmm doctor [--json]",
    after_help = "Examples:
  vmm simvirtio                            the SIMVIRTIO guest, and its exits
  vmm run simvirtio --transport polling    the same image, without exits
  vmm guest.bin --verify                   a 16-bit flat binary at 0 must leave 42
  vmm guest.bin@0x1000:32                  a 32-bit flat binary at 0x1000
  vmm guest.elf --timeout 0                an ELF64 executable, for as long as it likes
  vmm grade --guest16 mine.bin             the assignment's grade, with a guest of mine
  vmm grade kev                            KeV's project 2: a line for each trap
  vmm smp.elf --cpus 4                     four vCPUs, each on a thread
  vmm bzImage --initrd initrd              Linux, with its console here; Ctrl-A x ends it
  vmm vmlinux --disk root.img --cmdline \"console=ttyS0 root=/dev/vda panic=-1\"

`vmm run --help` and `vmm boot --help` list the options of a run and of a boot.

Exit status: 0 halted (and verified, where asked) or powered off; 1 to 99 the guest's
own code; 110 usage, 111 wrong result, 112 guest fault or kernel panic, 113 protocol
error, 114 timeout, 115 host error, 116 unusable image, 117 interrupted, 118 output
limit, 119 rebooted."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Say more: -v what is done, -vv details, -vvv everything
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a guest: its text on stdout; verdict and exits on stderr
    Run(RunArgs),
    /// Boot Linux: its console on stdin and stdout; how it ended and its exits on stderr
    Boot(BootArgs),
    /// List the guests that are built in
    Guests,
    /// Grade the SO2 assignment, or KeV's project 2 (`grade kev`)
    Grade(grade::GradeArgs),
    /// See whether this host can run guests, and what to do where it cannot
    Doctor(doctor::DoctorArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// A built-in guest (`vmm guests` lists them), an ELF64 executable, or a flat binary as
    /// FILE[@ADDR][:MODE], such as guest.bin@0x1000:32
    #[arg(value_name = "NAME|FILE")]
    guest: OsString,

    /// Mode to enter a flat binary in, or 16, 32, 64 [default: real, and long from 1 MiB up]
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,

    /// Guest physical address to load a flat binary at, and to enter it [default: 0]
    #[arg(long, value_name = "ADDR", value_parser = parse_number)]
    load_at: Option<u64>,

    /// Guest memory, such as 0x100000, 64M or 2G; above 1M there is no SIMVIRTIO
    /// [default: 1M, and 250M for a guest at 1 MiB or above]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    mem: Option<u64>,

    /// How the guest's SIMVIRTIO driver reaches the device [default: exit, or polling in a build
    /// with that feature]
    #[arg(long, value_enum)]
    transport: Option<TransportArg>,

    /// Length of SIMVIRTIO's queues in bytes, 2 to 4096 [default: 256]
    #[arg(long, value_name = "BYTES")]
    queue_len: Option<u16>,

    /// File to read the input of the guest's SIMVIRTIO driver from [default: standard input]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,

    /// Seconds that the guest may run, 0 for no limit; waiting for input does not count
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_timeout)]
    timeout: Timeout,

    /// The guest must leave 42 in RAX (EAX, AX) and at 0x400; built-in guests that promise it are
    /// verified without asking
    #[arg(long)]
    verify: bool,

    /// What CPUID shows the guest: `host`, `none` (starts faster), or a change to what the host shows,
    /// LEAF[.SUBLEAF].REGISTER[.BITS]=VALUE, such as 1.ecx.24=1 or 1.ebx.31-24=0xba; may be given again
    /// [default: host for files, none for most built-in guests]
    #[arg(long, value_name = "WHAT", value_parser = parse_cpuid)]
    cpuid: Vec<CpuidArg>,

    /// How many vCPUs run the guest, 1 to 32, each on a thread of its own; RDI and CPUID say which is which
    /// [default: 1]
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,

    /// What happens to accesses to a model-specific register, such as 0x1a0=deny: `deny` (#GP), `ignore`
    /// (reads 0) or `log`; may be given again for others
    #[arg(long, value_name = "MSR=RULE", value_parser = parse_msr_rule)]
    msr: Vec<(u32, MsrRule)>,

    /// Add the devices of KeV's project 2: FIFOs on port 0xbb and MSR 0xabc, a constant on port 3, and a
    /// printer at 0xcafe0000
    #[arg(long)]
    kev: bool,

    /// Bytes of text that the guest may write, such as 64K [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    output_limit: Option<u64>,

    /// Do not count exits
    #[arg(long)]
    no_profile: bool,

    /// Of what is said after the run, only the first line
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct BootArgs {
    /// A Linux kernel for x86-64: a vmlinux (ELF64) or a bzImage
    #[arg(value_name = "KERNEL")]
    kernel: PathBuf,

    /// Initial RAM disk: a cpio archive, compressed or not
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,

    /// The kernel's command line; panic=-1 has a crash end the machine
    /// [default: console=ttyS0 panic=-1 reboot=k; with --console virtio, console=hvc0]
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,

    /// A raw disk image, /dev/vda and so on in this order; `,ro` after it keeps it as it is; may be given again
    #[arg(long, value_name = "FILE[,ro]")]
    disk: Vec<OsString>,

    /// Where the console is: the serial port (ttyS0), or a virtio console (hvc0), which is faster and later
    #[arg(long, value_enum, default_value_t)]
    console: ConsoleArg,

    /// The machine's memory, such as 64M or 8G
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    mem: u64,

    /// How many vCPUs it has, 1 to 32
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,

    /// Seconds that it may run, 0 for no limit
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = parse_timeout)]
    timeout: Timeout,

    /// Text on the console that says that userland runs, for the boot's timeline [default: the kernel's message
    /// that it runs init]
    #[arg(long, value_name = "TEXT")]
    marker: Option<String>,

    /// A change to what CPUID shows, LEAF[.SUBLEAF].REGISTER[.BITS]=VALUE, such as 1.ecx.24=0; may be given again
    #[arg(long, value_name = "CHANGE")]
    cpuid: Vec<Override>,

    /// What happens to accesses to a model-specific register, as for `vmm run`
    #[arg(long, value_name = "MSR=RULE", value_parser = parse_msr_rule)]
    msr: Vec<(u32, MsrRule)>,

    /// Bytes of text that the guest may write, such as 64K [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    output_limit: Option<u64>,

    /// Do not count exits
    #[arg(long)]
    no_profile: bool,

    /// Of what is said after the run, only the first line
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArg {
    /// 16-bit real mode
    #[value(alias = "16")]
    Real,
    /// 32-bit protected mode
    #[value(alias = "32")]
    Protected,
    /// 64-bit long mode
    #[value(alias = "64")]
    Long,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Real => Self::Real,
            ModeArg::Protected => Self::Protected,
            ModeArg::Long => Self::Long,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TransportArg {
    /// each access to the device is a VM exit
    Exit,
    /// shared memory, watched by a host thread
    Polling,
}

impl From<TransportArg> for Transport {
    fn from(transport: TransportArg) -> Self {
        match transport {
            TransportArg::Exit => Self::Exit,
            TransportArg::Polling => Self::Polling,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ConsoleArg {
    #[default]
    Serial,
    Virtio,
}

/// What `--cpuid` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CpuidArg {
    /// All that KVM supports on this host.
    Host,
    /// Nothing.
    None,
    /// A change to the former.
    Change(Override),
}

fn parse_cpuid(text: &str) -> Result<CpuidArg, String> {
    match text {
        "host" => Ok(CpuidArg::Host),
        "none" => Ok(CpuidArg::None),
        _ => text.parse().map(CpuidArg::Change),
    }
}

fn parse_msr_rule(text: &str) -> Result<(u32, MsrRule), String> {
    let (index, rule) = text.split_once('=').ok_or("give MSR=RULE, such as 0x1a0=deny")?;
    let index = parse_number(index)?.try_into().map_err(|_| "an MSR's number has 32 bits")?;
    Ok((index, rule.parse()?))
}

/// How long a guest may run; nothing for as long as it likes.
#[derive(Clone, Copy, Debug)]
struct Timeout(Option<Duration>);

fn parse_timeout(text: &str) -> Result<Timeout, String> {
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
fn parse_number(text: &str) -> Result<u64, String> {
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
fn parse_size(text: &str) -> Result<u64, String> {
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

/// What may stand first on the command line; anything else is a guest to run.
const SUBCOMMANDS: [&str; 6] = ["run", "boot", "guests", "grade", "doctor", "help"];

/// Puts `run` in front of a bare guest, and `boot` where that is a Linux kernel: `vmm FILE` is `vmm run FILE`.
fn with_run(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let is_verbose = |argument: &OsStr| {
        argument.to_str().is_some_and(|text| {
            text == "--verbose"
                || text
                    .strip_prefix('-')
                    .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte == b'v'))
        })
    };
    let place = 1 + arguments.iter().skip(1).take_while(|argument| is_verbose(argument)).count();
    let Some(first) = arguments.get(place) else { return arguments };
    if !SUBCOMMANDS.iter().chain(&["-h", "--help", "-V", "--version"]).any(|word| first == word) {
        let words = arguments.iter().skip(place.saturating_sub(1));
        // A kernel may also be something that a guest reads.
        let kernel = words
            .clone()
            .zip(words.skip(1))
            .any(|(before, argument)| before != "--input" && linux::is_kernel(Path::new(argument)));
        arguments.insert(place, if kernel { "boot".into() } else { "run".into() });
    }
    arguments
}

/// Parses the command line, does what it says, and answers with the exit status.
pub fn main() -> ExitCode {
    vmm::make_limits_errors();
    if vmm::stdout_was_closed() {
        let closed = "standard output is closed: give it a file, a pipe, or /dev/null";
        return complain(&vmm::Error::Host { operation: "starting", source: io::Error::other(closed) })
            .into();
    }
    let arguments = with_run(std::env::args_os().collect());
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return explain_usage(error, &arguments).into(),
    };
    let level = match cli.verbose {
        // What is odd about a guest is in the evidence already.
        0 if matches!(cli.command, Command::Grade(_)) => log::LevelFilter::Error,
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        2 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    };
    env_logger::Builder::new()
        .filter_level(level)
        .parse_default_env()
        .format(|to, record| {
            writeln!(to, "vmm: {}: {}", record.level().as_str().to_lowercase(), record.args())
        })
        .target(env_logger::Target::Pipe(Box::new(Log(Patient::new(io::stderr(), Some(LOG_PATIENCE))))))
        .init();
    match cli.command {
        Command::Run(arguments) => run::main(&arguments),
        Command::Boot(arguments) => boot::main(&arguments),
        Command::Guests => guests::main(),
        Command::Grade(arguments) => grade::main(&arguments),
        Command::Doctor(arguments) => doctor::main(&arguments),
    }
    .into()
}

/// Prints what clap has to say, help or a mistake, without what `arguments` would do to a terminal.
fn explain_usage(error: clap::Error, arguments: &[OsString]) -> u8 {
    if !error.use_stderr() {
        let text = error.render();
        return print(&if io::stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() });
    }
    // The same mistake, but with names that can be shown.
    let shown = arguments.iter().map(|argument| vmm::boot::printable(Path::new(argument)));
    let text = Cli::try_parse_from(shown).err().unwrap_or(error).render();
    say(&if io::stderr().is_terminal() { text.ansi().to_string() } else { text.to_string() });
    status::USAGE
}

/// For how long nobody may take what is said on stderr.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for a line of the log, during a run whose time goes on.
const LOG_PATIENCE: Duration = Duration::from_millis(500);
/// Whether nobody has taken a line of the log in that time.
static UNREAD: AtomicBool = AtomicBool::new(false);

/// Says something on stderr. Where even that cannot be written, the exit status has to do.
fn say(text: &str) {
    let patience = if UNREAD.load(Ordering::Relaxed) { LOG_PATIENCE } else { PATIENCE };
    let _ = Patient::new(io::stderr(), Some(patience)).write_all(text.as_bytes());
}

/// The log's way to stderr. Once nobody takes it, the rest is dropped: a log must not hold a run.
struct Log(Patient<io::Stderr>);

impl Write for Log {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if !UNREAD.load(Ordering::Relaxed) && self.0.write_all(data).is_err() {
            UNREAD.store(true, Ordering::Relaxed);
        }
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints a result on stdout and answers with the exit status.
fn print(text: &str) -> u8 {
    match Patient::new(io::stdout(), None).write_all(text.as_bytes()) {
        Ok(()) => status::OK,
        Err(_) if vmm::interrupted() => status::INTERRUPTED,
        Err(source) => complain(&vmm::Error::Host { operation: "writing standard output", source }),
    }
}

/// Says on stderr what went wrong on the host's side, and gives the status for it.
fn complain(error: &vmm::Error) -> u8 {
    say(&format!("vmm: error: {error}\n"));
    status::of_error(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
        let command = Cli::command();
        let mut names: Vec<_> = command.get_subcommands().map(|command| command.get_name()).collect();
        names.push("help");
        assert_eq!(names, SUBCOMMANDS);
    }

    #[test]
    fn a_bare_guest_is_run() {
        let line = |text: &str| {
            let words = with_run(text.split(' ').map(OsString::from).collect());
            words.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("vmm a.bin"), "vmm run a.bin");
        assert_eq!(line("vmm -vv --mem 2M a.bin"), "vmm -vv run --mem 2M a.bin");
        assert_eq!(line("vmm --verbose guests"), "vmm --verbose guests");
        assert_eq!(line("vmm run guests"), "vmm run guests");
        for same in ["vmm", "vmm -v", "vmm grade", "vmm --help", "vmm help run", "vmm -V"] {
            assert_eq!(line(same), same);
        }
    }

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
