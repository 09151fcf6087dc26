//! The command line: one file for each subcommand. Turns a report into text and an exit status.

use crate::args::{BootArgs, RunArgs};
use crate::say::{LOG_PATIENCE, Log, complain, print, say};
use crate::{bench, boot, compare, doctor, grade, guests, report, run, status};
use clap::{Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use vmm::boot::is_kernel;
use vmm::host::TimeoutWriter;

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
    override_usage = "vmm [run] [OPTIONS] <NAME|FILE>\n       vmm [boot] [OPTIONS] <KERNEL>\n       vmm guests\n       vmm grade [so2|kev] [OPTIONS]\n       vmm compare [OPTIONS]\n       vmm report [OPTIONS] <FILE> [FILE2]\n       vmm doctor [--json]\n       vmm bench scale [OPTIONS]",
    after_help = "Examples:
  vmm simvirtio                            the SIMVIRTIO guest, and its exits
  vmm run simvirtio --transport polling    the same image, without exits
  vmm guest.bin --verify                   a 16-bit flat binary at 0 must leave 42
  vmm guest.bin@0x1000:32                  a 32-bit flat binary at 0x1000
  vmm guest.elf --timeout 0                an ELF64 executable, for as long as it likes
  vmm grade --guest16 mine.bin             the assignment's grade, with a guest of mine
  vmm grade kev                            KeV's project 2: a line for each trap
  vmm compare                              one workload over every transport: what each costs
  vmm smp.elf --cpus 4                     four vCPUs, each on a thread
  vmm bzImage --initrd initrd              Linux, with its console here; Ctrl-A x ends it
  vmm report run.json --format html -o run.html
                                           where the exits of a run went, as a page
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

// Deferred: only the options of the subcommand that is called are put together.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Run a guest: its text on stdout; verdict and exits on stderr
    Run(RunArgs),
    /// Boot Linux: its console on stdin and stdout; how it ended and its exits on stderr
    #[command(after_help = "With a terminal on stdin each key goes to the guest, but for these:
  Ctrl-A x         end the machine
  Ctrl-A h         show the keys
  Ctrl-A Ctrl-A    send Ctrl-A to the guest")]
    Boot(BootArgs),
    /// List the guests that are built in
    Guests,
    /// Grade the SO2 assignment, or KeV's project 2 (`grade kev`)
    Grade(grade::GradeArgs),
    /// Show a profile or a trace that a run has written, or the difference of two
    Report(report::ReportArgs),
    /// Compare the transports: one workload over each, by turns, in ring 0 and ring 3
    Compare(compare::CompareArgs),
    /// See whether this host can run guests, and what to do where it cannot
    Doctor(doctor::DoctorArgs),
    /// Measure what this VMM costs, next to a bare program
    Bench(bench::BenchArgs),
}

/// What may stand first on the command line; anything else is a guest to run.
const SUBCOMMANDS: [&str; 9] =
    ["run", "boot", "guests", "grade", "report", "compare", "doctor", "bench", "help"];

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
        let with = |word: &str| {
            let mut arguments = arguments.clone();
            arguments.insert(place, word.into());
            arguments
        };
        // What is a kernel is booted; also for the sake of the mistake that is told.
        let names_kernel = |word: &OsString| is_kernel(Path::new(word));
        let command = |word| Cli::try_parse_from(with(word)).map(|cli| cli.command);
        let boots = || match (command("boot"), command("run")) {
            (Ok(Command::Boot(boot)), _) => is_kernel(&boot.kernel),
            (_, Ok(Command::Run(run))) => names_kernel(&run.guest),
            _ => true,
        };
        let boots = arguments.iter().skip(place).any(names_kernel) && boots();
        arguments = with(if boots { "boot" } else { "run" });
    }
    arguments
}

/// `vmm GUEST` and `vmm run GUEST`, without options. clap would build all options of a run, to find that none is given: that is
/// a tenth of a small guest's run.
fn run_without_options(arguments: &[OsString]) -> Option<RunArgs> {
    let guest = match arguments {
        [_, run, guest] if run == "run" => guest,
        [_, guest] if !SUBCOMMANDS.iter().any(|word| guest == word) && !is_kernel(Path::new(guest)) => guest,
        _ => return None,
    };
    let is_option = guest.is_empty() || guest.as_encoded_bytes().starts_with(b"-");
    (!is_option).then(|| RunArgs { guest: guest.clone(), ..Default::default() })
}

/// Parses the command line, does what it says, and answers with the exit status.
pub fn main() -> u8 {
    vmm::host::prepare();
    if vmm::host::stdout_was_closed() {
        let closed = "standard output is closed: give it a file, a pipe, or /dev/null";
        return complain(&vmm::Error::Host { operation: "starting", source: io::Error::other(closed) });
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match run_without_options(&arguments) {
        Some(guest) => Cli { command: Command::Run(guest), verbose: 0 },
        None => {
            let arguments = with_run(arguments);
            match Cli::try_parse_from(&arguments) {
                Ok(cli) => cli,
                Err(error) => return explain_usage(error, &arguments),
            }
        }
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
        .target(env_logger::Target::Pipe(Box::new(Log(TimeoutWriter::new(io::stderr(), Some(LOG_PATIENCE))))))
        .init();
    match cli.command {
        Command::Run(arguments) => run::main(&arguments),
        Command::Boot(arguments) => boot::main(&arguments),
        Command::Guests => guests::main(),
        Command::Grade(arguments) => grade::main(&arguments),
        Command::Report(arguments) => report::main(&arguments),
        Command::Compare(arguments) => compare::main(&arguments),
        Command::Doctor(arguments) => doctor::main(&arguments),
        Command::Bench(arguments) => bench::main(&arguments),
    }
}

/// Prints what clap has to say, help or a mistake, without what `arguments` would do to a terminal.
fn explain_usage(error: clap::Error, arguments: &[OsString]) -> u8 {
    if !error.use_stderr() {
        let text = error.render();
        return print(&if io::stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() });
    }
    // The same mistake, but with names that can be shown.
    let shown = arguments.iter().map(|argument| vmm::host::printable(Path::new(argument)));
    let text = Cli::try_parse_from(shown).err().unwrap_or(error).render();
    say(&if io::stderr().is_terminal() { text.ansi().to_string() } else { text.to_string() });
    status::USAGE
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
    fn a_run_without_options_needs_no_parser() {
        for words in [&["vmm", "real16-42"][..], &["vmm", "run", "simvirtio"], &["vmm", "a.bin@0x1000:32"]] {
            let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
            let quick = run_without_options(&arguments).unwrap();
            let Command::Run(parsed) = Cli::try_parse_from(with_run(arguments)).unwrap().command else {
                panic!("{words:?} is a run")
            };
            assert_eq!(format!("{quick:?}"), format!("{parsed:?}"));
        }
        for words in [
            &["vmm"][..],
            &["vmm", "guests"],
            &["vmm", "run", "-q"],
            &["vmm", "boot", "real16-42"],
            &["vmm", "help"],
            &["vmm", "--version"],
            &["vmm", ""],
            &["vmm", "-v", "a.bin"],
        ] {
            let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
            assert!(run_without_options(&arguments).is_none(), "{words:?}");
        }
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
}
