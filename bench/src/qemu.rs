//! The same guests under QEMU's microvm, as whole programs: from their start to their end, and per exit.
//!
//! A guest runs with many exits and with none; what it costs more, per exit, is what an exit costs with its device. The
//! same code runs in both: at 0x1000 here, as firmware there. The console is a byte to port 0xe9, which both hand to
//! `/dev/null`; the register is the magic value of a SIMVIRTIO or virtio-mmio window.

use crate::loops::{self, UNROLLED};
use crate::row::{Against, Row, Unit, cpu, interleave, wall};
use crate::scratch::Scratch;
use crate::sys::{self, Cost};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program's name.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// With what status QEMU ends when the guest writes a zero to isa-debug-exit: twice that, and one.
pub const ENDED: i32 = 1;
/// The first virtio-mmio window of a microvm.
const VIRTIO: u32 = 0xfeb0_0000;
/// SIMVIRTIO's window here.
const SIMVIRTIO: u32 = 0x10_0000;
/// Passes of a guest's loop: 19,200 exits.
const PASSES: u32 = 300;

/// QEMU, where it is.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(PROGRAM)).find(|program| program.is_file())
}

/// A microvm with as little in it as can be, for a firmware image.
pub fn command(qemu: &Path, firmware: &Path) -> Command {
    let mut command = Command::new(qemu);
    command
        .args(["-M", "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=off", "-accel", "kvm"])
        .args([
            "-cpu",
            "host",
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

/// This program's own.
fn own_command(vmm: &Path, image: &Path, mode: &str) -> Command {
    let mut command = Command::new(vmm);
    let mut guest = image.as_os_str().to_owned();
    guest.push(mode);
    command.args(["run", "--timeout", "60"]).arg(guest);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A contestant: a command line, and the status that it should end with.
struct Contestant {
    command: Box<dyn Fn() -> Command>,
    status: i32,
}

fn measure(contestant: &Contestant) -> Result<Cost, String> {
    let mut command = (contestant.command)();
    let ran = sys::run(command.stderr(Stdio::null()))?;
    if ran.status.code() == Some(contestant.status) {
        return Ok(ran.cost);
    }
    // Once more, for what it has to say.
    let output = (contestant.command)().output().map_err(|error| error.to_string())?;
    let said = vmm::host::printable_text(String::from_utf8_lossy(&output.stderr).trim());
    Err(format!("{command:?} ended with {}: {said}", ran.status))
}

/// Measures `rounds` runs of each guest under both programs.
pub fn run(rounds: usize, vmm: &Path, qemu: &Path) -> Result<Vec<Row>, String> {
    let scratch = Scratch::new()?;
    let mut contestants = Vec::new();
    for (name, passes) in [("none", 0), ("many", PASSES)] {
        let console = loops::real_console(passes);
        let own = scratch.file(&format!("console-{name}.bin"), &console)?;
        let firmware = scratch.file(&format!("console-{name}.fw"), &loops::firmware(&console))?;
        contestants.push(ours(vmm, own, "@0x1000:16"));
        contestants.push(theirs(qemu, firmware));
        let own = scratch.file(&format!("reads-{name}.bin"), &loops::protected_reads(SIMVIRTIO, passes))?;
        let code = loops::protected_reads(VIRTIO, passes);
        let firmware = scratch.file(&format!("reads-{name}.fw"), &loops::firmware32(&code))?;
        contestants.push(ours(vmm, own, "@0x1000:32"));
        contestants.push(theirs(qemu, firmware));
    }
    let costs = interleave(rounds, &contestants, measure)?;
    let of = |place: usize| costs.get(place).map_or(&[][..], Vec::as_slice);
    // In the order in which they were pushed.
    let per_exit = |none: usize, many: usize| -> Vec<Cost> {
        let exits = f64::from(PASSES * UNROLLED);
        let more = |(none, many): (&Cost, &Cost)| Cost {
            cpu: (many.cpu - none.cpu) / exits,
            wall: (many.wall - none.wall) / exits,
        };
        of(none).iter().zip(of(many)).map(more).collect()
    };
    let row = |id: &str, title: &str, how, ours: &[Cost], theirs: &[Cost]| Row {
        id: id.into(),
        title: title.into(),
        other: "QEMU microvm",
        against: Against::Program,
        unit: Unit::Nanoseconds,
        how,
        pair: cpu(ours, theirs),
        wall: wall(ours, theirs),
        goals: Vec::new(),
    };
    let of_process = "CPU time of the whole process";
    let of_exit = "CPU time of the process with 19,200 exits less that with none, per exit";
    Ok(vec![
        row("qemu-start", "start to end of a guest that ends at once", of_process, of(0), of(1)),
        row("qemu-console", "a byte to the debug console", of_exit, &per_exit(0, 4), &per_exit(1, 5)),
        row("qemu-register", "a read of a device's register", of_exit, &per_exit(2, 6), &per_exit(3, 7)),
    ])
}

fn ours(vmm: &Path, image: PathBuf, mode: &'static str) -> Contestant {
    let vmm = vmm.to_owned();
    Contestant { command: Box::new(move || own_command(&vmm, &image, mode)), status: 0 }
}

fn theirs(qemu: &Path, firmware: PathBuf) -> Contestant {
    let qemu = qemu.to_owned();
    Contestant { command: Box::new(move || command(&qemu, &firmware)), status: ENDED }
}
