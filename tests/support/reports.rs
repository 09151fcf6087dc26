//! Files of runs for `vmm report`, and its output.

use crate::saved;
use crate::support::{Files, ran};
use report::{SavedProfile, SavedTrace};

/// Runs `vmm report`, which must succeed, and returns its output.
pub fn report(arguments: &[&str]) -> String {
    let ran = ran(&[&["report"], arguments].concat());
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{arguments:?}");
    ran.text()
}

pub fn profile_in(files: &Files, name: &str, profile: &SavedProfile) -> String {
    files.write(name, &saved::profile_file(profile))
}

pub fn trace_in(files: &Files, name: &str, trace: &SavedTrace) -> String {
    files.write(name, &saved::trace_file(trace))
}

/// Returns the lines of a table in a text report, without its title.
pub fn table<'a>(text: &'a str, title: &str) -> Vec<&'a str> {
    let lines = text.lines().skip_while(|line| !line.starts_with(title)).skip(1);
    lines.take_while(|line| !line.is_empty()).collect()
}
