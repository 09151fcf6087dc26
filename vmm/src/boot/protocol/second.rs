//! Multiboot 2: the header and the information. (Multiboot specification 2.0, sections 3.1 and 3.6.)

use super::addresses::Addresses;
use super::blob::{Blob, low};
use super::place::lower_and_upper;
use super::{ImageError, Information, LOADER, Protocol, Wishes, warn_of_graphics};

/// The size of the root pointer of ACPI 1.0, in bytes.
const FIRST_RSDP: usize = 20;
/// The value of EAX at the entry point.
pub(super) const MAGIC: u32 = 0x36d7_6289;
/// The address of the text screen of a PC.
pub(super) const TEXT_SCREEN: u32 = 0xb_8000;

/// The size of a header without its tags, in bytes.
const HEADER: usize = 16;
/// The header ends in these bytes of the file at the latest.
const HEADER_END: usize = 0x8000;
/// The architecture of x86.
const I386: u32 = 0;
/// The flag of a tag that a boot loader may ignore.
const OPTIONAL: u16 = 1;
/// The last type of information that the specification has.
const LAST_INFORMATION: u32 = 21;

/// A tag of a header.
struct Tag<'a> {
    kind: u16,
    is_optional: bool,
    data: &'a [u8],
}

impl Tag<'_> {
    /// The word at an index in the data.
    fn word(&self, index: usize) -> Option<u32> {
        self.words().nth(index)
    }

    fn words(&self) -> impl Iterator<Item = u32> {
        self.data.chunks_exact(4).filter_map(|word| Some(u32::from_le_bytes(*word.first_chunk()?)))
    }
}

/// Reads the header at an offset. Its checksum is right.
pub(super) fn wishes(bytes: &[u8], at: usize) -> Result<Wishes, ImageError> {
    let refuse = |what: String| Err(Protocol::Multiboot2.error(what));
    let head = bytes.get(..bytes.len().min(HEADER_END)).unwrap_or_default();
    let header = head.get(at..).unwrap_or_default();
    let word = |offset: usize| Some(u32::from_le_bytes(*header.get(offset..)?.first_chunk()?));
    if let Some(other) = word(4).filter(|architecture| *architecture != I386) {
        return refuse(format!(
            "is for another processor (architecture {other} in its header): build it for i386"
        ));
    }
    let length = word(8).and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let Some(header) = header.get(..length).filter(|header| header.len() >= HEADER) else {
        return refuse(format!(
            "has a header of {length} bytes at {at:#x}, which is not within the first 32 KiB of the file: is it complete?"
        ));
    };
    let mut wishes = Wishes::default();
    let mut wants_text = false;
    let mut graphics = None;
    for tag in tags(header.get(HEADER..).unwrap_or_default()) {
        let tag = tag.map_err(|what| Protocol::Multiboot2.error(what))?;
        match (tag.kind, tag.word(0)) {
            (1, _) => check_requests(&tag)?,
            (2, _) => wishes.addresses = Some(addresses(&tag, at)?),
            (3, Some(entry)) => wishes.entry = Some(entry),
            (4, Some(flags)) => {
                wants_text = flags & 2 != 0;
                if flags & 3 == 1 {
                    return refuse("requires a console other than a text screen, and this machine has none: let it use text".into());
                }
            }
            (5, _) => graphics = Some(([0, 1, 2].map(|index| tag.word(index).unwrap_or(0)), tag.is_optional)),
            // 6: modules on pages, as they always are. 7 to 9: EFI. 10: the kernel may be moved, but need not be.
            (6..=10, _) => {}
            _ if tag.is_optional => {}
            (kind, _) => {
                return refuse(format!(
                    "asks for something that multiboot 2.0 does not have (tag {kind} of its header): mark the tag as optional"
                ));
            }
        }
    }
    if let Some(([width, height, depth], is_optional)) = graphics {
        wishes.text_screen = true;
        if depth != 0 && !is_optional && !wants_text {
            return refuse(format!(
                "requires graphics ({width}x{height} with {depth} bits), and this machine has none: mark the framebuffer tag as \
                 optional, and print to the serial port (0x3f8)"
            ));
        }
        if depth != 0 {
            warn_of_graphics(Protocol::Multiboot2, width, height, depth);
        }
    }
    wishes.text_screen |= wants_text;
    Ok(wishes)
}

/// The tags of a header, up to the one that ends it.
fn tags(bytes: &[u8]) -> impl Iterator<Item = Result<Tag<'_>, String>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let half = |offset: usize| Some(u16::from_le_bytes(*rest.get(offset..)?.first_chunk()?));
        let (kind, flags) = (half(0)?, half(2)?);
        let size = u32::from_le_bytes(*rest.get(4..)?.first_chunk()?);
        if kind == 0 {
            return None;
        }
        let whole = usize::try_from(size).unwrap_or(usize::MAX);
        let Some(data) = rest.get(..whole).and_then(|tag| tag.get(8..)) else {
            rest = &[];
            return Some(Err(format!("has a header whose tag {kind} has a wrong size ({size}): correct it")));
        };
        let next = whole.checked_next_multiple_of(8).unwrap_or(usize::MAX);
        rest = rest.get(next..).unwrap_or_default();
        Some(Ok(Tag { kind, is_optional: flags & OPTIONAL != 0, data }))
    })
}

/// Checks the kinds of information that a kernel requires. Those of the specification that a machine without them cannot
/// give are left out, as for a PC that lacks them.
fn check_requests(tag: &Tag<'_>) -> Result<(), ImageError> {
    match tag.words().find(|kind| *kind > LAST_INFORMATION) {
        Some(kind) if !tag.is_optional => Err(Protocol::Multiboot2.error(format!(
            "requires information that multiboot 2.0 does not have (type {kind}): mark the request as optional"
        ))),
        _ => Ok(()),
    }
}

fn addresses(tag: &Tag<'_>, offset: usize) -> Result<Addresses, ImageError> {
    let [Some(header), Some(load), Some(load_end), Some(bss_end)] = [0, 1, 2, 3].map(|index| tag.word(index))
    else {
        return Err(Protocol::Multiboot2.error("has an address tag that is too short: correct it"));
    };
    // All ones: the file is loaded from its first byte.
    Ok(Addresses { offset, header, load: (load != u32::MAX).then_some(load), load_end, bss_end })
}

/// The information for the kernel.
pub(super) fn information(from: &Information<'_>) -> Vec<u8> {
    let mut blob = Blob::new(from.base, 8);
    add_text(&mut blob, 1, &[], &from.handover.command_line);
    add_text(&mut blob, 2, &[], LOADER);
    for (module, start, end) in from.modules() {
        add_text(&mut blob, 3, &[low(start), low(end)], &module.text);
    }
    let (lower, upper) = lower_and_upper(from.map);
    add_words(&mut blob, 4, &[lower, upper]);
    let mut map = Blob::new(0, 0);
    for range in from.map {
        map.wide(range.start);
        map.wide(range.size());
        map.words(&[range.kind(), 0]);
    }
    // The size of an entry, and the version.
    add(&mut blob, 6, &[24, 0], &map.bytes());
    if from.handover.text_screen {
        // Address, pitch, width and height in characters; then 16 bits for each, and the type: text.
        add(&mut blob, 8, &[TEXT_SCREEN, 0, 160, 80, 25], &[16, 2, 0, 0]);
    }
    if let Some(sections) = &from.handover.sections {
        add(&mut blob, 9, &[sections.count, sections.entry_size, sections.names], &sections.bytes);
    }
    if let Some((_, rsdp)) = &from.firmware.rsdp {
        // A copy for ACPI 1.0, whose root pointer is shorter, and one for later versions.
        add(&mut blob, 14, &[], rsdp.get(..FIRST_RSDP).unwrap_or(rsdp));
        add(&mut blob, 15, &[], rsdp);
    }
    add_words(&mut blob, 0, &[]);
    let len = blob.len();
    blob.set_word(0, len);
    blob.bytes()
}

/// Adds a tag: type, size, words and bytes.
fn add(blob: &mut Blob, kind: u32, words: &[u32], bytes: &[u8]) {
    let words_size = u32::try_from(words.len().saturating_mul(4)).unwrap_or(u32::MAX);
    let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX).saturating_add(words_size).saturating_add(8);
    blob.words(&[kind, size]);
    blob.words(words);
    blob.add(bytes);
    blob.align(8);
}

fn add_words(blob: &mut Blob, kind: u32, words: &[u32]) {
    add(blob, kind, words, &[]);
}

fn add_text(blob: &mut Blob, kind: u32, words: &[u32], text: &[u8]) {
    add(blob, kind, words, &[text, b"\0"].concat());
}
