//! Flat images: bytes that are copied to one address and entered at the first byte.

use super::{Image, ImageError, Segment};
use crate::memory::Gpa;
use crate::x86::modes::{Mode, Start};
use std::borrow::Cow;

impl Image {
    /// Creates an image from a flat binary: `bytes` at `start`, entered at the first byte in `mode`.
    ///
    /// # Errors
    /// [`ImageError::Empty`] if there are no bytes.
    pub fn flat(bytes: impl Into<Cow<'static, [u8]>>, mode: Mode, start: Gpa) -> Result<Self, ImageError> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(ImageError::Empty);
        }
        let segment = Segment { start, file: 0..bytes.len(), size: bytes.len() as u64, executable: true };
        Ok(Self::of(bytes, vec![segment], Start::new(mode, start), false))
    }
}
