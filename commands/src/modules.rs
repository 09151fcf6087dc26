//! The modules of a kernel: `--module FILE[,TEXT]`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use vmm::Error;
use vmm::boot::Module;

/// Splits `FILE[,TEXT]` into the file and the text that the kernel sees. If a file has the whole text as its name, it is
/// that file. Without a text, the kernel sees the name of the file.
fn split(text: &OsStr) -> (&Path, &[u8]) {
    let bytes = text.as_bytes();
    let comma = bytes.iter().position(|byte| *byte == b',').filter(|_| !Path::new(text).exists());
    match comma.and_then(|at| bytes.split_at_checked(at)) {
        Some((file, rest)) => (Path::new(OsStr::from_bytes(file)), rest.get(1..).unwrap_or_default()),
        None => (Path::new(text), bytes),
    }
}

/// The files of the modules.
pub fn files(modules: &[OsString]) -> impl Iterator<Item = &Path> {
    modules.iter().map(|text| split(text).0)
}

/// Reads the modules. All together have at most `limit` bytes.
///
/// # Errors
/// A file cannot be read, or is too large.
pub fn read(modules: &[OsString], limit: u64) -> Result<Vec<Module>, Error> {
    let mut left = limit;
    let read = |text: &OsString| {
        let (file, text) = split(text);
        if file.as_os_str().is_empty() {
            return Err(Error::Config(
                "--module needs a file name: give --module FILE or --module FILE,TEXT".into(),
            ));
        }
        let module = Module::read(file, text.to_vec(), left)?;
        left = left.saturating_sub(module.bytes.len() as u64);
        Ok(module)
    };
    modules.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_follows_the_first_comma_unless_a_file_has_that_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).into_os_string();
        let (with_comma, plain) = (path("a,b"), path("a"));
        std::fs::write(&with_comma, "12").unwrap();
        std::fs::write(&plain, "123").unwrap();
        assert_eq!(split(&with_comma), (Path::new(&with_comma), with_comma.as_bytes()));
        assert_eq!(split(&path("a,one, two")), (Path::new(&plain), &b"one, two"[..]));
        assert_eq!(split(&path("a,")), (Path::new(&plain), &b""[..]));
        let modules = read(&[with_comma.clone(), path("a,x")], 5).unwrap();
        assert_eq!(modules.iter().map(|module| module.bytes.len()).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(modules[1].text, b"x");
        let error = read(&[with_comma, plain], 4).unwrap_err().to_string();
        assert!(error.contains("more than the 2 bytes that are left"), "{error}");
    }
}
