//! The exercise `examples/exercises/sum`, with its ten submissions.

use crate::support::Files;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The folder of the exercise.
pub const SUM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/exercises/sum");

/// Copies the submissions to a folder, and assembles them.
pub fn assembled(files: &Files) {
    for entry in fs::read_dir(Path::new(SUM).join("submissions")).unwrap() {
        let from = entry.unwrap().path();
        if !from.is_dir() {
            continue;
        }
        let to = files.0.path().join(from.file_name().unwrap());
        fs::create_dir(&to).unwrap();
        if from.join("sum.asm").exists() {
            let mut nasm = Command::new("nasm");
            nasm.args(["-f", "bin", "-i"]).arg(format!("{SUM}/"));
            nasm.arg("-o").arg(to.join("sum.bin")).arg(from.join("sum.asm"));
            assert!(nasm.status().is_ok_and(|status| status.success()), "{}", from.display());
        }
    }
}

/// The submissions of the table in README.md, and their points.
pub fn expected() -> Vec<(String, u32)> {
    let table = fs::read_to_string(format!("{SUM}/README.md")).unwrap();
    let rows: Vec<(String, u32)> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(name, rest)| (name.into(), rest.split(' ').next().unwrap().parse().unwrap()))
        .collect();
    assert_eq!(rows.len(), 10);
    rows
}
