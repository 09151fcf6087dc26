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
    let conclusion = libtest_mimic::run(&crate::support::arguments(), tests);
    if let Some(programs) = PROGRAMS.get() {
        let _ = fs::remove_dir_all(programs.0.path());
    }
    conclusion.exit_code()
}

/// Compiles a C program of this test with these options. Returns its path.
pub fn compile(name: &str, source: &Path, options: &[&str]) -> PathBuf {
    let program = PROGRAMS.get_or_init(Files::new).0.path().join(name);
    compile_with("gcc", &program, source, options);
    program
}

fn compile_with(compiler: &str, program: &Path, source: &Path, options: &[&str]) {
    let mut gcc = Command::new(compiler);
    gcc.args(["-O1", "-pthread", "-o"]).arg(program).arg(source).args(options).arg("-ldl");
    assert!(gcc.status().is_ok_and(|status| status.success()), "{compiler} compiles {}", program.display());
}

/// The VMM in C with the C library musl, which has its own dynamic loader. musl has no headers of Linux, and no
/// `close_range` before 1.2.5.
pub fn program_of_musl(name: &str, options: &[&str]) -> PathBuf {
    let program = PROGRAMS.get_or_init(Files::new).0.path().join(name);
    let headers = ["/usr/include", "/usr/include/x86_64-linux-gnu"].map(|folder| ["-idirafter", folder]);
    let all = [&["-w", "-Dclose_range(a,b,c)=syscall(436,a,b,c)"], headers.as_flattened(), options].concat();
    compile_with("musl-gcc", &program, &source(), &all);
    program
}

/// The reason why no program with musl can be built here.
pub fn no_musl() -> Option<String> {
    if let Some(why) = super::support::unusable() {
        return Some(why.into());
    }
    let here = Command::new("musl-gcc").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    (!here.is_ok_and(|status| status.success())).then(|| "musl-gcc is not installed".into())
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
    profile_by("auto", command)
}

/// Observes this program with an engine, and reads the profile.
pub fn profile_by(engine: &str, command: &[&str]) -> (Ran, SavedProfile) {
    let files = Files::new();
    let path = files.0.path().join("profile.json");
    let json = format!("json={}", path.display());
    let ran = observe(&["--engine", engine, "--profile", &json], command);
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

/// Observes each mode of the program, and checks its counts.
pub fn exact_counts(engine: &str, program: &str, library: Option<&str>) {
    // The mode, the number of guests that run to their end, further exits, the numbers of VMs and of vCPUs.
    let mut modes = vec![
        (&["plain"][..], 1, 0, 1, 1),
        (&["fork"], 2, 0, 2, 2),
        (&["exec"], 2, 0, 2, 2),
        (&["dup"], 2, 0, 1, 2),
        (&["reuse"], 2, 100, 2, 3),
        (&["never-map"], 1, 0, 1, 1),
        (&["map-twice"], 1, 0, 1, 1),
        (&["repeat", "20"], 20, 0, 20, 20),
        (&["vcpus", "32"], 32, 0, 1, 32),
        (&["vms"], 2, 0, 2, 2),
        (&["interrupt"], 1, 0, 2, 2),
        (&["jump"], 1, 0, 1, 1),
        (&["garbage"], 1, 0, 1, 1),
        (&["filter"], 1, 0, 1, 1),
        (&["filter-early"], 1, 0, 1, 1),
        (&["reopen"], 3, 0, 2, 3),
        (&["pointers"], 1, 0, 1, 1),
        (&["crash"], 1, 0, 1, 1),
    ];
    let dlopen = library.map(|library| ["dlopen", library]);
    modes.extend(dlopen.iter().map(|mode| (&mode[..], 1, 0, 1, 1)));
    for (mode, times, outs, vms, vcpus) in modes {
        let (ran, profile) = profile_by(engine, &[&[program], mode].concat());
        let status = if mode == ["crash"] { 128 + libc::SIGSEGV } else { 0 };
        assert_eq!((ran.status, ran.text().as_str()), (status, ""), "{mode:?}: {}", ran.stderr);
        assert_eq!(counts(&profile.machine.sites), expected(times, outs), "{mode:?}: {}", ran.stderr);
        assert_eq!(profile.vcpus.len(), vcpus, "{mode:?}: {}", ran.stderr);
        let exits: u64 = profile.vcpus.iter().map(|vcpu| vcpu.exits).sum();
        assert_eq!(exits, profile.machine.exits, "{mode:?}");
        let named = profile.vcpus.iter().filter(|vcpu| vcpu.ended.starts_with("VM ")).count();
        assert_eq!(named, if vms > 1 { vcpus } else { 0 }, "{mode:?}: {}", ran.stderr);
        if let Some(kernel) = &profile.machine.kernel {
            assert!(kernel["exits"] >= profile.machine.exits, "{mode:?}: {kernel:?}");
        }
        assert!(profile.machine.in_kvm.sum > 0 && profile.clock.khz > 100_000, "{mode:?}");
    }
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

/// The machines of QEMU.
pub const MACHINES: [&str; 2] = ["microvm,x-option-roms=off", "q35"];

/// A machine of QEMU runs a firmware that writes 300 bytes to port 0xe9 and ends through port 0xf4. `observe` gets its command
/// line, once for each CPU model until one starts: then the status is 7.
pub fn qemu(files: &Files, machine: &str, observe: &mut dyn FnMut(&[&str]) -> Ran) -> Ran {
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
            "qemu-system-x86_64 -M {machine} -accel kvm -cpu {cpu} -m 16 -nodefaults -no-user-config \
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
