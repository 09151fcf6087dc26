//! `vmm boot` with kernels of a few instructions, which any KVM runs: their parameters, and their ends. The console is
//! tested in tests/console.rs, and Linux in tests/linux.rs.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Child, ExitCode};
use std::time::{Duration, Instant};
use support::kernels::{
    ECHO, PAUSE, POWER_OFF, PRINT_COMMAND_LINE, RESET, assert_ended, boot, interactive, kernel, print,
};
use support::payloads::{LOOP, UNDEFINED};
use support::{Files, assert_error, elf, kvm_test, plain_test, ran, wait};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("a_kernel_gets_its_command_line_and_powers_off", command_line),
        kvm_test("a_kernel_is_recognised_by_its_content", bare_kernel),
        kvm_test("a_bzimage_starts_in_long_mode", bzimage),
        kvm_test("a_bzimage_without_a_64_bit_entry_starts_in_protected_mode", bzimage_32),
        kvm_test("boot_params_have_the_address_of_the_initrd", initrd),
        kvm_test("a_silent_end_names_the_console_that_the_kernel_needs", silent),
        kvm_test("a_disk_may_look_like_another_format_if_it_is_said_to_be_raw", raw_disk),
        kvm_test("every_end_has_its_status_and_its_text", ends),
        kvm_test("a_panic_is_distinguished_from_a_reboot", panic),
        kvm_test("a_kernel_that_hangs_ends_at_its_deadline", hangs),
        kvm_test("all_vcpus_end_with_the_first", several),
        kvm_test("the_timeline_has_the_marks_and_exits_of_the_boot", timeline),
        kvm_test("a_machine_has_at_most_sixteen_disks", disks),
        kvm_test("reading_a_virtio_register_makes_no_exit", registers),
        kvm_test("two_machines_cannot_write_the_same_image", one_image),
        kvm_test("an_interrupt_for_a_stopped_vcpu_has_no_effect", unstarted),
        kvm_test("the_legacy_interrupt_controllers_are_masked", masked),
        plain_test("wrong_files_and_options_are_refused", refusals),
        plain_test("a_disk_that_is_given_twice_is_refused", same_disk),
        plain_test("a_file_that_is_given_twice_is_refused", same_file),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// The message does not blame another machine for the lock of the first `--disk`.
fn same_disk() {
    let files = Files::new();
    let kernel = kernel(&files, &[POWER_OFF]);
    let disk = files.write("disk", &[0; 512]);
    let link = format!("{disk}-link");
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    let read_only = format!("{disk},ro");
    for second in [&disk, &link, &read_only] {
        assert_error(
            &ran(&["boot", &kernel, "--disk", &disk, "--disk", second]),
            110,
            "is given twice: give it once",
        );
    }
    let option = ran(&["boot", &kernel, "--disk", &format!("{disk},rw")]);
    assert_error(&option, 110, "only ,ro and ,raw may follow the name");
}

fn same_file() {
    let files = Files::new();
    let kernel = kernel(&files, &[POWER_OFF]);
    let initrd = files.write("initrd", &[1; 512]);
    let read_only = format!("{initrd},ro");
    for (arguments, text) in [
        (["--initrd", &kernel, "--cpus", "1"], "kernel is given twice: as the kernel and with --initrd"),
        (["--initrd", &initrd, "--initrd", &initrd], "initrd is given twice: with --initrd: give it once"),
        (["--initrd", &initrd, "--disk", &initrd], "given twice: once as a disk that the guest may write"),
        (["--disk", &kernel, "--cpus", "1"], "given twice: once as a disk that the guest may write"),
    ] {
        assert_error(&ran(&[&["boot", kernel.as_str()], &arguments[..]].concat()), 110, text);
    }
    // The refusal of this comes later: both may read it.
    let both = ran(&["boot", &kernel, "--initrd", &initrd, "--disk", &read_only, "--mem", "1M"]);
    assert_error(&both, 110, "--mem must be at least 8M");
}

/// A raw disk whose first bytes are those of qcow2.
fn raw_disk() {
    let files = Files::new();
    let bytes = [&b"QFI\xfb\0\0\0\x03"[..], &[0; 504]].concat();
    let disk = files.write("disk", &bytes);
    let refused = boot(&[POWER_OFF], &["--disk", &disk]);
    assert_error(&refused, 110, "qemu-img convert -f qcow2 -O raw FILE NEW), or give FILE,raw");
    for options in [",raw", ",ro,raw", ",raw,ro"] {
        assert_ended(&boot(&[POWER_OFF], &["--disk", &format!("{disk}{options}")]), 0, "powered off");
    }
    assert_eq!(fs::read(&disk).unwrap(), bytes);
}

fn silent() {
    let virtio = ["--console", "virtio"];
    for (arguments, text) in [
        (
            &virtio[..],
            "; it printed nothing, and may have panicked before the driver of hvc0 started: leave out",
        ),
        (&["--cmdline", "console=hvc0"], "has only the console hvc0: give --console virtio"),
        (&["--cmdline", "quiet"], "its command line has no console: give it console=ttyS0"),
        (&[], "it printed nothing: earlyprintk=ttyS0 in --cmdline shows"),
    ] {
        let ran = boot(&[RESET, LOOP], arguments);
        assert_ended(&ran, 119, "rebooted, which ends the machine");
        assert_ended(&ran, 119, text);
    }
    let ran = boot(&[&print("x"), RESET, LOOP], &virtio);
    assert!(!ran.stderr.contains("it printed nothing"), "{}", ran.stderr);
    assert!(!boot(&[POWER_OFF], &virtio).stderr.contains("it printed nothing"));
}

fn command_line() {
    let ran = boot(&[PRINT_COMMAND_LINE, POWER_OFF], &[]);
    assert_ended(&ran, 0, "powered off");
    assert_eq!(ran.text(), "console=ttyS0 panic=-1 reboot=k pci=off");
    let ran = boot(&[PRINT_COMMAND_LINE, POWER_OFF], &["--console", "virtio"]);
    assert_eq!(ran.text(), "console=hvc0 panic=-1 reboot=k pci=off");
    let ran = boot(&[PRINT_COMMAND_LINE, POWER_OFF], &["--cmdline", "a \"b c\" é"]);
    assert_eq!(ran.text(), "a \"b c\" é");
}

fn bare_kernel() {
    let files = Files::new();
    let mut linux = elf(0x10_0000, &[PRINT_COMMAND_LINE, POWER_OFF, b"Linux version 0"].concat());
    let plain = files.write("plain", &linux);
    // A virtual address of the kernel code model.
    linux[80..88].copy_from_slice(&0xffff_ffff_8010_0000u64.to_le_bytes());
    let linux = files.write("linux", &linux);
    let ran = ran(&[&linux, "--cmdline", "hello", "--timeout", "30"]);
    assert_ended(&ran, 0, "powered off");
    assert_eq!(ran.text(), "hello");
    // A kernel that is the input of another guest is not booted.
    let ran = support::ran(&["real16-42", "--input", &linux]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let ran = support::ran(&[&plain, "--timeout", "0.2"]);
    assert!(!ran.stderr.contains("boot timeline"), "this is an ELF guest: {}", ran.stderr);
}

/// Returns a bzImage with four sectors of setup and this code at its 64-bit entry point.
fn make_bzimage(code: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 0xa00 + 0x200];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x236, &[1]);
    put(0x260, &0x1000u32.to_le_bytes());
    bytes.extend(code);
    let paragraphs = u32::try_from((bytes.len() - 0xa00).div_ceil(16)).unwrap();
    bytes[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
    bytes
}

fn bzimage() {
    let files = Files::new();
    let image = files.write("bzImage", &make_bzimage(&[PRINT_COMMAND_LINE, POWER_OFF].concat()));
    let ran = ran(&[&image, "--cmdline", "hello", "--timeout", "30"]);
    assert_ended(&ran, 0, "powered off");
    assert_eq!(ran.text(), "hello");
}

/// In protected mode, prints "32" if the selectors and the registers are those of the boot protocol, and then the
/// command line: mov eax, cs; cmp eax, 0x10; jne end; mov eax, ss; cmp eax, 0x18; jne end; mov eax, ds; cmp eax, 0x18; jne end;
/// mov eax, ebp; or eax, edi; or eax, ebx; jne end; mov eax, cr0; test eax, 0x80000000;
/// jnz end; cmp dword [esi+0x202], "HdrS"; jne end; mov dx, 0x3f8; mov al, '3'; out dx, al; mov al, '2'; out dx, al; end:
#[rustfmt::skip]
const CHECK_32: &[u8] = &[
    0x8c, 0xc8, 0x83, 0xf8, 0x10, 0x75, 57, // cs
    0x8c, 0xd0, 0x83, 0xf8, 0x18, 0x75, 50, // ss
    0x8c, 0xd8, 0x83, 0xf8, 0x18, 0x75, 43, // ds
    0x89, 0xe8, 0x09, 0xf8, 0x09, 0xd8, 0x75, 35, // ebp, edi, ebx
    0x0f, 0x20, 0xc0, 0xa9, 0, 0, 0, 0x80, 0x75, 25, // paging
    0x81, 0xbe, 0x02, 0x02, 0, 0, b'H', b'd', b'r', b'S', 0x75, 13, // boot_params
    0x66, 0xba, 0xf8, 0x03, 0xb0, b'3', 0xee, 0xb0, b'2', 0xee, 0x66, 0x90, 0x90,
];

/// The code works in both modes, because it has no REX prefix and no absolute address.
fn bzimage_32() {
    let files = Files::new();
    let code = [CHECK_32, PRINT_COMMAND_LINE, POWER_OFF].concat();
    // A kernel for i386: the code begins at the load address, and xloadflags has no XLF_KERNEL_64.
    let mut image = make_bzimage(&[]);
    image.truncate(0xa00);
    image.extend(&code);
    image.resize(0xa00 + 0x200, 0);
    image[0x236] = 0;
    let kernel = files.write("i386", &image);
    // Boot protocol 2.11, which has no xloadflags.
    image[0x206] = 0x0b;
    let old = files.write("old", &image);
    for kernel in [kernel, old] {
        let ran = ran(&["boot", &kernel, "--cmdline", "hello", "--timeout", "30"]);
        assert_ended(&ran, 0, "powered off");
        assert_eq!(ran.text(), "32hello");
    }
}

fn initrd() {
    let files = Files::new();
    let initrd = files.write("initrd", b"from the initrd\0");
    // mov esi, [rsi+0x218] instead of mov esi, [rsi+0x228], the pointer to the command line
    let mut print = PRINT_COMMAND_LINE.to_vec();
    print[2] = 0x18;
    let ran = boot(&[&print, POWER_OFF], &["--initrd", &initrd]);
    assert_eq!((ran.status, ran.text().as_str()), (0, "from the initrd"), "{}", ran.stderr);
    // The archives follow each other at multiples of four bytes.
    // The control character keeps the file from being text, which is refused.
    let first = files.write("first", b"seven\x08b");
    let second = files.write("second", b"ytes\0");
    let print = print.iter().chain(POWER_OFF).copied().collect::<Vec<_>>();
    let ran = boot(&[&print], &["--initrd", &first, "--initrd", &second]);
    assert_eq!((ran.status, ran.text().as_str()), (0, "seven\x08b"), "{}", ran.stderr);
    let first = files.write("first", b"eight\x08by");
    let ran = boot(&[&print], &["--initrd", &first, "--initrd", &second]);
    assert_eq!((ran.status, ran.text().as_str()), (0, "eight\x08byytes"), "{}", ran.stderr);
}

/// Uses the reset register of the ACPI tables: mov dx, 0x602; mov al, 1; out dx, al
const ACPI_RESET: &[u8] = &[0x66, 0xba, 0x02, 0x06, 0xb0, 1, 0xee];
/// mov al, 7; out 0xf4, al
const EXIT_7: &[u8] = &[0xb0, 7, 0xe6, 0xf4];

fn ends() {
    assert_ended(&boot(&[POWER_OFF], &[]), 0, "powered off");
    assert_ended(&boot(&[RESET, LOOP], &[]), 119, "rebooted");
    assert_ended(&boot(&[ACPI_RESET, LOOP], &[]), 119, "rebooted");
    assert_ended(&boot(&[EXIT_7], &[]), 7, "exited with code 7");
    // The guest has no interrupt table.
    assert_ended(&boot(&[UNDEFINED], &[]), 112, "triple fault");
    let quiet = boot(&[POWER_OFF], &["-q"]);
    assert_eq!(quiet.stderr.lines().count(), 1, "{}", quiet.stderr);
}

fn panic() {
    let text = print("[    1.0] Kernel panic - not syncing: out of \x1b[31mtea\r\n");
    let ran = boot(&[&text, RESET], &[]);
    assert_ended(&ran, 112, "the kernel panicked: out of \\u{1b}[31mtea");
    // A panic without a reset is also reported.
    let ran = boot(&[&text, LOOP], &["--timeout", "1"]);
    assert_ended(&ran, 114, "its kernel panicked: out of");
    let ran = boot(&[&print("a Kernel panic in the middle of a line\n"), RESET], &[]);
    assert_ended(&ran, 119, "rebooted");
}

/// again: hlt; jmp again
const HALT_FOR_EVER: &[u8] = &[0xf4, 0xeb, 0xfd];
/// cli; again: hlt; jmp again
const HALT_WITHOUT_INTERRUPTS: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];

fn hangs() {
    for code in [HALT_FOR_EVER, HALT_WITHOUT_INTERRUPTS, LOOP] {
        let started = Instant::now();
        let ran = boot(&[code], &["--timeout", "0.5"]);
        assert_ended(&ran, 114, "timeout");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}

fn several() {
    let ran = boot(&[&print("one\n"), POWER_OFF], &["--cpus", "4"]);
    assert_ended(&ran, 0, "powered off");
    assert_eq!(ran.text(), "one\n", "only the first vCPU runs");
    assert!(ran.stderr.contains("vCPU 3: stopped with the others"), "{}", ran.stderr);
    assert_error(&boot(&[POWER_OFF], &["--cpus", "33"]), 110, "--cpus must be 1 to 32, not ");
}

/// Three boot marks with two values, text between them, and the marker.
fn timeline() {
    // mov al, code; out 0x80, al
    let mark = |code| [0xb0, code, 0xe6, 0x80];
    let text = (print("a"), print("userland!\n"));
    let code: &[&[u8]] = &[&mark(1), &mark(1), &text.0, &mark(2), &text.1, POWER_OFF];
    let ran = boot(code, &["--marker", "userland"]);
    assert_ended(&ran, 0, "powered off");
    let rows: Vec<_> = ran
        .stderr
        .lines()
        .skip_while(|line| !line.starts_with("vmm: boot timeline"))
        .skip(2)
        .take_while(|line| line.starts_with(' '))
        .map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
        .collect();
    let expected = [
        "0 VM ready",
        "0 first instruction",
        "1 boot mark 0x01",
        "2 first console byte",
        "1 boot mark 0x02",
        "8 userland",
        "3 end",
    ];
    assert_eq!(rows, expected, "{}", ran.stderr);
    let ran = boot(&[POWER_OFF], &["--no-profile"]);
    assert!(ran.stderr.contains("first instruction") && !ran.stderr.contains("exits:"), "{}", ran.stderr);
}

/// Creates an empty disk image of this size.
fn image(files: &Files, name: &str, size: u64) -> String {
    let path = files.write(name, b"");
    File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
    path
}

fn disks() {
    let files = Files::new();
    let images: Vec<_> = (0..17).map(|n| image(&files, &format!("disk {n},ro"), 512)).collect();
    let options: Vec<_> = images.iter().flat_map(|image| ["--disk", image]).collect();
    assert_ended(&boot(&[POWER_OFF], &options[..32]), 0, "powered off");
    assert_error(&boot(&[POWER_OFF], &options), 110, "at most 16 disks, not 17");
}

/// Prints the magic value at 0xd0000000: mov ebx, 0xd0000000; mov eax, [rbx]; mov dx, 0x3f8; mov ecx, 4;
/// next: out dx, al; shr eax, 8; dec ecx; jnz next
const PRINT_MAGIC: &[u8] = &[
    0xbb, 0, 0, 0, 0xd0, 0x8b, 0x03, 0x66, 0xba, 0xf8, 0x03, 0xb9, 4, 0, 0, 0, 0xee, 0xc1, 0xe8, 8, 0xff,
    0xc9, 0x75, 0xf8,
];
/// Stores to DeviceFeaturesSel and prints the lowest byte of DeviceFeatures as a digit: mov dword [rbx+0x14], 1;
/// mov eax, [rbx+0x10]; add al, '0'; out dx, al
const PRINT_FEATURES: &[u8] = &[0xc7, 0x43, 0x14, 1, 0, 0, 0, 0x8b, 0x43, 0x10, 0x04, b'0', 0xee];

fn registers() {
    let ran = boot(&[PRINT_MAGIC, PRINT_FEATURES, POWER_OFF], &[]);
    // VIRTIO_F_VERSION_1 is bit 0 of the second word.
    assert_eq!((ran.status, ran.text().as_str()), (0, "virt1"), "{}", ran.stderr);
    assert!(ran.stderr.contains("1 MMIO write") && !ran.stderr.contains("MMIO read"), "{}", ran.stderr);
}

fn one_image() {
    let files = Files::new();
    let (kernel, image) =
        (kernel(&files, &[&print("x\n"), ECHO, POWER_OFF]), image(&files, "image", 1 << 20));
    let read_only = format!("{image},ro");
    // Starts a machine with this disk. The machine runs until `end` sends it a q.
    let start = |disk: &str| {
        let mut child = interactive(&["boot", &kernel, "--timeout", "50", "--disk", disk]);
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
        child
    };
    let end = |mut child: Child| {
        child.stdin.take().unwrap().write_all(b"q").unwrap();
        assert_eq!(wait(&mut child), 0);
    };
    let busy = "is in use by another machine";
    let writer = start(&image);
    for disk in [&image, &read_only] {
        assert_error(&ran(&["boot", &kernel, "--disk", disk]), 110, busy);
    }
    end(writer);
    let readers = [start(&read_only), start(&read_only)];
    assert_error(&ran(&["boot", &kernel, "--disk", &image]), 110, busy);
    assert_error(
        &ran(&["boot", &kernel, "--disk", &read_only, "--disk", &image]),
        110,
        "is given twice: give it once",
    );
    readers.into_iter().for_each(end);
}

/// Stores to an address: mov ebx, ADDRESS; mov dword [rbx], VALUE
fn store(address: u32, value: u32) -> Vec<u8> {
    [&[0xbb], &address.to_le_bytes()[..], &[0xc7, 0x03], &value.to_le_bytes()].concat()
}

/// Enables the local APIC and sends an NMI to the second vCPU.
fn unstarted() {
    let code: &[&[u8]] = &[
        &store(0xfee0_00f0, 0x1ff),
        &store(0xfee0_0310, 1 << 24),
        &store(0xfee0_0300, 0x4400),
        // Meanwhile the second vCPU tries to run many times.
        PAUSE,
        POWER_OFF,
    ];
    assert_ended(&boot(code, &["--cpus", "2"]), 0, "powered off");
}

/// Makes the serial port interrupt, and enables interrupts without an interrupt table: mov dx, 0x3f9; mov al, 2;
/// out dx, al; sti; nop; nop
const ENABLE_INTERRUPTS: &[u8] = &[0x66, 0xba, 0xf9, 0x03, 0xb0, 2, 0xee, 0xfb, 0x90, 0x90];

fn masked() {
    assert_ended(&boot(&[ENABLE_INTERRUPTS, POWER_OFF], &[]), 0, "powered off");
}

fn refusals() {
    let files = Files::new();
    let good = kernel(&files, &[POWER_OFF]);
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_string();
    let low = files.write("low", &elf(0x1000, POWER_OFF));
    let far = files.write("far", &elf(0x8000_0000, POWER_OFF));
    let whole = fs::read(&good).unwrap();
    let cut = files.write("cut", &whole[..whole.len() - 1]);
    let bz = make_bzimage(POWER_OFF);
    let cut_bz = files.write("cut bz", &bz[..0xa00]);
    let mut lying = bz.clone();
    lying[0x1f1] = 200;
    let lying = files.write("lying", &lying);
    for (kernel, text) in [
        (&path("missing"), "cannot read"),
        (&path(""), "is not a regular file"),
        (&files.write("empty", b""), "is not a Linux kernel"),
        (
            &files.write("text", b"hello"),
            "is not a Linux kernel, but a text file: give a vmlinux (ELF64) or a bzImage",
        ),
        (
            &files.write("gzip", b"\x1f\x8b\x08\0"),
            "but a file that gzip compressed: unpack it first (gunzip)",
        ),
        (&files.write("code", &[0xf4]), "is not a Linux kernel: give a vmlinux"),
        (&low, "link it higher"),
        (&far, "--mem"),
        (&cut, "is it complete?"),
        (&cut_bz, "is it complete?"),
        (&lying, "is it complete?"),
    ] {
        assert_error(&ran(&["boot", kernel]), 116, text);
    }
    let big = image(&files, "big", 300 << 20);
    let odd = image(&files, "odd", 1000);
    let long = "x".repeat(2048);
    let (missing, none) = (path("missing"), files.write("none", b""));
    for (arguments, status, text) in [
        (["--initrd", &missing], 116, "cannot read"),
        (["--initrd", &big], 116, "a smaller initrd"),
        (["--initrd", &none], 116, "is empty"),
        (["--cmdline", &long], 110, "shorten --cmdline"),
        (["--mem", "4M"], 110, "at least 8M"),
        (["--mem", "16777215"], 110, "a multiple of 4K"),
        (["--mem", "1024G"], 110, "at most 512G"),
        (["--marker", ""], 110, "--marker must have 1 to 512 bytes"),
        (["--disk", &missing], 110, "does not exist"),
        (["--disk", &odd], 110, "truncate -s 1024"),
        (["--disk", &none], 110, "is empty"),
        (["--disk", &path("")], 110, "neither a file nor a block device"),
    ] {
        let arguments = [&["boot", good.as_str()], &arguments[..]].concat();
        assert_error(&ran(&arguments), status, text);
    }
}
