//! Finds the guest that the user names: a built-in guest, an ELF executable, a multiboot kernel, or a flat binary with an
//! address and a mode, `FILE[@ADDR][:MODE]`.

use crate::file_name;
use guest::{End, Guest, Map};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use vmm::boot::{self, ElfKind, Image, ImageSpec, Protocol};
use vmm::device::Layout;
use vmm::host::printable;
use vmm::memory::{Gpa, PLAIN_RAM};
use vmm::x86::Mode;
use vmm::{Builder, Error, ImageError, Machine};

/// A guest to run.
pub struct RunTarget {
    /// The name to print.
    pub name: String,
    /// The image to run.
    pub image: Image,
    /// The guest's entry in the catalogue, if it is built in.
    pub embedded: Option<&'static Guest>,
}

impl RunTarget {
    /// Returns true if the guest promises to leave 42.
    pub fn promises_result(&self) -> bool {
        self.embedded.is_some_and(|guest| matches!(guest.end, End::FortyTwo | End::WrongResult))
    }

    /// Returns true if the guest is known to drive SIMVIRTIO.
    pub fn drives_simvirtio(&self) -> bool {
        self.embedded.is_some_and(|guest| guest.polling_exits.is_some())
    }

    /// The length of the SIMVIRTIO queues that the guest needs, in bytes, if it is known.
    pub fn queue_len(&self) -> Option<u16> {
        self.embedded.and_then(|guest| guest.queue_len)
    }

    /// Returns a builder for its machine, with all that the catalogue lists for the guest.
    pub fn builder(&self) -> Builder {
        let builder = Machine::builder(self.image.clone());
        let Some(guest) = self.embedded else { return builder };
        let builder =
            builder.cpus(guest.cpus).kev(guest.kev).cpuid(guest.cpuid).loses_stores(guest.loses_stores);
        let builder = if guest.struct_layout { builder.layout(Layout::Struct) } else { builder };
        guest.msrs.iter().fold(builder, |builder, &(index, rule)| builder.msr_rule(index, rule.into()))
    }

    /// Returns a built-in guest.
    ///
    /// # Errors
    /// Its image is empty, which the build prevents.
    pub fn embedded(guest: &'static Guest) -> Result<Self, Error> {
        let image = Image::flat(guest.image, guest.mode, Gpa(guest.load_at))?;
        Ok(Self { name: guest.name.into(), image, embedded: Some(guest) })
    }

    /// Finds the guest that `text` names. `mode` and `load_at` are the values of the options `--mode` and `--load-at`. A
    /// flat binary has at most `limit` bytes. `bios` tells if the machine has a BIOS, which starts from a disk; without it, the
    /// content of the file decides.
    ///
    /// # Errors
    /// No guest has this name, its file cannot be used, or the options contradict it.
    pub fn find(
        text: &OsStr,
        mode: Option<Mode>,
        load_at: Option<u64>,
        limit: u64,
        bios: Option<bool>,
    ) -> Result<Self, Error> {
        let embedded = text.to_str().and_then(guest::find);
        if let Some(guest) = embedded {
            if mode.is_some() || load_at.is_some() {
                return Err(Error::Config(format!(
                    "the built-in guest {} has its own mode and address: leave out --mode and --load-at, or give a \
                     file (./{0})",
                    guest.name
                )));
            }
            if Path::new(guest.name).is_file() {
                log::warn!(
                    "the built-in guest {0} runs, and not the file {0} in this folder: give ./{0} to run the file",
                    guest.name
                );
            }
            return Self::embedded(guest);
        }
        let spec = ImageSpec::parse(text);
        // Other errors, such as a link to a missing file, are reported when the file is read.
        if Path::new(&spec.file).symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return Err(Error::Config(not_found(text)));
        }
        warn_of_decimal(text, &spec);
        Self::file(with_options(spec, mode, load_at)?, None, limit, bios)
    }

    /// Reads a ROM.
    ///
    /// # Errors
    /// The file cannot be read, or cannot be a ROM.
    pub fn rom(path: &Path) -> Result<Self, Error> {
        const LIMIT: u64 = 64 << 20;
        let name = printable(path);
        let in_file = |error: ImageError| error.in_file(&name);
        let image = Image::rom(boot::read_file(path, LIMIT).map_err(in_file)?).map_err(in_file)?;
        Ok(Self { name, image, embedded: None })
    }

    /// Reads the file that `text` names. A flat binary without a mode is entered in `default_mode`.
    ///
    /// # Errors
    /// The file cannot be read or run.
    pub fn find_file(text: &OsStr, default_mode: Mode) -> Result<Self, Error> {
        Self::file(ImageSpec::parse(text), Some(default_mode), PLAIN_RAM, Some(false))
    }

    /// Reads a file, whatever its name contains. `limit` and `bios` are those of [`find`](Self::find).
    ///
    /// # Errors
    /// The file cannot be read or run.
    pub fn path(
        path: &Path,
        mode: Option<Mode>,
        load_at: Option<u64>,
        limit: u64,
        bios: Option<bool>,
    ) -> Result<Self, Error> {
        let spec = ImageSpec { file: path.into(), load_at, segment: None, mode };
        Self::file(spec, None, limit, bios)
    }

    /// Checks that the file that `text` names can be read. It may still be a bad guest.
    ///
    /// # Errors
    /// The file does not exist, cannot be read, or is not a regular file; or an error follows its name.
    pub fn check_file(text: &OsStr) -> Result<(), Error> {
        if let Some(wrong) = wrong_name(text) {
            return Err(Error::Config(wrong));
        }
        match boot::read_file(Path::new(&ImageSpec::parse(text).file), PLAIN_RAM) {
            Err(error) if is_unreadable(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Reads the file of `spec`. A flat binary without a mode is entered in `default_mode`; if that is `None`, its
    /// address selects the mode.
    fn file(
        spec: ImageSpec,
        default_mode: Option<Mode>,
        limit: u64,
        bios: Option<bool>,
    ) -> Result<Self, Error> {
        let path = Path::new(&spec.file);
        let bytes = boot::read_file(path, limit).map_err(|error| error.in_file(&printable(path)))?;
        Self::content(spec, bytes, default_mode, bios)
    }

    /// The guest in the content of a file with this name. The other arguments are those of [`path`](Self::path).
    ///
    /// # Errors
    /// It cannot be run.
    pub fn bytes(
        name: &str,
        bytes: Vec<u8>,
        mode: Option<Mode>,
        load_at: Option<u64>,
        bios: Option<bool>,
    ) -> Result<Self, Error> {
        Self::content(ImageSpec { file: name.into(), load_at, segment: None, mode }, bytes, None, bios)
    }

    /// The guest in the content of a file.
    fn content(
        spec: ImageSpec,
        bytes: Vec<u8>,
        default_mode: Option<Mode>,
        bios: Option<bool>,
    ) -> Result<Self, Error> {
        let path = Path::new(&spec.file);
        let name = printable(path);
        let in_file = |error: ImageError| error.in_file(&name);
        if boot::is_elf(&bytes) {
            return Ok(Self { image: elf(&name, &spec, bytes)?, name, embedded: None });
        }
        let is_plain = spec.load_at.is_none() && matches!(spec.mode, None | Some(Mode::Protected));
        let is_free = spec.load_at.is_none() && spec.mode.is_none();
        let is_disk = is_free && bios.unwrap_or_else(|| boot::is_boot_sector(&bytes));
        if is_plain && boot::is_multiboot(&bytes) && !(is_disk && is_disk_with_kernel(&bytes, bios)) {
            let image = Image::multiboot(bytes).map_err(in_file)?;
            return Ok(Self { name, image, embedded: None });
        }
        if is_disk {
            log::info!("{name}: a boot disk, whose first sector a BIOS loads");
            let image = Image::disk(bytes).map_err(in_file)?;
            return Ok(Self { name, image, embedded: None });
        }
        // An address and a mode start a multiboot kernel as what it also is: a flat binary.
        let is_explicit = spec.load_at.is_some() && spec.mode.is_some() && boot::is_multiboot(&bytes);
        if !is_explicit {
            boot::refuse_known_formats(path, &bytes, spec.load_at)?;
        }
        if let (Some(_), Some(mode)) = (spec.segment, spec.mode.filter(|mode| *mode != Mode::Real)) {
            return Err(Error::Config(format!(
                "a segment and an offset (SEG:OFF) are for real mode, not for {mode} mode: give FILE@ADDR with one address"
            )));
        }
        let load_at = spec.load_at.unwrap_or(0);
        let high = load_at >= simvirtio::abi::RAM_SIZE;
        let real = spec.segment.map(|_| Mode::Real);
        let mode = spec.mode.or(real).or(default_mode).unwrap_or(if high { Mode::Long } else { Mode::Real });
        log::info!("{name}: a flat binary, loaded and entered at {load_at:#x} in {mode} mode");
        let image =
            Image::flat(bytes, mode, Gpa(load_at)).map_err(in_file)?.in_segment(spec.segment.unwrap_or(0));
        Ok(Self { name, image, embedded: None })
    }

    /// Reads the kernel in a file, if it has a multiboot header or a note of PVH and is not Linux. `None` for other files, also
    /// for those that cannot be read. A file that is not an ELF file has at most `limit` bytes.
    ///
    /// # Errors
    /// The kernel cannot be run.
    pub fn find_kernel(path: &Path, limit: u64) -> Result<Option<Self>, Error> {
        if boot::is_kernel(path) {
            return Ok(None);
        }
        let Ok(bytes) = boot::read_file(path, limit) else { return Ok(None) };
        if Protocol::of(&bytes).is_none() {
            return Ok(None);
        }
        let name = printable(path);
        let image = if boot::is_elf(&bytes) { Image::elf(bytes) } else { Image::multiboot(bytes) };
        let image = image.map_err(|error| error.in_file(&name))?;
        Ok(Some(Self { name, image, embedded: None }))
    }

    /// Replaces the image of a built-in guest by this one. The rest of the guest's catalogue entry applies to it.
    pub fn replacing(self, guest: &'static Guest) -> Self {
        Self { embedded: Some(guest), ..self }
    }

    /// The memory map that the guest needs, if it is known.
    pub fn map(&self) -> Option<Map> {
        self.embedded.map(|guest| guest.map)
    }
}

/// True if a boot disk with a multiboot header near its start is a disk, and no kernel: the user says so, or the header belongs to
/// an ELF file on the disk, and has no addresses of its own.
fn is_disk_with_kernel(bytes: &[u8], bios: Option<bool>) -> bool {
    bios == Some(true) || Image::multiboot(bytes.to_vec()).is_err()
}

/// Adds the name of a guest to an error of its image, for `map_err`.
pub fn name_error(name: &str) -> impl Fn(Error) -> Error {
    move |error| match error {
        Error::Image(error) => Error::Image(error.in_file(name)),
        error => error,
    }
}

/// Returns the image of the ELF file `name`. A mode or an address starts it without the protocol of its header or note.
///
/// # Errors
/// The file cannot be run, or not in this mode or at this address.
fn elf(name: &str, spec: &ImageSpec, bytes: Vec<u8>) -> Result<Image, Error> {
    if let Some(kind) = ElfKind::of(&bytes) {
        elf_accepts(name, kind, spec)?;
    }
    let image = match (spec.mode, spec.load_at) {
        (None, None) => Image::elf(bytes),
        (_, load_at) => Image::native_elf(bytes, load_at.map(Gpa)),
    };
    let image = image.map_err(|error| error.in_file(name))?;
    if let Some(protocol) = image.protocol() {
        log::info!("{name}: a {protocol} kernel, entered at {:#x} in protected mode", image.entry().0);
    }
    Ok(match spec.mode {
        Some(mode) => image.entered_in(mode),
        None => image,
    })
}

/// Checks the mode and the address that the user gave for the ELF file `name`.
///
/// # Errors
/// The file has its own address, or does not start in this mode.
fn elf_accepts(name: &str, kind: ElfKind, spec: &ImageSpec) -> Result<(), Error> {
    const FLAT: &str = "or convert the file to a flat binary (objcopy -O binary)";
    let refuse = |why: String| Err(Error::Config(why));
    let bits = kind.bits;
    let (fits, modes) = match (bits, spec.mode.unwrap_or(kind.mode())) {
        (32, mode) => (mode == Mode::Protected, "in protected mode"),
        (_, mode) => (matches!(mode, Mode::Long | Mode::User), "in the modes long and user64"),
    };
    match (spec.mode.filter(|_| !fits), spec.load_at) {
        (Some(mode), _) => refuse(format!(
            "{name} is an ELF{bits} file, which starts only {modes}, not in {mode} mode: leave out the mode, {FLAT}"
        )),
        (None, Some(address)) if !kind.movable || spec.segment.is_some() => refuse(format!(
            "{name} is an ELF file, which has its own addresses: leave out the address ({address:#x}), {FLAT}"
        )),
        _ => Ok(()),
    }
}

/// Returns the file that `text` names; `None` for a built-in guest.
pub fn file(text: &OsStr) -> Option<PathBuf> {
    let is_built_in = text.to_str().and_then(guest::find).is_some();
    (!is_built_in).then(|| ImageSpec::parse(text).file.into())
}

/// Returns true if a file could not be read. Its content is then unknown.
pub fn is_unreadable(error: &ImageError) -> bool {
    matches!(error, ImageError::Read { .. } | ImageError::NotAFile { .. })
}

/// Explains why `text` does not name a guest: an error after the name of a file, or a missing file.
fn not_found(text: &OsStr) -> String {
    wrong_name(text).unwrap_or_else(|| {
        let name = printable(Path::new(text));
        let similar = match similar(&text.to_string_lossy()) {
            Some(similar) => format!("the most similar name is {}; ", printable(Path::new(&similar))),
            None => String::new(),
        };
        format!("no built-in guest and no file has the name {name}: {similar}`vmm guests` lists the built-in guests")
    })
}

/// Finds a file with the name `name` and an extension, or the built-in guest or the file with the most similar name. `None` if no
/// name is similar.
fn similar(name: &str) -> Option<String> {
    let mut files = [".bin", ".elf"].iter().map(|extension| format!("{name}{extension}"));
    if let Some(file) = files.find(|file| Path::new(file).is_file()) {
        return Some(file);
    }
    let guest = file_name::similar(name, guest::GUESTS.iter().map(|guest| guest.name.into()));
    let file = file_name::similar_file(Path::new(name));
    let file = file.and_then(|(similarity, file)| Some((similarity, file.to_str()?.to_string())));
    let best = guest.into_iter().chain(file).max_by(|left, right| left.0.total_cmp(&right.0));
    best.map(|(_, name)| name)
}

/// Warns of an address that is decimal, but looks like a hexadecimal number without 0x.
fn warn_of_decimal(text: &OsStr, spec: &ImageSpec) {
    let text = text.to_string_lossy();
    let address = text.rsplit('@').next().and_then(|rest| rest.split(':').next()).unwrap_or_default();
    let Ok(decimal) = address.parse::<u64>() else { return };
    if spec.load_at == Some(decimal) && (1..0x1_0000).contains(&decimal) && address.ends_with("00") {
        log::warn!(
            "the address {address} is decimal, which is {decimal:#x}: write 0x{address} for a hexadecimal address"
        );
    }
}

/// Explains the error in an empty name, or in what follows the name of a file; `None` if there is none.
fn wrong_name(text: &OsStr) -> Option<String> {
    if text.is_empty() {
        return Some("the guest's name is empty: `vmm guests` lists the built-in guests".into());
    }
    if Path::new(&ImageSpec::parse(text).file).symlink_metadata().is_ok() {
        return None;
    }
    let text = text.to_string_lossy();
    let places = text.char_indices().filter(|(_, mark)| [':', '@'].contains(mark));
    let mut splits = places.filter_map(|(at, _)| Some((text.get(..at)?, text.get(at..)?)));
    let (file, rest) = splits.find(|(file, _)| Path::new(file).is_file())?;
    Some(format!(
        "{rest:?} after the file {} is not an address or mode: give FILE[@ADDR][:MODE] with an address such as 0x1000, \
         and a mode: real (16), protected (32), long (64) or user64",
        printable(Path::new(file))
    ))
}

/// Adds the values of `--mode` and `--load-at` to what the file's name says.
///
/// # Errors
/// One of them is given already.
fn with_options(spec: ImageSpec, mode: Option<Mode>, load_at: Option<u64>) -> Result<ImageSpec, Error> {
    let twice = |what, option| {
        Error::Config(format!("{what} is given twice, after the file's name and with {option}: give it once"))
    };
    if spec.mode.is_some() && mode.is_some() {
        return Err(twice("the mode", "--mode"));
    }
    if spec.load_at.is_some() && load_at.is_some() {
        return Err(twice("the address", "--load-at"));
    }
    Ok(ImageSpec { mode: spec.mode.or(mode), load_at: spec.load_at.or(load_at), ..spec })
}
