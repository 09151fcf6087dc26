//! The polling echo in ring 3 over a bare poller: the same image, on this VMM and on `bare/echo.c`, which makes the same
//! machine by raw ioctls and has a loop for a device. By turns, in batches; what counts is the median of the batches.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use vmm::compare::{Echoes, IMAGE, Ring, Spread, Variant, Workload, percentile, run_echoes};

/// Echoes of a batch.
const ECHOES: u32 = 20_000;
/// The bare program.
const SOURCE: &str = include_str!("../bare/echo.c");

/// What came of it: nanoseconds of a round trip, as the guest stamps them.
#[derive(Clone, Copy, Debug)]
pub struct EchoResult {
    /// Medians of this VMM's batches.
    pub vmm: Spread,
    /// Medians of the bare program's.
    pub bare: Spread,
    /// The one by the other, of the batches that ran one after the other.
    pub ratio: Spread,
}

/// Runs `rounds` batches of either.
///
/// # Errors
/// There is no C compiler, no KVM, or an echo came back wrong.
pub fn run(rounds: usize) -> Result<EchoResult, String> {
    let folder = std::env::temp_dir().join(format!("vmm-bench-echo-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let result = build(&folder).and_then(|()| batches(&folder, rounds));
    let _ = fs::remove_dir_all(&folder);
    result
}

/// Builds the bare program, and writes the image that both run.
fn build(folder: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", folder.display());
    fs::write(folder.join("image"), IMAGE).map_err(failed)?;
    fs::write(folder.join("echo.c"), SOURCE).map_err(failed)?;
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-pthread", "-o", "echo", "echo.c"]).current_dir(folder);
    match cc.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("cc bare/echo.c failed:\n{}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("cc, which builds the bare program: {error}")),
    }
}

fn batches(folder: &Path, rounds: usize) -> Result<EchoResult, String> {
    let workload = Workload { messages: ECHOES, ..Workload::default() };
    let mut pairs = Vec::new();
    for round in 0..rounds.max(1) {
        let ours = || {
            let echoes = run_echoes(Variant::Polling, Ring::Three, workload);
            let median = |echoes: Echoes| percentile(&echoes.round_trips, 0.5);
            echoes.map(median).map_err(|failure| failure.to_string())
        };
        // Neither is always the first.
        pairs.push(match round % 2 {
            0 => (ours()?, bare(folder)?),
            _ => {
                let bare = bare(folder)?;
                (ours()?, bare)
            }
        });
    }
    Ok(EchoResult {
        vmm: Spread::of(pairs.iter().map(|(ours, _)| *ours)),
        bare: Spread::of(pairs.iter().map(|(_, bare)| *bare)),
        ratio: Spread::of(pairs.iter().map(|(ours, bare)| ours / bare)),
    })
}

/// One batch of the bare program; gives its median.
fn bare(folder: &Path) -> Result<f64, String> {
    let mut program = Command::new(folder.join("echo"));
    let output = program.arg(folder.join("image")).arg(ECHOES.to_string()).output();
    let output = output.map_err(|error| format!("the bare program: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let median = text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    median.filter(|median| output.status.success() && *median > 0.0).ok_or_else(|| {
        format!("the bare program failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr))
    })
}
