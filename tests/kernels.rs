//! Kernels that a boot loader starts: multiboot 1 and 2, and PVH. The kernels are those of `examples/kernels`.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::Trial;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use support::{Ran, assert_error, elf, is_soft, kvm_test, on_both, plain_test, ran, run};
use tempfile::TempDir;

fn main() -> ExitCode {
    support::watchdog();
    let Some(kernels) = Kernels::built() else {
        println!("skipped: gcc of this host makes no 32-bit code");
        return ExitCode::SUCCESS;
    };
    let kernels: &'static Kernels = Box::leak(Box::new(kernels));
    let mut tests: Vec<Trial> = Vec::new();
    for name in [
        "multiboot1.elf",
        "multiboot1-64.elf",
        "multiboot1.bin",
        "multiboot2.elf",
        "multiboot2-64.elf",
        "pvh.elf",
    ] {
        tests.extend(on_both(format!("what_the_loader_tells_{name}"), move || kernel_tells(kernels, name)));
    }
    tests.extend(on_both("boot_and_no_subcommand_run_the_same", || subcommands(kernels)));
    tests.extend(on_both("the_memory_of_the_machine_is_in_the_map", || memory(kernels)));
    tests.extend(on_both("a_mode_starts_a_kernel_without_its_protocol", || native(kernels)));
    tests.extend(on_both("an_address_and_a_mode_start_a_flat_file_without_its_header", || flat(kernels)));
    tests.extend(on_both("a_static_executable_of_32_bits_runs", || elf32(kernels)));
    tests.extend(on_both("a_position_independent_executable_is_moved", || movable(kernels)));
    tests.extend(on_both("real_mode_starts_at_a_segment_with_registers", || real_mode(kernels)));
    tests.extend(on_both("a_kernel_that_waits_for_an_interrupt_is_told", || waits(kernels)));
    tests.extend(on_both("a_disk_is_read_and_written_by_its_registers", || disk(kernels)));
    tests.extend(on_both("a_screen_is_drawn_and_keys_arrive", || screen(kernels)));
    tests.push(kvm_test("a_wait_for_an_interrupt_ends_at_the_time_limit", || waits_on_a_pc(kernels)));
    tests.push(kvm_test("the_timer_runs_and_a_halt_with_interrupts_off_ends_the_run", || timer(kernels)));
    tests.push(kvm_test("a_kernel_starts_the_other_processors", || processors(kernels)));
    tests.push(plain_test("what_a_kernel_cannot_have_is_refused", || refused(kernels)));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// The built kernels, and two files for modules.
struct Kernels(TempDir);

impl Kernels {
    /// Builds the kernels. `None` if the host's gcc is not for x86.
    fn built() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let flags = ["-m32", "-nostdlib", "-ffreestanding", "-x", "c", "-E", "/dev/null", "-o", "/dev/null"];
        let gcc = Command::new("gcc").args(flags).stderr(Stdio::null()).status();
        if !gcc.is_ok_and(|status| status.success()) {
            return None;
        }
        let sources = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/kernels");
        let mut make = Command::new("make");
        make.arg("-s").arg("-C").arg(sources).arg(format!("OUT={}", folder.path().display()));
        let ran = run(make.env_remove("MAKEFLAGS").env_remove("CFLAGS").stdout(Stdio::piped()));
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        fs::write(folder.path().join("first"), "the first module\nits second line\n").unwrap();
        fs::write(folder.path().join("second"), [b'x'; 5000]).unwrap();
        Some(Self(folder))
    }

    /// The path of a file.
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().into()
    }

    /// The path of a file that a test makes. The same test runs with KVM and without it at the same time.
    fn own_path(&self, name: &str) -> String {
        let folder = if is_soft() { "soft" } else { "kvm" };
        fs::create_dir_all(self.0.path().join(folder)).unwrap();
        self.path(&format!("{folder}/{name}"))
    }

    /// Writes a file. Returns its path.
    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.own_path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Builds a program from a source text. Returns its path.
    fn gcc(&self, name: &str, source: &str, flags: &[&str]) -> String {
        let source = self.write(&format!("{name}.c"), source.as_bytes());
        let path = self.own_path(name);
        let mut gcc = Command::new("gcc");
        let common = [
            "-ffreestanding",
            "-nostdlib",
            "-Os",
            "-fno-stack-protector",
            "-fcf-protection=none",
            "-mgeneral-regs-only",
            "-fno-asynchronous-unwind-tables",
            "-Wl,--build-id=none",
            "-o",
            &path,
            &source,
        ];
        let ran = run(gcc.args(common).args(flags).stdout(Stdio::piped()));
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        path
    }
}

/// A flat multiboot file with an address and a mode is a flat binary: here, its header is a jump over it.
fn flat(kernels: &Kernels) {
    let header = [0x1bad_b002u32, 0, 0u32.wrapping_sub(0x1bad_b002)].map(u32::to_le_bytes);
    // jmp 14; nop; nop; the header; mov eax, 42; mov dword [0x400], 42; hlt
    let file = kernels.write(
        "header-in-flat.bin",
        &[
            &[0xeb, 14, 0x90, 0x90][..],
            header.as_flattened(),
            &[0xb8, 42, 0, 0, 0, 0xc7, 0x05, 0, 4, 0, 0, 42, 0, 0, 0, 0xf4],
        ]
        .concat(),
    );
    let ended = ran(&[&format!("{file}@0x1000:32"), "--verify"]);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    assert_error(
        &ran(&[&format!("{file}@0x1000")]),
        116,
        "or give both to start it without its header (FILE@ADDR:32)",
    );
}

/// Checks that a run ended with the exit code 42.
fn assert_42(ran: &Ran) {
    assert!(ran.status == 42 && ran.stderr.contains("exited with code 42"), "{}\n{}", ran.text(), ran.stderr);
}

fn kernel_tells(kernels: &Kernels, name: &str) {
    let modules = [format!("{},a text, with commas", kernels.path("first")), kernels.path("second")];
    let ran = ran(&[
        &kernels.path(name),
        "--cmdline",
        "root=none quiet",
        "--module",
        &modules[0],
        "--module",
        &modules[1],
    ]);
    assert_42(&ran);
    let text = ran.text();
    // A PC has firmware at the end of its low memory.
    let low_end = if is_soft() { "0xa0000" } else { "0x9fc00" };
    let mut expected = vec![
        "command line: root=none quiet".into(),
        "map: 0x0 to 0x8ffff usable".into(),
        "map: 0x90000 to 0x90fff reserved".into(),
        format!("map: {low_end} to 0xfffff reserved"),
        "map: 0x100000 to 0xf9fffff usable".into(),
        "map: 0xfffbd000 to 0xffffffff reserved".into(),
        "text \"a text, with commas\", content \"the first module\"".into(),
        format!("text \"{}\", content \"xxxxxxxx", modules[1]),
    ];
    if name.starts_with("multiboot") {
        expected.push(format!(
            "{}, loader: vmm",
            if name.starts_with("multiboot1") { "multiboot 1" } else { "multiboot 2" }
        ));
        expected.push("lower memory: 0x240 KiB, upper memory: 0x3e400 KiB".into());
    }
    if name.starts_with("multiboot") && name.ends_with(".elf") {
        expected.push("symbols: some".into());
    }
    for line in &expected {
        assert!(text.contains(line), "{line}\n{text}");
    }
    // The modules begin at pages.
    let places = text
        .lines()
        .filter_map(|line| line.strip_prefix("module: ")?.split(" bytes at ").nth(1)?.split(',').next());
    let places: Vec<&str> = places.collect();
    assert!(places.len() == 2 && places.iter().all(|place| place.ends_with("000")), "{places:?}");
}

fn subcommands(kernels: &Kernels) {
    let kernel = kernels.path("multiboot2.elf");
    let options = ["--cmdline", "x", "--module", &kernels.path("first")];
    let vcpu = if is_soft() { "soft" } else { "kvm" };
    let results: Vec<Ran> =
        [&["run", &kernel][..], &[&kernel], &["boot", &kernel, "--vcpu", vcpu, "--mem", "250M"]]
            .iter()
            .map(|words| ran(&[words, &options[..]].concat()))
            .collect();
    for ran in &results {
        assert_42(ran);
        assert_eq!(ran.text(), results[0].text());
    }
    for (option, step) in [
        (&["--initrd", "x"][..], "--initrd is for Linux"),
        (&["--marker", "x"], "--marker is for Linux"),
        (&["--console", "virtio"], "--console virtio is for Linux"),
    ] {
        assert_error(&ran(&[&["boot", &kernel][..], option].concat()), 110, step);
    }
}

fn memory(kernels: &Kernels) {
    let ran = ran(&[&kernels.path("pvh.elf"), "--mem", "8M"]);
    assert_42(&ran);
    assert!(ran.text().contains("map: 0x100000 to 0x7fffff usable"), "{}", ran.text());
    // A megabyte is too little for a kernel that begins there.
    let small = support::ran(&[&kernels.path("pvh.elf"), "--mem", "1M"]);
    assert_error(&small, 116, "the image does not fit: its segments are 0x100000 to ");
}

fn native(kernels: &Kernels) {
    // A header whose checksum is wrong is no header, but is named.
    let mut unsound = fs::read(kernels.path("multiboot1.elf")).unwrap();
    let magic = 0x1bad_b002u32.to_le_bytes();
    let at = unsound.windows(4).position(|word| word == magic).unwrap();
    unsound[at + 8] ^= 1;
    let without = ran(&[&kernels.write("unsound.elf", &unsound)]);
    assert_eq!(without.text(), "not a multiboot 1 loader: magic 0x0", "{}", without.stderr);
    let warning =
        format!("magic of a multiboot header at offset {at:#x}, but the checksum of the header is wrong");
    assert!(without.stderr.contains(&warning), "{}", without.stderr);
    let ran = ran(&[&format!("{}:32", kernels.path("multiboot1.elf"))]);
    assert_eq!((ran.status, ran.text()), (1, "not a multiboot 1 loader: magic 0x0".into()), "{}", ran.stderr);
}

/// Ends with 42 through a table of addresses, which needs relocations in position-independent code.
const TABLE: &str = "
static void out(unsigned char code) { __asm__ volatile(\"outb %0, %1\" : : \"a\"(code), \"Nd\"((unsigned short)0xf4)); }
static void wrong(void) { out(1); }
static void right(void) { out(42); }
void (*volatile const table[])(void) = { wrong, right };
volatile int index = 1;
void _start(void) { table[index](); for (;;) __asm__ volatile(\"hlt\"); }
";

/// Prints, and waits for an interrupt: mov al, 'K'; out 0xe9, al; sti; hlt
const WAITS: [u8; 6] = [0xb0, b'K', 0xe6, 0xe9, 0xfb, 0xf4];
/// Prints, and halts for good: the same with cli.
const ENDS: [u8; 6] = [0xb0, b'K', 0xe6, 0xe9, 0xfa, 0xf4];

/// Writes a multiboot kernel of a few instructions. Returns its path.
fn tiny(kernels: &Kernels, name: &str, code: &[u8]) -> String {
    const FLAGS: u32 = 1 << 16;
    const MAGIC: u32 = 0x1bad_b002;
    const LOAD: u32 = 0x10_0000;
    let header = [MAGIC, FLAGS, MAGIC.wrapping_add(FLAGS).wrapping_neg(), LOAD, LOAD, 0, 0, LOAD + 32];
    let header = header.iter().flat_map(|word| word.to_le_bytes());
    kernels.write(name, &header.chain(code.iter().copied()).collect::<Vec<u8>>())
}

/// A kernel that prints, and then waits for an interrupt.
fn waits(kernels: &Kernels) {
    let told = "halted; it halted with interrupts on, but no interrupt ever arrives";
    let path = tiny(kernels, "waits.bin", &WAITS);
    let waiting = ran(&[&path, "--machine", "bare"]);
    assert_eq!((waiting.status, waiting.text()), (0, "K".into()), "{}", waiting.stderr);
    assert!(waiting.stderr.contains(told), "{}", waiting.stderr);
    let path = tiny(kernels, "ends.bin", &ENDS);
    for machine in ["bare", "pc"] {
        let ended = ran(&[&path, "--machine", machine]);
        assert_eq!((ended.status, ended.text()), (0, "K".into()), "{}", ended.stderr);
        assert!(ended.stderr.contains("ends.bin: halted (after"), "{}", ended.stderr);
    }
}

/// A kernel on a classic PC that waits for an interrupt, which nothing sends.
fn waits_on_a_pc(kernels: &Kernels) {
    let ran = ran(&[&tiny(kernels, "waits-pc.bin", &WAITS), "--timeout", "1"]);
    assert_eq!((ran.status, ran.text()), (114, "K".into()), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("the guest then waited for an interrupt (hlt) in protected mode"),
        "{}",
        ran.stderr
    );
}

/// The kernel draws a frame, and shows keys until Escape.
fn screen(kernels: &Kernels) {
    let kernel = kernels.path("screen.elf");
    let mut command = support::vmm(&[&kernel, "--machine", "pc"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    child.stdin.take().unwrap().write_all(b"Hi, x\x08y\x1b").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(42), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for line in
        ["╔══════════════════════════════════════╗", "║ Hello from the screen of a PC        ║", "Hi, y"]
    {
        assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
    }
}

fn disk(kernels: &Kernels) {
    let mut image = vec![0; 1 << 20];
    image[..11].copy_from_slice(b"hello disk\n");
    let path = kernels.write(if is_soft() { "soft.img" } else { "kvm.img" }, &image);
    let kernel = kernels.path("ata.elf");
    let told =
        "one drive\nmodel: VMM DISK                                \nsectors: 0x800\nsector 0: hello disk\n";
    let read_only = format!("{path},ro");
    for (disk, write) in [(&read_only, "write refused: 0x44"), (&path, "write and read: ok")] {
        let ran = ran(&[&kernel, "--machine", "pc", "--disk", disk]);
        assert_42(&ran);
        assert_eq!(ran.text(), format!("{told}{write}\npast the end: error 0x10\n"));
        // Each of the 256 words of a sector that is written is an element of a string instruction.
        assert!(ran.stderr.contains("0x1f0"), "{}", ran.stderr);
    }
    let written = fs::read(&path).unwrap();
    assert_eq!((written.len(), &written[512..520]), (1 << 20, &[0, 0, 3, 0, 6, 0, 9, 0][..]));
}

/// The exits of a kernel that prints `text` with the serial port: a read of the status and a write for each byte.
fn exits(text: &str) -> String {
    let bytes = text.len();
    format!("vmm: {} exits: {bytes} PIO in, {bytes} PIO out", 2 * bytes)
}

fn timer(kernels: &Kernels) {
    let kernel = kernels.path("timer.elf");
    let text = "ticks: 0x5\n";
    // Interrupts in protected mode are for the testbed, because some hosts cannot deliver them.
    let ran = ran(&[&kernel]);
    assert_eq!((ran.status, ran.text()), (0, text.into()), "{}", ran.stderr);
    assert!(ran.stderr.contains("timer.elf: halted (after"), "{}", ran.stderr);
    assert!(ran.stderr.contains(&exits(text)), "{}", ran.stderr);
}

fn processors(kernels: &Kernels) {
    let kernel = kernels.path("processors.elf");
    for count in [1, 3] {
        let ran = ran(&[&kernel, "--cpus", &count.to_string()]);
        let text = format!("processors in the MP table: {count:#x}\nstarted: {:#x}\n", count - 1);
        assert_eq!((ran.status, ran.text()), (0, text.clone()), "{}", ran.stderr);
        assert!(ran.stderr.contains("processors.elf: halted (after"), "{}", ran.stderr);
        assert!(ran.stderr.contains(&exits(&text)), "{}", ran.stderr);
    }
    let unused = ran(&[&tiny(kernels, "alone.bin", &ENDS), "--cpus", "2"]);
    assert_eq!(unused.status, 0, "{}", unused.stderr);
    assert!(unused.stderr.contains("vmm: vCPU 1: not started by the guest"), "{}", unused.stderr);
}

fn elf32(kernels: &Kernels) {
    let path = kernels.gcc("static32", TABLE, &["-m32", "-static", "-no-pie", "-fno-pic"]);
    assert_42(&ran(&[&path]));
    assert_error(
        &ran(&[&format!("{path}:64")]),
        110,
        "is an ELF32 file, which starts only in protected mode, not in long mode",
    );
}

fn movable(kernels: &Kernels) {
    for (name, flags) in [("pie64", &["-m64"][..]), ("pie32", &["-m32", "-march=i686"])] {
        let path = kernels.gcc(name, TABLE, &[flags, &["-static-pie", "-fpie"]].concat());
        assert_42(&ran(&[&path]));
        assert_42(&ran(&[&format!("{path}@0x200000")]));
        assert_error(&ran(&[&format!("{path}@0x200001")]), 116, "a multiple of 0x1000");
    }
}

fn real_mode(kernels: &Kernels) {
    // mov dx, 0xe9; add al, bl; add al, '0'; out dx, al; mov ax, cs; out dx, ax; hlt
    let code = [0xba, 0xe9, 0, 0, 0xd8, 4, b'0', 0xee, 0x8c, 0xc8, 0xef, 0xf4];
    let path = kernels.write("real", &code);
    for (place, registers, printed) in [
        ("0x1000", ["rax=2", "rbx=2"], [b'4', 0, 0]),
        ("0x1000:0x0", ["ax=3", "bx=2"], [b'5', 0, 0x10]),
        ("0x7c0:0x10:16", ["eax=1", "ebx=0x12340000"], [b'1', 0xc0, 7]),
        ("0xffff:0x10", ["rax=4", "rbx=4"], [b'8', 0xff, 0xff]),
    ] {
        let mem = if place.starts_with("0xffff") { "2M" } else { "1M" };
        let ran =
            ran(&[&format!("{path}@{place}"), "--set", registers[0], "--set", registers[1], "--mem", mem]);
        assert_eq!((ran.status, &ran.stdout[..]), (0, &printed[..]), "{place}: {}", ran.stderr);
    }
}

fn refused(kernels: &Kernels) {
    let flat = kernels.write("flat", &[0xf4]);
    let kernel = kernels.path("multiboot1.elf");
    let [disk, other, third] = ["disk1", "disk2", "disk3"].map(|name| kernels.write(name, &[0; 4096]));
    let huge = kernels.path("huge");
    fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    let high = kernels.write("high", &elf(0xffff_ffff_8010_0000, &[0xf4]));
    for (words, status, message) in [
        (
            &[&*flat, "--cmdline", "x"][..],
            110,
            "--cmdline is for kernels with a multiboot header or a PVH note",
        ),
        (&[&flat, "--module", &flat], 110, "--module is for kernels with a multiboot header or a PVH note"),
        (&["real16-42", "--module", &flat], 110, "--module is for kernels"),
        (&[&kernel, "--module", &huge], 116, "does not fit: it has more than the 250M that are left"),
        (&[&kernel, "--module", "/no/such/file"], 116, "cannot read /no/such/file"),
        (&[&kernel, "--module", "/"], 116, "is not a regular file"),
        (&[&kernel, "--machine", "bare", "--cpus", "2"], 110, "a multiboot 1 kernel starts on one vCPU"),
        (
            &[&kernel, "--machine", "pc", "--transport", "exit"],
            110,
            "SIMVIRTIO is a device of the bare machine",
        ),
        (&[&flat, "--disk", &disk], 110, "--disk is for a PC, and this machine is bare: give --machine pc"),
        (
            &[&kernel, "--machine", "pc", "--disk", &disk, "--disk", &other, "--disk", &third],
            110,
            "a classic PC has at most 2 disks, not 3",
        ),
        (&[&flat, "--set", "r8=1"], 110, "real mode has no such register"),
        (&[&flat, "--set", "ax=1", "--set", "rax=1"], 110, "the register is given twice"),
        (&[&high], 116, "objcopy --change-section-lma '*-0xffffffff80000000' FILE NEW"),
    ] {
        assert_error(&ran(words), status, message);
    }
    let zeroes = kernels.write("zeroes", &[0; 4096]);
    assert_error(&ran(&[&zeroes]), 116, "a file of 4096 bytes that are all zero");
}
