//! The folder of a reader of `vmm lab`.
#![allow(dead_code, reason = "each test uses a part")]

use crate::support::{Files, Ran, ran};
use lab::Language;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of our solutions.
const COURSES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../lab/courses");

/// A folder of a course.
pub struct Reader {
    _files: Files,
    pub path: PathBuf,
}

impl Reader {
    /// Writes a new folder.
    pub fn new(course: &str, language: Language) -> Self {
        let files = Files::new();
        let path = files.0.path().join("lab");
        let made = ran(&["lab", "new", course, path.to_str().unwrap(), "--lang", language.name()]);
        assert_eq!((made.status, made.text().as_str()), (0, ""), "{}", made.stderr);
        assert!(made.stderr.starts_with("vmm: wrote "), "{}", made.stderr);
        Self { _files: files, path }
    }

    /// Runs `vmm lab` with the folder.
    pub fn lab(&self, arguments: &[&str]) -> Ran {
        ran(&[&["lab"], arguments, &["-C", self.path.to_str().unwrap()]].concat())
    }

    /// Writes our solution over the skeleton of a folder.
    pub fn solve(&self, course: &str, folder: &str) {
        let from = Path::new(COURSES).join(course);
        for entry in fs::read_dir(from.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let to = self.path.join(path.strip_prefix(&from).unwrap());
            if path.is_file() && to.exists() {
                fs::copy(&path, &to).unwrap();
            }
        }
    }
}
