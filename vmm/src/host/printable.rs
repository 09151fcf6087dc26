//! Text from files, guests and command lines, made safe for a terminal.

use std::path::Path;

/// A file's name without what would confuse a terminal, hide, or forge a line of a report.
pub fn printable(path: &Path) -> String {
    printable_text(&path.display().to_string())
}

/// A text without what would confuse a terminal, hide, or forge a line of a report.
pub fn printable_text(text: &str) -> String {
    // A report of a trace has millions of texts, which are mostly like that.
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
