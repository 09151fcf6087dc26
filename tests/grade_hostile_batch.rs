//! Batches of hostile submissions in the jail: guests, and VMMs. None reaches anything, none ends the batch, and each has its line.
#![allow(clippy::unwrap_used)]

#[path = "support/hostile_guests.rs"]
mod hostile_guests;
#[path = "support/observed.rs"]
mod observed;
mod support;

use observed::compile;
use serde_json::Value;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use support::{Files, Ran, kvm_test, missing_jail, on_both, run, test_unless, unusable, vmm};

/// A text in a file of the host, which no submission may show.
const SECRET: &str = "zXq-the-secret-of-the-host-qXz";
/// The most time that a batch may take, also on a slow host.
const LIMIT: Duration = Duration::from_secs(55);

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = on_both("hostile_guests_reach_nothing", guests);
    tests.push(match missing_jail() {
        Some(reason) if unusable().is_none() => {
            test_unless(|| Some(reason), "hostile_programs_reach_nothing", || {})
        }
        _ => kvm_test("hostile_programs_reach_nothing", programs),
    });
    tests.push(kvm_test("without_the_jail_they_would", free));
    observed::main(tests)
}

/// A host with an exercise, a folder with submissions, a secret file, and listeners.
struct Host {
    files: Files,
    tcp: TcpListener,
    udp: UdpSocket,
    /// The submissions in their order, and the points that they earn.
    expected: Vec<(PathBuf, u64)>,
}

impl Host {
    fn new(exercise: &str) -> Self {
        let files = Files::new();
        files.write("exercise.toml", exercise.as_bytes());
        files.write("secret", SECRET.as_bytes());
        for folder in ["submissions", "temporary"] {
            fs::create_dir(files.0.path().join(folder)).unwrap();
        }
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        let udp = UdpSocket::bind(tcp.local_addr().unwrap()).unwrap();
        udp.set_nonblocking(true).unwrap();
        Self { files, tcp, udp, expected: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.0.path().join(name)
    }

    /// Adds a submission that earns these points. Returns its path, which does not exist yet.
    fn expect(&mut self, name: &str, points: u64) -> PathBuf {
        let path = self.path("submissions").join(name);
        self.expected.push((path.clone(), points));
        path
    }

    /// Writes a secret into the folder of the first submission, and returns its path.
    fn private(&self) -> String {
        let path = self.path("submissions/a-honest/private");
        fs::write(&path, SECRET).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Adds an empty folder as a submission.
    fn folder(&mut self, name: &str, points: u64) -> PathBuf {
        let path = self.expect(name, points);
        fs::create_dir(&path).unwrap();
        path
    }

    /// Adds a folder with a file as a submission.
    fn file(&mut self, name: &str, points: u64, file: &str, content: &[u8]) -> PathBuf {
        let path = self.folder(name, points).join(file);
        fs::write(&path, content).unwrap();
        path
    }

    /// Grades all submissions in one batch with these options.
    fn grade(&self, options: &[&str]) -> Ran {
        let text = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let arguments = ["results", "feedback", "grades"].map(text);
        let formats = format!("jsonl={}", arguments[2]);
        let exercise = text("exercise.toml");
        let mut command = vmm(&["grade", &exercise, "--seed", "3", "--jobs", "2"]);
        command.args(["--results", &arguments[0], "--feedback", &arguments[1], "--format", &formats]);
        command.args(["--format", "text"]).args(options).arg("--");
        run(command
            .args(self.expected.iter().map(|(path, _)| path))
            .env("TMPDIR", self.path("temporary"))
            .envs([("VMM_SECRET", SECRET), ("LC_MARKER", self.files.0.path().to_str().unwrap())]))
    }

    /// All files of the host with their sizes, except the outputs of the batch.
    fn listing(&self) -> Vec<(PathBuf, u64)> {
        let mut found = Vec::new();
        let mut folders = vec![self.files.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let data = entry.metadata().unwrap();
                let is_output =
                    ["results", "feedback", "grades"].iter().any(|name| entry.path() == self.path(name));
                match data.is_dir() {
                    _ if is_output => {}
                    true => folders.push(entry.path()),
                    false => found.push((entry.path(), data.len())),
                }
            }
        }
        found.sort();
        found
    }

    /// Grades the batch, and checks that each submission has its points, and that nothing else has happened.
    fn check(&self, options: &[&str]) {
        let (before, began) = (self.listing(), Instant::now());
        let graded = self.grade(options);
        assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
        // All have a grade, and some have fewer points.
        assert_eq!(graded.status, 111, "{}{}", graded.text(), graded.stderr);
        let lines = fs::read_to_string(self.path("grades")).unwrap();
        let grades: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let seen = grades.iter().map(|grade| (grade["submission"].as_str(), grade["earned"].as_u64()));
        let seen: Vec<_> = seen.map(|(name, points)| (name.unwrap().to_owned(), points)).collect();
        let expected = self.expected.iter().map(|(path, points)| (vmm_name(path), Some(*points)));
        let expected: Vec<_> = expected.collect();
        let wrong: Vec<_> =
            seen.iter().zip(lines.lines()).filter(|(one, _)| !expected.contains(one)).collect();
        assert!(seen == expected, "{wrong:#?} of {} submissions", seen.len());
        self.check_outputs(&graded);
        assert_eq!(self.listing(), before, "files have changed");
        assert_eq!(fs::read_dir(self.path("temporary")).unwrap().count(), 0, "temporary files are left");
        assert_eq!(fs::read_to_string(self.path("secret")).unwrap(), SECRET);
        assert!(self.tcp.accept().is_err() && self.udp.recv(&mut [0]).is_err(), "something was sent");
        let left = left_processes(self.files.0.path());
        assert!(left.is_empty(), "processes are left: {left:?}");
    }

    /// The outputs have no secret, no control characters, and no forged lines, and there is one of each for each submission.
    fn check_outputs(&self, graded: &Ran) {
        let feedback = fs::read_dir(self.path("feedback")).unwrap().flatten();
        let feedback: Vec<_> = feedback.map(|file| fs::read_to_string(file.path()).unwrap()).collect();
        let number = self.expected.len();
        assert_eq!(feedback.len(), number);
        let results = fs::read_to_string(self.path("results")).unwrap();
        assert_eq!(results.lines().count(), number + 1, "{results}");
        let text = graded.text();
        assert!(text.contains(&format!("\n{number} submissions: mean ")), "{text}");
        let grades = fs::read_to_string(self.path("grades")).unwrap();
        for output in feedback.iter().chain([&results, &text, &grades, &graded.stderr]) {
            assert!(!output.contains(SECRET), "{output}");
            assert!(output.chars().all(|c| c == '\n' || !c.is_control()), "{output:?}");
            assert!(!output.lines().any(|line| line == "100/100" || line == "Total: 100"), "{output}");
            assert!(output.len() < 200_000, "{} bytes", output.len());
        }
    }
}

/// The name of a path in the outputs.
fn vmm_name(path: &Path) -> String {
    ::vmm::host::printable(path)
}

/// The processes that have this folder in their command line or environment.
fn left_processes(folder: &Path) -> Vec<String> {
    let text = |entry: &fs::DirEntry, name: &str| {
        let bytes = fs::read(entry.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    let folder = folder.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.map(|entry| (text(&entry, "cmdline"), text(&entry, "environ")));
    lines
        .filter(|(line, environ)| line.contains(folder) || environ.contains(folder))
        .map(|(line, _)| line)
        .collect()
}

/// True if this process may read all files.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|data| std::os::unix::fs::MetadataExt::uid(&data) == 0)
}

fn guests() {
    let mut host = Host::new(hostile_guests::EXERCISE);
    let honest = hostile_guests::honest();
    host.file("a-honest", 20, "real.bin", &honest);
    let [first, ..] = &host.expected[..] else { panic!() };
    fs::write(first.0.join("long.bin"), hostile_guests::honest_long()).unwrap();
    for (name, points, code) in hostile_guests::real() {
        host.file(name, points, "real.bin", &code);
    }
    for (name, points, code) in hostile_guests::long() {
        host.file(name, points, "long.bin", &code);
    }
    odd_files(&mut host, "real.bin");
    host.file("sparse", 0, "real.bin", b"\xf4");
    let sparse = fs::File::options().write(true).open(host.path("submissions/sparse/real.bin")).unwrap();
    sparse.set_len(20 << 30).unwrap();
    host.file("large", 0, "real.bin", &vec![0x90; 2 << 20]);
    host.file("empty", 0, "real.bin", b"");
    host.file("linux-program", 0, "long.bin", &fs::read(program()).unwrap());
    let mut elf = support::elf(0x1000, &hostile_guests::honest_long());
    elf[104..112].copy_from_slice(&u64::MAX.to_le_bytes());
    host.file("wide-elf", 0, "long.bin", &elf);
    let unreadable = host.file("unreadable", if is_root() { 10 } else { 0 }, "real.bin", &honest);
    fs::set_permissions(unreadable, fs::Permissions::from_mode(0o000)).unwrap();
    host.file("z\u{1b}[2J\n100\n\u{202e}", 10, "real.bin", &honest);
    host.file("-rf", 10, "real.bin", &honest);
    host.expect("z-honest/real.bin", 10);
    host.file("z-honest", 10, "real.bin", &honest);
    host.check(&[]);
}

/// Files that are no images or programs, and links that lead out.
fn odd_files(host: &mut Host, name: &str) {
    let (secret, other) = (host.path("secret"), host.expected[0].0.join(name));
    let links = [
        ("link-secret", secret.as_path()),
        ("link-other", &other),
        ("link-zero", Path::new("/dev/zero")),
        ("link-itself", Path::new(name)),
        ("link-nowhere", Path::new("/nowhere")),
        ("link-memory", Path::new("/proc/self/mem")),
        ("link-shell", Path::new("/bin/sh")),
        ("link-results", Path::new("../../results")),
    ];
    // The submission itself leads nowhere.
    symlink("/nowhere", host.expect("nowhere", 0)).unwrap();
    for (link, target) in links {
        symlink(target, host.folder(link, 0).join(name)).unwrap();
    }
    fs::create_dir(host.folder("folder", 0).join(name)).unwrap();
    host.folder("nothing", 0);
    drop(UnixListener::bind(host.folder("socket", 0).join(name)).unwrap());
    let made = |program: &str, path: &Path, words: &[&str]| {
        Command::new(program)
            .arg(path)
            .args(words)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    assert!(made("mkfifo", &host.folder("fifo", 0).join(name), &[]));
    host.expect(&format!("fifo/{name}"), 0);
    // Only root can make a node.
    let node = host.folder("node", 0).join(name);
    assert!(made("mknod", &node, &["c", "1", "5"]) || !node.exists());
}

/// The VMM in C that attacks.
fn program() -> &'static str {
    use std::sync::OnceLock;
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/hostile_vmm.c");
    PROGRAM.get_or_init(|| compile("hostile-vmm", &source, &["-Wall"])).to_str().unwrap()
}

const PROGRAMS: &str = r#"version = 1
name = "A hostile VMM"
[run]
kind = "vmm"
timeout = 4
output_limit = 10000
[[task]]
name = "prints a word"
points = 10
file = "vmm"
random = { word = { letters = [8, 8] } }
args = ["{word}"]
check = [{ output = "{word}" }, { exits = "port 0xe9>=8" }]
"#;

/// The attacks of the VMM in C, and their points: all, if it goes on with its work.
const ATTACKS: [(&str, u64); 22] = [
    ("read", 10),
    ("write", 10),
    ("connect", 10),
    ("kill-all", 10),
    ("bomb", 10),
    ("fill", 10),
    ("ptrace", 10),
    ("daemon", 10),
    ("devices", 10),
    ("memory", 10),
    ("kill-group", 0),
    ("kill-self", 0),
    ("abort", 0),
    ("segv", 0),
    ("stop", 0),
    ("flood", 0),
    ("flood-errors", 0),
    ("forge", 0),
    ("closed", 0),
    ("deaf", 0),
    ("endless", 0),
    ("honest", 10),
];

/// Adds the VMM in C with an attack.
fn attack(host: &mut Host, folder: &str, attack: &str, points: u64) {
    let port = host.tcp.local_addr().unwrap().port();
    let names =
        ["secret", "exercise.toml", "results", "submissions/a-honest/vmm", "submissions/a-honest/private"];
    let mut files: Vec<_> = names.iter().map(|name| host.path(name).to_str().unwrap().to_owned()).collect();
    if attack == "read" {
        files.push("/etc/passwd".into());
    }
    let path = host.folder(folder, points);
    fs::copy(program(), path.join("vmm")).unwrap();
    fs::write(path.join("attack"), format!("{attack}\n{port}\n{}\n", files.join("\n"))).unwrap();
}

/// Adds a script.
fn script(host: &mut Host, name: &str, text: &str, mode: u32) {
    let path = host.file(name, 0, "vmm", text.as_bytes());
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn programs() {
    let mut host = Host::new(PROGRAMS);
    attack(&mut host, "a-honest", "honest", 10);
    for (name, points) in ATTACKS {
        attack(&mut host, name, name, points);
    }
    attack(&mut host, "y\u{1b}]0;x\u{7}\n10", "honest", 10);
    odd_files(&mut host, "vmm");
    let (secret, private) = (host.path("secret").to_str().unwrap().to_owned(), host.private());
    script(&mut host, "script-bomb", "#!/bin/sh\nb() { b | b & }\nb\nsleep 60\n", 0o755);
    script(
        &mut host,
        "script-fill",
        "#!/bin/sh\ncat /dev/zero >$TMPDIR/x\ncat /dev/zero >/dev/shm/x\n",
        0o755,
    );
    let show = format!(
        "#!/bin/sh\necho $VMM_SECRET\ncat '{secret}' '{private}' ../a-honest/private\n: >>'{secret}'\n"
    );
    script(&mut host, "script-show", &show, 0o755);
    script(&mut host, "script-exec", "#!/no/such/program\n", 0o755);
    script(&mut host, "not-executable", "#!/bin/sh\n", 0o644);
    script(&mut host, "nonsense", "\u{7f}ELF and no more", 0o755);
    script(&mut host, "empty", "", 0o755);
    // A file as a submission: its folder is that of the others.
    let file = host.expect("file", 0);
    fs::write(&file, "#!/bin/sh\ncat ${0%/*}/a-honest/private\n").unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    attack(&mut host, "z-honest", "honest", 10);
    host.check(&["--jail=require"]);
}

/// The same attacks succeed without the jail: the test above can fail.
fn free() {
    let mut host = Host::new(PROGRAMS);
    attack(&mut host, "a-honest", "honest", 10);
    for name in ["read", "connect", "memory"] {
        attack(&mut host, name, name, 0);
    }
    script(&mut host, "environment", "#!/bin/sh\necho $VMM_SECRET\n", 0o755);
    let graded = host.grade(&["--jail=off"]);
    let grades = fs::read_to_string(host.path("grades")).unwrap();
    let grades: Vec<Value> = grades.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let earned: Vec<_> = grades.iter().map(|grade| grade["earned"].as_u64().unwrap()).collect();
    assert_eq!(earned, [10, 0, 0, 0, 0], "{}", graded.text());
    for what in ["reached: /", "reached: loopback", "reached: 20 GiB", SECRET] {
        assert!(graded.text().contains(what), "{what}: {}", graded.text());
    }
    assert!(host.tcp.accept().is_ok());
}
