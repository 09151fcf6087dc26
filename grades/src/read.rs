//! Reads a grade from a line that [`Format::Jsonl`](crate::Format::Jsonl) has written. A line is as long as its reader permits.

use crate::format::VERSION;
use crate::{Check, Grade, Points, Task, Visibility};
use serde_json::{Map, Value};

impl Grade {
    /// Reads a grade from the text of a JSON object, as [`Grade::to_json`] writes it.
    ///
    /// # Errors
    /// It is damaged. The message is a part of a sentence.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| {
            // The caller knows the number of the line in its file.
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

    fn read(line: &str) -> Grade {
        Grade::from_json(line.as_bytes()).unwrap()
    }

    #[test]
    fn grades_are_read_as_they_were_written() {
        let mut grades = class();
        grades[0].tasks[0].earned = Points::from_hundredths(1234);
        grades[0].seed = u64::MAX;
        let written = Format::Jsonl.write(&grades, Options::default()).unwrap();
        assert_eq!(written.lines().map(read).collect::<Vec<_>>(), grades);
        // Escapes stay escapes.
        let written = hostile().to_json(Options::default());
        assert_eq!(read(&written).to_json(Options::default()), written);
    }

    #[test]
    fn damage_is_told() {
        let line = grade("ana", 40).to_json(Options::default());
        let of = |text: &str| Grade::from_json(text.as_bytes()).unwrap_err();
        for (from, to, what) in [
            ("\"version\":1", "\"version\":2", "it has version 2, and this program reads version 1"),
            ("\"earned\":40", "\"earned\":41", "\"earned\" is 41, but that of the tasks adds up to 40"),
            (
                "\"cost\":20",
                "\"cost\":0.333",
                "\"cost\" of a check must be a number of points with at most two decimals",
            ),
            (
                "\"visibility\":\"shown\"",
                "\"visibility\":\"x\"",
                "\"visibility\" of a check must be shown, hidden or after-deadline",
            ),
            ("\"seed\":7,", "", "a grade lacks \"seed\""),
            ("\"seed\":7", "\"seed\":-7", "\"seed\" of a grade must be a whole number"),
            ("\"submission\":\"ana\"", "\"submission\":null", "\"submission\" of a grade must be a text"),
            ("{", "", "it is no JSON: trailing characters at column 10"),
        ] {
            let changed = line.replacen(from, to, 1);
            assert_ne!(changed, line);
            assert_eq!(of(&changed), what);
        }
        assert_eq!(of("[]"), "a grade must be a JSON object");
        assert_eq!(of("\u{1}"), "it is no JSON: expected value at column 1");
        assert!(of(&"[".repeat(1000)).starts_with("it is no JSON: recursion limit"));
        for end in 0..line.len() {
            assert!(of(&line[..end]).starts_with("it is no JSON: EOF while parsing"), "{end}");
        }
    }
}
