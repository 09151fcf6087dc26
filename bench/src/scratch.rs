//! Temporary files: guests for other programs, and bare programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A temporary folder. Dropping the value removes the folder.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Creates a folder.
    ///
    /// # Errors
    /// The host cannot create it.
    pub fn new() -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vmm-bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).map_err(|error| format!("cannot create {}: {error}", path.display()))?;
        Ok(Self(path))
    }

    /// Creates a file in the folder, or in a folder in it.
    ///
    /// # Errors
    /// The host cannot write it.
    pub fn file(&self, name: &str, data: &[u8]) -> Result<PathBuf, String> {
        let path = self.0.join(name);
        let folder = path.parent().unwrap_or(&self.0);
        fs::create_dir_all(folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        fs::write(&path, data).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(path)
    }

    /// Copies a program into the folder. A file that a linker has written may be in the page cache in single pages, and its
    /// page faults then cost more than those of a copy: a tenth of a cold start.
    ///
    /// # Errors
    /// The host cannot copy it.
    pub fn copy(&self, program: &Path) -> Result<PathBuf, String> {
        let name = program.file_name().unwrap_or_default();
        let folder = self.0.join("copies");
        let copied = fs::create_dir_all(&folder).and_then(|()| fs::copy(program, folder.join(name)));
        copied.map_err(|error| format!("cannot copy {}: {error}", program.display()))?;
        Ok(folder.join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Compiles a bare program from C source. `options` are more options for the compiler, such as `-static`.
///
/// # Errors
/// The compiler is missing, or the program does not compile.
pub fn compile(scratch: &Scratch, name: &str, source: &str, options: &[&str]) -> Result<PathBuf, String> {
    let file = scratch.file(&format!("{name}.c"), source.as_bytes())?;
    let program = file.with_extension("");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "gcc".into());
    let mut command = Command::new(&compiler);
    command.arg("-O2").args(options).args([Path::new("-o"), &program, &file]);
    match command.output() {
        Ok(output) if output.status.success() => Ok(program),
        Ok(output) => {
            let message = vmm::host::printable_text(String::from_utf8_lossy(&output.stderr).trim());
            Err(format!("the bare program {name} does not compile: {message}"))
        }
        Err(error) => Err(format!("cannot start the C compiler {}: {error}", compiler.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_a_folder_removes_its_files_and_a_compile_error_has_a_message() {
        let scratch = Scratch::new().unwrap();
        let file = scratch.file("a", b"b").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"b");
        let refused = compile(&scratch, "wrong", "int main(void) { return x; }", &["-static"]).unwrap_err();
        assert!(refused.contains("the bare program wrong does not compile"), "{refused}");
        let copy = scratch.copy(&file).unwrap();
        assert_eq!((fs::read(&copy).unwrap().as_slice(), copy == file), (&b"b"[..], false));
        assert!(scratch.copy(Path::new("/missing")).unwrap_err().starts_with("cannot copy /missing"));
        drop(scratch);
        assert!(!file.exists());
    }
}
