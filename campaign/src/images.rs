//! Random images: random bytes, and built-in guests with damaged bytes, at any address, in every mode.

use crate::Setup;
use crate::judge::{self, Verdict};
use crate::program::{Ran, Run, new_files};
use crate::schedule::Part;
use fastrand::Rng;
use std::time::Duration;

/// The part.
pub struct Images;

/// The image and the address at which it is linked.
pub fn image(choices: &mut Rng) -> (Vec<u8>, u64) {
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

/// The modes as the command line names them.
const MODES: [&str; 4] = ["real", "protected", "long", "user64"];
/// The first address above the memory of a guest with a SIMVIRTIO device.
const SO2_RAM: u64 = 1 << 20;
/// The first address at which no real-mode guest may begin.
const REAL_MODE: u64 = 1 << 16;
/// The address and the length of the result that `--verify` reads.
const RESULT: (u64, u64) = (0x400, 8);

/// The arguments of a run of the file `image`, which has `len` bytes and is linked at `linked_at`. If `fits` is set, the
/// program accepts them.
fn arguments(choices: &mut Rng, len: u64, linked_at: u64, fits: bool) -> Vec<String> {
    let address = match choices.u8(..4) {
        0 => *choices
            .choice(&[0, 0x400, 0x7c00, 0xfff0, 0x1_0000, 0x1_1000, 0xf_f000, 0x10_0000, 0x20_0000])
            .unwrap_or(&0),
        _ => linked_at,
    };
    let end = address + len;
    let first_mode = usize::from(fits && address >= REAL_MODE);
    let mode = MODES[choices.usize(first_mode..MODES.len())];
    let mut arguments = vec![format!("image@{address:#x}:{mode}")];
    let mut add = |options: &[&str]| arguments.extend(options.iter().map(|option| (*option).to_string()));
    add(&["--timeout", "0.5", "--output-limit", "64K"]);
    let cpus = *choices.choice(&["", "", "", "2", "3"]).unwrap_or(&"");
    let has_simvirtio = !fits || (end <= SO2_RAM && address < SO2_RAM);
    let has_one_cpu = !fits || cpus.is_empty();
    let may_verify = !fits || address >= RESULT.0 + RESULT.1 || end <= RESULT.0;
    let transport = *choices.choice(&["exit", "coalesced", "doorbell", "polling", ""]).unwrap_or(&"");
    for (options, is_chosen, is_allowed) in [
        (&["--cpus", cpus][..], !cpus.is_empty(), true),
        (
            &["--transport", transport],
            !transport.is_empty(),
            has_simvirtio && (has_one_cpu || transport != "coalesced"),
        ),
        (&["--queue-len", "2"], choices.u8(..8) == 0, has_simvirtio),
        (&["--cpuid", "none"], choices.u8(..4) == 0, has_one_cpu),
        (&["--verify"], choices.u8(..4) == 0, may_verify),
        (&["--kev"], choices.u8(..4) == 0, true),
        (&["--msr", "0x1b=log"], choices.u8(..16) == 0, true),
        (&["--profile", "json=run.json"], choices.u8(..8) == 0, true),
        (&["--trace", "run.trace"], choices.u8(..8) == 0, true),
    ] {
        if is_chosen && is_allowed {
            add(options);
        }
    }
    arguments
}

/// Chooses all of a run: the image, its arguments, and if the arguments fit.
fn choose(choices: &mut Rng) -> (Vec<u8>, Vec<String>, bool) {
    let (bytes, linked_at) = image(choices);
    let fits = choices.u8(..16) != 0;
    let arguments = arguments(choices, bytes.len() as u64, linked_at, fits);
    (bytes, arguments, fits)
}

/// Checks that the program does not refuse arguments that fit. Returns what is wrong. Damaged bytes may look like those of
/// a text file or of another known format, which the program names.
fn refused(ran: &Ran) -> Option<String> {
    let has_known_format = ran.status == judge::BAD_IMAGE && ran.stderr.contains("vmm: error: image is ");
    let is_refused = [judge::USAGE, judge::BAD_IMAGE].contains(&ran.status) && !has_known_format;
    is_refused.then(|| format!("refuses options that fit: {}", ran.stderr.trim()))
}

impl Part for Images {
    fn name(&self) -> &'static str {
        "images"
    }

    fn run(&self, setup: &Setup, number: u64) -> Result<Verdict, String> {
        let mut choices = setup.choices(self.name(), number);
        let (bytes, arguments, fits) = choose(&mut choices);
        let run = Run { arguments, variables: Vec::new() };
        let folder = setup.scratch()?;
        let file = folder.path().join("image");
        std::fs::write(&file, &bytes).map_err(|error| format!("cannot write an image: {error}"))?;
        let ran = run.run(&setup.program, folder.path(), Duration::from_secs(12))?;
        let wrong = judge::check(&ran).or_else(|| refused(&ran).filter(|_| fits)).or_else(|| {
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
        let choose = |seed| choose(&mut Rng::with_seed(seed));
        for seed in 0..200 {
            assert_eq!(choose(seed), choose(seed));
        }
        assert_ne!(choose(1), choose(2));
    }

    #[test]
    fn a_refusal_of_options_that_fit_is_found() {
        let refusal =
            |status, stderr: &str| refused(&Ran { status, stdout: Vec::new(), stderr: stderr.into() });
        assert_eq!(refusal(0, ""), None);
        assert_eq!(refusal(116, "vmm: error: image is a text file: give a flat binary\n"), None);
        assert!(refusal(116, "vmm: error: a real-mode guest cannot begin at 0x10000\n").is_some());
        assert!(refusal(110, "vmm: error: --cpus must be 1 to 32\n").is_some());
    }

    #[test]
    fn options_that_fit_do_not_contradict_each_other() {
        let mut transports = 0;
        for seed in 0..2000 {
            let (bytes, arguments, fits) = choose(&mut Rng::with_seed(seed));
            let has = |text: &str| arguments.iter().any(|argument| argument == text);
            let address = arguments[0].split(['@', ':']).nth(1).map(|text| text.trim_start_matches("0x"));
            let address = u64::from_str_radix(address.unwrap_or_default(), 16)
                .unwrap_or_else(|error| panic!("{error}"));
            let contradicts = (has("--cpus") && (has("coalesced") || has("none")))
                || ((has("--transport") || has("--queue-len")) && address + bytes.len() as u64 > 1 << 20);
            assert!(!(fits && contradicts), "{arguments:?}");
            transports += u32::from(has("--transport"));
        }
        assert!(transports > 1000, "{transports}");
    }
}
