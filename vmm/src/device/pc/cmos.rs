//! The real-time clock and the battery-backed memory of a PC, an MC146818 on ports 0x70 and 0x71: the time, an alarm, and
//! a periodic interrupt. The memory tells the size of RAM, as a BIOS leaves it.
//!
//! The time is that of the host, in UTC, until the guest sets another one. Everything is computed from the host's clock
//! when the guest reads it; a thread ([`timer`]) is needed for interrupts only.
//!
//! Motorola MC146818 data sheet, "Address Map" and "Registers". Ralf Brown's Interrupt List, CMOS.LST, for the memory.
//! [`Rtc`](super::rtc::Rtc) is the same clock with the time registers only, for Linux.

mod time;
pub(crate) mod timer;

use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use crate::host::{EventFd, signal};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::{Format, Time};

/// The index port. The data port follows.
pub const PORT: u16 = 0x70;
/// The number of ports.
pub const PORTS: u16 = 2;
/// The clock's interrupt: the number of the input of the I/O interrupt controller.
pub const IRQ: u32 = 8;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// Register A: an update is in progress, for so long before each second.
const UPDATING: u8 = 1 << 7;
const UPDATE_TIME: Duration = Duration::from_micros(244 + 1984);
/// Register B: the clock is stopped, so that it can be set.
const SET: u8 = 1 << 7;
/// Registers B and C: a periodic event, the alarm, the end of an update. Bit 7 of register C: one that B enables.
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATED: u8 = 1 << 4;
const EVENTS: u8 = PERIODIC | ALARM | UPDATED;
const INTERRUPT: u8 = 1 << 7;
/// Register D: the time is valid.
const VALID: u8 = 1 << 7;
/// A value of an alarm register that any time matches has these bits.
const ANY: u8 = 0xc0;
/// The longest time that is searched for an alarm: the alarm has no date.
const DAY: u64 = 86_400;

/// The clock and its memory.
#[derive(Debug)]
pub(crate) struct Cmos {
    index: u8,
    /// All registers that are not computed: alarm, A, B, and the memory.
    memory: [u8; 128],
    /// The memory after power-on.
    initial: [u8; 128],
    /// The guest's time minus the host's, in seconds.
    offset: i64,
    /// The time while the clock is stopped.
    stopped: Option<Time>,
    /// The events since the last read of register C.
    events: u8,
    /// The host's time up to which events are known, since 1970.
    known: Duration,
    /// Set while an interrupt waits for a read of register C.
    is_raised: bool,
    /// Raises the interrupt.
    line: Option<EventFd>,
    /// Tells the timer that other events interrupt now.
    wake: Option<Arc<EventFd>>,
}

impl Cmos {
    /// Creates the clock of a machine with `ram` bytes of RAM from 0 and `disks` hard disks. It raises interrupts through `line`, and then needs a
    /// [`timer`], which `wake` wakes.
    pub(crate) fn new(ram: u64, disks: u8, line: Option<EventFd>, wake: Option<Arc<EventFd>>) -> Self {
        let initial = initial_memory(ram, disks);
        Self {
            index: 0,
            memory: initial,
            initial,
            offset: 0,
            stopped: None,
            events: 0,
            known: now(),
            is_raised: false,
            line,
            wake,
        }
    }

    fn register(&self, index: u8) -> u8 {
        self.memory.get(usize::from(index)).copied().unwrap_or(0)
    }

    fn set_register(&mut self, index: u8, byte: u8) {
        if let Some(register) = self.memory.get_mut(usize::from(index)) {
            *register = byte;
        }
    }

    fn format(&self) -> Format {
        Format::of(self.register(REGISTER_B))
    }

    /// The guest's time.
    fn time(&self, now: Duration) -> Time {
        self.stopped.unwrap_or_else(|| Time::at(now.as_secs().saturating_add_signed(self.offset)))
    }

    fn read_at(&mut self, now: Duration) -> u8 {
        match self.index {
            REGISTER_A => {
                let second = Duration::from_secs(1);
                let updates = self.stopped.is_none()
                    && Duration::from_nanos(now.subsec_nanos().into()).saturating_add(UPDATE_TIME) >= second;
                self.register(REGISTER_A) & !UPDATING | if updates { UPDATING } else { 0 }
            }
            REGISTER_C => {
                self.find_events(now);
                let events = std::mem::take(&mut self.events);
                let enabled = self.register(REGISTER_B) & EVENTS;
                self.is_raised = false;
                if enabled != 0 {
                    self.wake_timer();
                }
                events | if events & enabled != 0 { INTERRUPT } else { 0 }
            }
            REGISTER_D => VALID,
            index => {
                let time = self.time(now).register(index, self.format());
                time.unwrap_or_else(|| self.register(index))
            }
        }
    }

    fn write_at(&mut self, byte: u8, now: Duration) {
        self.find_events(now);
        match self.index {
            REGISTER_A => self.set_register(REGISTER_A, byte & !UPDATING),
            REGISTER_B => self.write_control(byte, now),
            REGISTER_C | REGISTER_D => {}
            index => {
                let mut time = self.time(now);
                if !time.set_register(index, byte, self.format()) {
                    self.set_register(index, byte);
                } else if self.stopped.is_some() {
                    self.stopped = Some(time);
                } else {
                    self.set_time(time, now);
                }
            }
        }
        self.wake_timer();
    }

    fn write_control(&mut self, byte: u8, now: Duration) {
        // A stopped clock has no updates.
        let byte = if byte & SET != 0 { byte & !UPDATED } else { byte };
        match (byte & SET != 0, self.stopped) {
            (true, None) => self.stopped = Some(self.time(now)),
            (false, Some(time)) => {
                self.stopped = None;
                self.set_time(time, now);
            }
            _ => {}
        }
        self.set_register(REGISTER_B, byte);
    }

    fn set_time(&mut self, time: Time, now: Duration) {
        let guest = i64::try_from(time.seconds()).unwrap_or(i64::MAX);
        self.offset = guest.saturating_sub(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }

    /// The frequency of periodic events, in hertz. `None` if there are none.
    fn frequency(&self) -> Option<u64> {
        match self.register(REGISTER_A) & 0x0f {
            0 => None,
            rate @ 1..=2 => Some(32_768 >> rate.saturating_add(6)),
            rate => Some(32_768 >> rate.saturating_sub(1)),
        }
    }

    /// Finds the events until `now`.
    fn find_events(&mut self, now: Duration) {
        // A clock of the host that goes back only delays the next event.
        let before = std::mem::replace(&mut self.known, now);
        let Some(elapsed) = now.checked_sub(before).filter(|elapsed| !elapsed.is_zero()) else { return };
        if let Some(frequency) = self.frequency() {
            let ticks = |time: Duration| time.as_nanos().saturating_mul(frequency.into()) / 1_000_000_000;
            self.events |= if ticks(now) != ticks(before) { PERIODIC } else { 0 };
        }
        if self.stopped.is_none() && now.as_secs() != before.as_secs() {
            self.events |= UPDATED;
            let first = before.as_secs().max(now.as_secs().saturating_sub(elapsed.as_secs().min(DAY)));
            let mut seconds = first..=now.as_secs();
            self.events |= if seconds.any(|second| self.is_alarm(second)) { ALARM } else { 0 };
        }
    }

    /// True if the alarm matches the guest's time at this time of the host.
    fn is_alarm(&self, second: u64) -> bool {
        let time = self.time(Duration::from_secs(second));
        // Each register of the alarm follows that of the time.
        [0, 2, 4].into_iter().all(|index: u8| {
            let alarm = self.register(index.saturating_add(1));
            alarm & ANY == ANY || time.register(index, self.format()) == Some(alarm)
        })
    }

    /// Raises the interrupt if an event is due. Returns the time until the next event that interrupts; `None` if there is
    /// none before the guest does something.
    fn service(&mut self, now: Duration) -> Option<Duration> {
        self.find_events(now);
        let enabled = self.register(REGISTER_B) & EVENTS;
        if self.events & enabled != 0 && !self.is_raised {
            self.is_raised = true;
            self.line.iter().for_each(signal);
        }
        // The line stays up until the guest reads register C.
        if self.is_raised || enabled == 0 {
            return None;
        }
        let nanos = u64::from(now.subsec_nanos());
        let second = Duration::from_nanos(1_000_000_000u64.saturating_sub(nanos));
        let next = self.frequency().filter(|_| enabled & PERIODIC != 0).map(|frequency| {
            let ticks = nanos.saturating_mul(frequency) / 1_000_000_000;
            let next = ticks.saturating_add(1).saturating_mul(1_000_000_000).checked_div(frequency);
            Duration::from_nanos(next.unwrap_or(0).saturating_sub(nanos).saturating_add(1))
        });
        let by_second = (enabled & (ALARM | UPDATED) != 0 && self.stopped.is_none()).then_some(second);
        next.into_iter().chain(by_second).min()
    }

    fn wake_timer(&self) {
        self.wake.iter().for_each(|wake| signal(wake));
    }
}

/// The host's time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The memory as a BIOS leaves it.
fn initial_memory(ram: u64, disks: u8) -> [u8; 128] {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    let mut memory = [0; 128];
    // A size in units, at most 0xFFFF.
    let units =
        |bytes: u64, unit: u64| u16::try_from(bytes.checked_div(unit).unwrap_or(0)).unwrap_or(u16::MAX);
    let extended = units(ram.saturating_sub(MIB), KIB);
    let words = [
        (0x15, 640),
        (0x17, extended),
        (0x30, extended),
        (0x34, units(ram.saturating_sub(16 * MIB), 64 * KIB)),
    ];
    let words = words.into_iter().flat_map(|(index, word): (usize, u16)| {
        let [low, high] = word.to_le_bytes();
        [(index, low), (index.saturating_add(1), high)]
    });
    // The types of the first two disks: 47, which has a table of its own.
    let (kinds, first, second) = match disks {
        0 => (0, 0, 0),
        1 => (0xf0, 47, 0),
        _ => (0xff, 47, 47),
    };
    // Equipment: a coprocessor, and a screen with a BIOS of its own. The boot order: the disk.
    let bytes = [
        (usize::from(REGISTER_A), 0x26),
        (usize::from(REGISTER_B), 0x02),
        (0x12, kinds),
        (0x19, first),
        (0x1a, second),
        (0x14, 0x02),
        (0x3d, 0x02),
    ];
    for (index, byte) in words.chain(bytes) {
        if let Some(register) = memory.get_mut(index) {
            *register = byte;
        }
    }
    // The checksum of the configuration, high byte first.
    let configuration = memory.get(0x10..0x2e).unwrap_or_default();
    let sum = configuration.iter().fold(0u16, |sum, byte| sum.wrapping_add((*byte).into()));
    if let Some(checksum) = memory.get_mut(0x2e..0x30) {
        checksum.copy_from_slice(&sum.to_be_bytes());
    }
    memory
}

impl Device for Cmos {
    fn read(&mut self, offset: u64, _: u8) -> ControlFlow<Stop, u64> {
        // The index cannot be read.
        ControlFlow::Continue(if offset == 1 { self.read_at(now()).into() } else { u64::MAX })
    }

    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        let [byte, next, ..] = data.to_le_bytes();
        match offset {
            0 => {
                // The highest bit masks NMIs; it is not part of the index.
                self.index = byte & 0x7f;
                if size > 1 {
                    self.write_at(next, now());
                }
            }
            1 => self.write_at(byte, now()),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("RTC")
    }

    /// The time that the guest has set stays.
    fn reset(&mut self) {
        (self.index, self.memory, self.stopped) = (0, self.initial, None);
        (self.events, self.known, self.is_raised) = (0, now(), false);
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests;
