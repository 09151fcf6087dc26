//! Packs the courses into one compressed file: the skeletons without their solutions, hidden guests as assembled images, checks and
//! hints. Needs `nasm`.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

#[allow(dead_code)]
#[path = "src/skeleton.rs"]
mod skeleton;

/// The smallest result takes the most time, which is little.
const LEVEL: u8 = 10;

fn main() {
    let courses = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("courses");
    println!("cargo::rerun-if-changed=courses");
    println!("cargo::rerun-if-changed=src/skeleton.rs");
    let mut packed = Vec::new();
    // Files of one kind are alike, and the compression looks back 32 KiB only.
    let mut sources = files(&courses);
    sources.sort_by_key(|path| (path.extension().map(ToOwned::to_owned), path.clone()));
    for file in sources {
        let name = relative(&file, &courses);
        let (name, content) = match name.strip_suffix(".asm") {
            Some(stem) if is_hidden(&name) => (format!("{stem}.bin"), assembled(&file)),
            _ => (name, reader_file(&file)),
        };
        let len = u32::try_from(content.len()).unwrap_or_else(|_| fail(&format!("{name} is too large")));
        packed.extend_from_slice(name.as_bytes());
        packed.push(0);
        packed.extend_from_slice(&len.to_le_bytes());
        packed.extend_from_slice(&content);
    }
    let len = u32::try_from(packed.len()).unwrap_or_else(|_| fail("the courses are too large"));
    let mut result = len.to_le_bytes().to_vec();
    result.extend(miniz_oxide::deflate::compress_to_vec(&packed, LEVEL));
    let to = Path::new(&variable("OUT_DIR")).join("courses.bin");
    fs::write(&to, result).unwrap_or_else(|error| fail(&format!("cannot write {}: {error}", to.display())));
}

/// The files of a folder and of the folders in it, in the order of their names, without those that a build makes.
fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = || -> io::Result<Vec<PathBuf>> {
        let mut paths =
            fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    };
    let paths = paths().unwrap_or_else(|error| fail(&format!("cannot read {}: {error}", folder.display())));
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            found.extend(files(&path));
        } else if is_source(&path) {
            found.push(path);
        }
    }
    found
}

/// False for a program, an image or an object file that was built in a folder of the courses.
fn is_source(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    !["bin", "o", "elf", "d"].contains(&extension) && !["vmm", "vmm-polling"].contains(&name)
}

/// The path below a folder, with slashes.
fn relative(path: &Path, folder: &Path) -> String {
    let parts = path.strip_prefix(folder).unwrap_or(path).iter();
    let parts: Vec<_> = parts.map(|part| part.to_string_lossy().into_owned()).collect();
    parts.join("/")
}

fn is_hidden(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|name| name.starts_with("hidden"))
}

/// The content of a file as a reader gets it.
fn reader_file(path: &Path) -> Vec<u8> {
    let bytes =
        fs::read(path).unwrap_or_else(|error| fail(&format!("cannot read {}: {error}", path.display())));
    let Ok(text) = String::from_utf8(bytes) else { fail(&format!("{} is not UTF-8 text", path.display())) };
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    match skeleton::of_file(&name, &text) {
        Ok(text) => text.into_bytes(),
        Err(line) => {
            fail(&format!("{}:{line}: a part of the solution has no beginning or no end", path.display()))
        }
    }
}

/// The image of a hidden guest.
fn assembled(path: &Path) -> Vec<u8> {
    let to = Path::new(&variable("OUT_DIR")).join("hidden.bin");
    let nasm = Command::new("nasm").args(["-f", "bin", "-o"]).arg(&to).arg(path).status();
    match nasm {
        Ok(status) if status.success() => fs::read(&to).unwrap_or_else(|error| fail(&error.to_string())),
        Ok(_) => fail(&format!("nasm cannot assemble {}", path.display())),
        Err(_) => {
            fail("nasm, the assembler of the guests, is missing: run `make setup`, or `apt-get install nasm`")
        }
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo has not set {name}")))
}

fn fail(what: &str) -> ! {
    println!("cargo::error={what}");
    std::process::exit(1);
}
