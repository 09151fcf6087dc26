//! The protocols by which boot loaders enter kernels other than Linux: multiboot 1 (specification 0.6.96), multiboot 2
//! (specification 2.0), and PVH (Xen `docs/misc/pvh.pandoc`).
//!
//! All of them enter a kernel in protected mode without paging, and pass the address of a structure in EBX. It lists the
//! memory, the command line and the modules. The structure depends on the size of RAM, so it is made when a machine takes
//! the image ([`Image::handed_over`]).

// | file | contents |
// |---|---|
// | `first.rs`, `second.rs` | the headers of multiboot 1 and 2, and their information |
// | `addresses.rs` | the addresses in a multiboot header, for files that are not ELF |
// | `pvh.rs` | the start information of PVH |
// | `place.rs` | the places of modules and information, and the memory map |
// | `blob.rs` | bytes with pointers to each other |

mod addresses;
mod blob;
mod first;
mod place;
mod pvh;
mod second;
#[cfg(test)]
mod tests;

use super::elf::{self, SectionTable};
use super::file::open;
use super::{Addition, Image, ImageError, Segment};
use crate::error::Error;
use crate::file_format::{MultibootHeader, multiboot_header, unsound_multiboot_header};
use crate::host::{format_size, printable};
use crate::memory::Gpa;
use crate::x86::general::{GeneralRegister, InitialValue};
use crate::x86::modes::{Mode, Start};
use place::Places;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

/// The name of this boot loader, as the kernel sees it.
const LOADER: &[u8] = b"vmm";
/// The longest command line, and the longest text of a module, in bytes.
const MAX_TEXT: usize = 16 << 10;
/// The most modules.
const MAX_MODULES: usize = 256;

/// A protocol by which a boot loader enters a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Multiboot specification 0.6.96.
    Multiboot1,
    /// Multiboot specification 2.0.
    Multiboot2,
    /// The PVH entry point of Xen, which other machines also use.
    Pvh,
}

impl Protocol {
    /// The protocol by which the kernel in a file is entered: that of its multiboot header, or PVH for an ELF file with a note
    /// of it. `None` without them. What follows may still be wrong.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match multiboot_header(bytes) {
            Some(MultibootHeader::First(_)) => Some(Self::Multiboot1),
            Some(MultibootHeader::Second(_)) => Some(Self::Multiboot2),
            None => elf::layout(bytes).ok().and_then(|layout| layout.notes.pvh).map(|_| Self::Pvh),
        }
    }

    /// True if the protocol gives the register a value.
    pub(super) fn sets(self, register: GeneralRegister) -> bool {
        match self {
            Self::Multiboot1 | Self::Multiboot2 => {
                [GeneralRegister::Rax, GeneralRegister::Rbx].contains(&register)
            }
            Self::Pvh => register == GeneralRegister::Rbx,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Multiboot1 => "multiboot 1",
            Self::Multiboot2 => "multiboot 2",
            Self::Pvh => "PVH",
        }
    }

    /// An error of a kernel of this protocol.
    fn error(self, what: impl Into<String>) -> ImageError {
        ImageError::Kernel { protocol: self.name(), what: what.into() }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A file that a boot loader puts into memory for its kernel.
#[derive(Clone, Debug)]
pub struct Module {
    /// The content.
    pub bytes: Arc<Vec<u8>>,
    /// The text that the kernel sees with it.
    pub text: Vec<u8>,
    /// The path of the file, for errors.
    pub file: String,
}

impl Module {
    /// Reads the file of a module, which has at most `limit` bytes.
    ///
    /// # Errors
    /// The file cannot be read, is not a regular file, or is too large.
    pub fn read(path: &Path, text: Vec<u8>, limit: u64) -> Result<Self, ImageError> {
        let (file, length) = open(path)?;
        let name = printable(path);
        let failed = |source| ImageError::Read { path: name.clone(), source };
        let mut bytes = Vec::new();
        // A file that is too large is not read. It may also grow meanwhile.
        if length <= limit {
            let room = bytes.try_reserve_exact(usize::try_from(length).unwrap_or(0));
            room.map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
            file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
        }
        if length.max(bytes.len() as u64) > limit {
            let what = format!(
                "does not fit: it has more than the {} that are left of the guest's memory: choose a larger --mem",
                format_size(limit)
            );
            return Err(ImageError::Module { file: name, what });
        }
        Ok(Self { bytes: Arc::new(bytes), text, file: name })
    }
}

/// Everything that a kernel gets from its boot loader.
#[derive(Clone, Debug)]
pub(super) struct Handover {
    pub(super) protocol: Protocol,
    command_line: Vec<u8>,
    modules: Vec<Module>,
    /// The section headers of an ELF file, for multiboot.
    sections: Option<SectionTable>,
    /// The header asks about the framebuffer, and gets a text screen.
    text_screen: bool,
}

/// A kernel whose headers have been read.
pub(super) struct Plan {
    handover: Handover,
    segments: Vec<Segment>,
    entry: Gpa,
}

impl Plan {
    fn new(protocol: Protocol, segments: Vec<Segment>, entry: Gpa) -> Self {
        let handover = Handover {
            protocol,
            command_line: Vec::new(),
            modules: Vec::new(),
            sections: None,
            text_screen: false,
        };
        Self { handover, segments, entry }
    }

    /// The image of the kernel in the file with these bytes.
    pub(super) fn image(self, bytes: Vec<u8>) -> Image {
        let pvh = self.handover.protocol == Protocol::Pvh;
        let start = Start { pvh, ..Start::new(Mode::Protected, self.entry) };
        let image = Image::of(bytes.into(), self.segments, start, true);
        Image { handover: Some(Box::new(self.handover)), ..image }
    }
}

/// The kernel in an ELF file. `None` if no header or note of a protocol is in it. Relocations are applied to its bytes.
///
/// # Errors
/// The header or the note is wrong, or asks for something that this machine does not have.
pub(super) fn of_elf(bytes: &mut [u8]) -> Result<Option<Plan>, ImageError> {
    match multiboot_header(bytes) {
        Some(header) => of_multiboot(header, bytes).map(Some),
        None => pvh::of_elf(bytes),
    }
}

/// The kernel with a multiboot header in `bytes`.
fn of_multiboot(header: MultibootHeader, bytes: &mut [u8]) -> Result<Plan, ImageError> {
    let (protocol, wishes) = match header {
        MultibootHeader::First(at) => (Protocol::Multiboot1, first::wishes(bytes, at)?),
        MultibootHeader::Second(at) => (Protocol::Multiboot2, second::wishes(bytes, at)?),
    };
    let mut plan = match &wishes.addresses {
        Some(addresses) => {
            let (segment, entry) = addresses.segment(bytes.len(), protocol, wishes.entry)?;
            Plan::new(protocol, vec![segment], entry)
        }
        None if elf::is_elf(bytes) => {
            let layout = elf::layout(&*bytes)?.moved(bytes, None)?;
            let entry = match wishes.entry {
                Some(entry) => layout.physical(entry.into()).ok_or_else(|| {
                    protocol.error(format!("has the entry address {entry:#x}, outside every segment"))
                })?,
                None => layout.entry?,
            };
            Plan::new(protocol, layout.segments, entry)
        }
        None => {
            return Err(protocol.error(
                "is not an ELF file, and its header has no load addresses: give the ELF file from which it was made, or add \
                 the addresses to the header",
            ));
        }
    };
    plan.handover.text_screen = wishes.text_screen;
    plan.handover.sections = SectionTable::of(bytes).filter(|_| elf::is_elf(bytes));
    Ok(plan)
}

/// The wishes in a multiboot header.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wishes {
    addresses: Option<addresses::Addresses>,
    /// The entry point, if it is not that of the ELF file.
    entry: Option<u32>,
    /// The kernel wants to know about the framebuffer.
    text_screen: bool,
}

/// Says in the log that a kernel gets a text screen instead of graphics.
fn warn_of_graphics(protocol: Protocol, width: u32, height: u32, depth: u32) {
    log::warn!(
        "the {protocol} kernel asks for graphics of {width}x{height} with {depth} bits, and gets a text screen of 80x25: this \
         machine has no graphics"
    );
}

impl Image {
    /// Creates an image from an ELF executable by its content. With a header of multiboot 1 or 2 or a note of PVH, it is
    /// entered as that protocol says. Without one, an ELF64 file is entered in long mode and an ELF32 file in
    /// protected mode. Each PT_LOAD segment is loaded at its physical address.
    ///
    /// # Errors
    /// `bytes` are not an x86 executable or are truncated, segments overlap, or no segment contains the entry point; or
    /// the header asks for something that this machine does not have.
    pub fn elf(mut bytes: Vec<u8>) -> Result<Self, ImageError> {
        match of_elf(&mut bytes)? {
            Some(plan) => Ok(plan.image(bytes)),
            None => {
                if let Some(at) = unsound_multiboot_header(&bytes) {
                    log::warn!(
                        "the ELF file has the magic of a multiboot header at offset {at:#x}, but the checksum of the header is \
                         wrong, so it starts without the protocol"
                    );
                }
                Self::native_elf(bytes, None)
            }
        }
    }

    /// Creates an image from a multiboot kernel that is not an ELF file: its header has the load addresses.
    ///
    /// # Errors
    /// The file has no multiboot header, or one that is wrong or asks for something that this machine does not have.
    pub fn multiboot(mut bytes: Vec<u8>) -> Result<Self, ImageError> {
        match multiboot_header(&bytes) {
            Some(header) => Ok(of_multiboot(header, &mut bytes)?.image(bytes)),
            None => Err(Protocol::Multiboot1.error("has no multiboot header: give its file")),
        }
    }

    /// The protocol by which the image is entered. `None` for other guests.
    pub fn protocol(&self) -> Option<Protocol> {
        self.handover.as_ref().map(|handover| handover.protocol)
    }

    /// The image with a command line and modules for its kernel.
    ///
    /// # Errors
    /// The image is entered without a protocol that passes them, or one of them is too long.
    pub fn with_boot_data(mut self, command_line: &str, modules: Vec<Module>) -> Result<Self, Error> {
        if command_line.is_empty() && modules.is_empty() {
            return Ok(self);
        }
        let refuse = |what: String| Err(Error::Config(what));
        let option = if command_line.is_empty() { "--module" } else { "--cmdline" };
        let Some(handover) = self.handover.as_mut() else {
            return refuse(format!(
                "{option} is for kernels with a multiboot header or a PVH note, and this guest has none: leave {option} out"
            ));
        };
        if command_line.len() > MAX_TEXT || command_line.contains('\0') {
            return refuse(format!(
                "--cmdline must be at most {MAX_TEXT} bytes without a NUL: give a shorter text"
            ));
        }
        if modules.len() > MAX_MODULES {
            return refuse(format!(
                "--module can be given at most {MAX_MODULES} times, not {}",
                modules.len()
            ));
        }
        if let Some(long) =
            modules.iter().find(|module| module.text.len() > MAX_TEXT || module.text.contains(&0))
        {
            let file = &long.file;
            return refuse(format!(
                "the text of --module {file} must be at most {MAX_TEXT} bytes without a NUL"
            ));
        }
        handover.command_line = command_line.into();
        handover.modules = modules;
        Ok(self)
    }

    /// The image with the information for its kernel and the modules in it, for a machine with `ram` bytes of RAM and this
    /// firmware. Other images stay as they are.
    ///
    /// # Errors
    /// The modules or the information do not fit into RAM.
    pub(crate) fn handed_over(mut self, ram: u64, firmware: &Firmware) -> Result<Self, ImageError> {
        let Some(mut handover) = self.handover.take() else { return Ok(self) };
        let kernel = self.segments.clone();
        let mut places = Places::new(handover.protocol, ram, firmware.low_end, &kernel);
        let mut modules = Vec::new();
        for module in &handover.modules {
            let start = places.module(module)?;
            modules.push((start, start.saturating_add(module.bytes.len() as u64)));
            self.additions.push(Addition { start: Gpa(start), bytes: module.bytes.clone() });
        }
        if let Some(sections) = &mut handover.sections {
            self.segments.extend(sections.load(self.bytes.len(), |size| places.after(size)));
        }
        let build = |base, map: &[place::Range]| {
            let information = Information { handover: &handover, modules: &modules, map, firmware, base };
            match handover.protocol {
                Protocol::Multiboot1 => first::information(&information),
                Protocol::Multiboot2 => second::information(&information),
                Protocol::Pvh => pvh::information(&information),
            }
        };
        let (start, bytes) = places.information(build)?;
        self.additions.push(Addition { start: Gpa(start), bytes: Arc::new(bytes) });
        let magic = match handover.protocol {
            Protocol::Multiboot1 => Some(first::MAGIC),
            Protocol::Multiboot2 => Some(second::MAGIC),
            Protocol::Pvh => None,
        };
        let set = |register, value| InitialValue { register, value };
        let eax = magic.map(|magic| set(GeneralRegister::Rax, magic.into()));
        let own = eax.into_iter().chain([set(GeneralRegister::Rbx, start)]);
        // Values of the user's come last, so that they count.
        self.start.registers = own.chain(self.start.registers.drain(..)).collect();
        self.handover = Some(handover);
        Ok(self)
    }
}

/// The tables that the firmware of a machine leaves to a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Firmware {
    /// The end of low memory. The memory from here to 1 MiB is reserved.
    pub(crate) low_end: u64,
    /// The root pointer of the ACPI tables (RSDP): its address and its bytes. `None` without tables.
    pub(crate) rsdp: Option<(Gpa, Vec<u8>)>,
}

impl Firmware {
    /// A machine without firmware. The memory from 0xa0000 has no use on it, but belongs to the screen on every PC.
    pub(crate) const NONE: Self = Self { low_end: 0xa_0000, rsdp: None };
}

/// The sources of the structures for a kernel.
struct Information<'a> {
    handover: &'a Handover,
    /// The first address of each module, and the address after its last byte.
    modules: &'a [(u64, u64)],
    map: &'a [place::Range],
    firmware: &'a Firmware,
    /// The address of the structure.
    base: u64,
}

impl Information<'_> {
    /// Each module with its addresses.
    fn modules(&self) -> impl Iterator<Item = (&Module, u64, u64)> {
        self.handover.modules.iter().zip(self.modules).map(|(module, (start, end))| (module, *start, *end))
    }
}
