//! The real-time clock of a PC, an MC146818 on ports 0x70 and 0x71, with the time registers only. The time is that of
//! the host, in UTC and BCD, and an update is never in progress. Alarms and interrupts are missing, and writes to
//! registers are ignored.
//!
//! Motorola MC146818 data sheet, "Address Map". The ACPI tables report the register of the century (0x32).

use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use std::ops::ControlFlow;
use std::time::{SystemTime, UNIX_EPOCH};

/// The index port. The data port follows.
pub const PORT: u16 = 0x70;
/// The number of ports.
pub const PORTS: u16 = 2;
/// The register of the century.
pub const CENTURY: u8 = 0x32;

/// Register A: the divider for 32,768 Hz, and no update in progress.
const DIVIDER: u8 = 0x26;
/// Register B: 24-hour mode, BCD.
const FORMAT: u8 = 0x02;
/// Register D: the time is valid.
const VALID: u8 = 0x80;

/// The clock.
#[derive(Debug, Default)]
pub struct Rtc {
    index: u8,
}

impl Device for Rtc {
    fn read(&mut self, offset: u64, _: u8) -> ControlFlow<Stop, u64> {
        if offset != 1 {
            return ControlFlow::Continue(u64::MAX);
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        ControlFlow::Continue(register(self.index, since).into())
    }

    fn write(&mut self, offset: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        if offset == 0 {
            // The highest bit masks NMIs; it is not part of the index.
            self.index = data.to_le_bytes()[0] & 0x7f;
        }
        ControlFlow::Continue(())
    }

    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("RTC")
    }
}

/// The value of a register at `seconds` after the start of 1970.
fn register(index: u8, seconds: u64) -> u8 {
    let days = seconds / 86_400;
    let (year, month, day) = date(days);
    let value = match index {
        0 => seconds % 60,
        2 => seconds / 60 % 60,
        4 => seconds / 3600 % 24,
        // Sunday is 1, and 1970 began on a Thursday.
        6 => (days.wrapping_add(4) % 7).saturating_add(1),
        7 => day,
        8 => month,
        9 => year % 100,
        CENTURY => year / 100,
        0x0a => return DIVIDER,
        0x0b => return FORMAT,
        0x0d => return VALID,
        _ => return 0,
    };
    bcd(value)
}

/// The last two decimal digits of `value`, in BCD.
pub(super) fn bcd(value: u64) -> u8 {
    u8::try_from(((value / 10 % 10) << 4) | (value % 10)).unwrap_or(0)
}

/// Year, month and day of the month in the Gregorian calendar, `days` after 1 January 1970.
pub(super) fn date(mut days: u64) -> (u64, u64, u64) {
    // 400 years always have 146,097 days.
    let mut year = (days / 146_097).saturating_mul(400).saturating_add(1970);
    days %= 146_097;
    let is_leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let length = |year| if is_leap(year) { 366 } else { 365 };
    while days >= length(year) {
        days = days.saturating_sub(length(year));
        year = year.saturating_add(1);
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1u64;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days = days.saturating_sub(length);
        month = month.saturating_add(1);
    }
    (year, month, days.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(seconds: u64) -> [u8; 8] {
        [CENTURY, 9, 8, 7, 4, 2, 0, 6].map(|index| register(index, seconds))
    }

    #[test]
    fn known_times_are_right() {
        assert_eq!(stamp(0), [0x19, 0x70, 0x01, 0x01, 0, 0, 0, 5]);
        assert_eq!(stamp(951_782_399), [0x20, 0x00, 0x02, 0x28, 0x23, 0x59, 0x59, 2]);
        assert_eq!(stamp(951_782_400), [0x20, 0x00, 0x02, 0x29, 0, 0, 0, 3]);
        assert_eq!(stamp(4_107_542_400), [0x21, 0x00, 0x03, 0x01, 0, 0, 0, 2], "2100 is not a leap year");
        assert_eq!(stamp(1_700_000_000), [0x20, 0x23, 0x11, 0x14, 0x22, 0x13, 0x20, 3]);
    }

    #[test]
    fn every_number_of_seconds_has_a_date() {
        for seconds in [u64::MAX, u64::MAX / 2, 1 << 40] {
            assert!((1..=0x31).contains(&register(7, seconds)));
        }
    }

    #[test]
    fn an_update_is_never_in_progress_and_the_index_selects_a_register() {
        let mut rtc = Rtc::default();
        for (index, value) in [(0x0a, 0x26), (0x8b, 0x02), (0x0d, 0x80), (0x0c, 0)] {
            assert!(rtc.write(0, 1, index).is_continue());
            assert_eq!(rtc.read(1, 1).continue_value(), Some(value));
        }
        assert_eq!(rtc.read(0, 1).continue_value(), Some(u64::MAX));
    }
}
