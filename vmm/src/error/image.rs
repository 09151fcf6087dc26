//! The reasons why an image cannot be run.

use guest::Mode;
use std::io;

/// The first address of the upper half of the address space, in which kernels with 64 bits are commonly linked.
const UPPER_HALF: u64 = 0xffff_8000_0000_0000;
/// The first address of the kernel code model.
const LAST_2_GIB: u64 = 0xffff_ffff_8000_0000;
/// The first address at which kernels with 32 bits are commonly linked.
const LAST_GIB: u64 = 0xc000_0000;

/// The reason why an image cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The path of the file.
        path: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The file is a directory, a device or a pipe.
    #[error("{path} is not a regular file: give a plain file")]
    NotAFile {
        /// The path of the file.
        path: String,
    },
    /// The file is empty.
    #[error("the image is empty: give a flat binary, a boot disk or an ELF file")]
    Empty,
    /// The file is larger than the guest's memory.
    #[error(
        "{path} is too large: it has {size} bytes, and at most {limit} fit into the guest's memory: give a smaller file, or \
         choose a larger --mem"
    )]
    TooLarge {
        /// The path of the file.
        path: String,
        /// The size of the file, in bytes.
        size: u64,
        /// The maximum size, in bytes.
        limit: u64,
    },
    /// The file has a known format, which is neither a flat binary nor an ELF file.
    #[error("{path} is {format}: {advice}")]
    KnownFormat {
        /// The path of the file.
        path: String,
        /// The format, as a noun phrase.
        format: String,
        /// The next step, as a verb phrase.
        advice: String,
    },
    /// The file cannot be a ROM.
    #[error("the ROM cannot be used: {0}: give a file that ends with the firmware's reset vector")]
    BadRom(String),
    /// The file is an ELF file that this VMM cannot run.
    #[error("the ELF file {0}")]
    Elf(String),
    /// A kernel of another protocol than that of Linux cannot be used, or asks for something that this machine lacks.
    #[error("the {protocol} kernel {what}")]
    Kernel {
        /// The name of the protocol.
        protocol: &'static str,
        /// The problem and the next step, as a verb phrase.
        what: String,
    },
    /// A module of such a kernel cannot be used.
    #[error("the module {file} {what}")]
    Module {
        /// The path of the file.
        file: String,
        /// The problem and the next step, as a verb phrase.
        what: String,
    },
    /// A Linux kernel, its initrd or its command line cannot be used.
    #[error("{file} {what}")]
    Linux {
        /// The name of the file.
        file: String,
        /// The problem and the next step, as a verb phrase.
        what: String,
    },
    /// The image does not fit at its load address.
    #[error(
        "the image does not fit: it takes [{start:#x}, {end:#x}), and the guest's memory is [0x0, {ram:#x}): load it lower \
         (@ADDR, --load-at), or choose a larger --mem"
    )]
    OutsideRam {
        /// The first guest physical address of the image.
        start: u64,
        /// The address after its last byte.
        end: u64,
        /// The size of the guest's memory, in bytes.
        ram: u64,
    },
    /// The segments of a file do not fit into the guest's memory, or its entry point is not below 4 GiB.
    #[error(
        "the image does not fit: its segments are {places}, and the guest's memory is 0x0 to {:#x}: {}",
        .ram.saturating_sub(1), segments_advice(*.lowest)
    )]
    Segments {
        /// The addresses of the segments, in words.
        places: String,
        /// The lowest of these addresses that is not in memory.
        lowest: u64,
        /// The size of the guest's memory, in bytes.
        ram: u64,
    },
    /// The entry point of a real-mode guest is not below 64 KiB.
    #[error(
        "a real-mode guest cannot begin at {0:#x}: CS is 0, so its entry point must be below 0x10000: load it lower, give a \
         segment and an offset (FILE@0x1000:0x0), or choose another --mode"
    )]
    BeyondRealMode(u64),
    /// The entry point of a guest in another mode is not below 4 GiB.
    #[error(
        "a {mode}-mode guest cannot begin at {entry:#x}: its entry point must be below 4 GiB: load it lower"
    )]
    BeyondMode {
        /// The mode.
        mode: Mode,
        /// The entry point.
        entry: u64,
    },
    /// The image covers the address of the result.
    #[error(
        "the image covers the bytes at 0x400 to 0x407, where the result is verified: link it elsewhere, such as at 0x1000 \
         (FILE@0x1000), or run it without --verify"
    )]
    CoversResult,
    /// The image in a file cannot be run.
    #[error("{path}: {error}")]
    InFile {
        /// The path of the file.
        path: String,
        /// The reason.
        error: Box<ImageError>,
    },
}

impl ImageError {
    /// Adds the path of the file to an error that does not name it.
    ///
    /// ```
    /// let error = vmm::ImageError::Empty.in_file("guest.bin").in_file("guest.bin");
    /// assert_eq!(error.to_string(), "guest.bin: the image is empty: give a flat binary, a boot disk or an ELF file");
    /// ```
    #[must_use]
    pub fn in_file(self, path: &str) -> Self {
        match self {
            Self::Read { .. }
            | Self::NotAFile { .. }
            | Self::TooLarge { .. }
            | Self::KnownFormat { .. }
            | Self::Linux { .. }
            | Self::Module { .. }
            | Self::InFile { .. } => self,
            error => Self::InFile { path: path.into(), error: Box::new(error) },
        }
    }
}

/// The next step for a file whose segments are outside RAM, from `lowest` on.
fn segments_advice(lowest: u64) -> String {
    let base = match lowest {
        LAST_2_GIB.. => LAST_2_GIB,
        UPPER_HALF.. => lowest & !0x1f_ffff,
        LAST_GIB..=0xffff_ffff => LAST_GIB,
        _ => {
            return "link it lower (gcc -static -nostdlib -no-pie -Wl,-Ttext-segment=0x1000, or ld -T linker/long64.ld), give \
                    its segments physical addresses below that (AT() in its linker script), or choose a larger --mem"
                .into();
        }
    };
    format!(
        "its physical addresses are its virtual ones: lower them (objcopy --change-section-lma '*-{base:#x}' FILE NEW, or AT() \
         in its linker script), and let its first code run there, where each address below 4 GiB is physical, until it has mapped \
         its upper half"
    )
}
