//! The skeleton of a solution: the file that a reader gets.
//!
//! A line `//{` begins a part that a reader writes, and a line `//}` ends it. Lines between them that begin with `//= ` are in the
//! skeleton, without this mark. All other lines between them are the solution.

/// The languages whose files can have parts of a solution, by their extensions.
const WITH_PARTS: [&str; 5] = ["c", "h", "rs", "S", "asm"];

/// Removes the solution from a file, if its kind can have one.
///
/// # Errors
/// A part begins in another part, or its end is missing. The value is the number of the line.
pub fn of_file(name: &str, text: &str) -> Result<String, usize> {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    match WITH_PARTS.contains(&extension) {
        true => of(text),
        false => Ok(text.into()),
    }
}

fn of(text: &str) -> Result<String, usize> {
    let mut skeleton = String::new();
    // The line at which the current part begins.
    let mut part = None;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let trimmed = line.trim();
        match (trimmed, part) {
            ("//{", None) => part = Some(number),
            ("//}", Some(_)) => part = None,
            ("//{" | "//}", _) => return Err(number),
            (_, None) => skeleton += line,
            (_, Some(_)) => {
                if let Some(given) = trimmed.strip_prefix("//=") {
                    let given = given.strip_prefix(' ').unwrap_or(given);
                    let indent = line.len().saturating_sub(line.trim_start().len());
                    if !given.is_empty() {
                        skeleton += line.get(..indent).unwrap_or_default();
                    }
                    skeleton += given;
                    skeleton.push('\n');
                }
            }
        }
    }
    match part {
        None => Ok(skeleton),
        Some(number) => Err(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skeleton_has_the_tasks_instead_of_the_solution() {
        let text = "int x;\n    //{\n    //= /* TODO: set x. */\n    //=\n    x = 1;\n    //}\nreturn x;\n";
        assert_eq!(of_file("a.c", text).unwrap(), "int x;\n    /* TODO: set x. */\n\nreturn x;\n");
        assert_eq!(of_file("Makefile", text).unwrap(), text);
        for (wrong, line) in [("a\n//{\n", 2), ("//}\n", 1), ("//{\n//{\n//}\n", 2)] {
            assert_eq!(of_file("a.rs", wrong), Err(line), "{wrong}");
        }
    }
}
