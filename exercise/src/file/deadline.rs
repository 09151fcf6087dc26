//! The deadline of an exercise: a date and a time (RFC 3339).

use std::time::{Duration, SystemTime};

/// The form of a deadline, for messages.
const FORM: &str =
    "deadline must be a date and a time with its distance from UTC, such as \"2026-12-01T23:59:59+02:00\"";

/// Parses a date and a time. A fraction of a second is left out.
///
/// # Errors
/// It has another form, or there is no such date.
pub fn parse(text: &str) -> Result<SystemTime, &'static str> {
    let (date, rest) = text.split_once(['T', 't', ' ']).ok_or(FORM)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2]).ok_or(FORM)?;
    let (time, zone) = rest.split_at_checked(8).ok_or(FORM)?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2]).ok_or(FORM)?;
    let zone =
        zone.strip_prefix('.').map_or(zone, |part| part.trim_start_matches(|c: char| c.is_ascii_digit()));
    let offset = offset(zone).ok_or(FORM)?;
    let is_time = hour < 24 && minute < 60 && second <= 60;
    if !is_time
        || !(1970..=9999).contains(&year)
        || !(1..=12).contains(&month)
        || day < 1
        || day > days(year, month)
    {
        return Err("deadline is not a date and a time that exists");
    }
    let before: i64 = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum();
    let months: i64 = (1..month).map(|month| days(year, month)).sum();
    let seconds = [
        (before.saturating_add(months).saturating_add(day).saturating_sub(1), 86400),
        (hour, 3600),
        (minute, 60),
        (second, 1),
    ];
    let seconds =
        seconds.into_iter().fold(0i64, |sum, (count, unit)| sum.saturating_add(count.saturating_mul(unit)));
    let seconds = u64::try_from(seconds.saturating_sub(offset)).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or(FORM)
}

/// Three numbers with these numbers of digits, and a separator between them.
fn numbers(text: &str, separator: char, digits: [usize; 3]) -> Option<[i64; 3]> {
    let mut parts = text.split(separator);
    let mut read = [0; 3];
    for (number, digits) in read.iter_mut().zip(digits) {
        *number = number_of(parts.next()?, digits)?;
    }
    parts.next().is_none().then_some(read)
}

fn number_of(text: &str, digits: usize) -> Option<i64> {
    let is_number = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// The distance from UTC in seconds: `Z`, `+02:00` or `-05:30`.
fn offset(text: &str) -> Option<i64> {
    if text.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, rest) = match text.strip_prefix('+') {
        Some(rest) => (1, rest),
        None => (-1, text.strip_prefix('-')?),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes) = (number_of(hours, 2)?, number_of(minutes, 2)?);
    let seconds = hours.saturating_mul(3600).saturating_add(minutes.saturating_mul(60));
    (hours < 24 && minutes < 60).then(|| seconds.saturating_mul(sign))
}

fn is_leap(year: i64) -> bool {
    let divides = |by: i64| year.checked_rem(by) == Some(0);
    divides(4) && !divides(100) || divides(400)
}

/// The number of days of a month.
fn days(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_a_number_of_seconds() {
        // The numbers are those of date(1).
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-12-01T23:59:59+02:00", 1_796_162_399),
            ("2024-02-29 12:30:00.25-05:30", 1_709_229_600),
            ("2000-03-01t00:00:00z", 951_868_800),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ] {
            assert_eq!(parse(text), Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), "{text}");
        }
        for wrong in [
            "",
            "2026-12-01",
            "2026-12-01T23:59:59",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-12-01T24:00:00Z",
            "2026-12-1T00:00:00Z",
            "2026-12-01T00:00:00+2",
            "2026-12-01T00:00:00+02:00x",
            "+026-12-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-12-01T00:00:0é",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
