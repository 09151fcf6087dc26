//! The text for one student.

use crate::clean::{NAME, clean};
use crate::format::text;
use crate::{Grade, Options};
use std::fmt::Write as _;

/// The most bytes of the name of a feedback file, without its end.
const FILE_NAME: usize = 100;
/// The length of the digest in a file name.
const DIGEST: usize = 16;

/// The text for the student of a submission: the points with the evidence that a student sees.
pub fn feedback(grade: &Grade, deadline_passed: bool) -> String {
    let options = Options { deadline_passed, ..Options::default() }.for_student();
    let (submission, exercise) = (clean(&grade.submission, NAME), clean(&grade.exercise, NAME));
    format!("{exercise}: {submission}\n\n{}", text::of_one(grade, options))
}

/// The name of the feedback file of a submission: letters, digits, `.`, `_` and `-` of its path, and `.txt`. Other characters
/// become `_`; a name that changes so has a digest of the path at its end, so that two submissions never share a file.
pub fn feedback_file(grade: &Grade) -> String {
    let path = &grade.submission;
    let allowed = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
    let mut name: String = path.chars().map(|c| if allowed(c) { c } else { '_' }).take(FILE_NAME).collect();
    let ends_as_a_digest = name
        .rsplit_once('-')
        .is_some_and(|(_, end)| end.len() == DIGEST && end.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if name != *path || name.starts_with(['.', '-']) || name.is_empty() || ends_as_a_digest {
        name = name.trim_start_matches(['.', '-', '_']).to_owned();
        let separator = if name.is_empty() { "" } else { "-" };
        // Writing to a String cannot fail.
        let _ = write!(name, "{separator}{:0DIGEST$x}", digest(path));
    }
    name + ".txt"
}

/// The digest FNV-1a of a text.
fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |digest: u64, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Visibility;
    use crate::format::tests::{failed, grade};

    #[test]
    fn a_student_sees_no_hidden_details() {
        let mut grade = grade("ana", 40);
        for check in grade.tasks.iter_mut().flat_map(|task| &mut task.checks).filter(|check| !check.passed) {
            check.visibility = Visibility::AfterDeadline;
            check.name = "few exits".into();
        }
        let before = feedback(&grade, false);
        assert_eq!(
            before,
            "Sum: ana\n\n 40/60  two numbers\n        + the run ended: halted\n        - few exits (hidden); costs 20 points\n 40/60\n"
        );
        assert!(feedback(&grade, true).contains("- few exits: exits must be at most 12"));
        assert_eq!(feedback(&failed("ana"), false), "Sum: ana\n\nnot graded: the grading failed\n");
    }

    #[test]
    fn a_feedback_file_has_a_safe_name() {
        let name = |path: &str| feedback_file(&grade(path, 0));
        assert_eq!(name("ana_2.tar"), "ana_2.tar.txt");
        let hostile = [
            "../../etc/passwd",
            "a/b",
            "a_b/",
            "a\nb",
            "",
            ".",
            "..",
            "-rf",
            "é",
            "a b",
            "a_b-0123456789abcdef",
            &"x".repeat(300),
            &"x".repeat(301),
        ];
        let mut names: Vec<String> = hostile.iter().map(|path| name(path)).collect();
        for name in &names {
            assert!(
                !name.contains(['/', '\n', ' ']) && !name.starts_with(['.', '-']) && name.len() < 130,
                "{name}"
            );
            assert!(name.ends_with(".txt") && name.is_ascii(), "{name}");
        }
        names.push(name("a_b"));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), hostile.len().saturating_add(1));
    }
}
