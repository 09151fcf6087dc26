//! Disks and other virtio devices of `vmm boot`, with small guests in C: huge requests at the deadline, mistakes of the
//! driver, and hosts that fail. Linux uses its disks in tests/linux.rs.
#![allow(clippy::unwrap_used)]

mod support;
#[path = "support/virtio_guest.rs"]
mod virtio_guest;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::kernels::{assert_ended, boot};
use support::{Files, Liar, Ran, assert_error, kvm_test, ran, run, test_unless, vmm, wait};
use virtio_guest::guest;

const GIB: u64 = 1 << 30;

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("a_huge_request_of_a_disk_ends_at_the_deadline", huge_requests),
        kvm_test("a_huge_output_of_a_virtio_console_ends_at_the_deadline", huge_output),
        kvm_test("a_signal_ends_a_huge_request", signal),
        kvm_test("a_reset_waits_for_a_huge_request_only_until_the_deadline", reset),
        kvm_test("the_last_flush_is_left_out_after_the_deadline", no_last_flush),
        kvm_test("each_kind_of_mistake_is_reported_once_beside_failures_of_the_host", reported),
        kvm_test("after_a_failed_flush_every_flush_fails", failed_flush),
        kvm_test("a_failed_last_flush_is_a_host_error", failed_last_flush),
        kvm_test("a_device_that_cannot_wait_for_notifications_ends_the_run", dead_epoll),
        kvm_test("a_device_that_fails_at_the_end_of_a_run_fails_the_run", dead_epoll_at_the_end),
        kvm_test("a_console_that_cannot_wait_for_keys_ends_the_run", dead_console),
        kvm_test("a_descriptor_with_indirect_and_next_needs_a_reset", indirect_and_next),
        test_unless(no_loop_devices, "a_disk_that_the_host_uses_is_not_written", used_by_the_host),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// Creates a disk image of zeroes with this size.
fn disk(files: &Files, size: u64) -> String {
    let path = files.write("disk", b"");
    File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
    path
}

/// Boots a guest with this body and a disk of 8 GiB. Returns its end, and the time that it took.
fn with_disk(body: &str, arguments: &[&str]) -> (Ran, Duration) {
    let files = Files::new();
    let (kernel, disk) = (guest(&files, body), disk(&files, 8 * GIB));
    let started = Instant::now();
    let ran = ran(&[&["boot", &kernel, "--mem", "64M", "--disk", &disk], arguments].concat());
    (ran, started.elapsed())
}

/// VIRTIO_RING_F_INDIRECT_DESC and VIRTIO_BLK_F_FLUSH
const START_DISK: &str = "u64 disk = device(0); start(disk, 1 << 28 | 1 << 9, 1);";
/// The request would take a second at least. The limit is generous, because the machine may be busy.
const SOON: Duration = Duration::from_millis(2500);

fn huge_requests() {
    for kind in ["WRITE_DISK", "READ_DISK"] {
        // A second request waits behind the first one, and the device must not begin it.
        let body = format!(
            "{START_DISK} submit_huge_request(disk, {kind}); submit(disk, 0, 0); submit(disk, 0, 0);
             print(\"sent\"); while (*word(used(0) + 2) == 0); print(\" and done\"); power_off();"
        );
        let (ran, took) = with_disk(&body, &["--timeout", "0.3"]);
        assert_ended(&ran, 114, "timeout");
        assert_eq!(ran.text(), "sent", "a request that was cut off is not reported as done");
        assert!(took < SOON, "{kind}: {took:?}");
    }
}

fn huge_output() {
    let files = Files::new();
    let body = "u64 console = device(0); start(console, 1 << 28, 2);
                for (u32 entry = 0; entry < 64; entry++)
                    describe(descriptors(1), entry, DATA, 48 * MIB, entry < 63 ? NEXT : 0);
                submit(console, 1, 0); wait(console, 1); power_off();";
    let kernel = guest(&files, body);
    let arguments = ["boot", &kernel, "--mem", "128M", "--console", "virtio", "--timeout", "0.3"];
    let started = Instant::now();
    let ran = run(vmm(&arguments).stdout(Stdio::null()));
    assert_ended(&ran, 114, "timeout");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

fn signal() {
    let files = Files::new();
    let body = format!(
        "{START_DISK} submit_huge_request(disk, WRITE_DISK); print(\"sent\\n\"); wait(disk, 0); power_off();"
    );
    let (kernel, disk) = (guest(&files, &body), disk(&files, 8 * GIB));
    let mut child =
        vmm(&["boot", &kernel, "--mem", "64M", "--disk", &disk]).stderr(Stdio::null()).spawn().unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 5]).unwrap();
    thread::sleep(Duration::from_millis(50));
    let signalled = Instant::now();
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(wait(&mut child), 117);
    assert!(signalled.elapsed() < SOON, "{:?}", signalled.elapsed());
}

fn reset() {
    let body = format!(
        "{START_DISK} submit_huge_request(disk, WRITE_DISK);
         for (u32 n = 0; n < 100000; n++) load(disk + 0x70);
         print(\"reset\"); store(disk + 0x70, 0); print(\" done\"); for (;;);"
    );
    let (ran, took) = with_disk(&body, &["--timeout", "0.3"]);
    assert_ended(&ran, 114, "timeout");
    assert!(took < SOON, "{took:?}");
}

fn no_last_flush() {
    let files = Files::new();
    let body = format!("{START_DISK} request(disk, WRITE_DISK, 0, DATA, 512); for (;;);");
    let (kernel, disk) = (guest(&files, &body), disk(&files, GIB));
    let arguments = ["boot", &kernel, "--disk", &disk, "--timeout", "0.5"];
    // A flush would fail, and end the run with status 115.
    let ran = Liar::new().fail("fdatasync 5 1 0", &arguments);
    assert_ended(&ran, 114, "timeout");
    assert_eq!(ran.text(), "0");
}

/// Boots a guest with a disk on a host on which a function fails.
fn on_failing_host(fail: &str, requests: &str) -> Ran {
    let files = Files::new();
    let kernel = guest(&files, &format!("{START_DISK} {requests}"));
    let disk = disk(&files, 64 << 20);
    Liar::new().fail(fail, &["boot", &kernel, "--disk", &disk, "--timeout", "20"])
}

/// Returns the number of lines on stderr that contain `text`.
fn lines(ran: &Ran, text: &str) -> usize {
    ran.stderr.lines().filter(|line| line.contains(text)).count()
}

fn reported() {
    let round = "request(disk, READ_DISK, 0, 0xc0000000, 512);
                 request(disk, READ_DISK, 1ul << 60, DATA, 512);
                 request(disk, READ_DISK, 0, DATA, 100);
                 request(disk, 77, 0, DATA, 512);
                 request(disk, READ_DISK, 0, DATA, 512);";
    let ran = on_failing_host("preadv 5 1 0", &format!("{round} {round} power_off();"));
    assert_ended(&ran, 0, "warn: ");
    assert_eq!(ran.text(), "1112111121");
    for text in [
        "has a buffer that is not in guest memory",
        "is outside the disk",
        "is not a whole number of sectors of 512 bytes",
        "is of a type that the disk does not support",
        "could not be read: Input/output error",
    ] {
        assert_eq!(lines(&ran, text), 1, "{text}: {}", ran.stderr);
    }
    let of_guest = lines(&ran, "a request of the guest to the disk ");
    assert_eq!((of_guest, lines(&ran, "the disk image ")), (4, 1), "{}", ran.stderr);
}

fn failed_flush() {
    let requests = "request(disk, WRITE_DISK, 0, DATA, 512); request(disk, FLUSH_DISK, 0, 0, 0);
                    request(disk, FLUSH_DISK, 0, 0, 0); request(disk, WRITE_DISK, 0, DATA, 512);
                    request(disk, FLUSH_DISK, 0, 0, 0); power_off();";
    for function in ["fdatasync", "sync_file_range"] {
        let ran = on_failing_host(&format!("{function} 5 1 1"), requests);
        assert_eq!((ran.status, ran.text().as_str()), (115, "01101"), "{}", ran.stderr);
        let text = "the host failed: the disk image ";
        assert_eq!(lines(&ran, text), 1, "{}", ran.stderr);
        assert_eq!(lines(&ran, "could not be flushed: Input/output error"), 1, "{}", ran.stderr);
    }
}

fn failed_last_flush() {
    let requests = "request(disk, WRITE_DISK, 0, DATA, 512); power_off();";
    let ran = on_failing_host("fdatasync 28 1 0", requests);
    assert_eq!((ran.status, ran.text().as_str()), (115, "0"), "{}", ran.stderr);
    assert_eq!(lines(&ran, "could not be flushed: No space left on device"), 1, "{}", ran.stderr);
    assert_eq!(lines(&ran, "warn: "), 0, "one sentence is enough: {}", ran.stderr);
    // Without a write, there is nothing to flush.
    let ran = on_failing_host("fdatasync 28 1 0", "request(disk, READ_DISK, 0, DATA, 512); power_off();");
    assert_eq!((ran.status, ran.text().as_str()), (0, "0"), "{}", ran.stderr);
}

fn dead_epoll() {
    let started = Instant::now();
    let requests = "for (;;) request(disk, READ_DISK, 0, DATA, 512);";
    let ran = on_failing_host("epoll_wait 9 4 0", requests);
    assert_ended(
        &ran,
        115,
        "virtio-blk cannot continue: waiting for notifications failed: Bad file descriptor",
    );
    assert!(started.elapsed() < Duration::from_secs(15), "the run ends long before its timeout");
}

/// The failure may come before the guest powers its machine off, or after it. The run has failed in both cases.
fn dead_epoll_at_the_end() {
    let files = Files::new();
    let kernel = guest(&files, &format!("{START_DISK} request(disk, READ_DISK, 0, DATA, 512); power_off();"));
    let (disk, liar) = (disk(&files, 1 << 20), Liar::new());
    let arguments = ["boot", &kernel, "--disk", &disk, "--timeout", "20"];
    let mut failed = 0;
    for first in 1..=5 {
        let (ran, calls) = liar.fail_and_count(&format!("epoll_wait 9 {first} 1"), "epoll_wait", &arguments);
        let has_failed = calls >= first;
        let expected = if has_failed { 115 } else { 0 };
        assert_eq!(ran.status, expected, "call {first} of {calls}: {}", ran.stderr);
        failed += u32::from(has_failed);
    }
    assert!(failed > 1, "the device waits for a request and for the end");
}

/// The two threads of the console wait with ppoll. One of them fails.
fn dead_console() {
    let started = Instant::now();
    let ran = on_failing_host("ppoll 9 1 1", "for (;;);");
    assert_eq!(ran.status, 115, "{}", ran.stderr);
    assert_eq!(lines(&ran, "Bad file descriptor"), 1, "{}", ran.stderr);
    assert!(started.elapsed() < Duration::from_secs(15), "the run ends long before its timeout");
}

fn indirect_and_next() {
    let request = |flags: &str| {
        format!(
            "{START_DISK} header(READ_DISK, 0);
             describe(TABLES, 0, HEADER, 16, NEXT); describe(TABLES, 1, DATA, 512, NEXT | WRITE);
             describe(TABLES, 2, STATUS, 1, WRITE); describe(descriptors(0), 0, TABLES, 48, {flags});
             describe(descriptors(0), 1, DATA, 512, WRITE); submit(disk, 0, 0);
             print(wait(disk, 0) ? \"used\" : \"needs a reset\"); power_off();"
        )
    };
    let (good, _) = with_disk(&request("INDIRECT"), &["--timeout", "20"]);
    assert_eq!((good.status, good.text().as_str()), (0, "used"), "{}", good.stderr);
    let (bad, _) = with_disk(&request("INDIRECT | NEXT"), &["--timeout", "20"]);
    assert_eq!((bad.status, bad.text().as_str()), (0, "needs a reset"), "{}", bad.stderr);
    assert_eq!(lines(&bad, "a descriptor with an indirect table has a next one"), 1, "{}", bad.stderr);
}

/// A file that is attached to a loop device, until this is dropped.
struct Attached {
    device: String,
}

impl Attached {
    fn new(file: &str) -> Result<Self, String> {
        let output = Command::new("losetup").args(["-f", "--show", file]).output();
        let output = output.map_err(|error| format!("losetup: {error}"))?;
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() {
            return Ok(Self { device });
        }
        Err(format!("losetup fails: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.device).stderr(Stdio::null()).status();
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

/// Returns the reason why a file cannot be attached to a loop device, if it cannot.
fn no_loop_devices() -> Option<String> {
    let files = Files::new();
    let has = |tool: &&str| Command::new(tool).arg("--version").output().is_ok();
    match ["losetup", "mount", "umount"].iter().find(|tool| !has(tool)) {
        Some(tool) => Some(format!("{tool} is missing")),
        None => Attached::new(&disk(&files, 1 << 20))
            .err()
            .map(|why| format!("needs root and loop devices: {why}")),
    }
}

fn used_by_the_host() {
    let files = Files::new();
    let image = disk(&files, 16 << 20);
    let made = Command::new("mkfs.ext4").args(["-q", "-F", &image]).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfs.ext4 makes a file system");
    let folder = files.0.path().join("mounted");
    fs::create_dir(&folder).unwrap();
    let boots = |disk: &str| boot(&[support::kernels::POWER_OFF], &["--disk", disk]);
    let attached = Attached::new(&image).unwrap();
    let device = &attached.device;
    // The kernel refuses a device that is mounted, and nothing else can be known about a file.
    assert_error(&boots(&image), 110, &format!("is attached to the loop device {device}"));
    let mount = |device: &str, folder: &Path| {
        Command::new("mount").arg(device).arg(folder).status().unwrap().success()
    };
    assert_ended_well_if_kvm(&boots(device));
    assert!(mount(device, &folder), "the device is mounted");
    assert_error(
        &boots(device),
        110,
        "is mounted or in use: unmount it (findmnt, lsblk), or use it read-only",
    );
    assert_ended_well_if_kvm(&boots(&format!("{device},ro")));
    assert_ended_well_if_kvm(&boots(&format!("{image},ro")));
    drop(attached);
    assert_ended_well_if_kvm(&boots(&image));
}

/// Checks that the machine has run, on a host with KVM. Disks are opened before KVM.
fn assert_ended_well_if_kvm(ran: &Ran) {
    match support::unusable() {
        None => assert_ended(ran, 0, "powered off"),
        Some(reason) => assert!(ran.stderr.contains(reason), "{}", ran.stderr),
    }
}
