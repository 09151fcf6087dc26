//! The text behind the options in a `--help`, divided into the sections of a manual page.

/// A part of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// A paragraph, whose lines can be joined.
    Prose(String),
    /// Lines that keep their breaks and blanks.
    Verbatim(Vec<String>),
}

/// The sections of a manual page that a help text has.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sections {
    /// The meaning of each exit status.
    pub exit_status: Vec<Block>,
    /// Everything else.
    pub notes: Vec<Block>,
    /// Command lines with their meaning.
    pub examples: Vec<Block>,
}

impl Sections {
    /// Divides `text`: a paragraph that starts with `Examples:` or `Exit status:` is a section of its own.
    pub fn of(text: &str) -> Self {
        let mut sections = Self::default();
        for paragraph in text.split("\n\n").map(|paragraph| paragraph.trim_matches('\n')) {
            let (section, rest) = if let Some(rest) = paragraph.strip_prefix("Examples:") {
                (&mut sections.examples, rest)
            } else if let Some(rest) = paragraph.strip_prefix("Exit status:") {
                (&mut sections.exit_status, rest)
            } else {
                (&mut sections.notes, paragraph)
            };
            section.extend(blocks(rest));
        }
        sections
    }
}

/// Returns the blocks of a paragraph: indented lines are verbatim, and the lines between them are prose.
fn blocks(paragraph: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    for line in paragraph.lines().filter(|line| !line.trim().is_empty()) {
        match (line.strip_prefix("  "), found.last_mut()) {
            (Some(line), Some(Block::Verbatim(lines))) => lines.push(line.into()),
            (Some(line), _) => found.push(Block::Verbatim(vec![line.into()])),
            (None, Some(Block::Prose(text))) => {
                text.push(' ');
                text.push_str(line.trim());
            }
            (None, _) => found.push(Block::Prose(capitalised(line.trim()))),
        }
    }
    found
}

/// Returns the text with a capital as its first letter: the words behind a heading begin a paragraph.
fn capitalised(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().into_iter().flat_map(char::to_uppercase).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prose(text: &str) -> Block {
        Block::Prose(text.into())
    }

    fn verbatim(lines: &[&str]) -> Block {
        Block::Verbatim(lines.iter().map(|line| (*line).into()).collect())
    }

    #[test]
    fn a_help_text_becomes_sections() {
        let text = "Examples:\n  vmm a    one\n           more\n\nA note of\ntwo lines. Keys:\n  Ctrl-A  a key\n\n\
                    Exit status: 0 for all,\nor 1.";
        let expected = Sections {
            exit_status: vec![prose("0 for all, or 1.")],
            notes: vec![prose("A note of two lines. Keys:"), verbatim(&["Ctrl-A  a key"])],
            examples: vec![verbatim(&["vmm a    one", "         more"])],
        };
        assert_eq!(Sections::of(text), expected);
        assert_eq!(
            Sections::of("Exit status:\n  0  good\n  1  bad").exit_status,
            [verbatim(&["0  good", "1  bad"])]
        );
        assert_eq!(
            Sections::of("Exit status: that of\nthe program").exit_status,
            [prose("That of the program")]
        );
        assert_eq!(Sections::of(""), Sections::default());
    }
}
