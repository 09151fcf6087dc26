//! The names of result files: the format that an extension promises, and results that would replace an input.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use vmm::Error;
use vmm::host::{printable, printable_text};

/// The format of a file that this program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultFormat {
    Text,
    Json,
    Csv,
    Html,
    Svg,
    /// The records of `--trace`. No extension is reserved for them.
    Trace,
    /// Another format, of this name. No extension is reserved for it.
    Other(&'static str),
}

impl fmt::Display for ResultFormat {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Text => "text",
            Self::Json => "JSON",
            Self::Csv => "CSV",
            Self::Html => "HTML",
            Self::Svg => "SVG",
            Self::Trace => "a trace",
            Self::Other(name) => name,
        })
    }
}

/// The least similarity of a name that is suggested. That of equal names is 1.
const SIMILAR: f64 = 0.85;
/// The most entries of a folder that are compared.
const MAX_ENTRIES: usize = 10_000;

/// The most similar of these names, and its similarity. `None` if none is similar.
pub fn similar(name: &str, names: impl Iterator<Item = String>) -> Option<(f64, String)> {
    let similarities = names.map(|other| (strsim::jaro_winkler(&other, name), other));
    let is_similar = |one: &(f64, String)| one.0 > SIMILAR && one.1 != name;
    // Of several, the first in the alphabet: the order of a folder is not always the same.
    similarities
        .filter(is_similar)
        .max_by(|left, right| left.0.total_cmp(&right.0).then(right.1.cmp(&left.1)))
}

/// The path with the most similar name in the folder of a missing file, and its similarity.
pub fn similar_file(path: &Path) -> Option<(f64, PathBuf)> {
    let is_missing = path.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    let name = path.file_name().filter(|_| is_missing)?.to_str()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let entries = fs::read_dir(folder.unwrap_or(Path::new("."))).ok()?.take(MAX_ENTRIES).flatten();
    let (similarity, found) =
        similar(name, entries.filter_map(|entry| entry.file_name().into_string().ok()))?;
    Some((similarity, path.with_file_name(found)))
}

/// The part of a message about a missing file that names a similar one. Empty without one.
pub fn suggestion(path: &Path) -> String {
    similar_file(path).map_or_else(String::new, |(_, similar)| {
        format!("; the most similar name there is {}", printable(&similar))
    })
}

/// Returns the extension of a file name in lower case, and the format that it promises, if it is known.
fn extension(path: &Path) -> Option<(String, Option<ResultFormat>)> {
    let extension = path.extension()?.to_string_lossy().to_lowercase();
    let format = match extension.as_str() {
        "txt" => Some(ResultFormat::Text),
        "json" => Some(ResultFormat::Json),
        "csv" => Some(ResultFormat::Csv),
        "html" | "htm" => Some(ResultFormat::Html),
        "svg" => Some(ResultFormat::Svg),
        _ => None,
    };
    Some((extension, format))
}

/// Returns the format that the extension of an output file promises; `None` if the name has no extension.
///
/// # Errors
/// The extension is unknown.
pub fn promised_format(option: &str, path: &Path) -> Result<Option<ResultFormat>, Error> {
    match extension(path) {
        None => Ok(None),
        Some((_, Some(format))) => Ok(Some(format)),
        Some((extension, None)) => Err(Error::Config(format!(
            "{option} {} has the extension .{}, which names no known format: use .txt, .json, .csv or .html, or give \
             --format",
            printable(path),
            printable_text(&extension)
        ))),
    }
}

/// Checks that the extension of an output file does not promise another format than the one that it will have.
///
/// # Errors
/// It does, or the name is `-`. An unknown extension is not an error.
pub fn check_extension(option: &str, path: &Path, written: ResultFormat) -> Result<(), Error> {
    check_dash(option, path)?;
    match extension(path) {
        Some((extension, Some(promised))) if promised != written => Err(Error::Config(format!(
            "{option} writes {written}, but {} has the extension .{extension} of {promised}: give another name",
            printable(path),
        ))),
        _ => Ok(()),
    }
}

/// Refuses the name `-`, which means standard output in other programs. Here, standard output has the guest's output.
pub fn check_dash(option: &str, path: &Path) -> Result<(), Error> {
    match path.as_os_str() == "-" {
        false => Ok(()),
        true => Err(Error::Config(format!(
            "{option} does not take - for standard output: give the name of a file (/dev/stdout is one)"
        ))),
    }
}

/// Checks that a result does not replace an input of the same run. `inputs` may contain names of missing files.
///
/// # Errors
/// It does.
pub fn check_inputs<'a>(
    option: &str,
    path: &Path,
    inputs: impl IntoIterator<Item = &'a Path>,
) -> Result<(), Error> {
    match inputs.into_iter().any(|input| is_same_file(input, path)) {
        false => Ok(()),
        true => Err(Error::Config(format!(
            "{option} {} is also an input, which the result would replace: give another file",
            printable(path)
        ))),
    }
}

/// Returns true if both paths lead to the same regular file or disk.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let holds_data = |path: &Path| {
        fs::metadata(path).is_ok_and(|file| file.is_file() || file.file_type().is_block_device())
    };
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other && holds_data(&one),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extension_promises_a_format() {
        let promised = |name: &str| promised_format("-o", Path::new(name));
        for (name, format) in [
            ("a.txt", ResultFormat::Text),
            ("a.b/c.JSON", ResultFormat::Json),
            ("a.tar.csv", ResultFormat::Csv),
            ("a.htm", ResultFormat::Html),
            ("a.html", ResultFormat::Html),
            ("a.svg", ResultFormat::Svg),
        ] {
            assert_eq!(promised(name).unwrap(), Some(format), "{name}");
        }
        for name in ["a", "a.html/b", ".json", "/dev/stdout", ""] {
            assert_eq!(promised(name).unwrap(), None, "{name}");
        }
        for name in ["a.pdf", "a.html.gz", "run.trace", "a.\u{1b}", "a."] {
            let error = promised(name).unwrap_err().to_string();
            assert!(error.contains("names no known format") && !error.contains('\u{1b}'), "{error}");
        }
    }

    #[test]
    fn a_name_must_not_promise_another_format() {
        let check = |name: &str, format| check_extension("--json", Path::new(name), format);
        for name in ["a.json", "a", "a.out"] {
            assert!(check(name, ResultFormat::Json).is_ok(), "{name}");
        }
        assert!(check("a.trace", ResultFormat::Trace).is_ok());
        let error = check("-", ResultFormat::Json).unwrap_err().to_string();
        assert_eq!(
            error,
            "--json does not take - for standard output: give the name of a file (/dev/stdout is one)"
        );
        assert!(check("./-", ResultFormat::Json).is_ok());
        let error = check("a.svg", ResultFormat::Json).unwrap_err().to_string();
        assert_eq!(error, "--json writes JSON, but a.svg has the extension .svg of SVG: give another name");
        assert!(check("a.json", ResultFormat::Trace).is_err());
    }
}
