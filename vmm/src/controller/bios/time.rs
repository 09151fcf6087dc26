//! The timer's tick, int 1Ah, and the time of the host.
//!
//! IBM PC AT Technical Reference, "Time of day BIOS".

use super::Bios;
use super::call::{CARRY, Call};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time between two ticks: 65,536 periods of 1.193182 MHz.
pub(super) const TICK: Duration = Duration::from_nanos(54_925_415);
/// The number of ticks in a day.
const TICKS_OF_DAY: u32 = 0x0018_00b0;
const SECONDS_OF_DAY: u64 = 86_400;

/// Places in the data area: the ticks since midnight, and a flag of a midnight.
const TICKS: u64 = 0x46c;
const MIDNIGHT: u64 = 0x470;

/// The longest sleep before the deadline is looked at.
const SLEEP: Duration = Duration::from_millis(60);

/// The seconds since the start of 1970.
fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Bios {
    /// The time since the machine was built.
    pub(super) fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Sleeps. A signal may end the sleep early.
    pub(super) fn sleep(&self, time: Duration) {
        std::thread::sleep(time.min(SLEEP));
    }

    /// Sets the count of ticks from the time of the host.
    pub(super) fn set_ticks(&self) {
        let of_day = seconds() % SECONDS_OF_DAY;
        let ticks = of_day.saturating_mul(TICKS_OF_DAY.into()) / SECONDS_OF_DAY;
        let _ = self.memory.write(crate::memory::Gpa(TICKS), &(ticks as u32).to_le_bytes());
    }

    /// Int 8: counts a tick.
    pub(super) fn tick(&mut self, call: &mut Call<'_>) {
        let ticks = long(call, TICKS).wrapping_add(1);
        if ticks >= TICKS_OF_DAY {
            call.set_long(TICKS, 0);
            call.set_byte(MIDNIGHT, 1);
        } else {
            call.set_long(TICKS, ticks);
        }
    }

    /// Answers int 1Ah. False if there is no such function.
    pub(super) fn time_call(&mut self, call: &mut Call<'_>) -> bool {
        match call.ah() {
            0x00 => {
                let ticks = long(call, TICKS);
                let midnight = call.byte(MIDNIGHT);
                call.set_byte(MIDNIGHT, 0);
                call.set_cx((ticks >> 16) as u16);
                call.set_dx(ticks as u16);
                call.set_ax(midnight.into());
            }
            0x01 => {
                let ticks = u32::from(call.cx()) << 16 | u32::from(call.dx());
                call.set_long(TICKS, ticks);
                call.set_byte(MIDNIGHT, 0);
                call.set_ah(0);
            }
            0x02 => {
                let of_day = seconds() % SECONDS_OF_DAY;
                call.set_cx(u16::from(bcd(of_day / 3600)) << 8 | u16::from(bcd(of_day / 60 % 60)));
                call.set_dx(u16::from(bcd(of_day % 60)) << 8);
            }
            0x04 => {
                let (year, month, day) = date(seconds() / SECONDS_OF_DAY);
                call.set_cx(u16::from(bcd(year / 100)) << 8 | u16::from(bcd(year % 100)));
                call.set_dx(u16::from(bcd(month)) << 8 | u16::from(bcd(day)));
            }
            // The BIOS of a PCI bus: there is none. Programs ask for it.
            0xb1 => {
                call.fail(0x81);
                return true;
            }
            _ => {
                call.set_flag(CARRY, true);
                return false;
            }
        }
        call.set_flag(CARRY, false);
        true
    }
}

fn long(call: &Call<'_>, at: u64) -> u32 {
    u32::from(call.word(at)) | u32::from(call.word(at.wrapping_add(2))) << 16
}

/// The last two decimal digits of `value`, in BCD.
fn bcd(value: u64) -> u8 {
    (((value / 10 % 10) << 4) | (value % 10)) as u8
}

/// Year, month and day of the month, `days` after 1 January 1970. The years begin in March here, so that the leap day is the
/// last one.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days.saturating_add(719_468);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let leaps = (of_era / 1_460).wrapping_sub(of_era / 36_524).wrapping_add(of_era / 146_096);
    let year_of_era = of_era.wrapping_sub(leaps) / 365;
    let year_days =
        year_of_era.wrapping_mul(365).wrapping_add(year_of_era / 4).wrapping_sub(year_of_era / 100);
    let of_year = of_era.wrapping_sub(year_days);
    let shifted = of_year.wrapping_mul(5).wrapping_add(2) / 153;
    let day = of_year.wrapping_sub(shifted.wrapping_mul(153).wrapping_add(2) / 5).wrapping_add(1);
    let month = if shifted < 10 { shifted.wrapping_add(3) } else { shifted.wrapping_sub(9) };
    let year = year_of_era.wrapping_add(era.wrapping_mul(400)).wrapping_add((month <= 2).into());
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (31 + 28, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_423, (2025, 12, 1)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(date(days), expected);
        }
        assert_eq!((bcd(59), bcd(2026)), (0x59, 0x26));
    }
}
