//! Source lines and inlined functions, from DWARF information (DWARF 5, sections 3.3.8 and 6.2).

use super::{Call, Source};
use gimli::{Dwarf, EndianArcSlice, RunTimeEndian, SectionId};
use object::{CompressionFormat, Object, ObjectSection};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Reader = EndianArcSlice<RunTimeEndian>;

/// The most inlined functions that are shown for an address.
const MAX_INLINED: usize = 16;
/// The largest size of a compressed section after it is unpacked, in bytes.
const MAX_UNPACKED: usize = 512 << 20;

/// The debug information of a file.
pub(super) struct Lines(addr2line::Context<Reader>);

impl Lines {
    /// `None` if the file has no debug information, or if it is broken, which the log says.
    pub(super) fn of<'data>(file: &impl Object<'data>) -> Option<Self> {
        file.section_by_name(".debug_info")?;
        let endian = if file.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
        let section = |id: SectionId| -> Result<Reader, gimli::Error> {
            Ok(Reader::new(Arc::from(&*contents(file, id.name())), endian))
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

/// Warns of a section that cannot be unpacked. The others of its file are the same, so there is one warning.
fn warn_of(format: CompressionFormat, name: &str) {
    static IS_WARNED: AtomicBool = AtomicBool::new(false);
    let how = if format == CompressionFormat::Zstandard {
        "with zstd, which is not read"
    } else {
        "and cannot be unpacked"
    };
    if !IS_WARNED.swap(true, Ordering::Relaxed) {
        log::warn!(
            "the section {name} is compressed {how}, so there are functions, but no lines: unpack it with `objcopy \
             --decompress-debug-sections FILE`, or link with -gz=none"
        );
    }
}

/// The bytes of a section, unpacked if it is compressed. Empty if the file lacks it, or if it cannot be unpacked, which the log
/// says.
pub(super) fn contents<'data>(file: &impl Object<'data>, name: &str) -> Cow<'data, [u8]> {
    let nothing = Cow::Borrowed(&[][..]);
    let Some(section) = file.section_by_name(name) else { return nothing };
    let Ok(data) = section.compressed_data() else { return nothing };
    if data.format == CompressionFormat::None {
        return data.data.into();
    }
    let size = usize::try_from(data.uncompressed_size).ok().filter(|size| *size <= MAX_UNPACKED);
    let unpacked = size
        .filter(|_| data.format == CompressionFormat::Zlib)
        .and_then(|size| miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(data.data, size).ok());
    match unpacked {
        Some(bytes) => bytes.into(),
        None => {
            warn_of(data.format, name);
            nothing
        }
    }
}
