//! The files that a run writes. No two results go to one file, because one of them would be lost.

use crate::measure::MeasureArgs;
use report::replaced_place;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use vmm::Error;
use vmm::host::printable;

/// Checks that the results of a run go to different files. `step` is the file of `--step-file`.
///
/// # Errors
/// Two of them go to the same file.
pub fn check_different(arguments: &MeasureArgs, step: Option<&Path>) -> Result<(), Error> {
    different(&results(arguments, step)?)
}

/// The results of a run: the names of their options, and their paths. `step` is the file of `--step-file`.
///
/// # Errors
/// An option is wrong.
pub fn results<'a>(
    arguments: &'a MeasureArgs,
    step: Option<&'a Path>,
) -> Result<Vec<(&'static str, &'a Path)>, Error> {
    let mut results = arguments.expect.dump_files()?;
    results.extend(arguments.core.iter().map(|path| ("--core", path.as_path())));
    results.extend(step.map(|path| ("--step-file", path)));
    results.extend(arguments.screen.iter().map(|path| ("--screen", path.as_path())));
    results.extend(arguments.sample.files().map(|path| ("--sample-file", path)));
    results.extend(arguments.results.files());
    Ok(results)
}

/// Checks that results go to different files. Each has the name of its option, and its path.
pub fn different(results: &[(&str, &Path)]) -> Result<(), Error> {
    let mut places: Vec<(&str, &Path, PathBuf)> = Vec::new();
    for (option, path) in results {
        let Some(place) = replaced_place(path) else { continue };
        for (other, other_path, other_place) in &places {
            let file = printable(path);
            let what = if *other_place == place && other == option {
                format!("{option} writes the same file twice, {file}: give two different files")
            } else if *other_place == place {
                format!("{other} and {option} write the same file, {file}: give two different files")
            } else if is_live_core(other, other_place, &place) || is_live_core(option, &place, other_place) {
                let core = printable(if *other == "--core" { other_path } else { path });
                format!(
                    "{other} and {option} can write the same file, because --core {core} also writes {core}.1, {core}.2 and so \
                     on at Ctrl-A c: give two different names"
                )
            } else {
                continue;
            };
            return Err(Error::Config(what));
        }
        places.push((option, path, place));
    }
    Ok(())
}

/// True if `option` is `--core`, and a core of the running guest may go to `place`.
fn is_live_core(option: &str, core: &Path, place: &Path) -> bool {
    let rest = place.as_os_str().as_bytes().strip_prefix(core.as_os_str().as_bytes());
    let number = rest.and_then(|rest| rest.strip_prefix(b"."));
    option == "--core"
        && number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_results_go_to_different_files() {
        let of = |results: &[(&'static str, &str)]| {
            let results: Vec<_> = results.iter().map(|(option, path)| (*option, Path::new(path))).collect();
            different(&results).map_err(|error| error.to_string())
        };
        for right in [
            &[("--core", "/tmp/a"), ("--trace", "/tmp/b")][..],
            &[
                ("--core", "/tmp/a"),
                ("--trace", "/tmp/a.x"),
                ("--screen", "/tmp/a."),
                ("--profile", "/tmp/aa.1"),
            ],
            &[("--trace", "/tmp/a"), ("--profile", "/tmp/a.1")],
            &[("--core", "/dev/null"), ("--trace", "/dev/null")],
            &[("--core", "/no/such/folder/a"), ("--trace", "/no/such/folder/a")],
        ] {
            assert_eq!(of(right), Ok(()), "{right:?}");
        }
        let refused = |one, other| of(&[one, other]).unwrap_err();
        assert_eq!(
            refused(("--core", "/tmp/a"), ("--trace", "/tmp/../tmp/a")),
            "--core and --trace write the same file, /tmp/../tmp/a: give two different files"
        );
        assert!(
            refused(("--dump-memory", "/tmp/a"), ("--dump-memory", "/tmp/a")).contains("the same file twice")
        );
        assert!(
            refused(("--core", "/tmp/a"), ("--trace", "/tmp/a.10"))
                .contains("--core /tmp/a also writes /tmp/a.1")
        );
        assert!(
            refused(("--dump-memory", "/tmp/a.2"), ("--core", "/tmp/a"))
                .contains("--core /tmp/a also writes")
        );
    }
}
