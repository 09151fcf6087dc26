//! Multiboot 1: the header and the information. (Multiboot specification 0.6.96, sections 3.1 and 3.3.)

use super::addresses::Addresses;
use super::blob::{Blob, low};
use super::place::lower_and_upper;
use super::{ImageError, Information, LOADER, Protocol, Wishes, warn_of_graphics};

/// The value of EAX at the entry point.
pub(super) const MAGIC: u32 = 0x2bad_b002;

/// Header flags: modules begin at pages. They always do.
const PAGE_ALIGNED: u32 = 1 << 0;
/// Header flags: the kernel needs the memory map. It always gets it.
const MEMORY: u32 = 1 << 1;
/// Header flags: the kernel asks about the framebuffer.
const VIDEO: u32 = 1 << 2;
/// Header flags: the header has addresses.
const ADDRESSES: u32 = 1 << 16;
/// Header flags: the wishes that a boot loader must fulfil or refuse.
const REQUIRED: u32 = 0xffff;
/// The header ends in these bytes of the file at the latest.
const HEADER_END: usize = 0x2000;

/// Information flags: `mem_lower` and `mem_upper`.
const HAS_MEMORY: u32 = 1 << 0;
const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_SECTIONS: u32 = 1 << 5;
const HAS_MAP: u32 = 1 << 6;
const HAS_LOADER_NAME: u32 = 1 << 9;
const HAS_FRAMEBUFFER: u32 = 1 << 12;
/// The size of the information without what it points to, in bytes.
const INFORMATION: usize = 116;
/// The size of an entry of the memory map, without the field with this size.
const MAP_ENTRY: u32 = 20;

/// Reads the header at an offset. Its checksum is right.
pub(super) fn wishes(bytes: &[u8], at: usize) -> Result<Wishes, ImageError> {
    let refuse = |what: String| Err(Protocol::Multiboot1.error(what));
    let head = bytes.get(..bytes.len().min(HEADER_END)).unwrap_or_default();
    let field = |index: usize| {
        let offset = at.checked_add(index)?;
        Some(u32::from_le_bytes(*head.get(offset..)?.first_chunk()?))
    };
    let flags = field(4).unwrap_or(0);
    let unknown = flags & REQUIRED & !(PAGE_ALIGNED | MEMORY | VIDEO);
    if unknown != 0 {
        return refuse(format!(
            "asks for features that multiboot 0.6.96 does not have (flags {unknown:#x} of its header): build it for that version"
        ));
    }
    let mut wishes = Wishes { text_screen: flags & VIDEO != 0, ..Default::default() };
    if flags & ADDRESSES != 0 {
        let [Some(header), Some(load), Some(load_end), Some(bss_end), Some(entry)] =
            [12, 16, 20, 24, 28].map(field)
        else {
            return refuse("has a header that is cut short within its addresses: is it complete?".into());
        };
        wishes.addresses = Some(Addresses { offset: at, header, load: Some(load), load_end, bss_end });
        wishes.entry = Some(entry);
    }
    // The fields are only preferences (section 3.1.4). 1 is text.
    if let ([Some(0), Some(width), Some(height), Some(depth)], true) =
        ([32, 36, 40, 44].map(field), wishes.text_screen)
    {
        warn_of_graphics(Protocol::Multiboot1, width, height, depth);
    }
    Ok(wishes)
}

/// The information for the kernel.
pub(super) fn information(from: &Information<'_>) -> Vec<u8> {
    let mut blob = Blob::new(from.base, INFORMATION);
    let mut flags = HAS_MEMORY | HAS_COMMAND_LINE | HAS_MODULES | HAS_MAP | HAS_LOADER_NAME;
    let (lower, upper) = lower_and_upper(from.map);
    blob.set_word(4, lower);
    blob.set_word(8, upper);
    let mut at = blob.text(&from.handover.command_line);
    blob.set_word(16, low(at));
    modules(from, &mut blob);
    if let Some(sections) = &from.handover.sections {
        flags |= HAS_SECTIONS;
        blob.align(8);
        at = blob.add(&sections.bytes);
        for (offset, word) in
            [(28, sections.count), (32, sections.entry_size), (36, low(at)), (40, sections.names)]
        {
            blob.set_word(offset, word);
        }
    }
    at = blob.align(4);
    for range in from.map {
        blob.words(&[MAP_ENTRY]);
        blob.wide(range.start);
        blob.wide(range.size());
        blob.words(&[range.kind()]);
    }
    blob.set_word(44, low(blob.end().saturating_sub(at)));
    blob.set_word(48, low(at));
    at = blob.text(LOADER);
    blob.set_word(64, low(at));
    if from.handover.text_screen {
        flags |= HAS_FRAMEBUFFER;
        blob.set_word(88, super::second::TEXT_SCREEN);
        for (offset, word) in [(96, 160), (100, 80), (104, 25)] {
            blob.set_word(offset, word);
        }
        // 16 bits for each character, and the type: text.
        blob.set(108, &[16, 2]);
    }
    blob.set_word(0, flags);
    blob.bytes()
}

/// Adds the table of modules.
fn modules(from: &Information<'_>, blob: &mut Blob) {
    let texts: Vec<u64> = from.modules().map(|(module, ..)| blob.text(&module.text)).collect();
    let at = blob.align(4);
    for ((_, start, end), text) in from.modules().zip(texts) {
        blob.words(&[low(start), low(end), low(text), 0]);
    }
    blob.set_word(20, u32::try_from(from.modules.len()).unwrap_or(0));
    blob.set_word(24, low(at));
}
