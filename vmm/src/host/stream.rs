//! Writing to the program's own streams without hanging on them.
//!
//! A terminal that is stopped, or a pipe that nobody empties, blocks whoever writes to it, and the standard
//! library tries again when a signal interrupts that. What a guest prints goes through
//! [`Output`](crate::Output), which the run's deadline ends; this is for what is said about it.

use crate::host;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Writes to a file descriptor, and gives up when an interruption of the program comes
/// ([`catch_interrupts`](crate::catch_interrupts)) or nobody takes anything for a time.
#[derive(Debug)]
pub struct TimeoutWriter<S> {
    stream: S,
    patience: Option<Duration>,
}

/// How long nobody may take what is written after an interruption.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl<S: AsFd> TimeoutWriter<S> {
    /// Writes to `stream`, past any buffer that it has. Without `patience` only an interruption ends the wait.
    pub fn new(stream: S, patience: Option<Duration>) -> Self {
        Self { stream, patience }
    }

    /// Waits until somebody takes what is written.
    fn wait(&self) -> io::Result<()> {
        const TURN: Duration = Duration::from_millis(100);
        let start = Instant::now();
        // An interruption from before is what is being reported, for as long as somebody may still want it.
        let before = host::interrupted();
        let patience = self.patience.or(before.then_some(LAST_WORDS));
        while !host::wait_writable(self.stream.as_fd(), Some(TURN))? {
            if host::interrupted() && !before {
                // Not `Interrupted`, after which the standard library would try again.
                return Err(io::Error::from_raw_os_error(libc::ECANCELED));
            }
            if patience.is_some_and(|patience| start.elapsed() >= patience) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }
}

impl<S: AsFd> Write for TimeoutWriter<S> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        loop {
            self.wait()?;
            match host::write(self.stream.as_fd(), data.get(..host::ATOMIC).unwrap_or(data)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                answer => return answer,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::thread;

    #[test]
    fn what_nobody_takes_is_given_up() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut patient = TimeoutWriter::new(writer, Some(Duration::from_millis(150)));
        let failed = patient.write_all(&vec![b'x'; 1 << 20]).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        drop(patient);
        let mut taken = Vec::new();
        reader.read_to_end(&mut taken).unwrap();
        assert!(taken.len() >= host::ATOMIC, "{}", taken.len());
    }

    #[test]
    fn a_slow_reader_gets_all() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut patient = TimeoutWriter::new(writer, Some(Duration::from_secs(20)));
        let text = vec![b'x'; 300_000];
        let expected = text.len();
        let thread = thread::spawn(move || patient.write_all(&text));
        thread::sleep(Duration::from_millis(250));
        let mut taken = Vec::new();
        reader.read_to_end(&mut taken).unwrap();
        assert_eq!(taken.len(), expected);
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(TimeoutWriter::new(null, None).write_all(b"x").is_err());
    }
}
