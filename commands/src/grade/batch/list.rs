//! The submissions of a batch: their paths, their names, and the names of their feedback files.

use super::digest;
use super::shard::Shard;
use crate::file_name::suggestion;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use vmm::Error;
use vmm::host::{printable, sort_by_key};

/// The most submissions of a batch.
pub const MAX_SUBMISSIONS: usize = 100_000;
/// The longest name of a feedback file, without its extension.
const MAX_FILE_NAME: usize = 100;

/// A submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Its place in the whole batch, from 0.
    pub index: usize,
    pub path: PathBuf,
    /// Its name: the path without control characters. No other submission has it.
    pub name: String,
}

/// The submissions of a batch, or of a shard of it.
#[derive(Clone, Debug)]
pub struct Submissions {
    /// Those of the shard.
    pub list: Vec<Submission>,
    /// The names of the whole batch.
    pub names: Vec<String>,
}

impl Submissions {
    /// The submissions with these paths, and with those in the file `from`.
    ///
    /// # Errors
    /// There is none, one is missing, or the file cannot be read.
    pub fn find(paths: Vec<PathBuf>, from: Option<&Path>, shard: Shard) -> Result<Self, Error> {
        let mut paths = paths;
        if let Some(file) = from {
            paths.extend(listed(file)?);
        }
        if paths.is_empty() {
            let what =
                "there is nothing to grade: give the submission, a directory or a file, after the exercise";
            return Err(Error::Config(what.into()));
        }
        if paths.len() > MAX_SUBMISSIONS {
            let what = format!("a batch has at most {MAX_SUBMISSIONS} submissions, not {}", paths.len());
            return Err(Error::Config(what));
        }
        let names = distinct(paths.iter().map(|path| printable(path)).collect(), " ");
        let all = paths.into_iter().zip(&names).enumerate();
        let list: Vec<Submission> = all
            .filter(|(index, _)| shard.has(*index))
            .map(|(index, (path, name))| Submission { index, path, name: name.clone() })
            .collect();
        // Another host has the others. A link that leads nowhere is a submission without points.
        match list.iter().find(|submission| submission.path.symlink_metadata().is_err()) {
            Some(Submission { name, path, .. }) => {
                let similar = suggestion(path);
                Err(Error::Config(format!(
                    "there is no submission {name}: give a directory or a file{similar}"
                )))
            }
            None => Ok(Self { list, names }),
        }
    }

    /// The digest of the names.
    pub fn digest(&self) -> u64 {
        digest::of_names(self.names.iter().map(String::as_str))
    }
}

/// The paths in a file, one in each line. `-` is standard input.
///
/// # Errors
/// It cannot be read.
fn listed(file: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = match file.as_os_str() == "-" {
        true => io::stdin().lock().split(b'\n').take(MAX_SUBMISSIONS.saturating_add(1)).collect(),
        false => std::fs::File::open(file).and_then(|file| {
            BufReader::new(file).split(b'\n').take(MAX_SUBMISSIONS.saturating_add(1)).collect()
        }),
    };
    let lines: Vec<Vec<u8>> =
        read.map_err(|error| Error::Config(format!("--from {}: cannot read it: {error}", printable(file))))?;
    let trimmed = lines.into_iter().map(|line| line.strip_suffix(b"\r").map(<[u8]>::to_vec).unwrap_or(line));
    Ok(trimmed.filter(|line| !line.is_empty()).map(|line| OsString::from_vec(line).into()).collect())
}

/// The same names, with a number behind `separator` after each that an earlier one has already.
fn distinct(names: Vec<String>, separator: &str) -> Vec<String> {
    let sorted = sorted(&names);
    let is_taken = |name: &str| count(&sorted, name) > 0;
    // The places in the order of the names. Equal names stand in their order in the list.
    let mut order: Vec<(&String, usize)> = names.iter().zip(0..).collect();
    sort_by_key(&mut order, |place| *place);
    let mut found = names.clone();
    let mut number: usize = 1;
    for pair in order.windows(2) {
        let [(before, _), (name, place)] = pair else { continue };
        if before != name {
            number = 1;
            continue;
        }
        let mut unique;
        loop {
            number = number.saturating_add(1);
            unique = format!("{name}{separator}({number})");
            if !is_taken(&unique) {
                break;
            }
        }
        if let Some(found) = found.get_mut(*place) {
            *found = unique;
        }
    }
    found
}

fn sorted(names: &[String]) -> Vec<String> {
    let mut sorted = names.to_vec();
    vmm::host::sort_by(&mut sorted, Ord::cmp);
    sorted
}

/// The number of names in a sorted list that are equal to a name.
fn count(sorted: &[String], name: &str) -> usize {
    let before = |limit: fn(&str, &str) -> bool| sorted.partition_point(|other| limit(other, name));
    before(|other, name| other <= name).saturating_sub(before(|other, name| other < name))
}

/// The names of files for submissions with these names: the last part of each, or all parts if two submissions share it.
pub fn file_names(names: &[String]) -> Vec<String> {
    let last = |name: &str| -> String {
        let name = Path::new(name).file_name().unwrap_or(OsStr::new(name));
        file_name(&name.to_string_lossy())
    };
    let lower: Vec<String> = names.iter().map(|name| last(name).to_lowercase()).collect();
    let lower = sorted(&lower);
    let is_shared = |name: &str| count(&lower, &last(name).to_lowercase()) > 1;
    let chosen = names.iter().map(|name| if is_shared(name) { file_name(name) } else { last(name) });
    distinct(chosen.collect(), "_")
}

/// A name that is safe as the name of a file on every host.
fn file_name(name: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_.@+=,()".contains(c);
    let mut text: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    while text.len() > MAX_FILE_NAME {
        text.pop();
    }
    let text = text.trim_start_matches('.');
    if text.is_empty() { "submission".into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn equal_names_are_told_apart() {
        let of = |names: &[&str]| distinct(texts(names), " ");
        assert_eq!(of(&["a", "b", "a", "a"]), ["a", "b", "a (2)", "a (3)"]);
        assert_eq!(of(&["a (2)", "a", "a"]), ["a (2)", "a", "a (3)"]);
        assert_eq!(of(&["a", "a", "a (2)"]), ["a", "a (3)", "a (2)"]);
    }

    #[test]
    fn feedback_files_have_safe_and_different_names() {
        let of = |names: &[&str]| file_names(&texts(names));
        assert_eq!(of(&["work/ana", "work/ben.bin", "../eve"]), ["ana", "ben.bin", "eve"]);
        assert_eq!(of(&["a/sum", "b/sum", "b/x"]), ["a_sum", "b_sum", "x"]);
        assert_eq!(of(&["a/..", "..", "/", ".x"]), ["a_..", "submission", "_", "x"]);
        assert_eq!(of(&["x/a b\\n", "ANA", "y/ana", "ana"]), ["a_b_n", "ANA", "y_ana", "ana"]);
        assert_eq!(of(&["x/a", "y/a", "x_a", "x_a_(2)"]), ["x_a", "y_a", "x_a_(3)", "x_a_(2)"]);
        let long = "é".repeat(300);
        assert!(of(&[&long]).iter().all(|name| name.len() <= MAX_FILE_NAME));
        let same = [long.as_str(), &long];
        let [one, other] = &of(&same)[..] else { panic!() };
        assert_ne!(one, other);
    }

    #[test]
    fn a_list_has_a_path_in_each_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("ana"), "").unwrap();
        let text = format!("{0}\r\n\n{0}\n", path("ana").display());
        std::fs::write(path("list"), text).unwrap();
        let found = Submissions::find(vec![path("ana")], Some(&path("list")), Shard::ALL).unwrap();
        assert_eq!(found.list.len(), 3);
        assert_eq!(found.list[2].index, 2);
        assert!(found.names[2].ends_with("ana (3)"));
        let shard = Shard::parse("2/2").unwrap();
        let half = Submissions::find(vec![path("ana")], Some(&path("list")), shard).unwrap();
        assert_eq!((half.list.len(), half.list[0].index, half.digest()), (1, 1, found.digest()));
        std::os::unix::fs::symlink("/nowhere", path("link")).unwrap();
        assert_eq!(Submissions::find(vec![path("link")], None, Shard::ALL).unwrap().list.len(), 1);
        for (paths, from) in [(vec![], None), (vec![path("none")], None), (vec![], Some(path("none")))] {
            assert!(Submissions::find(paths, from.as_deref(), Shard::ALL).is_err());
        }
    }
}
