//! The actions of the vCPUs until the next stop, and the facilities of their processor for that.

use super::Planted;
use crate::boot::ElfCode;
use crate::controller::{DebugControl, DebugPoint};
use crate::exit::PointKind;
use crate::host::sort_by_key;
use std::sync::Arc;

/// The most breakpoints of a plan.
pub const MAX_BREAKPOINTS: usize = 16_384;
/// The most watchpoints of a plan.
pub const MAX_WATCHPOINTS: usize = 256;
/// The most bytes that the watchpoints of a plan cover if they are compared after each instruction.
pub const MAX_WATCHED: u64 = 4096;
/// The number of points in the debug registers.
const DEBUG_REGISTERS: usize = 4;

/// The action of a vCPU until the next stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// It runs.
    #[default]
    Continue,
    /// It executes one instruction.
    Step,
    /// It executes instructions as long as the next one is in a range of linear addresses: the first address of the range,
    /// and that after its end.
    StepInside(u64, u64),
    /// It stays where it is.
    Stay,
}

/// The facilities of the guest's processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facilities {
    /// It stops at any number of points: the software processor.
    pub unlimited: bool,
    /// It steps.
    pub steps: bool,
    /// It stops at breakpoints in debug registers.
    pub breakpoints: bool,
    /// It stops at watchpoints in debug registers.
    pub watchpoints: bool,
    /// It stops at `int3`.
    pub software: bool,
    /// It leaves the guest at an `out` in ring 0.
    pub output: bool,
}

/// The way in which a plan finds its breakpoints and watchpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The processor stops there by itself.
    Points,
    /// Each breakpoint is an instruction in memory. The processor stops at watchpoints by itself.
    Patches(Planted),
    /// The guest is stepped, and its addresses and its memory are compared after each instruction.
    Compare,
}

/// The actions of the guest until the next stop. By default it runs without an end.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The action of each vCPU. A vCPU without one continues.
    pub actions: Vec<Action>,
    /// Linear addresses of instructions, in ascending order. Only the first [`MAX_BREAKPOINTS`] count.
    pub breakpoints: Vec<u64>,
    /// Watched memory. Only the first [`MAX_WATCHPOINTS`] count.
    pub watchpoints: Vec<DebugPoint>,
    /// The guest also stops where it dies.
    pub catches_death: bool,
    /// The facilities of the guest's processor.
    pub facilities: Facilities,
    /// The guest's file: it tells where code is in memory that is not mapped yet.
    pub file: Option<Arc<ElfCode>>,
}

impl Plan {
    /// The way in which the breakpoints and watchpoints are found.
    pub fn method(&self) -> Method {
        let Facilities { unlimited, steps, breakpoints, watchpoints, software, output } = self.facilities;
        let watches = self.watchpoints.len() <= DEBUG_REGISTERS
            && (watchpoints || self.watchpoints.is_empty())
            && self.watchpoints.iter().all(fits_register);
        let breaks = self.breakpoints.len().saturating_add(self.watchpoints.len()) <= DEBUG_REGISTERS
            && (breakpoints || self.breakpoints.is_empty());
        match unlimited || watches && breaks {
            true => Method::Points,
            // A step passes the instruction at a breakpoint.
            false if watches && software && steps => Method::Patches(Planted::Int3),
            false if watches && output && steps => Method::Patches(Planted::Out),
            false => Method::Compare,
        }
    }

    /// Does without breakpoints in memory.
    pub(super) fn step_only(&mut self) {
        (self.facilities.software, self.facilities.output) = (false, false);
    }

    /// The action of a vCPU.
    pub(super) fn action(&self, index: usize) -> Action {
        self.actions.get(index).copied().unwrap_or_default()
    }

    /// The reasons for which a vCPU stops.
    pub(super) fn control(&self, action: Action) -> DebugControl {
        let step = action != Action::Continue || self.method() == Method::Compare;
        let execute = |address: &u64| DebugPoint { address: *address, len: 1, kind: PointKind::Execute };
        let points = match self.method() {
            Method::Points => {
                self.breakpoints.iter().map(execute).chain(self.watchpoints.iter().copied()).collect()
            }
            Method::Patches(_) => self.watchpoints.clone(),
            Method::Compare => Vec::new(),
        };
        DebugControl { step, software: self.method() == Method::Patches(Planted::Int3), points }
    }

    /// True if there is a breakpoint at this address.
    pub(super) fn breaks_at(&self, address: u64) -> bool {
        self.breakpoints.binary_search(&address).is_ok()
    }

    /// The plan within its limits, and in order.
    pub(super) fn limited(mut self) -> Self {
        self.breakpoints.truncate(MAX_BREAKPOINTS);
        sort_by_key(&mut self.breakpoints, |address| *address);
        self.breakpoints.dedup();
        self.watchpoints.truncate(MAX_WATCHPOINTS);
        self
    }
}

/// True if a debug register can express the watchpoint (SDM volume 3, section 18.2.5).
pub(super) fn fits_register(point: &DebugPoint) -> bool {
    [1, 2, 4, 8].contains(&point.len)
        && point.address.is_multiple_of(point.len)
        && point.kind != PointKind::Read
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(breakpoints: u64, watchpoints: &[(u64, u64, PointKind)], facilities: Facilities) -> Plan {
        let watchpoints =
            watchpoints.iter().map(|&(address, len, kind)| DebugPoint { address, len, kind }).collect();
        Plan { breakpoints: (0..breakpoints).collect(), watchpoints, facilities, ..Plan::default() }
    }

    #[test]
    fn a_plan_uses_debug_registers_only_where_they_stop_and_are_enough() {
        let all = Facilities { steps: true, breakpoints: true, watchpoints: true, ..Facilities::default() };
        let write = [(0x1000, 8, PointKind::Write)];
        let method = |breakpoints, watched: &[_], facilities| plan(breakpoints, watched, facilities).method();
        assert_eq!(method(3, &write, all), Method::Points);
        assert_eq!(method(4, &write, all), Method::Compare);
        assert_eq!(method(0, &[(0x1001, 8, PointKind::Write)], all), Method::Compare);
        assert_eq!(method(0, &[(0x1000, 8, PointKind::Read)], all), Method::Compare);
        assert_eq!(method(1, &[], Facilities { breakpoints: false, ..all }), Method::Compare);
        assert_eq!(method(1, &write, Facilities { watchpoints: false, ..all }), Method::Compare);
        assert_eq!(method(0, &[], Facilities::default()), Method::Points);
        let int3 = Facilities { software: true, ..all };
        assert_eq!(method(3, &write, int3), Method::Points);
        assert_eq!(method(4, &write, int3), Method::Patches(Planted::Int3));
        let int3_alone = Facilities { breakpoints: false, ..int3 };
        assert_eq!(method(1, &[], int3_alone), Method::Patches(Planted::Int3));
        let output = Facilities { software: false, output: true, ..int3_alone };
        assert_eq!(method(1, &[], output), Method::Patches(Planted::Out));
        assert_eq!(method(1, &write, Facilities { watchpoints: false, ..output }), Method::Compare);
        assert_eq!(method(4, &write, Facilities { watchpoints: false, ..int3 }), Method::Compare);
        assert_eq!(method(9, &[], Facilities { steps: false, ..int3 }), Method::Compare);
        let soft = Facilities { unlimited: true, ..Facilities::default() };
        assert_eq!(method(9999, &[(1, 100, PointKind::Read)], soft), Method::Points);
    }

    #[test]
    fn a_plan_has_limits() {
        let limited = plan(MAX_BREAKPOINTS as u64 + 5, &[], Facilities::default()).limited();
        assert_eq!(limited.breakpoints.len(), MAX_BREAKPOINTS);
        assert!(limited.breaks_at(7) && !limited.breaks_at(MAX_BREAKPOINTS as u64));
    }
}
