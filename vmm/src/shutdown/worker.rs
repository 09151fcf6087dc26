//! A thread beside the vCPUs that may block in a write that nobody reads, and can be kicked out of it.

use super::Deadline;
use crate::error::Error;
use crate::host::{Kicker, REPEAT, handle_kicks};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};

/// The thread, whose body gives a `T`.
#[derive(Debug)]
pub(crate) struct Worker<T> {
    handle: JoinHandle<()>,
    /// What it gave, or nothing where it panicked.
    result: Receiver<T>,
    /// Set by the thread when it begins.
    kicker: Arc<OnceLock<Kicker>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts the thread; `operation` is what that is called where it fails.
    ///
    /// # Errors
    /// The host has no thread left, or no handler for the kick.
    pub(crate) fn spawn(
        name: &str,
        operation: &'static str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self, Error> {
        handle_kicks().map_err(Error::host("handling the kick signal"))?;
        let kicker = Arc::new(OnceLock::new());
        let own_kicker = kicker.clone();
        let (give, result) = mpsc::channel();
        let body = move || {
            own_kicker.get_or_init(Kicker::of_this_thread);
            let _ = give.send(body());
        };
        let handle = thread::Builder::new().name(name.into()).spawn(body).map_err(Error::host(operation))?;
        Ok(Self { handle, result, kicker })
    }

    /// To wake it where it is parked.
    pub(crate) fn thread(&self) -> &Thread {
        self.handle.thread()
    }

    /// Makes a system call of the thread's that blocks return.
    pub(crate) fn kick(&self) {
        if let Some(kicker) = self.kicker.get() {
            kicker.kick();
        }
    }

    /// Waits for its end, of which it has been told, and kicks it once nobody wants to wait any longer. Nothing
    /// where it panicked.
    pub(crate) fn join(self, deadline: &Deadline) -> Option<T> {
        let given = loop {
            match self.result.recv_timeout(REPEAT) {
                Ok(given) => break Some(given),
                Err(RecvTimeoutError::Disconnected) => break None,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if deadline.must_give_up().is_some() {
                self.kick();
            }
        };
        // It has nothing more to do.
        let _ = self.handle.join();
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::time::Duration;

    #[test]
    fn a_thread_gives_what_it_made_or_nothing() {
        let thread = Worker::spawn("test", "a test", || 42).unwrap();
        assert_eq!(thread.join(&Deadline::default()), Some(42));
        let panics = || -> u32 { panic!("for a test") };
        assert_eq!(Worker::spawn("test", "a test", panics).unwrap().join(&Deadline::default()), None);
    }

    #[test]
    fn a_thread_that_hangs_in_a_write_is_kicked_out_when_time_is_up() {
        let (mut writer, mut reader) = std::os::unix::net::UnixStream::pair().unwrap();
        let body = move || loop {
            if let Err(error) = writer.write(&[0; 4096]) {
                return error.kind();
            }
        };
        let thread = Worker::spawn("test", "a test", body).unwrap();
        let deadline = Deadline::after(Some(Duration::from_millis(100)));
        assert_eq!(thread.join(&deadline), Some(std::io::ErrorKind::Interrupted));
        assert!(reader.read(&mut [0]).is_ok());
    }
}
