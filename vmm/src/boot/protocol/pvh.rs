//! PVH: the entry point in a note, and the start information (Xen `xen/include/public/arch-x86/hvm/start_info.h`).

use super::blob::Blob;
use super::{ImageError, Information, Plan, Protocol};
use crate::boot::elf;

/// The magic number of the start information: "xEn3" with the high bit of the E.
const MAGIC: u32 = 0x336e_c578;
/// The version with a memory map.
const VERSION: u32 = 1;
/// The size of the start information without what it points to, in bytes.
const INFORMATION: usize = 56;

/// The kernel in an ELF file with a note of PVH. `None` without one.
///
/// # Errors
/// The note is wrong.
pub(super) fn of_elf(bytes: &mut [u8]) -> Result<Option<Plan>, ImageError> {
    // The loader of another kind of file tells what is wrong with it.
    let Ok(layout) = elf::layout(&*bytes) else { return Ok(None) };
    let entry = match layout.notes.pvh {
        None => return Ok(None),
        Some(Err(what)) => {
            return Err(Protocol::Pvh.error(format!(
                "has a note (XEN_ELFNOTE_PHYS32_ENTRY) that {what}: give it the 32-bit physical address of the entry point"
            )));
        }
        Some(Ok(entry)) => entry,
    };
    let layout = layout.moved(bytes, None)?;
    match layout.physical(u64::from(entry).saturating_add(layout.base)) {
        Some(at) => Ok(Some(Plan::new(Protocol::Pvh, layout.segments, at))),
        None => Err(Protocol::Pvh.error(format!(
            "has its entry point outside every segment, at {entry:#x}: give the note the physical address of the entry point"
        ))),
    }
}

/// The start information for the kernel.
pub(super) fn information(from: &Information<'_>) -> Vec<u8> {
    let mut blob = Blob::new(from.base, INFORMATION);
    if let Some((rsdp, _)) = &from.firmware.rsdp {
        blob.set(32, &rsdp.0.to_le_bytes());
    }
    let modules = u32::try_from(from.modules.len()).unwrap_or(0);
    for (offset, word) in [(0, MAGIC), (4, VERSION), (12, modules)] {
        blob.set_word(offset, word);
    }
    let command_line = blob.text(&from.handover.command_line);
    blob.set(24, &command_line.to_le_bytes());
    let texts: Vec<u64> = from.modules().map(|(module, ..)| blob.text(&module.text)).collect();
    let list = blob.align(8);
    for ((_, start, end), text) in from.modules().zip(texts) {
        for word in [start, end.saturating_sub(start), text, 0] {
            blob.wide(word);
        }
    }
    if modules != 0 {
        blob.set(16, &list.to_le_bytes());
    }
    let map = blob.align(8);
    for range in from.map {
        blob.wide(range.start);
        blob.wide(range.size());
        blob.words(&[range.kind(), 0]);
    }
    blob.set(40, &map.to_le_bytes());
    blob.set_word(48, u32::try_from(from.map.len()).unwrap_or(0));
    blob.bytes()
}
