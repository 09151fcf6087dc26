//! Transfers between files and guest memory, without an intermediate copy.

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

impl GuestMemory {
    /// Reads from `file` at `offset` into `spans`, in order. Returns the number of bytes: fewer than the spans have
    /// only at the end of the file.
    ///
    /// # Errors
    /// A part of a span is not guest memory, or the file cannot be read.
    pub(crate) fn read_from_file_at(&self, file: &File, offset: u64, spans: &[Span]) -> io::Result<u64> {
        self.transfer(offset, spans, |vectors, at| {
            // SAFETY: each entry is a mapped range of guest memory. `self` keeps it mapped, and this process has no
            // reference into it.
            unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), vectors.count(), at) }
        })
    }

    /// Writes `spans` to `file` at `offset`, in order. Returns the number of bytes: fewer than the spans have only if
    /// the file takes no more.
    ///
    /// # Errors
    /// A part of a span is not guest memory, or the file cannot be written.
    pub(crate) fn write_to_file_at(&self, file: &File, offset: u64, spans: &[Span]) -> io::Result<u64> {
        self.transfer(offset, spans, |vectors, at| {
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
        call: impl Fn(&Vectors, libc::off_t) -> libc::ssize_t,
    ) -> io::Result<u64> {
        let all: u64 = spans.iter().map(|span| u64::from(span.len)).sum();
        let mut done = 0;
        while done < all {
            let vectors = self.vectors(spans, done)?;
            let at = offset.checked_add(done).and_then(|at| libc::off_t::try_from(at).ok());
            match call(&vectors, at.ok_or(io::ErrorKind::InvalidInput)?) {
                0 => break,
                moved @ 1.. => done += moved as u64,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(done)
    }

    /// The addresses of `spans` in this process, without their first `skip` bytes. Ends early if there is no room for
    /// more.
    fn vectors(&self, spans: &[Span], mut skip: u64) -> io::Result<Vectors> {
        let mut vectors = Vectors::new();
        for span in spans {
            for slice in self.slots.get_slices(span.start, span.len as usize) {
                let slice = slice.map_err(io::Error::other)?;
                let passed = skip.min(slice.len() as u64);
                skip -= passed;
                let rest = slice.offset(passed as usize).map_err(io::Error::other)?;
                let vector =
                    libc::iovec { iov_base: rest.ptr_guard_mut().as_ptr().cast(), iov_len: rest.len() };
                if !rest.is_empty() && !vectors.push(vector) {
                    return Ok(vectors);
                }
            }
        }
        Ok(vectors)
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
        assert_eq!(memory.write_to_file_at(&file, 7, &bytes).unwrap(), 600);
        let spans = [Span { start: Gpa(0), len: 0 }, Span { start: Gpa(PAGE - 100), len: 900 }];
        assert_eq!(memory.read_from_file_at(&file, 7, &spans).unwrap(), 600, "the file ends there");
        let mut read = [0; 600];
        assert!(memory.read(Gpa(PAGE - 100), &mut read));
        assert_eq!(read.as_slice(), data);
    }

    #[test]
    fn spans_outside_memory_are_refused() {
        let file = tempfile::tempfile().unwrap();
        let memory = GuestMemory::new(&[(Gpa(0), PAGE)]).unwrap();
        for (start, len) in [(PAGE, 1), (PAGE - 1, 2), (u64::MAX, 2), (0, u32::MAX)] {
            let spans = [Span { start: Gpa(0), len: 1 }, Span { start: Gpa(start), len }];
            assert!(memory.read_from_file_at(&file, 0, &spans).is_err());
            assert!(memory.write_to_file_at(&file, 0, &spans).is_err());
        }
        assert_eq!(file.metadata().unwrap().len(), 0, "an invalid request writes nothing");
        let span = [Span { start: Gpa(0), len: 1 }];
        assert!(memory.write_to_file_at(&file, u64::MAX, &span).is_err());
        assert!(memory.write_to_file_at(&File::open("/dev/null").unwrap(), 0, &span).is_err());
    }
}
