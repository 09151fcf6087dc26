//! The targets of the Makefile that build programs: what they build, and what they do with it. A shell script stands for
//! cargo, so that the tests take no time.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::Arguments;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode, Stdio};
use support::{Files, Ran, plain_test, run};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        plain_test("bench_builds_only_what_its_measurements_need", bench),
        plain_test("install_prefers_the_static_program", install),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// Notes its arguments, and writes scripts instead of programs.
const CARGO: &str = r#"#!/bin/sh
echo "cargo $*" >> "$LOG"
case "$*" in *--target*) out=$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/release;; *) out=$CARGO_TARGET_DIR/release;; esac
mkdir -p "$out"
printf '#!/bin/sh\necho "bench $*" >> "$LOG"\n' > "$out/bench"
echo "$out" > "$out/vmm"
chmod +x "$out/bench"
"#;

/// Answers like the gcc of a host without a static C library.
const GCC: &str = "#!/bin/sh\necho libc.a\n";

/// A folder with scripts for cargo and gcc.
struct Builds(Files);

impl Builds {
    fn new() -> Self {
        let files = Files::new();
        fs::create_dir(files.0.path().join("bin")).unwrap();
        for (name, script) in [("cargo", CARGO), ("bin/gcc", GCC)] {
            let path = files.write(name, script.as_bytes());
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self(files)
    }

    fn path(&self, name: &str) -> String {
        self.0.0.path().join(name).to_str().unwrap().into()
    }

    /// Runs `make`. Returns its end, and the commands that it ran.
    fn make(&self, arguments: &[&str], path: &str) -> (Ran, String) {
        let _ = fs::remove_file(self.path("log"));
        let mut command = Command::new("make");
        command
            .arg("-C")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .arg(format!("CARGO={}", self.path("cargo")));
        command.args(arguments).stdout(Stdio::piped()).env("PATH", path);
        // The variables of the make that runs this test.
        for name in
            ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ONLY", "ROUNDS", "PREFIX", "DESTDIR"]
        {
            command.env_remove(name);
        }
        command.env("CARGO_TARGET_DIR", self.path("target")).env("LOG", self.path("log"));
        (run(&mut command), fs::read_to_string(self.path("log")).unwrap_or_default())
    }
}

fn path() -> String {
    std::env::var("PATH").unwrap()
}

fn bench() {
    let builds = Builds::new();
    let built = |only: &[&str]| {
        let (ran, log) = builds.make(&[&["bench"], only].concat(), &path());
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let (built, measured) = log.split_once("bench --json").unwrap();
        assert!(
            measured.ends_with(
                &only.iter().map(|only| only.replace("ONLY=", " --only ") + "\n").collect::<String>()
            ) || only.is_empty(),
            "{log}"
        );
        built.to_string()
    };
    let bench = "cargo build --locked --release -p bench\n";
    let vmm = "cargo build --locked --release\n";
    let linked = "cargo build --locked --release --package cli --target x86_64-unknown-linux-gnu\n";
    for only in ["ONLY=exits", "ONLY=again", "ONLY=echo"] {
        assert_eq!(built(&[only]), bench, "{only}");
        let dry = builds.make(&["-n", "bench", only], &path()).0;
        assert!(!dry.text().contains("qemu-system"), "{only} needs no QEMU: {}", dry.text());
    }
    for only in ["ONLY=size", "ONLY=scale", "ONLY=qemu"] {
        assert_eq!(built(&[only]), format!("{bench}{vmm}"), "{only}");
    }
    if has_static_libc() {
        assert_eq!(built(&["ONLY=cold"]), format!("{bench}{vmm}{linked}"));
        assert_eq!(built(&[]), format!("{bench}{vmm}{linked}"));
    }
    assert!(builds.make(&["-n", "bench"], &path()).0.text().contains("qemu-system"));
}

/// Returns true if gcc finds the static C library.
fn has_static_libc() -> bool {
    let answer = run(Command::new("gcc").arg("-print-file-name=libc.a").stdout(Stdio::piped()));
    answer.text().contains('/')
}

fn install() {
    let builds = Builds::new();
    let without_libc = format!("{}:{}", builds.path("bin"), path());
    let arguments = [format!("DESTDIR={}", builds.path("root")), "PREFIX=/opt/with space".into()];
    let arguments = ["install", &arguments[0], &arguments[1]];
    let program = builds.path("root/opt/with space/bin/vmm");
    let mut cases = vec![(without_libc, "release", "dynamically linked, because libc.a is missing")];
    if has_static_libc() {
        cases.push((path(), "x86_64-unknown-linux-gnu/release", "statically linked"));
    }
    for (path, folder, kind) in cases {
        let (ran, log) = builds.make(&arguments, &path);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(ran.stderr.contains(&format!("make: installed {program} ({kind})")), "{}", ran.stderr);
        assert_eq!(log.lines().count(), 1, "{log}");
        // The script for cargo writes the folder into the program.
        assert_eq!(fs::read_to_string(&program).unwrap().trim(), builds.path(&format!("target/{folder}")));
        assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
    }
    // A place that cannot be written is an error.
    fs::write(builds.path("file"), b"").unwrap();
    let (ran, _) = builds.make(&["install", &format!("DESTDIR={}", builds.path("file"))], &path());
    assert!(ran.status != 0 && !ran.stderr.contains("make: installed"), "{}", ran.stderr);
}
