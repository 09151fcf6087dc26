//! A worker thread besides the vCPU threads. It can be kicked out of a write that blocks because its reader is slow.

use super::Deadline;
use crate::error::Error;
use crate::host::{Kicker, REPEAT, ThreadKind, handle_kicks, thread_started};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};

/// A worker thread that returns a `T`.
#[derive(Debug)]
pub(crate) struct Worker<T> {
    handle: JoinHandle<T>,
    /// Closes at the end of the thread's body. Nothing is sent.
    ended: Receiver<()>,
    /// Set by the thread when it starts.
    kicker: Arc<OnceLock<Kicker>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts the thread. `operation` names this step in the error.
    ///
    /// # Errors
    /// The host has no thread left, or the handler of the kick signal cannot be installed.
    pub(crate) fn spawn(
        name: &str,
        kind: ThreadKind,
        operation: &'static str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self, Error> {
        handle_kicks().map_err(Error::host("handling the kick signal"))?;
        let kicker = Arc::new(OnceLock::new());
        let own_kicker = kicker.clone();
        let (sender, ended) = mpsc::channel();
        let body = move || {
            thread_started(kind);
            own_kicker.get_or_init(Kicker::of_this_thread);
            let _open = sender;
            body()
        };
        let handle = thread::Builder::new().name(name.into()).spawn(body).map_err(Error::host(operation))?;
        Ok(Self { handle, ended, kicker })
    }

    /// The thread, to unpark it.
    pub(crate) fn thread(&self) -> &Thread {
        self.handle.thread()
    }

    /// Interrupts a blocking system call of the thread.
    pub(crate) fn kick(&self) {
        if let Some(kicker) = self.kicker.get() {
            kicker.kick();
        }
    }

    /// Waits for the end of the thread, and kicks it when the deadline gives up. The caller requests the end beforehand.
    /// `None` if the thread panicked.
    pub(crate) fn join(self, deadline: &Deadline) -> Option<T> {
        while self.ended.recv_timeout(REPEAT) == Err(RecvTimeoutError::Timeout) {
            if deadline.must_give_up().is_some() {
                self.kick();
            }
        }
        // The thread's body has ended, so this does not block.
        self.handle.join().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::time::Duration;

    #[test]
    fn join_returns_the_result_or_none_after_a_panic() {
        let thread = Worker::spawn("test", ThreadKind::Device, "a test", || 42).unwrap();
        assert_eq!(thread.join(&Deadline::default()), Some(42));
        let panics = || -> u32 { panic!("for a test") };
        assert_eq!(
            Worker::spawn("test", ThreadKind::Device, "a test", panics).unwrap().join(&Deadline::default()),
            None
        );
    }

    #[test]
    fn a_thread_that_blocks_in_a_write_is_kicked_after_the_deadline() {
        let (mut writer, mut reader) = std::os::unix::net::UnixStream::pair().unwrap();
        let body = move || loop {
            if let Err(error) = writer.write(&[0; 4096]) {
                return error.kind();
            }
        };
        let thread = Worker::spawn("test", ThreadKind::Device, "a test", body).unwrap();
        let deadline = Deadline::after(Some(Duration::from_millis(100)));
        assert_eq!(thread.join(&deadline), Some(std::io::ErrorKind::Interrupted));
        assert!(reader.read(&mut [0]).is_ok());
    }
}
