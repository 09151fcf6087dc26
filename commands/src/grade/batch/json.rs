//! Grades as lines of JSON.

use grades::Grade;
use vmm::Error;

/// A grade as JSON, in one line without its end.
///
/// # Errors
/// It cannot be written as JSON.
pub fn line(grade: &Grade) -> Result<String, Error> {
    serde_json::to_string(grade)
        .map_err(|error| Error::Host { operation: "writing a grade", source: error.into() })
}

/// The grade in a line. Fields that a grade does not have are left out.
pub fn parse(line: &[u8]) -> Option<Grade> {
    serde_json::from_slice(line).ok()
}
