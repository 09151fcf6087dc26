//! Host calls that no crate wraps: clocks of CPU time, and child processes with their cost.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::mem;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A CPU time and a wall time, both in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// The time on a CPU, in user mode and kernel mode together.
    pub cpu: f64,
    /// The elapsed time.
    pub wall: f64,
}

/// A point in time, on both clocks of [`Cost`].
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    cpu: Duration,
    wall: Instant,
}

impl Moment {
    /// Reads the clocks. The CPU time is that of the calling thread (CLOCK_THREAD_CPUTIME_ID).
    pub fn now() -> Self {
        // SAFETY: all zeroes are a valid time.
        let mut time: libc::timespec = unsafe { mem::zeroed() };
        // SAFETY: the time outlives the call. Every Linux has this clock, so the call cannot fail.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        let (seconds, nanoseconds) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
        Self { cpu: Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds), wall: Instant::now() }
    }

    /// Returns the cost since `start`.
    pub fn since(&self, start: &Self) -> Cost {
        let nanoseconds = |time: Duration| time.as_nanos() as f64;
        Cost {
            cpu: nanoseconds(self.cpu.saturating_sub(start.cpu)),
            wall: nanoseconds(self.wall.duration_since(start.wall)),
        }
    }
}

/// The process ID of the running child, or 0.
static CHILD: AtomicI32 = AtomicI32::new(0);
/// The number of steps so far. The watchdog ends the program when it stops growing.
static STEPS: AtomicU64 = AtomicU64::new(0);
/// The time limit for one step. A step is a batch of exits or a child process.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// Starts the watchdog thread. It kills the child and ends the program with status 114 if a step exceeds its time
/// limit. The bare loop has no other watchdog. The thread calls `before_exit` before the program ends.
pub fn start_watchdog(before_exit: impl Fn() + Send + 'static) {
    let started = Instant::now();
    STEPS.store(0, Ordering::Relaxed);
    std::thread::spawn(move || {
        let mut seen = (u64::MAX, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let steps = STEPS.load(Ordering::Relaxed);
            if steps != seen.0 {
                seen = (steps, Instant::now());
            } else if seen.1.elapsed() > STEP_LIMIT {
                kill_child();
                crate::note(&format!(
                    "a step exceeds its limit of {} s ({:.0} s after the start): the run ends here",
                    STEP_LIMIT.as_secs(),
                    started.elapsed().as_secs_f64()
                ));
                before_exit();
                std::process::exit(114);
            }
        }
    });
}

/// Tells the watchdog that a step begins.
pub fn begin_step() {
    STEPS.fetch_add(1, Ordering::Relaxed);
}

fn kill_child() {
    let child = CHILD.load(Ordering::Relaxed);
    if child > 0 {
        // SAFETY: this program started the child and has not reaped it, so the process ID still belongs to it.
        unsafe { libc::kill(child, libc::SIGKILL) };
    }
}

/// The result of a child process.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// The exit status.
    pub status: ExitStatus,
    /// The CPU time of the child, and the wall time from before its start until after its end.
    pub cost: Cost,
}

/// Runs a child process and waits for its end.
///
/// # Errors
/// The child cannot be started, or this program was interrupted.
pub fn run(command: &mut Command) -> Result<Finished, String> {
    begin_step();
    let start = Instant::now();
    let child = command.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    let pid = pid_of(&child);
    CHILD.store(pid, Ordering::Relaxed);
    let waited = wait(pid, 0);
    CHILD.store(0, Ordering::Relaxed);
    let wall = start.elapsed().as_nanos() as f64;
    let (status, usage) = waited?;
    let time = |time: libc::timeval| time.tv_sec as f64 * 1e9 + time.tv_usec as f64 * 1e3;
    let cpu = time(usage.ru_utime) + time(usage.ru_stime);
    Ok(Finished { status: ExitStatus::from_raw(status), cost: Cost { cpu, wall } })
}

/// Runs a program without input and output, and waits for its end.
///
/// # Errors
/// As [`run`], or the program failed.
pub fn run_silently(program: &Path, arguments: &[&str]) -> Result<Cost, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let ran = run(&mut command)?;
    if !ran.status.success() {
        return Err(format!("{} {} ended with {}", program.display(), arguments.join(" "), ran.status));
    }
    Ok(ran.cost)
}

fn pid_of(child: &std::process::Child) -> libc::pid_t {
    libc::pid_t::try_from(child.id()).unwrap_or_default()
}

/// Waits until the state of a child changes. Kills the child if this program is interrupted.
fn wait(pid: libc::pid_t, options: libc::c_int) -> Result<(libc::c_int, libc::rusage), String> {
    let mut status = 0;
    // SAFETY: all zeroes are a valid usage.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    loop {
        // SAFETY: both results outlive the call.
        if unsafe { libc::wait4(pid, &mut status, options, &mut usage) } == pid {
            if vmm::host::interrupted() {
                return Err("interrupted".into());
            }
            return Ok((status, usage));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted if vmm::host::interrupted() => kill_child(),
            io::ErrorKind::Interrupted => {}
            _ => return Err(format!("cannot wait for a child: {error}")),
        }
    }
}

/// Runs a child process and waits for its end. Returns its peak resident memory in bytes, and its exit status.
///
/// This function traces the child and reads the peak when the child is about to exit. The value of `wait4` is wrong
/// here: it includes the memory of the program that started the child, which is this one (Linux `fs/exec.c`, exec_mmap:
/// `setmax_mm_hiwater_rss`).
///
/// # Errors
/// The child cannot be started or traced, or this program was interrupted.
pub fn peak_memory(command: &mut Command) -> Result<(u64, ExitStatus), String> {
    begin_step();
    // SAFETY: between fork and exec the closure makes only a system call, which is allowed there.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, ptr::null_mut::<u8>(), 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let child = command.spawn().map_err(|error| format!("cannot start and trace {command:?}: {error}"))?;
    let pid = pid_of(&child);
    CHILD.store(pid, Ordering::Relaxed);
    let result = trace(pid);
    if result.is_err() {
        kill_child();
    }
    CHILD.store(0, Ordering::Relaxed);
    result
}

/// Runs a traced child to its end. Returns its peak resident memory in bytes, and its exit status.
fn trace(pid: libc::pid_t) -> Result<(u64, ExitStatus), String> {
    // The first stop is at exec.
    wait(pid, 0)?;
    let request = |what, data: libc::c_long| {
        // SAFETY: neither request touches memory of this process, and the child is stopped.
        match unsafe { libc::ptrace(what, pid, ptr::null_mut::<u8>(), data) } {
            -1 => Err(format!("cannot trace a child: {}", io::Error::last_os_error())),
            _ => Ok(()),
        }
    };
    let options = libc::PTRACE_O_TRACEEXIT | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SETOPTIONS, options.into())?;
    request(libc::PTRACE_CONT, 0)?;
    let mut peak = None;
    loop {
        let (status, _) = wait(pid, libc::__WALL)?;
        if !libc::WIFSTOPPED(status) {
            let peak = peak.ok_or("the child exited before its peak memory could be read")?;
            return Ok((peak, ExitStatus::from_raw(status)));
        }
        let is_exit = status >> 16 == libc::PTRACE_EVENT_EXIT;
        if is_exit {
            peak = Some(peak_rss(pid)?);
        }
        // Other stops are signals, which the child must still receive.
        request(libc::PTRACE_CONT, if is_exit { 0 } else { libc::WSTOPSIG(status).into() })?;
    }
}

/// Reads the peak resident memory of a process in bytes (`proc(5)`, VmHWM).
fn peak_rss(pid: libc::pid_t) -> Result<u64, String> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let kibibytes =
        text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    kibibytes.map(|kibibytes: u64| kibibytes << 10).ok_or_else(|| format!("{path} has no VmHWM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_takes_cpu_time_and_a_sleeping_one_does_not() {
        let start = Moment::now();
        std::thread::sleep(Duration::from_millis(20));
        let slept = Moment::now().since(&start);
        assert!(slept.wall >= 20e6 && slept.cpu < slept.wall, "{slept:?}");
        let start = Moment::now();
        while Moment::now().since(&start).cpu < 1e6 {}
        assert!(Moment::now().since(&start).wall > 0.0);
    }

    #[test]
    fn a_run_returns_the_status_and_the_cost_of_the_child() {
        let ran = run(Command::new("sh").args(["-c", "exit 7"])).unwrap();
        assert_eq!(ran.status.code(), Some(7));
        assert!(ran.cost.wall > 0.0);
        assert!(run(&mut Command::new("/no/such/program")).unwrap_err().contains("/no/such/program"));
    }

    #[test]
    fn the_peak_memory_of_a_child_excludes_this_program() {
        // Much more than the child uses.
        let own = vec![1u8; 64 << 20];
        let (peak, status) = peak_memory(&mut Command::new("true")).unwrap();
        assert!(status.success() && std::hint::black_box(&own).len() == 64 << 20);
        assert!((100 << 10..16 << 20).contains(&peak), "{peak}");
    }
}
