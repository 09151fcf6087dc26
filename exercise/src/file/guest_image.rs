//! The image of a guest that a VMM of a submission gets: `image = "hidden.bin"`.

use super::fields::Fields;
use super::task::read;
use crate::read::Files;
use crate::template::{Value, Values, fill};
use crate::toml::Problem;

/// The name of the expression for the path of the image.
pub const NAME: &str = "image";
/// The longest image.
const MAX_IMAGE: usize = 16 << 20;

/// An image: the bytes of a file, a text after them, and a zero byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestImage {
    bytes: Vec<u8>,
    /// A text with expressions. `None` adds nothing, not even the zero byte.
    text: Option<String>,
}

impl GuestImage {
    /// Reads the keys `image` and `image_text`.
    pub(super) fn read(fields: &Fields, files: Files, problems: &mut Vec<Problem>) -> Option<Self> {
        let text = fields.text("image_text", problems);
        let Some((name, at)) = fields.text("image", problems) else {
            problems.extend(text.map(|(_, at)| Problem::new(at, "image_text needs an image")));
            return None;
        };
        let bytes = read(name, at, "image", MAX_IMAGE, files, problems)?;
        Some(Self { bytes, text: text.map(|(text, _)| text.into()) })
    }

    /// The image, with these values in its text.
    ///
    /// # Errors
    /// An expression is wrong.
    pub fn filled(&self, values: &Values) -> Result<Vec<u8>, String> {
        let mut bytes = self.bytes.clone();
        if let Some(text) = &self.text {
            bytes.extend(fill(text, values)?.into_bytes());
            bytes.push(0);
        }
        Ok(bytes)
    }
}

/// The values of a task, and the path of its image.
pub(super) fn with_path(values: &Values, path: &str) -> Values {
    let path = (NAME.to_owned(), Value::Text(path.to_owned()));
    values.iter().cloned().chain([path]).collect()
}
