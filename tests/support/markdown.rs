//! Markdown, as far as the tests of documents read it: blocks of code, links and headings.
#![allow(dead_code, reason = "each test uses a part")]

/// A block of code between fences.
pub struct Block {
    /// The language: the first word after the fence.
    pub language: String,
    /// The number of the line with the fence.
    pub line: usize,
    pub text: String,
}

/// The blocks of a text, and the text without them.
fn split(text: &str) -> (Vec<Block>, String) {
    let (mut blocks, mut rest, mut open) = (Vec::new(), String::new(), None::<Block>);
    for (number, line) in (1..).zip(text.lines()) {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text += &format!("{line}\n"),
            (None, Some(info)) => {
                let language = info.split([',', ' ', '{']).next().unwrap_or_default().to_owned();
                open = Some(Block { language, line: number, text: String::new() });
            }
            (None, None) => rest += &format!("{line}\n"),
        }
    }
    assert!(open.is_none(), "a block of code has no end");
    (blocks, rest)
}

/// The blocks of a language.
pub fn blocks(text: &str, language: &str) -> Vec<Block> {
    split(text).0.into_iter().filter(|block| block.language == language).collect()
}

/// The links that lead to files: path and fragment. Links of other kinds, such as `https:`, and those in code are left out.
pub fn links(text: &str) -> Vec<(String, String)> {
    let prose = split(text).1;
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local = targets.filter(|target| !target.contains([':', ' ']));
    let parts = local.map(|target| target.split_once('#').unwrap_or((target, "")));
    parts.map(|(path, fragment)| (path.to_owned(), fragment.to_owned())).collect()
}

/// The fragments of the headings, as GitHub and mdBook make them.
pub fn fragments(text: &str) -> Vec<String> {
    let prose = split(text).1;
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| fragment(line.trim_start_matches('#').trim())).collect()
}

fn fragment(heading: &str) -> String {
    let known = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading.to_lowercase().chars().filter(known).map(|c| if c == ' ' { '-' } else { c }).collect()
}
