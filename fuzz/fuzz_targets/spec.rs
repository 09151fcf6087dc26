//! Fuzzes the specification of an image, `FILE[@ADDR][:MODE]`, and the loading of a flat binary at its address in its
//! mode.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use vmm::boot::{Image, ImageSpec};
use vmm::host::parse_number;
use vmm::memory::{Gpa, GuestMemory};
use vmm::x86::Mode;
use vmm_fuzz::Script;

const PARTS: [&[u8]; 14] = [
    b"guest.bin",
    b"@",
    b":",
    b"/no/",
    b"0x1000",
    b"16",
    b"long",
    b"\xff",
    b" ",
    b"x",
    b"@5",
    b":32",
    b".",
    b"_",
];
const MODES: [(&str, Mode); 10] = [
    ("real", Mode::Real),
    ("16", Mode::Real),
    ("protected", Mode::Protected),
    ("32", Mode::Protected),
    ("Long", Mode::Long),
    ("64", Mode::Long),
    ("user64", Mode::User),
    ("user", Mode::User),
    ("RING3", Mode::User),
    ("lONG", Mode::Long),
];
const RAM: u64 = 0x1_0000;

/// Writes the number in one of the accepted forms.
fn address(script: &mut Script, number: u64) -> String {
    match script.below(5) {
        0 => format!("{number}"),
        1 => format!("{number:#x}"),
        2 => format!("0X{number:X}"),
        3 => format!("0x{:x}_{:x}", number >> 4, number & 15),
        _ => format!("00{number}_"),
    }
}

/// Checks that the parts of a specification make up its text.
fn check_parts(text: &[u8], spec: &ImageSpec) {
    let rest = text.strip_prefix(spec.file.as_bytes()).expect("the text begins with the file's name");
    let Ok(rest) = str::from_utf8(rest) else { panic!("a suffix that is not text") };
    let (address, mode) = match spec.mode {
        Some(_) => rest.rsplit_once(':').map(|(address, mode)| (address, Some(mode))).expect("a mode"),
        None => (rest, None),
    };
    assert_eq!(mode.and_then(|mode| mode.parse().ok()), spec.mode);
    if let Some(segment) = spec.segment {
        let parts = address
            .strip_prefix('@')
            .and_then(|place| place.split_once(':'))
            .expect("a segment and an offset");
        let [given, offset] = [parts.0, parts.1].map(|part| parse_number(part).expect("a number"));
        assert_eq!((given, spec.load_at), (segment.into(), Some(given * 16 + offset)));
        assert!(offset <= 0xffff && spec.mode.is_none_or(|_| mode.is_some()));
        return;
    }
    match spec.load_at {
        Some(number) => assert_eq!(address.strip_prefix('@').map(parse_number), Some(Ok(number))),
        None => assert_eq!(address, ""),
    }
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script::new(input);
    let count = script.below(5);
    let mut file: Vec<u8> = (0..count).flat_map(|_| script.pick(&PARTS)).copied().collect();
    let load_at =
        script.one_in(2).then(|| if script.one_in(2) { script.any() } else { script.below(2 * RAM) });
    let mode = script.one_in(2).then(|| script.pick(&MODES));
    let suffix = load_at.map(|number| format!("@{}", address(&mut script, number))).unwrap_or_default();
    file.extend(script.rest());
    let mode_suffix = mode.map(|(name, _)| format!(":{name}")).unwrap_or_default();
    let text = [&file[..], suffix.as_bytes(), mode_suffix.as_bytes()].concat();
    if Path::new(OsStr::from_bytes(&text)).exists() {
        return;
    }
    let spec = ImageSpec::parse(OsStr::from_bytes(&text));
    check_parts(&text, &spec);
    // Without an address and a mode, the file's name itself may end like one.
    if load_at.is_some() {
        assert_eq!((spec.file.as_bytes(), spec.load_at), (&file[..], load_at));
        assert_eq!(spec.mode, mode.map(|(_, mode)| mode));
    }
    let (start, mode) = (spec.load_at.unwrap_or(0), spec.mode.unwrap_or(Mode::Real));
    let image = Image::flat(vec![0x5a, 0xf4], mode, Gpa(start)).expect("two bytes");
    let memory = GuestMemory::new(&[(Gpa(0), RAM)]).expect("64 KiB");
    let mut there = [0; 2];
    if image.load(&memory, RAM).is_ok() {
        assert!(memory.read(Gpa(start), &mut there) && there == [0x5a, 0xf4]);
    } else {
        assert!(start > RAM - 2, "{start:#x} is in RAM");
    }
});
