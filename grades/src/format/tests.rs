//! The formats, for grades with usual and with hostile texts. tests/grade_formats.rs reads them with other programs.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test that finds no grade fails")]

use super::*;
use crate::{Check, Points, Task, View, Visibility};

/// A grade of 60 points with one task. Without all points, a check failed that costs the rest.
pub(crate) fn grade(submission: &str, earned: u32) -> Grade {
    let passed = earned == 60;
    let cost = Points::whole(60).saturating_sub(Points::whole(earned));
    let text = if passed {
        "at most 12 exits".into()
    } else {
        format!("exits must be at most 12, and there were 21; costs {cost} points")
    };
    let checks = [
        (true, "the run ended: halted".to_owned(), None),
        (passed, text, Some(if passed { Points::whole(20) } else { cost })),
    ];
    let check = |(passed, text, cost)| Check {
        passed,
        name: String::new(),
        text,
        cost,
        visibility: Visibility::Shown,
    };
    Grade {
        submission: submission.into(),
        exercise: "Sum".into(),
        seed: 7,
        error: None,
        tasks: vec![Task {
            name: "two numbers".into(),
            points: Points::whole(60),
            earned: Points::whole(earned),
            checks: checks.map(check).into(),
        }],
        milliseconds: 1005,
    }
}

/// A submission that was not graded.
pub(crate) fn failed(submission: &str) -> Grade {
    Grade { error: Some("the host has no memory".into()), tasks: Vec::new(), ..grade(submission, 0) }
}

/// A grade whose failed check is hidden.
fn hidden(visibility: Visibility) -> Grade {
    let mut grade = grade("ana", 40);
    grade.tasks[0].checks[1].visibility = visibility;
    grade.tasks[0].checks[1].name = "few exits".into();
    grade
}

/// Four submissions.
pub(crate) fn class() -> Vec<Grade> {
    vec![grade("ana", 40), hidden(Visibility::Hidden), failed("dan"), grade("eva", 60)]
}

/// A grade in which each text attacks a format.
pub(crate) fn hostile() -> Grade {
    let text = "\"]]>',<&\u{0}\u{1b}[2J\u{9b}\u{ffff}\u{202e}\r\n::error::\nok 9\nBail out!\n1..0 # SKIP\\\nTotal: 100\n<VMCK_NEXT_END>";
    let mut grade = grade(&format!("=HYPERLINK(\"x\"){text}"), 0);
    grade.exercise = format!("@SUM(1){text}");
    grade.tasks[0].name = format!("# TODO {text}");
    grade.tasks[0].checks[0].name = text.repeat(1000);
    grade.tasks[0].checks[1].text = text.repeat(1000);
    grade
}

fn one(format: Format, grade: &Grade) -> String {
    format.write(std::slice::from_ref(grade), Options::default()).unwrap()
}

#[test]
fn formats_have_names() {
    for (format, name) in Format::ALL.into_iter().zip(Format::NAMES) {
        assert_eq!((Format::from_name(name), format.name()), (Some(format), name));
    }
    assert_eq!(Format::from_name("xml"), None);
}

#[test]
fn some_formats_are_for_one_submission() {
    for format in Format::ALL {
        for grades in [&class()[..], &[]] {
            let written = format.write(grades, Options::default());
            assert_eq!(written.is_err(), format.is_for_one(), "{format:?}");
        }
    }
    let error = Format::Github.write(&class(), Options::default()).unwrap_err().to_string();
    assert!(error.starts_with("the format github is for one submission, and there are 4: "), "{error}");
}

#[test]
fn text_is_the_evidence_of_one_or_a_table_of_several() {
    assert_eq!(
        one(Format::Text, &grade("ana", 40)),
        " 40/60  two numbers\n        + the run ended: halted\n        - exits must be at most 12, and there were 21; costs 20 \
         points\n 40/60\n"
    );
    assert_eq!(one(Format::Text, &failed("ana")), "not graded: the host has no memory\n");
    assert_eq!(
        Format::Text.write(&class(), Options::default()).unwrap(),
        "submission  two numbers  total\n\
         ana               40/60  40/60\n\
         ana               40/60  40/60\n\
         dan         not graded: the host has no memory\n\
         eva               60/60  60/60\n\
         4 submissions: mean 46.67, median 40, 1 with all points, 1 not graded\n"
    );
    let mut unnamed = grade("kev", 60);
    unnamed.tasks[0].name.clear();
    unnamed.tasks[0].checks.truncate(1);
    assert_eq!(one(Format::Text, &unnamed), " 60/60  + the run ended: halted\n 60/60\n");
}

#[test]
fn json_is_stable() {
    let line = one(Format::Jsonl, &grade("ana", 40));
    assert_eq!(
        line,
        "{\"version\":1,\"submission\":\"ana\",\"exercise\":\"Sum\",\"seed\":7,\"points\":60,\"earned\":40,\"error\":null,\
         \"milliseconds\":1005,\"tasks\":[{\"name\":\"two numbers\",\"points\":60,\"earned\":40,\"checks\":[{\"passed\":true,\
         \"name\":\"\",\"text\":\"the run ended: halted\",\"cost\":null,\"visibility\":\"shown\"},{\"passed\":false,\"name\":\"\",\
         \"text\":\"exits must be at most 12, and there were 21; costs 20 points\",\"cost\":20,\"visibility\":\"shown\"}]}]}\n"
    );
    let document = Format::Json.write(&class(), Options::default()).unwrap();
    let value: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(value["grades"][0], serde_json::from_str::<serde_json::Value>(&line).unwrap());
    assert_eq!(value["grades"][2]["error"], "the host has no memory");
    assert_eq!(value["statistics"]["mean"], 46.67);
    assert!(
        serde_json::from_str::<serde_json::Value>(&Format::Json.write(&[], Options::default()).unwrap())
            .is_ok()
    );
}

#[test]
fn a_student_sees_no_hidden_text_in_any_format() {
    for visibility in [Visibility::Hidden, Visibility::AfterDeadline] {
        for (view, deadline_passed) in [(View::Teacher, false), (View::Student, false), (View::Student, true)]
        {
            let sees = view == View::Teacher || (visibility == Visibility::AfterDeadline && deadline_passed);
            for format in [Format::Text, Format::Json, Format::Jsonl, Format::Junit, Format::Tap] {
                let text = format.write(&[hidden(visibility)], Options { view, deadline_passed }).unwrap();
                assert_eq!(text.contains("and there were 21"), sees, "{format:?} {view:?} {text}");
                assert!(text.contains("few exits"), "{format:?} {text}");
            }
        }
    }
    // These formats are for students in any case.
    for (visibility, deadline_passed) in
        [(Visibility::Hidden, true), (Visibility::AfterDeadline, false), (Visibility::AfterDeadline, true)]
    {
        let sees = visibility == Visibility::AfterDeadline && deadline_passed;
        let options = Options { view: View::Teacher, deadline_passed };
        let text = Format::Vmchecker.write(&[hidden(visibility)], options).unwrap();
        assert_eq!(text.contains("and there were 21"), sees, "{text}");
        let results = Format::Gradescope.write(&[hidden(visibility)], options).unwrap();
        let results: serde_json::Value = serde_json::from_str(&results).unwrap();
        let output = results["tests"][0]["output"].as_str().unwrap();
        assert_eq!(output.contains("and there were 21"), sees, "{output}");
        let details = &results["tests"][1];
        let expected = match (visibility, sees) {
            (_, true) => None,
            (Visibility::Hidden, _) => Some("hidden"),
            _ => Some("after_due_date"),
        };
        assert_eq!(details["visibility"].as_str(), expected);
        assert_eq!(details["output"].as_str().is_some_and(|text| text.contains("21")), !sees);
    }
}

#[test]
fn gradescope_gets_no_score_without_a_grade() {
    let error = Format::Gradescope.write(&[failed("ana")], Options::default()).unwrap_err().to_string();
    assert_eq!(error, "the format gradescope is for grades only, and there is none: the host has no memory");
}

#[test]
fn hostile_texts_stay_in_their_place() {
    for format in Format::ALL {
        let text = one(format, &hostile());
        let controls = text.chars().filter(|c| c.is_control() && !['\n', '\r'].contains(c)).count();
        assert_eq!(controls, 0, "{format:?} {text}");
        assert!(text.len() < 40_000, "{format:?} {}", text.len());
        assert!(!text.contains(['\u{ffff}', '\u{202e}']), "{format:?}");
        assert!(
            !text
                .lines()
                .any(|line| line.starts_with("ok 9") || line.starts_with("Bail") || line.starts_with("::"))
        );
    }
    let csv = one(Format::Csv, &hostile());
    assert_eq!(csv.matches("\r\n").count(), 2, "{csv}");
    assert!(csv.contains("\r\n\"'=HYPERLINK(\"\"x\"\")") && csv.contains(",\"'@SUM(1)"), "{csv}");
    let tap = one(Format::Tap, &hostile());
    let mut results = tap.lines().filter(|line| line.starts_with("ok ") || line.starts_with("not ok "));
    assert!(results.all(|line| !line.contains(" # ") && line.contains("\\# TODO")), "{tap}");
    assert!(tap.ends_with("\n1..2\n"), "{tap}");
    let vmchecker = one(Format::Vmchecker, &hostile());
    assert!(vmchecker.starts_with("Total: 0\n") && vmchecker.matches("Total:").count() == 1, "{vmchecker}");
    assert!(!vmchecker.contains("<VMCK_NEXT"), "{vmchecker}");
}

#[test]
fn whole_points_are_rounded_down_in_their_sum() {
    let mut grade = grade("ana", 40);
    grade.tasks[0].earned = Points::from_hundredths(1050);
    grade.tasks.push(Task {
        name: "b".into(),
        earned: Points::from_hundredths(2075),
        ..grade.tasks[0].clone()
    });
    assert!(one(Format::Vmchecker, &grade).starts_with("Total: 31\n"));
    assert!(one(Format::Csv, &grade).contains(",31.25,120,"));
}
