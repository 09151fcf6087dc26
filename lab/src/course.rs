//! The packed courses.

use miniz_oxide::inflate::decompress_to_vec_with_limit;
use std::fmt;

/// The packed courses: the size of the files, and the files, compressed.
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/courses.bin"));

/// The names of the courses.
pub const NAMES: [&str; 3] = ["first-vmm", "so2", "kev"];

/// The name of the hidden checks of an exercise, and of its hints.
const CHECK: &str = "check.toml";
const HINTS: &str = "hints.txt";
/// The beginning of the names of other files that a reader does not get.
const HIDDEN: &str = "hidden";
/// A line between two hints.
const SEPARATOR: &str = "---";
/// The KVM structures for Rust, which all courses share. They are among the files of the first one.
const SHARED: (&str, &str) = ("first-vmm/", "kvm.rs");

/// The language of a reader's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// C.
    C,
    /// Rust.
    Rust,
}

impl Language {
    /// The languages.
    pub const ALL: [Self; 2] = [Self::C, Self::Rust];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::C => "c",
            Self::Rust => "rust",
        }
    }

    /// True if a reader with this language gets a file.
    fn has(self, path: &str) -> bool {
        match path.rsplit_once('.').map(|(_, extension)| extension) {
            Some("c" | "h") => self == Self::C,
            Some("rs") => self == Self::Rust,
            _ => true,
        }
    }
}

/// The packed courses cannot be read, which a test prevents.
#[derive(Clone, Copy, Debug)]
pub struct Damaged;

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the courses of this program are damaged: install it again")
    }
}

/// A course.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// The title.
    pub title: String,
    /// The exercises. None for a course that `vmm grade` grades.
    pub exercises: Vec<Exercise>,
    /// The files of a reader.
    files: Vec<(String, Vec<u8>)>,
    /// The tasks of a course without exercises, in the order of their numbers, which begin with 1.
    pub tasks: Vec<Task>,
}

/// A task of a course that `vmm grade` grades.
#[derive(Clone, Debug, Default)]
pub struct Task {
    /// The title, as in the grade.
    pub title: String,
    /// The hints, from vague to exact.
    pub hints: Vec<String>,
}

/// An exercise.
#[derive(Clone, Debug, Default)]
pub struct Exercise {
    /// The number, which is that of the chapter.
    pub number: u32,
    /// The folder.
    pub folder: String,
    /// The title.
    pub title: String,
    /// The checks: an exercise for `vmm grade`.
    pub check: String,
    /// The files that the checks name.
    pub hidden: Vec<(String, Vec<u8>)>,
    /// The hints, from vague to exact.
    pub hints: Vec<String>,
}

impl Course {
    /// Unpacks a course. `None` if there is none with this name.
    ///
    /// # Errors
    /// The courses are damaged.
    pub fn open(name: &str) -> Result<Option<Self>, Damaged> {
        if !NAMES.contains(&name) {
            return Ok(None);
        }
        let mut course = Self::default();
        let mut files = unpacked()?;
        files.sort_unstable();
        for (path, bytes) in files {
            match path.strip_prefix(name).and_then(|path| path.strip_prefix('/')) {
                Some(path) => course.add(path, bytes)?,
                None if path.strip_prefix(SHARED.0) == Some(SHARED.1) => course.add(SHARED.1, bytes)?,
                None => {}
            }
        }
        Ok(Some(course))
    }

    /// Adds a file.
    fn add(&mut self, path: &str, bytes: Vec<u8>) -> Result<(), Damaged> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let is_secret = name == CHECK || name == HINTS || name.starts_with(HIDDEN);
        if !is_secret {
            if path == "README.md" {
                let text = std::str::from_utf8(&bytes).map_err(|_| Damaged)?;
                self.title =
                    text.lines().next().and_then(|line| line.strip_prefix("# ")).ok_or(Damaged)?.into();
            }
            self.files.push((path.into(), bytes));
            return Ok(());
        }
        let text = || String::from_utf8(bytes.clone()).map_err(|_| Damaged);
        if folder.is_empty() {
            self.tasks = tasks(&text()?);
            return Ok(());
        }
        if self.exercises.last().is_none_or(|last| last.folder != folder) {
            let number = folder.split('-').next().and_then(|number| number.parse().ok()).ok_or(Damaged)?;
            self.exercises.push(Exercise { number, folder: folder.into(), ..Exercise::default() });
        }
        let exercise = self.exercises.last_mut().ok_or(Damaged)?;
        match name {
            CHECK => {
                exercise.check = text()?;
                exercise.title = title(&exercise.check).ok_or(Damaged)?.into();
            }
            HINTS => exercise.hints = hints(&text()?),
            _ => exercise.hidden.push((name.into(), bytes)),
        }
        Ok(())
    }

    /// The files of a reader with this language: path and content.
    pub fn files(&self, language: Language) -> impl Iterator<Item = (&str, &[u8])> {
        let files = self.files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice()));
        files.filter(move |(path, _)| language.has(path))
    }

    /// The exercise with this number.
    pub fn exercise(&self, number: u32) -> Option<&Exercise> {
        self.exercises.iter().find(|exercise| exercise.number == number)
    }
}

/// The title of an exercise: the value of the key `name`.
fn title(check: &str) -> Option<&str> {
    let line = check.lines().find_map(|line| line.strip_prefix("name = \""))?;
    line.strip_suffix('"')
}

/// The tasks in a file with hints: `# TITLE`, and then the hints.
fn tasks(text: &str) -> Vec<Task> {
    let mut tasks: Vec<(&str, String)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("# "), tasks.last_mut()) {
            (Some(title), _) => tasks.push((title, String::new())),
            (None, Some((_, rest))) => *rest += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    tasks.into_iter().map(|(title, rest)| Task { title: title.into(), hints: hints(&rest) }).collect()
}

fn hints(text: &str) -> Vec<String> {
    let mut hints = vec![String::new()];
    for line in text.lines() {
        match hints.last_mut() {
            _ if line == SEPARATOR => hints.push(String::new()),
            Some(hint) => *hint += &format!("{line}\n"),
            None => {}
        }
    }
    hints.retain(|hint| !hint.trim().is_empty());
    hints
}

/// The files of all courses: path and content.
fn unpacked() -> Result<Vec<(String, Vec<u8>)>, Damaged> {
    let (len, packed) = PACKED.split_first_chunk::<4>().ok_or(Damaged)?;
    let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| Damaged)?;
    let all = decompress_to_vec_with_limit(packed, len).map_err(|_| Damaged)?;
    let mut files = Vec::new();
    let mut rest = all.as_slice();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == 0).ok_or(Damaged)?;
        let (path, after) = rest.split_at_checked(end).ok_or(Damaged)?;
        let path = std::str::from_utf8(path).map_err(|_| Damaged)?;
        let (len, after) = after.get(1..).and_then(|rest| rest.split_first_chunk::<4>()).ok_or(Damaged)?;
        let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| Damaged)?;
        let (bytes, after) = after.split_at_checked(len).ok_or(Damaged)?;
        files.push((path.into(), bytes.to_vec()));
        rest = after;
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_course_has_its_files_and_no_solution() {
        for name in NAMES {
            let course = Course::open(name).unwrap().unwrap();
            assert!(!course.title.is_empty(), "{name}");
            assert_eq!(course.exercises.is_empty(), name != "first-vmm", "{name}");
            assert_eq!(course.tasks.is_empty(), name == "first-vmm", "{name}");
            assert!(course.tasks.iter().all(|task| !task.title.is_empty() && task.hints.len() > 1), "{name}");
            for language in Language::ALL {
                let files: Vec<_> = course.files(language).collect();
                assert!(files.iter().any(|(path, _)| *path == "Makefile"), "{name}");
                for (path, bytes) in files {
                    let text = std::str::from_utf8(bytes).unwrap();
                    let is_marked = text.lines().any(|line| line.trim().starts_with("//{"));
                    assert!(!is_marked && !path.contains("hidden") && !path.ends_with(CHECK), "{path}");
                }
            }
        }
        assert!(Course::open("other").unwrap().is_none());
    }

    #[test]
    fn each_exercise_has_a_title_checks_and_hints() {
        let course = Course::open("first-vmm").unwrap().unwrap();
        for (number, exercise) in (1..).zip(&course.exercises) {
            let Exercise { title, check, hints, .. } = exercise;
            assert_eq!(exercise.number, number, "{title}");
            let has_checks = check.contains("[[task.check]]") || check.contains("\ncheck = [");
            assert!(!title.is_empty() && has_checks && hints.len() > 1, "{title}");
        }
    }
}
