//! The fixed power-management registers of ACPI: PM1 status, enable and control, and the PM timer, which counts at
//! 3.579545 MHz. No event is ever signalled, and ACPI mode is always on.
//!
//! ACPI specification 6.5, section 4.8.3.1 "PM1 Event Grouping", 4.8.3.2 "PM1 Control Grouping", 4.8.3.3 "Power
//! Management Timer".

use crate::device::bus::{Device, DeviceName};
use crate::device::pc::power;
use crate::exit::Stop;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// The first port: PM1 status.
pub const PORT: u16 = 0x610;
/// The number of ports.
pub const PORTS: u16 = 12;
/// The port of the PM1 event registers: status, then enable, two bytes each.
pub const EVENT: u16 = PORT;
/// The port of the PM1 control register.
pub const CONTROL: u16 = PORT + 4;
/// The port of the PM timer.
pub const TIMER: u16 = PORT + 8;
/// The interrupt of ACPI events (SCI). Nothing raises it.
pub const SCI: u8 = 9;
/// The frequency of the timer, in Hz.
const FREQUENCY: u128 = 3_579_545;

/// The number of ports, as an index.
const LEN: usize = PORTS as usize;
/// PM1 status: the system has woken up.
const WAKE: u16 = 1 << 15;
/// PM1 enable: the timer, the global lock, the two buttons, the clock.
const ENABLES: u16 = 1 << 0 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10;
/// PM1 control: ACPI mode is on.
const ACPI_MODE: u16 = 1 << 0;
/// PM1 control: the bits that read back as written: BM_RLD and the sleep type.
const KEPT: u16 = 1 << 1 | 7 << SLEEP_TYPE;
/// PM1 control: the first bit of the sleep type.
const SLEEP_TYPE: u32 = 10;
/// PM1 control: enters the sleep state. Reads as 0.
const SLEEP_ENABLE: u16 = 1 << 13;

/// The registers.
#[derive(Debug)]
pub struct PmTimer {
    /// The time at which the timer was 0.
    start: Instant,
    status: u16,
    enable: u16,
    control: u16,
}

impl Default for PmTimer {
    fn default() -> Self {
        Self { start: Instant::now(), status: 0, enable: 0, control: 0 }
    }
}

/// The value of the timer after this time. It counts all 32 bits.
fn ticks(elapsed: Duration) -> u32 {
    let ticks = elapsed.as_nanos().wrapping_mul(FREQUENCY) / 1_000_000_000;
    let [a, b, c, d, ..] = ticks.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

impl PmTimer {
    /// The bytes of all registers.
    fn bytes(&self) -> [u8; LEN] {
        let ([a, b], [c, d]) = (self.status.to_le_bytes(), self.enable.to_le_bytes());
        let [e, f] = (self.control | ACPI_MODE).to_le_bytes();
        let [g, h, i, j] = ticks(self.start.elapsed()).to_le_bytes();
        [a, b, c, d, e, f, 0, 0, g, h, i, j]
    }

    /// Enters the sleep state of the control register. The only one is soft-off; any other wakes up at once.
    fn sleep(&mut self) -> ControlFlow<Stop> {
        if self.control >> SLEEP_TYPE & 7 == u16::from(power::SOFT_OFF) {
            return ControlFlow::Break(Stop::PoweredOff);
        }
        self.status |= WAKE;
        ControlFlow::Continue(())
    }
}

impl Device for PmTimer {
    fn read(&mut self, offset: u64, size: u8) -> ControlFlow<Stop, u64> {
        let bytes = self.bytes();
        let byte = |number: u8| {
            let at = usize::try_from(offset.saturating_add(number.into())).unwrap_or(usize::MAX);
            u64::from(bytes.get(at).copied().unwrap_or(0xff))
        };
        ControlFlow::Continue((0..size.min(8)).rev().fold(0, |value, number| value << 8 | byte(number)))
    }

    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        let mut sleeps = false;
        for (number, byte) in (0u64..).zip(data.to_le_bytes()).take(size.into()) {
            let at = offset.saturating_add(number);
            // The byte within its register, and the part of the mask that it covers.
            let place = |byte: u8, mask: u16| match at & 1 {
                0 => (u16::from(byte), mask & 0x00ff),
                _ => (u16::from(byte) << 8, mask & 0xff00),
            };
            match at {
                // Ones clear status bits.
                0 | 1 => self.status &= !place(byte, u16::MAX).0,
                2 | 3 => {
                    let (value, mask) = place(byte, ENABLES);
                    self.enable = self.enable & !mask | value & mask;
                }
                4 | 5 => {
                    let (value, mask) = place(byte, KEPT);
                    self.control = self.control & !mask | value & mask;
                    sleeps |= value & SLEEP_ENABLE != 0;
                }
                _ => {}
            }
        }
        if sleeps { self.sleep() } else { ControlFlow::Continue(()) }
    }

    fn name(&self, offset: u64) -> DeviceName {
        DeviceName::register(
            "ACPI",
            match offset {
                0 | 1 => "PM1 status",
                2 | 3 => "PM1 enable",
                4..8 => "PM1 control",
                _ => "PM timer",
            },
        )
    }

    fn reset(&mut self) {
        (self.status, self.enable, self.control) = (0, 0, 0);
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn read(device: &mut PmTimer, offset: u64, size: u8) -> u64 {
        device.read(offset, size).continue_value().unwrap()
    }

    #[test]
    fn the_timer_counts_at_its_frequency_and_wraps() {
        assert_eq!(ticks(Duration::ZERO), 0);
        assert_eq!(ticks(Duration::from_secs(1)), 3_579_545);
        // 2^32 ticks are 1,199.86 s.
        assert_eq!(u64::from(ticks(Duration::from_secs(1200))), 1200 * 3_579_545 - (1 << 32));
        ticks(Duration::MAX);
        let mut device = PmTimer::default();
        let first = read(&mut device, 8, 4);
        std::thread::sleep(Duration::from_millis(2));
        assert!(read(&mut device, 8, 4) >= first + 7_000);
        assert!(device.write(8, 4, 0).is_continue() && read(&mut device, 8, 4) > first, "it cannot be set");
    }

    #[test]
    fn acpi_mode_is_on_and_enable_bits_read_back() {
        let mut device = PmTimer::default();
        assert_eq!((read(&mut device, 0, 4), read(&mut device, 4, 2)), (0, 1));
        assert!(device.write(2, 2, 0xffff).is_continue());
        assert_eq!(read(&mut device, 0, 4), u64::from(ENABLES) << 16);
        assert!(device.write(3, 1, 0).is_continue());
        assert_eq!(read(&mut device, 2, 2), 0x21);
        assert!(device.write(4, 2, 0x1fff & !1).is_continue());
        assert_eq!(read(&mut device, 4, 2), 0x1c03, "SCI_EN stays, GBL_RLS reads as 0");
        device.reset();
        assert_eq!((read(&mut device, 0, 4), read(&mut device, 4, 2)), (0, 1));
    }

    #[test]
    fn soft_off_ends_the_run_at_every_width_and_another_sleep_state_wakes_up() {
        let off = u64::from(power::SOFT_OFF) << SLEEP_TYPE | u64::from(SLEEP_ENABLE);
        for (offset, size, data) in
            [(4, 2, off), (4, 4, off), (5, 1, off >> 8), (2, 4, off << 16), (3, 4, off << 8)]
        {
            let stop = PmTimer::default().write(offset, size, data);
            assert!(matches!(stop, ControlFlow::Break(Stop::PoweredOff)), "{size} at {offset}");
        }
        // The type can be written before the bit.
        let mut device = PmTimer::default();
        assert!(device.write(4, 2, off & !u64::from(SLEEP_ENABLE)).is_continue());
        for kind in (0..8).filter(|kind| *kind != u64::from(power::SOFT_OFF)) {
            let mut device = PmTimer::default();
            assert!(device.write(4, 2, kind << SLEEP_TYPE | u64::from(SLEEP_ENABLE)).is_continue(), "{kind}");
            assert_eq!((read(&mut device, 0, 2), read(&mut device, 4, 2)), (0x8000, kind << SLEEP_TYPE | 1));
            assert!(device.write(0, 2, 0x8000).is_continue());
            assert_eq!(read(&mut device, 0, 2), 0);
        }
    }

    #[test]
    fn accesses_of_all_widths_and_past_the_end_are_bounded() {
        let mut device = PmTimer::default();
        for offset in (0..16).chain([u64::MAX, u64::MAX - 3]) {
            for size in [1, 2, 4, 8, 255] {
                assert!(device.read(offset, size).is_continue());
                assert!(device.write(offset, size, 0xc3c3_c3c3_c3c3_c3c3).is_continue());
                device.name(offset);
            }
        }
        assert_eq!(read(&mut device, 11, 4) >> 8, 0xff_ffff);
    }
}
