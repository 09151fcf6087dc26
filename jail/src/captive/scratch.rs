//! The scratch folders of programs, and those that an interrupted process has left behind.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

/// The start of the names, before the number of the process.
const PREFIX: &str = "vmm-jail-";
/// The most entries of the folder for temporary files that are looked at.
const MAX_ENTRIES: usize = 100_000;
/// A younger folder may not have its lock yet.
const AGE: Duration = Duration::from_secs(60);

/// A folder for temporary files that only this user can read. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) path: PathBuf,
    /// The open folder, locked. A process in another PID namespace that has the same /tmp sees by it that the folder is in use.
    _lock: Option<File>,
}

impl Scratch {
    pub(super) fn new() -> io::Result<Self> {
        static CLEANED: Once = Once::new();
        let place = std::env::temp_dir();
        CLEANED.call_once(|| remove_left_over(&place, AGE));
        for attempt in 0..10_000u32 {
            let path = place.join(format!("{PREFIX}{}-{attempt}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    let lock = File::open(&path).ok().filter(|folder| folder.try_lock().is_ok());
                    return Ok(Self { path: fs::canonicalize(path)?, _lock: lock });
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Without a mount namespace, the files of the program are in it.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders of this user in `place` whose process has ended without doing so, for example by SIGKILL. They are older than
/// `age`.
fn remove_left_over(place: &Path, age: Duration) {
    // The folder has the user of its process. Without it, there is no own folder.
    let Ok(own) = fs::metadata("/proc/self").map(|own| own.uid()) else { return };
    for entry in fs::read_dir(place).into_iter().flatten().take(MAX_ENTRIES).flatten() {
        let name = entry.file_name();
        let Some(process) = name.to_str().and_then(process) else { continue };
        let path = entry.path();
        // Of the entry itself, which may be a link of another user.
        let Ok(found) = path.symlink_metadata() else { continue };
        let is_old = found.modified().is_ok_and(|time| time.elapsed().is_ok_and(|passed| passed >= age));
        if !found.is_dir() || found.uid() != own || !is_old || Path::new(&format!("/proc/{process}")).exists()
        {
            continue;
        }
        if let Ok(folder) = File::open(&path)
            && folder.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// The number of the process in the name of a folder.
fn process(name: &str) -> Option<u32> {
    let (process, attempt) = name.strip_prefix(PREFIX)?.split_once('-')?;
    attempt.parse::<u32>().ok()?;
    process.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_folder_is_removed_at_its_end() {
        let scratch = Scratch::new().unwrap();
        let path = scratch.path.clone();
        fs::write(path.join("a"), "b").unwrap();
        drop(scratch);
        // Another test may have the name by now.
        assert!(!path.join("a").exists());
    }

    #[test]
    fn folders_of_dead_processes_are_removed() {
        let place = Scratch::new().unwrap();
        let mut ended = Command::new("true").spawn().unwrap();
        let dead = ended.id();
        ended.wait().unwrap();
        let alive = std::process::id();
        let path = |name: &str| place.path.join(name);
        let names = [
            format!("vmm-jail-{dead}-0"),
            format!("vmm-jail-{dead}-1"),
            format!("vmm-jail-{alive}-0"),
            format!("vmm-jail-{dead}"),
            format!("vmm-jail-{dead}-x"),
            format!("other-{dead}-0"),
        ];
        for name in &names {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("file"), "text").unwrap();
        }
        std::os::unix::fs::symlink(path(&names[5]), path(&format!("vmm-jail-{dead}-2"))).unwrap();
        // Another process has it open, whatever its number is.
        let locked = File::open(path(&names[1])).unwrap();
        locked.try_lock().unwrap();
        remove_left_over(&place.path, Duration::from_secs(1000));
        assert!(names.iter().all(|name| path(name).exists()), "they are young");
        remove_left_over(&place.path, Duration::ZERO);
        let left: Vec<_> = names.iter().map(|name| path(name).exists()).collect();
        assert_eq!(left, [false, true, true, true, true, true]);
        assert!(path(&names[5]).join("file").exists(), "a link was followed");
    }
}
