//! The completions for bash, zsh and fish.

use clap_complete::{Shell, generate};
use std::io;

/// The shells, and the names under which their package managers look for the completions of `vmm`.
const SHELLS: [(Shell, &str); 3] =
    [(Shell::Bash, "vmm.bash"), (Shell::Zsh, "_vmm"), (Shell::Fish, "vmm.fish")];

/// Returns the name and the text of each script.
pub fn scripts() -> io::Result<Vec<(&'static str, Vec<u8>)>> {
    Ok(SHELLS
        .map(|(shell, name)| {
            let mut text = Vec::new();
            generate(shell, &mut commands::command(), "vmm", &mut text);
            (name, text)
        })
        .into())
}
