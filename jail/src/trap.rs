//! The end of a program that makes a forbidden system call: one sentence, and an exit status of its own.
//!
//! The kernel sends SIGSYS to the thread before the call has any effect. If the signal is blocked or has no handler, it ends
//! the program without the sentence.
#![allow(unsafe_code)]

use crate::calls::Kind;
use crate::names;
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::{io, mem, ptr};

thread_local! {
    /// The kind of this thread. It has no destructor, so a signal handler may read it.
    static KIND: Cell<u8> = const { Cell::new(Kind::Main as u8) };
}
static STATUS: AtomicI32 = AtomicI32::new(1);
static BEFORE: OnceLock<fn()> = OnceLock::new();

/// Notes the kind of this thread, for the sentence.
pub(crate) fn set_kind(kind: Kind) {
    KIND.set(kind as u8);
}

/// Installs the handler. It calls `before`, which may only do what a signal handler may, and ends the program with `status`.
pub(crate) fn install(status: u8, before: Option<fn()>) -> io::Result<()> {
    STATUS.store(status.into(), Ordering::Relaxed);
    if let Some(before) = before {
        BEFORE.get_or_init(|| before);
    }
    // SAFETY: an all-zero sigaction is valid. The handler uses only atomics, a thread-local without a destructor, and system
    // calls that are allowed in handlers.
    let failed = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = stopped as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGSYS, &action, ptr::null_mut()) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The part of `siginfo_t` that SIGSYS has (sigaction(2)).
#[repr(C)]
struct Stopped {
    signal: i32,
    errno: i32,
    code: i32,
    _padding: i32,
    address: *const libc::c_void,
    call: i32,
}

extern "C" fn stopped(_signal: i32, info: *const Stopped, context: *const libc::ucontext_t) {
    // SAFETY: the kernel hands over both, and the handler was installed with SA_SIGINFO.
    let (number, request) = unsafe {
        let request = (*context).uc_mcontext.gregs.get(libc::REG_RSI as usize).copied().unwrap_or_default();
        ((*info).call, request.cast_unsigned())
    };
    if let Some(before) = BEFORE.get() {
        before();
    }
    let mut line = Line::default();
    line.add("vmm: error: the jail stopped the system call ");
    line.add(names::name(number).unwrap_or("of an unknown name"));
    line.add(" (");
    line.add_number(number.unsigned_abs().into(), 10);
    line.add(")");
    if libc::c_long::from(number) == libc::SYS_ioctl {
        line.add(" with the request 0x");
        line.add_number(request & u64::from(u32::MAX), 16);
    }
    line.add(" of a thread of the kind ");
    line.add(Kind::of(KIND.get()).name());
    line.add(": a run does not need it, so the guest may have taken over the program, or vmm has a bug: do not trust this run\n");
    // SAFETY: the line has this size, and the second call does not return.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len);
        libc::_exit(STATUS.load(Ordering::Relaxed));
    }
}

/// A line of text without an allocation.
struct Line {
    bytes: [u8; 384],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 384], len: 0 }
    }
}

impl Line {
    fn add(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len = self.len.saturating_add(1);
            }
        }
    }

    fn add_number(&mut self, number: u64, base: u64) {
        let mut digits = [0u8; 20];
        let (mut rest, mut first) = (number, digits.len());
        for (at, place) in digits.iter_mut().enumerate().rev() {
            let digit =
                rest.checked_rem(base).and_then(|digit| u32::try_from(digit).ok()).unwrap_or_default();
            let digit = char::from_digit(digit, 16).and_then(|digit| u8::try_from(digit).ok());
            *place = digit.unwrap_or(b'?');
            (rest, first) = (rest.checked_div(base).unwrap_or_default(), at);
            if rest == 0 {
                break;
            }
        }
        let digits = digits.get(first..).unwrap_or_default();
        self.add(std::str::from_utf8(digits).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_both_bases() {
        let mut line = Line::default();
        for (number, base) in [(0, 10), (59, 10), (u64::MAX, 10), (0xae80, 16), (u64::MAX, 16)] {
            line.add_number(number, base);
            line.add(" ");
        }
        let text = std::str::from_utf8(&line.bytes[..line.len]).unwrap();
        assert_eq!(text, "0 59 18446744073709551615 ae80 ffffffffffffffff ");
    }
}
