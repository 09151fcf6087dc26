//! The result of a step for GitHub Classroom's autograding reporter: JSON in base64.

use crate::clean::{NAME, TEXT};
use crate::format::json::{joined, quoted};
use crate::{Grade, Options, Points, view};

/// The result, in one line. Points are whole there: the sum of those of the first tasks is rounded down, and so the sum of all.
pub fn result(grade: &Grade, options: Options) -> String {
    let options = options.for_student();
    let mut before = Points::ZERO;
    let mut tests: Vec<String> = Vec::new();
    for (name, task) in view::tasks(grade) {
        let after = before.saturating_add(task.earned);
        let score = after.rounded_down().saturating_sub(before.rounded_down());
        before = after;
        let lines = task.checks.iter().filter(|check| !check.passed).map(|check| options.sentence(check));
        let status = if task.earned == task.points { "pass" } else { "fail" };
        tests.push(test(&name, status, score, &joined(lines, "; ")));
    }
    if let Some(error) = options.error(grade) {
        tests.push(test("grading", "error", 0, &error));
    }
    let status = match &grade.error {
        Some(_) => "error",
        None if grade.is_full() => "pass",
        None => "fail",
    };
    let json = format!(
        "{{\"version\":1,\"status\":\"{status}\",\"max_score\":{},\"tests\":[{}]}}",
        grade.points().rounded_down(),
        joined(tests, ",")
    );
    base64(json.as_bytes()) + "\n"
}

fn test(name: &str, status: &str, score: u64, message: &str) -> String {
    format!(
        "{{\"name\":{},\"status\":\"{status}\",\"score\":{score},\"message\":{},\"test_code\":\"\",\"filename\":\"\",\"line_no\":0}}",
        quoted(name, NAME),
        quoted(message, TEXT),
    )
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        for (at, shift) in [18u32, 12, 6, 0].into_iter().enumerate() {
            let digit = DIGITS.get(((bits >> shift) & 63) as usize).copied().unwrap_or(b'=');
            text.push(if at > chunk.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn the_test_vectors_of_the_rfc() {
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }
}
