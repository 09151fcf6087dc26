//! The requests of gdb: registers, memory, breakpoints and run control.
//!
//! Addresses are linear addresses. Memory is that of the guest's RAM: an address of a device is an error, because an access
//! could have an effect, until `monitor mmio on` allows it (`mmio.rs`).

mod mmio;
mod points;
mod resume;

use crate::registers::{self, View, Width};
use crate::session::Settings;
use crate::{description, monitor};
use gdbstub::arch::{self, Arch};
use gdbstub::common::Tid;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{MultiThreadBase, MultiThreadResumeOps};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::BreakpointsOps;
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{TargetError, TargetResult};
use std::cell::Cell;
use std::num::NonZeroUsize;
use vmm::controller::{DebugPoint, VcpuState};
use vmm::exit::PointKind;
use vmm::machine::debug::{
    Action, DebugGuest, GuestStatus, MAX_BREAKPOINTS, MAX_WATCHED, MAX_WATCHPOINTS, Why,
};
use vmm::x86::{Probe, linear_rip};

/// The processor, as the library for the protocol knows it.
#[derive(Debug)]
pub(crate) enum X86 {}

/// The bytes of a packet of all registers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Packed(Vec<Option<u8>>);

/// The number of a register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Number(usize);

impl arch::RegId for Number {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        Some((Self(id), None))
    }
}

impl arch::Registers for Packed {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        0
    }

    fn gdb_serialize(&self, write_byte: impl FnMut(Option<u8>)) {
        self.0.iter().copied().for_each(write_byte);
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.0 = bytes.iter().copied().map(Some).collect();
        Ok(())
    }
}

impl Arch for X86 {
    type Usize = u64;
    type Registers = Packed;
    type BreakpointKind = usize;
    type RegId = Number;
}

/// A breakpoint: those of `break`, and those of `hbreak`.
#[derive(Clone, Copy, Debug, Default)]
struct Breakpoint {
    address: u64,
    soft: bool,
    hard: bool,
}

/// A guest, as gdb sees it.
pub(crate) struct Target<'g> {
    guest: &'g dyn DebugGuest,
    pub(crate) settings: Settings,
    /// The width of the registers in packets: that of the last description that gdb has read.
    width: Cell<Width>,
    /// At most one for each address.
    breakpoints: Vec<Breakpoint>,
    watchpoints: Vec<DebugPoint>,
    /// The actions of the next plan. `None` for a vCPU that gdb has not named.
    actions: Vec<Option<Action>>,
    /// vCPUs that gdb has not named stay.
    locked: bool,
    /// The last stop.
    stopped: (usize, Why),
    /// Accesses to the addresses of devices are allowed.
    pub(crate) mmio: bool,
}

type Answer<T> = TargetResult<T, Target<'static>>;

impl<'g> Target<'g> {
    pub(crate) fn new(guest: &'g dyn DebugGuest, settings: Settings) -> Self {
        let stopped = match guest.status() {
            GuestStatus::Stopped(vcpu, why) => (vcpu, why),
            GuestStatus::Running | GuestStatus::Ended => (0, Why::Asked),
        };
        let target = Self {
            guest,
            settings,
            width: Cell::new(Width::Bits64),
            breakpoints: Vec::new(),
            watchpoints: Vec::new(),
            actions: Vec::new(),
            locked: false,
            stopped,
            mmio: false,
        };
        target.width.set(target.wanted_width());
        target
    }

    pub(crate) fn guest(&self) -> &'g dyn DebugGuest {
        self.guest
    }

    /// The index of the vCPU of the last stop, and the reason.
    pub(crate) fn stopped(&self) -> (usize, Why) {
        self.stopped
    }

    pub(crate) fn set_stopped(&mut self, vcpu: usize, why: Why) {
        self.stopped = (vcpu, why);
    }

    /// The thread of a vCPU.
    pub(crate) fn tid(vcpu: usize) -> Tid {
        NonZeroUsize::MIN.saturating_add(vcpu)
    }

    /// The index of a thread's vCPU.
    fn vcpu(tid: Tid) -> usize {
        tid.get().saturating_sub(1)
    }

    /// The width that the description shows from now on.
    fn wanted_width(&self) -> Width {
        let now = || self.with(self.stopped.0, |vcpu| vcpu.sregs().ok().map(|sregs| Width::of(&sregs)));
        self.settings.width.or_else(|| now().flatten()).unwrap_or(Width::Bits64)
    }

    /// Calls `body` with a vCPU. `None` if there is no such vCPU.
    pub(crate) fn with<R>(&self, vcpu: usize, body: impl FnOnce(&mut dyn VcpuState) -> R) -> Option<R> {
        let (mut body, mut result) = (Some(body), None);
        self.guest.with_vcpu(vcpu, &mut |vcpu| result = body.take().map(|body| body(vcpu)));
        result
    }

    /// The registers of a thread.
    fn view(&self, tid: Tid) -> Answer<View> {
        self.with(Self::vcpu(tid), View::of).flatten().ok_or(TargetError::NonFatal)
    }

    /// Changes the registers of a thread.
    fn change(&self, tid: Tid, change: impl FnOnce(&mut View) -> bool) -> Answer<()> {
        let before = self.view(tid)?;
        let mut view = before;
        let is_written =
            change(&mut view) && self.with(Self::vcpu(tid), |vcpu| view.write(&before, vcpu)) == Some(true);
        if is_written { Ok(()) } else { Err(TargetError::NonFatal) }
    }

    /// True if the breakpoint at which a vCPU is comes from `hbreak` alone.
    pub(crate) fn is_hardware_breakpoint(&self, vcpu: usize) -> bool {
        let rip = self.with(vcpu, |vcpu| Some(linear_rip(&vcpu.regs().ok()?, &vcpu.sregs().ok()?))).flatten();
        self.breakpoints.iter().any(|found| Some(found.address) == rip && found.hard && !found.soft)
    }

    fn add_breakpoint(&mut self, address: u64, set: impl FnOnce(&mut Breakpoint)) -> bool {
        let is_full = self.breakpoints.len() >= MAX_BREAKPOINTS;
        match self.breakpoints.iter_mut().find(|found| found.address == address) {
            Some(found) => set(found),
            None if is_full => {
                log::warn!("gdb: there are {MAX_BREAKPOINTS} breakpoints, and no more are possible");
                return false;
            }
            None => {
                let mut new = Breakpoint { address, ..Breakpoint::default() };
                set(&mut new);
                self.breakpoints.push(new);
            }
        }
        true
    }

    fn remove_breakpoint(&mut self, address: u64, clear: impl FnOnce(&mut Breakpoint)) -> bool {
        let Some(found) = self.breakpoints.iter_mut().find(|found| found.address == address) else {
            return false;
        };
        clear(found);
        self.breakpoints.retain(|found| found.soft || found.hard);
        true
    }

    /// True if the guest's processor, or a comparison after each instruction, can notice this access.
    fn can_watch(&self, point: &DebugPoint) -> bool {
        let facilities = self.settings.facilities;
        let watched = self.watchpoints.iter().map(|point| point.len).sum::<u64>();
        self.watchpoints.len() < MAX_WATCHPOINTS
            && point.len > 0
            && watched.saturating_add(point.len) <= MAX_WATCHED
            && (facilities.unlimited
                || point.kind == PointKind::Write
                || point.kind == PointKind::Access && facilities.watchpoints)
    }

    /// Sets the action of a thread. A thread that does not exist has none.
    fn act(&mut self, tid: Tid, action: Action) {
        if let Some(place) = self.actions.get_mut(Self::vcpu(tid)) {
            *place = Some(action);
        }
    }
}

impl<'g> gdbstub::target::Target for Target<'g> {
    type Arch = X86;
    type Error = &'static str;

    fn base_ops(&mut self) -> BaseOps<'_, X86, &'static str> {
        BaseOps::MultiThread(self)
    }
    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }
    fn use_lldb_register_info(&self) -> bool {
        false
    }
    fn use_fork_stop_reason(&self) -> bool {
        false
    }
    fn use_vfork_stop_reason(&self) -> bool {
        false
    }
    fn use_vforkdone_stop_reason(&self) -> bool {
        false
    }
    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Target<'_> {
    fn read_registers(&mut self, regs: &mut Packed, tid: Tid) -> TargetResult<(), Self> {
        regs.0 = registers::packed(&self.view(tid)?, self.width.get());
        Ok(())
    }

    fn write_registers(&mut self, regs: &Packed, tid: Tid) -> TargetResult<(), Self> {
        let bytes: Vec<u8> = regs.0.iter().map(|byte| byte.unwrap_or_default()).collect();
        let width = self.width.get();
        self.change(tid, |view| registers::unpack(view, width, &bytes))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let probe = self.with(Self::vcpu(tid), |vcpu| vcpu.probe().ok()).flatten();
        let probe = probe.ok_or(TargetError::NonFatal)?;
        match probe.read_prefix(start, data) {
            0 if self.read_device(&probe, start, data) => Ok(data.len()),
            0 if !data.is_empty() => Err(TargetError::NonFatal),
            len => Ok(len),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let probe = self.with(Self::vcpu(tid), |vcpu| vcpu.probe().ok()).flatten();
        let write = |probe: Probe| probe.write_range(start, data) || self.write_device(&probe, start, data);
        match probe.is_some_and(write) {
            true => Ok(()),
            false => Err(TargetError::NonFatal),
        }
    }

    /// The thread that has stopped comes first: gdb begins with it.
    fn list_active_threads(&mut self, thread_is_active: &mut dyn FnMut(Tid)) -> Result<(), &'static str> {
        let first = self.stopped.0;
        let others = (0..self.guest.vcpus()).filter(|vcpu| *vcpu != first);
        [first].into_iter().chain(others).map(Self::tid).for_each(thread_is_active);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for Target<'_> {
    fn read_register(&mut self, tid: Tid, id: Number, buf: &mut [u8]) -> TargetResult<usize, Self> {
        let register = registers::all(self.width.get()).nth(id.0).ok_or(TargetError::NonFatal)?;
        let value = register.get(&self.view(tid)?).ok_or(TargetError::NonFatal)?;
        let bytes = value.to_le_bytes();
        let bytes = bytes.get(..register.len()).ok_or(TargetError::NonFatal)?;
        buf.get_mut(..bytes.len()).ok_or(TargetError::NonFatal)?.copy_from_slice(bytes);
        Ok(bytes.len())
    }

    fn write_register(&mut self, tid: Tid, id: Number, value: &[u8]) -> TargetResult<(), Self> {
        let register = registers::all(self.width.get()).nth(id.0).ok_or(TargetError::NonFatal)?;
        self.change(tid, |view| {
            register.set(view, registers::number(value));
            true
        })
    }
}

impl ThreadExtraInfo for Target<'_> {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, &'static str> {
        let text = monitor::vcpu_line(self, Self::vcpu(tid));
        Ok(text.bytes().zip(buf).map(|(byte, place)| *place = byte).count())
    }
}

impl TargetDescriptionXmlOverride for Target<'_> {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buf: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(TargetError::NonFatal);
        }
        // gdb reads the description anew: it may be another one since the guest has changed its mode.
        if offset == 0 {
            self.width.set(self.wanted_width());
        }
        let xml = description::xml(self.width.get());
        let rest =
            usize::try_from(offset).ok().and_then(|offset| xml.as_bytes().get(offset..)).unwrap_or_default();
        let len = rest.len().min(length).min(buf.len());
        if let (Some(from), Some(to)) = (rest.get(..len), buf.get_mut(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }
}

impl MonitorCmd for Target<'_> {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), &'static str> {
        out.write_raw(monitor::run(self, &String::from_utf8_lossy(command)).as_bytes());
        Ok(())
    }
}
