//! Writes the manual pages and the completions of the program `vmm` for packages, from the definition of its command line.
//!
//! ```text
//! packaging FOLDER
//! ```
//!
//! writes `FOLDER/man/vmm*.1`, `FOLDER/completions/vmm.bash`, `FOLDER/completions/_vmm` (zsh) and `FOLDER/completions/vmm.fish`. The
//! program itself does not contain them, because they would make it larger.

mod completions;
mod manual;
mod text;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next().map(PathBuf::from), arguments.next()) else {
        eprintln!("packaging: error: name one folder for the manual pages and the completions");
        return ExitCode::from(2);
    };
    match write(&folder) {
        Ok(count) => {
            eprintln!("packaging: wrote {count} files to {}", folder.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("packaging: error: cannot write to {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

/// Writes all files below `folder`. Returns their number.
fn write(folder: &Path) -> io::Result<usize> {
    let mut files = Vec::new();
    for (name, text) in manual::pages()? {
        files.push((folder.join("man").join(name), text));
    }
    for (name, text) in completions::scripts()? {
        files.push((folder.join("completions").join(name), text));
    }
    for (path, text) in &files {
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(path, text)?;
    }
    Ok(files.len())
}
