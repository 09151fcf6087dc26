//! Text from files, guests and command lines, made safe to print on a terminal.

use std::path::Path;

/// The path as text that is safe to print; see [`printable_text`].
pub fn printable(path: &Path) -> String {
    printable_text(&path.display().to_string())
}

/// Escapes all characters that could control a terminal, be invisible, or forge a line of a report: control characters,
/// line ends, and invisible or direction-changing Unicode characters. Visible characters, blanks, quotes and
/// backslashes stay as they are.
///
/// ```
/// assert_eq!(vmm::host::printable_text("a\nb\x1b[31m \"é\""), r#"a\nb\u{1b}[31m "é""#);
/// ```
pub fn printable_text(text: &str) -> String {
    // The fast path: a report of a trace prints millions of texts, and most of them are plain ASCII.
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return text.into();
    }
    let plain = |c: char| c == ' ' || ['\\', '"', '\''].contains(&c);
    text.chars().map(|c| if plain(c) { c.to_string() } else { c.escape_debug().to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_printed_without_control_characters() {
        assert_eq!(printable(Path::new("a\nb\x1b[31mc é")), "a\\nb\\u{1b}[31mc é");
        assert_eq!(
            printable(Path::new("\u{202e}gnp\u{200b}\u{2028}'\"\\")),
            "\\u{202e}gnp\\u{200b}\\u{2028}'\"\\"
        );
    }
}
