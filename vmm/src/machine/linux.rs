//! The PC for Linux: its options, and the threads that run while its vCPUs run.
//!
//! The PC has in-kernel interrupt controllers, a serial port, virtio devices over MMIO, and the older hardware that a
//! kernel needs: a real-time clock, a keyboard controller that can reset the machine, and the ports 0x61 and 0x80. ACPI
//! tables list the addresses and interrupts.

use crate::boot::linux::Kernel;
use crate::console::host::{ConsoleSetup, ConsoleThreads};
use crate::controller::inquiry::Inquiry;
use crate::device::virtio::{Disk, Mmio};
use crate::error::{Error, ImageError};
use crate::exit::Stop;
use crate::host;
use crate::machine::boot_progress::BootProgress;
use crate::profile::timeline::{Mark, Timeline};
use crate::shutdown::{Deadline, Kick, StopHandle};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A Linux kernel and its boot options.
#[derive(Debug)]
pub struct Linux {
    pub(crate) kernel: Kernel,
    pub(crate) initrds: Vec<PathBuf>,
    pub(crate) command_line: Option<String>,
    pub(crate) marker: Option<String>,
    pub(crate) escapes: bool,
    pub(crate) disks: Vec<Disk>,
    pub(crate) console: ConsoleKind,
    pub(crate) on_halt: OnHalt,
    pub(crate) clock: ClockKind,
}

/// The effect of a kernel that halts its machine for good, as with `halt -f`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnHalt {
    /// The run ends, because nothing can wake the machine.
    #[default]
    Exit,
    /// The run goes on, as a computer stays on.
    Wait,
}

/// The time sources of a Linux machine, besides the time-stamp counter and the local APIC timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClockKind {
    /// kvm-clock. A kernel that does not use it also gets those of [`ClockKind::Pit`].
    #[default]
    Auto,
    /// kvm-clock only. The ACPI tables are hardware-reduced.
    Kvm,
    /// Also a PIT and the ACPI PM timer. The ACPI tables describe them from the start.
    Pit,
}

/// The device that is the console and gets the input. The output of both devices is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsoleKind {
    /// The serial port, ttyS0.
    #[default]
    Serial,
    /// A virtio console, hvc0. Linux prints there only after it has loaded the driver.
    Virtio,
}

/// The maximum number of disks of a machine. Each disk needs an interrupt of its own.
pub const MAX_DISKS: usize = 16;

impl Linux {
    /// Opens the kernel in a file: a `vmlinux` or a `bzImage`.
    ///
    /// # Errors
    /// The file cannot be read, or is not a kernel that this VMM can boot.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let kernel = Kernel::open(path)?;
        Ok(Self {
            kernel,
            initrds: Vec::new(),
            command_line: None,
            marker: None,
            escapes: false,
            disks: Vec::new(),
            console: ConsoleKind::Serial,
            on_halt: OnHalt::Exit,
            clock: ClockKind::Auto,
        })
    }

    /// False for a bzImage that is not Linux, such as a memory tester. Its machine has a text screen.
    pub fn is_linux(&self) -> bool {
        self.kernel.is_linux()
    }

    /// Adds a file with an initial RAM disk; `None` adds nothing. The kernel gets several one after the other, as boot loaders
    /// give them. Default: none.
    #[must_use]
    pub fn initrd(mut self, path: Option<&Path>) -> Self {
        self.initrds.extend(path.map(Path::to_path_buf));
        self
    }

    /// Sets the kernel command line. Default: messages go to the console, a kernel panic ends the machine, and the kernel
    /// does not look for PCI (`console=ttyS0 panic=-1 reboot=k pci=off`, with `hvc0` instead of `ttyS0` for
    /// [`ConsoleKind::Virtio`]).
    #[must_use]
    pub fn command_line(mut self, text: Option<&str>) -> Self {
        self.command_line = text.map(str::to_string);
        self
    }

    /// Sets the console text that marks the start of userland in the timeline of the boot. Default: the kernel's message
    /// `Run /init as init process`, with any path.
    #[must_use]
    pub fn marker(mut self, text: Option<&str>) -> Self {
        self.marker = text.map(str::to_string);
        self
    }

    /// Attaches a disk. At most [`MAX_DISKS`]; the first appears as vda.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Sets the device that is the console. Default: [`ConsoleKind::Serial`].
    #[must_use]
    pub fn console(mut self, kind: ConsoleKind) -> Self {
        self.console = kind;
        self
    }

    /// Sets the effect of a kernel that halts its machine for good. Default: [`OnHalt::Exit`].
    #[must_use]
    pub fn on_halt(mut self, effect: OnHalt) -> Self {
        self.on_halt = effect;
        self
    }

    /// Sets the time sources. Default: [`ClockKind::Auto`].
    #[must_use]
    pub fn clock(mut self, clock: ClockKind) -> Self {
        self.clock = clock;
        self
    }

    /// If set, the input is a keyboard, and the keys Ctrl-A x end the machine. Default: false.
    #[must_use]
    pub fn keyboard(mut self, yes: bool) -> Self {
        self.escapes = yes;
        self
    }
}

/// The threads and devices that run while the vCPUs run, before they start.
pub(crate) struct Pc {
    pub(crate) console: ConsoleSetup,
    pub(crate) stop_handle: Arc<StopHandle>,
    pub(crate) progress: BootProgress,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) virtio: Vec<Arc<Mutex<Mmio>>>,
    /// Answers the questions of the console's thread.
    pub(crate) inquiry: Arc<Inquiry>,
    /// The advice if the kernel prints nothing.
    pub(crate) silence: &'static str,
}

/// The threads and devices of a [`Pc`], while they run.
pub(crate) struct RunningPc {
    virtio: Vec<Arc<Mutex<Mmio>>>,
    console: ConsoleThreads,
    stop_handle: Arc<StopHandle>,
    progress: BootProgress,
    timeline: Arc<Timeline>,
    silence: &'static str,
}

/// The milestones of a boot.
#[derive(Clone, Debug)]
pub struct BootReport {
    /// The milestones with their times, in their order. The exits before each one are in the profile
    /// ([`Profile::phases`](crate::profile::Profile::phases)).
    pub marks: Vec<Mark>,
    /// The number of marks that were dropped, because the guest made more than are kept.
    pub lost_marks: u64,
    /// The reason of the kernel's panic, from its message on the console. `None` if there was no panic.
    pub panic: Option<String>,
    /// If the kernel has printed nothing: the console that it would need, as a clause. `None` if it has printed.
    pub silence: Option<&'static str>,
}

/// The reason why a kernel with this command line may print nothing on a machine with this console, and the next step.
pub(crate) fn silence(command_line: &str, console: ConsoleKind) -> &'static str {
    let names = |option: &str, device: &str| {
        let mut values = command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(option));
        values.any(|value| value.contains(device))
    };
    let serial = ["console=", "earlyprintk=", "earlycon="];
    let has_serial = serial.iter().any(|option| names(option, "ttyS0") || names(option, "uart"));
    match (has_serial, names("console=", "hvc0"), console) {
        (true, ..) => {
            "it printed nothing: earlyprintk=ttyS0 in --cmdline shows what it prints before its serial console starts, and \
             without the driver of the 8250 (CONFIG_SERIAL_8250_CONSOLE) it has none"
        }
        (false, true, ConsoleKind::Virtio) => {
            "it printed nothing, and may have panicked before the driver of hvc0 started: leave out --console virtio, or give \
             it console=ttyS0 in --cmdline as well"
        }
        (false, true, ConsoleKind::Serial) => {
            "it printed nothing, and its command line has only the console hvc0: give --console virtio, or console=ttyS0 in \
             --cmdline"
        }
        (false, false, _) => {
            "it printed nothing, and its command line has no console: give it console=ttyS0 in --cmdline"
        }
    }
}

impl Pc {
    /// Starts the threads. They kick `vcpus` if they stop the machine.
    ///
    /// # Errors
    /// The host has no thread left.
    pub(crate) fn start(self, deadline: Deadline, vcpus: Arc<dyn Kick>) -> Result<RunningPc, Error> {
        let Self { console, stop_handle, progress, timeline, virtio, inquiry: _, silence } = self;
        virtio.iter().for_each(|device| lock(device).begin_run(deadline.clone(), stop_handle.clone()));
        stop_handle.attach(deadline, vcpus);
        let console = ConsoleThreads::start(console, stop_handle.clone())?;
        Ok(RunningPc { virtio, console, stop_handle, progress, timeline, silence })
    }
}

impl RunningPc {
    /// The timeline of the boot.
    pub(crate) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Ends the threads. Returns the reason why one of them stopped the machine, if one did.
    pub(crate) fn finish(mut self, deadline: &Deadline) -> (Option<Stop>, BootReport) {
        // The terminal is restored first: Ctrl-C then ends the program even while it waits for a reader of the output.
        host::terminal::restore();
        self.console.finish(deadline);
        // A disk writes its pending data before the machine is dropped.
        let stops: Vec<_> = self.virtio.iter().map(|device| lock(device).stop()).collect();
        let failure = stops.into_iter().find_map(Result::err);
        let (marks, lost_marks) = (self.timeline.marks(), self.timeline.lost());
        let stop = match self.stop_handle.reason() {
            // A disk that lost data counts more than an end in good order.
            Some(Stop::Halted) => failure.or(Some(Stop::Halted)),
            reason => reason.or(failure),
        };
        let silence = (self.progress.so_far().bytes == 0).then_some(self.silence);
        (stop, BootReport { marks, lost_marks, panic: self.progress.panic(), silence })
    }
}

fn lock(device: &Mutex<Mmio>) -> MutexGuard<'_, Mmio> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_kernel_is_told_the_console_that_it_needs() {
        use ConsoleKind::{Serial, Virtio};
        for (line, console, advice) in [
            (
                "console=hvc0 panic=-1",
                Virtio,
                "before the driver of hvc0 started: leave out --console virtio",
            ),
            ("console=hvc0 panic=-1", Serial, "only the console hvc0: give --console virtio"),
            ("console=tty0 panic=-1", Serial, "has no console: give it console=ttyS0"),
            ("", Virtio, "has no console: give it console=ttyS0"),
            ("console=ttyS0,115200 console=hvc0", Virtio, "earlyprintk=ttyS0 in --cmdline shows"),
            ("earlycon=uart8250,io,0x3f8 console=hvc0", Virtio, "earlyprintk=ttyS0 in --cmdline shows"),
        ] {
            assert!(silence(line, console).contains(advice), "{line:?}: {}", silence(line, console));
        }
    }
}
