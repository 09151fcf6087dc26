//! System calls of the observer in a thread of the program. They leave its registers, its memory and its signals as they were.

use super::calls::{GET_REGS, GET_SREGS, GET_STATS_FD};
use super::sys::{self, Registers, Resume};
use crate::layout::{self, REGS, SREGS};
use std::fs;
use std::io;
use std::time::{Duration, Instant};
use vmm::x86::{Regs, Sregs};

/// The instruction `syscall`, and its size.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// `orig_rax` of a thread that is in no system call.
const NO_CALL: u64 = u64::MAX;
/// The size of the memory for the results of a call.
const PAGE: usize = 4096;
/// The longest wait for a call. KVM's calls wait while another thread runs the vCPU.
const PATIENCE: Duration = Duration::from_secs(1);

/// The status of a stop at a system call.
pub(super) const AT_SYSTEM_CALL: i32 = libc::SIGTRAP | 0x80;

/// A thread that has stopped at a system call, in which the observer makes calls.
#[derive(Debug)]
pub(super) struct Injection {
    tid: i32,
    /// The registers and the blocked signals of before.
    registers: Registers,
    mask: u64,
    /// True between the stops at the start and at the end of a call.
    is_inside: bool,
    /// A stop of the whole process was passed over, and has to be seen again.
    was_stopped: bool,
}

/// An end of an injection without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The thread was killed.
    Ended,
    /// The call takes long. [`Injection::step`] takes its next stops.
    Late,
}

impl Injection {
    /// Begins with a thread that has stopped at the end of a system call. Returns `None` if that is not possible.
    pub(super) fn at_return(tid: i32) -> Option<Self> {
        let registers = sys::registers(tid).ok()?;
        let mut code = [0; 2];
        let is_code = sys::read_memory(tid, registers.rip.wrapping_sub(2), &mut code) == 2 && code == SYSCALL;
        let mask = sys::signal_mask(tid).ok().filter(|_| is_code)?;
        sys::set_signal_mask(tid, u64::MAX).ok()?;
        Some(Self { tid, registers, mask, is_inside: false, was_stopped: false })
    }

    /// Begins with a thread that has stopped at the start of a system call. The call begins again when the injection ends.
    pub(super) fn at_start(tid: i32) -> Option<(Self, Result<(), Broken>)> {
        let mut injection = Self::at_return(tid)?;
        injection.is_inside = true;
        let skipped = Registers { orig_rax: NO_CALL, ..injection.registers };
        let registers = &mut injection.registers;
        registers.rip = registers.rip.wrapping_sub(2);
        registers.rax = registers.orig_rax;
        registers.orig_rax = NO_CALL;
        if sys::set_registers(tid, &skipped).is_err() {
            return Some((injection, Err(Broken::Ended)));
        }
        sys::resume(tid, Resume::ToSystemCall, 0);
        let waited = injection.wait();
        Some((injection, waited))
    }

    /// Makes a system call. Returns its result.
    pub(super) fn call(&mut self, number: libc::c_long, arguments: [u64; 6]) -> Result<i64, Broken> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let registers = Registers {
            rax: number.cast_unsigned(),
            orig_rax: NO_CALL,
            rip: match self.registers.orig_rax {
                // The call of the program begins again at this place.
                NO_CALL => self.registers.rip,
                _ => self.registers.rip.wrapping_sub(2),
            },
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.registers
        };
        sys::set_registers(self.tid, &registers).map_err(|_| Broken::Ended)?;
        sys::resume(self.tid, Resume::ToSystemCall, 0);
        self.wait()?;
        sys::result(self.tid).map_err(|_| Broken::Ended)
    }

    /// Waits for the end of the call.
    fn wait(&mut self) -> Result<(), Broken> {
        let began = Instant::now();
        loop {
            match sys::wait_for_stop(self.tid, true) {
                Ok(Some(true)) => {
                    let status = sys::stopped(self.tid).map_err(|_| Broken::Ended)?;
                    if self.step(status) {
                        return Ok(());
                    }
                }
                Ok(Some(false)) => return Err(Broken::Ended),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken::Ended),
            }
            if began.elapsed() > PATIENCE {
                return Err(Broken::Late);
            }
        }
    }

    /// Takes a stop during a call. Returns true at the end of the call; otherwise the thread goes on.
    pub(super) fn step(&mut self, status: i32) -> bool {
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        if event == 0 && signal == AT_SYSTEM_CALL {
            let is_end = self.is_inside;
            self.is_inside = !is_end;
            if is_end {
                return true;
            }
        }
        self.was_stopped |= event == libc::PTRACE_EVENT_STOP;
        // Only SIGSTOP and SIGKILL cannot be blocked, and faults of the program.
        let is_signal = event == 0 && signal != AT_SYSTEM_CALL;
        sys::resume(self.tid, Resume::ToSystemCall, if is_signal { signal } else { 0 });
        false
    }

    /// Gives the thread its registers and signals back. It stays stopped.
    pub(super) fn end(self) {
        // These fail only if the thread was killed.
        let _ = sys::set_registers(self.tid, &self.registers);
        let _ = sys::set_signal_mask(self.tid, self.mask);
        if self.was_stopped {
            sys::interrupt(self.tid);
        }
    }

    fn ioctl(&mut self, fd: i32, request: u32, argument: u64) -> Result<i64, Broken> {
        self.call(libc::SYS_ioctl, [fd as u64, request.into(), argument, 0, 0, 0])
    }

    /// Reads the registers of a vCPU; `None` if KVM refuses, or the program has no memory left.
    pub(super) fn vcpu_registers(&mut self, fd: i32) -> Result<Option<Box<(Regs, Sregs)>>, Broken> {
        let (size, none) = (PAGE as u64, u64::MAX);
        let access = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let page = self.call(libc::SYS_mmap, [0, size, access, flags, none, 0])?;
        let Ok(page) = u64::try_from(page) else { return Ok(None) };
        let second = page.saturating_add(size / 2);
        let are_read = self.ioctl(fd, GET_REGS, page)? == 0 && self.ioctl(fd, GET_SREGS, second)? == 0;
        let mut bytes = [0; PAGE];
        let whole = sys::read_memory(self.tid, page, &mut bytes) == PAGE;
        self.call(libc::SYS_munmap, [page, size, 0, 0, 0, 0])?;
        let (first, second) = bytes.split_at(PAGE / 2);
        let regs = first.get(..REGS).and_then(layout::regs);
        let sregs = second.get(..SREGS).and_then(layout::sregs);
        Ok(regs.zip(sregs).filter(|_| are_read && whole).map(Box::new))
    }

    /// Opens KVM's counters of a vCPU, hands the descriptor to a function, and closes it again.
    pub(super) fn counters<R>(
        &mut self,
        fd: i32,
        take: impl FnOnce(i32) -> Option<R>,
    ) -> Result<Option<R>, Broken> {
        let stats = self.ioctl(fd, GET_STATS_FD, 0)?;
        let Ok(stats) = i32::try_from(stats).and_then(u16::try_from) else { return Ok(None) };
        let taken = take(stats.into());
        self.call(libc::SYS_close, [stats.into(), 0, 0, 0, 0, 0])?;
        Ok(taken)
    }
}

/// Lets a thread that has stopped after a call which the observer has interrupted make the call again, so that the program does not
/// see EINTR.
pub(super) fn repeat(tid: i32) {
    let Ok(registers) = sys::registers(tid) else { return };
    if registers.orig_rax != NO_CALL && registers.rax.cast_signed() == i64::from(libc::EINTR).saturating_neg()
    {
        let rip = registers.rip.wrapping_sub(SYSCALL.len() as u64);
        let again = Registers { rip, rax: registers.orig_rax, orig_rax: NO_CALL, ..registers };
        // This fails only if the thread was killed.
        let _ = sys::set_registers(tid, &again);
    }
}

/// The number of seccomp filters of a thread; `None` before Linux 5.9. A program with filters of its own does not expect
/// further calls.
pub(super) fn filters(tid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptrace::sys::Ticks;
    use std::process::{Child, Command};

    /// A program that sleeps for a second and a half, and waits at the start of this call.
    fn sleeper() -> (Child, i32) {
        let child = Command::new("sleep").arg("1.5").spawn().unwrap();
        let tid = child.id().cast_signed();
        std::thread::sleep(Duration::from_millis(100));
        sys::seize(tid).unwrap();
        sys::interrupt(tid);
        assert_eq!(next(tid) >> 16, libc::PTRACE_EVENT_STOP);
        sys::resume(tid, Resume::ToSystemCall, 0);
        assert_eq!(libc::WSTOPSIG(next(tid)), AT_SYSTEM_CALL);
        (child, tid)
    }

    fn next(tid: i32) -> i32 {
        while !matches!(sys::wait_for_stop(tid, true), Ok(Some(_))) {}
        sys::stopped(tid).unwrap()
    }

    #[test]
    fn a_call_in_another_process_leaves_no_trace() {
        let _ticks = Ticks::new(Duration::from_millis(10)).unwrap();
        let (mut child, tid) = sleeper();
        let (before, mask) = (sys::registers(tid).unwrap(), sys::signal_mask(tid).unwrap());
        let (mut injection, begun) = Injection::at_start(tid).unwrap();
        assert_eq!(begun, Ok(()));
        assert_eq!(injection.call(libc::SYS_getpid, [0; 6]), Ok(tid.into()));
        assert_eq!(injection.call(libc::SYS_close, [999, 0, 0, 0, 0, 0]), Ok(-i64::from(libc::EBADF)));
        // A descriptor that is no vCPU, and one that is none.
        assert!(
            injection.vcpu_registers(0).unwrap().is_none() && injection.vcpu_registers(-1).unwrap().is_none()
        );
        assert_eq!(injection.counters(0, |_| Some(())), Ok(None));
        // It ends, but later than the observer waits.
        assert_eq!(injection.call(libc::SYS_poll, [0, 0, 1200, 0, 0, 0]), Err(Broken::Late));
        while !injection.step(next(tid)) {}
        injection.end();
        let after = sys::registers(tid).unwrap();
        assert_eq!((after.rip, after.rax), (before.rip.wrapping_sub(2), before.orig_rax));
        let rest = |registers: &Registers| {
            (registers.rdi, registers.rsi, registers.rbx, registers.rsp, registers.rbp)
        };
        assert_eq!((rest(&after), sys::signal_mask(tid).unwrap()), (rest(&before), mask));
        sys::detach(tid, 0);
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_thread_that_is_killed_ends_the_injection() {
        let (mut child, tid) = sleeper();
        let (mut injection, begun) = Injection::at_start(tid).unwrap();
        assert_eq!(begun, Ok(()));
        child.kill().unwrap();
        assert_eq!(injection.call(libc::SYS_getpid, [0; 6]), Err(Broken::Ended));
        injection.end();
        child.wait().unwrap();
    }

    #[test]
    fn the_filters_of_a_thread_are_counted() {
        let own = std::process::id().cast_signed();
        // Absent on old kernels.
        assert_eq!(filters(own), filters(own));
        assert_eq!(filters(i32::MAX), None);
    }
}
