//! Hypercalls: services that the guest requests from the VMM.
//!
//! The guest puts the number into RAX and arguments into RDI, RSI, RDX, R10, R9 and R8. `out dx, eax` to
//! [`HYPERCALL_PORT`] makes the call. The result is in RAX: a negative errno is a failure. A port is used instead of
//! `vmcall`, because KVM answers `vmcall` in the kernel and does not forward it to this program.

use crate::console::output::Output;
use crate::controller::{ExitController, VcpuState};
use crate::error::Error;
#[cfg(doc)]
use crate::exit::HYPERCALL_PORT;
use crate::exit::{Exit, Outcome, Stop};
use crate::x86::probe::Probe;
use std::fmt;
use std::ops::ControlFlow;

/// Hypercall number of `HaltCpu(code)`, which ends this vCPU. The machine ends when all its vCPUs have ended.
pub const HYPERCALL_HALT_CPU: u32 = 0;
/// Hypercall number of `Print(address, len)`, which prints `len` bytes from guest virtual address `address`. Returns `len`.
pub const HYPERCALL_PRINT: u32 = 1;

/// The error numbers of hypercalls. They are those of Linux on every host.
pub(crate) mod errno {
    /// A part of the range is not memory.
    pub(crate) const EFAULT: i32 = 14;
    /// There is no such call.
    pub(crate) const ENOSYS: i32 = 38;
    /// The range is too long.
    pub(crate) const EMSGSIZE: i32 = 90;
}

/// The maximum length of one print, in bytes.
pub const MAX_PRINT: u64 = 64 << 10;

/// The name of a call, for the profile.
pub fn name(call: u32) -> Option<&'static str> {
    match call {
        HYPERCALL_HALT_CPU => Some("HaltCpu"),
        HYPERCALL_PRINT => Some("Print"),
        _ => None,
    }
}

/// The controller that answers hypercalls.
#[derive(Debug)]
pub struct Hypercalls {
    output: Output,
    failed: Option<FailedCalls>,
}

/// Hypercalls that failed: the first one, and the number of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedCalls {
    /// The number of the first call that failed.
    pub call: u32,
    /// Its errno, as a positive number.
    pub errno: i32,
    /// The number of all calls that failed.
    pub count: u64,
}

impl FailedCalls {
    /// Adds later calls.
    #[must_use]
    pub fn and(self, later: Self) -> Self {
        Self { count: self.count.saturating_add(later.count), ..self }
    }
}

impl fmt::Display for FailedCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, errno, count } = *self;
        match name(call) {
            Some(name) => write!(f, "its hypercall {name} failed with -{errno}")?,
            None => write!(f, "its hypercall {call} failed with -{errno}")?,
        }
        f.write_str(match errno {
            errno::EFAULT => " (EFAULT: the text is not in memory)",
            errno::EMSGSIZE => " (EMSGSIZE: the text is too long)",
            errno::ENOSYS => " (ENOSYS: there is no such call)",
            _ => "",
        })?;
        match count.saturating_sub(1) {
            0 => Ok(()),
            more => write!(f, ", and {more} more failed"),
        }
    }
}

impl Hypercalls {
    /// Creates the controller. Prints go to `output`.
    pub fn new(output: Output) -> Self {
        Self { output, failed: None }
    }

    /// The calls that failed, if any.
    pub fn failed(&self) -> Option<FailedCalls> {
        self.failed
    }

    fn call(&mut self, call: u32, vcpu: &mut dyn VcpuState) -> Result<Outcome, Error> {
        let mut regs = vcpu.regs()?;
        let probe = vcpu.probe()?;
        // Outside 64-bit code the upper halves of the registers can hold values of an earlier mode.
        let argument = |register: u64| if probe.is_long() { register } else { register & 0xffff_ffff };
        let result = match call {
            HYPERCALL_HALT_CPU => return Ok(Outcome::Stop(Stop::CpuExited(argument(regs.rdi)))),
            HYPERCALL_PRINT => {
                match print(&mut self.output, &probe, argument(regs.rdi), argument(regs.rsi)) {
                    ControlFlow::Continue(result) => result,
                    ControlFlow::Break(stop) => return Ok(Outcome::Stop(stop)),
                }
            }
            _ => -i64::from(errno::ENOSYS),
        };
        if let Some(errno) = result.checked_neg().filter(|errno| *errno > 0) {
            let now = FailedCalls { call, errno: errno.try_into().unwrap_or(i32::MAX), count: 1 };
            self.failed = Some(self.failed.map_or(now, |failed| failed.and(now)));
        }
        regs.rax = result.cast_unsigned();
        vcpu.set_regs(&regs)?;
        Ok(Outcome::Resume)
    }
}

impl ExitController for Hypercalls {
    #[inline(always)]
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        let Exit::Hypercall { number } = *exit else { return Outcome::Unclaimed };
        self.call(number, vcpu).unwrap_or_else(Outcome::failed)
    }
}

/// Prints `len` bytes from guest virtual address `address`. It prints all of them, up to the output limit, or none. Other
/// output does not interrupt them. Returns `len`, or a negative errno: -EMSGSIZE if `len` is more than [`MAX_PRINT`],
/// -EFAULT if a part of the range is not memory.
pub(crate) fn print(output: &mut Output, probe: &Probe, address: u64, len: u64) -> ControlFlow<Stop, i64> {
    let size = match usize::try_from(len) {
        Ok(size) if len <= MAX_PRINT => size,
        _ => return ControlFlow::Continue(-i64::from(errno::EMSGSIZE)),
    };
    let mut text = vec![0; size];
    if let Err(error) = probe.read(address, &mut text) {
        log::info!("a print of the guest failed: {error}");
        return ControlFlow::Continue(-i64::from(errno::EFAULT));
    }
    output.print(&text)?;
    // At most MAX_PRINT.
    ControlFlow::Continue(len.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::output::Captured;
    use crate::controller::FakeVcpu;
    use crate::memory::{Gpa, GuestMemory};
    use crate::x86::modes::{self, Mode};
    use crate::x86::registers::Regs;

    fn vcpu(rdi: u64, rsi: u64) -> FakeVcpu {
        let memory = GuestMemory::new(&[(Gpa(0), 0x2000)]).unwrap();
        memory.write(Gpa(0x1ff8), b"Hello!\n\0").unwrap();
        let sregs = modes::sregs(Mode::Protected, Default::default(), Gpa(0), modes::VcpuIndex::ALONE);
        let regs = Regs { rax: 1, rdi, rsi, ..Default::default() };
        FakeVcpu { memory, sregs, regs, ..Default::default() }
    }

    fn call(number: u32, vcpu: &mut FakeVcpu) -> (Outcome, Captured) {
        let (output, captured) = Output::captured();
        (Hypercalls::new(output).handle(&Exit::Hypercall { number }, vcpu), captured)
    }

    #[test]
    fn print_prints_and_returns_the_length() {
        let mut vcpu = vcpu(0x1ff8, 7);
        let (outcome, captured) = call(HYPERCALL_PRINT, &mut vcpu);
        assert!(matches!(outcome, Outcome::Resume));
        assert_eq!((captured.bytes().as_slice(), vcpu.regs.rax), (b"Hello!\n".as_slice(), 7));
    }

    #[test]
    fn a_print_outside_memory_prints_nothing_and_returns_an_errno() {
        for (address, len, errno) in [
            (0x1ff8, 9, errno::EFAULT),
            (0x8000_0000, 1, errno::EFAULT),
            (0xffff_ffff, 2, errno::EFAULT),
            (u64::MAX, 1, errno::EFAULT),
            (0x1ff8, 0xffff_ffff, errno::EMSGSIZE),
            (0, MAX_PRINT + 1, errno::EMSGSIZE),
        ] {
            let mut vcpu = vcpu(address, len);
            let (outcome, captured) = call(HYPERCALL_PRINT, &mut vcpu);
            assert!(matches!(outcome, Outcome::Resume));
            assert_eq!(
                (captured.bytes().len(), vcpu.regs.rax as i64),
                (0, -i64::from(errno)),
                "{address:#x}"
            );
        }
        // In protected mode the upper halves of the arguments are ignored.
        let mut vcpu = vcpu(0xffff_ffff_0000_1ff8, 7 | 1 << 40);
        let (_, captured) = call(HYPERCALL_PRINT, &mut vcpu);
        assert_eq!(captured.bytes(), b"Hello!\n");
    }

    #[test]
    fn halt_ends_the_vcpu_with_its_code() {
        let (outcome, _) = call(HYPERCALL_HALT_CPU, &mut vcpu(0xcafe, 0));
        assert!(matches!(outcome, Outcome::Stop(Stop::CpuExited(0xcafe))));
    }

    #[test]
    fn an_unknown_number_is_not_implemented() {
        let mut vcpu = vcpu(0, 0);
        assert!(matches!(call(99, &mut vcpu).0, Outcome::Resume));
        assert_eq!(vcpu.regs.rax as i64, -i64::from(errno::ENOSYS));
    }

    #[test]
    fn failed_calls_are_counted() {
        let mut hypercalls = Hypercalls::new(Output::captured().0);
        let mut call = |number, address| {
            hypercalls.handle(&Exit::Hypercall { number }, &mut vcpu(address, 1));
            hypercalls.failed()
        };
        assert_eq!(call(HYPERCALL_PRINT, 0x1ff8), None);
        let failed = |count| Some(FailedCalls { call: 1, errno: errno::EFAULT, count });
        assert_eq!(call(HYPERCALL_PRINT, 0x8000_0000), failed(1));
        assert_eq!(call(99, 0), failed(2));
        assert_eq!(call(HYPERCALL_PRINT, 0x1ff8), failed(2));
    }

    #[test]
    fn a_full_output_ends_the_run() {
        let (output, _) = Output::captured();
        output.set_limit(Some(3));
        let mut hypercalls = Hypercalls::new(output);
        let outcome = hypercalls.handle(&Exit::Hypercall { number: HYPERCALL_PRINT }, &mut vcpu(0x1ff8, 7));
        assert!(matches!(outcome, Outcome::Stop(Stop::OutputLimit(3))));
    }
}
