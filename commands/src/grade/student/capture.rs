//! Bounded captures of what a program prints.

use std::io::{self, PipeReader, Read};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The longest wait for the rest of an output after the end of the program.
const REST: Duration = Duration::from_secs(2);

/// The part of an output that was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::grade) struct Captured {
    /// The first bytes.
    pub(in crate::grade) head: Vec<u8>,
    /// The last bytes, if there were more.
    pub(in crate::grade) tail: Vec<u8>,
    /// The number of bytes between the two, which were dropped.
    pub(in crate::grade) dropped: u64,
}

impl Captured {
    fn add(&mut self, mut data: &[u8], most: usize) {
        let room = most.saturating_sub(self.head.len());
        if room > 0 {
            let (first, rest) = data.split_at(room.min(data.len()));
            self.head.extend(first);
            data = rest;
        }
        self.tail.extend(data);
        let surplus = self.tail.len().saturating_sub(most);
        self.tail.drain(..surplus);
        self.dropped = self.dropped.saturating_add(surplus as u64);
    }

    /// The output as text, without what was dropped.
    pub(in crate::grade) fn text(&self) -> String {
        String::from_utf8_lossy(&[&self.head[..], &self.tail[..]].concat()).into_owned()
    }
}

/// A capture that is under way.
pub(in crate::grade) struct Capture {
    kept: Arc<Mutex<Captured>>,
    ended: Receiver<()>,
}

impl Capture {
    /// Starts a thread that reads all of a stream, and keeps at most `most` bytes of its beginning and of its end.
    ///
    /// # Errors
    /// The host has no pipe or no thread.
    pub(in crate::grade) fn start(most: usize) -> io::Result<(Self, Stdio)> {
        let (reader, writer) = io::pipe()?;
        let (sender, ended) = channel();
        let kept = Arc::new(Mutex::new(Captured::default()));
        let to = kept.clone();
        thread::Builder::new().spawn(move || {
            drain(reader, most, &to);
            // The receiver may have given up.
            let _ = sender.send(());
        })?;
        Ok((Self { kept, ended }, writer.into()))
    }

    /// Returns what was captured, when the stream is closed, or after a while.
    pub(in crate::grade) fn finish(self) -> Captured {
        let _ = self.ended.recv_timeout(REST);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn drain(mut reader: PipeReader, most: usize, to: &Mutex<Captured>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => {
                let data = buffer.get(..read).unwrap_or_default();
                to.lock().unwrap_or_else(PoisonError::into_inner).add(data, most);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_and_the_end_of_a_flood_are_kept() {
        let mut captured = Captured::default();
        for data in [&b"abc"[..], b"def", b"ghij"] {
            captured.add(data, 4);
        }
        assert_eq!((captured.text().as_str(), captured.dropped), ("abcdghij", 2));
        let mut short = Captured::default();
        short.add(b"abc", 4);
        assert_eq!((short.text().as_str(), short.dropped), ("abc", 0));
    }
}
