//! Exercises with and without mistakes.

use super::*;
use crate::template::Value as Drawn;
use crate::toml::{Table, Value};
use std::time::Duration;

fn parse(text: &str) -> Result<Exercise, Vec<Problem>> {
    Exercise::parse(text, Files::Folder(Path::new(".")))
}

#[test]
fn the_example_is_right() {
    let exercise = parse(EXAMPLE).unwrap();
    assert_eq!(
        (exercise.name.as_str(), exercise.points(), exercise.tasks.len()),
        ("Sum of two numbers", Points::whole(60), 1)
    );
    let task = &exercise.tasks[0];
    let values = task.values(3);
    assert_eq!(task.values(3), values);
    let input = String::from_utf8(task.input(&values).unwrap()).unwrap();
    let sum: i64 = input.split_whitespace().map(|number| number.parse::<i64>().unwrap()).sum();
    let drawn = values.iter().filter_map(|(_, value)| match value {
        Drawn::Number(number) => Some(*number),
        Drawn::Text(_) => None,
    });
    assert_eq!(sum, drawn.sum::<i64>());
    assert_eq!(task.settings.timeout.as_secs(), 5);
    assert_eq!(task.checks.iter().map(|check| check.points).collect::<Vec<_>>(), [None, Some(20), Some(10)]);
    assert_eq!(task.checks[2].visibility, Visibility::Hidden);
    assert!(task.checks.iter().all(|check| check.expectations(&values).unwrap().len() == 1));
}

/// The lines in comments are right, too.
#[test]
fn the_other_keys_of_the_example_are_right() {
    let mut text = String::new();
    for line in EXAMPLE.lines() {
        let has_file = ["_file", "initrd", "reference"].iter().any(|key| line.contains(key));
        let is_key = line.strip_prefix("# ").is_some_and(|rest| rest.starts_with(char::is_alphabetic));
        let is_other = is_key && line.contains(" = ") && !has_file;
        text += if is_other { &line[2..] } else { line };
        text.push('\n');
    }
    let exercise = parse(&text).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
    assert_eq!(exercise.tasks[0].checks[1].expectations(&exercise.tasks[0].values(1)).unwrap().len(), 8);
    assert_eq!(exercise.tasks[0].registers(&exercise.tasks[0].values(1)).unwrap().len(), 2);
}

/// A right exercise, with a line changed.
fn with(line: &str, other: &str) -> String {
    const RIGHT: &str = "version = 1\nname = \"x\"\n[run]\ntimeout = 1\n[[task]]\nname = \"t\"\npoints = 10\nfile = \"a.bin\"\n\
                         random = { a = [1, 9] }\n[[task.check]]\npoints = 5\noutput = \"{a}\"\n";
    assert!(RIGHT.contains(line), "{line}");
    let text = RIGHT.replacen(line, other, 1);
    assert!(line == other || parse(RIGHT).is_ok());
    text
}

#[test]
fn each_mistake_has_its_line_and_column() {
    for (line, other, at, message) in [
        ("version = 1", "version = 2", (1, 11), "version must be a number from 1 to 1"),
        ("version = 1\n", "", (1, 1), "version is missing"),
        ("name = \"x\"", "name = 3", (2, 8), "name must be a text, not a number"),
        ("name = \"x\"", "nane = \"x\"", (2, 1), "there is no key nane here: did you mean name?"),
        ("timeout = 1", "tiemout = 1", (4, 1), "did you mean timeout?"),
        ("timeout = 1", "timeout = -1", (4, 11), "timeout must be a number of seconds"),
        ("timeout = 1", "timeout = nan", (4, 11), "timeout must be a number of seconds"),
        ("timeout = 1", "mode = \"fast\"", (4, 8), "mode must be real (16)"),
        ("timeout = 1", "memory = \"5G\"", (4, 10), "memory must be a size from 1M to 3G"),
        ("timeout = 1", "transport = \"exits\"", (4, 13), "did you mean exit?"),
        ("timeout = 1", "kind = \"vm\"", (4, 8), "kind must be one of image, linux, vmm; did you mean vmm?"),
        ("timeout = 1", "kind = \"linux\"\nmode = 16", (5, 1), "mode has no meaning for kind = \"linux\""),
        (
            "timeout = 1",
            "kind = \"vmm\"\nmemory = \"1M\"",
            (5, 1),
            "memory has no meaning for kind = \"vmm\"",
        ),
        ("timeout = 1", "cmdline = \"quiet\"", (4, 1), "cmdline has no meaning for kind = \"image\""),
        ("timeout = 1", "kind = \"linux\"\ncmdline = \"\\u0000\"", (5, 11), "no zero byte"),
        (
            "timeout = 1",
            "kind = \"linux\"\ninitrd = \"../a\"",
            (5, 10),
            "cannot use ../a for initrd: it must be in",
        ),
        ("timeout = 1", "kind = \"vmm\"\nargs = [\"{b}\"]", (5, 1), "args: {b} is not a number"),
        ("name = \"x\"", "name = \"x\"\ndeadline = \"soon\"", (3, 12), "deadline must be a date and a time"),
        ("points = 10", "points = 10\nweight = 0.001", (8, 10), "weight must be a number from 0.01 to 100"),
        ("timeout = 1", "cpus = 33", (4, 8), "cpus must be a number from 1 to 32"),
        ("timeout = 1", "address = \"here\"", (4, 11), "address must be an address"),
        ("points = 10", "points = \"10\"", (7, 10), "points must be a number from 0 to 10000"),
        ("points = 10\n", "", (5, 3), "points is missing here"),
        ("\"a.bin\"", "\"../a.bin\"", (8, 8), "inside the directory"),
        ("\"a.bin\"", "\"/a.bin\"", (8, 8), "inside the directory"),
        ("[1, 9]", "[9, 1]", (9, 16), "the least and the largest number"),
        ("[1, 9]", "{ letters = [0, 9] }", (9, 16), "the least and the largest number of letters, 1 to 4096"),
        ("[1, 9]", "{ letter = [1, 9] }", (9, 18), "did you mean letters?"),
        ("points = 5", "points = 11", (11, 10), "points must be a number from 0 to 10"),
        (
            "points = 5",
            "visibility = \"secret\"",
            (11, 14),
            "visibility must be one of shown, hidden, after-deadline",
        ),
        ("points = 5", "zzz = 1", (11, 1), "the keys here are name, points, visibility"),
        ("\"{a}\"", "\"{b}\"", (12, 10), "the random values of the task are a"),
        ("output = \"{a}\"\n", "", (10, 8), "a check needs a condition"),
        ("output = \"{a}\"", "matches = \"(\"", (12, 11), "not a regular expression"),
        ("output = \"{a}\"", "contains = \"\"", (12, 12), "an empty text"),
        ("output = \"{a}\"", "expect = [\"ax=1\", \"rxx=1\"]", (12, 19), "no such register"),
        ("output = \"{a}\"", "exits = \"40\"", (12, 9), "give [SITE]<=N"),
        ("output = \"{a}\"", "memory = { at = 1, hex = \"2\" }", (12, 26), "two for each"),
        ("output = \"{a}\"", "memory = { hex = \"2a\" }", (12, 1), "memory needs an address"),
        (
            "output = \"{a}\"",
            "output_file = \"/nowhere\"",
            (12, 15),
            "cannot read /nowhere for output_file: it must be in the folder",
        ),
        ("output = \"{a}\"", "forbid = [\"mmio\", \"irqchip\"]", (12, 19), "no such feature of a guest"),
        ("output = \"{a}\"", "forbid = \"cpuid\"", (12, 10), "without an exit"),
        ("output = \"{a}\"", "step = \"one\"", (12, 8), "the task has none"),
        ("output = \"{a}\"", "time = { at_most = 2 }", (12, 1), "reference is missing here"),
        (
            "output = \"{a}\"",
            "time = { reference = \"a\", at_most = 2 }",
            (12, 22),
            "cannot read a for reference: No such file",
        ),
        ("[[task.check]]\n", "", (10, 1), "is given twice"),
        ("[[task]]", "[task]", (5, 2), "task must be an array of tables: write [[task]]"),
        ("random", "input_at = 1\nrandom", (9, 1), "input_at needs an input"),
        ("random", "registers = { rip = 1 }\nrandom", (9, 15), "entry point"),
        ("random", "input = \"{a\"\nrandom", (9, 9), "a brace has no partner"),
    ] {
        let text = with(line, other);
        let problems = parse(&text).unwrap_err();
        let found: Vec<_> = problems.iter().map(|one| (place(&text, one.at), one.message.as_str())).collect();
        assert!(
            found.iter().any(|(there, what)| *there == at && what.contains(message)),
            "{other}: {found:?}"
        );
    }
    let twice = with("version", "version")
        + "[[task]]\nname = \"t\"\nfile = \"b\"\npoints = 1\n[[task.check]]\nexits = \"=1\"\n";
    assert!(parse(&twice).unwrap_err()[0].message.contains("two tasks have the name"));
}

/// The tasks have these keys.
fn exercise_of(keys: &str) -> Result<Exercise, Vec<Problem>> {
    parse(&format!("version = 1\nname = \"x\"\n[[task]]\nname = \"t\"\nfile = \"a\"\npoints = 3\n{keys}"))
}

#[test]
fn a_weight_multiplies_points() {
    let task = |weight| {
        let keys = format!("weight = {weight}\n[[task.check]]\nexits = \"=1\"\n");
        exercise_of(&keys).unwrap().tasks.remove(0)
    };
    let worth = |weight| task(weight).worth(3).to_string();
    assert_eq!([worth("1"), worth("0.5"), worth("0.33"), worth("100")], ["3", "1.5", "0.99", "300"]);
    assert!(exercise_of("weight = 0.333\n[[task.check]]\nexits = \"=1\"\n").is_err());
}

#[test]
fn details_are_shown_after_the_deadline() {
    let text = with("name = \"x\"", "name = \"x\"\ndeadline = \"1970-01-02T00:00:00Z\"")
        .replace("points = 5", "visibility = \"after-deadline\"");
    let exercise = parse(&text).unwrap();
    let shown = |seconds| {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        exercise.clone().at(now).tasks[0].checks[0].visibility
    };
    assert_eq!(shown(86_399), Visibility::AfterDeadline);
    assert_eq!(shown(86_401), Visibility::Shown);
    assert_eq!(
        parse(&with("points = 5", "visibility = \"hidden\"")).unwrap().at(SystemTime::now()).tasks[0].checks
            [0]
        .visibility,
        Visibility::Hidden
    );
}

#[test]
fn a_vmm_has_the_conditions_that_can_be_seen() {
    let of_vmm =
        |check: &str| exercise_of(&format!("kind = \"vmm\"\nargs = [\"x\"]\n[[task.check]]\n{check}\n"));
    for right in [
        "output = \"a\"",
        "expect = [\"end=3\", \"ax=42\", \"u16@0x400=42\", \"end=crash\"]",
        "exits = \"<=3\"",
        "forbid = [\"irqchip\", \"ioeventfd\"]",
    ] {
        assert!(of_vmm(right).is_ok(), "{right}: {:?}", of_vmm(right));
    }
    for (wrong, message) in [
        ("expect = \"mode=real\"", "the mode of each exit is not seen"),
        ("expect = \"simvirtio=ready\"", "the state of its devices is not seen"),
        ("expect = \"end=halt\"", "end is the exit status of the program"),
        ("forbid = \"hypercall\"", "no such feature of a VMM"),
        ("time = { reference = \"a\", at_most = 2 }", "time is for kind = \"image\" only"),
    ] {
        let problems = of_vmm(wrong).unwrap_err();
        assert!(problems[0].message.contains(message), "{problems:?}");
    }
}

#[test]
fn a_file_that_is_no_exercise_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    std::fs::write(&path, "version = 1\nname = \"\x1b\"\n").unwrap();
    let problems = Exercise::open(&path).unwrap_err();
    assert!(problems[0].contains("a.toml:2:9: ") && !problems[0].contains('\x1b'), "{problems:?}");
    std::fs::write(&path, b"\xff").unwrap();
    assert!(Exercise::open(&path).unwrap_err()[0].ends_with("is not UTF-8 text"));
    assert!(Exercise::open(Path::new("/")).unwrap_err()[0].contains("cannot read /"));
}

/// For any text the parser returns, and each mistake has a place in it.
#[test]
fn a_damaged_exercise_never_panics() {
    const MARKS: [&str; 17] = [
        "",
        "\"",
        "'''",
        "[",
        "]",
        "[[",
        "{",
        "}",
        "{{",
        "=",
        ".",
        "\n",
        "\0",
        "é",
        "9999999999999999999",
        "-",
        "nan",
    ];
    for (at, _) in EXAMPLE.char_indices().step_by(11) {
        for mark in MARKS {
            let (before, after) = EXAMPLE.split_at(at);
            let rest = after.get(1..).unwrap_or_default();
            for text in
                [format!("{before}{mark}{after}"), format!("{before}{mark}{rest}"), format!("{before}{mark}")]
            {
                let problems = parse(&text).err().unwrap_or_default();
                assert!(
                    problems.iter().all(|problem| place(&text, problem.at).0 <= text.lines().count() + 1)
                );
            }
        }
    }
}

/// A small part of JSON Schema: type, enum, required, properties, additionalProperties, items, $ref.
fn validate(value: &Value, schema: &serde_json::Value, root: &serde_json::Value, place: &str) {
    let text = |key: &str| schema.get(key).and_then(serde_json::Value::as_str);
    if let Some(name) = text("$ref") {
        let definition = root.pointer(name.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{name}"));
        validate(value, definition, root, place);
        return;
    }
    let kind = match value {
        Value::Text(_) => "string",
        Value::Integer(_) => "integer",
        Value::Float(_) => "number",
        Value::Bool(_) => "boolean",
        Value::Array(_) => "array",
        Value::Table(_) => "object",
    };
    let kinds = match &schema["type"] {
        serde_json::Value::Array(kinds) => kinds.iter().filter_map(serde_json::Value::as_str).collect(),
        kind => vec![kind.as_str().unwrap_or_else(|| panic!("{place}: {schema}"))],
    };
    assert!(
        kinds.contains(&kind) || kind == "integer" && kinds.contains(&"number"),
        "{place}: {kind}, not {kinds:?}"
    );
    if let (Some(names), Value::Text(text)) = (schema["enum"].as_array(), value) {
        assert!(names.iter().any(|name| name == text.as_str()), "{place}: {text}");
    }
    match value {
        Value::Array(nodes) => {
            for node in nodes {
                validate(&node.value, &schema["items"], root, place);
            }
        }
        Value::Table(table) => validate_table(table, schema, root, place),
        _ => {}
    }
}

fn validate_table(table: &Table, schema: &serde_json::Value, root: &serde_json::Value, place: &str) {
    for needed in schema["required"].as_array().into_iter().flatten() {
        assert!(table.get(needed.as_str().unwrap()).is_some(), "{place}: {needed} is missing");
    }
    for entry in &table.entries {
        let place = format!("{place}.{}", entry.key);
        match (&schema["properties"][&entry.key], &schema["additionalProperties"]) {
            (serde_json::Value::Null, serde_json::Value::Bool(false)) => panic!("{place}: unknown"),
            (serde_json::Value::Null, other) => validate(&entry.node.value, other, root, &place),
            (known, _) => validate(&entry.node.value, known, root, &place),
        }
    }
}

#[test]
fn the_schema_fits_the_examples_and_has_all_keys() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/exercise.schema.json");
    let schema: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(docs).unwrap()).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/exercises");
    let mut texts = vec![EXAMPLE.to_string()];
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let file = entry.unwrap().path().join("exercise.toml");
        texts.extend(std::fs::read_to_string(file));
    }
    for text in texts {
        validate(&Value::Table(toml::parse(&text).unwrap()), &schema, &schema, "");
    }
    let keys = |pointer: &str| {
        let properties =
            schema.pointer(pointer).and_then(|one| one.as_object()).unwrap_or_else(|| panic!("{pointer}"));
        let mut keys: Vec<_> = properties.keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    };
    let sorted = |keys: &[&'static str]| {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        keys
    };
    assert_eq!(keys("/properties"), sorted(&KEYS));
    assert_eq!(keys("/properties/run/properties"), sorted(&RUN_KEYS));
    assert_eq!(keys("/$defs/task/properties"), sorted(&[&TASK_KEYS[..], &RUN_KEYS].concat()));
    assert_eq!(keys("/$defs/check/properties"), sorted(&CHECK_KEYS));
    assert_eq!(keys("/$defs/memory/properties"), sorted(&check::MEMORY_KEYS));
    assert_eq!(keys("/$defs/time/properties"), sorted(&check::TIME_KEYS));
    let texts = "/$defs/task/properties/random/additionalProperties/properties";
    assert_eq!(keys(texts), sorted(&random::TEXT_KEYS));
}

#[test]
fn an_image_that_cannot_be_read_is_the_only_mistake() {
    let text = "version = 1\nname = \"x\"\n[[task]]\nkind = \"vmm\"\nname = \"t\"\nfile = \"vmm\"\npoints = 1\nimage = \"missing\"\n\
                args = [\"{image}\"]\ncheck = [{ output = \"\" }]\n";
    let problems = parse(text).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].message.starts_with("cannot read missing for image: "), "{problems:?}");
}
