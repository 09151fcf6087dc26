//! The PC that Linux runs on: what it is given, and the part of the machine that runs beside the vCPUs.
//!
//! Interrupt controllers of the kernel's, a serial port, virtio devices over MMIO, and of the older hardware only what
//! kernels do not do without: a clock, a keyboard controller that resets, the ports 0x61 and 0x80. ACPI tables say
//! where things are.

use crate::boot::linux::Kernel;
use crate::console::host::{ConsoleSetup, ConsoleThreads};
use crate::device::virtio::{Disk, Mmio};
use crate::error::{Error, ImageError};
use crate::exit::Stop;
use crate::host;
use crate::machine::boot_progress::BootProgress;
use crate::profile::timeline::{Mark, Timeline};
use crate::shutdown::{Deadline, Kick, StopHandle};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Linux, and what it is started with.
#[derive(Debug)]
pub struct Linux {
    pub(crate) kernel: Kernel,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) command_line: Option<String>,
    pub(crate) marker: Option<String>,
    pub(crate) escapes: bool,
    pub(crate) disks: Vec<Disk>,
    pub(crate) console: ConsoleKind,
}

/// Which device is the console: what is typed goes there. Both print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsoleKind {
    /// The serial port, ttyS0.
    #[default]
    Serial,
    /// A virtio console, hvc0, whose driver may come late.
    Virtio,
}

/// The most disks that a machine has: as many interrupts are left.
pub const MAX_DISKS: usize = 16;

impl Linux {
    /// The kernel in a file, a `vmlinux` or a `bzImage`.
    ///
    /// # Errors
    /// It is no kernel that could be started.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let kernel = Kernel::open(path)?;
        Ok(Self {
            kernel,
            initrd: None,
            command_line: None,
            marker: None,
            escapes: false,
            disks: Vec::new(),
            console: ConsoleKind::Serial,
        })
    }

    /// Gives it the initial RAM disk in this file.
    #[must_use]
    pub fn initrd(mut self, path: Option<&Path>) -> Self {
        self.initrd = path.map(Path::to_path_buf);
        self
    }

    /// Its command line, in the place of one that has its messages on the console, and a crash end the machine.
    #[must_use]
    pub fn command_line(mut self, text: Option<&str>) -> Self {
        self.command_line = text.map(str::to_string);
        self
    }

    /// The text on its console that says that userland runs, in the place of the kernel's own message.
    #[must_use]
    pub fn marker(mut self, text: Option<&str>) -> Self {
        self.marker = text.map(str::to_string);
        self
    }

    /// Gives it one more disk, 16 at most: the first is vda.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Which device is its console.
    #[must_use]
    pub fn console(mut self, kind: ConsoleKind) -> Self {
        self.console = kind;
        self
    }

    /// Whether its input is a keyboard: Ctrl-A x then ends the machine.
    #[must_use]
    pub fn keyboard(mut self, yes: bool) -> Self {
        self.escapes = yes;
        self
    }
}

/// What runs beside the vCPUs, not started yet.
pub(crate) struct Pc {
    pub(crate) console: ConsoleSetup,
    pub(crate) stop_handle: Arc<StopHandle>,
    pub(crate) progress: BootProgress,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) virtio: Vec<Arc<Mutex<Mmio>>>,
}

/// The same, running.
pub(crate) struct RunningPc {
    virtio: Vec<Arc<Mutex<Mmio>>>,
    console: ConsoleThreads,
    stop_handle: Arc<StopHandle>,
    progress: BootProgress,
    timeline: Arc<Timeline>,
}

/// How far the boot got.
#[derive(Clone, Debug)]
pub struct BootReport {
    /// When it got where. Exits by phase are in the profile.
    pub marks: Vec<Mark>,
    /// How many marks found no place.
    pub lost_marks: u64,
    /// Why the kernel has panicked, if it has.
    pub panic: Option<String>,
}

impl Pc {
    /// Starts all of it, beside these vCPUs.
    ///
    /// # Errors
    /// The host has no thread left.
    pub(crate) fn start(self, deadline: Deadline, vcpus: Arc<dyn Kick>) -> Result<RunningPc, Error> {
        let Self { console, stop_handle, progress, timeline, virtio } = self;
        virtio.iter().for_each(|device| lock(device).set_deadline(deadline.clone()));
        stop_handle.attach(deadline, vcpus);
        let console = ConsoleThreads::start(console, stop_handle.clone())?;
        Ok(RunningPc { virtio, console, stop_handle, progress, timeline })
    }
}

impl RunningPc {
    /// The timeline of the boot.
    pub(crate) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Ends all of it, and says why the machine was ended from here, if it was.
    pub(crate) fn finish(mut self, deadline: &Deadline) -> (Option<Stop>, BootReport) {
        // Keys are for the program again: Ctrl-C ends one that waits for somebody to read its last words.
        host::terminal::restore();
        self.console.finish(deadline);
        // A disk is written before the machine is gone.
        self.virtio.iter().for_each(|device| lock(device).stop());
        let (marks, lost_marks) = (self.timeline.marks(), self.timeline.lost());
        (self.stop_handle.reason(), BootReport { marks, lost_marks, panic: self.progress.panic() })
    }
}

fn lock(device: &Mutex<Mmio>) -> MutexGuard<'_, Mmio> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
