//! Results on stdout, and messages and log lines on stderr.

use crate::file_name::suggestion;
use crate::progress;
use crate::status::{self, HasStatus};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vmm::host::TimeoutWriter;

/// The time limit for the reader of stderr to accept a message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for a log line. It is shorter, because waiting delays the run.
pub(crate) const LOG_TIMEOUT: Duration = Duration::from_millis(500);
/// True once the reader of stderr did not accept a log line or a message in its time.
static LOG_BLOCKED: AtomicBool = AtomicBool::new(false);

/// Prints a message on stderr. An error is ignored: the exit status still reports the failure. After a message that blocks,
/// the next ones wait for less time.
pub(crate) fn print_stderr(text: &str) {
    progress::erase();
    print_undrawn(text);
}

/// The same, and leaves the line with the progress as it is.
pub(crate) fn print_undrawn(text: &str) {
    let timeout = if LOG_BLOCKED.load(Ordering::Relaxed) { LOG_TIMEOUT } else { MESSAGE_TIMEOUT };
    if TimeoutWriter::new(io::stderr(), Some(timeout)).write_all(text.as_bytes()).is_err() {
        LOG_BLOCKED.store(true, Ordering::Relaxed);
    }
}

/// True if a stream is a terminal that shows colours, and the user wants them (<https://no-color.org>).
pub(crate) fn has_colours(stream: &impl IsTerminal) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    moves_cursor(stream) && !is_set("NO_COLOR")
}

/// True if a stream is a terminal that can erase its line.
pub(crate) fn moves_cursor(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// Returns characters that begin a new line on stderr, if it is the terminal on which another program wrote, and which may have left
/// its line open. They fill a line with blanks: at the start of a line the cursor stays in it, and otherwise it gets into the next
/// one. In both cases it then returns to the start.
#[cfg(has_kvm)]
pub(crate) fn fresh_line() -> String {
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::fs::MetadataExt;
    let device = |file: BorrowedFd<'_>| -> Option<u64> {
        let is_terminal = file.is_terminal();
        let file = std::fs::File::from(file.try_clone_to_owned().ok()?);
        file.metadata().ok().map(|data| data.rdev()).filter(|_| is_terminal)
    };
    let (stdout, stderr) = (device(io::stdout().as_fd()), device(io::stderr().as_fd()));
    match vmm::host::terminal_width() {
        Some(columns) if stdout.is_some() && stdout == stderr && moves_cursor(&io::stderr()) => {
            " ".repeat(columns) + "\r"
        }
        _ => String::new(),
    }
}

/// The log's writer to stderr. After the first line that blocks it drops the others, so that the log cannot stop a
/// run.
pub(crate) struct Log(pub(crate) TimeoutWriter<io::Stderr>);

impl Write for Log {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        progress::erase();
        if !LOG_BLOCKED.load(Ordering::Relaxed) && self.0.write_all(data).is_err() {
            LOG_BLOCKED.store(true, Ordering::Relaxed);
        }
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints a result on stdout. Returns the exit status. A reader that closes the pipe early, such as `head -1`, has all that
/// it wants, so there is no message.
pub(crate) fn print_stdout(text: &str) -> u8 {
    progress::erase();
    match TimeoutWriter::new(io::stdout(), None).write_all(text.as_bytes()) {
        Ok(()) => status::OK,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => status::BROKEN_PIPE,
        Err(_) if vmm::host::interrupted() => status::INTERRUPTED,
        Err(source) => report_error(&vmm::Error::Host { operation: "writing standard output", source }),
    }
}

/// Prints an error on stderr. Returns its exit status.
pub(crate) fn report_error(error: &impl HasStatus) -> u8 {
    let (red, plain) = if has_colours(&io::stderr()) { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    let similar = error.unread_file().map_or_else(String::new, |path| suggestion(Path::new(path)));
    print_stderr(&format!("vmm: {red}error:{plain} {error}{similar}\n"));
    error.status()
}
