//! Debugging a vCPU: what it is to stop at ([`DebugControl`]), and what it stopped at ([`DebugStop`]).
//!
//! [`VcpuState::set_debug`](super::VcpuState::set_debug) switches debugging on and off. A vCPU that stops returns
//! [`Exit::Debug`](crate::exit::Exit::Debug), which reaches the controllers like any other exit; the answer
//! [`Resume`](crate::exit::Outcome::Resume) continues. A controller sees the vCPU before its first instruction in
//! [`ExitController::begin`](super::ExitController::begin).
//!
//! | | KVM | software processor |
//! |---|---|---|
//! | step | one instruction. Hosts differ in what they do with an instruction that raises an exception, and after a load of SS | one instruction, always. A fault is one: it stops at the first instruction of the handler |
//! | points | 4, in the debug registers (SDM volume 3, section 18.2): of 1, 2, 4 or 8 bytes, aligned; not for reads alone | any number, of any length |
//! | `int3` | the vCPU stops at the instruction | the same |
//!
//! Not every KVM host has all of this: [`probe_debugging`](crate::lab::probe_debugging) tries it.

use crate::error::Error;
use crate::exit::PointKind;

/// An address at which a vCPU stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugPoint {
    /// The linear address of the first byte. In real mode it is the base of the segment plus the offset.
    pub address: u64,
    /// The number of bytes. Only the first byte of an instruction counts, so this is 1 for [`PointKind::Execute`].
    pub len: u64,
    /// The accesses that stop the vCPU.
    pub kind: PointKind,
}

/// The reasons for which a vCPU stops. By default there are none: debugging is off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugControl {
    /// Stop after each instruction. For KVM, each iteration of a repeated string instruction may be one.
    pub step: bool,
    /// Stop at each `int3`, which then does not reach the guest.
    pub software: bool,
    /// Stop before the instructions at these addresses, and after instructions that access them. A vCPU of KVM that stopped
    /// before an instruction stops there again: step first.
    pub points: Vec<DebugPoint>,
}

impl DebugControl {
    /// Stop after each instruction.
    pub fn step() -> Self {
        Self { step: true, ..Self::default() }
    }

    /// True if the vCPU stops for any reason.
    pub fn is_on(&self) -> bool {
        self.step || self.software || !self.points.is_empty()
    }

    /// The values of DR0 to DR3 and DR7 for the points (SDM volume 3, section 18.2.4).
    ///
    /// # Errors
    /// The debug registers cannot express the points.
    pub(crate) fn debug_registers(&self) -> Result<([u64; 4], u64), Error> {
        let mut addresses = [0; 4];
        // The bit that is always one, and GE.
        let mut dr7 = 0x600;
        if self.points.len() > addresses.len() {
            return Err(Error::Config("a vCPU of KVM has 4 breakpoints and watchpoints: use fewer".into()));
        }
        for ((index, point), address) in (0..).zip(&self.points).zip(&mut addresses) {
            let condition = match point.kind {
                PointKind::Execute => 0,
                PointKind::Write => 1,
                PointKind::Access => 3,
                PointKind::Read => {
                    let text = "a watchpoint of KVM cannot stop at reads alone: use one for reads and writes";
                    return Err(Error::Config(text.into()));
                }
            };
            let is_execute = point.kind == PointKind::Execute;
            let len = match if is_execute { 1 } else { point.len } {
                1 => 0,
                2 => 1,
                4 => 3,
                8 => 2,
                _ => u64::MAX,
            };
            if len == u64::MAX || !is_execute && !point.address.is_multiple_of(point.len) {
                let text = "a watchpoint of KVM has 1, 2, 4 or 8 bytes at a multiple of its length";
                return Err(Error::Config(text.into()));
            }
            *address = point.address;
            dr7 |= 2 << (2 * index) | (condition | len << 2) << (16 + 4 * index);
        }
        Ok((addresses, dr7))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers(points: &[(u64, u64, PointKind)]) -> Option<([u64; 4], u64)> {
        let points = points.iter().map(|&(address, len, kind)| DebugPoint { address, len, kind }).collect();
        DebugControl { points, ..DebugControl::default() }.debug_registers().ok()
    }

    #[test]
    fn debug_registers_hold_four_points() {
        use PointKind::{Access, Execute, Read, Write};
        assert_eq!(registers(&[]), Some(([0; 4], 0x600)));
        let all = [(0x1001, 1, Execute), (0x2000, 4, Write), (0x3008, 8, Access), (5, 1, Write)];
        assert_eq!(registers(&all), Some(([0x1001, 0x2000, 0x3008, 5], 0x1bd0_06aa)));
        for bad in [(0, 4, Read), (2, 4, Write), (0, 3, Write), (0, 0, Access), (0, 16, Write)] {
            assert_eq!(registers(&[bad]), None, "{bad:?}");
        }
        assert_eq!(registers(&[(0, 1, Write); 5]), None);
    }
}
