//! Files that are attached to a loop device, which the kernel lets other programs write at the same time.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The folder with the block devices of the host.
pub(super) const SYS_BLOCK: &str = "/sys/block";

/// The name of a loop device whose backing file is the file with this metadata, such as `loop3`. `None` if there is none,
/// or if it cannot be known: the kernel gives only the path of a backing file, which may be unreachable from here.
pub(super) fn attached(sys_block: &Path, file: &Metadata) -> Option<String> {
    let devices = fs::read_dir(sys_block).ok()?.filter_map(Result::ok);
    let mut names = devices.filter_map(|device| device.file_name().into_string().ok());
    names.find(|name| {
        name.starts_with("loop")
            && backing_file(&sys_block.join(name))
                .and_then(|path| fs::metadata(path).ok())
                .is_some_and(|backing| (backing.dev(), backing.ino()) == (file.dev(), file.ino()))
    })
}

/// The path of the backing file of a loop device.
fn backing_file(device: &Path) -> Option<PathBuf> {
    let mut path = fs::read(device.join("loop/backing_file")).ok()?;
    path.pop_if(|last| *last == b'\n');
    Some(std::ffi::OsString::from_vec(path).into())
}
