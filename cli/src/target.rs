//! What the user names as a guest: a built-in one, an ELF64 executable, or a flat binary with an address
//! and a mode, `FILE[@ADDR][:MODE]`.

use clap::ValueEnum;
use guest::{End, Guest, Map};
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use vmm::boot::{self, Image};
use vmm::memory::{Gpa, PLAIN_RAM};
use vmm::x86::Mode;
use vmm::{Builder, Error, Machine};

/// A guest that was found, and what is known of it.
pub struct RunTarget {
    /// What to call it.
    pub name: String,
    /// What to run.
    pub image: Image,
    /// What the catalogue says of it, where it is built in.
    pub embedded: Option<&'static Guest>,
}

impl RunTarget {
    /// Whether it promises to leave 42.
    pub fn promises_result(&self) -> bool {
        self.embedded.is_some_and(|guest| matches!(guest.end, End::FortyTwo | End::WrongResult))
    }

    /// Whether it drives SIMVIRTIO, as far as is known.
    pub fn drives_simvirtio(&self) -> bool {
        self.embedded.is_some_and(|guest| guest.polling_exits.is_some())
    }

    /// The length of SIMVIRTIO's queues that it is written for.
    pub fn queue_len(&self) -> Option<u16> {
        self.embedded.and_then(|guest| guest.queue_len)
    }

    /// A machine for it, with what the catalogue says that it needs.
    pub fn builder(&self) -> Builder {
        let builder = Machine::builder(self.image.clone());
        let Some(guest) = self.embedded else { return builder };
        let builder = builder.cpus(guest.cpus).kev(guest.kev).cpuid(guest.cpuid);
        guest.msrs.iter().fold(builder, |builder, &(index, rule)| builder.msr_rule(index, rule.into()))
    }

    /// A built-in guest.
    ///
    /// # Errors
    /// Its image is empty, which the build does not let happen.
    pub fn embedded(guest: &'static Guest) -> Result<Self, Error> {
        let image = Image::flat(guest.image, guest.mode, Gpa(guest.load_at))?;
        Ok(Self { name: guest.name.into(), image, embedded: Some(guest) })
    }

    /// Finds what `text` names. `mode` and `load_at` are options beside it; a flat binary may have `limit`
    /// bytes.
    ///
    /// # Errors
    /// There is no such guest, or the options contradict it.
    pub fn find(text: &OsStr, mode: Option<Mode>, load_at: Option<u64>, limit: u64) -> Result<Self, Error> {
        let embedded = text.to_str().and_then(guest::find);
        if let Some(guest) = embedded {
            if mode.is_some() || load_at.is_some() {
                return Err(Error::Config(format!(
                    "{} is built in, with its own mode and address: leave out --mode and --load-at, or give a file \
                     (./{0})",
                    guest.name
                )));
            }
            return Self::embedded(guest);
        }
        let spec = Spec::parse(text);
        // Another reason than that there is none, such as a link that leads nowhere, comes from reading it.
        if Path::new(&spec.file).symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return Err(Error::Config(not_found(text)));
        }
        Self::file(spec.with_options(mode, load_at)?, None, limit)
    }

    /// Finds the file that `text` names; a flat binary without a mode is entered in `default_mode`.
    ///
    /// # Errors
    /// It cannot be read or run.
    pub fn find_file(text: &OsStr, default_mode: Mode) -> Result<Self, Error> {
        Self::file(Spec::parse(text), Some(default_mode), PLAIN_RAM)
    }

    /// The file of `spec`. Without a mode, a flat binary is entered in `default_mode`, or in the one that
    /// goes with its address.
    fn file(spec: Spec, default_mode: Option<Mode>, limit: u64) -> Result<Self, Error> {
        let path = Path::new(&spec.file);
        let name = vmm::host::printable(path);
        let bytes = boot::read_file(path, limit)?;
        if boot::is_elf(&bytes) {
            let mode = spec.mode.unwrap_or(Mode::Long);
            if !matches!(mode, Mode::Long | Mode::User) || spec.load_at.is_some() {
                return Err(Error::Config(format!(
                    "{name} is an ELF file, which has its own addresses and runs in long mode, in ring 0 or 3: \
                     leave out the address, and the mode unless it is long or user64; or make it flat with objcopy \
                     -O binary"
                )));
            }
            return Ok(Self { name, image: Image::elf(bytes)?.entered_in(mode), embedded: None });
        }
        let load_at = spec.load_at.unwrap_or(0);
        let high = load_at >= simvirtio::abi::RAM_SIZE;
        let mode = spec.mode.or(default_mode).unwrap_or(if high { Mode::Long } else { Mode::Real });
        log::info!("{name}: a flat binary, loaded and entered at {load_at:#x} in {mode} mode");
        Ok(Self { name, image: Image::flat(bytes, mode, Gpa(load_at))?, embedded: None })
    }

    /// This image, run under the conditions of a built-in guest.
    pub fn in_place_of(self, guest: &'static Guest) -> Self {
        Self { embedded: Some(guest), ..self }
    }

    /// The memory map that it is written for, as far as is known.
    pub fn map(&self) -> Option<Map> {
        self.embedded.map(|guest| guest.map)
    }
}

/// Why `text` names nothing: a mistake after the file's name, or no such file.
fn not_found(text: &OsStr) -> String {
    let shown = vmm::host::printable(Path::new(text));
    let text = text.to_string_lossy();
    let places = text.char_indices().filter(|(_, mark)| [':', '@'].contains(mark));
    let mistake = places.filter_map(|(at, _)| Some((text.get(..at)?, text.get(at..)?)));
    match mistake.into_iter().find(|(file, _)| Path::new(file).is_file()) {
        _ if text.is_empty() => "the guest's name is empty: `vmm guests` lists the guests".into(),
        Some((file, rest)) => format!(
            "{} is there, but {rest:?} after it is no address and mode: give FILE[@ADDR][:MODE] with an address \
             such as 0x1000, and real, protected, long (16, 32, 64) or user64",
            vmm::host::printable(Path::new(file))
        ),
        None => {
            format!("there is no built-in guest and no file named {shown}: `vmm guests` lists the guests")
        }
    }
}

/// `FILE[@ADDR][:MODE]`, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Spec {
    file: OsString,
    load_at: Option<u64>,
    mode: Option<Mode>,
}

impl Spec {
    /// Adds what the options beside the file say.
    fn with_options(self, mode: Option<Mode>, load_at: Option<u64>) -> Result<Self, Error> {
        let twice = |what, option| {
            Error::Config(format!("{what} is given twice, with the file and with {option}: give it once"))
        };
        if self.mode.is_some() && mode.is_some() {
            return Err(twice("the mode", "--mode"));
        }
        if self.load_at.is_some() && load_at.is_some() {
            return Err(twice("the address", "--load-at"));
        }
        Ok(Self { mode: self.mode.or(mode), load_at: self.load_at.or(load_at), ..self })
    }

    /// A file that has the whole text as its name is that file.
    fn parse(text: &OsStr) -> Self {
        let whole = Self { file: text.to_owned(), load_at: None, mode: None };
        if Path::new(text).exists() {
            return whole;
        }
        let (mut rest, mut spec) = (text, whole);
        if let Some((file, mode)) = suffix(rest, b':', |word| crate::args::ModeArg::from_str(word, true)) {
            (spec.mode, rest) = (Some(mode.into()), file);
        }
        if let Some((file, address)) = suffix(rest, b'@', crate::args::parse_number) {
            (spec.load_at, rest) = (Some(address), file);
        }
        spec.file = rest.into();
        spec
    }
}

/// What stands before the last `mark`, and the value after it, where that is one.
fn suffix<T>(text: &OsStr, mark: u8, parse: impl Fn(&str) -> Result<T, String>) -> Option<(&OsStr, T)> {
    let bytes = text.as_bytes();
    let at = bytes.iter().rposition(|byte| *byte == mark)?;
    let (before, rest) = bytes.split_at_checked(at)?;
    let word = str::from_utf8(rest.get(1..)?).ok()?;
    Some((OsStr::from_bytes(before), parse(word).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> (String, Option<u64>, Option<Mode>) {
        let spec = Spec::parse(OsStr::new(text));
        (spec.file.into_string().unwrap(), spec.load_at, spec.mode)
    }

    #[test]
    fn a_file_with_address_and_mode() {
        let file = |name: &str, address, mode| (name.to_string(), address, mode);
        assert_eq!(spec("a.bin"), file("a.bin", None, None));
        assert_eq!(spec("a.bin@0x1000"), file("a.bin", Some(0x1000), None));
        assert_eq!(spec("a.bin:long"), file("a.bin", None, Some(Mode::Long)));
        assert_eq!(spec("a.bin@4096:32"), file("a.bin", Some(4096), Some(Mode::Protected)));
        assert_eq!(spec("b@c:d"), file("b@c:d", None, None));
        assert_eq!(spec("b@c@1:16"), file("b@c", Some(1), Some(Mode::Real)));
        let odd = Spec::parse(OsStr::from_bytes(b"\xff@0x10:16"));
        assert_eq!(
            (odd.file.as_bytes(), odd.load_at, odd.mode),
            (&b"\xff"[..], Some(0x10), Some(Mode::Real))
        );
    }

    #[test]
    fn a_file_whose_name_looks_like_more_is_that_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a@1:16");
        std::fs::write(&path, [0xf4]).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(spec(path), (path.to_string(), None, None));
    }
}
