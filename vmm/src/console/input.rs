//! Where the guest's input comes from: a file descriptor, bytes that are there already, or nothing.
//!
//! The end of the input is a byte of its own for the guest, [`abi::END_OF_INPUT`], given once.

use crate::host;
use simvirtio::abi;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// How much is read at a time, in bytes.
const CHUNK: usize = 4096;

/// The guest's input.
#[derive(Debug)]
pub struct Input {
    /// What still has to be read from; `None` once its end was seen.
    source: Option<File>,
    here: VecDeque<u8>,
}

impl Input {
    /// What can be read from a file, a pipe or a terminal. It is read when the guest wants it, not before.
    pub fn new(source: File) -> Self {
        Self { source: Some(source), here: VecDeque::new() }
    }

    /// These bytes, and then the end.
    pub fn bytes(bytes: &[u8]) -> Self {
        let here = bytes.iter().copied().chain([abi::END_OF_INPUT]).collect();
        Self { source: None, here }
    }

    /// Nothing, and no end either.
    pub(crate) fn none() -> Self {
        Self { source: None, here: VecDeque::new() }
    }

    /// What may still be read from.
    pub(crate) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(AsFd::as_fd)
    }

    /// The bytes that are here, and what still can be read from; for a guest that is not told of the end.
    pub(crate) fn into_parts(mut self) -> (Vec<u8>, Option<File>) {
        if self.source.is_none() && self.here.back() == Some(&abi::END_OF_INPUT) {
            self.here.pop_back();
        }
        (self.here.into(), self.source)
    }

    /// The next byte, if one is here already.
    pub(crate) fn next(&mut self) -> Option<u8> {
        self.here.pop_front()
    }

    /// Whether more may come from outside while nothing is here.
    pub(crate) fn may_wait(&self) -> bool {
        self.here.is_empty() && self.source.is_some()
    }

    /// Reads some more if nothing is here, waiting for it for `patience` at most, or without end. Comes back
    /// empty-handed where a signal interrupts the wait.
    pub(crate) fn fetch(&mut self, patience: Option<Duration>) -> io::Result<()> {
        let Some(source) = self.source.as_mut().filter(|_| self.here.is_empty()) else { return Ok(()) };
        if !host::wait_readable(source.as_fd(), patience)? {
            return Ok(());
        }
        let mut chunk = [0; CHUNK];
        match source.read(&mut chunk) {
            Ok(0) => {
                self.source = None;
                self.here.push_back(abi::END_OF_INPUT);
            }
            Ok(read) => self.here.extend(chunk.iter().take(read)),
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
    fn bytes_and_then_the_end_once() {
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

    /// Both are told that there is something; the slower one finds nothing.
    #[test]
    fn two_readers_of_one_input_that_does_not_block() {
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
    fn what_cannot_be_read_is_an_error() {
        let mut input = Input::new(File::open("/").unwrap());
        assert!(input.fetch(None).is_err());
    }
}
