//! The examination of a machine after a run: what the guest left, where its vCPUs are, and how it died.

use super::Machine;
use crate::console::screen::Screen;
use crate::controller::vcpu::{Activity, Location};
use crate::error::Error;
use crate::exit::Stop;
use crate::machine::background::Background;
use crate::machine::doubt::{Doubt, UsedDevices, ends_inside};
use crate::machine::explain::{Explanation, Scene, other_mode, suspicion_without_state};
use crate::machine::processors::{MachineVcpu, Processor};
use crate::machine::report::{Report, VcpuReport, Verdict};
use crate::machine::restore::Restore;
use crate::machine::session::RunResult;
use crate::machine::totals::Totals;
use crate::machine::vcpu_run::VcpuResult;
use crate::memory::Gpa;
use crate::profile::recorder::{LAST, TracedExit};
use crate::profile::trace::Trace;
use crate::x86::probe::Probe;
use simvirtio::abi;
use std::time::Duration;

impl Machine {
    /// The report of a run.
    pub(super) fn report(&mut self, result: RunResult, screen: Option<Screen>, elapsed: Duration) -> Report {
        let RunResult { mut stop, mut vcpus, stopped_by, side, samples } = result;
        let stopped_by = self.blame_a_started_vcpu(&mut vcpus, stopped_by);
        let trap = self.trapped(&mut stop, &mut vcpus);
        let trap = examined(trap, &mut stop);
        let verdict = examined(self.verdict_after(&stop), &mut stop);
        let waits_for_interrupt = self.waits_for_interrupt(&stop, stopped_by);
        let is_mapped_to_image = self.is_mapped_to_image(stopped_by);
        let (location, explanation) = self.explain(&stop, stopped_by);
        // The place after a HLT is not the place of a mistake.
        let explanation = explanation.filter(|_| !waits_for_interrupt);
        shorten(&mut stop, explanation.as_ref(), vcpus.get_mut(stopped_by));
        let several = vcpus.len() > 1;
        let last = last_exits(vcpus.get(stopped_by));
        let is_lost = location == Some(Location::Reset);
        let image = self.restore.as_ref().map(Restore::image).filter(|_| is_lost);
        let lost_suspicion = image.and_then(|image| suspicion_without_state(image, &last));
        let mut totals = Totals::new(self.trace.map(Trace::new));
        let stops: Vec<_> = vcpus.iter().map(|(stop, _)| stop.clone()).collect();
        let reports = self.vcpu_reports(vcpus, &mut totals);
        let stopped_by = self.processors.get(stopped_by).filter(|_| several).map(|vcpu| vcpu.id());
        let used = UsedDevices {
            simvirtio: side.simvirtio.as_ref().is_some_and(|device| device.history != Default::default()),
            screen: screen.is_some(),
        };
        let doubts = examined(self.doubts(&stop, &stops, &totals, used, trap), &mut stop);
        Report {
            missed_simvirtio: self.missed_simvirtio(&stop, explanation.as_ref()),
            other_mode: self.other_mode(verdict.as_ref(), &doubts),
            stop,
            processor: self.processor(),
            stopped_by,
            location,
            explanation,
            waits_for_interrupt,
            is_mapped_to_image,
            verdict,
            doubts,
            elapsed,
            simvirtio: side.simvirtio,
            boot: side.boot,
            timing: self.clock.map(|clock| totals.timing(clock)),
            last_exits: last,
            lost_suspicion,
            kernel: totals.kernel(),
            profile: totals.profile,
            trace: totals.trace,
            samples,
            open_bus: totals.open_bus,
            vcpus: reports,
            screen,
            screen_is_printed: self.screen_is_printed(),
            ram: self.ram,
            image: self.image.clone(),
            devices: self.devices.clone(),
            kev: self.kev,
            has_bios: self.has_bios,
            msrs: self.msrs.clone(),
        }
    }

    /// Adds up the results of the vCPUs. Returns the report of each vCPU; nothing if there is only one.
    fn vcpu_reports(&mut self, vcpus: Vec<(Stop, VcpuResult)>, totals: &mut Totals) -> Vec<VcpuReport> {
        let several = vcpus.len() > 1;
        let may_be_unstarted = several && matches!(self.background, Background::Classic(_));
        let mut reports = Vec::new();
        for (vcpu, (stop, result)) in self.processors.iter_mut().zip(vcpus) {
            let kernel = self.kernel_counters.then(|| vcpu.counters()).flatten();
            if several {
                let has_place = !stop.parks() || may_be_unstarted && vcpu.is_unstarted();
                let location = has_place.then(|| known(vcpu.location(has_shut_down(&stop)), vcpu)).flatten();
                let profile = result.recording.as_ref().map(|recording| recording.profile.clone());
                reports.push(VcpuReport { id: vcpu.id(), stop, location, profile, kernel: kernel.clone() });
            }
            totals.add(vcpu.id(), result, kernel);
        }
        reports
    }

    /// At a limit, the vCPU that notices it first stops the machine. If that one has not run, blames one that has: they swap
    /// their stops. A vCPU that has not run is never at a limit. Returns the index of the vCPU that stopped the machine.
    fn blame_a_started_vcpu(&self, vcpus: &mut [(Stop, VcpuResult)], stopped_by: usize) -> usize {
        let is_unstarted = |index: usize| self.processors.get(index).is_some_and(|vcpu| vcpu.is_unstarted());
        let at_a_limit = |(stop, _): &(Stop, VcpuResult)| {
            matches!(stop, Stop::Timeout(_) | Stop::WallTimeout(_) | Stop::Interrupted)
        };
        let several = vcpus.len() > 1;
        if !several || !vcpus.get(stopped_by).is_some_and(at_a_limit) {
            return stopped_by;
        }
        let started =
            (0..vcpus.len()).find(|index| !is_unstarted(*index)).filter(|_| is_unstarted(stopped_by));
        let started = started.unwrap_or(stopped_by);
        if let Ok([(noticed, _), (blamed, _)]) = vcpus.get_disjoint_mut([stopped_by, started]) {
            std::mem::swap(noticed, blamed);
        }
        for (index, vcpu) in vcpus.iter_mut().enumerate() {
            if index != started && is_unstarted(index) && at_a_limit(vcpu) {
                vcpu.0 = Stop::Interrupted;
            }
        }
        started
    }

    /// True if the location of the vCPU that stopped the machine is mapped to the image. A kernel of a boot loader may run in
    /// the upper half of its addresses, and its image has physical addresses.
    fn is_mapped_to_image(&mut self, stopped_by: usize) -> bool {
        let Some(vcpu) = self.processors.get_mut(stopped_by) else { return false };
        let (Ok(regs), Ok(sregs)) = (vcpu.regs(), vcpu.sregs()) else { return false };
        let probe = Probe::new(self.memory.clone(), sregs);
        let linear = probe.linear(sregs.cs.base, regs.rip);
        let Ok(place) = probe.translate_linear(linear) else { return false };
        let is_moved = place.gpa.0 != linear || matches!(self.background, Background::Classic(_));
        is_moved && ends_inside(&self.image, Some(place.gpa.0))
    }

    /// True if the vCPU that stopped the machine waited for an interrupt. Only at a limit, and with interrupt controllers.
    fn waits_for_interrupt(&mut self, stop: &Stop, stopped_by: usize) -> bool {
        let at_a_limit =
            matches!(stop, Stop::Timeout(_) | Stop::WallTimeout(_) | Stop::Interrupted | Stop::Quit);
        let is_classic = matches!(self.background, Background::Classic(_));
        let vcpu = self.processors.get_mut(stopped_by).filter(|_| at_a_limit && is_classic);
        vcpu.is_some_and(|vcpu| vcpu.activity() == Activity::Halted)
    }

    /// The location of the vCPU that stopped the machine, and the explanation of its death. `None` for what the host
    /// does not tell.
    fn explain(&mut self, stop: &Stop, stopped_by: usize) -> (Option<Location>, Option<Explanation>) {
        let orderly =
            stop.is_orderly() || matches!(stop, Stop::OutputFailed(_) | Stop::InputFailed(_) | Stop::Quit);
        let Some(vcpu) = self.processors.get_mut(stopped_by).filter(|_| !orderly) else {
            return (None, None);
        };
        let location = vcpu.location(has_shut_down(stop));
        let Some(location) = known(location, vcpu) else { return (None, None) };
        // After these, only a guest that has left its code is explained.
        let is_misled = matches!(stop, Stop::ProtocolError(_) | Stop::OutputLimit(_));
        let is_explained = match stop {
            Stop::Interrupted | Stop::ControllerFailed(_) | Stop::HostFailed(_) => false,
            _ => !is_misled || self.restore.is_some() && location.is_outside(&self.image),
        };
        let explanation = if is_explained { self.explanation(stop, stopped_by, location) } else { None };
        let tells = |found: &Explanation| found.suspicion().is_some() || found.cause().is_some();
        (Some(location), explanation.filter(|found| !is_misled || tells(found)))
    }

    /// The explanation of the death of a vCPU.
    fn explanation(&mut self, stop: &Stop, index: usize, location: Location) -> Option<Explanation> {
        let processor = self.processors.kind();
        let vcpu = self.processors.get_mut(index)?;
        let start = vcpu.start_of_stack().filter(|_| self.restore.is_some());
        let scene = Scene {
            image: self.restore.as_ref().map(Restore::image),
            stack_top: start.map(|(_, pointer)| pointer),
            stack_base: start.map(|(base, _)| base),
            has_window: matches!(
                self.background,
                Background::TrappedWindow(..) | Background::SharedWindow(_)
            ),
            is_kernel: self.restore.is_none(),
            died: matches!(stop, Stop::TripleFault | Stop::EmulationFailure(_)),
            is_unemulated: self.restore.is_some()
                && matches!(stop, Stop::EmulationFailure(bytes) if !bytes.is_soft()),
            is_soft: processor == Processor::Soft,
            is_foreign: false,
        };
        let (regs, sregs) = (vcpu.regs().ok()?, vcpu.sregs().ok()?);
        let explanation = Explanation::new(location, regs, sregs, &self.memory, &scene)?;
        let explanation = match vcpu.soft() {
            Some(soft) => explanation.with_facts(stop, soft.cpu(), &self.memory, scene.image),
            None => explanation,
        };
        Some(explanation.with_state_check(stop, processor, &self.memory, scene.image))
    }

    /// The modes that the code of a flat binary seems to be for, if it ended without a right result in another one.
    fn other_mode(&self, verdict: Option<&Verdict>, doubts: &[Doubt]) -> Option<&'static str> {
        let is_wrong =
            verdict.is_some_and(|verdict| !verdict.passed()) || doubts.contains(&Doubt::NothingSeen);
        // The other doubts may know the mode from its text.
        let is_told = doubts.iter().any(|doubt| matches!(doubt, Doubt::OtherMode { .. }));
        let image = self.restore.as_ref().map(Restore::image).filter(|_| is_wrong && !is_told)?;
        other_mode(image)
    }

    /// The verdict about a run that ended with `stop`. `None` if none was requested, or if the guest left no result.
    fn verdict_after(&mut self, stop: &Stop) -> Result<Option<Verdict>, Error> {
        let has_result = matches!(stop, Stop::Halted | Stop::Exited(0));
        if self.verify && has_result { self.verdict().map(Some) } else { Ok(None) }
    }

    fn verdict(&mut self) -> Result<Verdict, Error> {
        let mut memory = [0; 8];
        self.memory.read(Gpa(abi::RESULT), &mut memory);
        let rax = match self.processors.get_mut(0) {
            Some(vcpu) => vcpu.regs()?.rax,
            None => 0,
        };
        Ok(Verdict::new(self.mode, rax, u64::from_le_bytes(memory)))
    }
}

/// The findings of an examination. If it failed, the machine stops with its error: a result that cannot be read is not a
/// success, and a doubt is then not ruled out.
fn examined<T: Default>(found: Result<T, Error>, stop: &mut Stop) -> T {
    found.unwrap_or_else(|error| {
        *stop = error.into();
        T::default()
    })
}

/// The last exits of a vCPU.
fn last_exits(vcpu: Option<&(Stop, VcpuResult)>) -> Vec<TracedExit> {
    let recording = vcpu.and_then(|(_, result)| result.recording.as_ref());
    let last = recording.into_iter().flat_map(|recording| recording.last.iter().rev().take(LAST).rev());
    last.copied().collect()
}

/// Shortens the bytes in an emulation failure to the instruction: KVM reports as many bytes as it has fetched.
fn shorten(stop: &mut Stop, explanation: Option<&Explanation>, vcpu: Option<&mut (Stop, VcpuResult)>) {
    let (Stop::EmulationFailure(bytes), Some(explanation)) = (&mut *stop, explanation) else { return };
    *bytes = bytes.first(explanation.instruction_len());
    if let Some((stop_of_vcpu, _)) = vcpu {
        *stop_of_vcpu = stop.clone();
    }
}

/// The location of `vcpu`. If the host does not tell it, it is missing from the report.
fn known(location: Result<Location, Error>, vcpu: &dyn MachineVcpu) -> Option<Location> {
    location.map_err(|error| log::warn!("the place of vCPU {} is not known: {error}", vcpu.id())).ok()
}

/// True if the processor has shut down. Some hosts reset it then.
fn has_shut_down(stop: &Stop) -> bool {
    matches!(stop, Stop::TripleFault)
}
