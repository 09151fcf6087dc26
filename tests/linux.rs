//! Linux as a guest: `vmm boot` with Debian's kernel, a shell on its console, and commands typed into it.
//!
//! These tests need a host whose KVM runs Linux, and the guest kit: `make testbed` has both. With a KVM that can,
//! `LINUX_KIT=$(tests/testbed/kit) cargo test -p cli --test linux` does without the testbed.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::{Arguments, Completion, Trial};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fs, thread};
use support::{Files, assert_error, kvm_test, ran, vmm};

/// How long one guest may take, from its start to its end. A host that is emulated boots in several seconds.
const PATIENCE: Duration = Duration::from_secs(120);
const QUIET: &str = "console=ttyS0 quiet panic=-1 reboot=k";
const MIB: usize = 1 << 20;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if std::env::var_os("LINUX_KIT").is_none() && !arguments.list {
        eprintln!("No test of Linux as a guest is run: LINUX_KIT names no kit. `make testbed` runs them.");
    }
    let mut tests = vec![
        linux_test("vmlinux_reaches_userland_echoes_and_powers_off", || shell_and_power_off("vmlinux")),
        linux_test("bzimage_reaches_userland_echoes_and_powers_off", || shell_and_power_off("bzImage")),
        linux_test("without_input_a_guest_runs_and_powers_off", without_input),
        linux_test("a_disk_keeps_what_the_guest_writes", disk),
        linux_test("a_read_only_disk_refuses_writes", read_only_disk),
        linux_test("two_cpus_are_two_cpus", two_cpus),
        linux_test("the_kernel_uses_the_clocks_of_its_host", clocks),
        linux_test("a_reboot_ends_the_run", reboot),
        linux_test("a_panic_is_named", panic),
        linux_test("a_kernel_without_a_root_panics_and_does_not_hang", no_root),
        linux_test("the_exit_port_gives_the_status", exit_port),
        linux_test("the_shell_is_on_a_virtio_console", virtio_console),
        linux_test("a_signal_in_a_write_keeps_what_was_synced", interrupted_write),
        linux_test("a_guest_that_waits_runs_into_its_time", timeout),
        linux_test("entropy_comes_from_the_host", entropy),
        linux_test("memory_goes_on_above_four_gibibytes", much_memory),
        linux_test("a_truncated_kernel_is_refused", truncated_kernel),
        linux_test("an_initrd_larger_than_memory_is_refused", large_initrd),
    ];
    // Minutes of it: LINUX_BOOTS=20.
    if let Some(boots) = std::env::var("LINUX_BOOTS").ok().filter(|boots| !boots.is_empty()) {
        let boots: u32 = boots.parse().expect("LINUX_BOOTS is a number");
        for cpus in [1, 2] {
            let name = format!("{boots}_boots_in_a_row_with_{cpus}_vcpus");
            tests.push(linux_test(name, move || many_boots(boots, cpus)));
        }
    }
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// A test that boots Linux. It is ignored where there is no kit, which says that the host can.
fn linux_test(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Trial {
    if std::env::var_os("LINUX_KIT").is_some() {
        return kvm_test(name, body);
    }
    Trial::ignorable_test(name, || Ok(Completion::ignored_with("needs a host that runs Linux: make testbed")))
}

/// A file of the kit.
fn kit(name: &str) -> String {
    let path = PathBuf::from(std::env::var_os("LINUX_KIT").unwrap()).join(name);
    assert!(path.exists(), "the kit has no {}: tests/testbed/kit makes it", path.display());
    path.to_str().expect("a plain path").into()
}

/// What a stream has said so far, and whether it ended.
#[derive(Default)]
struct Heard {
    text: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

impl Heard {
    fn follow(mut from: impl Read + Send + 'static) -> Arc<Self> {
        let heard = Arc::new(Self::default());
        let ours = Arc::clone(&heard);
        thread::spawn(move || {
            let mut piece = [0; 4096];
            loop {
                let len = from.read(&mut piece).unwrap_or(0);
                let mut text = ours.text.lock().unwrap();
                text.0.extend(&piece[..len]);
                text.1 = len == 0;
                ours.more.notify_all();
                if len == 0 {
                    break;
                }
            }
        });
        heard
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap().0).into_owned()
    }

    /// Where `text` ends in what comes after `from`; none where the stream ends or the time is up first.
    fn wait_for(&self, text: &str, from: usize, deadline: Instant) -> Option<usize> {
        let mut heard = self.text.lock().unwrap();
        loop {
            let at = heard.0[from..].windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = at {
                return Some(from + at + text.len());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if heard.1 || left.is_zero() {
                return None;
            }
            heard = self.more.wait_timeout(heard, left).unwrap().0;
        }
    }

    /// Waits for the stream's end.
    fn wait_for_end(&self, deadline: Instant) {
        let mut heard = self.text.lock().unwrap();
        while !heard.1 && Instant::now() < deadline {
            heard = self.more.wait_timeout(heard, Duration::from_millis(100)).unwrap().0;
        }
    }
}

/// A running guest. It is killed where it takes too long, and when its test is over.
struct Linux {
    child: Child,
    input: Option<ChildStdin>,
    console: Arc<Heard>,
    report: Arc<Heard>,
    /// What of the console was expected and came.
    read: usize,
    deadline: Instant,
}

impl Linux {
    /// `vmm boot` with these arguments, without waiting for anything.
    fn start(arguments: &[&str], input: Stdio) -> Self {
        let mut command = vmm(&[&["boot"], arguments].concat());
        let mut child = command.stdin(input).stderr(Stdio::piped()).spawn().expect("the program starts");
        let console = Heard::follow(child.stdout.take().unwrap());
        let report = Heard::follow(child.stderr.take().unwrap());
        let input = child.stdin.take();
        Self { child, input, console, report, read: 0, deadline: Instant::now() + PATIENCE }
    }

    /// The kit's kernel and userland with further arguments, up to its shell.
    fn boot(kernel: &str, arguments: &[&str]) -> Self {
        let (kernel, initrd) = (kit(kernel), kit("guest-initrd"));
        let all = [&[&kernel, "--initrd", &initrd], arguments].concat();
        let mut linux = Self::start(&all, Stdio::piped());
        linux.expect("USERLAND-READY");
        linux
    }

    /// The same on a serial console, with what is usual.
    fn shell(arguments: &[&str]) -> Self {
        Self::boot("vmlinux", &[&["--cmdline", QUIET], arguments].concat())
    }

    fn fail(&mut self, why: &str) -> ! {
        let _ = self.child.kill();
        let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        let soon = Instant::now() + Duration::from_secs(1);
        self.console.wait_for_end(soon);
        self.report.wait_for_end(soon);
        panic!("{why} ({status})");
    }

    /// Waits until the console shows a text; gives what came before it.
    fn expect(&mut self, text: &str) -> String {
        let from = self.read;
        match self.console.wait_for(text, from, self.deadline) {
            Some(end) => {
                self.read = end;
                let heard = self.console.text.lock().unwrap();
                String::from_utf8_lossy(&heard.0[from..end - text.len()]).into_owned()
            }
            None => self.fail(&format!("the console never showed {text:?}")),
        }
    }

    fn type_line(&mut self, line: &str) {
        let typed = self.input.as_mut().unwrap().write_all(format!("{line}\n").as_bytes());
        if let Err(error) = typed {
            self.fail(&format!("{line:?} could not be typed: {error}"));
        }
    }

    /// Runs a command in the guest's shell; gives its output and its status. The marks are typed in pieces, so that
    /// the terminal's echo of them is not taken for them.
    fn run(&mut self, line: &str) -> (String, u32) {
        self.type_line(&format!("echo BEG''IN; {line}; echo \"EN\"D $?."));
        self.expect("BEGIN\r\n");
        let output = self.expect("END ").replace('\r', "");
        let status = self.expect(".").parse().unwrap_or(u32::MAX);
        (output, status)
    }

    /// The output of a command that succeeds, without the line's end.
    fn ask(&mut self, line: &str) -> String {
        let (output, status) = self.run(line);
        if status != 0 {
            self.fail(&format!("{line:?} failed with status {status}"));
        }
        output.trim_end().to_owned()
    }

    /// Waits for the program's end; gives its status and its report.
    fn end(&mut self) -> (i32, String) {
        while Instant::now() < self.deadline {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                self.console.wait_for_end(self.deadline);
                self.report.wait_for_end(self.deadline);
                return (status.code().unwrap_or(-1), self.report.text());
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.fail("the program did not end")
    }

    /// The guest ends with this status, and the report's first line is about it and holds `text`.
    fn assert_end(&mut self, status: i32, text: &str) {
        let (found, report) = self.end();
        let first = report.lines().next().unwrap_or_default();
        if found != status || !first.starts_with("vmm: ") || !first.contains(text) {
            self.fail(&format!("status {found} and {first:?}, not {status} and {text:?}"));
        }
    }

    fn power_off(&mut self) {
        self.type_line("poweroff -f");
        self.assert_end(0, ": powered off (after ");
    }
}

impl Drop for Linux {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let (console, report) = (self.console.text(), self.report.text());
            eprintln!("\n--- the console:\n{console}\n--- the report:\n{report}\n---");
        }
    }
}

/// Bytes that nobody could guess.
fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

fn shell_and_power_off(kernel: &str) {
    let mut linux = Linux::boot(kernel, &["--cmdline", QUIET]);
    assert_eq!(linux.ask("echo typed on the console"), "typed on the console");
    assert_eq!(linux.ask("tty"), "/dev/ttyS0");
    // More than a FIFO holds, at once.
    let long = "0123456789".repeat(60);
    assert_eq!(linux.ask(&format!("echo {long}")), long);
    assert_eq!(linux.ask("seq 2000 | md5sum"), "ea4d0a24dabcaa11f9aa979b872d162b  -");
    linux.power_off();
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
    let mut linux = Linux::shell(&["--disk", &path]);
    assert_eq!(linux.ask("cat /sys/block/vda/size /sys/block/vda/ro"), format!("{}\n0", 8 * MIB / 512));
    linux.ask("dd if=/dev/vda of=/tmp/half bs=1M count=4");
    linux.ask("dd if=/tmp/half of=/dev/vda bs=64k seek=64; sync");
    linux.ask("echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=4 | cmp - /tmp/half");
    linux.ask("dd if=/dev/vda bs=4k skip=1024 iflag=direct | cmp - /tmp/half");
    linux.power_off();
    bytes.copy_within(..4 * MIB, 4 * MIB);
    assert!(fs::read(&path).unwrap() == bytes, "the file is not what the guest wrote");
}

/// It is the second of two: the first can be written.
fn read_only_disk() {
    let files = Files::new();
    let (first, second) = (random(MIB), random(2 * MIB));
    let (path, protected) = (files.write("first", &first), files.write("second", &second));
    let mut linux = Linux::shell(&["--disk", &path, "--disk", &format!("{protected},ro")]);
    assert_eq!(linux.ask("cat /sys/block/vda/ro /sys/block/vdb/ro"), "0\n1");
    let (output, status) = linux.run("dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync");
    assert_ne!(status, 0, "{output}");
    linux.ask("dd if=/dev/vdb of=/dev/vda bs=4k count=256 conv=fsync");
    linux.power_off();
    assert!(fs::read(&protected).unwrap() == second, "the read-only file changed");
    assert!(fs::read(&path).unwrap() == second[..MIB], "the other file is not what the guest wrote");
}

fn two_cpus() {
    let mut linux = Linux::shell(&["--cpus", "2"]);
    assert_eq!(linux.ask("nproc"), "2");
    assert_eq!(linux.ask("grep -c ^processor /proc/cpuinfo"), "2");
    // Both take timer interrupts.
    let interrupts = linux.ask("grep LOC: /proc/interrupts");
    let mut counts = interrupts.split_whitespace().skip(1).map(str::parse::<u64>);
    for cpu in 0..2 {
        let count = counts.next();
        assert!(matches!(count, Some(Ok(1..))), "CPU {cpu}: {interrupts}");
    }
    linux.power_off();
}

fn clocks() {
    let mut linux = Linux::shell(&["--cpus", "2"]);
    let system = "/sys/devices/system/clocksource/clocksource0";
    assert_eq!(linux.ask(&format!("cat {system}/current_clocksource")), "kvm-clock");
    for says in ["TSC deadline timer available", "x2apic enabled", "Hypervisor detected: KVM"] {
        assert_ne!(linux.ask(&format!("dmesg | grep -c '{says}'")), "0", "{says}");
    }
    // One package of two cores, with a thread each.
    let topology = "cd /sys/devices/system/cpu; cat cpu*/topology/physical_package_id cpu*/topology/core_id";
    assert_eq!(linux.ask(topology).replace('\n', " "), "0 0 0 1");
    assert_eq!(linux.ask("cat /sys/devices/system/cpu/cpu0/topology/thread_siblings_list"), "0");
    // The host's time of day, by the clock on port 0x70.
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let clock: u64 = linux.ask("cat /sys/class/rtc/rtc0/since_epoch").parse().unwrap();
    assert!(now().abs_diff(clock) < 60, "{clock}, and it is {}", now());
    linux.power_off();
}

fn reboot() {
    let mut linux = Linux::shell(&[]);
    linux.type_line("reboot -f");
    linux.assert_end(119, ": rebooted");
}

fn panic() {
    let mut linux = Linux::shell(&[]);
    linux.type_line("echo c > /proc/sysrq-trigger");
    linux.assert_end(112, ": the kernel panicked: sysrq triggered crash");
}

fn no_root() {
    let mut linux = Linux::start(&[&kit("vmlinux"), "--cmdline", QUIET], Stdio::null());
    linux.assert_end(112, ": the kernel panicked: VFS: Unable to mount root fs");
}

fn exit_port() {
    let mut linux = Linux::shell(&[]);
    linux.type_line("exit-port 42");
    let (status, report) = linux.end();
    assert_eq!(status, 42, "{report}");
}

/// Also with the command line that is there without --cmdline.
fn virtio_console() {
    let mut linux = Linux::boot("vmlinux", &["--console", "virtio"]);
    assert_eq!(linux.ask("tty"), "/dev/hvc0");
    assert_eq!(linux.ask("echo typed on the console"), "typed on the console");
    assert_eq!(linux.ask("seq 2000 | md5sum"), "ea4d0a24dabcaa11f9aa979b872d162b  -");
    linux.power_off();
}

fn interrupted_write() {
    let files = Files::new();
    let bytes = random(4 * MIB);
    let path = files.write("disk", &bytes);
    let mut linux = Linux::shell(&["--disk", &path]);
    linux.ask("dd if=/dev/vda of=/dev/vda bs=64k count=16 seek=16; sync");
    linux.type_line(
        "echo WR''ITES; while :; do dd if=/dev/zero of=/dev/vda bs=64k seek=32 count=32 oflag=direct; done",
    );
    linux.expect("WRITES");
    // It is printed before the first write.
    linux.expect("records out");
    thread::sleep(Duration::from_millis(200));
    let id = linux.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let signalled = Instant::now();
    linux.assert_end(117, "interrupted");
    assert!(signalled.elapsed() < Duration::from_secs(5), "it took {:?}", signalled.elapsed());
    let found = fs::read(&path).unwrap();
    assert_eq!(found.len(), bytes.len());
    assert!(found[..MIB] == bytes[..MIB] && found[MIB..2 * MIB] == bytes[..MIB], "synced and lost");
    assert!(found[2 * MIB..].iter().all(|byte| *byte == 0), "written directly and lost");
}

/// The guest sits in its shell: HLT, and nothing to do.
fn timeout() {
    let (kernel, initrd) = (kit("vmlinux"), kit("guest-initrd"));
    let arguments = [&kernel, "--initrd", &initrd, "--cmdline", QUIET, "--timeout", "12"];
    let started = Instant::now();
    let mut linux = Linux::start(&arguments, Stdio::piped());
    linux.assert_end(114, "");
    assert!(started.elapsed() >= Duration::from_secs(12), "after {:?}", started.elapsed());
}

fn entropy() {
    let mut linux = Linux::shell(&[]);
    let source = linux.ask("cat /sys/class/misc/hw_random/rng_current");
    assert!(source.starts_with("virtio_rng"), "{source}");
    let draw = "dd if=/dev/hwrng bs=64 count=1 2>/dev/null | od -An -v -tx1";
    let (first, second) = (linux.ask(draw), linux.ask(draw));
    assert_eq!(first.split_whitespace().count(), 64, "{first}");
    assert_ne!(first, second);
    linux.power_off();
}

/// The host gives a page when the guest touches it, and the guest touches few.
fn much_memory() {
    let mut linux = Linux::shell(&["--mem", "5G"]);
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
