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
mod keyboard;
mod stubs;
mod system;
#[cfg(test)]
mod tests;
mod time;
mod video;

pub(crate) use disk::Drives;
pub(crate) use stubs::{PORT, start_with_set_up};

use crate::console::input::Input;
use crate::console::output::Output;
use crate::controller::vcpu::Activity;
use crate::controller::{ExitController, VcpuState};
use crate::device::pc::vga::Vga;
use crate::error::Error;
use crate::exit::{Exit, Outcome, Stop};
use crate::host::{self, EventFd};
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
pub(crate) struct Parts {
    pub(crate) memory: GuestMemory,
    /// The size of RAM, in bytes.
    pub(crate) ram: u64,
    pub(crate) drives: Drives,
    pub(crate) output: Output,
    /// Teletype text of the guest is also printed to the output.
    pub(crate) prints: bool,
    pub(crate) input: Input,
    /// The registers of the screen, which show its cursor.
    pub(crate) screen: Option<Arc<Mutex<Vga>>>,
    /// The keyboard's interrupt, if the machine has no interrupt controllers and no timer.
    pub(crate) keyboard: Option<EventFd>,
    /// Keys come from the keyboard, not from the input.
    pub(crate) has_keys: bool,
    /// The wait for a key counts towards the time limit.
    pub(crate) times_keys: bool,
}

/// The BIOS of a machine.
#[derive(Debug)]
pub(crate) struct Bios {
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
    /// The guest has set a graphics mode.
    graphics: bool,
    /// The count of ticks was set.
    has_time: bool,
    /// The functions that are missing and were named, by vector and AH.
    missing: BTreeSet<(u8, u8)>,
}

/// The memory of the BIOS at the start, for these drives: addresses and bytes.
pub(crate) fn memory(drives: &Drives) -> Vec<(Gpa, Vec<u8>)> {
    let (hard_disks, floppies) = drives.counts();
    stubs::memory(hard_disks, floppies)
}

impl Bios {
    /// Creates the BIOS. Its [`memory`] is loaded separately.
    pub(crate) fn new(parts: Parts) -> Self {
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
            graphics: false,
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
        Ok(match answered {
            ControlFlow::Break(stop) => Outcome::Stop(stop),
            ControlFlow::Continue(_) => Outcome::Resume,
        })
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
            0x15 => self.system_call(call)?,
            0x16 => self.keyboard_call(call)?,
            0x18 => {
                log::warn!("the guest found nothing to start (int 0x18)");
                return ControlFlow::Break(Stop::Exited(1));
            }
            0x19 => {
                self.bootstrap(call)?;
                Answer::Done
            }
            0x1a => of(self.time_call(call)),
            // The debugger's exceptions, the print screen key, overflow, and the hooks of other services.
            0x01..=0x05 | 0x1b | 0x1c | 0x23 | 0x24 => Answer::Done,
            _ => Answer::Missing,
        };
        if vector != 0x16 {
            self.polls = 0;
        }
        if answer == Answer::Missing {
            call.set_flag(CARRY, true);
            self.name_missing(call, vector, &before);
        }
        // A guest may make no other exits, and a slice of the software processor counts a long call as any other.
        self.deadline.must_end().map_or(ControlFlow::Continue(answer), ControlFlow::Break)
    }

    /// Names a function that is missing, with the registers of its first call.
    fn name_missing(&mut self, call: &Call<'_>, vector: u8, before: &Regs) {
        let function = (before.rax >> 8) as u8;
        if self.missing.len() >= NAMED || !self.missing.insert((vector, function)) {
            return;
        }
        let (segment, offset) = call.caller();
        let [ax, bx, cx, dx] =
            [before.rax, before.rbx, before.rcx, before.rdx].map(|register| register as u16);
        let firmware = match vector {
            0x20..=0x2f => "there is no DOS here",
            _ => "this BIOS lacks it",
        };
        log::warn!(
            "int {vector:#x}, ah={function:#04x}: {firmware} (ax={ax:#x} bx={bx:#x} cx={cx:#x} dx={dx:#x}, before \
             {segment:04x}:{offset:04x}); it returns CF"
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

    /// Handles a HLT of a machine without interrupt controllers: waits for the next interrupt.
    fn halted(&mut self, vcpu: &mut dyn VcpuState) -> Result<Outcome, Error> {
        if !chips::takes_interrupts(vcpu)? {
            return Ok(Outcome::Unclaimed);
        }
        let linear = vcpu.sregs()?.cs.base.wrapping_add(vcpu.regs()?.rip);
        let is_ours = stubs::contains(linear);
        let is_plain = chips::has_no_handler(vcpu.memory());
        if !is_ours && is_plain && chips::is_idle(vcpu, linear, true) {
            return Ok(Outcome::Unclaimed);
        }
        self.next_interrupt(vcpu)
    }

    /// Waits for the next interrupt, at most until the end of the run.
    fn next_interrupt(&mut self, vcpu: &mut dyn VcpuState) -> Result<Outcome, Error> {
        loop {
            if self.take_key() {
                chips::interrupt(vcpu, stubs::KEYBOARD)?;
                return Ok(Outcome::Resume);
            }
            let left = self.chips.until_tick(self.now());
            match left {
                Some(Duration::ZERO) => {
                    self.chips.take_tick(self.now());
                    chips::interrupt(vcpu, stubs::TIMER)?;
                    return Ok(Outcome::Resume);
                }
                // Nothing can wake the guest.
                None if !self.has_keys && !self.input.has_next() && !self.input.may_wait() => {
                    return Ok(Outcome::Unclaimed);
                }
                _ => {}
            }
            let pause = left.unwrap_or(time::TICK);
            if self.awaits_key.is_some() && self.input.may_wait() {
                if let Err(error) = self.input.fetch(Some(pause)) {
                    return Ok(Outcome::Stop(Stop::InputFailed(Arc::new(error))));
                }
                if self.input.has_next() {
                    return Ok(Outcome::Resume);
                }
            } else if let Some(keyboard) = &self.keyboard {
                let _ = host::wait_any([Some(host::borrow(keyboard))], Some(pause.min(time::TICK)));
            }
            if let Some(stop) = self.deadline.must_end() {
                return Ok(Outcome::Stop(stop));
            }
        }
    }

    /// Ends a run that can only repeat a halt or a jump to itself. Interrupts a guest that runs, if a tick is due and the machine has
    /// no timer.
    fn interrupted(&mut self, vcpu: &mut dyn VcpuState) -> Result<Outcome, Error> {
        let now = self.now();
        let is_due = !self.has_controllers && self.chips.until_tick(now) == Some(Duration::ZERO);
        let sregs = vcpu.sregs()?;
        let linear = sregs.cs.base.wrapping_add(vcpu.regs()?.rip);
        let takes = chips::takes_interrupts(vcpu)?;
        let halted = vcpu.activity() == Activity::Halted;
        let is_real = sregs.cr0 & CR0_PE == 0;
        if is_real && chips::is_idle(vcpu, linear, halted) && (!takes || chips::has_no_handler(vcpu.memory()))
        {
            return Ok(Outcome::Stop(Stop::Halted));
        }
        if is_due && takes {
            self.chips.take_tick(now);
            chips::interrupt(vcpu, stubs::TIMER)?;
        } else if takes && self.take_key() {
            chips::interrupt(vcpu, stubs::KEYBOARD)?;
        }
        Ok(Outcome::Unclaimed)
    }

    /// True if a key interrupts the guest now. A byte of the keyboard interrupts once.
    fn take_key(&mut self) -> bool {
        self.key_waits |= self.keyboard.as_ref().is_some_and(|line| line.read().is_ok());
        let takes = self.key_waits && self.chips.takes_keys();
        self.key_waits &= !takes;
        takes
    }
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
