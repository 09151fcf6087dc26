//! A small BIOS: answers the software interrupts of boot sectors.
//!
//! Each vector leads to a stub in the guest's memory, which makes one exit ([`stubs`]). This controller then finds the
//! registers of the caller in the vCPU, and its flags in the frame on the stack. A file for each service: the screen
//! (`video.rs`), the disk (`int13.rs`), the machine (`system.rs`), the keyboard, and the time. `docs/abi.md` lists the calls.
//!
//! All addresses and counts come from the guest: every access to memory is checked, and no call takes long.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

mod call;
mod chips;
mod disk;
mod int13;
mod interrupts;
mod keyboard;
mod stubs;
mod system;
#[cfg(test)]
mod tests;
mod time;
mod video;

pub use disk::Drives;
pub use stubs::PORT;
#[cfg(feature = "internals")]
pub use stubs::offset;
pub(crate) use stubs::start_with_set_up;

use crate::console::input::Input;
use crate::console::output::Output;
use crate::controller::{ExitController, VcpuState};
use crate::device::pc::vga::Vga;
use crate::error::Error;
use crate::exit::{Exit, Outcome, Stop};
use crate::host::EventFd;
use crate::memory::{Gpa, GuestMemory};
use crate::shutdown::Deadline;
use crate::x86::modes::CR0_PE;
use crate::x86::registers::Regs;
use call::{CARRY, Call};
use chips::Chips;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use stubs::Place;
use system::Answer;

/// The number of different missing functions that are named.
const NAMED: usize = 32;

/// The parts of a machine that the BIOS uses.
pub struct Parts {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The size of RAM, in bytes.
    pub ram: u64,
    /// The disks.
    pub drives: Drives,
    /// The text of the guest.
    pub output: Output,
    /// Teletype text of the guest is also printed to the output.
    pub prints: bool,
    /// The text for the guest.
    pub input: Input,
    /// The registers of the screen, which show its cursor.
    pub screen: Option<Arc<Mutex<Vga>>>,
    /// The keyboard's interrupt, if the machine has no interrupt controllers and no timer.
    pub keyboard: Option<EventFd>,
    /// Keys come from the keyboard, not from the input.
    pub has_keys: bool,
    /// The wait for a key counts towards the time limit.
    pub times_keys: bool,
}

/// The BIOS of a machine.
#[derive(Debug)]
pub struct Bios {
    memory: GuestMemory,
    ram: u64,
    drives: Drives,
    output: Output,
    prints: bool,
    input: Input,
    screen: Option<Arc<Mutex<Vga>>>,
    /// The characters of the screen that were also printed.
    printed: Vec<u8>,
    /// The machine has interrupt controllers, a timer and a keyboard.
    has_controllers: bool,
    /// The keyboard's interrupt, if it has none.
    keyboard: Option<EventFd>,
    /// A key waits for its interrupt.
    key_waits: bool,
    has_keys: bool,
    times_keys: bool,
    deadline: Deadline,
    /// The time at which the BIOS was created.
    origin: Instant,
    /// The parts of the chips, if the machine has none.
    chips: Chips,
    /// The end of the wait of int 15h, function 86h.
    wait_end: Option<Duration>,
    /// The time since which the guest waits for a key.
    awaits_key: Option<Instant>,
    /// The input has ended.
    input_ended: bool,
    /// The number of queries for a key in a row that found none.
    polls: u32,
    /// The last scan code was the prefix of an extended key.
    extended: bool,
    /// The current line of the output has text.
    line_has_text: bool,
    /// The row of the last string (int 10h, function 13h).
    text_row: Option<u8>,
    /// The count of ticks was set.
    has_time: bool,
    /// The functions that are missing and were named, by vector and AH.
    missing: BTreeSet<(u8, u8)>,
}

/// The memory of the BIOS at the start, for these drives: addresses and bytes.
pub fn memory(drives: &Drives) -> Vec<(Gpa, Vec<u8>)> {
    let (hard_disks, floppies) = drives.counts();
    stubs::memory(hard_disks, floppies)
}

impl Bios {
    /// Creates the BIOS. Its [`memory`] is loaded separately.
    pub fn new(parts: Parts) -> Self {
        let Parts { memory, ram, drives, output, prints, input, screen, keyboard, has_keys, times_keys } =
            parts;
        Self {
            memory,
            ram,
            drives,
            output,
            prints,
            input,
            screen,
            printed: video::no_characters(),
            has_controllers: keyboard.is_none(),
            keyboard,
            key_waits: false,
            has_keys,
            times_keys,
            deadline: Deadline::default(),
            origin: Instant::now(),
            chips: Chips::new(Duration::ZERO),
            wait_end: None,
            awaits_key: None,
            input_ended: false,
            polls: 0,
            extended: false,
            line_has_text: false,
            text_row: None,
            has_time: false,
            missing: BTreeSet::new(),
        }
    }

    /// Begins a run with its deadline.
    pub(crate) fn begin_run(&mut self, deadline: Deadline) {
        self.deadline = deadline;
        if !self.has_time {
            self.set_ticks();
            self.chips = Chips::new(self.now());
            self.has_time = true;
        }
    }

    /// Answers the `out` of a stub. Other accesses to its port are not claimed.
    fn stub(&mut self, vcpu: &mut dyn VcpuState, data: u8) -> Result<Outcome, Error> {
        let (regs, sregs) = (vcpu.regs()?, vcpu.sregs()?);
        let place = stubs::at(sregs.cs.base.wrapping_add(regs.rip));
        let entry = match place.filter(|_| sregs.cr0 & CR0_PE == 0) {
            Some(Place::Vector(entry)) => entry,
            Some(Place::Reset) => return Ok(Outcome::Stop(Stop::Rebooted)),
            None => return Ok(Outcome::Unclaimed),
        };
        let memory = self.memory.clone();
        let mut call = Call { regs, sregs, memory: &memory, pushed: entry.pushed };
        if let Some(fault) = fault(&call, entry.vector) {
            return self.faulted(vcpu, call, fault);
        }
        let answered = self.answer(&mut call, entry.vector, data);
        // CF tells the stub to wait.
        let waits = matches!(answered, ControlFlow::Continue(Answer::Wait));
        let carry = u64::from(CARRY);
        call.regs.rflags = if waits { call.regs.rflags | carry } else { call.regs.rflags & !carry };
        if call.sregs != sregs {
            vcpu.set_sregs(&call.sregs)?;
        }
        vcpu.set_regs(&call.regs)?;
        match answered {
            ControlFlow::Break(stop) => return Ok(Outcome::Stop(stop)),
            ControlFlow::Continue(Answer::Wait) => {}
            ControlFlow::Continue(_) => self.interrupt_after_call(vcpu, entry.vector, call.flags())?,
        }
        Ok(Outcome::Resume)
    }

    /// Answers a call, and names a function that is missing.
    fn answer(&mut self, call: &mut Call<'_>, vector: u8, data: u8) -> ControlFlow<Stop, Answer> {
        let before = call.regs;
        let of = |is_known: bool| if is_known { Answer::Done } else { Answer::Missing };
        let answer = match vector {
            stubs::TIMER => {
                self.tick(call);
                Answer::Done
            }
            0x09 => {
                self.scan_code(call, data);
                Answer::Done
            }
            0x10 => match self.video_call(call) {
                Some(printed) => printed.map_continue(|()| Answer::Done)?,
                None => Answer::Missing,
            },
            0x11 => {
                call.set_ax(call.word(0x410));
                Answer::Done
            }
            0x12 => {
                call.set_ax(call.word(0x413));
                Answer::Done
            }
            0x13 => of(self.disk_call(call)),
            // Serial ports: a time-out.
            0x14 => {
                call.set_ah(0x80);
                if matches!(before.rax >> 8 & 0xff, 1 | 2) { Answer::NoDevice } else { Answer::Done }
            }
            0x15 => self.system_call(call)?,
            0x16 => self.keyboard_call(call)?,
            // Printers: a time-out.
            0x17 => {
                call.set_ah(0x01);
                if before.rax >> 8 & 0xff == 0 { Answer::NoDevice } else { Answer::Done }
            }
            0x18 => return nothing_to_start(),
            0x19 => self.bootstrap(call).map_continue(|()| Answer::Done)?,
            0x1a => of(self.time_call(call)),
            // The debugger's exceptions, the print screen key, overflow, and the hooks of other services.
            0x01..=0x05 | 0x1b | 0x1c | 0x23 | 0x24 => Answer::Done,
            _ => Answer::Missing,
        };
        if vector != 0x16 {
            self.polls = 0;
        }
        match answer {
            Answer::Missing => {
                call.set_flag(CARRY, true);
                self.name_missing(call, vector, &before, "it returns CF");
            }
            Answer::NoDevice => self.name_missing(call, vector, &before, "it returns a time-out"),
            Answer::Done | Answer::Wait => {}
        }
        // A guest may make no other exits, and a slice of the software processor counts a long call as any other.
        self.deadline.must_end().map_or(ControlFlow::Continue(answer), ControlFlow::Break)
    }

    /// Names a function that is missing, with the registers of its first call.
    fn name_missing(&mut self, call: &Call<'_>, vector: u8, before: &Regs, result: &str) {
        let function = (before.rax >> 8) as u8;
        if self.missing.len() >= NAMED || !self.missing.insert((vector, function)) {
            return;
        }
        let (segment, offset) = call.caller();
        let [ax, bx, cx, dx] =
            [before.rax, before.rbx, before.rcx, before.rdx].map(|register| register as u16);
        let firmware = match vector {
            0x20..=0x2f => "there is no DOS here",
            0x14 => "the BIOS has no serial port, which is at port 0x3f8",
            0x17 => "there is no printer",
            _ => "this BIOS lacks it",
        };
        log::warn!(
            "int {vector:#x}, ah={function:#04x}: {firmware} (ax={ax:#x} bx={bx:#x} cx={cx:#x} dx={dx:#x}, before \
             {segment:04x}:{offset:04x}); {result}"
        );
    }

    /// Ends the run at a fault of the guest. The registers are those at the instruction that caused it.
    fn faulted(&self, vcpu: &mut dyn VcpuState, mut call: Call<'_>, fault: Stop) -> Result<Outcome, Error> {
        let ((segment, offset), flags) = (call.caller(), call.flags());
        let pointer = (call.regs.rsp as u16).wrapping_add(6);
        call.regs.rsp = call.regs.rsp & !0xffff | u64::from(pointer);
        call.regs.rip = offset.into();
        call.regs.rflags = flags.into();
        call.sregs.cs.selector = segment;
        call.sregs.cs.base = u64::from(segment) << 4;
        vcpu.set_sregs(&call.sregs)?;
        vcpu.set_regs(&call.regs)?;
        Ok(Outcome::Stop(fault))
    }
}

/// Int 18h: ends the run.
fn nothing_to_start<T>() -> ControlFlow<Stop, T> {
    log::warn!("the guest found nothing to start (int 0x18)");
    ControlFlow::Break(Stop::Exited(1))
}

/// The fault that led to a vector of an exception. `None` for a call by `int`.
fn fault(call: &Call<'_>, vector: u8) -> Option<Stop> {
    if !matches!(vector, 0x00 | 0x05..=0x07 | 0x0c | 0x0d) {
        return None;
    }
    let (segment, offset) = call.caller();
    let before =
        |back: u16| call.byte((u64::from(segment) << 4).wrapping_add(offset.wrapping_sub(back).into()));
    let is_call = before(2) == 0xcd && before(1) == vector;
    (!is_call).then_some(Stop::RealModeFault { vector, cs: segment, ip: offset })
}

impl ExitController for Bios {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        let outcome = match *exit {
            Exit::PioOut { port: PORT, size: 1, data } => self.stub(vcpu, data as u8),
            Exit::PioOut { port, size: 1, data } if !self.has_controllers => {
                let is_claimed = self.chips.write(port, data as u8, self.origin.elapsed());
                Ok(if is_claimed { Outcome::Resume } else { Outcome::Unclaimed })
            }
            Exit::PioIn { port, size: 1 } if !self.has_controllers => {
                let value = self.chips.read(port, self.origin.elapsed());
                Ok(value.map_or(Outcome::Unclaimed, |value| Outcome::Value(value.into())))
            }
            Exit::Hlt if !self.has_controllers => self.halted(vcpu),
            Exit::Interrupted => self.interrupted(vcpu),
            _ => return Outcome::Unclaimed,
        };
        outcome.unwrap_or_else(Outcome::failed)
    }
}
