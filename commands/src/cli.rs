//! The command line: finds the subcommand, parses its options and runs it.

use crate::args::{BootArgs, RunArgs};
use crate::streams::{LOG_TIMEOUT, Log, has_colours, print_stderr, print_stdout, report_error};
use crate::{bench, boot, compare, doctor, exercise, grade, guests, lab, observe, report, run, status};
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm::boot::is_kernel;
use vmm::host::TimeoutWriter;

/// The version, and the features of this build.
fn version() -> &'static str {
    match polls() {
        true => concat!(env!("CARGO_PKG_VERSION"), " (feature polling: --transport defaults to polling)"),
        false => env!("CARGO_PKG_VERSION"),
    }
}

/// The text of --version: the version, and what this build is made from and can do.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let link = if cfg!(target_feature = "crt-static") { "statically linked" } else { "dynamically linked" };
    let processors = if cfg!(has_kvm) { "KVM, software processor" } else { "software processor" };
    let (features, transport) = if polls() { ("polling", "polling") } else { ("none", "exit") };
    let commit = option_env!("VMM_COMMIT").unwrap_or("unknown (`make install` sets it)");
    // The date of a build that can be repeated. Without the variable, two builds of a commit are the same.
    let date = option_env!("SOURCE_DATE_EPOCH").and_then(|seconds| seconds.parse().ok());
    let date = date.map(|seconds| format!("\ndate        {}", vmm::host::utc(seconds))).unwrap_or_default();
    format!(
        "{}\ncommit      {commit}{date}\nbuild       {profile}, {}, {link}\nfeatures    {features}\nprocessors  \
         {processors}\ntransport   {transport}",
        env!("CARGO_PKG_VERSION"),
        env!("BUILD_TARGET")
    )
});

/// Runs 16-, 32- and 64-bit guests on KVM, and counts and explains every VM exit.
#[derive(Debug, Parser)]
#[command(
    name = "vmm",
    version = version(),
    long_version = LONG_VERSION.as_str(),
    arg_required_else_help = true,
    override_usage = "vmm [run] [OPTIONS] <NAME|FILE>\n       vmm [boot] [OPTIONS] <KERNEL>\n       vmm observe [OPTIONS] <PROGRAM> [ARG]...\n       vmm guests\n       vmm grade [so2|kev|FILE.toml] [PROGRAM] [OPTIONS]\n       vmm exercise <check|new> [FILE]\n       vmm lab <new|check|hint|list> ...\n       vmm compare [OPTIONS]\n       vmm report [OPTIONS] <FILE> [FILE2]\n       vmm doctor [--json]\n       vmm bench scale [OPTIONS]",
    after_help = "\
Examples:
  vmm simvirtio                          run a guest and list its exits
  vmm run simvirtio --transport polling  run it over shared memory, by polling
  vmm guest.bin --verify                 run a 16-bit binary; it must leave 42
  vmm guest.bin@0x1000:32                run a 32-bit binary at 0x1000
  vmm guest.elf --timeout 0              run an ELF file without a time limit
  vmm kernel.elf --module initrd         run a multiboot or PVH kernel
  vmm disk.img                           run a boot sector, with a BIOS
  vmm smp.elf --cpus 4                   run four vCPUs, each on its own thread
  vmm bzImage --initrd initrd            boot Linux; Ctrl-A x ends it
  vmm grade --guest16 my.bin             grade a guest of the SO2 assignment
  vmm grade --vmm ./my-vmm               grade a VMM of the SO2 assignment
  vmm compare                            compare the SIMVIRTIO transports
  vmm report run.json -o run.html        write a page about the exits of a run
  vmm observe -- ./my-vmm guest.bin      list the exits of another VMM
  vmm lab new first-vmm my-vmm           learn to write a VMM

`vmm SUBCOMMAND --help` lists the options of a subcommand. Without a subcommand, vmm boots the file \
if it is a Linux kernel, and otherwise runs it.

Exit status:
  0        the guest halted or powered off; its result is right, if verified
  1 to 99  the guest ended with this code
  110      usage error             115  host error
  111      wrong result            116  unusable file
  112      guest crash or panic    117  interrupted
  113      protocol error          118  output limit exceeded
  114      timeout                 119  guest rebooted
  120      an expectation failed   121  stopped by the jail
  141      the reader of a result closed the pipe"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Log more on stderr: -v for info, -vv for debug, -vvv for trace
    #[arg(short, long, action = clap::ArgAction::Count, global = true, display_order = 1000)]
    verbose: u8,
}

// Deferred: clap builds the options of the selected subcommand only.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Run a guest: its output goes to stdout, the result and the exits to stderr
    Run(RunArgs),
    /// Boot Linux: its console uses stdin and stdout, the result and the exits go to stderr
    Boot(BootArgs),
    /// List the built-in guests
    Guests(guests::GuestsArgs),
    /// Grade the assignment of the SO2 course, project 2 of the KeV course (`grade kev`), or an exercise in a file
    Grade(grade::GradeArgs),
    /// Check an exercise for `vmm grade`, or write an example
    Exercise(exercise::ExerciseArgs),
    /// Show a profile or a trace of a run, or the difference between two of them
    Report(report::ReportArgs),
    /// Compare the SIMVIRTIO transports with one workload, in ring 0 and ring 3
    Compare(compare::CompareArgs),
    /// Check if this host can run guests, and print advice if it cannot
    Doctor(doctor::DoctorArgs),
    /// Measure the cost of this VMM, compared with a bare program
    Bench(bench::BenchArgs),
    /// Run another program that uses KVM, and list the exits of its guests
    Observe(observe::ObserveArgs),
    /// Learn to write a VMM: exercises with checks and hints
    Lab(lab::LabArgs),
}

/// The names of the subcommands. Any other first word names a guest.
const SUBCOMMANDS: [&str; 12] = [
    "run", "boot", "guests", "grade", "exercise", "report", "compare", "doctor", "bench", "observe", "lab",
    "help",
];

/// Inserts the subcommand `run` if the command line has none, or `boot` if it names a Linux kernel: `vmm FILE` means
/// `vmm run FILE`.
fn with_subcommand(arguments: Vec<OsString>) -> Vec<OsString> {
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
    if SUBCOMMANDS.iter().chain(&["-h", "--help", "-V", "--version"]).any(|word| first == word) {
        return arguments;
    }
    let with = |word: &str| {
        let mut arguments = arguments.clone();
        arguments.insert(place, word.into());
        arguments
    };
    let names_kernel = |word: &OsString| is_kernel(Path::new(word));
    let parse = |word| Cli::try_parse_from(with(word)).map(|cli| cli.command);
    // A kernel's file may be the value of an option. If neither subcommand accepts the options, `boot` gives the
    // better error message.
    let boots = || match (parse("boot"), parse("run")) {
        (Ok(Command::Boot(boot)), _) => is_kernel(&boot.kernel),
        (_, Ok(Command::Run(run))) => run.guest.as_ref().is_some_and(names_kernel),
        _ => true,
    };
    let boots = arguments.iter().skip(place).any(names_kernel) && boots();
    with(if boots { "boot" } else { "run" })
}

/// Returns the definition of the command line, from which packages make manual pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Recognises `vmm GUEST` and `vmm run GUEST` without options. This skips clap, which would build all options of `run`
/// first: a tenth of a small guest's run time.
fn run_without_options(arguments: &[OsString]) -> Option<RunArgs> {
    let guest = match arguments {
        [_, run, guest] if run == "run" => guest,
        [_, guest] if !SUBCOMMANDS.iter().any(|word| guest == word) && !is_kernel(Path::new(guest)) => guest,
        _ => return None,
    };
    let is_option = guest.is_empty() || guest.as_encoded_bytes().starts_with(b"-");
    (!is_option).then(|| RunArgs { guest: Some(guest.clone()), ..Default::default() })
}

/// True if polling is the default transport of SIMVIRTIO in this program.
static POLLS: AtomicBool = AtomicBool::new(false);

pub(crate) fn polls() -> bool {
    POLLS.load(Ordering::Relaxed)
}

/// Parses the command line and runs the subcommand. If `polls` is set, the default transport of SIMVIRTIO is polling, and not exits:
/// the feature `polling` of the package `cli`. Returns the exit status.
pub fn main(polls: bool) -> u8 {
    POLLS.store(polls, Ordering::Relaxed);
    vmm::host::prepare();
    if vmm::host::stdout_was_closed() {
        let closed = "standard output is closed: redirect it to a file, a pipe, or /dev/null";
        return report_error(&vmm::Error::Host {
            operation: "starting vmm",
            source: io::Error::other(closed),
        });
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match run_without_options(&arguments) {
        Some(guest) => match misspelt(&arguments) {
            Some(message) => return report_error(&vmm::Error::Config(message)),
            None => Cli { command: Command::Run(guest), verbose: 0 },
        },
        None => {
            let arguments = with_subcommand(arguments);
            match Cli::try_parse_from(&arguments) {
                Ok(cli) => cli,
                Err(error) => return print_clap_message(error, &arguments),
            }
        }
    };
    start_log(&cli);
    match cli.command {
        Command::Run(arguments) => run::main(&arguments),
        Command::Boot(arguments) => boot::main(&arguments),
        Command::Guests(arguments) => guests::main(&arguments),
        Command::Grade(arguments) => grade::main(&arguments),
        Command::Exercise(arguments) => exercise::main(&arguments),
        Command::Report(arguments) => report::main(&arguments),
        Command::Compare(arguments) => compare::main(&arguments),
        Command::Doctor(arguments) => doctor::main(&arguments),
        Command::Bench(arguments) => bench::main(&arguments),
        Command::Observe(arguments) => observe::main(&arguments),
        Command::Lab(arguments) => lab::main(&arguments),
    }
}

/// Starts the log on stderr, with the level that the command line selects.
fn start_log(cli: &Cli) {
    let level = match cli.verbose {
        // The evidence of a grade already contains what a warning would say about a guest.
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
        .target(env_logger::Target::Pipe(Box::new(Log(TimeoutWriter::new(io::stderr(), Some(LOG_TIMEOUT))))))
        .init();
}

/// Prints a help text or a usage error of clap. Control characters in `arguments` are escaped, so that they do not reach
/// the terminal. Returns the exit status.
fn print_clap_message(error: clap::Error, arguments: &[OsString]) -> u8 {
    if !error.use_stderr() {
        let text = error.render();
        let has_colours = has_colours(&io::stdout());
        return print_stdout(&if has_colours { text.ansi().to_string() } else { text.to_string() });
    }
    if let Some(message) = misspelt(arguments) {
        return report_error(&vmm::Error::Config(message));
    }
    // Parse again with escaped arguments: the error is the same, and quotes them.
    let escaped = arguments.iter().map(|argument| vmm::host::printable(Path::new(argument)));
    let text = Cli::try_parse_from(escaped).err().unwrap_or(error).render();
    let text = if has_colours(&io::stderr()) { text.ansi().to_string() } else { text.to_string() };
    print_stderr(&format!("vmm: {text}"));
    status::USAGE
}

/// The message about a first word that names no subcommand, guest or file, and is similar to the name of a subcommand.
fn misspelt(arguments: &[OsString]) -> Option<String> {
    /// A similarity of 1 is equality.
    const SIMILAR: f64 = 0.8;
    let given = |word: &&OsString| !word.as_encoded_bytes().starts_with(b"-");
    // `with_subcommand` may have inserted a word.
    let first =
        std::env::args_os().skip(1).find(|word| given(&word)).filter(|first| arguments.contains(first))?;
    let word = first.to_str()?;
    if SUBCOMMANDS.contains(&word) || guest::find(word).is_some() || Path::new(word).exists() {
        return None;
    }
    let similarities = SUBCOMMANDS.iter().map(|name| (strsim::jaro_winkler(name, word), name));
    let (similarity, name) = similarities.max_by(|left, right| left.0.total_cmp(&right.0))?;
    (similarity > SIMILAR).then(|| {
        format!(
            "there is no subcommand, guest or file {}: the most similar subcommand is {name}; `vmm --help` lists all",
            vmm::host::printable_text(word)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_accepts_the_definition_of_the_command_line() {
        Cli::command().debug_assert();
        let command = Cli::command();
        let mut names: Vec<_> = command.get_subcommands().map(|command| command.get_name()).collect();
        names.push("help");
        assert_eq!(names, SUBCOMMANDS);
    }

    #[test]
    fn the_examples_fit_into_80_columns() {
        let mut commands = vec![Cli::command()];
        while let Some(mut command) = commands.pop() {
            command.build();
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let long: Vec<_> =
                text.lines().filter(|line| line.starts_with("  ") && line.len() > 80).collect();
            assert!(long.is_empty(), "{}: {long:?}", command.get_name());
            commands.extend(command.get_subcommands().cloned());
        }
    }

    #[test]
    fn each_help_has_examples_of_its_subcommand() {
        let mut commands = vec![("vmm".to_string(), Cli::command())];
        while let Some((name, mut command)) = commands.pop() {
            command.build();
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = text.split("Examples:\n").nth(1).unwrap_or_default();
            let examples = examples.lines().take_while(|line| line.starts_with("  "));
            let examples: Vec<_> = examples.map(str::trim_start).collect();
            assert!(!examples.is_empty(), "{name} --help has no examples");
            assert!(examples.iter().any(|line| line.starts_with(&name)), "{name}: {examples:?}");
            let inner = command.get_subcommands().filter(|inner| inner.get_name() != "help");
            commands.extend(inner.map(|inner| (format!("{name} {}", inner.get_name()), inner.clone())));
        }
    }

    #[test]
    fn a_run_without_options_skips_the_parser() {
        for words in [&["vmm", "real16-42"][..], &["vmm", "run", "simvirtio"], &["vmm", "a.bin@0x1000:32"]] {
            let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
            let quick = run_without_options(&arguments).unwrap();
            let Command::Run(parsed) = Cli::try_parse_from(with_subcommand(arguments)).unwrap().command
            else {
                panic!("{words:?} should be a run")
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
    fn a_guest_without_a_subcommand_is_run() {
        let line = |text: &str| {
            let words = with_subcommand(text.split(' ').map(OsString::from).collect());
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
