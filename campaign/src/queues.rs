//! Kernels that break the rules of virtio queues. Whatever they set up, a machine must go on, and its disk must work after
//! a reset of the device.

use crate::Setup;
use crate::compile::compile;
use crate::judge::{self, Verdict};
use crate::program::Run;
use crate::schedule::Part;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The size of the disk, in bytes.
pub const DISK: u64 = 64 << 10;
/// The number of queues that a kernel sets up.
const SET_UPS: u32 = 38;

/// The part.
pub struct Queues {
    kernel: PathBuf,
}

/// Compiles the kernel. Returns its path.
///
/// # Errors
/// gcc does not compile it.
pub fn kernel(folder: &Path) -> Result<PathBuf, String> {
    let script = folder.join("kernel.ld");
    std::fs::write(&script, include_str!("kernel.ld"))
        .map_err(|error| format!("cannot write a file: {error}"))?;
    let script = format!("-Wl,-T,{}", script.display());
    let options = "-O1 -ffreestanding -fno-pic -no-pie -mno-red-zone -fno-stack-protector -fcf-protection=none \
                   -mgeneral-regs-only -fno-tree-loop-distribute-patterns -fno-builtin -nostdlib -static \
                   -fno-asynchronous-unwind-tables -Wl,--build-id=none -Wl,-n";
    let options: Vec<&str> = options.split_whitespace().chain([script.as_str()]).collect();
    compile(folder, "kernel", include_str!("kernel.c"), &options)
}

impl Queues {
    /// Compiles the kernel.
    ///
    /// # Errors
    /// gcc does not compile it.
    pub fn new(setup: &Setup) -> Result<Self, String> {
        Ok(Self { kernel: kernel(setup.folder.path())? })
    }
}

impl Part for Queues {
    fn name(&self) -> &'static str {
        "queues"
    }

    fn run(&self, setup: &Setup, number: u64) -> Result<Verdict, String> {
        let mut choices = setup.choices(self.name(), number);
        let folder = setup.scratch()?;
        let disk = folder.path().join("disk.img");
        std::fs::write(&disk, [0; DISK as usize]).map_err(|error| format!("cannot write a disk: {error}"))?;
        let (kernel, line) =
            (self.kernel.display().to_string(), format!("hostile {} {SET_UPS}", choices.u32(..)));
        let mut run = Run::new(&["boot", &kernel, "--disk", "disk.img", "--mem", "16M", "--timeout", "20"]);
        run.arguments.extend(["--output-limit", "64M", "--cmdline", &line].map(String::from));
        if choices.bool() {
            run.arguments.extend(["--console", "virtio"].map(String::from));
        }
        let ran = run.run(&setup.program, folder.path(), Duration::from_secs(35))?;
        let size = std::fs::metadata(&disk).map_or(0, |metadata| metadata.len());
        let text = String::from_utf8_lossy(&ran.stdout);
        let wrong = judge::check(&ran).or_else(|| match () {
            () if size != DISK => Some(format!("the disk has {size} bytes, not {DISK}")),
            () if text.contains("the disk does not work") => {
                let at = text.find("the disk does not work").unwrap_or(0);
                Some(format!("after a reset, {}", text[at..].trim_end().replace('\n', ", ")))
            }
            () if ran.status != 0 => Some(format!("the kernel ends with {}, not with 0", ran.status)),
            () if !text.contains("every set-up is over") => Some("the kernel's last line is missing".into()),
            () => None,
        });
        Ok(Verdict { status: ran.status, wrong, command: run.shown(&setup.program) })
    }
}
