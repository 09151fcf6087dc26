//! Replays published tests of single instructions of an 80286 on `softcpu`.

mod explain;
mod moo;
mod replay;

use clap::Parser;
use explain::{Class, explain};
use flate2::read::GzDecoder;
use replay::{Ram, Replay};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

type Error = Box<dyn std::error::Error>;

/// Replays published tests of single instructions of an 80286 on softcpu.
#[derive(Debug, Parser)]
struct Options {
    /// Folder of the files .MOO or .MOO.gz, and of metadata.json
    folder: PathBuf,
    /// Run only the files whose names begin with this
    #[arg(long)]
    only: Option<String>,
    /// The number of differences to print for a file
    #[arg(long, default_value_t = 2)]
    most: u64,
    /// Print the results of each file
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("vectors: error: {why}");
            ExitCode::from(2)
        }
    }
}

/// The files of tests in a folder, with the names of their opcodes.
fn files(options: &Options) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(&options.folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some((opcode, _)) = name.split_once(".MOO")
            && options.only.as_ref().is_none_or(|only| opcode.starts_with(only))
        {
            files.insert(opcode.to_owned(), path.clone());
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<moo::Test>, Error> {
    let mut bytes = fs::read(path)?;
    if path.extension().is_some_and(|extension| extension == "gz") {
        let mut plain = Vec::new();
        GzDecoder::new(bytes.as_slice()).read_to_end(&mut plain)?;
        bytes = plain;
    }
    Ok(moo::read(&bytes).ok_or_else(|| format!("{}: not in the format MOO", path.display()))?)
}

/// The flags that an opcode defines.
fn defined_flags(metadata: &serde_json::Value, opcode: &str) -> u16 {
    let (opcode, number) = opcode.split_once('.').unwrap_or((opcode, ""));
    let entry = &metadata["opcodes"][opcode];
    let entry = if number.is_empty() { entry } else { &entry["reg"][number] };
    entry["flags-mask"].as_u64().map_or(u16::MAX, |mask| mask as u16)
}

/// The results of all files.
#[derive(Default)]
struct Report {
    files: u64,
    tests: u64,
    passed: u64,
    /// The differences between the processors.
    classes: BTreeMap<Class, u64>,
    /// The tests without an explanation: errors of the software processor.
    failed: u64,
}

/// Replays the files. Returns true if each difference is explained.
fn run(options: &Options) -> Result<bool, Error> {
    let metadata = serde_json::from_slice(&fs::read(options.folder.join("metadata.json"))?)?;
    let ram = Ram::new();
    let mut replay = Replay::new(&ram);
    let mut report = Report::default();
    for (opcode, path) in files(options)? {
        replay_file(&mut replay, &mut report, &opcode, &read(&path)?, &metadata, options);
    }
    for (class, count) in &report.classes {
        println!("{count:6} {}", class.text());
    }
    let Report { files, tests, passed, failed, .. } = report;
    let explained: u64 = report.classes.values().sum();
    println!(
        "vectors: {files} files, {tests} tests: {passed} agree, {explained} explained, {failed} different"
    );
    Ok(tests > 0 && failed == 0)
}

fn replay_file(
    replay: &mut Replay,
    report: &mut Report,
    opcode: &str,
    tests: &[moo::Test],
    metadata: &serde_json::Value,
    options: &Options,
) {
    let defined = defined_flags(metadata, opcode);
    let mut classes: BTreeMap<Class, u64> = BTreeMap::new();
    let (mut passed, mut failed) = (0, 0);
    for test in tests {
        let outcome = replay.run(test, defined);
        if outcome.is_pass() {
            passed += 1;
        } else if let Some(class) = explain(replay, test, &outcome) {
            *classes.entry(class).or_default() += 1;
        } else {
            failed += 1;
            if failed <= options.most {
                println!("{opcode} {}: {:?} {:x?}", test.name, outcome.end, outcome.differences);
            }
        }
    }
    if options.verbose || failed > 0 {
        println!(
            "{opcode}: {} tests, {passed} agree, {failed} different, explained: {classes:?}",
            tests.len()
        );
    }
    report.files += 1;
    report.tests += tests.len() as u64;
    report.passed += passed;
    report.failed += failed;
    for (class, count) in classes {
        *report.classes.entry(class).or_default() += count;
    }
}
