//! Fuzzes exercises in files, and the expectations of `vmm run --expect`: valid ones with damage, and texts of any kind. A model
//! knows the result of simple conditions.
#![no_main]

use exercise::expect::{ExitLimit, Expectation};
use exercise::read::Files;
use exercise::template::{Value, fill};
use exercise::{Check, Exercise, Facts, Memory, RunEnd, SiteExits};
use libfuzzer_sys::fuzz_target;
use simvirtio::device::State;
use vmm::exit::{Reason, Site, Stop};
use vmm::x86::{Mode, Regs, Sregs};
use vmm_fuzz::Script;

/// Lines of the settings, with one or two keys each.
const SETTINGS: [&str; 8] = [
    "mode = \"real\"\naddress = 0x1000",
    "mode = 64",
    "memory = \"1M\"\ncpus = 2",
    "machine = \"pc\"",
    "transport = \"polling\"",
    "timeout = 0.25",
    "output_limit = 4096",
    "kind = \"image\"",
];
/// Lines of a check that are right.
const CONDITIONS: [&str; 12] = [
    "output = \"{a+b}\\n\"",
    "contains = [\"{word}\", \"x\"]",
    "matches = '^[0-9]+$'",
    "expect = [\"ax={a}\", \"u16@0x400=42\"]",
    "expect = \"end=halt\"",
    "expect = \"simvirtio=ready\"",
    "exits = [\"<=12\", \"PIO out 0xe9/1>=1\"]",
    "exits = \"simvirtio={b}\"",
    "memory = { at = 0x400, hex = \"2a 00\" }",
    "memory = { at = \"0x400\", text = \"{word}\" }",
    "forbid = [\"hypercall\", \"long-mode\"]",
    "name = \"é\"\nvisibility = \"hidden\"\nexits = \"=3\"",
];
/// Parts of expectations.
const PARTS: [&str; 24] = [
    "rax",
    "al",
    "u16@",
    "u64@0x400",
    "end",
    "mode",
    "simvirtio",
    "PIO out 0xe9",
    "HLT",
    "port 0xe9/1",
    "msr",
    "/",
    "=",
    "<=",
    ">=",
    "42",
    "-1",
    "0xffffffffffffffff",
    "halt",
    "real,long",
    "ready",
    " ",
    "\u{1b}",
    "{a}",
];

/// The number of exits in the facts.
const EXITS: u64 = 14;

/// The facts of a run that printed `output`.
fn facts(output: &[u8]) -> Facts<'_> {
    let site = |reason, place, exits| SiteExits { site: Site { reason, place }, device: None, exits };
    Facts {
        end: RunEnd::Guest(&Stop::Halted),
        output,
        output_len: output.len() as u64,
        registers: Some((Regs { rax: 42, ..Regs::default() }, Sregs::default())),
        memory: Memory::Copies(vec![(0x400, vec![42, 0])]),
        exits: Some(vec![site(Reason::PioOut, Some((0xe9, 1)), EXITS - 1), site(Reason::Hlt, None, 1)]),
        devices: vec!["debug console"],
        simvirtio: Some(State::Ready),
        modes: Some(vec![Mode::Real]),
        trace: None,
        features: Some(vec!["irqchip"]),
    }
}

/// Checks that a sentence can be printed.
fn check_sentence(check: &Check) {
    let text = check.to_string();
    assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
}

/// An exercise that is right, with ranges of random values.
fn build(script: &mut Script, (min, max): (i64, i64), letters: (u64, u64)) -> String {
    let mut text = String::from("version = 1\nname = \"x\"\n");
    if script.one_in(2) {
        text += "deadline = \"2026-12-01T23:59:59+02:00\"\n";
    }
    if script.one_in(2) {
        text = text + "[run]\n" + script.pick(&SETTINGS) + "\n";
    }
    for number in 0..=script.below(3) {
        text += &format!(
            "[[task]]\nname = \"t{number}\"\npoints = {}\nweight = {}\nfile = \"a*.bin\"\n",
            script.below(100),
            script.pick(&["1", "0.5", "2.25"]),
        );
        text += &format!(
            "random = {{ a = [{min}, {max}], b = [0, 9], word = {{ letters = [{}, {}] }} }}\n",
            letters.0, letters.1
        );
        if script.one_in(2) {
            text += "input = \"{word} {2*b-1}\"\nregisters = { cx = \"{b}\" }\n";
        }
        for _ in 0..=script.below(3) {
            text = text + "[[task.check]]\n" + script.pick(&CONDITIONS) + "\n";
        }
    }
    text
}

/// Reads an exercise, and grades facts by it. The exercise is right if it must be.
fn read(text: &str, must_be_right: bool, output: &[u8], seed: u64) -> Option<Exercise> {
    let exercise = match Exercise::parse(text, Files::Embedded(&[])) {
        Ok(exercise) => exercise,
        Err(problems) => {
            assert!(!problems.is_empty() && problems.iter().all(|problem| problem.at <= text.len()));
            assert!(!must_be_right, "{text}\n{problems:?}");
            return None;
        }
    };
    for task in &exercise.tasks {
        let values = task.values(seed);
        assert_eq!(values, task.values(seed), "the same seed gives the same values");
        assert!(task.worth(task.points).hundredths() <= u64::from(task.points) * 10_000);
        // A value of another seed may be too large for its place.
        let _ = (task.input(&values), task.registers(&values), task.args(&values, None));
        let _ = task.image.as_ref().map(|image| image.filled(&values));
        for check in &task.checks {
            let Ok(conditions) = check.expectations(&values) else { continue };
            let facts = facts(output);
            conditions.iter().for_each(|condition| check_sentence(&condition.check(&facts)));
        }
    }
    Some(exercise)
}

/// Compares simple conditions with what they mean.
fn model(script: &mut Script) {
    let number = script.below(2 * EXITS);
    let (sign, is_met): (_, fn(u64, u64) -> bool) = match script.below(3) {
        0 => ("<=", |seen, number| seen <= number),
        1 => (">=", |seen, number| seen >= number),
        _ => ("=", |seen, number| seen == number),
    };
    let (site, seen) = script.pick(&[
        ("", EXITS),
        ("HLT", 1),
        ("port 0xe9", EXITS - 1),
        ("PIO out 0xe9/1", EXITS - 1),
        ("PIO in 0xe9", 0),
    ]);
    let limit = ExitLimit::parse(&format!("{site}{sign}{number}")).expect("a limit");
    assert_eq!(
        Expectation::Exits(limit).check(&facts(b"")).passed,
        is_met(seen, number),
        "{site}{sign}{number}"
    );
    let value = script.below(64);
    for subject in ["rax", "u16@0x400"] {
        let expectation: Expectation = format!("{subject}={value}").parse().expect("an expectation");
        assert_eq!(expectation.check(&facts(b"")).passed, value == 42, "{subject}={value}");
    }
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script::new(input);
    let seed = script.any();
    model(&mut script);
    let min = i64::from(script.any::<i16>());
    let range = (min, min + script.below(300) as i64);
    let letters = (1 + script.below(5), 6 + script.below(5));
    let text = build(&mut script, range, letters);
    let exercise = read(&text, range.0 >= -0x8000 && range.1 <= 0x7fff, b"42\n", seed);
    let values = exercise.map(|exercise| exercise.tasks[0].values(seed)).unwrap_or_default();
    for (name, value) in &values {
        match value {
            Value::Number(number) if name == "a" => assert!((range.0..=range.1).contains(number), "{number}"),
            Value::Number(number) => assert!((0..=9).contains(number)),
            Value::Text(text) => {
                assert!((letters.0..=letters.1).contains(&(text.len() as u64)), "{text}");
                assert_eq!(fill("{word}", &values).as_deref(), Ok(text.as_str()));
            }
        }
    }
    let expectation: String = (0..script.below(8)).map(|_| script.pick(&PARTS)).collect();
    if let Ok(expectation) = expectation.parse::<Expectation>() {
        check_sentence(&expectation.check(&facts(b"\x1b[1m")));
    }
    if let Ok(limit) = ExitLimit::parse(&expectation) {
        check_sentence(&Expectation::Exits(limit).check(&facts(b"")));
    }
    let mut damaged = text.into_bytes();
    let rest = script.rest();
    read(&String::from_utf8_lossy(rest), false, rest, seed);
    if Script::new(rest).damage(&mut damaged) {
        read(&String::from_utf8_lossy(&damaged), false, rest, seed);
    }
});
