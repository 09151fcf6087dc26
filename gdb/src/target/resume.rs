//! Run control: which vCPUs run or step until the next stop.

use super::Target;
use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::multithread::{
    MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use vmm::machine::debug::{Action, Plan};

impl MultiThreadResume for Target<'_> {
    fn resume(&mut self) -> Result<(), &'static str> {
        let default = if self.locked { Action::Stay } else { Action::Continue };
        // Nothing would run: gdb has named no thread that exists. It gets an answer at once.
        if self.locked && self.actions.iter().all(Option::is_none) {
            return Ok(());
        }
        self.guest.resume(Plan {
            actions: self.actions.iter().map(|action| action.unwrap_or(default)).collect(),
            breakpoints: self.breakpoints.iter().map(|found| found.address).collect(),
            watchpoints: self.watchpoints.clone(),
            catches_death: true,
            facilities: self.settings.facilities,
            file: self.settings.file.clone(),
        });
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), &'static str> {
        self.actions = vec![None; self.guest.vcpus()];
        self.locked = false;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), &'static str> {
        self.act(tid, Action::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }
    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }
    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Target<'_> {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), &'static str> {
        self.act(tid, Action::Step);
        Ok(())
    }
}

impl MultiThreadRangeStepping for Target<'_> {
    fn set_resume_action_range_step(&mut self, tid: Tid, start: u64, end: u64) -> Result<(), &'static str> {
        self.act(tid, Action::StepInside(start, end));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Target<'_> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), &'static str> {
        self.locked = true;
        Ok(())
    }
}
