//! The results file of a batch: a header, and a line of JSON for each grade. Lines are only added, so that an interrupted batch
//! loses at most the line that it was writing.

use super::list::MAX_SUBMISSIONS;
use super::shard::Shard;
use grades::{Grade, Options};
use serde_json::{Value, json};
use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use vmm::host::{printable, printable_text};

/// The beginning of a results file.
const MARK: &str = "{\"vmm_grades\":";
/// The version of the format.
const VERSION: u64 = 1;
/// The largest results file.
const MAX_FILE: u64 = 1 << 30;
/// The time between two writes to the disk.
const SYNC: Duration = Duration::from_secs(1);

/// The first line of a results file: the batch to which the grades belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The name of the exercise.
    pub exercise: String,
    /// The digest of the exercise.
    pub digest: u64,
    pub seed: u64,
    /// The number of submissions of the whole batch.
    pub submissions: usize,
    /// The digest of their names.
    pub names: u64,
    pub shard: Shard,
    /// The version of the program.
    pub program: String,
}

impl Header {
    fn line(&self) -> String {
        let value = json!({
            "exercise": self.exercise,
            "digest": format!("{:016x}", self.digest),
            "seed": self.seed,
            "submissions": self.submissions,
            "names": format!("{:016x}", self.names),
            "shard": self.shard.to_string(),
            "program": self.program,
        });
        // The mark of a results file comes first.
        let rest = value.to_string();
        format!("{MARK}{VERSION},{}\n", rest.strip_prefix('{').unwrap_or(&rest))
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(line).ok()?;
        let text = |key: &str| value.get(key)?.as_str();
        let digest = |key: &str| u64::from_str_radix(text(key)?, 16).ok();
        if value.get("vmm_grades")?.as_u64()? != VERSION {
            return None;
        }
        Some(Self {
            exercise: printable_text(text("exercise")?),
            digest: digest("digest")?,
            seed: value.get("seed")?.as_u64()?,
            submissions: usize::try_from(value.get("submissions")?.as_u64()?)
                .ok()
                .filter(|submissions| *submissions <= MAX_SUBMISSIONS)?,
            names: digest("names")?,
            shard: text("shard")
                .filter(|text| !text.starts_with("auto"))
                .and_then(|text| Shard::parse(text).ok())?,
            program: printable_text(text("program")?),
        })
    }

    /// The first difference to another batch, as a sentence without its subject. The shards may differ.
    pub fn difference(&self, other: &Self) -> Option<String> {
        if self.digest != other.digest {
            return Some(format!(
                "belongs to another exercise, or to another version of it ({:?})",
                self.exercise
            ));
        }
        if self.seed != other.seed {
            return Some(format!("has the seed {}, not {}", self.seed, other.seed));
        }
        let is_same = self.submissions == other.submissions && self.names == other.names;
        (!is_same).then(|| "belongs to another list of submissions".into())
    }
}

/// The content of a results file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub header: Header,
    /// The grades, by their places in the batch. A later grade replaces one with an error.
    pub grades: Vec<Option<Grade>>,
    /// The length of the whole lines.
    length: u64,
}

impl Content {
    /// Reads a results file. `None` if it has not even a whole header. A last line without an end is left out.
    ///
    /// # Errors
    /// It is no results file, or a line is wrong. The message has no name.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        let length = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end.saturating_add(1));
        let mut lines = bytes.get(..length).unwrap_or_default().split_inclusive(|byte| *byte == b'\n');
        let Some(first) = lines.next() else {
            let is_cut = bytes.starts_with(MARK.as_bytes()) || MARK.as_bytes().starts_with(bytes);
            return if is_cut { Ok(None) } else { Err("is not a results file of vmm grade".into()) };
        };
        let header = Header::parse(first).ok_or("is not a results file of this version of vmm grade")?;
        let mut grades = vec![None; header.submissions];
        for (number, line) in (2..).zip(lines) {
            let record = parse_record(line).filter(|(index, grade)| {
                header.shard.has(*index) && grade.seed == header.seed && grade.exercise == header.exercise
            });
            let place = record.and_then(|(index, grade)| Some((grades.get_mut(index)?, grade)));
            let (place, grade) = place.ok_or_else(|| format!("has a wrong line {number}"))?;
            if let Some(Grade { error: None, submission, .. }) = place.replace(grade) {
                return Err(format!("has two grades of {}", printable_text(&submission)));
            }
        }
        Ok(Some(Self { header, grades, length: length as u64 }))
    }

    /// Reads a results file.
    ///
    /// # Errors
    /// It cannot be read, is no results file, or a line is wrong. The message is a sentence with its name.
    pub fn open(path: &Path) -> Result<Self, String> {
        let name = printable(path);
        let mut bytes = Vec::new();
        // A pipe without a writer would block.
        let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let mut file = opened.map_err(|error| format!("cannot read {name}: {error}"))?;
        check(&file, &name)?;
        file.read_to_end(&mut bytes).map_err(|error| format!("cannot read {name}: {error}"))?;
        match Self::parse(&bytes) {
            Ok(Some(content)) => Ok(content),
            Ok(None) => Err(format!("{name} has no whole line: grade that shard again")),
            Err(what) => Err(format!("{name} {what}")),
        }
    }
}

/// Checks that a file can be a results file.
///
/// # Errors
/// It is not a regular file, or is too large.
fn check(file: &File, name: &str) -> Result<(), String> {
    let data = file.metadata().map_err(|error| format!("cannot read {name}: {error}"))?;
    match data.is_file() {
        false => Err(format!("the results file {name} is not a regular file: give another name")),
        true if data.len() > MAX_FILE => Err(format!("the results file {name} is larger than 1 GiB")),
        true => Ok(()),
    }
}

/// A grade and its place in the batch.
fn parse_record(line: &[u8]) -> Option<(usize, Grade)> {
    let value: Value = serde_json::from_slice(line).ok()?;
    let index = usize::try_from(value.get("index")?.as_u64()?).ok()?;
    Some((index, Grade::from_value(&value).ok()?))
}

/// The line of a grade. Its place stands before the fields of the grade.
fn record(index: usize, grade: &Grade) -> String {
    let line = grade.to_json(Options::default());
    format!("{{\"index\":{index},{}\n", line.strip_prefix('{').unwrap_or(&line))
}

/// A results file that is being written.
pub struct Results {
    file: File,
    name: String,
    synced: Instant,
}

impl Results {
    /// Opens a results file, and reads the grades that it has. With `resume` it may exist.
    ///
    /// # Errors
    /// It cannot be opened, exists already, is in use, or belongs to another batch. The message is a sentence with its name.
    pub fn open(path: &Path, resume: bool) -> Result<(Self, Option<Content>), String> {
        let name = printable(path);
        let failed = |error: io::Error| format!("cannot open the results file {name}: {error}");
        let mut file = File::options().read(true).append(true).create(true).open(path).map_err(failed)?;
        check(&file, &name)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(format!("another batch is writing {name}")),
            // Some network file systems have no locks.
            Err(TryLockError::Error(error)) => log::warn!("cannot lock {name}: {error}"),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        if !bytes.is_empty() && !resume {
            return Err(format!(
                "the results file {name} exists: go on with it with --resume, or give another name"
            ));
        }
        let content = Content::parse(&bytes).map_err(|what| format!("{name} {what}"))?;
        // The line that an interrupted batch was writing.
        let whole = content.as_ref().map_or(0, |content| content.length);
        file.set_len(whole).and_then(|()| file.seek(SeekFrom::End(0))).map_err(failed)?;
        Ok((Self { file, name, synced: Instant::now() }, content))
    }

    /// Writes the header of a new file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin(&mut self, header: &Header) -> Result<(), String> {
        self.write(&header.line())
    }

    /// Adds a grade.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, index: usize, grade: &Grade) -> Result<(), String> {
        self.write(&record(index, grade))?;
        if self.synced.elapsed() >= SYNC {
            return self.sync();
        }
        Ok(())
    }

    /// Writes all lines to the disk.
    ///
    /// # Errors
    /// The disk fails.
    pub fn sync(&mut self) -> Result<(), String> {
        self.synced = Instant::now();
        self.file.sync_data().map_err(|error| self.failed(&error))
    }

    fn write(&mut self, line: &str) -> Result<(), String> {
        self.file.write_all(line.as_bytes()).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> String {
        format!("cannot write the results file {}: {error}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            exercise: "e".into(),
            digest: 1,
            seed: u64::MAX,
            submissions: 4,
            names: 2,
            shard: Shard::ALL,
            program: "1.0".into(),
        }
    }

    fn grade(name: &str, error: Option<&str>) -> Grade {
        Grade {
            submission: name.into(),
            exercise: "e".into(),
            seed: header().seed,
            error: error.map(Into::into),
            tasks: Vec::new(),
            milliseconds: 4,
        }
    }

    fn lines(grades: &[(usize, Grade)]) -> String {
        let records = grades.iter().map(|(index, grade)| record(*index, grade));
        header().line() + &records.collect::<String>()
    }

    #[test]
    fn a_torn_last_line_is_left_out_at_every_place() {
        let text = lines(&[(0, grade("a", None)), (2, grade("b", Some("x")))]);
        let whole = Content::parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(
            (whole.grades.iter().flatten().count(), whole.length as usize, &whole.header),
            (2, text.len(), &header())
        );
        for end in 0..text.len() {
            let content =
                Content::parse(&text.as_bytes()[..end]).unwrap_or_else(|error| panic!("{end}: {error}"));
            let ends = text[..end].matches('\n').count();
            assert_eq!(content.map_or(0, |content| content.grades.iter().flatten().count() + 1), ends);
        }
    }

    #[test]
    fn a_wrong_file_is_refused() {
        let of = |text: &str| Content::parse(text.as_bytes()).unwrap_err();
        assert!(of("x").contains("is not a results file"));
        assert!(of("{}\n").contains("this version"));
        assert!(of(&header().line().replace("\"1/1\"", "\"auto\"")).contains("this version"));
        let two = lines(&[(0, grade("a", None)), (1, grade("b", None))]);
        assert_eq!(of(&two.replace("\"index\":1", "\"index\":4")), "has a wrong line 3");
        let of_another_batch = Grade { seed: 3, ..grade("b", None) };
        assert_eq!(of(&lines(&[(0, grade("a", None)), (1, of_another_batch)])), "has a wrong line 3");
        assert_eq!(of(&two.replace("\"index\":1", "\"index\":0")), "has two grades of a");
        assert_eq!(of(&format!("{two}\n{two}")), "has a wrong line 4");
    }

    #[test]
    fn a_grade_replaces_an_error() {
        let text = lines(&[(1, grade("a", Some("x"))), (1, grade("a", None))]);
        let content = Content::parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(content.grades[1].as_ref().unwrap().error, None);
    }

    #[test]
    fn other_batches_are_told_apart() {
        let other = |change: fn(&mut Header)| {
            let mut other = header();
            change(&mut other);
            header().difference(&other).unwrap_or_default()
        };
        assert_eq!(other(|header| header.shard = Shard { number: 2, count: 3 }), "");
        assert!(other(|header| header.digest = 9).contains("another exercise"));
        assert!(other(|header| header.seed = 9).contains("has the seed 18446744073709551615, not 9"));
        assert!(other(|header| header.names = 9).contains("another list"));
        assert!(other(|header| header.submissions = 9).contains("another list"));
    }

    #[test]
    fn a_file_is_written_by_one_batch_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        let (mut results, content) = Results::open(&path, false).unwrap();
        assert_eq!(content, None);
        let busy = Results::open(&path, true).err().unwrap();
        assert!(busy.contains("another batch is writing"), "{busy}");
        results.begin(&header()).unwrap();
        results.add(3, &grade("a", None)).unwrap();
        drop(results);
        let exists = Results::open(&path, false).err().unwrap();
        assert!(exists.contains("--resume"), "{exists}");
        File::options().append(true).open(&path).unwrap().write_all(b"{\"index\":1,\"sub").unwrap();
        let (mut results, content) = Results::open(&path, true).unwrap();
        assert_eq!(content.unwrap().grades.iter().flatten().count(), 1);
        results.add(0, &grade("b", None)).unwrap();
        results.sync().unwrap();
        assert_eq!(Content::open(&path).unwrap().grades.iter().flatten().count(), 2);
    }
}
