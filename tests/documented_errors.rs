//! The errors of the command line and of images, as `docs/errors.md` lists them.
#![allow(clippy::unwrap_used)]

mod support;

use report::SavedProfile;
use std::fs::File;
use std::process::ExitCode;
use support::{Files, assert_error, elf, is_soft, machine_test, plain_test, ran};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        plain_test("unusable_images_are_status_116", bad_images),
        plain_test("usage_errors_match_their_documentation_without_kvm", || {
            table_of_errors(is_found_without_kvm);
        }),
        machine_test("run_errors_match_their_documentation", || {
            table_of_errors(|status| !is_found_without_kvm(status));
        }),
        machine_test("a_boot_sector_runs_at_its_address", boot_sector_runs),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn bad_images() {
    let files = Files::new();
    assert_error(&ran(&["/"]), 116, "not a regular file");
    let link = files.0.path().join("link");
    std::os::unix::fs::symlink(&link, &link).unwrap();
    assert_error(&ran(&[link.to_str().unwrap()]), 116, "cannot read");
    let sparse = files.write("sparse", b"");
    File::options().write(true).open(&sparse).unwrap().set_len(1 << 40).unwrap();
    assert_error(&ran(&[&sparse]), 116, "give a smaller file");
    assert_error(&ran(&["/dev/zero"]), 116, "not a regular file");
    assert_error(&ran(&[&files.write("empty", b"")]), 116, "empty: the image is empty");
    assert_error(&ran(&[&files.write("cut", b"\x7fELF\x02\x01")]), 116, "cut: the ELF file");
    let library = files.write("library", &library());
    assert_error(&ran(&["boot", &library]), 116, "library is not a Linux kernel for x86-64");
    assert_error(&ran(&[&files.write("32", b"\x7fELF\x01\x01")]), 116, "32: the ELF file cannot be read");
    assert_error(&ran(&[&format!("{}@0x10000", files.write("high", &[0xf4]))]), 116, "real-mode");
    let past = format!("{}@0xfffff:32", files.write("past", &[0x90, 0xf4]));
    assert_error(&ran(&[&past, "--mem", "1M"]), 116, "guest's memory is [0x0, 0x100000)");
    let covering = files.write("covering", &[0x90; 0x401]);
    assert_error(&ran(&[&covering, "--verify"]), 116, "at 0x400 to 0x407");
    let executable = files.write("elf", &elf(0x1000, &[0xf4]));
    let mode = "is an ELF64 file, which starts only in the modes long and user64, not in protected mode: leave out the mode,";
    for arguments in [&[executable.as_str(), "--mode", "32"][..], &[&format!("{executable}:32")]] {
        let refused = ran(arguments);
        assert_error(&refused, 110, mode);
        assert!(!refused.stderr.contains("address"), "{}", refused.stderr);
    }
    assert_error(&ran(&[&format!("{executable}@0")]), 110, "is an ELF file");
    // Reserved addresses: outside RAM, where the VMM has its tables, and in the device window.
    for (address, options, status, text) in [
        (0xffff_0000, &[][..], 116, "guest's memory"),
        (0xfffc_0000, &[], 116, "guest's memory"),
        (0x10_0000, &["--transport", "exit"], 110, "window is at 1 MiB"),
    ] {
        let file = files.write("reserved", &elf(address, &[0xf4]));
        assert_error(&ran(&[&[file.as_str()], options].concat()), status, text);
    }
}

/// Returns true for the statuses of errors on the command line and in files. They are reported before `/dev/kvm` is opened.
fn is_found_without_kvm(status: &str) -> bool {
    matches!(status, "110" | "116")
}

/// An ELF64 file of another type than that of an executable (`e_type`).
fn elf_of_type(kind: u8) -> Vec<u8> {
    let mut file = elf(0x1000, &[0xf4]);
    file[16] = kind;
    file
}

/// A shared library, which has no entry point.
fn library() -> Vec<u8> {
    let mut file = elf_of_type(3);
    file[24..32].fill(0);
    file
}

/// The header of an ELF32 executable for x86 whose program header is missing.
fn cut_elf32() -> Vec<u8> {
    let mut file = vec![0; 52];
    file[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    (file[16], file[18], file[20]) = (2, 3, 1);
    // The program headers begin after the header. There is one, of 32 bytes.
    (file[28], file[40], file[42], file[44]) = (52, 52, 32, 1);
    file
}

/// A boot sector that prints "!" and halts: mov al, '!'; out 0xe9, al; hlt
fn boot_sector() -> Vec<u8> {
    let mut sector = vec![0; 512];
    sector[..5].copy_from_slice(&[0xb0, b'!', 0xe6, 0xe9, 0xf4]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Firmware that halts: jmp 0xf000:0xff00 at the reset vector, and hlt there.
fn firmware() -> Vec<u8> {
    let mut rom = vec![0xff; 0x1_0000];
    rom[0xff00] = 0xf4;
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x00, 0xff, 0x00, 0xf0]);
    rom
}

/// The ROM of an expansion card of 512 bytes: its bytes add up to zero.
fn option_rom() -> Vec<u8> {
    let mut rom = vec![0; 512];
    rom[..4].copy_from_slice(&[0x55, 0xaa, 1, 0xcb]);
    rom[511] = rom.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    rom
}

/// A flat multiboot kernel: its header, and hlt.
fn multiboot() -> Vec<u8> {
    let header = [0x1bad_b002u32, 0, 0u32.wrapping_sub(0x1bad_b002)].map(u32::to_le_bytes);
    [header.as_flattened(), &[0xf4]].concat()
}

/// The same with these load addresses, and a length of 0x100 bytes.
fn multiboot_at(header: u32, entry: u32) -> Vec<u8> {
    const FLAGS: u32 = 1 << 16;
    let sum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(FLAGS);
    let words = [0x1bad_b002, FLAGS, sum, header, header, 0, 0, entry].map(u32::to_le_bytes);
    let mut file = words.as_flattened().to_vec();
    file.resize(0x100, 0xf4);
    file
}

/// An ELF64 file with a multiboot 2 header that requires graphics.
fn graphics() -> Vec<u8> {
    let sum = 0u32.wrapping_sub(0xe852_50d6).wrapping_sub(44);
    let words = [0xe852_50d6, 0, 44, sum, 5, 20, 1024, 768, 32, 0, 0];
    // The header begins at a multiple of 8, as the code of this file does.
    elf(0x10_0000, words.map(u32::to_le_bytes).as_flattened())
}

/// An ELF64 file at 1 MiB with another program header of this type, whose content is at the start of its segment.
fn elf_with_part(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut code = vec![0; 56];
    code.extend(content);
    let mut file = elf(0x10_0000, &code);
    // The second program header takes the first bytes of the segment.
    (file[56], file[120]) = (2, kind);
    file[128..136].copy_from_slice(&176u64.to_le_bytes());
    file[152..160].copy_from_slice(&(content.len() as u64).to_le_bytes());
    file
}

/// A note of PVH with an entry point and the size of it that the note claims.
fn pvh_note(entry: u32, size: u32) -> Vec<u8> {
    let words = [4, size, 18, u32::from_le_bytes(*b"Xen\0"), entry];
    words.map(u32::to_le_bytes).as_flattened().to_vec()
}

/// The files that `docs/errors.md` names, with their paths.
fn documented_files(files: &Files) -> Vec<(&'static str, String)> {
    let huge = files.write("huge", b"");
    File::options().write(true).open(&huge).unwrap().set_len(1 << 40).unwrap();
    let link = files.0.path().join("loop").to_str().unwrap().to_string();
    std::os::unix::fs::symlink(&link, &link).unwrap();
    let mut profile = SavedProfile { vcpus: vec![Default::default()], ..SavedProfile::default() };
    profile.program = "vmm".into();
    let mut saved = Vec::new();
    profile.write(&mut saved).unwrap();
    let later = String::from_utf8(saved.clone()).unwrap().replace("\"version\":1", "\"version\":2");
    let damaged = String::from_utf8(saved.clone()).unwrap().replace("\"elapsed_ns\":0", "\"elapsed_ns\":1.5");
    vec![
        ("PROFILE", files.write("profile", &saved)),
        ("CUT_PROFILE", files.write("cut-profile", &saved[..saved.len() / 2])),
        ("LATER", files.write("later", later.as_bytes())),
        ("DAMAGED", files.write("damaged", damaged.as_bytes())),
        ("CUT_TRACE", files.write("cut-trace", b"vmmtrace\x01\0\x30\0\x01\0\0\0\0\0\0\0")),
        ("NOWHERE", files.0.path().join("nowhere/file").to_str().unwrap().into()),
        ("FLAT", files.write("flat", &[0xf4])),
        ("EMPTY", files.write("empty", b"")),
        ("QCOW2", files.write("qcow2", b"QFI\xfb\0\0\0\x03")),
        ("GZIP", files.write("gzip", b"\x1f\x8b\x08")),
        ("FOLDER", files.0.path().to_str().unwrap().into()),
        ("HUGE", huge),
        ("LOOP", link),
        ("MISSING", files.0.path().join("missing").to_str().unwrap().into()),
        ("CUT", files.write("cut", b"\x7fELF")),
        ("ELF32", files.write("elf32", &cut_elf32())),
        ("ELF", files.write("elf", &elf(0x1000, &[0xf4]))),
        ("HIGH_ELF", files.write("high-elf", &elf(0x40_0000, &[0xf4]))),
        ("OBJECT", files.write("object", &elf_of_type(1))),
        ("LIBRARY", files.write("library", &library())),
        ("TEXT", files.write("text", b"a line of text\n")),
        ("SOURCE", files.write("source", b"bits 16\n    hlt\n")),
        ("FIRMWARE", files.write("firmware", &firmware())),
        ("OPTION_ROM", files.write("option-rom", &option_rom())),
        ("BOOT_SECTOR", files.write("boot-sector", &boot_sector())),
        ("LINUX_PROGRAM", files.write("linux-program", &elf_with_part(3, b"/lib64/ld-linux-x86-64.so.2\0"))),
        ("UPPER_HALF", files.write("upper-half", &elf(0xffff_ffff_8010_0000, &[0xf4]))),
        ("ZEROES", files.write("zeroes", &[0; 4096])),
        ("MULTIBOOT", files.write("multiboot", &multiboot())),
        ("MULTIBOOT_OUTSIDE", files.write("multiboot-outside", &multiboot_at(0x10_0000, 0))),
        ("MULTIBOOT_HIGH", files.write("multiboot-high", &multiboot_at(0xfffc_0000, 0xfffc_0000))),
        ("MULTIBOOT_GRAPHICS", files.write("multiboot-graphics", &graphics())),
        ("PVH", files.write("pvh", &elf_with_part(4, &pvh_note(0x10_0000, 4)))),
        ("PVH_OUTSIDE", files.write("pvh-outside", &elf_with_part(4, &pvh_note(0x10, 4)))),
        ("PVH_DAMAGED", files.write("pvh-damaged", &elf_with_part(4, &pvh_note(0x10, u32::MAX)))),
        // mov ax, 0xe41; int 0x10; hlt
        ("BIOS", files.write("bios", &[0xb8, 0x41, 0x0e, 0xcd, 0x10, 0xf4])),
        ("MISPLACED", files.write("misplaced", guest::find("real16-hello").unwrap().image)),
        ("COVERING", files.write("covering", &[0x90; 0x401])),
        // jmp $; and mov al, 0xfe; out 0x64, al
        ("KERNEL", files.write("kernel", &elf(0x10_0000, &[0xeb, 0xfe]))),
        ("REBOOTS", files.write("reboots", &elf(0x10_0000, &[0xb0, 0xfe, 0xe6, 0x64]))),
    ]
}

/// Runs the commands of `docs/errors.md` whose status passes the filter, and compares status and message.
fn table_of_errors(filter: fn(&str) -> bool) {
    let files = Files::new();
    let names = documented_files(&files);
    let mut rows = 0;
    for line in include_str!("../docs/errors.md").lines() {
        let Some(row) = line.strip_prefix("| `vmm ") else { continue };
        let cells: Vec<_> = row.trim_end_matches(" |").split(" | ").collect();
        let [command, status, message] = cells.as_slice() else { panic!("{line}") };
        let needs_kvm = ["boot ", "compare ", "bench "].iter().any(|name| command.starts_with(name));
        if !filter(status) || (needs_kvm && is_soft() && !is_found_without_kvm(status)) {
            continue;
        }
        let arguments: Vec<String> = command
            .trim_end_matches('`')
            .split(' ')
            .map(|word| {
                let (name, rest) = word.split_at(word.find('@').unwrap_or(word.len()));
                let file = names.iter().find(|(known, _)| *known == name);
                file.map_or(word.to_string(), |(_, path)| format!("{path}{rest}"))
            })
            .collect();
        let ran = ran(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let reset = ran.stderr.contains("this host resets a CPU");
        assert_eq!(ran.status.to_string(), *status, "{line}\n{}", ran.stderr);
        let quoted = message.strip_prefix('`').and_then(|text| text.strip_suffix('`'));
        let message = quoted.unwrap_or(message);
        assert!(reset || ran.stderr.contains(message), "{line}\n{}", ran.stderr);
        rows += 1;
    }
    assert!(rows > 30, "{rows} rows");
}

fn boot_sector_runs() {
    let files = Files::new();
    let sector = files.write("sector", &boot_sector());
    let ran = ran(&[&format!("{sector}@0x7c00")]);
    assert_eq!((ran.status, ran.text().as_str()), (0, "!"), "{}", ran.stderr);
}
