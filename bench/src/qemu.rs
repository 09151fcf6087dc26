//! The same guests under QEMU's microvm: the cost of a whole run, and the cost per exit.
//!
//! Each guest runs once with many exits and once with none. The difference, divided by the number of exits, is the cost
//! of an exit with its device. Both programs run the same code: `vmm` at 0x1000, QEMU as firmware. The console guest
//! writes a byte to port 0xe9, and both programs discard it in `/dev/null`. The register guest reads the magic value of
//! a SIMVIRTIO window (`vmm`) or of a virtio-mmio window (QEMU).

use crate::loops::{self, UNROLLED};
use crate::row::{Baseline, Row, Unit, cpu, interleave, wall};
use crate::scratch::Scratch;
use crate::sys::{self, Cost};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The name of the QEMU program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// The exit status of QEMU after the guest writes 0 to isa-debug-exit: twice the value, plus one.
pub const EXIT_STATUS: i32 = 1;
/// The GPA of the first virtio-mmio window in a microvm.
const VIRTIO: u32 = 0xfeb0_0000;
/// The GPA of the SIMVIRTIO window in `vmm`.
const SIMVIRTIO: u32 = 0x10_0000;
/// The number of passes of a guest's loop, which makes 19,200 exits.
const PASSES: u32 = 300;

/// The CPU models, the best first. With some kernels KVM offers MSR 0x10a (IA32_ARCH_CAPABILITIES) on a host that lacks it,
/// and QEMU aborts when it sets this MSR.
const CPU_MODELS: [&str; 3] = ["host", "host,-arch-capabilities", "qemu64"];

/// The QEMU program, and a CPU model with which it runs on this host.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: PathBuf,
    cpu: &'static str,
}

impl Qemu {
    /// Finds QEMU in PATH, and tries each CPU model once with a guest that ends at once.
    ///
    /// # Errors
    /// QEMU is not installed, or runs the guest with no CPU model.
    pub fn find() -> Result<Self, String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path)
            .map(|folder| folder.join(PROGRAM))
            .find(|program| program.is_file())
            .ok_or_else(|| {
                format!("{PROGRAM} is not in PATH: install it (apt-get install qemu-system-x86)")
            })?;
        let scratch = Scratch::new()?;
        let firmware = scratch.file("tiny.fw", &loops::firmware(&loops::console_guest(0)))?;
        let mut first_error = None;
        for cpu in CPU_MODELS {
            let qemu = Self { program: program.clone(), cpu };
            let tried = measure(&qemu_candidate(&qemu, firmware.clone()));
            match tried {
                Ok(_) => return Ok(qemu),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_default())
    }

    /// Returns the path of the program.
    pub fn program(&self) -> &Path {
        &self.program
    }
}

/// Returns the command for a minimal microvm that runs a firmware image.
pub fn qemu_command(qemu: &Qemu, firmware: &Path) -> Command {
    let mut command = Command::new(&qemu.program);
    command
        .args(["-M", "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=off", "-accel", "kvm"])
        .args([
            "-cpu",
            qemu.cpu,
            "-m",
            "16",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args([
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=4",
            "-chardev",
            "file,id=console,path=/dev/null",
        ])
        .args(["-device", "isa-debugcon,iobase=0xe9,chardev=console", "-bios"])
        .arg(firmware)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Returns the command for `vmm` that runs an image in a mode, such as `@0x1000:16`.
fn vmm_command(vmm: &Path, image: &Path, mode: &str) -> Command {
    let mut command = Command::new(vmm);
    let mut guest = image.as_os_str().to_owned();
    guest.push(mode);
    command.args(["run", "--timeout", "60"]).arg(guest);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A command line, and the exit status that it must end with.
struct Candidate<'a> {
    command: Box<dyn Fn() -> Command + 'a>,
    status: i32,
}

fn measure(candidate: &Candidate<'_>) -> Result<Cost, String> {
    let mut command = (candidate.command)();
    let ran = sys::run(command.stderr(Stdio::null()))?;
    if ran.status.code() == Some(candidate.status) {
        return Ok(ran.cost);
    }
    // Run it again to get its error message.
    let output = (candidate.command)().output().map_err(|error| error.to_string())?;
    let message = vmm::host::printable_text(String::from_utf8_lossy(&output.stderr).trim());
    Err(format!("{command:?} ended with {}: {message}", ran.status))
}

/// Measures `rounds` runs of each guest under both programs, or without `qemu` only under `vmm`.
///
/// # Errors
/// A program could not run, or ended with the wrong status.
pub fn run(rounds: usize, vmm: &Path, qemu: Option<&Qemu>) -> Result<Vec<Row>, String> {
    let scratch = Scratch::new()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (name, passes) in [("none", 0), ("many", PASSES)] {
        let console = loops::console_guest(passes);
        let image = scratch.file(&format!("console-{name}.bin"), &console)?;
        let firmware = scratch.file(&format!("console-{name}.fw"), &loops::firmware(&console))?;
        ours.push(vmm_candidate(vmm, image, "@0x1000:16"));
        theirs.extend(qemu.map(|qemu| qemu_candidate(qemu, firmware)));
        let image = scratch.file(&format!("reads-{name}.bin"), &loops::register_guest(SIMVIRTIO, passes))?;
        let code = loops::register_guest(VIRTIO, passes);
        let firmware = scratch.file(&format!("reads-{name}.fw"), &loops::firmware32(&code))?;
        ours.push(vmm_candidate(vmm, image, "@0x1000:32"));
        theirs.extend(qemu.map(|qemu| qemu_candidate(qemu, firmware)));
    }
    let count = ours.len();
    let candidates: Vec<_> = ours.into_iter().chain(theirs).collect();
    let costs = interleave(rounds, &candidates, measure)?;
    let (ours, theirs) = costs.split_at_checked(count).unwrap_or_default();
    Ok(rows(ours, theirs))
}

/// Returns the rows. Both sides have the costs of four guests: the console and the register guest without exits, and the
/// same with many exits. The other side may be empty.
fn rows(ours: &[Vec<Cost>], theirs: &[Vec<Cost>]) -> Vec<Row> {
    fn costs_of(side: &[Vec<Cost>], guest: usize) -> &[Cost] {
        side.get(guest).map_or(&[], Vec::as_slice)
    }
    let per_exit = |side, none: usize, many: usize| -> Vec<Cost> {
        let exits = f64::from(PASSES * UNROLLED);
        let difference = |(none, many): (&Cost, &Cost)| Cost {
            cpu: (many.cpu - none.cpu) / exits,
            wall: (many.wall - none.wall) / exits,
        };
        costs_of(side, none).iter().zip(costs_of(side, many)).map(difference).collect()
    };
    let row = |id: &str, title: &str, how, ours: &[Cost], theirs: &[Cost]| Row {
        id: id.into(),
        title: title.into(),
        other: "QEMU microvm",
        baseline: Baseline::OtherProgram,
        unit: Unit::Nanoseconds,
        how,
        pair: cpu(ours, theirs),
        wall: wall(ours, theirs),
        goals: Vec::new(),
    };
    let of_process = "CPU time of the whole process";
    let of_exit = "CPU time of the process with 19,200 exits minus that with none, per exit";
    vec![
        row(
            "qemu-start",
            "whole run of a guest that ends at once",
            of_process,
            costs_of(ours, 0),
            costs_of(theirs, 0),
        ),
        row(
            "qemu-console",
            "write of a byte to the debug console",
            of_exit,
            &per_exit(ours, 0, 2),
            &per_exit(theirs, 0, 2),
        ),
        row(
            "qemu-register",
            "read of a device register",
            of_exit,
            &per_exit(ours, 1, 3),
            &per_exit(theirs, 1, 3),
        ),
    ]
}

fn vmm_candidate(vmm: &Path, image: PathBuf, mode: &'static str) -> Candidate<'static> {
    let vmm = vmm.to_owned();
    Candidate { command: Box::new(move || vmm_command(&vmm, &image, mode)), status: 0 }
}

fn qemu_candidate(qemu: &Qemu, firmware: PathBuf) -> Candidate<'_> {
    Candidate { command: Box::new(move || qemu_command(qemu, &firmware)), status: EXIT_STATUS }
}
