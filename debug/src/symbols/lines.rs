//! Source lines and inlined functions, from DWARF information (DWARF 5, sections 3.3.8 and 6.2).

use super::{Call, Source};
use gimli::{Dwarf, EndianArcSlice, RunTimeEndian, SectionId};
use object::{CompressionFormat, Object, ObjectSection};
use std::sync::Arc;

type Reader = EndianArcSlice<RunTimeEndian>;

/// The most inlined functions that are shown for an address.
const MAX_INLINED: usize = 16;

/// The debug information of a file.
pub(super) struct Lines(addr2line::Context<Reader>);

impl Lines {
    /// `None` if the file has no debug information, or if it is broken, which the log says.
    pub(super) fn of<'data>(file: &impl Object<'data>) -> Option<Self> {
        file.section_by_name(".debug_info")?;
        let endian = if file.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
        let section = |id: SectionId| -> Result<Reader, gimli::Error> {
            Ok(Reader::new(Arc::from(contents(file, id.name())), endian))
        };
        let context = Dwarf::load(section).and_then(addr2line::Context::from_dwarf);
        context.map(Self).map_err(|error| log::warn!("the debug information is not usable: {error}")).ok()
    }

    /// The functions at an address, the innermost first.
    pub(super) fn at(&self, address: u64) -> Vec<Call> {
        let mut calls = Vec::new();
        let Ok(mut frames) = self.0.find_frames(address).skip_all_loads() else { return calls };
        while let Ok(Some(frame)) = frames.next() {
            let name = frame.function.and_then(|name| name.demangle().ok().map(|name| name.into_owned()));
            let source = frame.location.and_then(|location| {
                let file = location.file?.to_owned();
                Some(Source { file, line: location.line })
            });
            if name.is_none() && source.is_none() {
                break;
            }
            let function = name.map(|name| vmm::host::printable_text(&name).to_string()).unwrap_or_default();
            calls.push(Call { function, source });
            if calls.len() > MAX_INLINED {
                break;
            }
        }
        calls
    }
}

/// The bytes of a section. Empty if the file lacks it, or has it compressed, which the log says.
pub(super) fn contents<'data>(file: &impl Object<'data>, name: &str) -> &'data [u8] {
    let Some(section) = file.section_by_name(name) else { return &[] };
    match section.compressed_data() {
        Ok(data) if data.format == CompressionFormat::None => data.data,
        Ok(_) => {
            log::warn!(
                "the section {name} is compressed, so lines are not shown: link with -gz=none, or unpack it with \
                 objcopy --decompress-debug-sections"
            );
            &[]
        }
        Err(_) => &[],
    }
}
