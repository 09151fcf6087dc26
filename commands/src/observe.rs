//! `vmm observe`: runs another program, and shows the exits of its guests.

mod deaths;
mod names;

use crate::args::{EngineArg, Timeout, parse_timeout};
use crate::jail::JailArgs;
use crate::measure::{ResultArgs, ResultFiles};
use crate::status::{self, Failure};
use crate::streams::{fresh_line, print_stderr, report_error};
use crate::summary::{busiest, exits};
use clap::Args;
use jail::{Place, Use};
use names::ObservedNames;
use observe::{
    Choice, Deaths, Doubts, Ending, Event, Observation, ObservedMemory, Options, Program, Setup, Stops,
};
use report::view::{By, plural};
use report::{Measured, SavedName};
use std::ffi::OsString;
use std::fmt::Write;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use vmm::exit::Reason;

/// The number of vCPUs that get a line.
const LINES: usize = 32;
/// The exit status of a program that a signal ended, without the number of the signal: as the shell has it.
const SIGNALLED: i32 = 128;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm observe -- ./my-vmm guest.bin          a VMM of your own
  vmm observe --profile json=q.json -- qemu-system-x86_64 -accel kvm -M microvm
  vmm report mine.json q.json                the difference of two profiles
  vmm observe --timeout 10 -- ./my-vmm       end it and its children after 10 s
  vmm observe --symbols k.elf -- ./my-vmm    names in a guest's death
  vmm observe --setup -- ./my-vmm            the calls that build the machine
  vmm observe --engine ptrace -- ./my-vmm    if it makes system calls itself
  vmm observe -- vmm run simvirtio           this program itself

The program keeps its input, output, terminal and signals. The table goes to stderr when it has ended. Only the exits \
that reach the program are seen: KVM handles others itself.

Exit status: that of the program, or 128 and the number of the signal that ended it; 110 if the program cannot be \
found or run, 114 for a timeout, 115 for a host error, 116 if the program cannot be observed.")]
pub struct ObserveArgs {
    /// Program to run, and its arguments; a name without a slash is searched for in PATH. All words after PROGRAM are its
    /// arguments, and `--` may stand before it
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        num_args = 1..,
        value_name = "PROGRAM [ARG]..."
    )]
    command: Vec<OsString>,

    /// Way to see the calls of the program
    #[arg(long, value_enum, default_value_t)]
    engine: EngineArg,

    /// Show the calls to KVM that built the machine, in words, with its memory map and the meaning of errors; shown without
    /// this option if the guest died, or if a call failed before a guest ran
    #[arg(long)]
    setup: bool,

    /// Time limit of the program in seconds, such as 60 or 0.5; after it, the program and its children are ended; 0
    /// means no limit
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = parse_timeout)]
    timeout: Timeout,

    #[command(flatten)]
    jail: JailArgs,

    #[command(flatten)]
    results: ResultArgs,
}

impl From<EngineArg> for Choice {
    fn from(argument: EngineArg) -> Self {
        match argument {
            EngineArg::Auto => Self::Auto,
            EngineArg::Preload => Self::Preload,
            EngineArg::Ptrace => Self::Ptrace,
        }
    }
}

/// Runs the program and prints its exits. Returns the exit status.
pub fn main(arguments: &ObserveArgs) -> u8 {
    match observe(arguments) {
        Ok(status) => status,
        Err(error) => report_error(&error),
    }
}

fn observe(arguments: &ObserveArgs) -> Result<u8, Failure> {
    let none = OsString::new();
    let (name, rest) = arguments.command.split_first().unwrap_or((&none, &[]));
    let program = Program::find(name)?;
    let by = arguments.results.by.map(By::from);
    let options = Options {
        timeout: arguments.timeout.0,
        trace: arguments.results.traced(),
        by_address: by.is_some(),
        stops: Stops { first_entry: arguments.setup, halts: true, rip: by.is_some() },
        jail: arguments.jail.confinement(false, &program, rest, Some(Place::new(".", Use::Execute))),
        folder: None,
    };
    let mut engine = choice(arguments.engine, by)?.engine(&program)?;
    let inputs = || rest.iter().map(PathBuf::from).chain([PathBuf::from(program.path())]).collect();
    let files = ResultFiles::open(&arguments.results, inputs)?;
    let (mut setup, mut deaths, mut doubts) = (Setup::default(), Deaths::default(), Doubts::default());
    let mut names = arguments.results.symbols.as_deref().map(ObservedNames::open).transpose()?;
    let mut watcher = |event: &Event, memory: &ObservedMemory| {
        setup.take(event, memory);
        deaths.see(event, memory);
        doubts.see(event, memory);
        names.iter_mut().for_each(|names| names.see(event, memory));
    };
    let mut observation = observe::observe(&program, rest, options, engine.as_mut(), &mut watcher)?;
    observation.note_deaths(&deaths);
    observation.note_doubts(&doubts);
    let saved_names = names.as_ref().map(|names| names.saved(&observation)).unwrap_or_default();
    let engine_name = engine.name();
    // The temporary files are of no more use.
    drop(engine);
    let (name, ended) = (program.short_name(), observation.ending.to_string());
    let milliseconds = observation.elapsed.as_secs_f64() * 1e3;
    let mut text = format!("vmm: {name}: {ended} (after {milliseconds:.2} ms)\n");
    if !arguments.results.quiet {
        text += &details(&name, &observation, &saved_names, by);
    }
    text += &deaths::text(&name, &observation, &deaths, names.as_ref(), arguments.results.quiet);
    for guest in doubts.iter().take(LINES) {
        text += &format!("vmm: {name}: {} halted {}\n", observation.name_of(guest.vcpu), guest.text());
    }
    let is_told = setup.has_died() || (setup.has_failed() && has_failed_early(&observation));
    if arguments.setup || (is_told && !arguments.results.quiet) {
        text += &setup.text();
    }
    if let Some(question) = unanswered(&name, &observation).filter(|_| !arguments.results.quiet) {
        text += &format!("vmm: {question}\n");
    }
    text += &remarks(&name, engine_name, &observation, setup.has_failed());
    print_stderr(&(fresh_line() + &text));
    // From here on a signal is for this program.
    vmm::host::catch_interrupts();
    let saved = if arguments.setup || is_told { setup.saved() } else { None };
    let measured =
        Measured { setup: saved.as_ref(), names: &saved_names, ..observation.measured(&name, &ended) };
    Ok(files.write(Some(&measured), status(&observation)))
}

/// The engine. Only `ptrace` records RIP.
///
/// # Errors
/// The exits are to be shown by function, and the engine does not record RIP.
fn choice(engine: EngineArg, by: Option<By>) -> Result<Choice, Failure> {
    match (engine, by) {
        (EngineArg::Auto, Some(_)) => Ok(Choice::Ptrace),
        (EngineArg::Preload, Some(_)) => Err(vmm::Error::Config(
            "--by needs RIP at each exit, which --engine preload does not record: leave out --engine preload"
                .into(),
        )
        .into()),
        (engine, _) => Ok(engine.into()),
    }
}

/// True if the program ended with an error, and no guest of it ran.
fn has_failed_early(observation: &Observation) -> bool {
    let ran = observation.vcpus.iter().any(|vcpu| vcpu.profile.total().exits > 0);
    !ran && matches!(observation.ending, Ending::Ended(ended) if !ended.success())
}

/// The exit status for the end of the program.
fn status(observation: &Observation) -> u8 {
    match observation.ending {
        Ending::Timeout(_) => status::TIMEOUT,
        Ending::Ended(ended) => {
            let signalled = || ended.signal().map(|signal| signal.saturating_add(SIGNALLED));
            let status = ended.code().or_else(signalled);
            status.and_then(|status| u8::try_from(status).ok()).unwrap_or(u8::MAX)
        }
    }
}

/// The exits: those of each vCPU in a line, if there are several, and those of all of them in a table.
fn details(name: &str, observation: &Observation, names: &[SavedName], by: Option<By>) -> String {
    let mut text = String::new();
    if observation.vcpus.is_empty() {
        return text;
    }
    let several = observation.vcpus.len() > 1;
    for vcpu in observation.vcpus.iter().filter(|_| several).take(LINES) {
        let count = plural(vcpu.profile.total().exits, "exit");
        let sites = busiest(&vcpu.profile);
        // Writing to a String cannot fail.
        let _ = match sites.as_str() {
            "" => writeln!(text, "vmm: {}: {count}", observation.name(vcpu)),
            _ => writeln!(text, "vmm: {}: {count}: {sites}", observation.name(vcpu)),
        };
    }
    if observation.vcpus.len() > LINES {
        let more = observation.vcpus.len().saturating_sub(LINES);
        let _ = writeln!(text, "vmm: and {}", plural(more as u64, "more vCPU"));
    }
    text + &exits(&Measured { names, ..observation.measured(name, "") }, by)
}

/// Lines about missing counts and unusual ends.
fn remarks(name: &str, engine: &str, observation: &Observation, has_failed: bool) -> String {
    let mut remarks: Vec<_> =
        observation.missing.iter().map(|part| format!("jail: {}", part.text())).collect();
    if observation.machines == 0 && observation.vcpus.is_empty() {
        remarks.push(match engine {
            _ if observation.is_hidden => format!(
                "the calls of {name} to KVM are not known, because it hides its files from other processes of its user \
                 (PR_SET_DUMPABLE): leave that out, or run vmm as root"
            ),
            _ if has_failed => format!("{name} made no VM, and calls to KVM failed (--setup)"),
            "ptrace" => format!("{name} made no VM: neither it nor a child called KVM_CREATE_VM on /dev/kvm"),
            _ => format!(
                "{name} made no VM: neither it nor a child called KVM_CREATE_VM through the C library's ioctl; --engine \
                 ptrace sees all calls"
            ),
        });
        if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
            remarks
                .push(format!("/dev/kvm cannot be opened here: {error}: `vmm doctor` names the next step"));
        }
    }
    for (error, count) in observation.errors() {
        remarks.push(format!("KVM_RUN failed {}: {error}", plural(count, "time")));
    }
    if observation.lost > 0 {
        let exits = plural(observation.lost, "exit");
        remarks.push(format!("{exits} not counted, because this host was too slow to record them"));
    }
    if observation.unrecorded > 0 {
        let vcpus = plural(observation.unrecorded.into(), "vCPU");
        remarks.push(match engine {
            "ptrace" => format!("{vcpus} not observed: vmm could not get hold of them, or has no more file descriptors"),
            _ => format!(
                "{vcpus} not observed: the program could not map the file that it shares with vmm, filters its system calls \
                 (--engine ptrace sees them), or has more than 1024 vCPUs"
            ),
        });
    }
    if engine == "preload"
        && matches!(observation.ending, Ending::Ended(ended) if ended.signal() == Some(libc::SIGSYS))
    {
        remarks.push(format!(
            "a seccomp filter ended {name}: it may not permit a call of the preloaded library; --engine ptrace makes no calls \
             that a filter sees"
        ));
    }
    if observation.has_left_children {
        let then = match engine {
            "ptrace" => "from now on all of their calls to KVM fail, with ENOSYS",
            _ => "what they do from now on is not counted",
        };
        remarks.push(format!("children of {name} still run; {then}"));
    }
    remarks.iter().fold(String::new(), |text, remark| text + "vmm: " + remark + "\n")
}

/// A question about reads that the program does not seem to answer. Most reads first.
fn unanswered(name: &str, observation: &Observation) -> Option<String> {
    const LISTED: usize = 3;
    let mut places = observation.unanswered.clone();
    vmm::host::sort_by_key(&mut places, |one| (std::cmp::Reverse(one.reads), one.place));
    let listed = places.iter().take(LISTED).map(|one| match one.reason {
        Reason::PioIn => format!("{} of port {:#x}", plural(one.reads, "read"), one.place),
        _ => format!("{} at {:#x}", plural(one.reads, "MMIO read"), one.place),
    });
    let mut listed: Vec<_> = listed.collect();
    let more = places.len().saturating_sub(LISTED);
    if more > 0 {
        listed.push(format!("those at {}", plural(more as u64, "other place")));
    }
    let last = listed.pop()?;
    let all = if listed.is_empty() { last } else { format!("{} and {last}", listed.join(", ")) };
    Some(format!("{all} got the bytes that were in kvm_run before: does {name} answer them?"))
}
