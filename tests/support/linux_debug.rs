//! Tests of what a debugger gets from Linux: cores, and names for a kernel that has moved itself.

use crate::linux_guest::{Linux, kit};
use crate::support::{Files, vmm};
use std::fs;
use std::process::{Command, Stdio};

/// The command line of the kernels.
const QUIET: &str = "console=ttyS0 quiet panic=-1 reboot=k";
/// The head of the note in a core: its owner, and the first words of the kernel's text.
const NOTE: &[u8] = b"VMCOREINFO\0\0OSRELEASE=6.";

/// The start of a core has the kernel's note.
fn assert_note(path: &str) {
    let core = fs::read(path).unwrap();
    let start = &core[..core.len().min(1 << 20)];
    assert_eq!((&core[..4], core[16]), (&b"\x7fELF"[..], 4), "{path} is not a core");
    assert!(start.windows(NOTE.len()).any(|window| window == NOTE), "{path} has no note");
}

pub fn core_of_a_panic() {
    let files = Files::new();
    let core = files.0.path().join("core").to_str().unwrap().to_string();
    let mut linux = Linux::boot("bzImage", &["--cmdline", QUIET, "--mem", "128M", "--core", &core]);
    linux.type_line("echo c > /proc/sysrq-trigger");
    let (status, report) = linux.end();
    assert_eq!(status, 112, "{report}");
    assert!(report.contains("`drgn -c ") && report.contains("`crash VMLINUX "), "{report}");
    assert_note(&core);
}

/// Two vCPUs, of which the second one is idle.
pub fn live_core() {
    let files = Files::new();
    let core = files.0.path().join("core").to_str().unwrap().to_string();
    let (kernel, initrd) = (kit("vmlinux"), kit("guest-initrd"));
    let run = format!(
        "stty -opost; exec {} boot {kernel} --initrd {initrd} --cmdline '{QUIET}' --mem 128M --cpus 2 --timeout 100 --core {core}",
        env!("CARGO_BIN_EXE_vmm"),
    );
    let mut script = Command::new("script");
    script.args(["-qec", &run, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut linux = Linux::of(script.stderr(Stdio::piped()));
    linux.expect("USERLAND-READY");
    assert_eq!(linux.ask("nproc"), "2");
    linux.type_line("\x01c");
    linux.expect("the guest goes on");
    assert_eq!(linux.ask("echo still here"), "still here");
    // The clock of the host was told: there is no soft lockup.
    assert_eq!(linux.ask("dmesg | grep -c -i lockup || true"), "0");
    linux.type_line("poweroff -f");
    assert_eq!(linux.end().0, 0);
    assert_note(&format!("{core}.1"));
    assert!(!fs::exists(&core).unwrap(), "the guest ended by itself");
}

/// The symbols are those of the same kernel at its usual place. The guest says how far it has moved.
pub fn moved_kernel() {
    let files = Files::new();
    let names = "grep -A1 -E ' (_text|_stext|panic|io_serial_in|io_serial_out)$' /proc/kallsyms";
    let stext = |lines: &str| {
        let line = lines.lines().find(|line| line.ends_with(" _stext")).expect("_stext is in the list");
        u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
    };
    // Without its decompressor, a kernel does not move.
    let mut linux = Linux::boot("vmlinux", &["--cmdline", QUIET]);
    let fixed = linux.ask(names);
    linux.power_off();
    let map: Vec<_> = fixed.lines().filter(|line| *line != "--").collect();
    let map = files.write("System.map", (map.join("\n") + "\n").as_bytes());
    let (kernel, initrd) = (kit("bzImage"), kit("guest-initrd"));
    let arguments = ["boot", &kernel, "--initrd", &initrd, "--cmdline", QUIET];
    let mut command = vmm(&[&arguments[..], &["--symbols", &map, "--by", "function"]].concat());
    command.env("RUST_LOG", "info").stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut linux = Linux::of(&mut command);
    linux.expect("USERLAND-READY");
    let moved = linux.ask("grep ' _stext$' /proc/kallsyms");
    linux.type_line("poweroff -f");
    let (status, report) = linux.end();
    assert_eq!(status, 0, "{report}");
    let distance = stext(&moved).wrapping_sub(stext(&fixed));
    // It is 0 once in some hundred boots.
    let said = format!("the guest's code is {distance:#x} above the addresses in ");
    assert!(distance == 0 || report.contains(&said), "{said}: {report}");
    assert!(report.contains("  io_serial_out\n"), "{report}");
    assert!(report.contains("  io_serial_in\n"), "{report}");
    assert!(!report.contains("are not used"), "{report}");
}
