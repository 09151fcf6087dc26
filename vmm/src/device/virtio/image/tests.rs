use super::*;
use std::fs;
use std::os::unix::fs::FileExt;
use tempfile::NamedTempFile;

fn refused(path: &Path, read_only: bool) -> String {
    Image::open(path, read_only).unwrap_err().to_string()
}

#[test]
fn an_unusable_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name);
    assert!(refused(&path("none"), false).contains("does not exist: create it (truncate -s 64M FILE)"));
    for read_only in [false, true] {
        assert!(refused(folder.path(), read_only).contains("neither a file nor a block device"));
        assert!(refused(Path::new("/dev/null"), read_only).contains("neither a file nor a block device"));
        let socket = path(if read_only { "a" } else { "b" });
        let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let refusal = refused(&socket, read_only);
        assert!(refusal.contains("neither a file nor a block device"), "{refusal}");
    }
    fs::write(path("empty"), b"").unwrap();
    assert!(refused(&path("empty"), false).contains("is empty"));
    fs::write(path("odd"), [0; 513]).unwrap();
    assert!(refused(&path("odd"), false).contains("has a size of 513"));
    assert!(refused(&path("odd"), true).contains("truncate -s 1024"));
}

#[test]
fn machines_can_share_an_image_only_read_only() {
    let image = NamedTempFile::new().unwrap();
    image.as_file().write_at(&[0; 512], 0).unwrap();
    let path = image.path();
    let writer = Image::open(path, false).unwrap();
    for read_only in [false, true] {
        assert!(refused(path, read_only).contains("is in use by another machine"));
    }
    drop(writer);
    let _readers = [Image::open(path, true).unwrap(), Image::open(path, true).unwrap()];
    assert!(refused(path, false).contains("is in use by another machine"));
}

#[test]
fn an_image_without_write_permission_can_be_used_read_only() {
    use std::os::unix::fs::PermissionsExt;
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(512).unwrap();
    fs::set_permissions(image.path(), fs::Permissions::from_mode(0o444)).unwrap();
    assert_eq!(Image::open(image.path(), true).unwrap().size, 512);
    // A privileged user may write every file, and is not refused.
    if let Err(error) = Image::open(image.path(), false) {
        assert!(error.to_string().contains("use it read-only (FILE,ro)"));
    }
}
