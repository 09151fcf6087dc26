//! The time registers of the clock.

use crate::device::pc::rtc::{CENTURY, bcd, date};

/// Register B: the format of the time registers.
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// The hour register in a 12-hour format: afternoon.
const AFTERNOON: u8 = 1 << 7;
/// The register of the century on a PS/2.
const PS2_CENTURY: u8 = 0x37;

/// The format of the time registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    is_binary: bool,
    has_24_hours: bool,
}

impl Format {
    /// The format that register B selects.
    pub(super) fn of(control: u8) -> Self {
        Self { is_binary: control & BINARY != 0, has_24_hours: control & HOURS_24 != 0 }
    }

    fn encode(self, value: u8) -> u8 {
        if self.is_binary { value } else { bcd(value.into()) }
    }

    fn decode(self, byte: u8) -> u8 {
        if self.is_binary { byte } else { (byte >> 4).saturating_mul(10).saturating_add(byte & 0xf) }
    }

    fn encode_hour(self, hour: u8) -> u8 {
        if self.has_24_hours {
            return self.encode(hour);
        }
        let twelfth = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(twelfth) | if hour >= 12 { AFTERNOON } else { 0 }
    }

    fn decode_hour(self, byte: u8) -> u8 {
        if self.has_24_hours {
            return self.decode(byte);
        }
        let afternoon = if byte & AFTERNOON != 0 { 12 } else { 0 };
        (self.decode(byte & !AFTERNOON) % 12).saturating_add(afternoon)
    }
}

/// A time as the registers have it, in numbers. A guest can set each register to any value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Time {
    second: u8,
    minute: u8,
    hour: u8,
    /// Sunday is 1.
    weekday: u8,
    day: u8,
    month: u8,
    year: u8,
    century: u8,
}

impl Time {
    /// The time this number of seconds after the start of 1970.
    pub(super) fn at(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let (year, month, day) = date(days);
        let byte = |value: u64| u8::try_from(value % 100).unwrap_or(0);
        Self {
            second: byte(seconds % 60),
            minute: byte(seconds / 60 % 60),
            hour: byte(seconds / 3600 % 24),
            // 1970 began on a Thursday.
            weekday: byte((days.wrapping_add(4) % 7).saturating_add(1)),
            day: byte(day),
            month: byte(month),
            year: byte(year),
            century: byte(year / 100),
        }
    }

    /// The number of seconds since the start of 1970. Values that are no time are taken to the next one that is.
    pub(super) fn seconds(self) -> u64 {
        let full = u64::from(self.century).saturating_mul(100).saturating_add(self.year.into());
        let year = full.max(1970);
        let month = u64::from(self.month.clamp(1, 12));
        let before = year.saturating_sub(1);
        let leaps = |year: u64| (year / 4).saturating_sub(year / 100).saturating_add(year / 400);
        let is_leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
        let days = year.saturating_sub(1970).saturating_mul(365);
        let days = days.saturating_add(leaps(before).saturating_sub(leaps(1969)));
        let lengths = [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31u64];
        let months: u64 = lengths.iter().zip(1..month).map(|(length, _)| length).sum();
        let days = days.saturating_add(months).saturating_add(u64::from(self.day.max(1)).saturating_sub(1));
        let hours = days.saturating_mul(24).saturating_add(self.hour.min(23).into());
        let minutes = hours.saturating_mul(60).saturating_add(self.minute.min(59).into());
        minutes.saturating_mul(60).saturating_add(self.second.min(59).into())
    }

    /// The value of a time register. `None` if the index is that of another register.
    pub(super) fn register(self, index: u8, format: Format) -> Option<u8> {
        Some(match index {
            0 => format.encode(self.second),
            2 => format.encode(self.minute),
            4 => format.encode_hour(self.hour),
            6 => format.encode(self.weekday),
            7 => format.encode(self.day),
            8 => format.encode(self.month),
            9 => format.encode(self.year),
            CENTURY | PS2_CENTURY => format.encode(self.century),
            _ => return None,
        })
    }

    /// Sets a time register. Returns false if the index is that of another register.
    pub(super) fn set_register(&mut self, index: u8, byte: u8, format: Format) -> bool {
        let value = format.decode(byte);
        match index {
            0 => self.second = value,
            2 => self.minute = value,
            4 => self.hour = format.decode_hour(byte),
            6 => self.weekday = value,
            7 => self.day = value,
            8 => self.month = value,
            9 => self.year = value,
            CENTURY | PS2_CENTURY => self.century = value,
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_a_time_and_back() {
        for seconds in [0, 951_782_399, 951_782_400, 1_700_000_000, 4_107_542_400, 4_133_980_799] {
            assert_eq!(Time::at(seconds).seconds(), seconds);
        }
        for day in 0..80_000 {
            assert_eq!(Time::at(day * 86_400 + 86_399).seconds(), day * 86_400 + 86_399);
        }
    }

    #[test]
    fn hours_have_four_formats() {
        for (control, hours) in [
            (HOURS_24, [0x00, 0x09, 0x12, 0x23]),
            (HOURS_24 | BINARY, [0, 9, 12, 23]),
            (0, [0x12, 0x09, 0x92, 0x91]),
            (BINARY, [12, 9, 0x8c, 0x8b]),
        ] {
            let format = Format::of(control);
            for (hour, byte) in [0, 9, 12, 23].into_iter().zip(hours) {
                assert_eq!((format.encode_hour(hour), format.decode_hour(byte)), (byte, hour), "{control}");
            }
        }
    }

    #[test]
    fn any_values_are_some_time() {
        let format = Format::of(0);
        for byte in 0..=255 {
            let mut time = Time::at(1_700_000_000);
            for index in 0..=0x40 {
                time.set_register(index, byte, format);
            }
            time.register(4, format);
            assert!(Time::at(time.seconds()).seconds() <= time.seconds());
        }
    }
}
