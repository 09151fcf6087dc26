//! Linux as a guest: `vmm boot` with Debian's kernel, and commands for a shell on its console.
//!
//! These tests need a host whose KVM runs Linux, and the guest kit. `make testbed` has both. If the KVM of this host runs
//! Linux, `LINUX_KIT=$(tests/testbed/kit) cargo test -p exitlens --test linux` needs no testbed.
#![allow(clippy::unwrap_used)]

#[path = "support/durability.rs"]
mod durability;
#[path = "support/linux_clocks.rs"]
mod linux_clocks;
#[path = "support/linux_debug.rs"]
mod linux_debug;
#[path = "support/linux_guest.rs"]
mod linux_guest;
mod support;

use libtest_mimic::{Arguments, Completion, Trial};
use linux_guest::{Linux, kit};
use std::io::{Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fs, thread};
use support::{Files, assert_error, kvm_test, ran, vmm};

/// The usual command line of the kernel.
const QUIET: &str = "console=ttyS0 quiet panic=-1 reboot=k";
const MIB: usize = 1 << 20;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if std::env::var_os("LINUX_KIT").is_none() && !arguments.list {
        eprintln!(
            "LINUX_KIT is not set, so no test of Linux as a guest runs here. `make testbed` runs them."
        );
    }
    let mut tests = vec![
        linux_test("vmlinux_reaches_userland_echoes_and_powers_off", || shell_and_power_off("vmlinux")),
        linux_test("bzimage_reaches_userland_echoes_and_powers_off", || shell_and_power_off("bzImage")),
        linux_test("a_guest_without_input_powers_off", without_input),
        linux_test("a_disk_keeps_what_the_guest_writes", disk),
        linux_test("a_read_only_disk_refuses_writes", read_only_disk),
        linux_test("linux_uses_two_cpus", two_cpus),
        linux_test("the_kernel_uses_the_clocks_of_the_host", clocks),
        linux_test("a_kernel_without_kvm_clock_boots_each_time", || {
            linux_clocks::without_kvm_clock(number("LINUX_BOOTS").unwrap_or(2));
        }),
        linux_test("all_time_sources_are_there_from_the_start", linux_clocks::all_time_sources),
        linux_test("a_kernel_that_waits_for_a_timer_is_told", linux_clocks::waits_for_a_timer),
        linux_test("a_reboot_ends_the_run", reboot),
        linux_test("a_panic_is_reported", panic),
        linux_test("a_kernel_without_a_root_file_system_panics", no_root),
        linux_test("the_exit_port_sets_the_status", exit_port),
        linux_test("the_shell_is_on_a_virtio_console", virtio_console),
        linux_test("piped_input_waits_for_the_console_that_reads_it", piped_input),
        linux_test("the_size_of_the_terminal_reaches_the_guest", terminal_size),
        linux_test("a_halt_ends_the_machine_or_leaves_it_on", halt),
        linux_test("several_initrds_are_one_file_system", several_initrds),
        linux_test("the_default_command_line_makes_no_exits_for_pci", no_pci),
        linux_test("a_signal_during_a_write_keeps_synced_data", interrupted_write),
        linux_test("synced_files_survive_a_kill", || durability::kills(number("LINUX_KILLS").unwrap_or(2))),
        linux_test("an_idle_guest_runs_into_its_timeout", timeout),
        linux_test("samples_tell_an_idle_kernel_from_a_busy_one", samples),
        linux_test("entropy_comes_from_the_host", entropy),
        linux_test("memory_continues_above_four_gibibytes", much_memory),
        linux_test("debug_a_panic_leaves_a_core_with_the_note_of_the_kernel", linux_debug::core_of_a_panic),
        linux_test("debug_ctrl_a_c_writes_a_core_and_linux_goes_on", linux_debug::live_core),
        linux_test("debug_a_kernel_that_has_moved_itself_has_names", linux_debug::moved_kernel),
        linux_test("a_truncated_kernel_is_refused", truncated_kernel),
        linux_test("an_initrd_larger_than_memory_is_refused", large_initrd),
    ];
    // LINUX_BOOTS=20 takes minutes.
    if let Some(boots) = number("LINUX_BOOTS") {
        for cpus in [1, 2] {
            let name = format!("{boots}_boots_in_a_row_with_{cpus}_vcpus");
            tests.push(linux_test(name, move || many_boots(boots, cpus)));
        }
    }
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// Returns the number in an environment variable, if it is set and not empty.
fn number(variable: &str) -> Option<u32> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}

/// Returns a test that boots Linux. It is ignored if LINUX_KIT is not set. LINUX_KIT states that this KVM runs Linux.
fn linux_test(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Trial {
    if std::env::var_os("LINUX_KIT").is_some() {
        return kvm_test(name, body);
    }
    Trial::ignorable_test(name, || Ok(Completion::ignored_with("needs a host that runs Linux: make testbed")))
}

/// Returns random bytes.
fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

/// Boots to the shell on the serial console.
fn shell(arguments: &[&str]) -> Linux {
    Linux::boot("vmlinux", &[&["--cmdline", QUIET], arguments].concat())
}

fn shell_and_power_off(kernel: &str) {
    let mut linux = Linux::boot(kernel, &["--cmdline", QUIET]);
    assert_eq!(linux.ask("echo typed on the console"), "typed on the console");
    assert_eq!(linux.ask("tty"), "/dev/ttyS0");
    // The line is longer than the FIFO of the port.
    let long = "0123456789".repeat(60);
    assert_eq!(linux.ask(&format!("echo {long}")), long);
    assert_eq!(linux.ask("seq 2000 | md5sum"), "ea4d0a24dabcaa11f9aa979b872d162b  -");
    linux.power_off();
}

fn samples() {
    let files = Files::new();
    let folded = files.0.path().join("linux.folded").to_str().unwrap().to_string();
    let mut linux = shell(&["--cpus", "2", "--sample=200", "--sample-file", &folded]);
    linux.ask("sleep 2");
    linux.ask("dd if=/dev/zero of=/dev/null bs=1M count=200 2>&1 | tail -1");
    linux.power_off();
    let stacks = fs::read_to_string(folded).unwrap();
    let count = |condition: &dyn Fn(&str) -> bool| -> u64 {
        let lines = stacks.lines().filter(|line| condition(line));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    };
    // In two seconds of sleep, each vCPU is halted.
    for vcpu in ["vCPU 0;", "vCPU 1;"] {
        let halted = count(&|line| line.starts_with(vcpu) && line.contains(";[halted] "));
        assert!(halted > 50, "{stacks}");
    }
    assert!(count(&|line| line.contains(";0xffffffff") && !line.contains('[')) > 20, "{stacks}");
}

fn without_input() {
    let (kernel, initrd) = (kit("vmlinux"), kit("guest-initrd"));
    let line = format!("{QUIET} userland=off");
    let arguments = [&kernel, "--initrd", &initrd, "--cmdline", &line];
    let mut linux = Linux::start(&arguments, Stdio::null());
    linux.expect("USERLAND-READY");
    linux.assert_end(0, ": powered off (after ");
}

/// The guest copies the first half of a disk to the second.
fn disk() {
    let files = Files::new();
    let mut bytes = random(8 * MIB);
    let path = files.write("disk", &bytes);
    let mut linux = shell(&["--disk", &path]);
    assert_eq!(linux.ask("cat /sys/block/vda/size /sys/block/vda/ro"), format!("{}\n0", 8 * MIB / 512));
    linux.ask("dd if=/dev/vda of=/tmp/half bs=1M count=4");
    linux.ask("dd if=/tmp/half of=/dev/vda bs=64k seek=64; sync");
    linux.ask("echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=4 | cmp - /tmp/half");
    linux.ask("dd if=/dev/vda bs=4k skip=1024 iflag=direct | cmp - /tmp/half");
    linux.power_off();
    bytes.copy_within(..4 * MIB, 4 * MIB);
    assert!(fs::read(&path).unwrap() == bytes, "the file is not what the guest wrote");
}

/// The second of two disks is read-only.
fn read_only_disk() {
    let files = Files::new();
    let (first, second) = (random(MIB), random(2 * MIB));
    let (path, protected) = (files.write("first", &first), files.write("second", &second));
    let mut linux = shell(&["--disk", &path, "--disk", &format!("{protected},ro")]);
    assert_eq!(linux.ask("cat /sys/block/vda/ro /sys/block/vdb/ro"), "0\n1");
    let (output, status) = linux.run("dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync");
    assert_ne!(status, 0, "{output}");
    linux.ask("dd if=/dev/vdb of=/dev/vda bs=4k count=256 conv=fsync");
    linux.power_off();
    assert!(fs::read(&protected).unwrap() == second, "the read-only file changed");
    assert!(fs::read(&path).unwrap() == second[..MIB], "the other file is not what the guest wrote");
}

fn two_cpus() {
    let mut linux = shell(&["--cpus", "2"]);
    assert_eq!(linux.ask("nproc"), "2");
    assert_eq!(linux.ask("grep -c ^processor /proc/cpuinfo"), "2");
    // Both CPUs receive timer interrupts.
    let interrupts = linux.ask("grep LOC: /proc/interrupts");
    let mut counts = interrupts.split_whitespace().skip(1).map(str::parse::<u64>);
    for cpu in 0..2 {
        let count = counts.next();
        assert!(matches!(count, Some(Ok(1..))), "CPU {cpu}: {interrupts}");
    }
    linux.power_off();
}

fn clocks() {
    let mut linux = shell(&["--cpus", "2"]);
    let system = "/sys/devices/system/clocksource/clocksource0";
    assert_eq!(linux.ask(&format!("cat {system}/current_clocksource")), "kvm-clock");
    for text in ["TSC deadline timer available", "x2apic enabled", "Hypervisor detected: KVM"] {
        assert_ne!(linux.ask(&format!("dmesg | grep -c '{text}'")), "0", "{text}");
    }
    // One package with two cores of one thread each.
    let topology = "cd /sys/devices/system/cpu; cat cpu*/topology/physical_package_id cpu*/topology/core_id";
    assert_eq!(linux.ask(topology).replace('\n', " "), "0 0 0 1");
    assert_eq!(linux.ask("cat /sys/devices/system/cpu/cpu0/topology/thread_siblings_list"), "0");
    // The clock on port 0x70 has the time of day of the host.
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let clock: u64 = linux.ask("cat /sys/class/rtc/rtc0/since_epoch").parse().unwrap();
    assert!(now().abs_diff(clock) < 60, "the clock has {clock} instead of {}", now());
    linux.type_line("poweroff -f");
    let (status, report) = linux.end();
    // The other time sources cost it no exit.
    assert!(status == 0 && !report.contains("PM timer") && !report.contains(" PIT"), "{report}");
}

fn reboot() {
    let mut linux = shell(&[]);
    linux.type_line("reboot -f");
    linux.assert_end(119, ": rebooted");
}

fn panic() {
    let mut linux = shell(&[]);
    linux.type_line("echo c > /proc/sysrq-trigger");
    linux.assert_end(112, ": the kernel panicked: sysrq triggered crash");
}

fn no_root() {
    let mut linux = Linux::start(&[&kit("vmlinux"), "--cmdline", QUIET], Stdio::null());
    linux.assert_end(112, ": the kernel panicked: VFS: Unable to mount root fs");
}

fn exit_port() {
    let mut linux = shell(&[]);
    linux.type_line("exit-port 42");
    let (status, report) = linux.end();
    assert_eq!(status, 42, "{report}");
}

/// The kernel has the default command line, without --cmdline.
fn virtio_console() {
    let mut linux = Linux::boot("vmlinux", &["--console", "virtio"]);
    assert_eq!(linux.ask("tty"), "/dev/hvc0");
    assert_eq!(linux.ask("echo typed on the console"), "typed on the console");
    assert_eq!(linux.ask("seq 2000 | md5sum"), "ea4d0a24dabcaa11f9aa979b872d162b  -");
    linux.power_off();
}

/// The commands are there before the guest starts.
fn piped_input() {
    let (kernel, initrd) = (kit("vmlinux"), kit("guest-initrd"));
    for console in ["serial", "virtio"] {
        let arguments = ["boot", &kernel, "--initrd", &initrd, "--console", console, "--timeout", "60"];
        let commands = "echo first $((6 * 7))\nseq 2000 | md5sum\npoweroff -f\n";
        let mut command = vmm(&arguments);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        let ended = child.wait_with_output().unwrap();
        let (text, report) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        assert_eq!(ended.status.code(), Some(0), "{console}: {report}{text}");
        for expected in ["\nfirst 42\r\n", "ea4d0a24dabcaa11f9aa979b872d162b"] {
            assert!(text.contains(expected), "{console}: {expected}: {text}");
        }
    }
}

/// The terminal changes its size while the guest runs. Its output is as the guest writes it (-opost).
fn terminal_size() {
    let files = Files::new();
    let (kernel, initrd) = (kit("vmlinux"), kit("guest-initrd"));
    let run = format!(
        "stty -opost rows 33 cols 111; tty >{0}; exec {1} boot {kernel} --initrd {initrd} --console virtio --timeout 100",
        files.write("tty", b""),
        env!("CARGO_BIN_EXE_vmm"),
    );
    let mut script = Command::new("script");
    script.args(["-qec", &run, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut linux = Linux::of(script.stderr(Stdio::piped()));
    linux.expect("USERLAND-READY");
    assert_eq!(linux.ask("stty -F /dev/hvc0 size"), "33 111");
    let terminal = fs::read_to_string(files.0.path().join("tty")).unwrap();
    let resized = Command::new("stty").args(["-F", terminal.trim(), "rows", "44", "cols", "222"]).status();
    assert!(resized.unwrap().success());
    let started = Instant::now();
    while linux.ask("stty -F /dev/hvc0 size") != "44 222" {
        assert!(started.elapsed() < Duration::from_secs(20), "the guest does not know the new size");
        thread::sleep(Duration::from_millis(200));
    }
    linux.type_line("poweroff -f");
    assert_eq!(linux.end().0, 0);
}

fn halt() {
    for cpus in ["1", "2"] {
        let mut linux = shell(&["--cpus", cpus]);
        linux.type_line("halt -f");
        linux.assert_end(0, ": halted (after ");
    }
    let mut linux = shell(&["--on-halt", "wait", "--timeout", "25"]);
    // A program that prints the message of the kernel halts nothing.
    linux.ask("echo '[    1.0] reboot: System halted'");
    linux.type_line("halt -f");
    // The warning about a boot that stands still comes first.
    let (status, report) = linux.end();
    assert!(status == 114 && report.contains("timeout: "), "{status}: {report}");
}

/// The second archive brings a script, which the first process of the first archive runs.
fn several_initrds() {
    let files = Files::new();
    let folder = files.0.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("job"), "echo from the second archive; poweroff -f\n").unwrap();
    let line = format!("cd {} && echo job | cpio -o -H newc", folder.display());
    let archive = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(archive.status.success());
    // Its size is no multiple of four.
    let first = fs::read(kit("guest-initrd")).unwrap();
    let first = files.write("first", &[&first[..], &[0; 3]].concat());
    let second = files.write("second", &archive.stdout);
    let kernel = kit("vmlinux");
    let arguments = [&kernel, "--initrd", &first, "--initrd", &second, "--cmdline", QUIET];
    let mut linux = Linux::start(&arguments, Stdio::null());
    linux.expect("from the second archive");
    linux.assert_end(0, ": powered off");
}

/// The test host's processor has a graphics aperture in the eyes of a kernel, which then looks for its bridge.
fn no_pci() {
    let (kernel, initrd) = (kit("vmlinux"), kit("guest-initrd"));
    let mut linux = Linux::start(&[&kernel, "--initrd", &initrd], Stdio::piped());
    linux.expect("USERLAND-READY");
    linux.type_line("poweroff -f");
    let (status, report) = linux.end();
    assert_eq!(status, 0, "{report}");
    let probes = report.lines().find(|line| line.contains("unclaimed accesses")).unwrap_or_default();
    assert!(!probes.contains("0xcfe") && !probes.contains("0xcf8 (44 times)"), "{probes}");
}

fn interrupted_write() {
    let files = Files::new();
    let bytes = random(4 * MIB);
    let path = files.write("disk", &bytes);
    let mut linux = shell(&["--disk", &path]);
    linux.ask("dd if=/dev/vda of=/dev/vda bs=64k count=16 seek=16; sync");
    linux.type_line(
        "echo WR''ITES; while :; do dd if=/dev/zero of=/dev/vda bs=64k seek=32 count=32 oflag=direct; done",
    );
    linux.expect("WRITES");
    // WRITES appears before the first write, and this line at the end of one.
    linux.expect("records out");
    thread::sleep(Duration::from_millis(200));
    let id = linux.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let signalled = Instant::now();
    linux.assert_end(117, "interrupted");
    assert!(signalled.elapsed() < Duration::from_secs(5), "it took {:?}", signalled.elapsed());
    let found = fs::read(&path).unwrap();
    assert_eq!(found.len(), bytes.len());
    assert!(found[..MIB] == bytes[..MIB] && found[MIB..2 * MIB] == bytes[..MIB], "synced data is lost");
    assert!(found[2 * MIB..].iter().all(|byte| *byte == 0), "directly written data is lost");
}

/// The shell waits for input, and the CPU halts.
fn timeout() {
    let (kernel, initrd) = (kit("vmlinux"), kit("guest-initrd"));
    let arguments = [&kernel, "--initrd", &initrd, "--cmdline", QUIET, "--timeout", "12"];
    let started = Instant::now();
    let mut linux = Linux::start(&arguments, Stdio::piped());
    linux.assert_end(114, "");
    assert!(started.elapsed() >= Duration::from_secs(12), "after {:?}", started.elapsed());
}

fn entropy() {
    let mut linux = shell(&[]);
    let source = linux.ask("cat /sys/class/misc/hw_random/rng_current");
    assert!(source.starts_with("virtio_rng"), "{source}");
    let draw = "dd if=/dev/hwrng bs=64 count=1 2>/dev/null | od -An -v -tx1";
    let (first, second) = (linux.ask(draw), linux.ask(draw));
    assert_eq!(first.split_whitespace().count(), 64, "{first}");
    assert_ne!(first, second);
    linux.power_off();
}

/// The host allocates a page when the guest first accesses it, so the guest uses little memory.
fn much_memory() {
    let mut linux = shell(&["--mem", "5G"]);
    let line = linux.ask("grep MemTotal: /proc/meminfo");
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((4_700_000..=5 << 20).contains(&kib), "{line}");
    linux.power_off();
}

fn truncated_kernel() {
    let files = Files::new();
    for (kernel, lengths) in [("vmlinux", [3, 1000, 5_000_000]), ("bzImage", [0, 700, 9_000_000])] {
        let all = fs::read(kit(kernel)).unwrap();
        for len in lengths {
            let path = files.write(kernel, &all[..len]);
            assert_error(&ran(&["boot", &path]), 116, "");
        }
    }
}

fn large_initrd() {
    let files = Files::new();
    let path = files.write("initrd", b"");
    fs::File::options().write(true).open(&path).unwrap().set_len(300 << 20).unwrap();
    assert_error(&ran(&["boot", &kit("vmlinux"), "--initrd", &path, "--mem", "256M"]), 116, "");
}

fn many_boots(boots: u32, cpus: u32) {
    let line = format!("{QUIET} userland=off");
    for boot in 1..=boots {
        let (kernel, initrd, cpus) = (kit("vmlinux"), kit("guest-initrd"), cpus.to_string());
        let arguments = [&kernel, "--initrd", &initrd, "--cmdline", &line, "--cpus", &cpus];
        let mut linux = Linux::start(&arguments, Stdio::null());
        linux.expect("USERLAND-READY");
        linux.assert_end(0, ": powered off");
        println!("boot {boot} of {boots} with {cpus} vCPUs");
    }
}
