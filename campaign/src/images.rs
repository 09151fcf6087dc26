//! Random images: random bytes, and built-in guests with damaged bytes, at any address, in every mode.

use crate::Setup;
use crate::judge::{self, Verdict};
use crate::program::{Run, new_files};
use crate::schedule::Part;
use fastrand::Rng;
use std::time::Duration;

/// The part.
pub struct Images;

/// The image and the address at which it is linked.
fn image(choices: &mut Rng) -> (Vec<u8>, u64) {
    if choices.u8(..4) == 0 {
        let bytes = (0..choices.usize(1..4096)).map(|_| choices.u8(..)).collect();
        return (bytes, 0x1000);
    }
    let guest = &guest::GUESTS[choices.usize(..guest::GUESTS.len())];
    let mut bytes = guest.image.to_vec();
    for _ in 0..choices.usize(..40) {
        let place = choices.usize(..bytes.len());
        match choices.u8(..4) {
            0 => bytes[place] = choices.u8(..),
            1 => bytes[place] ^= 1 << choices.u8(..8),
            2 => {
                let len = choices.usize(..64).min(bytes.len() - place);
                choices.fill(&mut bytes[place..place + len]);
            }
            _ => {
                let from = choices.usize(..bytes.len());
                let len = 16.min(bytes.len() - place.max(from));
                bytes.copy_within(from..from + len, place);
            }
        }
    }
    if choices.u8(..8) == 0 {
        bytes.truncate(choices.usize(1..=bytes.len()));
    }
    (bytes, guest.load_at)
}

/// The arguments of a run of the file `image`.
fn arguments(choices: &mut Rng, linked_at: u64) -> Vec<String> {
    let address = match choices.u8(..4) {
        0 => *choices
            .choice(&[0, 0x400, 0x7c00, 0xfff0, 0x1_0000, 0x1_1000, 0xf_f000, 0x10_0000, 0x20_0000])
            .unwrap_or(&0),
        _ => linked_at,
    };
    let mode = choices.choice(["real", "protected", "long", "user64"]).unwrap_or("real");
    let mut arguments = vec![format!("image@{address:#x}:{mode}")];
    let mut add = |options: &[&str]| arguments.extend(options.iter().map(|option| (*option).to_string()));
    add(&["--timeout", "0.5", "--output-limit", "64K"]);
    if let Some(transport) =
        choices.choice(["exit", "coalesced", "doorbell", "polling", ""]).filter(|name| !name.is_empty())
    {
        add(&["--transport", transport]);
    }
    for (options, chance) in [
        (&["--cpus", "2"][..], 5),
        (&["--cpus", "3"], 8),
        (&["--kev"], 4),
        (&["--verify"], 4),
        (&["--cpuid", "none"], 4),
        (&["--queue-len", "2"], 8),
        (&["--msr", "0x1b=log"], 16),
        (&["--profile", "json=run.json"], 8),
        (&["--trace", "run.trace"], 8),
    ] {
        if choices.u8(..chance) == 0 {
            add(options);
        }
    }
    arguments
}

impl Part for Images {
    fn name(&self) -> &'static str {
        "images"
    }

    fn run(&self, setup: &Setup, number: u64) -> Result<Verdict, String> {
        let mut choices = setup.choices(self.name(), number);
        let (bytes, linked_at) = image(&mut choices);
        let run = Run { arguments: arguments(&mut choices, linked_at), variables: Vec::new() };
        let folder = setup.scratch()?;
        let file = folder.path().join("image");
        std::fs::write(&file, &bytes).map_err(|error| format!("cannot write an image: {error}"))?;
        let ran = run.run(&setup.program, folder.path(), Duration::from_secs(12))?;
        let wrong = judge::check(&ran).or_else(|| {
            let left = new_files(folder.path(), &["image", "run.json", "run.trace"]);
            (!left.is_empty()).then(|| format!("leaves files behind: {left:?}"))
        });
        if wrong.is_some() {
            let kept = setup.findings.join(format!("images-{number}"));
            let _ = std::fs::create_dir_all(&setup.findings).and_then(|()| std::fs::write(kept, &bytes));
        }
        Ok(Verdict { status: ran.status, wrong, command: run.shown(&setup.program) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_runs_again() {
        let choose = |seed| {
            let mut choices = Rng::with_seed(seed);
            let (bytes, linked_at) = image(&mut choices);
            (bytes, arguments(&mut choices, linked_at))
        };
        for seed in 0..200 {
            assert_eq!(choose(seed), choose(seed));
        }
        assert_ne!(choose(1), choose(2));
    }
}
