//! Shared helpers of the end-to-end tests: kinds of tests, runs of the program with a time limit, ELF files, and a
//! simulated KVM that fails.
#![allow(dead_code, clippy::unwrap_used)]

pub mod assembler;
pub mod kernels;
pub mod kvm;
pub mod payloads;

use guest::{End, Guest};
#[allow(unused_imports)]
pub use kvm::{
    each_on_both, is_soft, kvm_test, machine_test, on_both, plain_test, processor, soft_test, test_unless,
    unusable,
};
use libtest_mimic::Arguments;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vmm::boot::Image;
use vmm::device::{Layout, Transport};
use vmm::machine::Processor;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Builder, Input, Machine, Output, Report};

/// The command line of a test program. Without --test-threads, there are twice as many tests at the same time as this host has
/// processors, because most of them wait: for the time limit of a guest, or for a program that does nothing for a while.
pub fn arguments() -> Arguments {
    let mut arguments = Arguments::from_args();
    let threads = || thread::available_parallelism().ok().map(|count| count.get() * 2);
    arguments.test_threads = arguments.test_threads.or_else(threads);
    arguments
}

/// Aborts the whole test program after ten minutes. Before that, restores the default action of SIGINT and SIGQUIT, if it is
/// not set.
pub fn watchdog() {
    restore_signals();
    thread::spawn(|| {
        thread::sleep(Duration::from_secs(600));
        eprintln!("the tests took longer than ten minutes");
        std::process::abort();
    });
}

/// Restarts the test program if it ignores SIGINT or SIGQUIT, as in the background of a shell. The programs that the tests
/// start would ignore them too.
fn restore_signals() {
    const INTERRUPT_AND_QUIT: u64 = 1 << 1 | 1 << 2;
    if signal_mask("self", "SigIgn:") & INTERRUPT_AND_QUIT != 0 {
        let program = std::env::current_exe().expect("the path of the test program");
        let mut restart = Command::new("env");
        restart.arg("--default-signal=INT,QUIT").arg(program).args(std::env::args_os().skip(1));
        panic!("cannot restart with the default signals: {}", restart.exec());
    }
}

/// Returns a mask of signals from a process's status, or 0 if there is none.
fn signal_mask(process: &str, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix(name));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// The output and the exit status of a program.
#[derive(Debug)]
pub struct Ran {
    /// The exit status, or -1 if a signal ended the program.
    pub status: i32,
    /// The standard output.
    pub stdout: Vec<u8>,
    /// The standard error, as text, without `choice`.
    pub stderr: String,
    /// The line in which the program says that it has chosen the software processor. Empty if it has not.
    pub choice: String,
}

impl Ran {
    /// Returns the standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs a command. A command that takes longer than a minute is killed, and its test fails.
pub fn run(command: &mut Command) -> Ran {
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the command starts");
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let status = wait(&mut child);
    let collect = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        reader.map(|reader| reader.join().expect("the reader ends")).unwrap_or_default()
    };
    let stderr = String::from_utf8_lossy(&collect(stderr)).into_owned();
    let (stderr, choice) = without_choice(&stderr);
    Ran { status, stdout: collect(stdout), stderr, choice }
}

/// The reason why a program cannot be run, if it is missing.
pub fn missing(program: &str) -> Option<String> {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    (!found.is_ok_and(|status| status.success())).then(|| format!("{program} is not installed"))
}

/// Runs a shell command on a terminal of its own, with the program script(1). Returns the characters that the terminal gets.
pub fn on_terminal(line: &str) -> String {
    let mut script = Command::new("script");
    run(script.args(["-qec", line, "/dev/null"]).env("TERM", "xterm").stdout(Stdio::piped())).text()
}

/// The end of the line in which the program says that it has chosen the software processor.
const CHOICE: &str = "(--vcpu soft hides this line, --vcpu kvm says more)\n";

/// Splits the line about the choice of the software processor off, so that a test expects the same text on all hosts.
pub fn without_choice(stderr: &str) -> (String, String) {
    let (choice, rest): (Vec<&str>, Vec<&str>) =
        stderr.split_inclusive('\n').partition(|line| line.ends_with(CHOICE));
    (rest.concat(), choice.concat())
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}

/// Waits until a program ends and returns its exit status. After a minute it kills the program and panics.
pub fn wait(child: &mut Child) -> i32 {
    let started = Instant::now();
    loop {
        match child.try_wait().expect("the child can be waited for") {
            Some(status) => return status.code().unwrap_or(-1),
            None if started.elapsed() > Duration::from_secs(60) => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the program did not end within a minute");
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Waits until a program has a handler for SIGTERM. Panics after half a minute.
pub fn wait_for_handlers(child: &Child) {
    const TERM: u64 = 1 << 14;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(30) {
        if signal_mask(&child.id().to_string(), "SigCgt:") & TERM != 0 {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("the program has no handler for SIGTERM");
}

/// Returns a command that runs the `vmm` program with these arguments and captures its output.
pub fn vmm(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.args(arguments).stdout(Stdio::piped()).env_remove("RUST_LOG");
    // The subcommands that run a guest take the option. Without a subcommand, the first word is a guest.
    let runs = !["boot", "bench", "compare", "doctor", "exercise", "guests", "observe", "report"]
        .contains(&arguments.first().copied().unwrap_or_default());
    match processor() {
        Some(Processor::Soft) if runs => command.args(["--vcpu", "soft"]),
        Some(Processor::Kvm) if runs => command.args(["--vcpu", "kvm"]),
        _ => &mut command,
    };
    command
}

/// Returns an ELF64 executable with `code` at `address`. Its entry point is the first byte of the code.
pub fn elf(address: u64, code: &[u8]) -> Vec<u8> {
    elf_entered_at(address, address, code)
}

/// Returns an ELF64 executable with `code` at `address` and this entry point.
pub fn elf_entered_at(address: u64, entry: u64, code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [entry, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    file.extend(7u32.to_le_bytes());
    let len = code.len() as u64;
    for word in [120, address, address, len, len, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// Runs a machine. Returns the report and the output of the guest.
pub fn run_machine(builder: Builder) -> (Report, Vec<u8>) {
    let (output, captured) = Output::captured();
    let report = builder
        .processor(processor())
        .output(output)
        .build()
        .expect("the machine is built")
        .run()
        .expect("the host runs the machine");
    (report, captured.bytes())
}

/// The default transport of a build, and that of a build with the feature `polling`.
pub const TRANSPORTS: [Transport; 2] = [Transport::Exit, Transport::Polling];

/// The names of [`TRANSPORTS`] on the command line.
pub const TRANSPORT_NAMES: [&str; 2] = ["exit", "polling"];

/// Returns a builder for a built-in guest, with the settings that the catalogue gives.
pub fn embedded(guest: &'static Guest, transport: Option<Transport>) -> Builder {
    let image = Image::flat(guest.image, guest.mode, Gpa(guest.load_at)).expect("an embedded image");
    let timeout = if guest.end == End::Never { Duration::from_millis(100) } else { Duration::from_secs(20) };
    let input = Input::bytes(guest.input.as_bytes());
    let rules = guest.msrs.iter().map(|&(index, rule)| (index, rule.into()));
    rules
        .fold(Machine::builder(image), |builder, (index, rule)| builder.msr_rule(index, rule))
        .cpus(guest.cpus)
        .kev(guest.kev)
        .loses_stores(guest.loses_stores)
        .input(input)
        .cpuid(guest.cpuid)
        .transport(transport)
        .layout(if guest.struct_layout { Layout::Struct } else { Layout::Table })
        .queue_len(guest.queue_len)
        .verify(true)
        .timeout(Some(timeout))
}

/// Returns the built-in guest with this name.
pub fn find(name: &str) -> &'static Guest {
    guest::find(name).expect("the guest is in the catalogue")
}

/// Returns an image of this code for address 0x1000.
pub fn code(code: &'static [u8], mode: Mode) -> Image {
    Image::flat(code, mode, Gpa(0x1000)).expect("a flat image")
}

/// Runs the `vmm` program with these arguments.
pub fn ran(arguments: &[&str]) -> Ran {
    run(&mut vmm(arguments))
}

/// Builds and runs an example of the library.
pub fn example(name: &str) -> Ran {
    // `cargo test` builds examples, but `cargo test --test NAME` does not. For the package alone, cargo would compile the
    // libraries again, with other features.
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--workspace", "--example", name]);
    assert!(cargo.status().expect("cargo starts").success());
    let program = Path::new(env!("CARGO_BIN_EXE_vmm")).with_file_name("examples").join(name);
    run(Command::new(program).stdout(Stdio::piped()))
}

/// A temporary folder for one test.
pub struct Files(pub TempDir);

impl Files {
    /// Creates an empty folder.
    pub fn new() -> Self {
        Self(TempDir::new().expect("a temporary folder"))
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path: PathBuf = self.0.path().join(name);
        fs::write(&path, bytes).expect("the file is written");
        path.to_str().expect("a plain path").into()
    }

    /// Writes the image of a built-in guest to a file. Returns `PATH@ADDRESS`, with the address that it is linked at.
    pub fn guest(&self, name: &str) -> String {
        let guest = guest::find(name).expect("the guest is in the catalogue");
        format!("{}@{:#x}", self.write(name, guest.image), guest.load_at)
    }
}

/// Runs a shell command. In it, "$0" is the `vmm` program and "$1", "$2" and so on are the arguments.
pub fn shell(line: &str, arguments: &[&str]) -> Ran {
    let mut command = Command::new("sh");
    run(command.args(["-c", line, env!("CARGO_BIN_EXE_vmm")]).args(arguments).stdout(Stdio::piped()))
}

/// The reason why the jail is not whole here, such as a container without namespaces.
pub fn missing_jail() -> Option<String> {
    static FOUND: OnceLock<Option<String>> = OnceLock::new();
    let found = || {
        let text = run(vmm(&["doctor"]).stdout(Stdio::piped())).text();
        let part = text.lines().find(|line| line.starts_with("missing  jail: ")).map(str::to_owned);
        part.inspect(|line| eprintln!("the jail is not whole here: {line}"))
    };
    FOUND.get_or_init(found).clone()
}

/// Returns a command that runs a program without KVM. The kind is `missing` or `replaced`, as in `tests/without-kvm`.
pub fn without_kvm(kind: &str, program: &str) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/without-kvm"));
    command.args([kind, program]).stdout(Stdio::piped());
    command
}

/// Returns the reason why `without_kvm` does not work on this host, if it does not.
pub fn no_namespaces() -> Option<String> {
    let tried = run(&mut without_kvm("missing", "true"));
    (tried.status != 0).then(|| tried.stderr.trim_end().into())
}

/// Returns the two ends of a full stream, writer first. The next write blocks.
pub fn full_stream() -> (UnixStream, UnixStream) {
    let (mut writer, reader) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    while writer.write(&[0; 4096]).is_ok() {}
    writer.set_nonblocking(false).unwrap();
    (writer, reader)
}

/// Checks for this exit status, an empty stdout, and one line on stderr that begins with `vmm: error:` and contains `text`.
pub fn assert_error(ran: &Ran, status: i32, text: &str) {
    assert_eq!(ran.status, status, "{}", ran.stderr);
    assert!(ran.stderr.starts_with("vmm: error: ") && ran.stderr.contains(text), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert_eq!(ran.text(), "");
}

/// A host whose KVM fails. A preloaded library simulates failures that a test cannot cause on a real host:
/// `support/failing-host.c` describes its variables.
pub struct Liar {
    files: Files,
}

impl Liar {
    /// Compiles the library.
    pub fn new() -> Self {
        let files = Files::new();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/support/failing-host.c");
        let mut gcc = Command::new("gcc");
        gcc.args(["-shared", "-fPIC", "-o"]).arg(files.0.path().join("liar.so")).arg(source).arg("-ldl");
        assert!(gcc.status().is_ok_and(|status| status.success()), "gcc compiles the library");
        Self { files }
    }

    fn vmm(&self, arguments: &[&str]) -> Command {
        let mut command = vmm(arguments);
        command.env("LD_PRELOAD", self.files.0.path().join("liar.so"));
        command
    }

    /// Runs the `vmm` program with this FAIL.
    pub fn fail(&self, fail: &str, arguments: &[&str]) -> Ran {
        run(self.vmm(arguments).env("FAIL", fail))
    }

    /// Runs the `vmm` program with this FAIL. Returns also how often it called the function `name`.
    pub fn fail_and_count(&self, fail: &str, name: &str, arguments: &[&str]) -> (Ran, u64) {
        let table = self.files.0.path().join("calls");
        let _ = fs::remove_file(&table);
        let ran = run(self.vmm(arguments).env("FAIL", fail).env("CALLS", &table));
        let table = fs::read(table).unwrap();
        // struct call: a name of 24 bytes, and a count of 8 bytes.
        let mut calls = table.as_chunks::<32>().0.iter().map(|call| call.split_at(24));
        let is_wanted =
            |call: &(&[u8], &[u8])| call.0.split(|byte| *byte == 0).next() == Some(name.as_bytes());
        let (_, count) = calls.find(is_wanted).expect("the library replaces this function");
        (ran, u64::from_le_bytes(count.try_into().unwrap()))
    }

    /// Runs the `vmm` program with this LIE.
    pub fn run(&self, lie: &str, arguments: &[&str]) -> Ran {
        run(self.vmm(arguments).env("LIE", lie))
    }
}
