//! A look at the vCPUs that are in KVM_RUN, of a process that is not traced otherwise.

use super::calls::RUN;
use super::filter::IOCTL;
use super::inject::{Injection, filters, repeat};
use super::sys::{self, Resume, Ticks};
use std::fs;
use std::io;
use std::time::{Duration, Instant};
use vmm::x86::{Regs, Sregs};

/// The most threads that are looked at, and the longest time for all of them.
const MOST_THREADS: usize = 256;
const PATIENCE: Duration = Duration::from_secs(2);
/// The period of the timer that interrupts a wait.
const TICK: Duration = Duration::from_millis(10);

/// Stops each thread of a process for a moment. Calls a function for those that were in KVM_RUN, with the descriptor of the vCPU and
/// its registers. The guest does not run meanwhile, and then goes on.
pub(crate) fn running(process: i32, each: &mut dyn FnMut(i32, Box<(Regs, Sregs)>)) {
    let Ok(_ticks) = Ticks::new(TICK) else { return };
    let began = Instant::now();
    let Ok(folder) = fs::read_dir(format!("/proc/{process}/task")) else { return };
    let threads = folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    for tid in threads.take(MOST_THREADS) {
        if began.elapsed() > PATIENCE {
            return;
        }
        // A program that filters its system calls does not expect further ones.
        if filters(tid) != filters(sys::own_pid()) || sys::seize_briefly(tid).is_err() {
            continue;
        }
        sys::interrupt(tid);
        if wait(tid, began) {
            look(tid, each);
            sys::detach(tid, 0);
        }
    }
}

/// Waits until a thread has stopped. Returns false if it has ended, or takes too long.
fn wait(tid: i32, began: Instant) -> bool {
    while began.elapsed() <= PATIENCE {
        match sys::wait_for_stop(tid, true) {
            Ok(Some(true)) => {
                let Ok(status) = sys::stopped(tid) else { return false };
                if status >> 16 == libc::PTRACE_EVENT_STOP {
                    return true;
                }
                // A signal of the program came first.
                sys::resume(tid, Resume::Continue, libc::WSTOPSIG(status));
            }
            Ok(Some(false)) => return false,
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    false
}

/// Reads the registers of the vCPU whose KVM_RUN a stopped thread was in.
fn look(tid: i32, each: &mut dyn FnMut(i32, Box<(Regs, Sregs)>)) {
    let Ok(registers) = sys::registers(tid) else { return };
    let is_run = registers.orig_rax == u64::from(IOCTL) && registers.rsi as u32 == RUN;
    let was_interrupted = registers.rax.cast_signed() == i64::from(libc::EINTR).saturating_neg();
    let Some(mut injection) = Some(tid).filter(|_| is_run && was_interrupted).and_then(Injection::at_return)
    else {
        return;
    };
    let fd = registers.rdi as i32;
    let found = injection.vcpu_registers(fd);
    if let Ok(Some(found)) = found {
        each(fd, found);
    }
    injection.end();
    repeat(tid);
}
