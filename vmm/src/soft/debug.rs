//! Stops of the software processor for a debugger.

use super::vcpu::{EXIT_COST, SoftVcpu};
use crate::controller::{DebugControl, DebugPoint};
use crate::exit::{DebugStop, Exit, PointKind};
use softcpu::Watch;
use std::collections::HashSet;

/// The first byte of `int3`.
const INT3: u8 = 0xcc;

/// The reasons for which the vCPU stops.
#[derive(Debug)]
pub(super) struct Debugging {
    /// The number of instructions that are left of the current slice.
    pub(super) left: u64,
    step: bool,
    software: bool,
    /// The addresses of instructions.
    breakpoints: HashSet<u64>,
    /// The points for data, in the order of the watches of the processor.
    watchpoints: Vec<DebugPoint>,
    /// The next instruction is executed even if there is a breakpoint: the vCPU stopped before it, or has executed a part of
    /// it.
    pub(super) goes_on: bool,
}

impl SoftVcpu {
    /// Sets the reasons for which the vCPU stops.
    pub(super) fn set_debugging(&mut self, control: &DebugControl) {
        let (breakpoints, watchpoints): (Vec<DebugPoint>, _) =
            control.points.iter().partition(|point| point.kind == PointKind::Execute);
        let watch = |point: &DebugPoint| Watch {
            first: point.address,
            last: point.address.saturating_add(point.len.saturating_sub(1)),
            reads: point.kind != PointKind::Write,
            writes: point.kind != PointKind::Read,
        };
        self.cpu.set_watches(watchpoints.iter().map(watch).collect());
        let goes_on = self.debug.as_ref().is_some_and(|debug| debug.goes_on) || self.awaits_value;
        let left = self.debug.as_ref().map_or(self.left, |debug| debug.left);
        self.debug = control.is_on().then(|| {
            Box::new(Debugging {
                left,
                step: control.step,
                software: control.software,
                breakpoints: breakpoints.iter().map(|point| point.address).collect(),
                watchpoints,
                goes_on,
            })
        });
        self.left = if self.debug.is_some() { 0 } else { left };
    }

    /// Runs the processor, one instruction at a time, until it stops or its slice ends. If it is not debugged, its slice has
    /// ended.
    #[cold]
    pub(super) fn run_debugged(&mut self) -> Exit {
        loop {
            let at = self.cpu.linear_rip();
            let Some(debug) = self.debug.as_mut().filter(|debug| debug.left != 0) else {
                return self.end_slice();
            };
            debug.left = debug.left.saturating_sub(1);
            let goes_on = std::mem::replace(&mut debug.goes_on, true);
            if !goes_on && debug.breakpoints.contains(&at) {
                return self.stop(DebugStop::Breakpoint(at));
            }
            if !goes_on && debug.software && self.cpu.instruction_bytes().first() == Some(&INT3) {
                return self.stop(DebugStop::Software);
            }
            let exit = self.cpu.step();
            let is_complete = exit == softcpu::Exit::SliceEnd;
            let again = self.cpu.starts_again();
            let Some(debug) = &mut self.debug else { return self.translate_exit(exit) };
            debug.goes_on = again;
            if !is_complete {
                debug.left = debug.left.saturating_sub(EXIT_COST);
                let exit = self.translate_exit(exit);
                // The instruction of an access is executed again, with the answer.
                if let Some(debug) = &mut self.debug {
                    debug.goes_on |= exit.is_access();
                }
                return exit;
            }
            let met = self.cpu.hit().and_then(|hit| debug.watchpoints.get(hit));
            if let Some(point) = met {
                let stop = DebugStop::Watchpoint(point.address, point.kind);
                return self.stop(stop);
            }
            if debug.step {
                return self.stop(DebugStop::Step);
            }
        }
    }

    /// The exit of a stop.
    fn stop(&mut self, stop: DebugStop) -> Exit {
        if let Some(debug) = &mut self.debug {
            debug.left = debug.left.saturating_sub(EXIT_COST);
        }
        Exit::Debug(stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::VcpuState;
    use crate::controller::vcpu::{Entry, Vcpu};
    use crate::memory::{Gpa, GuestMemory};

    /// A vCPU in real mode that executes this code at 0x100 next, in slices of `slice` instructions.
    fn vcpu(code: &[u8], slice: u64) -> SoftVcpu {
        let memory = GuestMemory::new(&[(Gpa(0), 0x4000)]).unwrap();
        memory.write(Gpa(0x100), code).unwrap();
        let mut vcpu = SoftVcpu::new(0, &memory, slice).unwrap();
        let mut sregs = vcpu.sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        let regs = vcpu.regs().unwrap();
        vcpu.set_regs(&crate::x86::registers::Regs { rip: 0x100, ..regs }).unwrap();
        vcpu
    }

    fn point(address: u64, kind: PointKind) -> DebugPoint {
        DebugPoint { address, len: 1, kind }
    }

    /// The next exit, with RIP after it.
    fn next(vcpu: &mut SoftVcpu, entry: Entry) -> (Exit, u64) {
        let exit = vcpu.enter(entry).unwrap().0;
        (exit, vcpu.regs().unwrap().rip)
    }

    #[test]
    fn a_breakpoint_on_an_access_stops_once_before_it() {
        // in al, 0x40; jmp to it
        let mut vcpu = vcpu(&[0xe4, 0x40, 0xeb, 0xfc], 1000);
        let points = vec![point(0x100, PointKind::Execute)];
        vcpu.set_debug(&DebugControl { points, ..DebugControl::default() }).unwrap();
        for round in 0..3 {
            assert_eq!(next(&mut vcpu, Entry::Resume), (Exit::Debug(DebugStop::Breakpoint(0x100)), 0x100));
            assert_eq!(next(&mut vcpu, Entry::Resume), (Exit::PioIn { port: 0x40, size: 1 }, 0x100));
            let after = next(&mut vcpu, Entry::Value(round));
            assert_eq!(after.1, 0x100, "{after:?}");
            vcpu.forget_exit();
        }
    }

    #[test]
    fn a_breakpoint_on_a_string_instruction_stops_once_and_a_step_is_an_iteration() {
        // mov cx, 3; rep stosb; hlt
        let mut vcpu = vcpu(&[0xb9, 3, 0, 0xf3, 0xaa, 0xf4], 1000);
        let points = vec![point(0x103, PointKind::Execute)];
        vcpu.set_debug(&DebugControl { points: points.clone(), ..DebugControl::default() }).unwrap();
        assert_eq!(next(&mut vcpu, Entry::Resume), (Exit::Debug(DebugStop::Breakpoint(0x103)), 0x103));
        vcpu.set_debug(&DebugControl { points, ..DebugControl::step() }).unwrap();
        for rip in [0x103, 0x103, 0x105] {
            assert_eq!(next(&mut vcpu, Entry::Resume), (Exit::Debug(DebugStop::Step), rip));
        }
        assert_eq!(next(&mut vcpu, Entry::Resume).0, Exit::Hlt);
    }

    #[test]
    fn slices_end_while_a_vcpu_is_debugged_and_after_it() {
        // jmp to itself
        let mut vcpu = vcpu(&[0xeb, 0xfe], 10);
        vcpu.set_debug(&DebugControl { software: true, ..DebugControl::default() }).unwrap();
        assert_eq!(next(&mut vcpu, Entry::Resume).0, Exit::Interrupted);
        assert_eq!(vcpu.cpu.instructions(), 10);
        // A debugger that steps for ever does not keep the deadline from being checked.
        let interrupted = (0..5).map(|_| {
            vcpu.set_debug(&DebugControl::step()).unwrap();
            next(&mut vcpu, Entry::Resume).0
        });
        assert!(interrupted.collect::<Vec<_>>().contains(&Exit::Interrupted));
        vcpu.set_debug(&DebugControl::default()).unwrap();
        assert_eq!(next(&mut vcpu, Entry::Resume).0, Exit::Interrupted);
        assert_eq!(next(&mut vcpu, Entry::Resume).0, Exit::Interrupted);
    }

    #[test]
    fn int3_and_watchpoints_stop_the_vcpu() {
        // inc byte [0x2000]; int3; hlt
        let mut vcpu = vcpu(&[0xfe, 0x06, 0x00, 0x20, 0xcc, 0xf4], 1000);
        for kind in [PointKind::Read, PointKind::Write, PointKind::Access] {
            let regs = vcpu.regs().unwrap();
            vcpu.set_regs(&crate::x86::registers::Regs { rip: 0x100, ..regs }).unwrap();
            let control = DebugControl { software: true, step: false, points: vec![point(0x2000, kind)] };
            vcpu.set_debug(&control).unwrap();
            let watchpoint = Exit::Debug(DebugStop::Watchpoint(0x2000, kind));
            assert_eq!(next(&mut vcpu, Entry::Resume), (watchpoint, 0x104));
            assert_eq!(next(&mut vcpu, Entry::Resume), (Exit::Debug(DebugStop::Software), 0x104));
        }
    }
}
