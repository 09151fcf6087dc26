//! Helpers of the tests of `vmm observe`: the VMM in C (`observed.c`), and the observation of programs.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part")]

use super::support::{Files, Ran, run};
use report::SavedProfile;
use report::profile::SavedSite;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;

pub const VMM: &str = env!("CARGO_BIN_EXE_vmm");
/// The folder with the programs of a test.
pub static PROGRAMS: OnceLock<Files> = OnceLock::new();

/// Runs the tests, and removes the programs.
pub fn main(tests: Vec<libtest_mimic::Trial>) -> ExitCode {
    let conclusion = libtest_mimic::run(&libtest_mimic::Arguments::from_args(), tests);
    if let Some(programs) = PROGRAMS.get() {
        let _ = fs::remove_dir_all(programs.0.path());
    }
    conclusion.exit_code()
}

/// Compiles a C program of this test with these options. Returns its path.
pub fn compile(name: &str, source: &Path, options: &[&str]) -> PathBuf {
    let program = PROGRAMS.get_or_init(Files::new).0.path().join(name);
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-pthread", "-o"]).arg(&program).arg(source).args(options).arg("-ldl");
    assert!(gcc.status().is_ok_and(|status| status.success()), "gcc compiles {name}");
    program
}

pub fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/observed.c")
}

/// The VMM in C.
pub fn program() -> &'static str {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| compile("observed", &source(), &[])).to_str().unwrap()
}

/// Runs `vmm observe` with these options and this program.
pub fn observe(options: &[&str], command: &[&str]) -> Ran {
    let mut vmm = Command::new(VMM);
    vmm.arg("observe").args(options).arg("--").args(command);
    run(vmm.stdout(Stdio::piped()).env_remove("RUST_LOG"))
}

/// Observes this program, and reads the profile.
pub fn profile(command: &[&str]) -> (Ran, SavedProfile) {
    let files = Files::new();
    let path = files.0.path().join("profile.json");
    let ran = observe(&["--profile", &format!("json={}", path.display())], command);
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{command:?}: {error}: {}", ran.stderr));
    let profile = SavedProfile::read(&bytes).unwrap();
    (ran, profile)
}

/// The exits and elements by site.
pub fn counts(sites: &[SavedSite]) -> BTreeMap<String, (u64, u64)> {
    sites
        .iter()
        .map(|site| (format!("{} {:?}", site.name(), site.width), (site.exits, site.elements)))
        .collect()
}

/// The exits of `times` guests of `observed.c`, and `outs` more.
pub fn expected(times: u64, outs: u64) -> BTreeMap<String, (u64, u64)> {
    let sites = [
        ("PIO out 0x42 Some(1)", 1000 * times + outs),
        ("MMIO write 0x20010 Some(1)", 500 * times),
        ("PIO in 0x43 Some(1)", times),
        ("HLT None", times),
    ];
    sites.into_iter().map(|(name, exits)| (name.into(), (exits, exits))).collect()
}

/// The processes of this program.
pub fn running(program: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    processes.filter(|process| fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program)).collect()
}

/// The reason why QEMU does not run here.
pub fn no_qemu() -> Option<String> {
    if let Some(why) = super::support::unusable() {
        return Some(why.into());
    }
    let here = Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status();
    (!here.is_ok_and(|status| status.success())).then(|| "qemu-system-x86_64 is not installed".into())
}

/// QEMU runs a firmware that writes 300 bytes to port 0xe9 and ends through port 0xf4. `observe` gets its command line, once
/// for each CPU model until one starts: then the status is 7.
pub fn qemu(files: &Files, observe: &mut dyn FnMut(&[&str]) -> Ran) -> Ran {
    // At 0xf000:0xff00: mov cx, 300; out 0xe9, al; loop; mov al, 3; out 0xf4, al; hlt
    let code = [0xb9, 0x2c, 0x01, 0xe6, 0xe9, 0xe2, 0xfc, 0xb0, 3, 0xe6, 0xf4, 0xf4];
    let mut firmware = vec![0; 0x10000];
    firmware[0xff00..0xff00 + code.len()].copy_from_slice(&code);
    // At the reset vector: jmp 0xf000:0xff00
    firmware[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x00, 0xff, 0x00, 0xf0]);
    let firmware = files.write("firmware", &firmware);
    let mut last = None;
    for cpu in ["host", "host,-arch-capabilities", "qemu64"] {
        let line = format!(
            "qemu-system-x86_64 -M microvm,x-option-roms=off -accel kvm -cpu {cpu} -m 16 -nodefaults -no-user-config \
             -display none -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=1 -bios {firmware}"
        );
        let ran = observe(&line.split_ascii_whitespace().collect::<Vec<_>>());
        let has_run = ran.status == 7;
        last = Some(ran);
        if has_run {
            break;
        }
    }
    last.unwrap()
}
