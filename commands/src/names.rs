//! The symbols of a guest, and the names of the addresses that its exits come from.

use crate::measure::{ByArg, ResultArgs};
use crate::outcome::Ran;
use crate::status::Failure;
use crate::{places, stacks};
use debug::{Attribution, Fit, Guest, SymbolError, Symbols, attribute};
use report::profile::SavedProcessor;
use report::view::By;
use report::{MOST_NAME_TEXT, MOST_NAMES, SavedName};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use vmm::exit::Reason;
use vmm::machine::Processor;
use vmm::memory::{Gpa, GuestMemory};
use vmm::profile::{Profile, Trace};
use vmm::{Error, Report};

/// The most bytes of a name that are kept in a file.
const MAX_NAME: usize = 300;

/// The path and the offset of an argument `FILE[@OFFSET]`. A file of the whole name has precedence.
pub fn symbol_file(argument: &Path) -> (PathBuf, Option<u64>) {
    let split = argument.to_str().and_then(|text| text.rsplit_once('@'));
    match split.map(|(file, offset)| (file, crate::args::parse_number(offset))) {
        Some((file, Ok(offset))) if !argument.exists() => (file.into(), Some(offset)),
        _ => (argument.into(), None),
    }
}

/// Reads the symbols of an argument `FILE[@OFFSET]`.
///
/// # Errors
/// The file cannot be read, or has no symbols.
pub fn open(argument: &Path) -> Result<Symbols, SymbolError> {
    let (file, offset) = symbol_file(argument);
    let symbols = Symbols::open(&file)?;
    Ok(match offset {
        Some(offset) => symbols.with_offset(offset),
        None => symbols,
    })
}

/// The source of the names.
enum Source {
    /// The file of `--symbols`.
    Given(Box<Symbols>),
    /// The guest's own file, which is read only when a name is needed. `None` for a built-in guest.
    Own(Option<PathBuf>),
}

/// The names of a guest's addresses.
pub struct Names {
    source: Source,
    /// The guest is a Linux kernel, which may have moved itself.
    may_move: bool,
}

impl Names {
    /// The names of a guest in `file`. Reads the file of `--symbols`.
    ///
    /// # Errors
    /// That file cannot be read, or has no symbols.
    pub fn of(arguments: &ResultArgs, file: Option<PathBuf>) -> Result<Self, Failure> {
        let source = match &arguments.symbols {
            Some(argument) => Source::Given(Box::new(open(argument)?)),
            None => Source::Own(file),
        };
        Ok(Self { source, may_move: false })
    }

    /// The names of a Linux kernel with this command line. It moves itself, unless the command line forbids it.
    pub fn of_linux(self, command_line: Option<&str>) -> Self {
        let is_fixed =
            command_line.unwrap_or_default().split_ascii_whitespace().any(|word| word == "nokaslr");
        Self { may_move: !is_fixed, ..self }
    }

    /// The run that has ended, with the names of the place where the guest died and of the addresses that were recorded.
    pub fn ran(self, name: String, report: Report, memory: &GuestMemory) -> Ran {
        let frame = report.explanation.as_ref().and_then(|explanation| explanation.frame());
        let exits = exits(report.profile.as_ref(), report.trace.as_ref());
        let symbols = match frame.is_some() || !exits.is_empty() || report.samples.is_some() {
            true => {
                let bases: Vec<_> = report.image.iter().map(|range| range.start).collect();
                self.symbols(&bases, report.ram, memory)
            }
            false => None,
        };
        let symbols = symbols.as_ref();
        let places = frame.zip(symbols).map(|(frame, symbols)| places::lines(frame, symbols));
        let names = symbols.map(|symbols| saved(symbols, report.processor, &exits));
        let samples = report.samples.as_ref().map(|taken| stacks::named(taken, symbols, &report));
        Ran {
            name,
            places: places.unwrap_or_default(),
            names: names.unwrap_or_default(),
            samples,
            core: None,
            checked: Default::default(),
            debugger: None,
            report,
        }
    }

    /// The symbols. `None` without a file that has some, or if they are not those of the guest, which the log says. `bases` are
    /// the addresses of the parts of the image, and `ram` is the size of RAM.
    pub fn symbols(self, bases: &[u64], ram: u64, memory: &GuestMemory) -> Option<Symbols> {
        let mut symbols = match self.source {
            Source::Given(symbols) => *symbols,
            Source::Own(file) => match Symbols::open(&file?) {
                Ok(symbols) => symbols,
                // A flat binary or a kernel that is compressed.
                Err(error @ SymbolError::Wrong { .. }) => {
                    log::debug!("{error}");
                    return None;
                }
                Err(error) => {
                    log::warn!("the places in the guest have no names: {error}");
                    return None;
                }
            },
        };
        let guest = Guest { bases, memory: ram, may_move: self.may_move };
        let fit = symbols.find(&guest, |address, bytes| memory.read(Gpa(address), bytes));
        is_usable(fit, &symbols).then_some(symbols)
    }
}

/// True if symbols fit the guest. Otherwise the log says why they are not used.
pub fn is_usable(fit: Fit, symbols: &Symbols) -> bool {
    let name = symbols.name();
    match fit {
        Fit::Same => {}
        Fit::Other => log::warn!(
            "the symbols in {name} are not used, because the guest's code is not the code in it: give the file from which the \
             guest was made"
        ),
        Fit::Moved => log::warn!(
            "the symbols in {name} are not used, because the kernel may have moved (KASLR), and its memory does not tell the \
             distance: give it with --symbols FILE@OFFSET, such as {name}@0x1d400000, or boot with nokaslr in --cmdline"
        ),
    }
    if fit == Fit::Same && symbols.offset_of_guest() != 0 {
        log::info!("the guest's code is {:#x} above the addresses in {name}", symbols.offset_of_guest());
    }
    fit == Fit::Same
}

/// The reason and RIP of each kind of exit that was recorded, each once, the most frequent first.
pub fn exits(profile: Option<&Profile>, trace: Option<&Trace>) -> Vec<(Reason, u64)> {
    let counted = profile.map(report::addresses).unwrap_or_default();
    let counted = counted.into_iter().map(|address| (address.reason, address.rip));
    let traced = trace.map_or(&[][..], Trace::exits).iter().rev();
    let traced = traced.filter_map(|(_, one)| Some((vmm::exit::Site::of(&one.exit)?.reason, one.rip)));
    let mut seen = HashSet::new();
    let known = counted.chain(traced).filter_map(|(reason, rip)| Some((reason, rip?)));
    known.filter(|exit| seen.insert(*exit)).take(MOST_NAMES).collect()
}

/// The names of exits, for a file. Long names are cut.
pub fn saved(symbols: &Symbols, processor: Processor, exits: &[(Reason, u64)]) -> Vec<SavedName> {
    let mut text = 0usize;
    let name = |((reason, rip), found): (&(Reason, u64), Option<Attribution>)| {
        let Attribution { place, unsure } = found?;
        // An access in an inlined function counts for the function that contains it.
        let line = place.calls.last().and_then(|call| call.source.as_ref());
        let line = line.map(|source| cut(&source.to_string()));
        let function = cut(place.function());
        Some(SavedName { rip: *rip, reason: *reason, function, offset: place.offset, line, unsure })
    };
    let names = exits.iter().zip(attribute(symbols, processor, exits)).filter_map(name);
    let is_within = |name: &SavedName| {
        let line = name.line.as_ref().map_or(0, String::len);
        text = text.saturating_add(name.function.len()).saturating_add(line);
        text <= MOST_NAME_TEXT
    };
    names.take_while(is_within).collect()
}

fn cut(name: &str) -> String {
    if name.len() <= MAX_NAME {
        name.into()
    } else {
        name.chars().take(MAX_NAME / 4).chain("...".chars()).collect()
    }
}

/// The names of the exits of a profile or trace file. The memory of its guest is gone, so the symbols are not compared with it.
///
/// # Errors
/// The symbols cannot be read, or the file has no addresses.
pub fn add(to: &mut report::Saved, argument: &Path, file: &str) -> Result<(), Failure> {
    let symbols = open(argument)?;
    let (processor, exits, names) = match to {
        report::Saved::Profile(profile) => {
            let known = profile.addresses.iter().filter_map(|address| Some((address.reason, address.rip?)));
            (profile.processor, distinct(known), &mut profile.names)
        }
        report::Saved::Trace(trace, _) => {
            let known = trace.records.iter().filter_map(|record| Some((record.reason, record.rip?)));
            (trace.processor, distinct(known), &mut trace.names)
        }
    };
    if exits.is_empty() {
        return Err(without_addresses(file, "--symbols"));
    }
    let processor = match processor {
        SavedProcessor::Kvm => Processor::Kvm,
        SavedProcessor::Soft => Processor::Soft,
    };
    *names = saved(&symbols, processor, &exits);
    if names.is_empty() {
        log::warn!(
            "no address in {file} is in a function of {}: give the file from which the guest was made, or its distance \
             (--symbols FILE@OFFSET)",
            symbols.name()
        );
    }
    Ok(())
}

fn distinct(exits: impl Iterator<Item = (Reason, u64)>) -> Vec<(Reason, u64)> {
    let mut seen = HashSet::new();
    exits.filter(|exit| seen.insert(*exit)).take(MOST_NAMES).collect()
}

/// The error for a file without addresses of code.
pub fn without_addresses(file: &str, option: &str) -> Failure {
    Error::Config(format!(
        "{file} has no addresses of the guest's code for {option}: record them with --by function or --trace at the run"
    ))
    .into()
}

impl From<ByArg> for By {
    fn from(argument: ByArg) -> Self {
        match argument {
            ByArg::Function => Self::Function,
            ByArg::Line => Self::Line,
        }
    }
}
