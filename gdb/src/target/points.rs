//! Breakpoints and watchpoints, as gdb sets them.

use super::Target;
use gdbstub::target::TargetResult;
use gdbstub::target::ext::breakpoints::{
    Breakpoints, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint, SwBreakpointOps,
    WatchKind,
};
use vmm::controller::DebugPoint;
use vmm::exit::PointKind;

impl Breakpoints for Target<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }
    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }
    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Target<'_> {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add_breakpoint(address, |found| found.soft = true))
    }
    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_breakpoint(address, |found| found.soft = false))
    }
}

impl HwBreakpoint for Target<'_> {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add_breakpoint(address, |found| found.hard = true))
    }
    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_breakpoint(address, |found| found.hard = false))
    }
}

fn point(address: u64, len: u64, kind: WatchKind) -> DebugPoint {
    let kind = match kind {
        WatchKind::Write => PointKind::Write,
        WatchKind::Read => PointKind::Read,
        WatchKind::ReadWrite => PointKind::Access,
    };
    DebugPoint { address, len, kind }
}

impl HwWatchpoint for Target<'_> {
    fn add_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let point = point(address, len, kind);
        let can_watch = self.can_watch(&point);
        if can_watch && !self.watchpoints.contains(&point) {
            self.watchpoints.push(point);
        }
        Ok(can_watch)
    }

    fn remove_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let point = point(address, len, kind);
        let before = self.watchpoints.len();
        self.watchpoints.retain(|found| *found != point);
        Ok(self.watchpoints.len() < before)
    }
}
