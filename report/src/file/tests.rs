use super::*;
use std::os::unix::fs::symlink;

fn folder() -> tempfile::TempDir {
    tempfile::TempDir::new().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_appears_when_it_is_complete() {
    let folder = folder();
    let path = folder.path().join("a");
    let mut target = OutputFile::open(&path).unwrap();
    target.write_all(b"one").unwrap();
    assert!(!path.exists());
    target.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"one");
    assert_eq!(names(folder.path()), ["a"]);
}

#[test]
fn without_a_commit_an_existing_file_stays_unchanged() {
    let folder = folder();
    let path = folder.path().join("a");
    fs::write(&path, b"before").unwrap();
    let mut target = OutputFile::open(&path).unwrap();
    target.write_all(b"half").unwrap();
    drop(target);
    assert_eq!(fs::read(&path).unwrap(), b"before");
    assert_eq!(names(folder.path()), ["a"]);
}

#[test]
fn the_last_of_two_writers_is_kept() {
    let folder = folder();
    let path = folder.path().join("a");
    let mut one = OutputFile::open(&path).unwrap();
    let mut two = OutputFile::open(&path).unwrap();
    one.write_all(b"the first").unwrap();
    two.write_all(b"two").unwrap();
    two.commit().unwrap();
    one.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"the first");
    assert_eq!(names(folder.path()), ["a"]);
}

#[test]
fn symbolic_links_and_file_modes_are_kept() {
    let folder = folder();
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    symlink("file", &link).unwrap();
    // In the first round the target of the link does not exist.
    for text in [b"one", b"two"] {
        let mut target = OutputFile::open(&link).unwrap();
        target.write_all(text).unwrap();
        target.commit().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), text);
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    }
    let mut target = OutputFile::open(&file).unwrap();
    target.write_all(b"three").unwrap();
    target.commit().unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    let round = folder.path().join("round");
    symlink("round", &round).unwrap();
    assert!(matches!(OutputFile::open(&round), Err(FileError::Path { .. })));
}

#[test]
fn devices_and_pipes_are_written_directly() {
    let folder = folder();
    let mut null = OutputFile::open(Path::new("/dev/null")).unwrap();
    null.write_all(b"x").unwrap();
    null.commit().unwrap();
    let mut full = OutputFile::open(Path::new("/dev/full")).unwrap();
    let failed = full.write_all(b"x").unwrap_err();
    let message = full.failed(failed).to_string();
    assert!(message.starts_with("cannot write /dev/full: No space left on device"), "{message}");
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = {
        let pipe = pipe.clone();
        thread::spawn(move || fs::read(pipe).unwrap())
    };
    let mut target = OutputFile::open(&pipe).unwrap();
    target.write_all(&vec![b'x'; 200_000]).unwrap();
    target.commit().unwrap();
    assert_eq!(reader.join().unwrap().len(), 200_000);
    assert_eq!(names(folder.path()), ["pipe"]);
}

#[test]
fn a_pipe_without_a_reader_does_not_hold_a_run() {
    let folder = folder();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let limit = Duration::from_millis(50);
    let Err(FileError::Path { what, .. }) = OutputFile::open_within(&pipe, limit) else { panic!() };
    assert_eq!(what, "the pipe has no reader: start its reader first");
    // A reader that takes nothing.
    let _reader = File::options().read(true).write(true).open(&pipe).unwrap();
    let mut target = OutputFile::open_within(&pipe, limit).unwrap();
    let failed = target.write_all(&vec![b'x'; 1 << 20]).unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
}

/// The case of `-o /dev/stdout >> log`.
#[test]
fn a_stream_that_is_a_file_is_appended_to() {
    use std::os::fd::AsRawFd;
    let folder = folder();
    let path = folder.path().join("log");
    fs::write(&path, b"before ").unwrap();
    let log = File::options().append(true).open(&path).unwrap();
    let link = folder.path().join("link");
    symlink(format!("/dev/fd/{}", log.as_raw_fd()), &link).unwrap();
    let mut target = OutputFile::open(&link).unwrap();
    target.write_all(b"after").unwrap();
    target.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"before after");
    assert_eq!(names(folder.path()), ["link", "log"]);
}

#[test]
fn a_wrong_path_is_an_error_before_anything_is_written() {
    let folder = folder();
    let advice = |path: &Path| match OutputFile::open(path) {
        Err(FileError::Path { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert!(advice(folder.path()).ends_with("it is a directory: give the name of a file"));
    assert!(advice(Path::new("/")).contains("it is a directory"));
    assert!(advice(Path::new("")).contains("it is a directory"));
    assert!(advice(&folder.path().join("no/such")).contains("create the directory, or correct the path"));
    fs::write(folder.path().join("file"), b"").unwrap();
    assert!(advice(&folder.path().join("file/x")).contains("create the directory"));
    assert!(advice(&folder.path().join("x".repeat(300))).contains("give another file"));
    assert!(advice(Path::new("/dev/no-such-device/x")).contains("create the directory"));
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn a_file_of_another_kind_or_too_large_is_refused_early() {
    let read = |path: &str| read(Path::new(path)).unwrap_err();
    assert!(matches!(read("/dev/zero"), FileError::Content { source: SavedError::Neither, .. }));
    assert!(matches!(read("/"), FileError::Read { .. }));
    assert!(matches!(read("/no/such"), FileError::Read { .. }));
    let folder = folder();
    for (begins, what) in [(&b"vmmtrace"[..], "trace"), (b" {", "profile")] {
        let path = folder.path().join(what);
        fs::write(&path, begins).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        let error = super::read(&path).unwrap_err();
        assert!(
            matches!(&error, FileError::Content { source: SavedError::TooLarge { what: is, .. }, .. } if *is == what),
            "{error}"
        );
    }
}
