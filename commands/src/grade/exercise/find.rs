//! Finds the file of a task in a submission.

use exercise::Exercise;
use std::fs;
use std::path::{Path, PathBuf};
use vmm::host::{printable, printable_text};

/// The most entries of a directory that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// The file for a pattern such as `sum.bin` or `task1/*.bin`. If the submission is a file, its name must fit the last part of
/// the pattern, unless it `is_only` for one pattern.
///
/// # Errors
/// There is no such file, there are several, or it is outside of the submission. The message is for the student.
pub fn file(submission: &Path, pattern: &str, is_only: bool) -> Result<PathBuf, String> {
    let (folder, last) = pattern.rsplit_once('/').unwrap_or(("", pattern));
    let missing = || format!("not handed in: there is no file {}", printable_text(pattern));
    if !submission.is_dir() {
        let name = submission.file_name().unwrap_or_default().to_string_lossy();
        return if is_only || fits(&name, last) { Ok(submission.into()) } else { Err(missing()) };
    }
    let folder = submission.join(folder);
    let mut found: Option<PathBuf> = None;
    for entry in fs::read_dir(&folder).map_err(|_| missing())?.take(MAX_ENTRIES).flatten() {
        if !fits(&entry.file_name().to_string_lossy(), last) {
            continue;
        }
        if let Some(other) = &found {
            return Err(format!(
                "several files fit {}: {} and {}",
                printable_text(pattern),
                name_of(other),
                name_of(&entry.path())
            ));
        }
        found = Some(entry.path());
    }
    let found = found.ok_or_else(missing)?;
    let is_inside = match (fs::canonicalize(&found), fs::canonicalize(submission)) {
        (Ok(file), Ok(submission)) => file.starts_with(submission),
        _ => false,
    };
    if is_inside { Ok(found) } else { Err(format!("{} leads out of the submission", name_of(&found))) }
}

/// Checks that a folder is a submission, and not a folder of submissions.
///
/// # Errors
/// It has no file of the exercise, and its folders have. The message says how to grade them.
pub fn check_folder(exercise: &Exercise, folder: &Path) -> Result<(), String> {
    let has_one = |folder: &Path| exercise.tasks.iter().any(|task| file(folder, &task.file, false).is_ok());
    if !folder.is_dir() || has_one(folder) {
        return Ok(());
    }
    let entries = fs::read_dir(folder).into_iter().flatten().take(MAX_ENTRIES).flatten();
    let submissions = entries.filter(|entry| entry.path().is_dir() && has_one(&entry.path())).count();
    let name = printable(folder);
    match submissions {
        // A student may have put one folder too many around the file.
        0 | 1 => Ok(()),
        number => Err(format!("{name} is a folder of {number} submissions: grade {name}/*")),
    }
}

fn name_of(path: &Path) -> String {
    printable(path.file_name().map_or(path, Path::new))
}

/// True if a name fits a pattern, in which `*` stands for any characters and `?` for one.
fn fits(name: &str, pattern: &str) -> bool {
    let (name, pattern): (Vec<char>, Vec<char>) = (name.chars().collect(), pattern.chars().collect());
    let (mut at, mut part) = (0usize, 0usize);
    // The place after the last `*`, and the character from which it is tried.
    let mut star: Option<(usize, usize)> = None;
    while let Some(c) = name.get(at) {
        match pattern.get(part) {
            Some('*') => {
                part = part.saturating_add(1);
                star = Some((part, at));
            }
            Some(wanted) if *wanted == '?' || wanted == c => {
                (at, part) = (at.saturating_add(1), part.saturating_add(1));
            }
            _ => match star {
                Some((after, from)) => {
                    let next = from.saturating_add(1);
                    (star, part, at) = (Some((after, next)), after, next);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(part).all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_names() {
        for (name, pattern, expected) in [
            ("sum.bin", "sum.bin", true),
            ("sum.bin", "*.bin", true),
            ("sum.bin", "s?m*", true),
            ("sum.bin", "*", true),
            ("sum.bin", "*.bi", false),
            ("sum.bin", "sum", false),
            ("", "*", true),
            ("a", "", false),
            ("aXbXc", "a*X?", true),
            ("*", "?", true),
        ] {
            assert_eq!(fits(name, pattern), expected, "{name} {pattern}");
        }
        assert!(!fits(&"a".repeat(2000), &("*a".repeat(20) + "b")));
    }

    #[test]
    fn a_file_is_one_file_inside_the_submission() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("task")).unwrap();
        fs::write(path("task/a.bin"), b"x").unwrap();
        assert_eq!(file(folder.path(), "task/*.bin", true), Ok(path("task/a.bin")));
        assert!(
            file(folder.path(), "*.bin", true)
                .unwrap_err()
                .starts_with("not handed in: there is no file *.bin")
        );
        assert!(file(folder.path(), "other/*.bin", true).unwrap_err().starts_with("not handed in"));
        fs::write(path("task/b\n.bin"), b"x").unwrap();
        let several = file(folder.path(), "task/*.bin", true).unwrap_err();
        assert!(
            several.starts_with("several files fit task/*.bin: ") && !several.contains('\n'),
            "{several}"
        );
        std::os::unix::fs::symlink("/dev/null", path("out.elf")).unwrap();
        assert_eq!(file(folder.path(), "*.elf", true).unwrap_err(), "out.elf leads out of the submission");
        assert_eq!(file(&path("task/a.bin"), "x.bin", true), Ok(path("task/a.bin")));
        assert!(file(&path("task/a.bin"), "x.bin", false).is_err());
        assert_eq!(file(&path("task/a.bin"), "task/a*", false), Ok(path("task/a.bin")));
    }
}
