//! Messages on stderr, results on stdout, and the log.

use crate::status;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vmm::host::TimeoutWriter;

/// For how long nobody may take what is said on stderr.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for a line of the log, during a run whose time goes on.
pub(crate) const LOG_PATIENCE: Duration = Duration::from_millis(500);
/// Whether nobody has taken a line of the log in that time.
static UNREAD: AtomicBool = AtomicBool::new(false);

/// Says something on stderr. Where even that cannot be written, the exit status has to do.
pub(crate) fn say(text: &str) {
    let patience = if UNREAD.load(Ordering::Relaxed) { LOG_PATIENCE } else { PATIENCE };
    let _ = TimeoutWriter::new(io::stderr(), Some(patience)).write_all(text.as_bytes());
}

/// The log's way to stderr. Once nobody takes it, the rest is dropped: a log must not hold a run.
pub(crate) struct Log(pub(crate) TimeoutWriter<io::Stderr>);

impl Write for Log {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if !UNREAD.load(Ordering::Relaxed) && self.0.write_all(data).is_err() {
            UNREAD.store(true, Ordering::Relaxed);
        }
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints a result on stdout and answers with the exit status.
pub(crate) fn print(text: &str) -> u8 {
    match TimeoutWriter::new(io::stdout(), None).write_all(text.as_bytes()) {
        Ok(()) => status::OK,
        Err(_) if vmm::host::interrupted() => status::INTERRUPTED,
        Err(source) => complain(&vmm::Error::Host { operation: "writing standard output", source }),
    }
}

/// Says on stderr what went wrong on the host's side, and gives the status for it.
pub(crate) fn complain(error: &impl status::Failed) -> u8 {
    say(&format!("vmm: error: {error}\n"));
    error.status()
}
