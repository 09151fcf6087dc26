//! The few host calls that no crate wraps: clocks of CPU time, and a child with what it cost.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::mem;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// CPU time and wall time, both in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Time on a CPU, in user and kernel mode together.
    pub cpu: f64,
    /// Time on the wall.
    pub wall: f64,
}

/// A moment, on the clocks of [`Cost`].
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    cpu: Duration,
    wall: Instant,
}

impl Moment {
    /// Now, by the CPU time of the calling thread (CLOCK_THREAD_CPUTIME_ID).
    pub fn now() -> Self {
        // SAFETY: all zeroes are a valid time.
        let mut time: libc::timespec = unsafe { mem::zeroed() };
        // SAFETY: the time outlives the call. The clock is there on every Linux, so the call cannot fail.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        let (seconds, nanoseconds) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
        Self { cpu: Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds), wall: Instant::now() }
    }

    /// What has been spent since `start`.
    pub fn since(&self, start: &Self) -> Cost {
        let nanoseconds = |time: Duration| time.as_nanos() as f64;
        Cost {
            cpu: nanoseconds(self.cpu.saturating_sub(start.cpu)),
            wall: nanoseconds(self.wall.duration_since(start.wall)),
        }
    }
}

/// The child that is running, or 0.
static CHILD: AtomicI32 = AtomicI32::new(0);
/// When the program last got on, in seconds since it started.
static ALIVE: AtomicU64 = AtomicU64::new(0);
/// How long one step may take: a batch of exits, or a child.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends the program, with its child, when a step takes longer than it can. A bare loop has no other watchdog.
/// `last_words` is called before, on a thread of its own.
pub fn watch(last_words: impl Fn() + Send + 'static) {
    let started = Instant::now();
    ALIVE.store(0, Ordering::Relaxed);
    std::thread::spawn(move || {
        let mut seen = (u64::MAX, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let step = ALIVE.load(Ordering::Relaxed);
            if step != seen.0 {
                seen = (step, Instant::now());
            } else if seen.1.elapsed() > PATIENCE {
                kill_child();
                eprintln!(
                    "bench: a step takes longer than {} s (after {:.0} s in all), so this ends here",
                    PATIENCE.as_secs(),
                    started.elapsed().as_secs_f64()
                );
                last_words();
                std::process::exit(114);
            }
        }
    });
}

/// Tells the watchdog that the program gets on.
pub fn alive() {
    ALIVE.fetch_add(1, Ordering::Relaxed);
}

fn kill_child() {
    let child = CHILD.load(Ordering::Relaxed);
    if child > 0 {
        // SAFETY: the child is this program's own and has not been waited for, so the number is still its.
        unsafe { libc::kill(child, libc::SIGKILL) };
    }
}

/// How a child went.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// What it cost, from before it was made until after it was gone.
    pub cost: Cost,
}

/// Runs a child to its end.
///
/// # Errors
/// It cannot be started, or somebody asked this program to end.
pub fn run(command: &mut Command) -> Result<Ran, String> {
    alive();
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
    Ok(Ran { status: ExitStatus::from_raw(status), cost: Cost { cpu, wall } })
}

fn pid_of(child: &std::process::Child) -> libc::pid_t {
    libc::pid_t::try_from(child.id()).unwrap_or_default()
}

/// Waits for a change of a child's. A program that shall end takes its child with it.
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

/// Runs a child to its end. Returns the most memory that it had resident, in bytes.
///
/// The child is traced, and asked when it is about to leave: what `wait4` says of its memory includes that of the program
/// that started it (Linux `fs/exec.c`, exec_mmap: `setmax_mm_hiwater_rss`), and that program is this one.
///
/// # Errors
/// It cannot be started or traced, or somebody asked this program to end.
pub fn peak_memory(command: &mut Command) -> Result<(u64, ExitStatus), String> {
    alive();
    // SAFETY: between fork and exec only a system call is made, which is allowed there.
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

/// Lets a traced child run to its end.
fn trace(pid: libc::pid_t) -> Result<(u64, ExitStatus), String> {
    // The first stop is the exec's.
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
            let peak = peak.ok_or("a child was gone before its memory could be looked at")?;
            return Ok((peak, ExitStatus::from_raw(status)));
        }
        let is_exit = status >> 16 == libc::PTRACE_EVENT_EXIT;
        if is_exit {
            peak = Some(high_water_mark(pid)?);
        }
        // A signal of its own goes on to it.
        request(libc::PTRACE_CONT, if is_exit { 0 } else { libc::WSTOPSIG(status).into() })?;
    }
}

/// The most memory that a process has had resident, in bytes (`proc(5)`, VmHWM).
fn high_water_mark(pid: libc::pid_t) -> Result<u64, String> {
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
    fn a_child_s_cost_and_status_are_its_own() {
        let ran = run(Command::new("sh").args(["-c", "exit 7"])).unwrap();
        assert_eq!(ran.status.code(), Some(7));
        assert!(ran.cost.wall > 0.0);
        assert!(run(&mut Command::new("/no/such/program")).unwrap_err().contains("/no/such/program"));
    }

    #[test]
    fn a_child_s_memory_is_not_this_program_s() {
        // Much more than the child has.
        let own = vec![1u8; 64 << 20];
        let (peak, status) = peak_memory(&mut Command::new("true")).unwrap();
        assert!(status.success() && std::hint::black_box(&own).len() == 64 << 20);
        assert!((100 << 10..16 << 20).contains(&peak), "{peak}");
    }
}
