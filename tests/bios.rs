//! Boot disks on a machine with a BIOS, faults of real-mode guests, and ROMs.
#![allow(clippy::unwrap_used)]

#[path = "bios/drives.rs"]
mod drives;
mod support;

use libtest_mimic::Trial;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use support::{Files, Ran, assert_error, each_on_both, on_both, plain_test, ran, run, vmm};
use vmm::boot::Image;
use vmm::exit::Stop;
use vmm::machine::{MachineKind, Processor};
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Machine, Output};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests: Vec<Trial> = each_on_both(&[
        ("a_boot_sector_without_a_program_ends", idle as fn()),
        ("a_jump_to_itself_in_protected_mode_ends", idle_in_protected_mode),
        ("a_missing_halt_is_told", runs_on),
        ("a_read_past_the_file_is_told_once", reads_on),
        ("the_clock_ticks", ticks),
        ("a_wait_takes_its_time", waits),
        ("a_fault_is_told_with_its_place", fault),
        ("a_call_without_a_bios_is_told", no_bios),
        ("a_missing_function_is_named_once", missing),
        ("a_restart_without_end_is_ended", restarts),
        ("the_guest_may_overwrite_the_bios", overwritten),
        ("a_write_stays_in_memory", drives::written),
        ("int_13h_and_ata_have_the_same_disks", drives::same_disks),
        ("a_disk_with_a_multiboot_kernel_near_its_start_is_a_disk", drives::disk_with_kernel),
        ("a_disk_beside_a_diskette_is_the_first_hard_disk", drives::beside_diskette),
        ("a_write_to_a_disk_that_is_read_only_fails", drives::read_only),
        ("a_wait_for_a_key_ends_with_the_input", no_key),
        ("keys_interrupt_the_guest_if_the_keyboard_gets_the_input", keyboard),
        ("the_serial_port_gets_the_input_if_the_user_asks", serial_input),
        ("the_wait_for_a_key_of_the_keyboard_has_a_time_limit", no_typed_key),
        ("a_stack_at_the_end_of_its_segment_wraps", wraps),
        ("a_jump_to_the_reset_vector_ends_the_machine", reset),
        ("a_disk_without_a_signature_can_be_started", unsigned),
        ("a_rom_starts_at_its_reset_vector", rom),
        ("firmware_reads_the_size_of_memory_from_fw_cfg", fw_cfg),
    ]);
    tests.push(plain_test("what_a_bios_cannot_do_is_refused", refused));
    tests.push(plain_test("the_library_runs_a_boot_disk_once", library));
    if let Some(disks) = disks() {
        let (boot, game) = (format!("{disks}/boot.img"), format!("{disks}/game.img"));
        tests.extend(on_both("a_boot_disk_loads_its_sectors", move || boot_disk(&boot)));
        tests.extend(on_both("a_game_waits_for_keys", move || plays(&game)));
    } else {
        println!("without the disks of examples/kernels: gcc of this host makes no 32-bit code");
    }
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// Builds the disks of `examples/kernels`. Returns their folder; `None` if the host's gcc is not for x86.
fn disks() -> Option<&'static str> {
    let flags = ["-m32", "-nostdlib", "-ffreestanding", "-x", "c", "-E", "/dev/null", "-o", "/dev/null"];
    let gcc = Command::new("gcc").args(flags).stderr(Stdio::null()).status();
    if !gcc.is_ok_and(|status| status.success()) {
        return None;
    }
    let folder = Box::leak(Box::new(tempfile::tempdir().unwrap()));
    let folder = folder.path().to_str().unwrap();
    let sources = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/kernels");
    let mut make = Command::new("make");
    make.arg("-s").arg("-C").arg(sources).arg(format!("OUT={folder}"));
    make.args(["boot.img", "game.img"].map(|disk| format!("{folder}/{disk}")));
    let ran = run(make.env_remove("MAKEFLAGS").env_remove("CFLAGS").stdout(Stdio::piped()));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    Some(folder)
}

/// A boot sector with this code.
fn sector(code: &[u8]) -> Vec<u8> {
    let mut sector = code.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// Runs a boot sector with this code.
fn boots(code: &[u8], arguments: &[&str]) -> Ran {
    let files = Files::new();
    let path = files.write("disk.img", &sector(code));
    ran(&[&[&*path], arguments].concat())
}

/// Checks how a guest has ended.
fn assert_ended(ran: &Ran, status: i32, text: &str) {
    assert!(ran.status == status && ran.stderr.contains(text), "{}: {}", ran.status, ran.stderr);
}

/// `out 0xf4, al`
const EXIT: [u8; 2] = [0xe6, 0xf4];

fn boot_disk(path: &str) {
    let ran = ran(&[path]);
    let text = "hello from the boot sector\r\nhello from the second sector\r\nmemory from 00000000\r\n\
                memory from 00100000\r\nhello from the third sector\r\n";
    assert_eq!((ran.status, &*ran.text()), (42, text), "{}", ran.stderr);
    assert!(ran.stderr.contains("139 exits: 139 PIO out"), "{}", ran.stderr);
}

fn plays(path: &str) {
    let mut command = vmm(&[path]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"abxde").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        text.starts_with("type the letter\r\na? right\r\nb? right\r\nc? wrong\r\nd? right\r\n"),
        "{text}"
    );
}

fn idle() {
    // jmp $; and sti, hlt, jmp to the hlt
    for code in [&[0xeb, 0xfe][..], &[0xfb, 0xf4, 0xeb, 0xfd], &[0xfa, 0xf4]] {
        let ran = boots(&[&[0xb8, b'x', 0x0e, 0xcd, 0x10][..], code].concat(), &[]);
        assert_eq!((ran.status, &*ran.text()), (0, "x"), "{code:x?}: {}", ran.stderr);
        assert!(ran.stderr.contains("halted"), "{}", ran.stderr);
    }
}

/// To protected mode with a GDT of its own, as boot sectors do it, and then a jump to itself.
fn idle_in_protected_mode() {
    let code = [
        0xfa, // cli
        0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
        0x0f, 0x01, 0x16, 0x28, 0x7c, // lgdt [0x7c28]
        0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, // mov eax, cr0; or al, 1; mov cr0, eax
        0xea, 0x17, 0x7c, 0x08, 0x00, // jmp 8:0x7c17
        // Output from protected mode, so that the run has a visible effect.
        0xb0, b'x', 0xe6, 0xe9, 0xeb, 0xfe, // mov al, 'x'; out 0xe9, al; jmp $
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // up to 0x7c28
        15, 0, 0x30, 0x7c, 0, 0, 0, 0, // the GDT: 16 bytes at 0x7c30
        0, 0, 0, 0, 0, 0, 0, 0, // no descriptor
        0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0, // code
    ];
    let ran = boots(&code, &[]);
    assert_eq!((ran.status, &*ran.text()), (0, "x"), "{}", ran.stderr);
    assert!(ran.stderr.contains("halted"), "{}", ran.stderr);
}

/// A boot sector that reads the sector after it, which its file does not have, twice.
fn reads_on() {
    let read = [
        0xb8, 0x01, 0x02, 0xbb, 0x00, 0x7e, // mov ax, 0x201; mov bx, 0x7e00
        0xb9, 0x02, 0x00, 0xba, 0x80, 0x00, 0xcd, 0x13, // mov cx, 2; mov dx, 0x80; int 0x13
    ];
    let ran = boots(&[&read[..], &read, &[0xb0, 7, 0xe6, 0xf4]].concat(), &[]);
    assert_eq!(ran.status, 7, "{}", ran.stderr);
    let text =
        "the guest reads sector 1 of its boot disk (the first is 0), and the file ends after 512 bytes";
    assert_eq!(ran.stderr.matches(text).count(), 1, "{}", ran.stderr);
}

/// A boot sector without a halt at its end.
fn runs_on() {
    let ran = boots(&[0xb8, b'x', 0x0e, 0xcd, 0x10], &[]);
    assert_eq!((ran.status, &*ran.text()), (112, "x"), "{}", ran.stderr);
    let text = "probably the guest ran past the end of its code (is the last hlt missing?), through zeroed memory, to the end of \
                its segment";
    assert!(ran.stderr.contains(text), "{}", ran.stderr);
}

fn ticks() {
    // Polls the count of ticks until it has changed three times.
    let code = [
        0x31, 0xdb, // xor bx, bx
        0xa1, 0x6c, 0x04, // 1: mov ax, [0x46c]
        0x3b, 0x06, 0x6c, 0x04, // 2: cmp ax, [0x46c]
        0x74, 0xfa, // je 2b
        0x43, // inc bx
        0x83, 0xfb, 0x03, // cmp bx, 3
        0x72, 0xf1, // jb 1b
        0x88, 0xd8, // mov al, bl
        0xe6, 0xf4,
    ];
    let ran = boots(&code, &[]);
    assert_eq!(ran.status, 3, "{}", ran.stderr);
}

fn waits() {
    // Int 15h, function 86h: 0x10000 microseconds. Then the sum of CF and the number of ticks is not zero.
    let code = [
        0x8b, 0x1e, 0x6c, 0x04, // mov bx, [0x46c]
        0xb9, 0x02, 0x00, 0x31, 0xd2, 0xb4, 0x86, 0xcd, 0x15, // cx = 2; dx = 0; ah = 0x86; int 0x15
        0x72, 0x09, // jc
        0xa1, 0x6c, 0x04, 0x29, 0xd8, // mov ax, [0x46c]; sub ax, bx
        0x74, 0x02, // jz
        0xb0, 0x05, // mov al, 5
        0xe6, 0xf4,
    ];
    let ran = boots(&code, &[]);
    assert_eq!(ran.status, 5, "{}", ran.stderr);
}

/// `xor cx, cx; div cx`
const DIVIDES: [u8; 4] = [0x31, 0xc9, 0xf7, 0xf1];

fn fault() {
    let on_disk = boots(&DIVIDES, &[]);
    assert_ended(&on_disk, 112, "#DE (a division by zero, or a quotient that does not fit) at 0000:7c02");
    assert_ended(
        &boots(&[0x0f, 0x0b], &[]),
        112,
        "#UD (an instruction that this processor does not have) at 0000:7c00",
    );
    // The same without a BIOS.
    let files = Files::new();
    let path = files.write("flat", &DIVIDES);
    for (place, text) in [("0x1000", "at 0000:1002, for which"), ("0x1000:0x20", "at 1000:0022, for which")] {
        let ran = ran(&[&format!("{path}@{place}"), "--mem", "2M"]);
        assert_ended(&ran, 112, text);
        assert!(ran.stderr.contains("f7 f1  div cx"), "{}", ran.stderr);
    }
    // A handler of the guest's own gets the exception. mov word [0], 0x100b; mov word [2], 0; the division; ... hlt
    let own = [0xc7, 6, 0, 0, 0x10, 0x10, 0xc7, 6, 2, 0, 0, 0, 0x31, 0xc9, 0xf7, 0xf1, 0xb0, 7, 0xe6, 0xf4];
    let path = files.write("own", &own);
    assert_eq!(ran(&[&format!("{path}@0x1000")]).status, 7);
}

fn no_bios() {
    let files = Files::new();
    // mov ax, 0xe41; int 0x10; hlt
    let path = files.write("flat", &[0xb8, 0x41, 0x0e, 0xcd, 0x10, 0xf4]);
    let ran = ran(&[&format!("{path}@0x1000")]);
    let text =
        "it called int 0x10, which has no handler, because this machine has no BIOS (--machine bios has one";
    assert_ended(&ran, 112, text);
    assert!(ran.stderr.contains("1 exit: 1 HLT"), "{}", ran.stderr);
}

fn missing() {
    // Twice int 13h, function 55h; the exit code is CF.
    let code = [
        0xb4, 0x55, 0xcd, 0x13, 0xb4, 0x55, 0xcd, 0x13, // mov ah, 0x55; int 0x13
        0xb0, 0x00, 0x14, 0x00, // mov al, 0; adc al, 0
        0xe6, 0xf4,
    ];
    let ran = boots(&code, &[]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    let named = "int 0x13, ah=0x55: this BIOS lacks it";
    assert_eq!(ran.stderr.matches(named).count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("before 0000:7c04"), "{}", ran.stderr);
}

fn restarts() {
    let ran = boots(&[0xcd, 0x19], &["--timeout", "0.3"]);
    assert_ended(&ran, 114, "timeout");
}

fn overwritten() {
    // Fills the stubs with hlt, and calls int 10h.
    let code = [
        0xb8, 0x00, 0xf0, 0x8e, 0xc0, 0xbf, 0x00, 0x40, 0xb9, 0x00, 0x10, 0xb0, 0xf4, 0xf3, 0xaa, 0xcd, 0x10,
    ];
    assert_eq!(boots(&code, &[]).status, 0);
    // Clears all memory below the boot sector, and divides: the vector leads to 0000:0000.
    let code = [0x31, 0xc0, 0x8e, 0xc0, 0x31, 0xff, 0xb9, 0x00, 0x7c, 0xf3, 0xaa, 0xf7, 0xf1];
    let ran = boots(&code, &["--timeout", "0.3"]);
    assert!([112, 114].contains(&ran.status), "{}: {}", ran.status, ran.stderr);
}

fn no_key() {
    let files = Files::new();
    let path = files.write("disk.img", &sector(&[0xb4, 0x00, 0xcd, 0x16, 0xeb, 0xfa]));
    let ran = run(vmm(&[&path]).stdin(Stdio::null()).stdout(Stdio::piped()));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("the guest waits for a key, and its input has ended"), "{}", ran.stderr);
}

/// Runs a boot sector with this code, and with this input in a pipe.
fn typed(code: &[u8], input: &[u8], arguments: &[&str]) -> (i32, String) {
    let files = Files::new();
    let path = files.write("disk.img", &sector(code));
    let mut command = vmm(&[&[&*path], arguments].concat());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn keyboard() {
    // Sets a handler of its own for int 9, at 0000:7c20, and waits. The exit code is the scan code.
    let mut code =
        vec![0xc7, 0x06, 0x24, 0x00, 0x20, 0x7c, 0xc7, 0x06, 0x26, 0x00, 0x00, 0x00, 0xfb, 0xf4, 0xeb, 0xfd];
    code.resize(0x20, 0x90);
    code.extend([0xe4, 0x60, 0xe6, 0xf4]);
    let (status, text) = typed(&code, b"k", &["--console", "keyboard"]);
    assert_eq!(status, 0x25, "{text}");
    // The BIOS gets the keys of the keyboard, too.
    let (status, text) = typed(&[0xb4, 0, 0xcd, 0x16, 0xe6, 0xf4], b"1", &["--console", "keyboard"]);
    assert_eq!(status, i32::from(b'1'), "{text}");
}

fn serial_input() {
    // mov dx, 0x3fd; in al, dx; test al, 1; jz; mov dl, 0xf8; in al, dx
    let code = [0xba, 0xfd, 3, 0xec, 0xa8, 1, 0x74, 0xfb, 0xb2, 0xf8, 0xec, 0xe6, 0xf4];
    let (status, text) = typed(&code, b"1", &["--console", "serial"]);
    assert_eq!(status, i32::from(b'1'), "{text}");
}

fn no_typed_key() {
    let (status, text) =
        typed(&[0xb4, 0, 0xcd, 0x16, 0xe6, 0xf4], b"", &["--console", "keyboard", "--timeout", "0.3"]);
    assert_eq!(status, 114, "{text}");
}

fn wraps() {
    // mov sp, 2: the frame of int 12h wraps around the end of the segment. The exit code is the memory in KiB, divided by 16.
    let code = [0xbc, 0x02, 0x00, 0xcd, 0x12, 0xc1, 0xe8, 0x04, 0xe6, 0xf4];
    assert_eq!(boots(&code, &[]).status, 639 / 16);
}

fn reset() {
    // jmp 0xffff:0
    let ran = boots(&[0xea, 0x00, 0x00, 0xff, 0xff], &[]);
    assert_ended(&ran, 119, "rebooted");
}

fn unsigned() {
    let files = Files::new();
    let path = files.write("disk.img", &[&[0xb8, b'y', 0x0e, 0xcd, 0x10, 0xb0, 0x03][..], &EXIT].concat());
    let ran = ran(&[&path, "--machine", "bios"]);
    assert_eq!((ran.status, &*ran.text()), (3, "y"), "{}", ran.stderr);
}

/// Runs a ROM of 64 KiB with this code.
fn runs_rom(code: &[u8], arguments: &[&str]) -> Ran {
    let files = Files::new();
    let mut rom = vec![0xff; 64 << 10];
    // At the reset vector: jmp 0xf000:0x100, which is in the copy below 1 MiB.
    rom.splice(0xfff0..0xfff5, [0xea, 0x00, 0x01, 0x00, 0xf0]);
    rom.splice(0x100..0x100 + code.len(), code.iter().copied());
    let path = files.write("rom.bin", &rom);
    ran(&[&["--rom", &path], arguments].concat())
}

fn rom() {
    // mov al, 'R'; out 0xe9, al; mov al, 9; out 0xf4, al
    let ran = runs_rom(&[0xb0, b'R', 0xe6, 0xe9, 0xb0, 9, 0xe6, 0xf4], &[]);
    assert_eq!((ran.status, &*ran.text()), (9, "R"), "{}", ran.stderr);
}

fn fw_cfg() {
    // mov dx, 0x510; mov ax, 3; out dx, ax; inc dx; the fourth byte of the size in bytes: 4 times in al, dx; out 0xf4, al
    let code = [0xba, 0x10, 0x05, 0xb8, 3, 0, 0xef, 0x42, 0xec, 0xec, 0xec, 0xec, 0xe6, 0xf4];
    let ran = runs_rom(&code, &["--mem", "64M"]);
    assert_eq!(ran.status, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("fw_cfg data"), "{}", ran.stderr);
}

fn library() {
    let code = [&[0xb8, b'x', 0x0e, 0xcd, 0x10, 0xb0, 7][..], &EXIT].concat();
    let image = Image::disk(sector(&code)).unwrap();
    let (output, text) = Output::captured();
    let builder = Machine::builder(image.clone()).processor(Some(Processor::Soft)).output(output);
    let mut machine = builder.build().unwrap();
    let report = machine.run().unwrap();
    assert!(matches!(report.stop, Stop::Exited(7)), "{report:?}");
    assert_eq!(text.bytes(), b"x");
    assert!(machine.reset().is_err(), "a classic PC runs once");
    let flat = Image::flat(&[0xf4][..], Mode::Real, Gpa(0x1000)).unwrap();
    let mut other = Machine::builder(flat).processor(Some(Processor::Soft)).build().unwrap();
    let refused = other.load(image.clone()).unwrap_err().to_string();
    assert!(refused.contains("has a machine of its own"), "{refused}");
    let bare = Machine::builder(image).machine(Some(MachineKind::Bare)).build();
    assert!(bare.unwrap_err().to_string().contains("a boot disk needs a BIOS"));
}

fn refused() {
    let files = Files::new();
    let disk = files.write("disk.img", &sector(&[0xf4]));
    let flat = files.write("flat", &[0xf4]);
    let (large, short_disk) = (files.write("a", &[0; 4096]), files.write("b", &[0; 512]));
    let short = files.write("short", &[0x90; 1000]);
    let empty = files.write("empty", &[0xff; 64 << 10]);
    for (arguments, status, text) in [
        (&[&*disk, "--cpus", "2"][..], 110, "a machine with a BIOS has one vCPU"),
        (&[&*disk, "--transport", "exit"], 110, "SIMVIRTIO"),
        (&[&*disk, "--machine", "bare"], 116, "a boot sector, which runs only at 0x7c00"),
        (&[&*disk, "--machine", "pc"], 116, "a boot sector, which runs only at 0x7c00"),
        (&[&format!("{flat}@0x1000"), "--machine", "bios"], 110, "starts from a boot disk"),
        (
            &[&*disk, "--disk", &large, "--disk", &short_disk],
            110,
            "a classic PC has at most 2 disks, not 3, with the boot disk",
        ),
        (&[&format!("{flat}@0x1000"), "--console", "keyboard"], 110, "--console is for a classic PC"),
        (&["--rom", &short], 116, "it has 1000 bytes, and a ROM has 64 KiB to 16 MiB"),
        (&["--rom", &empty], 116, "no code at its reset vector"),
    ] {
        assert_error(&ran(arguments), status, text);
    }
    assert_ended(&ran(&["--rom", &short, &flat]), 110, "cannot be used with");
}
