//! Samples of a guest as named stacks, and the files for them.
//!
//! | file | contents |
//! |---|---|
//! | `folded.rs` | a line for each stack, which can be read again |
//! | `firefox.rs` | the processed format of the Firefox Profiler |
//! | `pprof.rs` | the format of `pprof` |
//! | `svg.rs` | a flame graph |
//! | `table.rs` | the hottest functions as text |
//! | `tree.rs` | stacks with common callers, as a tree |

mod firefox;
mod folded;
mod pprof;
mod svg;
mod table;
mod tree;

pub(crate) use table::functions;
pub use table::hottest;

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{self, Write};
use vmm::host::{printable_text, sort_by};

/// The maximum number of stacks of a file.
pub const MOST_STACKS: usize = vmm::profile::MAX_STACKS;
/// The maximum number of frames of a stack: the addresses, each with inlined functions, and the part.
pub const MOST_FRAMES: usize = 1280;
/// The maximum length of a name, in bytes.
const MOST_NAME: usize = 300;

/// The part of the program or of the guest that a frame belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Part {
    /// The guest's code.
    #[default]
    Guest,
    /// KVM: it handles an exit itself, or emulates code of the guest.
    Kvm,
    /// The VMM handles an exit.
    Vmm,
    /// The vCPU is halted.
    Halted,
    /// An exit, if exits are sampled.
    Exit,
}

impl Part {
    /// All parts, in the order of the categories of a Firefox profile.
    const ALL: [Self; 5] = [Self::Guest, Self::Kvm, Self::Vmm, Self::Halted, Self::Exit];

    /// The name of the part.
    fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Kvm => "KVM",
            Self::Vmm => "VMM",
            Self::Halted => "halted",
            Self::Exit => "exit",
        }
    }

    /// The index in [`Self::ALL`].
    fn index(self) -> usize {
        self as usize
    }

    /// The part of a frame with this name.
    fn of_name(name: &str) -> Self {
        let tag = name.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let is = |part: &Self| tag.is_some_and(|(tag, _)| tag == part.name());
        Self::ALL.into_iter().find(is).unwrap_or_default()
    }
}

/// A frame of a stack: a function of the guest, or another part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct StackFrame {
    name: String,
    file: String,
    line: Option<u32>,
    part: Part,
}

impl StackFrame {
    /// A function of the guest, with its source line if that is known. The guest chooses the name: control characters,
    /// semicolons and a bracket at its start are replaced, and it is cut after 300 bytes.
    pub fn guest(name: &str, source: Option<(&str, Option<u32>)>) -> Self {
        let (file, line) = source.map_or_else(Default::default, |(file, line)| (clean(file), line));
        let mut name = clean(name);
        if name.starts_with('[') {
            name.replace_range(..1, "(");
        }
        Self { name, file, line, part: Part::Guest }
    }

    /// A frame for another part, such as `[VMM] PIO out 0xe9`.
    pub fn part(part: Part, detail: &str) -> Self {
        let name = match detail {
            "" => format!("[{}]", part.name()),
            detail => format!("[{}] {}", part.name(), clean(detail)),
        };
        Self { name, part, ..Self::default() }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A text without characters that end a frame or a line.
fn clean(text: &str) -> String {
    let mut cut = text;
    while cut.len() > MOST_NAME {
        let end = (0..=MOST_NAME).rev().find(|end| cut.is_char_boundary(*end)).unwrap_or(0);
        cut = cut.get(..end).unwrap_or_default();
    }
    let clean = printable_text(cut).to_string().replace(';', ":");
    let dots = if cut.len() < text.len() { "..." } else { "" };
    match clean.trim() {
        "" => "?".into(),
        clean => format!("{clean}{dots}"),
    }
}

/// The samples of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    /// The number of samples a second. `None` if each exit is a sample.
    pub rate: Option<u32>,
    /// The number of samples whose stacks are not here, because there were too many different ones.
    pub lost: u64,
    /// The time that taking the samples took, in nanoseconds.
    pub cost_ns: u64,
    /// The host does not tell code of the guest from KVM.
    pub may_be_kvm: bool,
    frames: Vec<StackFrame>,
    known: HashMap<StackFrame, u32>,
    stacks: HashMap<Box<[u32]>, u64>,
}

impl Samples {
    /// Counts samples with a stack, the outermost frame first.
    pub fn add(&mut self, frames: impl IntoIterator<Item = StackFrame>, count: u64) {
        let stack: Box<[u32]> = frames.into_iter().take(MOST_FRAMES).map(|frame| self.frame(frame)).collect();
        if self.stacks.len() >= MOST_STACKS && !self.stacks.contains_key(&stack) {
            self.lost = self.lost.saturating_add(count);
            return;
        }
        let sum = self.stacks.entry(stack).or_default();
        *sum = sum.saturating_add(count);
    }

    fn frame(&mut self, frame: StackFrame) -> u32 {
        if let Some(index) = self.known.get(&frame) {
            return *index;
        }
        let index = u32::try_from(self.frames.len()).unwrap_or(u32::MAX);
        self.frames.push(frame.clone());
        self.known.insert(frame, index);
        index
    }

    /// The number of samples with a stack.
    pub fn total(&self) -> u64 {
        self.stacks.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The frames of a stack.
    fn resolve<'a>(&'a self, stack: &'a [u32]) -> impl DoubleEndedIterator<Item = &'a StackFrame> + 'a {
        stack.iter().filter_map(|index| self.frames.get(*index as usize))
    }

    /// The stacks with their counts, in the order of their names.
    fn sorted(&self) -> Vec<(&[u32], u64)> {
        let mut stacks: Vec<_> = self.stacks.iter().map(|(stack, count)| (&**stack, *count)).collect();
        sort_by(&mut stacks, |(one, _), (other, _)| {
            let [one, other] = [one, other].map(|stack| self.resolve(stack).map(|frame| frame.name()));
            one.cmp(other)
        });
        stacks
    }

    /// The number of samples of each part, by the innermost frames.
    fn parts(&self) -> [u64; Part::ALL.len()] {
        let mut parts = [0u64; Part::ALL.len()];
        for (stack, count) in &self.stacks {
            let part = self.resolve(stack).next_back().map(|frame| frame.part).unwrap_or_default();
            if let Some(sum) = parts.get_mut(part.index()) {
                *sum = sum.saturating_add(*count);
            }
        }
        parts
    }

    /// The unit of a sample, in the plural.
    fn unit(&self) -> &'static str {
        if self.rate.is_some() { "samples" } else { "exits" }
    }

    /// The time for which a sample stands, in nanoseconds; 0 for exits.
    fn period(&self) -> u64 {
        self.rate.map_or(0, |rate| 1_000_000_000u64.checked_div(rate.into()).unwrap_or(0))
    }

    /// Writes the samples in a format. `title` is the name of the guest.
    ///
    /// # Errors
    /// Writing to `to` fails.
    pub fn write(&self, to: &mut dyn Write, format: StackFormat, title: &str) -> io::Result<()> {
        match format {
            StackFormat::Folded => folded::write(to, self),
            StackFormat::Firefox => firefox::write(to, self, title),
            StackFormat::Pprof => to.write_all(&pprof::profile(self)),
            StackFormat::Svg => svg::write(to, self, title),
        }
    }
}

/// A format of a file with samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackFormat {
    /// A line for each stack: its frames with semicolons between them, and the number of samples.
    Folded,
    /// The processed format of the Firefox Profiler, JSON.
    Firefox,
    /// The format of pprof, a protocol buffer.
    Pprof,
    /// A flame graph.
    Svg,
}

/// The samples of a run in a profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSamples {
    /// The number of samples a second. `None` if each exit is a sample.
    pub rate: Option<u32>,
    /// The number of samples whose stacks are not here.
    pub lost: u64,
    /// The time that taking the samples took.
    pub cost_ns: u64,
    /// The host does not tell code of the guest from KVM.
    #[serde(default)]
    pub may_be_kvm: bool,
    /// The stacks, as the lines of a folded file.
    pub stacks: Vec<String>,
}

impl From<&Samples> for SavedSamples {
    fn from(samples: &Samples) -> Self {
        let Samples { rate, lost, cost_ns, may_be_kvm, .. } = *samples;
        Self { rate, lost, cost_ns, may_be_kvm, stacks: folded::lines(samples) }
    }
}

impl SavedSamples {
    /// Checks the limits that the JSON types do not.
    pub(crate) fn check(&self) -> Result<(), String> {
        crate::profile::check_limit(self.stacks.len(), "stacks", MOST_STACKS)?;
        self.samples().map(drop)
    }

    /// The samples. Only the names of the frames are known.
    pub(crate) fn samples(&self) -> Result<Samples, String> {
        let Self { rate, lost, cost_ns, may_be_kvm, .. } = *self;
        let mut samples = Samples { rate, lost, cost_ns, may_be_kvm, ..Samples::default() };
        self.stacks.iter().try_for_each(|line| folded::read_line(line, &mut samples))?;
        Ok(samples)
    }

    /// Writes the flame graph, as an element of a page.
    pub(crate) fn write_svg(&self, to: &mut dyn Write) -> io::Result<()> {
        self.samples().map_or(Ok(()), |samples| svg::write_element(to, &samples))
    }
}

#[cfg(test)]
mod tests;
