//! Transfers between files and guest memory, without an intermediate copy.
//!
//! A signal does not interrupt a system call on a regular file, so a transfer has several: none of them moves more than
//! [`PIECE`] bytes.

use super::{Gpa, GuestMemory};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use vm_memory::GuestMemoryBackend;

/// A range of guest memory, as the guest gives it. It is not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first address.
    pub start: Gpa,
    /// The length in bytes.
    pub len: u32,
}

/// The most bytes that one system call moves. Storage with 10 MB/s takes 26 ms for them, and a larger number makes no
/// transfer faster.
pub(crate) const PIECE: usize = 256 << 10;

/// The reason why a transfer is not complete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// A part of a span is not guest memory. Nothing was transferred.
    #[error("a buffer is not in guest memory")]
    NotMemory,
    /// The caller has ended the transfer between two pieces.
    #[error("the transfer was ended")]
    CutOff,
    /// The file cannot be read or written.
    #[error(transparent)]
    Host(#[from] io::Error),
}

impl GuestMemory {
    /// Reads from `file` at `offset` into `spans`, in order. Returns the number of bytes: fewer than the spans have
    /// only at the end of the file. Before each piece it asks `must_end`, and ends if the answer is true.
    ///
    /// # Errors
    /// A part of a span is not guest memory, `must_end` returned true, or the file cannot be read.
    pub(crate) fn read_from_file_at(
        &self,
        file: &File,
        offset: u64,
        spans: &[Span],
        must_end: &dyn Fn() -> bool,
    ) -> Result<u64, TransferError> {
        self.transfer(offset, spans, must_end, |vectors, at| {
            // SAFETY: each entry is a mapped range of guest memory. `self` keeps it mapped, and this process has no
            // reference into it.
            unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), vectors.count(), at) }
        })
    }

    /// Writes `spans` to `file` at `offset`, in order. Returns the number of bytes: fewer than the spans have only if
    /// the file takes no more. Before each piece it asks `must_end`, and ends if the answer is true.
    ///
    /// # Errors
    /// A part of a span is not guest memory, `must_end` returned true, or the file cannot be written.
    pub(crate) fn write_to_file_at(
        &self,
        file: &File,
        offset: u64,
        spans: &[Span],
        must_end: &dyn Fn() -> bool,
    ) -> Result<u64, TransferError> {
        self.transfer(offset, spans, must_end, |vectors, at| {
            // SAFETY: as in `read_from_file_at`. If the guest changes the bytes meanwhile, only the file's content
            // differs.
            unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), vectors.count(), at) }
        })
    }

    /// Repeats `call`, which may transfer only a part, until all bytes are transferred or the file ends.
    fn transfer(
        &self,
        offset: u64,
        spans: &[Span],
        must_end: &dyn Fn() -> bool,
        call: impl Fn(&Vectors, libc::off_t) -> libc::ssize_t,
    ) -> Result<u64, TransferError> {
        let is_memory = |span: &Span| span.len == 0 || self.contains(span.start, span.len.into());
        if !spans.iter().all(is_memory) {
            return Err(TransferError::NotMemory);
        }
        let mut rest = Rest { spans, passed: 0 };
        let mut done: u64 = 0;
        loop {
            let vectors = self.vectors(&rest)?;
            if vectors.len == 0 {
                break;
            }
            if must_end() {
                return Err(TransferError::CutOff);
            }
            let at = offset.checked_add(done).and_then(|at| libc::off_t::try_from(at).ok());
            let at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
            match call(&vectors, at) {
                0 => break,
                moved @ 1.. => {
                    done += moved as u64;
                    rest.advance(moved as u64);
                }
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error.into()),
                },
            }
        }
        Ok(done)
    }

    /// The addresses in this process of the next [`PIECE`] bytes, or of fewer if the array has no room for more.
    fn vectors(&self, rest: &Rest<'_>) -> Result<Vectors, TransferError> {
        let mut vectors = Vectors::new();
        let (mut passed, mut room) = (rest.passed as usize, PIECE);
        for span in rest.spans {
            let len = room.min(span.len as usize - passed);
            let start = Gpa(span.start.0.saturating_add(passed as u64));
            for slice in self.slots.get_slices(start, len) {
                let slice = slice.map_err(|_| TransferError::NotMemory)?;
                let vector =
                    libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
                if !slice.is_empty() && !vectors.push(vector) {
                    return Ok(vectors);
                }
            }
            (passed, room) = (0, room - len);
            if room == 0 {
                break;
            }
        }
        Ok(vectors)
    }
}

/// The part of a transfer that is left.
struct Rest<'a> {
    /// The spans that are not complete.
    spans: &'a [Span],
    /// The number of bytes of the first span that are complete: fewer than it has.
    passed: u32,
}

impl Rest<'_> {
    /// Moves on by `moved` bytes.
    fn advance(&mut self, mut moved: u64) {
        while let Some((first, others)) = self.spans.split_first() {
            let left = u64::from(first.len - self.passed);
            if moved < left {
                // Less than the length of a span.
                self.passed += moved as u32;
                return;
            }
            moved -= left;
            (self.spans, self.passed) = (others, 0);
        }
    }
}

/// The ranges of memory of one vectored system call: as many as the largest request of a disk has. The array is on the
/// stack and is not initialised.
struct Vectors {
    entries: [MaybeUninit<libc::iovec>; 256],
    /// The number of initialised entries.
    len: usize,
}

impl Vectors {
    fn new() -> Self {
        Self { entries: [const { MaybeUninit::uninit() }; 256], len: 0 }
    }

    /// Appends an entry. Returns false if there is no room.
    fn push(&mut self, vector: libc::iovec) -> bool {
        let Some(entry) = self.entries.get_mut(self.len) else { return false };
        entry.write(vector);
        self.len += 1;
        true
    }

    fn as_ptr(&self) -> *const libc::iovec {
        self.entries.as_ptr().cast()
    }

    fn count(&self) -> libc::c_int {
        self.len as libc::c_int
    }
}

#[cfg(test)]
mod tests {
    use super::super::PAGE;
    use super::*;

    #[test]
    fn transfers_between_a_file_and_many_spans() {
        let file = tempfile::tempfile().unwrap();
        // Two adjacent slots, so that a span can cross from one into the other.
        let memory = GuestMemory::new(&[(Gpa(0), PAGE), (Gpa(PAGE), PAGE)]).unwrap();
        let data: Vec<u8> = (0..600).map(|byte| (byte % 251) as u8).collect();
        memory.write(Gpa(PAGE - 300), &data).unwrap();
        // More spans than fit into one call.
        let bytes: Vec<Span> = (0..600).map(|at| Span { start: Gpa(PAGE - 300 + at), len: 1 }).collect();
        assert_eq!(memory.write_to_file_at(&file, 7, &bytes, &|| false).unwrap(), 600);
        let spans = [Span { start: Gpa(0), len: 0 }, Span { start: Gpa(PAGE - 100), len: 900 }];
        assert_eq!(
            memory.read_from_file_at(&file, 7, &spans, &|| false).unwrap(),
            600,
            "the file ends there"
        );
        let mut read = [0; 600];
        assert!(memory.read(Gpa(PAGE - 100), &mut read));
        assert_eq!(read.as_slice(), data);
    }

    #[test]
    fn a_transfer_is_done_in_pieces_and_can_end_between_them() {
        let file = tempfile::tempfile().unwrap();
        let memory = GuestMemory::new(&[(Gpa(0), 4 << 20)]).unwrap();
        let spans = [(1, 3 * PIECE as u32), (5, 100), (0, 2 * PIECE as u32)];
        let spans = spans.map(|(start, len)| Span { start: Gpa(start), len });
        let asked = std::cell::Cell::new(0);
        let end_at = |end: u32| {
            asked.set(0);
            let must_end = || asked.replace(asked.get() + 1) == end;
            memory.write_to_file_at(&file, 10, &spans, &must_end)
        };
        assert!(matches!(end_at(2), Err(TransferError::CutOff)));
        assert_eq!(file.metadata().unwrap().len(), 10 + 2 * PIECE as u64);
        assert_eq!(end_at(99).unwrap(), 5 * PIECE as u64 + 100);
        assert_eq!(asked.get(), 6, "once before each piece");
    }

    #[test]
    fn spans_outside_memory_are_refused() {
        let file = tempfile::tempfile().unwrap();
        let memory = GuestMemory::new(&[(Gpa(0), PAGE)]).unwrap();
        for (start, len) in [(PAGE, 1), (PAGE - 1, 2), (u64::MAX, 2), (0, u32::MAX)] {
            let spans = [Span { start: Gpa(0), len: 1 }, Span { start: Gpa(start), len }];
            assert!(memory.read_from_file_at(&file, 0, &spans, &|| false).is_err());
            assert!(memory.write_to_file_at(&file, 0, &spans, &|| false).is_err());
        }
        assert_eq!(file.metadata().unwrap().len(), 0, "an invalid request writes nothing");
        let span = [Span { start: Gpa(0), len: 1 }];
        assert!(memory.write_to_file_at(&file, u64::MAX, &span, &|| false).is_err());
        assert!(memory.write_to_file_at(&File::open("/dev/null").unwrap(), 0, &span, &|| false).is_err());
    }
}
