//! The text for one student.

use crate::clean::{NAME, clean};
use crate::format::text;
use crate::{Grade, Options};

/// The text for the student of a submission: the points with the evidence that a student sees.
pub fn feedback(grade: &Grade, deadline_passed: bool) -> String {
    let options = Options { deadline_passed, ..Options::default() }.for_student();
    let (submission, exercise) = (clean(&grade.submission, NAME), clean(&grade.exercise, NAME));
    format!("{exercise}: {submission}\n\n{}", text::of_one(grade, options))
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
}
