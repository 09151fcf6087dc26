//! Reads the results that [`Format::Jsonl`](crate::Format::Jsonl) has written.

use crate::format::VERSION;
use crate::{Check, Grade, Points, Task, Visibility};
use serde_json::{Map, Value};
use std::fmt;
use std::io::{self, BufRead, Read};

/// The most bytes of a line.
const MAX_LINE: u64 = 16 << 20;
/// The most grades of a file.
const MAX_GRADES: u64 = 1_000_000;

/// An error in a file of results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadError {
    /// The number of the line. The first one is 1.
    pub line: u64,
    /// The cause, in a part of a sentence.
    pub what: String,
    /// True if the line is the last one and has no line feed: the program that wrote it was interrupted.
    pub is_cut: bool,
}

impl fmt::Display for ReadError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ReadError {}

/// The grades of a file with JSON Lines, one by one. The first error is the last item. Empty lines are skipped.
#[derive(Debug)]
pub struct Records<R> {
    from: R,
    line: u64,
    is_done: bool,
}

impl<R: BufRead> Records<R> {
    /// Reads grades.
    pub fn new(from: R) -> Self {
        Self { from, line: 0, is_done: false }
    }

    /// Reads the next line without its line feed, and whether it had one. `None` at the end of the file.
    fn next_line(&mut self) -> io::Result<Option<(Vec<u8>, bool)>> {
        let mut line = Vec::new();
        if (&mut self.from).take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let is_whole = line.last() == Some(&b'\n');
        if is_whole {
            line.pop();
        }
        Ok(Some((line, is_whole)))
    }

    /// The next grade.
    fn next_grade(&mut self) -> Result<Option<Grade>, ReadError> {
        loop {
            self.line = self.line.saturating_add(1);
            let line = self.line;
            let wrong = |what: String, is_cut| ReadError { line, what, is_cut };
            let read =
                self.next_line().map_err(|error| wrong(format!("it cannot be read: {error}"), false))?;
            let Some((bytes, is_whole)) = read else { return Ok(None) };
            if bytes.len() as u64 == MAX_LINE {
                return Err(wrong(format!("it is longer than {} MiB", MAX_LINE >> 20), false));
            }
            if line > MAX_GRADES {
                return Err(wrong(format!("there are more than {MAX_GRADES} lines"), false));
            }
            if !is_whole {
                return Err(wrong("it is cut: it does not end with a line feed".into(), true));
            }
            if !bytes.trim_ascii().is_empty() {
                return Grade::from_json(&bytes).map(Some).map_err(|what| wrong(what, false));
            }
        }
    }
}

impl<R: BufRead> Iterator for Records<R> {
    type Item = Result<Grade, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let next = self.next_grade();
        self.is_done = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

impl Grade {
    /// Reads a grade from the text of a JSON object, as [`Grade::to_json`] writes it.
    ///
    /// # Errors
    /// It is damaged. The message is a part of a sentence.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| {
            // The number of the line is that of the file.
            let text = error.to_string();
            let what = text.split(" at line").next().unwrap_or(&text);
            format!("it is no JSON: {what} at column {}", error.column())
        })?;
        Self::from_value(&value)
    }

    /// Reads a grade from a JSON object.
    ///
    /// # Errors
    /// A key is missing or wrong. The message is a part of a sentence.
    pub fn from_value(value: &Value) -> Result<Self, String> {
        let object = Object::of(value, "a grade")?;
        let version = object.number("version")?;
        if version != VERSION {
            return Err(format!("it has version {version}, and this program reads version {VERSION}"));
        }
        let error = match object.get("error")? {
            Value::Null => None,
            _ => Some(object.text("error")?),
        };
        let grade = Self {
            submission: object.text("submission")?,
            exercise: object.text("exercise")?,
            seed: object.number("seed")?,
            error,
            tasks: object.list("tasks", task)?,
            milliseconds: object.number("milliseconds")?,
        };
        for (key, sum) in [("points", grade.points()), ("earned", grade.earned())] {
            let told = object.points(key)?;
            if told != sum {
                return Err(format!("{key:?} is {told}, but that of the tasks adds up to {sum}"));
            }
        }
        Ok(grade)
    }
}

fn task(value: &Value) -> Result<Task, String> {
    let object = Object::of(value, "a task")?;
    let task = Task {
        name: object.text("name")?,
        points: object.points("points")?,
        earned: object.points("earned")?,
        checks: object.list("checks", check)?,
    };
    match task.earned > task.points {
        true => Err(format!("a task has earned {} of {} points", task.earned, task.points)),
        false => Ok(task),
    }
}

fn check(value: &Value) -> Result<Check, String> {
    let object = Object::of(value, "a check")?;
    let visibility = object.text("visibility")?;
    Ok(Check {
        passed: object.get("passed")?.as_bool().ok_or_else(|| object.wrong("passed", "true or false"))?,
        name: object.text("name")?,
        text: object.text("text")?,
        cost: match object.get("cost")? {
            Value::Null => None,
            _ => Some(object.points("cost")?),
        },
        visibility: Visibility::from_name(&visibility)
            .ok_or_else(|| object.wrong("visibility", "shown, hidden or after-deadline"))?,
    })
}

/// A JSON object, and its name in errors. Keys that this version does not know are skipped.
struct Object<'a> {
    keys: &'a Map<String, Value>,
    name: &'static str,
}

impl<'a> Object<'a> {
    fn of(value: &'a Value, name: &'static str) -> Result<Self, String> {
        let keys = value.as_object().ok_or_else(|| format!("{name} must be a JSON object"))?;
        Ok(Self { keys, name })
    }

    fn get(&self, key: &str) -> Result<&'a Value, String> {
        self.keys.get(key).ok_or_else(|| format!("{} lacks {key:?}", self.name))
    }

    fn wrong(&self, key: &str, expected: &str) -> String {
        format!("{key:?} of {} must be {expected}", self.name)
    }

    fn text(&self, key: &str) -> Result<String, String> {
        self.get(key)?.as_str().map(String::from).ok_or_else(|| self.wrong(key, "a text"))
    }

    fn number(&self, key: &str) -> Result<u64, String> {
        self.get(key)?.as_u64().ok_or_else(|| self.wrong(key, "a whole number"))
    }

    fn points(&self, key: &str) -> Result<Points, String> {
        let value = self.get(key)?;
        let points = value.as_number().and_then(|number| Points::from_decimal(&number.to_string()));
        points.ok_or_else(|| self.wrong(key, "a number of points with at most two decimals"))
    }

    fn list<T>(&self, key: &str, of: impl Fn(&Value) -> Result<T, String>) -> Result<Vec<T>, String> {
        let list = self.get(key)?.as_array().ok_or_else(|| self.wrong(key, "a list"))?;
        list.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::{class, grade, hostile};
    use crate::{Format, Options};

    fn read(text: &[u8]) -> Vec<Result<Grade, ReadError>> {
        Records::new(text).collect()
    }

    #[test]
    fn grades_are_read_as_they_were_written() {
        let mut grades = class();
        grades[0].tasks[0].earned = Points::from_hundredths(1234);
        grades[0].seed = u64::MAX;
        let written = Format::Jsonl.write(&grades, Options::default()).unwrap();
        let again: Vec<Grade> = read(written.as_bytes()).into_iter().map(Result::unwrap).collect();
        assert_eq!(again, grades);
        // Escapes stay escapes.
        let written = Format::Jsonl.write(&[hostile()], Options::default()).unwrap();
        let again: Vec<Grade> = read(written.as_bytes()).into_iter().map(Result::unwrap).collect();
        assert_eq!(Format::Jsonl.write(&again, Options::default()).unwrap(), written);
    }

    #[test]
    fn damage_is_told_with_its_line() {
        let line = Format::Jsonl.write(&[grade("ana", 40)], Options::default()).unwrap();
        let of = |text: &str| {
            let mut results = read(format!("{line}\n{text}").as_bytes());
            assert_eq!(results.len(), 2, "{text}");
            let error = results.pop().unwrap().unwrap_err();
            assert_eq!(error.line, 3);
            (error.what, error.is_cut)
        };
        assert_eq!(of(line.trim_end()), ("it is cut: it does not end with a line feed".into(), true));
        let changed = |from: &str, to: &str| {
            let text = line.replacen(from, to, 1);
            assert_ne!(text, line);
            let (what, is_cut) = of(&text);
            assert!(!is_cut);
            what
        };
        assert_eq!(
            changed("\"version\":1", "\"version\":2"),
            "it has version 2, and this program reads version 1"
        );
        assert_eq!(
            changed("\"earned\":40", "\"earned\":41"),
            "\"earned\" is 41, but that of the tasks adds up to 40"
        );
        assert_eq!(
            changed("\"cost\":20", "\"cost\":0.333"),
            "\"cost\" of a check must be a number of points with at most two decimals"
        );
        assert_eq!(
            changed("\"visibility\":\"shown\"", "\"visibility\":\"x\"").split(" must").next(),
            Some("\"visibility\" of a check")
        );
        assert_eq!(changed("\"seed\":7,", ""), "a grade lacks \"seed\"");
        assert_eq!(changed("\"seed\":7", "\"seed\":-7"), "\"seed\" of a grade must be a whole number");
        assert_eq!(
            changed("\"submission\":\"ana\"", "\"submission\":null"),
            "\"submission\" of a grade must be a text"
        );
        assert_eq!(changed("{", ""), "it is no JSON: trailing characters at column 10");
        assert_eq!(of("[]\n").0, "a grade must be a JSON object");
        assert_eq!(of("\u{1}\n").0, "it is no JSON: expected value at column 1");
        assert!(of(&("[".repeat(1000) + "\n")).0.starts_with("it is no JSON: recursion limit"));
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let results: Vec<_> = Records::new(io::BufReader::new(io::repeat(b' '))).collect();
        assert_eq!(results.len(), 1);
        assert_eq!(results[0].as_ref().unwrap_err().to_string(), "line 1: it is longer than 16 MiB");
    }
}
