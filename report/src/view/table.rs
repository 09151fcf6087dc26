//! The tables that all formats are written from, and the texts of their cells.

use vmm::host::printable_text;

/// A value of a table.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    /// A missing or unknown value.
    Nothing,
    /// A text, which may be hostile.
    Text(String),
    Count(u64),
    /// A difference of two counts.
    Delta(i128),
    Nanoseconds(u64),
    /// A duration in nanoseconds, shown as a number of microseconds.
    Microseconds(u64),
    /// A point in time in nanoseconds, shown in milliseconds with all digits.
    Instant(u64),
    /// A fraction, from 0 to 1, shown in per cent.
    Share(f64),
    /// The quotient of two values.
    Ratio(f64),
    /// An address or a value of the guest, shown in hexadecimal.
    Hex(u64),
    /// A width in bytes, shown in bits.
    Width(u8),
    Flag(bool),
}

impl Cell {
    /// Makes a text cell. A text longer than 200 characters is cut.
    pub(super) fn text(text: &str) -> Self {
        const MOST: usize = 200;
        match text.char_indices().nth(MOST) {
            Some((end, _)) => Self::Text(format!("{}...", text.get(..end).unwrap_or_default())),
            None => Self::Text(text.into()),
        }
    }

    pub(super) fn nanoseconds(time: Option<u64>) -> Self {
        time.map_or(Self::Nothing, Self::Nanoseconds)
    }

    pub(super) fn share(part: u64, whole: u64) -> Self {
        if whole == 0 { Self::Nothing } else { Self::Share(part as f64 / whole as f64) }
    }

    pub(super) fn ratio(value: Option<u64>, over: Option<u64>) -> Self {
        match (value, over) {
            (Some(value), Some(over)) if over > 0 => Self::Ratio(value as f64 / over as f64),
            _ => Self::Nothing,
        }
    }

    /// Returns the text for a reader. Control characters are escaped.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Nothing | Self::Flag(false) => String::new(),
            Self::Flag(true) => "yes".into(),
            Self::Text(text) => printable_text(text),
            Self::Count(count) => count.to_string(),
            Self::Delta(delta) if *delta > 0 => format!("+{delta}"),
            Self::Delta(delta) => delta.to_string(),
            Self::Nanoseconds(time) => duration(*time),
            Self::Microseconds(time) => format!("{:.2}", *time as f64 / 1e3),
            Self::Instant(time) => format!("{}.{:06}", time / 1_000_000, time % 1_000_000),
            Self::Share(share) => format!("{:.1}%", share * 100.0),
            Self::Ratio(ratio) if *ratio >= 100.0 => format!("x{ratio:.0}"),
            Self::Ratio(ratio) => format!("x{ratio:.2}"),
            Self::Hex(number) => format!("{number:#x}"),
            Self::Width(bytes) => u32::from(*bytes).saturating_mul(8).to_string(),
        }
    }

    /// Returns the text for a program: numbers have no units.
    pub(super) fn raw(&self) -> String {
        match self {
            Self::Nanoseconds(time) | Self::Microseconds(time) | Self::Instant(time) => time.to_string(),
            Self::Share(share) => format!("{share:.6}"),
            Self::Ratio(ratio) => format!("{ratio:.6}"),
            Self::Width(bytes) => bytes.to_string(),
            Self::Delta(delta) => delta.to_string(),
            Self::Flag(flag) => u8::from(*flag).to_string(),
            cell => cell.shown(),
        }
    }

    pub(super) fn json(&self) -> serde_json::Value {
        match self {
            Self::Nothing => serde_json::Value::Null,
            Self::Text(text) => text.as_str().into(),
            Self::Count(number)
            | Self::Nanoseconds(number)
            | Self::Microseconds(number)
            | Self::Instant(number)
            | Self::Hex(number) => (*number).into(),
            // A delta can need 65 bits, one more than a JSON number here has.
            Self::Delta(delta) => match (u64::try_from(*delta), i64::try_from(*delta)) {
                (Ok(number), _) => number.into(),
                (_, Ok(number)) => number.into(),
                _ => (*delta as f64).into(),
            },
            Self::Share(number) | Self::Ratio(number) => (*number).into(),
            Self::Width(bytes) => (*bytes).into(),
            Self::Flag(flag) => (*flag).into(),
        }
    }

    /// Returns the sort key, if it differs from the shown text.
    pub(super) fn sorted_by(&self) -> Option<String> {
        match self {
            Self::Nanoseconds(_)
            | Self::Microseconds(_)
            | Self::Share(_)
            | Self::Ratio(_)
            | Self::Delta(_) => Some(self.raw()),
            Self::Hex(number) => Some(number.to_string()),
            _ => None,
        }
    }
}

/// Formats a duration in nanoseconds with three digits and a unit, such as `4.70 us`. Below 1 us it is a whole number
/// of nanoseconds.
pub fn duration(nanoseconds: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
    // 999,950 ns is 1.00 ms, not 1000 us.
    let time = nanoseconds as f64;
    let unit = UNITS.iter().find(|(unit, _)| time >= *unit as f64 * 0.9995);
    let Some((unit, name)) = unit else { return format!("{nanoseconds} ns") };
    let value = time / *unit as f64;
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {name}")
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    /// The name for programs.
    pub(super) key: &'static str,
    /// The head for readers.
    pub(super) head: &'static str,
    /// The head over several adjacent columns, or "".
    pub(super) group: &'static str,
    /// True for numbers, which are aligned to the right.
    pub(super) number: bool,
    /// The least width in a text, in characters. 0 means the width of the head.
    pub(super) width: usize,
}

impl Column {
    /// Sets the least width in a text. The head does not widen the column: it may use one character of the gap.
    pub(super) const fn wide(self, width: usize) -> Self {
        Self { width, ..self }
    }
}

/// Makes a column of numbers.
pub(super) const fn number(key: &'static str, head: &'static str, group: &'static str) -> Column {
    Column { key, head, group, number: true, width: 0 }
}

/// Makes a column of texts.
pub(super) const fn text(key: &'static str, head: &'static str) -> Column {
    Column { key, head, group: "", number: false, width: 0 }
}

pub(super) type Row = Vec<Cell>;

/// A table. It makes its rows on demand, because a trace can have millions.
pub(super) struct Table<'a> {
    /// The name for programs.
    pub(super) key: &'static str,
    /// The title for readers.
    pub(super) title: &'static str,
    pub(super) columns: Vec<Column>,
    pub(super) len: usize,
    rows: Box<dyn Fn(usize) -> Row + 'a>,
}

impl<'a> Table<'a> {
    pub(super) fn new(key: &'static str, title: &'static str, columns: Vec<Column>, rows: Vec<Row>) -> Self {
        let len = rows.len();
        Self::lazy(key, title, columns, len, move |index| rows.get(index).cloned().unwrap_or_default())
    }

    pub(super) fn lazy(
        key: &'static str,
        title: &'static str,
        columns: Vec<Column>,
        len: usize,
        rows: impl Fn(usize) -> Row + 'a,
    ) -> Self {
        Self { key, title, columns, len, rows: Box::new(rows) }
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.rows_from(0)
    }

    pub(super) fn rows_from(&self, first: usize) -> impl Iterator<Item = Row> + '_ {
        (first..self.len).map(|index| (self.rows)(index))
    }
}

/// A report about one file or two, in no particular format.
pub(super) struct View<'a> {
    /// The kind: "profile", "trace" or "difference".
    pub(super) kind: &'static str,
    /// The guest, or the kind of the comparison.
    pub(super) title: String,
    /// The end of the run, or the two runs that are compared.
    pub(super) subtitle: String,
    /// Single values: the name for programs, the name for readers, the value.
    pub(super) facts: Vec<(&'static str, &'static str, Cell)>,
    /// The main result in one sentence.
    pub(super) headline: String,
    /// Remarks, each one or more sentences.
    pub(super) notes: Vec<String>,
    pub(super) tables: Vec<Table<'a>>,
    /// The key of the table that CSV contains.
    pub(super) main: &'static str,
}

/// Formats a count with its noun: "1 exit", "2 exits".
pub fn plural(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        for (time, shown) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1000, "1.00 us"),
            (9_994, "9.99 us"),
            (9_996, "10.0 us"),
            (99_960, "100 us"),
            (999_600, "1.00 ms"),
            (1_160_000, "1.16 ms"),
            (u64::MAX, "18446744074 s"),
        ] {
            assert_eq!(duration(time), shown, "{time}");
        }
    }

    #[test]
    fn a_cell_has_a_text_for_readers_and_one_for_programs() {
        assert_eq!(Cell::text("a\u{1b}[2J\n").shown(), "a\\u{1b}[2J\\n");
        assert_eq!(Cell::text(&"é".repeat(300)).shown().chars().count(), 203);
        assert_eq!((Cell::Delta(3).shown(), Cell::Delta(-3).shown()), ("+3".into(), "-3".into()));
        assert_eq!((Cell::share(1, 8).shown(), Cell::share(1, 8).raw()), ("12.5%".into(), "0.125000".into()));
        assert_eq!((Cell::share(1, 0), Cell::ratio(Some(1), Some(0))), (Cell::Nothing, Cell::Nothing));
        assert_eq!(Cell::Delta(-i128::from(u64::MAX)).json(), serde_json::json!(-18446744073709551615.0));
        assert_eq!(Cell::Hex(u64::MAX).json(), serde_json::json!(u64::MAX));
    }
}
