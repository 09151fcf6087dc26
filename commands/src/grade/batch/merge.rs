//! `vmm grade merge`: joins the results files of shards.

use super::output::Outputs;
use super::results::{Content, Header, Results};
use super::shard::Shard;
use crate::grade::GradeArgs;
use crate::status::{self, Failure};
use crate::streams::{print_stderr, report_error};
use grades::Grade;
use std::path::PathBuf;
use vmm::Error;
use vmm::host::printable;

/// Joins results files, and prints the grades as the whole batch would. Returns the exit status.
pub fn main(files: &[PathBuf], arguments: &GradeArgs) -> u8 {
    let (header, grades) = match read(files) {
        Ok(read) => read,
        Err(what) => {
            print_stderr(&format!("vmm: error: {what}\n"));
            return if files.is_empty() { status::USAGE } else { status::BAD_IMAGE };
        }
    };
    match write(&header, &grades, arguments) {
        Ok(outputs) => {
            let status = outputs.finish(&grades);
            print_stderr(&format!("vmm: --seed {} repeats these grades\n", header.seed));
            status
        }
        Err(error) => report_error(&error),
    }
}

/// Reads results files. The grades have the order of the batch.
///
/// # Errors
/// A file cannot be read or belongs to another batch, or a grade is missing or there twice. The message is a sentence.
fn read(files: &[PathBuf]) -> Result<(Header, Vec<Grade>), String> {
    let contents = files
        .iter()
        .map(|file| Ok((printable(file), Content::open(file)?)))
        .collect::<Result<Vec<_>, String>>()?;
    join(contents)
}

/// Joins the contents of results files. Each has the name of its file.
fn join(contents: Vec<(String, Content)>) -> Result<(Header, Vec<Grade>), String> {
    let first = contents.first().ok_or("there is nothing to merge: give the results files of all shards")?;
    let (first_name, first) = (first.0.clone(), first.1.header.clone());
    let count = first.shard.count;
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut grades: Vec<Option<Grade>> = vec![None; first.submissions];
    for (name, Content { header, grades: of_file, .. }) in contents {
        if let Some(difference) = header.difference(&first) {
            return Err(format!("{name} {difference}, as {first_name} does: merge the shards of one batch"));
        }
        if header.shard.count != count {
            return Err(format!(
                "{name} is shard {}, and {first_name} is shard {}",
                header.shard, first.shard
            ));
        }
        if header.program != first.program {
            let (one, other) = (&header.program, &first.program);
            print_stderr(&format!(
                "vmm: {name} is by version {one} of vmm, and {first_name} by version {other}\n"
            ));
        }
        if let Some((_, other)) = found.iter().find(|(number, _)| *number == header.shard.number) {
            return Err(format!("{name} and {other} are the same shard {}", header.shard));
        }
        found.push((header.shard.number, name.clone()));
        let expected = (0..header.submissions).filter(|index| header.shard.has(*index)).count();
        let has = of_file.iter().flatten().count();
        if has < expected {
            let shard = header.shard;
            return Err(format!(
                "{name} has {has} of the {expected} grades of shard {shard}: finish it with --resume"
            ));
        }
        grades.iter_mut().zip(of_file).for_each(|(all, grade)| *all = all.take().or(grade));
    }
    let missing = (1..=count).filter(|number| found.iter().all(|(has, _)| has != number));
    let missing: Vec<String> = missing.map(|number| format!("{number}/{count}")).collect();
    if !missing.is_empty() {
        let shown = missing.get(..missing.len().min(5)).unwrap_or_default().join(", ");
        let more = if missing.len() > 5 { ", ..." } else { "" };
        return Err(format!(
            "the results of shard {shown}{more} are missing: grade them, and give their files, too"
        ));
    }
    Ok((Header { shard: Shard::ALL, ..first }, grades.into_iter().flatten().collect()))
}

/// Writes all outputs but those at the end.
///
/// # Errors
/// A file cannot be written.
fn write(header: &Header, grades: &[Grade], arguments: &GradeArgs) -> Result<Outputs, Failure> {
    let names: Vec<String> = grades.iter().map(|grade| grade.submission.clone()).collect();
    let mut outputs = Outputs::open(arguments, &names)?;
    let mut results = None;
    if let Some(path) = &arguments.batch.results {
        let (mut file, _) = Results::open(path, false).map_err(Error::Config)?;
        file.begin(header).map_err(super::host)?;
        results = Some(file);
    }
    for (index, grade) in grades.iter().enumerate() {
        if let Some(results) = &mut results {
            results.add(index, grade).map_err(super::host)?;
        }
        outputs.add(index, grade)?;
    }
    if let Some(results) = &mut results {
        results.sync().map_err(super::host)?;
    }
    Ok(outputs)
}
