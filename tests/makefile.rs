//! The targets of the Makefile: what they build and run, with KVM and without it. A shell script stands for cargo, so that
//! the tests take no time.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use support::{Files, Ran, plain_test, run};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        plain_test("bench_builds_only_what_its_measurements_need", bench),
        plain_test("a_wrong_target_is_named_with_similar_ones", wrong_target),
        plain_test("install_prefers_the_static_program", install),
        plain_test("book_installs_mdbook_and_fails_on_its_warnings", book),
        plain_test("run_and_test_need_no_kvm_and_no_testbed", without_testbed),
        plain_test("without_kvm_test_ends_with_the_testbed", with_testbed),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
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

/// Writes a script for mdBook, which warns as the file `says` does, and writes a page.
const CARGO_OF_THE_BOOK: &str = r#"#!/bin/sh
echo "cargo $*" >> "$LOG"
mkdir -p "$CARGO_TARGET_DIR/mdbook/bin"
cat > "$CARGO_TARGET_DIR/mdbook/bin/mdbook" <<'END'
#!/bin/sh
cat "$CARGO_TARGET_DIR/says" >&2
mkdir -p "$4" && echo '<a href="../code/02-ask.c">' > "$4/02-open-kvm.html"
END
chmod +x "$CARGO_TARGET_DIR/mdbook/bin/mdbook"
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
    let linked = "cargo build --locked --release --package exitlens --target x86_64-unknown-linux-gnu\n";
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

fn wrong_target() {
    let builds = Builds::new();
    for (target, similar) in
        [("linux", "; with this word there are: bench-linux testbed-linux"), ("bnch", "")]
    {
        let (ran, log) = builds.make(&[target], &path());
        let message = format!("make: there is no target {target}: `make help` lists the targets{similar}\n");
        assert!(ran.status == 2 && ran.stderr.starts_with(&message) && log.is_empty(), "{}", ran.stderr);
    }
}

fn book() {
    let builds = Builds::new();
    let mdbook = format!("MDBOOK={}", builds.path("target/mdbook/bin/mdbook"));
    let book = |says: &str| {
        fs::create_dir_all(builds.path("target")).unwrap();
        fs::write(builds.path("target/says"), says).unwrap();
        builds.make(&["book", &mdbook], &path())
    };
    fs::write(builds.path("cargo"), "#!/bin/sh\nexit 1\n").unwrap();
    let (failed, _) = book("");
    assert!(failed.status != 0 && failed.stderr.contains("make: cannot install mdBook"), "{}", failed.stderr);
    fs::write(builds.path("cargo"), CARGO_OF_THE_BOOK).unwrap();
    let (ran, log) = book(" INFO Book building has started\n");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(log.starts_with("cargo install mdbook --version ") && log.contains(" --locked "), "{log}");
    // The links to the listings lead into the folder of the book.
    let page = fs::read_to_string(builds.path("target/book/02-open-kvm.html")).unwrap();
    assert_eq!(page.trim(), r#"<a href="code/02-ask.c">"#);
    assert!(Path::new(&builds.path("target/book/code/02-ask.c")).exists());
    let says = "ERROR Error updating \"{{#include x.c}}\"\n";
    let (wrong, log) = book(says);
    assert!(wrong.status != 0 && log.is_empty(), "{log}");
    assert!(wrong.stderr.starts_with(says), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("make: the book has mistakes"), "{}", wrong.stderr);
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

/// A copy of the scripts of the testbed, with scripts for the programs that `make` runs.
struct Host(Files);

impl Host {
    /// Creates a host on which `vmm doctor` has this status.
    fn new(doctor: i32) -> Self {
        let host = Self(Files::new());
        host.script("cargo", "echo \"cargo $*\" >> \"$LOG\"");
        host.script(
            "target/release/vmm",
            &format!("echo \"vmm $*\" >> \"$LOG\"; [ \"$1\" != doctor ] || exit {doctor}"),
        );
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        for script in ["tests/testbed/instead", "tests/testbed/needs.sh", "tests/testbed/run"] {
            let script = (script, fs::read_to_string(root.join(script)).unwrap());
            host.script(script.0, script.1.strip_prefix("#!/usr/bin/env bash\n").unwrap_or(&script.1));
        }
        // The programs of this machine, but those of the testbed.
        fs::create_dir(host.path("bin")).unwrap();
        for folder in std::env::split_paths(&path()) {
            for program in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = program.file_name();
                if !["qemu-system-x86_64", "apt-get", "sudo"].iter().any(|left_out| name == *left_out) {
                    let _ = std::os::unix::fs::symlink(program.path(), host.path("bin").join(name));
                }
            }
        }
        host
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.0.path().join(name)
    }

    /// Writes a shell script.
    fn script(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/usr/bin/env bash\n{text}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs `make`. Returns its end, and the commands that it ran.
    fn make(&self, target: &str, required: bool) -> (Ran, Vec<String>) {
        let _ = fs::remove_file(self.path("log"));
        let mut command = Command::new("make");
        command.arg("-C").arg(self.0.0.path());
        command.arg("-f").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Makefile"));
        command.arg(format!("CARGO={}", self.path("cargo").display())).arg(target);
        for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "CARGO_TARGET_DIR"] {
            command.env_remove(name);
        }
        command.env("PATH", self.path("bin")).env("LOG", self.path("log"));
        command.env("REQUIRE_KVM", if required { "1" } else { "0" }).stdout(Stdio::piped());
        let ran = run(&mut command);
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        (ran, log.lines().map(Into::into).collect())
    }
}

const RUN: [&str; 2] = ["cargo build --locked --release", "vmm simvirtio"];

const TEST: [&str; 6] = [
    "cargo build --locked --release",
    "cargo test --locked --workspace",
    "cargo test --locked --workspace --features exitlens/polling --test polling",
    "vmm grade --reference",
    "vmm grade kev --reference",
    "vmm doctor",
];

/// The last line says what did not run, and why.
fn without_testbed() {
    for (doctor, apt, reason) in [
        (0, None, None),
        (115, None, Some("qemu-system-x86_64 is missing, and so is apt-get")),
        (
            115,
            Some("exit 100"),
            Some("qemu-system-x86 seabios is missing and cannot be installed: apt does not reach"),
        ),
    ] {
        let host = Host::new(doctor);
        if let Some(apt) = apt {
            host.script("bin/apt-get", apt);
            host.script("bin/sudo", "shift; exec \"$@\"");
        }
        let (ran, log) = host.make("run", false);
        assert_eq!((ran.status, log), (0, RUN.map(String::from).to_vec()), "{}", ran.stderr);
        let (ran, mut log) = host.make("test", false);
        let graded = log.split_off(TEST.len().min(log.len()));
        assert_eq!((ran.status, log), (0, TEST.map(String::from).to_vec()), "{}", ran.stderr);
        // Where KVM is, this program is graded as a student's VMM, from both builds.
        let begins = ["vmm grade so2 --finished halted", "vmm grade kev --run kev-port="];
        let begins = if doctor == 0 { &begins[..] } else { &[] };
        assert!(
            graded.len() == begins.len()
                && graded.iter().zip(begins).all(|(line, start)| line.starts_with(start))
        );
        let both =
            ["--run simvirtio='target/release/vmm' simvirtio", "--run polling='target/debug/vmm' simvirtio"];
        assert!(graded.first().is_none_or(|line| both.iter().all(|run| line.contains(run))), "{graded:?}");
        let Some(reason) = reason else {
            assert!(!ran.stderr.contains("NOT RUN"), "{}", ran.stderr);
            continue;
        };
        let last = ran.stderr.lines().last().unwrap();
        assert!(
            last.starts_with("make: all that can run here has passed. NOT RUN: the tests of KVM"),
            "{last}"
        );
        assert!(last.contains(reason), "{last}");
        let (ran, _) = host.make("test", true);
        assert_eq!(ran.status, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains("make: REQUIRE_KVM=1, and NOT RUN: the tests of KVM"), "{}", ran.stderr);
    }
}

/// A failure in the testbed is one of `make test`.
fn with_testbed() {
    let all = [&TEST[..], &["testbed needs", "testbed test", "testbed linux"]].concat();
    for (fails, status, ran_until) in [("nothing", 0, 9), ("test", 2, 8), ("linux", 2, 9), ("needs", 2, 7)] {
        let host = Host::new(115);
        host.script("tests/testbed/run", &format!("echo \"testbed $*\" >> \"$LOG\"; [ $1 != {fails} ]"));
        let (ran, log) = host.make("test", false);
        assert_eq!(
            (ran.status, &log[..]),
            (status, &all.iter().map(ToString::to_string).collect::<Vec<_>>()[..ran_until]),
            "{}",
            ran.stderr
        );
        assert!(!ran.stderr.contains("NOT RUN"), "{}", ran.stderr);
    }
}
