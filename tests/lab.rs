//! `vmm lab`: our own solutions pass each exercise, and the skeletons that a reader gets do not.
#![allow(clippy::unwrap_used)]

#[path = "support/lab.rs"]
mod folder;
mod support;

use folder::Reader;
use lab::{Course, Exercise, Language};
use libtest_mimic::Trial;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use support::{Files, assert_error, kvm_test, machine_test, missing, plain_test, ran, run, test_unless, vmm};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        plain_test("a_new_folder_has_the_files_of_its_language", new),
        plain_test("a_folder_with_files_is_not_touched", not_empty),
        plain_test("hints_are_shown_one_by_one", hints),
        machine_test("hints_of_tasks_are_shown_one_by_one", hints_of_tasks),
        plain_test("a_folder_that_is_no_course_is_refused", refused),
        plain_test("an_exercise_that_cannot_be_built_says_so", broken),
        plain_test("hints_at_the_same_time_are_all_noted", at_once),
        plain_test("a_lock_that_stays_holds_nothing_up", locked),
        plain_test("a_state_that_cannot_be_written_hides_no_hint", unwritable),
        plain_test("a_link_in_the_place_of_the_new_state_is_not_followed", linked),
        plain_test("a_course_of_another_user_above_is_not_built", other_user),
        plain_test("a_course_that_cannot_be_written_is_said_to_be_incomplete", incomplete),
        test_unless(
            || missing("script"),
            "make_may_write_to_a_terminal_that_stops_background_writers",
            tostop,
        ),
        kvm_test("an_image_is_found_in_a_relative_folder_and_leaves_nothing", temporary_folders),
    ];
    let course = course("first-vmm");
    let with_image = course.exercises.iter().filter(|exercise| exercise.check.contains("image_text"));
    tests.extend(with_image.map(forged));
    for language in Language::ALL {
        tests.extend(course.exercises.iter().map(|exercise| of_exercise(exercise, language)));
        tests.push(kvm_test(format!("so2_has_all_points::{}", language.name()), move || {
            graded("so2", language, "100/100");
        }));
        tests.push(kvm_test(format!("kev_has_all_points::{}", language.name()), move || {
            graded("kev", language, "35/35");
        }));
    }
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn course(name: &str) -> Course {
    Course::open(name).unwrap().unwrap()
}

/// The test of an exercise: the skeleton is built and fails, and the solution passes.
fn of_exercise(exercise: &Exercise, language: Language) -> Trial {
    let Exercise { number, folder, check, .. } = exercise.clone();
    let name = format!("{folder}::{}", language.name());
    let body = move || {
        let number = number.to_string();
        let reader = Reader::new("first-vmm", language);
        let skeleton = reader.lab(&["check", &number]);
        assert_eq!(skeleton.status, 111, "the skeleton:\n{}{}", skeleton.text(), skeleton.stderr);
        assert!(skeleton.stderr.contains(") is not done: "), "{}", skeleton.stderr);
        reader.solve("first-vmm", &folder);
        let solution = reader.lab(&["check", &number]);
        assert_eq!(solution.status, 0, "the solution:\n{}{}", solution.text(), solution.stderr);
        assert!(!solution.stderr.contains("warning"), "{}", solution.stderr);
        assert!(solution.stderr.contains(&format!("vmm: exercise {number} (")), "{}", solution.stderr);
        let list = reader.lab(&["list"]).text();
        assert!(list.contains(&format!("{number:>2}  done")), "{list}");
    };
    match check.contains("kind = \"vmm\"") {
        true => kvm_test(name, body),
        false => machine_test(name, body),
    }
}

/// A program that reads the text from the image, and runs no guest, gets no points.
fn forged(exercise: &Exercise) -> Trial {
    let Exercise { number, folder, check, .. } = exercise.clone();
    kvm_test(format!("{folder}::forged"), move || {
        let reader = Reader::new("first-vmm", Language::C);
        // A wrong file (exercise 15) must be refused without a guest, so a program that refuses all files has these points.
        let may_fail = check.contains("end=1") && !check.contains("\"=0\"");
        for status in ["0", "1"].into_iter().filter(|status| *status == "0" || may_fail) {
            let program = FORGED.replace("STATUS", status);
            fs::write(reader.path.join(&folder).join("vmm.c"), program).unwrap();
            let checked = reader.lab(&["check", &number.to_string()]);
            let text = checked.text();
            let of_vmm = text.lines().filter(|line| line.starts_with(' ') && !line.starts_with("        "));
            let mut points = of_vmm.filter_map(|line| line.trim().split_once('/')).map(|(points, _)| points);
            assert_eq!(checked.status, 111, "{text}{}", checked.stderr);
            assert!(points.all(|points| points == "0"), "{text}");
        }
    })
}

/// Prints the text at the end of its first argument, a file, and ends with a status.
const FORGED: &str = r#"
#include <stdio.h>
int main(int count, char **words)
{
    static char image[1 << 20];
    FILE *file = count > 1 ? fopen(words[1], "r") : NULL;
    long end = file ? (long)fread(image, 1, sizeof(image) - 1, file) - 1 : 0;
    long start = end;
    while (start > 0 && image[start - 1]) start--;
    fputs(image + start, stdout);
    return STATUS;
}
"#;

/// `make` grades a course of its own: few points for the skeleton, and all for the solution.
fn graded(name: &str, language: Language, points: &str) {
    let reader = Reader::new(name, language);
    let program = Path::new(env!("CARGO_BIN_EXE_vmm")).parent().unwrap();
    let paths = std::env::join_paths(
        [program.to_owned()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let make = || {
        run(Command::new("make")
            .arg("-C")
            .arg(&reader.path)
            .env("PATH", paths.as_ref().unwrap())
            .stdout(Stdio::piped()))
    };
    let skeleton = make();
    assert!(
        skeleton.status != 0 && !skeleton.text().contains(points),
        "{}{}",
        skeleton.text(),
        skeleton.stderr
    );
    assert!(
        skeleton.text().contains(&points[points.find('/').unwrap()..]),
        "{}{}",
        skeleton.text(),
        skeleton.stderr
    );
    for folder in ["", "guests"] {
        if reader.path.join(folder).is_dir() {
            reader.solve(name, folder);
        }
    }
    let solution = make();
    assert!(
        solution.status == 0 && solution.text().contains(points),
        "{}{}",
        solution.text(),
        solution.stderr
    );
}

fn new() {
    for (language, has, lacks) in [(Language::C, "vmm.c", "vmm.rs"), (Language::Rust, "vmm.rs", "vmm.c")] {
        for name in lab::NAMES {
            let reader = Reader::new(name, language);
            let course = course(name);
            for (path, content) in course.files(language) {
                assert_eq!(fs::read(reader.path.join(path)).unwrap(), content, "{path}");
            }
            let folder = course
                .exercises
                .iter()
                .find(|one| one.folder.ends_with("real-mode"))
                .map_or("", |one| &one.folder);
            assert!(reader.path.join(folder).join(has).exists(), "{name}");
            assert!(!reader.path.join(folder).join(lacks).exists(), "{name}");
        }
    }
    let list = ran(&["lab", "list", "-C", "/"]);
    assert_error(&list, 116, "/ is not the folder of a course: `vmm lab new first-vmm DIR` writes one");
    let wrong = ran(&["lab", "new", "second-vmm", "x"]);
    assert!(wrong.status == 110 && wrong.stderr.contains("first-vmm"), "{}", wrong.stderr);
}

fn not_empty() {
    let files = Files::new();
    files.write("mine.c", b"mine");
    let path = files.0.path().to_str().unwrap();
    assert_error(&ran(&["lab", "new", "so2", path]), 110, "has files: give the name of a new folder");
    assert_eq!(fs::read_dir(path).unwrap().count(), 1);
    assert_error(&ran(&["lab", "new", "so2", &format!("{path}/mine.c")]), 110, "cannot use the folder");
    assert_error(&ran(&["lab", "new", "so2", &format!("{path}/mine.c/x")]), 110, "cannot use the folder");
}

fn hints() {
    let reader = Reader::new("first-vmm", Language::C);
    let course = course("first-vmm");
    let all = &course.exercises[0].hints;
    for (number, hint) in (1..).zip(all.iter().chain([all.last().unwrap()])) {
        let shown = reader.lab(&["hint", "1"]).text();
        let head = format!(", hint {} of {}:\n", number.min(all.len()), all.len());
        assert!(shown.contains(&head) && shown.contains(hint.trim_end()), "{shown}");
    }
    let every = reader.lab(&["hint", "1", "--all"]).text();
    assert!(all.iter().all(|hint| every.contains(hint.trim_end())), "{every}");
    assert_error(&reader.lab(&["hint", "99"]), 110, "there is no exercise 99: they are 1 to ");
    // The next exercise that is not done is the first one.
    assert_eq!(reader.lab(&["hint", "--all"]).text(), every);
}

/// The hints of a course that `vmm grade` grades are those of its tasks, which have the names of the grade.
fn hints_of_tasks() {
    let reader = Reader::new("so2", Language::C);
    let tasks = course("so2").tasks;
    let shown = |arguments: &[&str]| reader.lab(&[&["hint"], arguments].concat()).text();
    let head = |task: usize, hint: usize| {
        let (title, count) = (&tasks[task - 1].title, tasks[task - 1].hints.len());
        format!(
            "task {task} ({title}), hint {hint} of {count}:\n\n{}",
            tasks[task - 1].hints[hint - 1].trim()
        )
    };
    assert_eq!(shown(&["3"]).trim_end(), head(3, 1));
    assert_eq!(shown(&["3"]).trim_end(), head(3, 2));
    // Without a number, the first task that has more.
    for hint in 1..=tasks[0].hints.len() {
        assert_eq!(shown(&[]).trim_end(), head(1, hint));
    }
    assert_eq!(shown(&[]).trim_end(), head(2, 1));
    assert_error(&reader.lab(&["hint", "9"]), 110, "there is no task 9: they are 1 to 5");
    let list = reader.lab(&["list"]).text();
    let grade = ran(&["grade", "so2", "--reference"]).text();
    for (number, task) in (1..).zip(&tasks) {
        assert!(list.contains(&format!("  {number}  {}\n", task.title)), "{list}");
        assert!(grade.contains(&format!("  {}\n", task.title)), "{grade}");
    }
}

fn refused() {
    let reader = Reader::new("first-vmm", Language::C);
    let state = reader.path.join(".vmm-lab");
    for (text, why) in [
        ("course = first-vmm\ndone = 1 x\n", ".vmm-lab:2: \"done = 1 x\" is not understood: remove the line"),
        ("", "names no course of this program"),
        ("course = first-vmm\n\u{1b}[2J = 1\n", "is not understood"),
    ] {
        fs::write(&state, text).unwrap();
        for command in ["list", "check", "hint"] {
            let refused = reader.lab(&[command]);
            assert_error(&refused, 116, why);
            assert!(!refused.stderr.contains('\u{1b}'), "{}", refused.stderr);
        }
    }
    fs::write(&state, vec![b'\n'; 1 << 20]).unwrap();
    assert_error(&reader.lab(&["list"]), 116, "it has more than 64K");
    fs::remove_file(&state).unwrap();
    fs::create_dir(&state).unwrap();
    assert_error(&reader.lab(&["check"]), 116, "it is not a regular file");
}

fn broken() {
    let reader = Reader::new("first-vmm", Language::C);
    let folder = course("first-vmm")
        .exercises
        .iter()
        .find(|one| one.check.contains("kind = \"vmm\""))
        .unwrap()
        .clone();
    let source = reader.path.join(&folder.folder).join("vmm.c");
    fs::write(&source, "int main(void) { return x; }\n").unwrap();
    let failed = reader.lab(&["check", &folder.number.to_string()]);
    assert_eq!(failed.status, 116, "{}", failed.stderr);
    let last = failed.stderr.lines().last().unwrap();
    assert_eq!(
        last,
        format!("vmm: error: make {} failed: mend the first error above, and check again", folder.folder)
    );
    assert!(failed.stderr.contains("vmm.c:1:"), "{}", failed.stderr);
    fs::remove_file(&source).unwrap();
    let empty = reader.lab(&["check", &folder.number.to_string()]);
    assert_ne!(empty.status, 0, "{}{}", empty.text(), empty.stderr);
}

fn at_once() {
    let reader = Reader::new("first-vmm", Language::C);
    std::thread::scope(|scope| {
        for number in 1..=12 {
            let reader = &reader;
            scope.spawn(move || assert_eq!(reader.lab(&["hint", &number.to_string()]).status, 0));
        }
    });
    let state = fs::read_to_string(reader.path.join(".vmm-lab")).unwrap();
    assert!((1..=12).all(|number| state.contains(&format!(" {number}:1"))), "{state}");
}

fn locked() {
    let reader = Reader::new("first-vmm", Language::C);
    let lock = fs::File::open(&reader.path).unwrap();
    lock.lock().unwrap();
    let hint = reader.lab(&["hint", "1"]);
    assert!(hint.status == 0 && hint.text().contains(", hint 1 of "), "{}", hint.stderr);
    assert!(reader.lab(&["hint", "1"]).text().contains(", hint 2 of "));
}

fn unwritable() {
    let reader = Reader::new("first-vmm", Language::C);
    // Root can write into any folder, but not over a folder.
    fs::create_dir(reader.path.join(".vmm-lab.new")).unwrap();
    let hint = reader.lab(&["hint", "1"]);
    assert_eq!(hint.status, 115, "{}", hint.stderr);
    assert!(hint.stderr.contains("writing the state of the course (.vmm-lab) failed: "), "{}", hint.stderr);
    assert!(hint.text().contains(", hint 1 of "), "{}", hint.text());
}

fn linked() {
    let reader = Reader::new("first-vmm", Language::C);
    let precious = reader.path.join("precious");
    fs::write(&precious, "precious").unwrap();
    symlink(&precious, reader.path.join(".vmm-lab.new")).unwrap();
    assert_eq!(reader.lab(&["hint", "1"]).status, 0);
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert!(reader.path.join(".vmm-lab").symlink_metadata().unwrap().is_file());
}

fn other_user() {
    let reader = Reader::new("first-vmm", Language::C);
    let state = reader.path.join(".vmm-lab");
    let below = reader.path.join("01-what-is-a-vm");
    let list = |folder: &Path| run(vmm(&["lab", "list"]).current_dir(folder));
    assert!(list(&below).text().contains("01-what-is-a-vm/"));
    // Only root can give a file to another user.
    if chown(&state, Some(65534), None).is_ok() {
        let refused = run(vmm(&["lab", "check", "1"]).current_dir(&below));
        assert_error(&refused, 116, " belongs to another user, whose Makefile would run: -C ");
        assert!(list(&reader.path).text().contains("01-what-is-a-vm/"));
    }
}

fn incomplete() {
    let files = Files::new();
    let path = files.0.path().join("new");
    // The files are larger than this limit (of 512 bytes), at which the shell's child gets SIGXFSZ unless it is ignored.
    let made = run(Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" lab new first-vmm \"$1\""])
        .arg(env!("CARGO_BIN_EXE_vmm"))
        .arg(&path)
        .stdout(Stdio::piped()));
    assert_eq!(made.status, 115, "{}", made.stderr);
    let incomplete = format!("vmm: {} is incomplete: remove it\nvmm: error: ", path.display());
    assert!(made.stderr.starts_with(&incomplete), "{}", made.stderr);
}

fn tostop() {
    let reader = Reader::new("first-vmm", Language::C);
    fs::write(reader.path.join("02-open-kvm/vmm.c"), "int main(void) { return x; }\n").unwrap();
    let lab = format!("{} lab check 2 -C {}", env!("CARGO_BIN_EXE_vmm"), reader.path.display());
    let script = run(Command::new("timeout")
        .args(["60", "script", "-qec", &format!("stty tostop; {lab}"), "/dev/null"])
        .stdout(Stdio::piped()));
    assert!(script.text().contains("make 02-open-kvm failed"), "{}{}", script.text(), script.stderr);
    assert_eq!(script.status, 116, "{}", script.text());
}

fn temporary_folders() {
    let reader = Reader::new("first-vmm", Language::C);
    reader.solve("first-vmm", "05-real-mode");
    let check =
        |folder: &Path| run(vmm(&["lab", "check", "5"]).current_dir(&reader.path).env("TMPDIR", folder));
    fs::create_dir(reader.path.join("relative")).unwrap();
    let relative = check(Path::new("relative"));
    assert_eq!(relative.status, 0, "{}{}", relative.text(), relative.stderr);
    let wrong = reader.path.join(std::ffi::OsStr::from_bytes(b"not\xff"));
    fs::create_dir(&wrong).unwrap();
    assert_error(&check(&wrong), 115, "TMPDIR must be UTF-8");
    assert_eq!(fs::read_dir(&wrong).unwrap().count(), 0);
}
