#![allow(unsafe_code)]
//! Cold start: from the start of the program to its end with a tiny guest, next to a bare program that makes the same
//! machine by the same calls to KVM.
//!
//! The two are started in turn, and what counts is the CPU time of each, in user and kernel mode, from `wait4`: KVM's
//! part of the end of a process is in it. Wall time has the waiting for a processor in it, too.

use std::env;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The bare program's source.
const BARE: &str = include_str!("../bare/cold-start.c");
/// The guest: the bare program has the same one.
const GUEST: &str = "real16-42";
/// Starts of each that do not count.
const WARM_UP: usize = 5;

/// Median and quartiles of one thing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// A quarter is below this.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// A quarter is above this.
    pub high: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |quarters: usize| {
            values.get((values.len().saturating_sub(1)) * quarters / 4).copied().unwrap_or(0.0)
        };
        Self { low: at(1), median: at(2), high: at(3) }
    }
}

/// What one start costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Start {
    /// CPU time, in microseconds.
    pub cpu: Spread,
    /// Wall time, in microseconds.
    pub wall: Spread,
    /// Page faults.
    pub faults: Spread,
}

/// What came of the comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ColdResult {
    /// Starts of each.
    pub rounds: usize,
    /// The bare program.
    pub bare: Start,
    /// `vmm run`: the static program where there is one (`make static`), and otherwise the one beside this.
    pub vmm: Start,
    /// Whether it is the static one.
    pub is_static: bool,
    /// CPU time of `vmm run` over the bare program's, of the medians.
    pub cpu_ratio: f64,
    /// The same of wall time.
    pub wall_ratio: f64,
}

/// Starts `vmm` and the bare program in turn, so many times each.
///
/// # Errors
/// gcc is missing, or a guest does not end as it should.
pub fn run(rounds: usize) -> Result<ColdResult, String> {
    let folder = folder()?;
    let (plain, linked) = (folder.join("vmm"), folder.join("vmm-static"));
    let is_static = linked.exists();
    let vmm = if is_static { linked } else { plain };
    if !vmm.exists() {
        return Err(format!("{} is not there: build it (cargo build --release -p vmm)", vmm.display()));
    }
    let bare = compile(&folder)?;
    let mut samples = [Samples::default(), Samples::default()];
    for round in 0..rounds.saturating_add(WARM_UP) {
        // Who comes first changes, so that neither always meets what the other leaves in the caches.
        for turn in 0..2 {
            let who = (round + turn) % 2;
            let mut command = if who == 0 { Command::new(&bare) } else { Command::new(&vmm) };
            if who == 1 {
                command.args(["run", GUEST]);
            }
            let cost = start(&mut command)?;
            if round >= WARM_UP {
                samples[who].push(cost);
            }
        }
    }
    let [bare, vmm] = samples.map(Samples::spread);
    Ok(ColdResult {
        rounds,
        bare,
        vmm,
        is_static,
        cpu_ratio: vmm.cpu.median / bare.cpu.median,
        wall_ratio: vmm.wall.median / bare.wall.median,
    })
}

#[derive(Default)]
struct Samples {
    cpu: Vec<f64>,
    wall: Vec<f64>,
    faults: Vec<f64>,
}

impl Samples {
    fn push(&mut self, cost: Cost) {
        self.cpu.push(cost.cpu.as_secs_f64() * 1e6);
        self.wall.push(cost.wall.as_secs_f64() * 1e6);
        self.faults.push(cost.faults as f64);
    }

    fn spread(self) -> Start {
        Start { cpu: Spread::of(self.cpu), wall: Spread::of(self.wall), faults: Spread::of(self.faults) }
    }
}

/// Where this program is, and so those that were built with it. A test is a folder further down.
fn folder() -> Result<PathBuf, String> {
    let program = env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    let folder = program.parent().ok_or("this program is in no folder")?;
    Ok(if folder.ends_with("deps") { folder.join("..") } else { folder.into() })
}

/// Builds the bare program with the options that its source names.
fn compile(folder: &Path) -> Result<PathBuf, String> {
    let (source, program) = (folder.join("cold-start.c"), folder.join("cold-start"));
    std::fs::write(&source, BARE).map_err(|error| format!("{}: {error}", source.display()))?;
    let compiler = env::var_os("CC").unwrap_or_else(|| "gcc".into());
    let built = Command::new(&compiler).args(["-O2", "-static", "-o"]).args([&program, &source]).output();
    match built {
        Ok(output) if output.status.success() => Ok(program),
        Ok(output) => {
            Err(format!("the bare program does not compile: {}", String::from_utf8_lossy(&output.stderr)))
        }
        Err(error) => Err(format!("{} cannot be started: {error}", compiler.display())),
    }
}

/// What one process cost.
struct Cost {
    cpu: Duration,
    wall: Duration,
    faults: i64,
}

/// Starts a program that prints into nothing, and waits for its good end.
fn start(command: &mut Command) -> Result<Cost, String> {
    let name = format!("{}", command.get_program().display());
    let begun = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.map_err(|error| format!("{name} cannot be started: {error}"))?;
    let process = libc::pid_t::try_from(child.id()).map_err(|error| format!("{name}: {error}"))?;
    let mut status = 0;
    // SAFETY: an all-zero rusage is a valid one, and the call fills both. `child` is not waited for again: a process of
    // the same number cannot be meant, since dropping it does nothing.
    let (waited, usage) = unsafe {
        let mut usage: libc::rusage = mem::zeroed();
        (libc::wait4(process, &raw mut status, 0, &raw mut usage), usage)
    };
    let wall = begun.elapsed();
    if waited != process {
        return Err(format!("{name} cannot be waited for: {}", io::Error::last_os_error()));
    }
    if status != 0 {
        return Err(format!("{name} ended with wait status {status:#x}, and its guest should leave 42"));
    }
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    Ok(Cost { cpu: time(usage.ru_utime) + time(usage.ru_stime), wall, faults: usage.ru_minflt })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_five() {
        let spread = Spread::of(vec![5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!((spread.low, spread.median, spread.high), (2.0, 3.0, 4.0));
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }

    #[test]
    fn a_process_costs_time_and_its_failure_is_told() {
        let cost = start(&mut Command::new("true")).unwrap();
        assert!(cost.wall > Duration::ZERO && cost.faults > 0);
        assert!(start(&mut Command::new("false")).err().unwrap().contains("wait status 0x100"));
        assert!(start(&mut Command::new("/no/such/program")).is_err());
    }
}
