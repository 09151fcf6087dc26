//! Flat images: bytes that are copied to one place and entered at their first.

use super::{Image, ImageError, Segment};
use crate::memory::Gpa;
use crate::modes::Mode;
use std::borrow::Cow;
use std::sync::Arc;

/// An image of `bytes` at `start`, entered there in `mode`.
///
/// # Errors
/// There are no bytes.
pub fn image(bytes: impl Into<Cow<'static, [u8]>>, mode: Mode, start: Gpa) -> Result<Image, ImageError> {
    let bytes = bytes.into();
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    let segment = Segment { start, file: 0..bytes.len(), size: bytes.len() as u64 };
    Ok(Image { bytes: Arc::new(bytes), segments: vec![segment], entry: start, mode })
}
