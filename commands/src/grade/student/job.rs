//! The runs of a grade: what each task runs, and what it hides in its guest.

use crate::grade::courses;
use crate::grade::student::kev;
use crate::grade::student_args::VmmArgs;
use ::exercise::file::Task as TaskSpec;
use guest::hidden::{Params, Template, Width};
use simvirtio::abi;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use vmm::Error;
use vmm::device::Layout;
use vmm::host::printable_text;
use vmm::x86::Mode;

/// A run of a student's VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    Real,
    Long,
    Simvirtio,
    Polling,
    /// A check of KeV, by the name of its guest.
    Kev(&'static str),
}

impl Job {
    /// The tasks of SO2.
    pub(super) const SO2: [Self; 4] = [Self::Real, Self::Long, Self::Simvirtio, Self::Polling];

    /// The word on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Real => "real",
            Self::Long => "long",
            Self::Simvirtio => "simvirtio",
            Self::Polling => "polling",
            Self::Kev(name) => name,
        }
    }

    /// The task in the file of its course.
    ///
    /// # Errors
    /// The course of this program is damaged.
    pub(super) fn task(self) -> Result<&'static TaskSpec, Error> {
        let helper = match self {
            Self::Real => "so2-real",
            Self::Long => "so2-wide",
            Self::Simvirtio => "so2-simvirtio",
            Self::Polling => "so2-polling",
            Self::Kev(name) => {
                let task = courses::kev()?.tasks.iter().find(|task| task.name == name);
                return task.ok_or_else(|| Error::Config(format!("there is no check {name}")));
            }
        };
        courses::task(courses::so2()?, helper)
    }

    /// The text of the assignment's own guest.
    pub(super) fn own_text(self) -> &'static str {
        // Polling sends the message of SIMVIRTIO.
        let (job, step) = if self.is_driver() { (Self::Simvirtio, "message") } else { (self, "text") };
        job.task().map_or("", |task| courses::text(task, step))
    }

    /// True if the guest is a SIMVIRTIO driver.
    pub(super) fn is_driver(self) -> bool {
        matches!(self, Self::Simvirtio | Self::Polling)
    }

    /// The hidden guest for code of this width. A driver needs protected or long mode.
    pub(super) fn template(self, width: Width) -> Option<Template> {
        match (self, width) {
            (Self::Kev(_), _) | (Self::Simvirtio | Self::Polling, Width::Bits16) => None,
            (Self::Simvirtio | Self::Polling, width) => Some(Template::Driver(width)),
            (Self::Real | Self::Long, width) => Some(Template::Text(width)),
        }
    }
}

/// The width of the code of a mode.
pub(super) fn width(mode: Mode) -> Width {
    match mode {
        Mode::Real => Width::Bits16,
        Mode::Protected => Width::Bits32,
        Mode::Long | Mode::User => Width::Bits64,
    }
}

/// The letters of a hidden text, and those of a hidden message beyond the length of the queue.
pub(super) const LETTERS: u32 = 24;
pub(super) const MORE_THAN_A_QUEUE: u32 = 37;

/// The hidden guest of a run, and the expected results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) job: Job,
    /// True if a hidden guest replaces the VMM's own.
    pub(super) hidden: bool,
    /// The layout of the window; `None` to find out.
    pub(super) layout: Option<Layout>,
    /// The seed of the text.
    pub(super) seed: u32,
    /// The word that the guest leaves.
    pub(super) word: u32,
}

impl Plan {
    /// The plan of a task for the seed of the grade.
    pub(super) fn new(job: Job, seed: u64, arguments: &VmmArgs, layout: Option<Layout>) -> Self {
        let name = job.name().bytes().fold(mix(seed), |mixed, byte| mix(mixed ^ u64::from(byte)));
        let [seed, word] = [0u64, 1].map(|part| {
            let mixed = mix(name.wrapping_add(part));
            // The word is no small number, and no placeholder of a template.
            u32::try_from(mixed >> 33).unwrap_or_default() | 1 << 31
        });
        Self { job, hidden: !arguments.own_guests, layout, seed, word }
    }

    /// The values for a template at this linear address.
    pub(super) fn params(&self, address: u32) -> Params {
        let layout = match self.layout {
            None => 0,
            Some(Layout::Table) => 1,
            Some(Layout::Struct) => 2,
        };
        let letters = if self.job.is_driver() { MORE_THAN_A_QUEUE } else { LETTERS };
        Params { seed: self.seed, letters, word: self.word, address, layout }
    }

    /// The pieces of the hidden guest for an entry in this mode at this linear address: their addresses and bytes.
    ///
    /// # Errors
    /// There is no hidden guest for this mode.
    pub(super) fn pieces(&self, mode: Mode, address: u32) -> Result<Vec<(u64, Vec<u8>)>, String> {
        if let Job::Kev(name) = self.job {
            return kev::pieces(name, self.seed, mode, address);
        }
        let Some(template) = self.job.template(width(mode)) else {
            return Err("it needs protected or long mode".into());
        };
        Ok(vec![(address.into(), template.image(self.params(address)))])
    }

    /// The text that must be on stdout. A message is longer than the queue.
    pub(super) fn text(&self, queue: u32) -> String {
        let letters = match self.job.is_driver() {
            true => queue.min(abi::MAX_QUEUE_LEN.into()).saturating_add(MORE_THAN_A_QUEUE),
            false => LETTERS,
        };
        match self.hidden {
            true => guest::hidden::text(self.seed, letters as usize),
            false => self.job.own_text().into(),
        }
    }
}

/// Spreads the bits of a number over another one (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// The program and the words of a command.
pub(super) type Command = (OsString, Vec<OsString>);

/// The command of one of these tasks; `None` if it was not handed in.
///
/// # Errors
/// A `--run` names no task, or has no command, or two of them name the same task.
pub(super) fn command(job: Job, jobs: &[Job], arguments: &VmmArgs) -> Result<Option<Command>, Error> {
    let mut found = None;
    for text in &arguments.run {
        let (name, command) = split_run(text, jobs)?;
        if name == job && found.replace(command).is_some() {
            return Err(Error::Config(format!("--run has two commands for {}: give one", job.name())));
        }
    }
    let polling = arguments.vmm_polling.clone().filter(|_| job == Job::Polling);
    let built = || built(arguments).map(PathBuf::into_os_string);
    let program = polling.or_else(|| arguments.program().cloned()).or_else(built);
    let args = job.task()?.args(&Vec::new(), None).map_err(Error::Config)?;
    Ok(found.or_else(|| program.map(|program| (program, args.into_iter().map(Into::into).collect()))))
}

/// The program of the assignment's Makefile, if `--make` is there, and nothing names another one.
pub(super) fn built(arguments: &VmmArgs) -> Option<PathBuf> {
    let folder = arguments.make.as_ref()?;
    // Commands for some tasks say which tasks were handed in.
    let is_default = arguments.run.is_empty() && arguments.program().is_none();
    is_default.then(|| Path::new(folder).join("kvm-hello-world"))
}

/// Splits `TASK=COMMAND`.
fn split_run(text: &OsStr, jobs: &[Job]) -> Result<(Job, Command), Error> {
    let wrong = || {
        let names: Vec<_> = jobs.iter().map(|job| job.name()).collect();
        Error::Config(format!(
            "--run must be TASK=COMMAND, not {}; TASK is one of {}",
            printable_text(&text.to_string_lossy()),
            names.join(", ")
        ))
    };
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
    let (name, rest) =
        (bytes.get(..at).unwrap_or_default(), bytes.get(at.saturating_add(1)..).unwrap_or_default());
    let job = jobs.iter().copied().find(|job| job.name().as_bytes() == name).ok_or_else(wrong)?;
    let mut words = split_words(rest).ok_or_else(|| {
        Error::Config(format!("--run {}=: a quote is not closed: add the other one", job.name()))
    })?;
    if words.is_empty() {
        return Err(wrong());
    }
    let program = words.remove(0);
    Ok((job, (program, words)))
}

/// Splits a command at blanks outside quotes. `None` if a quote is open.
fn split_words(text: &[u8]) -> Option<Vec<OsString>> {
    let (mut words, mut word, mut quote): (Vec<OsString>, Option<Vec<u8>>, Option<u8>) =
        (Vec::new(), None, None);
    for &byte in text {
        match (quote, byte) {
            (Some(open), _) if open == byte => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(byte),
            (None, b'\'' | b'"') => {
                quote = Some(byte);
                word.get_or_insert_default();
            }
            (None, b' ' | b'\t' | b'\n') => words.extend(word.take().map(OsString::from_vec)),
            (None, _) => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word.map(OsString::from_vec));
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_split_at_blanks_outside_quotes() {
        let words = |text: &str| {
            split_words(text.as_bytes())
                .map(|words| words.iter().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(words("./vmm16 -x"), Some(vec!["./vmm16".into(), "-x".into()]));
        assert_eq!(words(" a  'b c'\"d\" '' "), Some(vec!["a".into(), "b cd".into(), String::new()]));
        assert_eq!((words("a 'b"), words("")), (None, Some(vec![])));
    }

    #[test]
    fn each_task_of_each_seed_has_a_text_of_its_own() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            vmm: VmmArgs,
        }
        let arguments = <Line as clap::Parser>::try_parse_from(["grade"]).unwrap().vmm;
        let mut texts: Vec<_> = (0..4)
            .flat_map(|seed| Job::SO2.map(|job| Plan::new(job, seed, &arguments, None)))
            .map(|plan| (plan.text(0), plan.word))
            .collect();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 16);
    }
}
