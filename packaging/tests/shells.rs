//! The manual pages and completions, as their readers see them: man and mandoc, bash, zsh and fish.
//!
//! A test whose program is not installed is skipped. With `REQUIRE_PACKAGING=1`, as in `make packages`, it fails.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// The subcommands that have a page.
const PAGES: [&str; 17] = [
    "vmm",
    "vmm-run",
    "vmm-boot",
    "vmm-guests",
    "vmm-grade",
    "vmm-exercise",
    "vmm-exercise-check",
    "vmm-exercise-new",
    "vmm-lab",
    "vmm-lab-new",
    "vmm-lab-check",
    "vmm-report",
    "vmm-compare",
    "vmm-doctor",
    "vmm-bench",
    "vmm-bench-scale",
    "vmm-observe",
];

/// A folder with all files.
struct Written(TempDir);

impl Written {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_packaging"));
        let output = program.arg(folder.path()).env("SOURCE_DATE_EPOCH", "1795305600").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn page(&self, name: &str) -> PathBuf {
        self.path("man").join(format!("{name}.1"))
    }

    /// Returns all pages.
    fn pages(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("man")).unwrap();
        let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        found.sort();
        found
    }
}

/// True if the program is installed. If it must be, and is not, the test fails.
fn has(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let required = std::env::var_os("REQUIRE_PACKAGING").is_some_and(|value| value == "1");
    assert!(found || !required, "{program} is missing: `make packages` installs it");
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Runs a script. Returns its output.
fn output(program: &str, arguments: &[&str], script: &str) -> String {
    let output = Command::new(program).args(arguments).arg(script).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{script}\n{output:?}");
    assert!(output.stderr.is_empty(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_subcommand_has_a_page() {
    let written = Written::new();
    for name in PAGES {
        assert!(written.page(name).exists(), "{name}.1");
    }
}

#[test]
fn the_pages_have_the_sections_of_the_help() {
    if !has("man") {
        return;
    }
    let written = Written::new();
    let read = |name: &str| {
        let page = written.page(name);
        let mut man = Command::new("man");
        man.args(["--warnings", "-l"]).arg(page).env("MANWIDTH", "100").env("LC_ALL", "C.UTF-8");
        let output = man.env("MAN_KEEP_FORMATTING", "").stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let program = read("vmm");
    for text in [
        "VMM(1)",
        "User Commands",
        "NAME",
        "SYNOPSIS",
        "SUBCOMMANDS",
        "EXIT STATUS",
        "114      timeout",
        "EXAMPLES",
        "vmm kernel.elf --module initrd         run a multiboot or PVH kernel",
        "SEE ALSO",
        "vmm-observe(1)",
        "2026-11-22",
    ] {
        assert!(program.contains(text), "{text}:\n{program}");
    }
    // A subcommand with a list of its own has that, and the others have the program's.
    assert!(read("vmm-observe").contains("the signal that ended it"));
    assert!(read("vmm-run").contains("114      timeout"));
    assert!(read("vmm-run").contains("--transport"));
    assert!(read("vmm-boot").contains("vmm boot [OPTIONS] <KERNEL>"));
}

#[test]
fn the_pages_have_no_mistakes() {
    let written = Written::new();
    if has("mandoc") {
        for page in written.pages() {
            let output = Command::new("mandoc").args(["-Tlint", "-Wwarning"]).arg(&page).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }
    if has("man") {
        for page in written.pages() {
            let mut man = Command::new("man");
            let output = man.args(["--warnings", "-l", "-Tutf8", "-Z"]).arg(&page).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{}: {output:?}", page.display());
        }
    }
}

/// Asks bash for the completions of the last word.
fn bash(script: &Path, words: &str) -> Vec<String> {
    let script = format!(
        "source '{}'; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _vmm vmm \
         \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    output("bash", &["--norc", "-c"], &script).lines().map(Into::into).collect()
}

#[test]
fn bash_completes_subcommands_options_and_values() {
    if !has("bash") {
        return;
    }
    let written = Written::new();
    let script = written.path("completions/vmm.bash");
    assert_eq!(bash(&script, "vmm ob"), ["observe"]);
    assert_eq!(bash(&script, "vmm run --trans"), ["--transport"]);
    assert_eq!(bash(&script, "vmm exercise ch"), ["check"]);
    assert!(bash(&script, "vmm run --transport poll").contains(&"polling".to_owned()));
}

#[test]
fn fish_completes_subcommands_options_and_values() {
    if !has("fish") {
        return;
    }
    let written = Written::new();
    let ask = |line: &str| {
        let script = written.path("completions/vmm.fish");
        let script = format!("source '{}'; complete -C '{line}'", script.display());
        let text = output("fish", &["--no-config", "-c"], &script);
        text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ask("vmm ob"), ["observe"]);
    assert_eq!(ask("vmm run --trans"), ["--transport"]);
    assert_eq!(ask("vmm run --transport poll"), ["polling"]);
}

/// Zsh completes only in its line editor: a pseudoterminal types the line, Tab and Enter, and the command notes its arguments.
const ZSH: &str = r#"
zmodload zsh/zpty
cat >"$FOLDER/.zshrc" <<'RC'
fpath=("$FOLDER" $fpath)
autoload -U compinit
compinit -u -D
vmm() { print -r -- "$*" >"$FOLDER/ran.new" && mv "$FOLDER/ran.new" "$FOLDER/ran" }
precmd() { : >"$FOLDER/ready" }
RC
wait_for() { repeat 600 { [[ -e $FOLDER/$1 ]] && return; sleep 0.1 }; print "zsh is not $1"; exit 1 }
export ZDOTDIR=$FOLDER
zpty -b child zsh -i
wait_for ready
zpty -w -n child "$LINE"$'\t\n'
wait_for ran
cat "$FOLDER/ran"
zpty -d child
"#;

#[test]
fn zsh_completes_subcommands_and_options() {
    if !has("zsh") {
        return;
    }
    let written = Written::new();
    let folder = written.path("completions");
    for (line, expected) in [("vmm ob", "observe"), ("vmm run --transp", "run --transport")] {
        for file in ["ran", "ready"] {
            let _ = fs::remove_file(folder.join(file));
        }
        let mut zsh = Command::new("zsh");
        zsh.args(["-f", "-c", ZSH]).env("FOLDER", &folder).env("LINE", line).env("TERM", "dumb");
        let output = zsh.stdin(Stdio::null()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected, "{line}: {output:?}");
    }
}

#[test]
fn a_wrong_call_writes_nothing() {
    let program = || Command::new(env!("CARGO_BIN_EXE_packaging"));
    assert_eq!(program().output().unwrap().status.code(), Some(2));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let output = program().arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("packaging: error: cannot write to "));
}
