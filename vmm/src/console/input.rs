//! The guest's input: it comes from a file, from memory, or is absent.
//!
//! The guest gets the end of the input as a byte, [`abi::END_OF_INPUT`], once.

use crate::host;
use simvirtio::abi;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// The most input that one read takes, in bytes.
const CHUNK: usize = 4096;

/// The guest's input.
#[derive(Debug)]
pub struct Input {
    /// The file to read from. `None` after its end.
    source: Option<File>,
    /// The bytes that were read and not taken yet.
    buffer: VecDeque<u8>,
}

impl Input {
    /// Creates input from a file, a pipe or a terminal. It is read only when the guest wants input.
    pub fn new(source: File) -> Self {
        Self { source: Some(source), buffer: VecDeque::new() }
    }

    /// Creates input with the given bytes, followed by the end.
    pub fn bytes(bytes: &[u8]) -> Self {
        let buffer = bytes.iter().copied().chain([abi::END_OF_INPUT]).collect();
        Self { source: None, buffer }
    }

    /// Creates input without bytes and without an end.
    pub(crate) fn none() -> Self {
        Self { source: None, buffer: VecDeque::new() }
    }

    /// The file that may still have input.
    pub(crate) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(AsFd::as_fd)
    }

    /// The buffered bytes and the file, for a guest that gets no end of input.
    pub(crate) fn into_parts(mut self) -> (Vec<u8>, Option<File>) {
        if self.source.is_none() && self.buffer.back() == Some(&abi::END_OF_INPUT) {
            self.buffer.pop_back();
        }
        (self.buffer.into(), self.source)
    }

    /// True if a byte is buffered.
    pub(crate) fn has_next(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next buffered byte.
    pub(crate) fn next(&mut self) -> Option<u8> {
        self.buffer.pop_front()
    }

    /// The buffered byte at this place, which stays.
    pub(crate) fn peek(&self, at: usize) -> Option<u8> {
        self.buffer.get(at).copied()
    }

    /// True if nothing is buffered and more may come from the file.
    pub(crate) fn may_wait(&self) -> bool {
        self.buffer.is_empty() && self.source.is_some()
    }

    /// Reads more input if nothing is buffered. Blocks for at most `timeout`, or without limit for `None`. A signal
    /// ends the wait without input.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn fetch(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let Some(source) = self.source.as_mut().filter(|_| self.buffer.is_empty()) else { return Ok(()) };
        if !host::wait_readable(source.as_fd(), timeout)? {
            return Ok(());
        }
        let mut chunk = [0; CHUNK];
        match source.read(&mut chunk) {
            Ok(0) => {
                self.source = None;
                self.buffer.push_back(abi::END_OF_INPUT);
            }
            Ok(read) => self.buffer.extend(chunk.iter().take(read)),
            Err(error) if [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock].contains(&error.kind()) => {
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn all(input: &mut Input) -> Vec<u8> {
        std::iter::from_fn(|| input.next()).collect()
    }

    #[test]
    fn bytes_are_followed_by_the_end_once() {
        let mut input = Input::bytes(b"ab");
        assert_eq!(all(&mut input), b"ab\x04");
        input.fetch(None).unwrap();
        assert_eq!((input.next(), input.may_wait()), (None, false));
    }

    #[test]
    fn a_pipe_is_read_as_it_fills() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut input = Input::new(File::from(std::os::fd::OwnedFd::from(reader)));
        input.fetch(Some(Duration::ZERO)).unwrap();
        assert_eq!((input.next(), input.may_wait()), (None, true));
        writer.write_all(b"one").unwrap();
        input.fetch(None).unwrap();
        assert_eq!(all(&mut input), b"one");
        drop(writer);
        input.fetch(None).unwrap();
        assert_eq!((all(&mut input).as_slice(), input.may_wait()), (b"\x04".as_slice(), false));
    }

    /// Both readers wake up for each byte, and the slower one finds nothing.
    #[test]
    fn two_readers_share_one_non_blocking_input() {
        let (mut writer, reader) = std::os::unix::net::UnixStream::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        let read = |stream: std::os::unix::net::UnixStream| {
            let mut input = Input::new(File::from(std::os::fd::OwnedFd::from(stream)));
            let mut count = 0;
            loop {
                input.fetch(None).unwrap();
                match input.next() {
                    Some(abi::END_OF_INPUT) => return count,
                    Some(_) => count += 1,
                    None => {}
                }
            }
        };
        std::thread::scope(|scope| {
            let readers =
                [reader.try_clone().unwrap(), reader].map(|stream| scope.spawn(move || read(stream)));
            for _ in 0..200 {
                writer.write_all(b"x").unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
            drop(writer);
            assert_eq!(readers.map(|reader| reader.join().unwrap()).iter().sum::<usize>(), 200);
        });
    }

    #[test]
    fn input_that_cannot_be_read_is_an_error() {
        let mut input = Input::new(File::open("/").unwrap());
        assert!(input.fetch(None).is_err());
    }
}
