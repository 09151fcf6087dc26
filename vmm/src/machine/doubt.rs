//! Reasons to doubt that a guest did its work, although it ended in good order: it halted, or ended with code 0.
//!
//! A halt alone shows little. A processor that runs past the end of its program, or into data, also finds a HLT sooner
//! or later. The doubts are found in what is left after the run: the place of each vCPU, memory, and the exits. They
//! cost a small run about a microsecond.

mod code;
mod foreign;
mod gather;
mod missing_handler;
mod screen;
mod silence;
#[cfg(test)]
mod tests;

pub use foreign::HaltedVcpu;
pub(super) use gather::UsedDevices;
use missing_handler::missing_firmware_here;
pub(super) use missing_handler::{empty_because, missing_handler};

use crate::boot::{Image, list_ranges};
use crate::controller::OpenBus;
use crate::controller::hypercall::FailedCalls;
use crate::controller::vcpu::Location;
use crate::exit::{Reason, Site, Stop};
use crate::memory::{Gpa, GuestMemory, ReadMemory};
use crate::profile::Profile;
use silence::silence;
use simvirtio::abi;
use std::fmt;
use std::ops::Range;

/// The ports at which a guest switches QEMU off.
const QEMU_POWER_OFF: [u64; 2] = [0x604, 0xb004];
/// The longest excerpt of a text, in characters.
const EXCERPT: usize = 40;

/// A reason to doubt that a guest did its work. The text is a clause that follows the end of the run. A guest with a
/// doubt is not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// A real-mode guest called this software interrupt, for which there is no handler: the machine has no BIOS.
    MissingHandler(u8),
    /// The entry point of a real-mode guest returned.
    EntryReturned,
    /// A vCPU ended outside the image.
    EndedOutside {
        /// The place of its end.
        location: Location,
        /// The guest physical addresses of the image's code.
        image: Vec<Range<u64>>,
    },
    /// The guest wrote text to the text screen of a PC, which this machine does not have.
    TextScreen(String),
    /// A flat binary expects its text at another address.
    MisplacedText {
        /// The text.
        text: String,
        /// The address of the text in the code.
        expected: u64,
        /// The address at which the text is.
        actual: u64,
        /// The address at which the image should be loaded.
        load_at: u64,
    },
    /// A flat binary printed no text, and its code prints one only if it is run in another mode.
    OtherMode {
        /// The text.
        text: String,
        /// The modes, as in the argument of `vmm run`.
        modes: Vec<&'static str>,
        /// The address at which the image should be loaded.
        load_at: u64,
    },
    /// A flat binary with a text printed this number of bytes, which are all 0 or 0xff.
    BlankOutput(u64),
    /// Hypercalls failed.
    FailedHypercall(FailedCalls),
    /// The guest stored to places where nothing is: the first place, and the number of all stores.
    LostStores(Site, u64),
    /// The guest had no effect: no output, no result, no exit but the one that ended it.
    NothingSeen,
    /// The guest halted with interrupts on in a machine that has none: it had no effect, or it is the kernel of a boot loader.
    NoInterrupts,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingHandler(vector) => write!(
                f,
                "it called int {vector:#x}, which has no handler, because this machine has {}: print with port 0xe9",
                missing_firmware_here(*vector)
            ),
            Self::EntryReturned => f.write_str(
                "probably the entry point returned (a ret, and nothing had called it): end it with hlt, or write its exit code to \
                 port 0xf4",
            ),
            Self::EndedOutside { location, image } => write!(
                f,
                "it ended {location}, outside its image ({}): it ran past its end, its entry point returned, it jumped \
                 to a wrong address, or it moved its code",
                list_ranges(image)
            ),
            Self::TextScreen(text) => write!(
                f,
                "it wrote {text:?} to the text screen at 0xb8000, which this machine does not have: give --machine pc, \
                 or print with port 0xe9"
            ),
            Self::MisplacedText { text, expected, actual, load_at } => write!(
                f,
                "it printed no text, and its code expects the text {text:?} at {expected:#x}, but the text is at \
                 {actual:#x}: load it at {load_at:#x} (FILE@{load_at:#x}), or link it for another address"
            ),
            Self::OtherMode { text, modes, load_at } => write!(
                f,
                "it printed no text, and its code prints the text {text:?} only in another mode: give {} as the mode \
                 (FILE@{load_at:#x}{})",
                modes.join(" or "),
                modes.first().unwrap_or(&"")
            ),
            Self::BlankOutput(count) => write!(
                f,
                "it printed only bytes that are 0 or 0xff ({count}): its text is probably at another address than its \
                 code expects"
            ),
            Self::FailedHypercall(calls) => write!(f, "{calls}"),
            Self::LostStores(site, count) => write_lost_stores(f, site, *count),
            Self::NoInterrupts => {
                f.write_str("it halted with interrupts on, but no interrupt ever arrives: this machine has no interrupt controller")
            }
            Self::NothingSeen => f.write_str(
                "it had no visible effect: no output, no result, no exit but the one that ended it",
            ),
        }
    }
}

/// Writes the first place of `count` stores where nothing is.
fn write_lost_stores(f: &mut fmt::Formatter<'_>, site: &Site, count: u64) -> fmt::Result {
    let (place, _) = site.place.unwrap_or_default();
    match site.reason {
        Reason::PioOut if QEMU_POWER_OFF.contains(&place) => {
            write!(f, "it wrote to port {place:#x}, which switches QEMU off: use hlt or port 0xf4 here")?;
        }
        Reason::PioOut => write!(f, "it wrote to port {place:#x}, which has no device")?,
        _ => write!(f, "it stored to {place:#x}, where there is no memory or device")?,
    }
    match count.saturating_sub(1) {
        0 => Ok(()),
        1 => f.write_str(" (and 1 more such store)"),
        more => write!(f, " (and {more} more such stores)"),
    }
}

/// The memory of a guest at its start, as far as it is known.
pub(crate) trait Original {
    /// A byte of the image; `None` outside of it.
    fn byte_at(&self, gpa: u64) -> Option<u8>;
    /// The entry point.
    fn entry(&self) -> Gpa;
    /// True if the image has bytes in this range.
    fn overlaps(&self, start: u64, end: u64) -> bool;
}

impl Original for Image {
    fn byte_at(&self, gpa: u64) -> Option<u8> {
        Self::byte_at(self, gpa)
    }

    fn entry(&self) -> Gpa {
        Self::entry(self)
    }

    fn overlaps(&self, start: u64, end: u64) -> bool {
        Self::overlaps(self, start, end)
    }
}

/// The state of a vCPU at the end of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) location: Location,
    /// The guest physical address of the instruction pointer. `None` if it is not mapped.
    pub(super) gpa: Option<u64>,
}

/// The state after a run, in which doubts are searched.
pub(super) struct Remains<'a> {
    pub(super) stop: &'a Stop,
    pub(super) image: &'a Image,
    pub(super) memory: &'a GuestMemory,
    /// The bytes that were at the place of the result, unless the image covers it.
    pub(super) result_place: [u8; 8],
    /// The vCPUs that ended by themselves. Those that are plainly in the image may be left out.
    pub(super) vcpus: &'a [Ended],
    /// The software interrupt without a handler that the guest called, if any.
    pub(super) missing_handler: Option<u8>,
    /// The entry point returned.
    pub(super) entry_returned: bool,
    /// A vCPU halted with interrupts on.
    pub(super) waits_for_interrupt: bool,
    /// The number of bytes that the guest printed.
    pub(super) printed: u64,
    /// One of these bytes is neither 0 nor 0xff, or there is text on the screen of a PC.
    pub(super) is_readable: bool,
    pub(super) failed_calls: Option<FailedCalls>,
    /// The stack pointers of the vCPUs.
    pub(super) stacks: &'a [u64],
    pub(super) open_bus: &'a OpenBus,
    /// The guest stores where nothing is, or makes hypercalls that fail, on purpose.
    pub(super) loses_stores: bool,
    /// `None` if exits were not counted.
    pub(super) profile: Option<&'a Profile>,
    /// The machine has a text screen.
    pub(super) has_screen: bool,
    /// The guest did something with SIMVIRTIO, or with the screen of a PC.
    pub(super) used_devices: bool,
}

impl Remains<'_> {
    /// The doubts, the most telling one first. Empty if the guest did not end in good order.
    pub(super) fn doubts(&self) -> Vec<Doubt> {
        if !matches!(self.stop, Stop::Halted | Stop::Exited(0)) {
            return Vec::new();
        }
        let mut doubts = Vec::new();
        if self.image.loads_itself() {
            // Its screen is shown, and it looks for devices.
            doubts.extend(self.saw_nothing().then_some(Doubt::NothingSeen));
            return doubts;
        }
        doubts.extend(self.missing_handler.map(Doubt::MissingHandler));
        if self.entry_returned {
            doubts.push(Doubt::EntryReturned);
        } else {
            doubts.extend(self.ended_outside());
        }
        if !self.has_screen {
            doubts.extend(screen::text(self.image, self.memory, self.stacks).map(Doubt::TextScreen));
        }
        if !self.is_readable {
            doubts.extend(silence(self.image, self.printed));
        }
        let failed = self.failed_calls.filter(|_| !self.loses_stores);
        doubts.extend(failed.map(Doubt::FailedHypercall));
        let lost = self.open_bus.lost_stores().filter(|_| !self.loses_stores);
        doubts.extend(lost.map(|(site, count)| Doubt::LostStores(site, count)));
        if doubts.is_empty() && self.saw_nothing() {
            doubts.push(Doubt::NothingSeen);
        }
        // A kernel of a boot loader that halts with interrupts on waits for one, whatever it did before.
        let waits = self.waits_for_interrupt && matches!(self.stop, Stop::Halted);
        let is_telling = doubts.contains(&Doubt::NothingSeen) || self.image.protocol().is_some();
        doubts.extend((waits && is_telling).then_some(Doubt::NoInterrupts));
        doubts
    }

    fn ended_outside(&self) -> Option<Doubt> {
        let image = self.image.code_ranges();
        let outside = self.vcpus.iter().find(|ended| !ends_inside(&image, ended.gpa))?;
        Some(Doubt::EndedOutside { location: outside.location, image })
    }

    /// True if the run had no effect that could be seen from outside.
    fn saw_nothing(&self) -> bool {
        let before = |gpa: u64| {
            let index = usize::try_from(gpa.wrapping_sub(abi::RESULT)).unwrap_or(usize::MAX);
            self.result_place.get(index).copied().unwrap_or(0)
        };
        let kept = has_no_result(self.memory, |gpa| self.image.byte_at(gpa).unwrap_or_else(|| before(gpa)));
        let only_hlt = self.profile.is_none_or(|profile| {
            profile.reasons().iter().all(|(reason, count)| *reason == Reason::Hlt || count.elements == 0)
        });
        let silent = self.printed == 0 && self.open_bus.total() == 0 && !self.used_devices;
        matches!(self.stop, Stop::Halted) && silent && only_hlt && kept
    }
}

/// True if the place of a result has the bytes of the start.
fn has_no_result(memory: &dyn ReadMemory, start: impl Fn(u64) -> u8) -> bool {
    let mut result = [0; 8];
    memory.read(Gpa(abi::RESULT), &mut result)
        && (abi::RESULT..).zip(result).all(|(gpa, byte)| start(gpa) == byte)
}

/// True if a vCPU ended in the image. The address is that of the last instruction, or that after it. An address that is
/// not mapped is outside.
pub(super) fn ends_inside(image: &[Range<u64>], gpa: Option<u64>) -> bool {
    let inside = |gpa: u64| image.iter().any(|range| range.contains(&gpa));
    gpa.is_some_and(|gpa| inside(gpa) || gpa.checked_sub(1).is_some_and(inside))
}
