//! Texts of submissions, safe to print: bounded, in one line, and without characters that control a terminal or a reader.

use std::borrow::Cow;

/// The most characters of a name.
pub const NAME: usize = 256;
/// The most characters of a sentence.
pub const TEXT: usize = 4096;

/// A text of at most `limit` characters. Control characters, line ends and invisible characters become escapes, such as `\n` and
/// `\u{1b}`. Doing it twice changes nothing.
pub fn clean(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return text.into();
    }
    let mut cleaned = String::new();
    let mut left = limit;
    for c in text.chars() {
        let is_plain = ['\\', '"', '\''].contains(&c);
        let escaped = c.escape_debug();
        let length = if is_plain { 1 } else { escaped.len() };
        let Some(rest) = left.checked_sub(length) else {
            // Three characters less, for the dots.
            while left < 3 && cleaned.pop().is_some() {
                left = left.saturating_add(1);
            }
            cleaned.push_str("...");
            break;
        };
        left = rest;
        if is_plain { cleaned.push(c) } else { cleaned.extend(escaped) }
    }
    cleaned.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_text_has_one_line_of_visible_characters() {
        let of = |text| clean(text, NAME).into_owned();
        assert_eq!(of("a \"b\" 'c' \\ é"), "a \"b\" 'c' \\ é");
        assert_eq!(
            of("\n\r\t\0\x1b[2J\x7f\u{9b}\u{202e}\u{2028}\u{ffff}"),
            "\\n\\r\\t\\0\\u{1b}[2J\\u{7f}\\u{9b}\\u{202e}\\u{2028}\\u{ffff}"
        );
    }

    #[test]
    fn a_clean_text_is_bounded_and_stays_as_it_is() {
        for text in ["x".repeat(300), "é".repeat(300), "\n".repeat(300), "\u{1b}".repeat(60)] {
            let once = clean(&text, NAME).into_owned();
            assert!(once.ends_with("...") && (NAME - 8..=NAME).contains(&once.chars().count()), "{once}");
            assert_eq!(clean(&once, NAME), once);
        }
        assert_eq!(clean(&"x".repeat(NAME), NAME), "x".repeat(NAME));
        assert_eq!(clean(&"é".repeat(NAME), NAME), "é".repeat(NAME));
    }
}
