//! One connection: packets in, answers out, stops reported.

use crate::packets::{Next, PACKET, Packets};
use crate::registers::Width;
use crate::server::Stream;
use crate::target::Target;
use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError, MultiThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use vmm::boot::ElfCode;
use vmm::exit::{Exit, PointKind};
use vmm::machine::debug::{DebugGuest, Facilities, GuestStatus, Why};

/// The settings of all sessions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) facilities: Facilities,
    pub(crate) info: String,
    pub(crate) width: Option<Width>,
    pub(crate) file: Option<Arc<ElfCode>>,
}

/// The answers, which are sent packet by packet.
#[derive(Debug)]
struct Answers {
    stream: Stream,
    bytes: Vec<u8>,
}

impl Connection for Answers {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> Result<(), io::Error> {
        self.bytes.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), io::Error> {
        let sent = self.stream.write_all(&self.bytes);
        self.bytes.clear();
        sent
    }
}

type Machine<'g> = GdbStubStateMachine<'static, Target<'g>, Answers>;
type Failed = GdbStubError<&'static str, io::Error>;

/// One connection.
pub(crate) struct Session<'g> {
    id: u64,
    /// `None` after the end.
    machine: Option<Machine<'g>>,
    /// A second handle of the connection, for its end.
    stream: Stream,
    target: Target<'g>,
    kill: bool,
    packets: Packets,
}

impl<'g> Session<'g> {
    /// Begins a session. `None` if the host has no descriptor left.
    pub(crate) fn new(
        stream: Stream,
        id: u64,
        guest: &'g dyn DebugGuest,
        settings: Settings,
    ) -> Option<Self> {
        let answers = Answers { stream: stream.try_clone().ok()?, bytes: Vec::new() };
        let mut target = Target::new(guest, settings);
        let stub = GdbStub::builder(answers).packet_buffer_size(PACKET).build().ok()?;
        let machine = stub.run_state_machine(&mut target).ok()?;
        Some(Self { id, machine: Some(machine), stream, target, kill: false, packets: Packets::default() })
    }

    /// The number of the connection.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// True if the session has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.machine.is_none()
    }

    /// True if gdb waits for news of the guest.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.machine, Some(Machine::Running(_)))
    }

    /// The debugger has gone.
    pub(crate) fn close(&mut self) {
        self.machine = None;
    }

    /// The connection, and true if the debugger has killed the guest.
    pub(crate) fn end(self) -> (Stream, bool) {
        (self.stream, self.kill)
    }

    /// Handles what the debugger has sent.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match self.packets.take(*byte) {
                Next::Nothing => {}
                Next::Handle(bytes) => bytes.into_iter().for_each(|byte| self.handle(byte)),
                Next::Repeat => {
                    log::debug!("gdb: a packet is damaged or too long, and asked for again");
                    if self.stream.write_all(b"-").is_err() {
                        self.machine = None;
                    }
                }
                Next::End(why) => {
                    log::warn!("gdb: the session ends: {why}");
                    self.machine = None;
                }
            }
            if self.machine.is_none() {
                return;
            }
        }
    }

    /// Handles a byte of a packet, or one with a meaning of its own.
    fn handle(&mut self, byte: u8) {
        let Some(machine) = self.machine.take() else { return };
        let target = &mut self.target;
        // The bytes may be anything, and the library is not ours.
        let next = catch_unwind(AssertUnwindSafe(|| pump(machine, target, byte)));
        match next {
            Ok(Ok(machine)) => self.set(machine),
            Ok(Err(error)) => log::warn!("gdb: the session ends: {error}"),
            Err(_) => log::warn!("gdb: the session ends: a packet cannot be understood"),
        }
    }

    fn set(&mut self, machine: Machine<'g>) {
        match machine {
            Machine::Disconnected(ended) => self.kill = ended.get_reason() == DisconnectReason::Kill,
            machine => self.machine = Some(machine),
        }
    }

    /// Tells the debugger that the guest has stopped, if it waits for that.
    pub(crate) fn guest_is(&mut self, status: GuestStatus) {
        let stop = match status {
            GuestStatus::Stopped(vcpu, why) => self.target.stop_reason(vcpu, why),
            GuestStatus::Running | GuestStatus::Ended => return,
        };
        match self.machine.take() {
            Some(Machine::Running(running)) => match running.report_stop(&mut self.target, stop) {
                Ok(machine) => self.set(machine),
                Err(error) => log::warn!("gdb: the session ends: {error}"),
            },
            machine => self.machine = machine,
        }
    }
}

/// Handles one byte.
fn pump<'g>(machine: Machine<'g>, target: &mut Target<'g>, byte: u8) -> Result<Machine<'g>, Failed> {
    let next = match machine {
        Machine::Idle(idle) => idle.incoming_data(target, byte)?,
        Machine::Running(running) => running.incoming_data(target, byte)?,
        other => other,
    };
    match next {
        Machine::CtrlCInterrupt(interrupt) => {
            // The stop is reported when all vCPUs have left the guest.
            target.guest().stop();
            interrupt.interrupt_handled(target, None::<MultiThreadStopReason<u64>>)
        }
        next => Ok(next),
    }
}

impl Target<'_> {
    /// The reason for a stop, as gdb knows it.
    fn stop_reason(&mut self, vcpu: usize, why: Why) -> MultiThreadStopReason<u64> {
        self.set_stopped(vcpu, why);
        let tid = Self::tid(vcpu);
        let signal = |signal| MultiThreadStopReason::SignalWithThread { tid, signal };
        match why {
            Why::Start | Why::Stepped | Why::Software => signal(Signal::SIGTRAP),
            Why::Asked => signal(Signal::SIGINT),
            Why::Breakpoint if self.is_hardware_breakpoint(vcpu) => MultiThreadStopReason::HwBreak(tid),
            Why::Breakpoint => MultiThreadStopReason::SwBreak(tid),
            Why::Watchpoint(addr, kind) => {
                let kind = match kind {
                    PointKind::Read => WatchKind::Read,
                    PointKind::Access => WatchKind::ReadWrite,
                    PointKind::Write | PointKind::Execute => WatchKind::Write,
                };
                MultiThreadStopReason::Watch { tid, kind, addr }
            }
            Why::Died(Exit::EmulationFailure(_)) => signal(Signal::SIGILL),
            Why::Died(Exit::Shutdown) => signal(Signal::SIGSEGV),
            Why::Died(_) => signal(Signal::SIGABRT),
        }
    }
}
