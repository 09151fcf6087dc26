//! Compiles the preloaded library and the kernel of the campaign with gcc, which the guests need too.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles C source to `name` in `folder`. Returns the path.
///
/// # Errors
/// gcc is missing, or refuses the source.
pub fn compile(folder: &Path, name: &str, source: &str, options: &[&str]) -> Result<PathBuf, String> {
    let (output, file) = (folder.join(name), folder.join(format!("{name}.c")));
    std::fs::write(&file, source).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    let ran = Command::new("gcc").arg("-o").arg(&output).arg(&file).args(options).output();
    let ran = ran.map_err(|error| format!("cannot run gcc: {error}: install it"))?;
    match ran.status.success() {
        true => Ok(output),
        false => Err(format!("gcc cannot compile {name}: {}", String::from_utf8_lossy(&ran.stderr))),
    }
}
