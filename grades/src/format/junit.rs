//! JUnit XML: a test suite for each submission, and a test case for each check.

use crate::clean::{NAME, TEXT, clean};
use crate::format::json::joined;
use crate::{Check, Grade, Options, view};
use std::fmt::Write as _;

/// The document. Attributes that the schema of the Ant tasks adds to that of Jenkins are left out.
pub fn document(grades: &[Grade], options: Options) -> String {
    let suites = joined(grades.iter().map(|grade| suite(grade, options)), "");
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n{suites}</testsuites>\n")
}

fn suite(grade: &Grade, options: Options) -> String {
    let (mut cases, mut tests, mut failures) = (String::new(), 0usize, 0usize);
    let exercise = escaped(&grade.exercise, NAME);
    for (task, checks) in view::tasks(grade) {
        let class = format!("{exercise}.{}", escaped(&task, NAME));
        for (name, check) in view::checks(checks) {
            tests = tests.saturating_add(1);
            failures = failures.saturating_add(usize::from(!check.passed));
            cases += &case(&class, &name, check, options);
        }
    }
    if let Some(error) = options.error(grade) {
        tests = tests.saturating_add(1);
        let error = escaped(&error, TEXT);
        // Writing to a String cannot fail.
        let _ = write!(
            cases,
            "    <testcase classname=\"{exercise}\" name=\"grading\" time=\"0\">\n      <error type=\"not graded\" message=\"{error}\"/>\n    \
             </testcase>\n"
        );
    }
    format!(
        "  <testsuite name=\"{}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"{}\" skipped=\"0\" time=\"{}.{:03}\">\n    \
         <properties>\n      <property name=\"earned\" value=\"{}\"/>\n      <property name=\"points\" value=\"{}\"/>\n      \
         <property name=\"seed\" value=\"{}\"/>\n    </properties>\n{cases}  </testsuite>\n",
        escaped(&grade.submission, NAME),
        u8::from(grade.error.is_some()),
        grade.milliseconds / 1000,
        grade.milliseconds % 1000,
        grade.earned(),
        grade.points(),
        grade.seed,
    )
}

fn case(class: &str, name: &str, check: &Check, options: Options) -> String {
    let head = format!("    <testcase classname=\"{class}\" name=\"{}\" time=\"0\"", escaped(name, NAME));
    match check.passed {
        true => head + "/>\n",
        false => format!(
            "{head}>\n      <failure type=\"check\" message=\"{}\"/>\n    </testcase>\n",
            escaped(&options.sentence(check), TEXT)
        ),
    }
}

/// A text for an attribute. A clean text has no character that XML forbids.
fn escaped(text: &str, limit: usize) -> String {
    let mut escaped = String::new();
    for c in clean(text, limit).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}
