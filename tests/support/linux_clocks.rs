//! Linux with other time sources than kvm-clock.

use crate::QUIET;
use crate::linux_guest::{Linux, kit};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The command line of a kernel that must do without kvm-clock.
const NO_KVM_CLOCK: &str = "console=ttyS0 quiet panic=-1 reboot=k no-kvmclock";

/// Waits for the end. While the kernel measures its clock on a busy host, it may stand still for seconds, which is told first.
fn assert_powered_off(linux: &mut Linux) {
    let (status, report) = linux.end();
    assert!(status == 0 && report.contains(": powered off (after "), "{status}: {report}");
}

/// With the PIT and the full ACPI tables, and the power-off through PM1.
pub fn without_kvm_clock(boots: u32) {
    for boot in 1..=boots {
        let line = format!("{NO_KVM_CLOCK} userland=off");
        let (kernel, initrd) = (kit("vmlinux"), kit("guest-initrd"));
        let arguments = [&kernel, "--initrd", &initrd, "--cmdline", &line];
        let mut linux = Linux::start(&arguments, Stdio::null());
        linux.expect("USERLAND-READY");
        assert_powered_off(&mut linux);
        println!("boot {boot} without kvm-clock");
    }
    for kernel in ["vmlinux", "bzImage"] {
        let mut linux = Linux::boot(kernel, &["--cmdline", NO_KVM_CLOCK, "--cpus", "2"]);
        let system = "/sys/devices/system/clocksource/clocksource0";
        let clocks = linux.ask(&format!("cat {system}/available_clocksource"));
        assert!(clocks.contains("acpi_pm") && !clocks.contains("kvm-clock"), "{clocks}");
        assert_eq!(linux.ask("nproc"), "2");
        // The clock of the kernel goes as fast as that of the host.
        let started = Instant::now();
        linux.ask("sleep 3");
        let took = started.elapsed();
        assert!((Duration::from_millis(2700)..Duration::from_secs(30)).contains(&took), "{took:?}");
        linux.type_line("poweroff -f");
        assert_powered_off(&mut linux);
    }
}

/// A kernel with kvm-clock also boots with the full ACPI tables.
pub fn all_time_sources() {
    let mut linux = Linux::boot("vmlinux", &["--cmdline", QUIET, "--clock", "pit"]);
    let system = "/sys/devices/system/clocksource/clocksource0";
    assert_eq!(linux.ask(&format!("cat {system}/current_clocksource")), "kvm-clock");
    assert_ne!(linux.ask("dmesg | grep -c 'ACPI: SCI'; true"), "");
    linux.power_off();
}

/// The kernel calibrates its delay loop without a timer interrupt, and shows no text.
pub fn waits_for_a_timer() {
    let kernel = kit("vmlinux");
    let arguments = [&kernel, "--cmdline", NO_KVM_CLOCK, "--clock", "kvm", "--timeout", "90"];
    let mut linux = Linux::start(&arguments, Stdio::null());
    let (status, report) = linux.end();
    assert_eq!(status, 114, "{report}");
    for text in ["the guest has made no exits and shown no text for 10 s", "--clock pit"] {
        assert!(report.contains(text), "{text}: {report}");
    }
}
