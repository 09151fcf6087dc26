//! Writes to the program's own streams with a time limit.
//!
//! A stopped terminal, or a pipe whose reader does not read, blocks its writer, and the standard library repeats a
//! write that a signal interrupts. The output of guests goes through [`Output`](crate::Output), which the deadline of
//! the run ends. This writer is for the messages and reports of the program itself.

use crate::host;
use crate::host::kick::is_kicked;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// A writer to a file descriptor that gives up after a time limit, or when a signal asks the program to end
/// ([`catch_interrupts`](crate::host::catch_interrupts)). On the thread of a vCPU, a kick ends the wait too, so that a
/// log line does not hold a run beyond its deadline.
#[derive(Debug)]
pub struct TimeoutWriter<S> {
    stream: S,
    timeout: Option<Duration>,
}

/// The time limit of each write after a signal has asked the program to end, if there is no other limit.
const INTERRUPTED_TIMEOUT: Duration = Duration::from_secs(2);

impl<S: AsFd> TimeoutWriter<S> {
    /// Creates a writer to `stream` that bypasses its buffer. `timeout` limits the wait of each write. For `None` only
    /// a signal ends the wait.
    pub fn new(stream: S, timeout: Option<Duration>) -> Self {
        Self { stream, timeout }
    }

    /// Waits until the stream accepts bytes.
    ///
    /// # Errors
    /// * `TimedOut`: the time limit is over, or the vCPU of this thread was kicked.
    /// * ECANCELED: a signal has asked the program to end.
    fn wait(&self) -> io::Result<()> {
        const CHECK_INTERVAL: Duration = Duration::from_millis(100);
        let start = Instant::now();
        // A signal from before does not end the wait: its report is being written.
        let before = host::interrupted();
        let timeout = self.timeout.or(before.then_some(INTERRUPTED_TIMEOUT));
        // On a host that cannot wait, a write without a time limit is better than a lost message.
        while !host::wait_writable(self.stream.as_fd(), Some(CHECK_INTERVAL)).unwrap_or(true) {
            if host::interrupted() && !before {
                // Not `Interrupted`, because the standard library would repeat the write.
                return Err(io::Error::from_raw_os_error(libc::ECANCELED));
            }
            if is_kicked() || timeout.is_some_and(|timeout| start.elapsed() >= timeout) {
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
    fn a_write_without_a_reader_times_out() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut stream = TimeoutWriter::new(writer, Some(Duration::from_millis(150)));
        let failed = stream.write_all(&vec![b'x'; 1 << 20]).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        drop(stream);
        let mut taken = Vec::new();
        reader.read_to_end(&mut taken).unwrap();
        assert!(taken.len() >= host::ATOMIC, "{}", taken.len());
    }

    #[test]
    fn a_kick_ends_the_wait_of_a_vcpus_thread() {
        let (_reader, writer) = io::pipe().unwrap();
        let mut stream = TimeoutWriter::new(writer, None);
        let byte = std::sync::atomic::AtomicU8::new(0);
        // SAFETY: `byte` outlives the call.
        let failed = unsafe {
            host::with_kicks(&byte, |kicker| {
                let kicks = thread::spawn(move || {
                    for _ in 0..100 {
                        thread::sleep(host::REPEAT);
                        kicker.kick();
                    }
                });
                let failed = stream.write_all(&vec![b'x'; 1 << 20]).unwrap_err();
                kicks.join().unwrap();
                failed
            })
        };
        assert_eq!(failed.unwrap().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_slow_reader_gets_everything() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut stream = TimeoutWriter::new(writer, Some(Duration::from_secs(20)));
        let text = vec![b'x'; 300_000];
        let expected = text.len();
        let thread = thread::spawn(move || stream.write_all(&text));
        thread::sleep(Duration::from_millis(250));
        let mut taken = Vec::new();
        reader.read_to_end(&mut taken).unwrap();
        assert_eq!(taken.len(), expected);
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_failed_write_is_an_error() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(TimeoutWriter::new(null, None).write_all(b"x").is_err());
    }
}
