//! A class that is graded as a batch: the example exercise and its ten submissions.
#![allow(dead_code, reason = "each test uses a part")]

use crate::sum::{self, SUM, assembled};
use crate::support::{Files, Ran, run, vmm};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;

/// The exercise and the ten submissions, by name.
pub struct Class {
    pub files: Files,
    pub exercise: String,
}

impl Class {
    pub fn new() -> Self {
        let files = Files::new();
        assembled(&files);
        Self { files, exercise: format!("{SUM}/exercise.toml") }
    }

    pub fn path(&self, name: &str) -> String {
        self.files.0.path().join(name).to_str().unwrap().into()
    }

    /// The arguments that grade these submissions with seed 1.
    pub fn arguments(&self, submissions: &[String], options: &[&str]) -> Vec<String> {
        let options = options.iter().map(ToString::to_string);
        let first = ["grade".into(), self.exercise.clone()];
        first
            .into_iter()
            .chain(submissions.to_vec())
            .chain(["--seed".into(), "1".into()])
            .chain(options)
            .collect()
    }

    pub fn command(&self, submissions: &[String], options: &[&str]) -> Command {
        let arguments = self.arguments(submissions, options);
        vmm(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub fn grade(&self, submissions: &[String], options: &[&str]) -> Ran {
        run(&mut self.command(submissions, options))
    }

    pub fn all(&self) -> Vec<String> {
        sum::expected().iter().map(|(name, _)| self.path(name)).collect()
    }

    /// All but the endless one.
    pub fn quick(&self) -> Vec<String> {
        self.all().into_iter().filter(|path| !path.ends_with("/endless")).collect()
    }
}

/// The grades of a text in the format jsonl, by submission. The times are left out.
pub fn grades(text: &str) -> BTreeMap<String, Value> {
    let grade = |line: &str| {
        let mut grade: Value = serde_json::from_str(line).unwrap();
        grade.as_object_mut().unwrap().remove("milliseconds").unwrap();
        (grade["submission"].as_str().unwrap().to_string(), grade)
    };
    text.lines().map(grade).collect()
}

/// The points of a grade.
pub fn earned(grade: &Value) -> u64 {
    grade["earned"].as_u64().unwrap()
}
