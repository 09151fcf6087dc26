//! Guests that end in good order without having done their work: the first line says so, and they are not verified.

mod support;

use std::process::ExitCode;
use support::assembler::{
    CodeAssembler, IcedError, al, assemble, ax, cx, ds, dx, eax, ecx, edi, edx, halt_with_42,
    halt_with_42_in_eax, si,
};
use support::assembler::{byte_ptr, dword_ptr, word_ptr};
use support::{Files, each_on_both, processor, ran, run_machine};
use vmm::Machine;
use vmm::boot::Image;
use vmm::machine::Doubt;
use vmm::memory::Gpa;
use vmm::x86::Mode;

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = Vec::new();
    tests.extend(each_on_both(&[
        ("a_doubt_is_in_the_first_line_and_fails_verification", doubts),
        ("a_halt_without_any_effect_is_mentioned", nothing_seen),
        ("honest_guests_leave_no_doubt", honest),
        ("a_doubtful_guest_gets_no_points", grade),
        ("each_vcpu_is_looked_at", second_vcpu),
        ("a_run_does_not_inherit_the_doubts_of_the_run_before", second_run),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// Writes a letter to the text screen of a PC.
fn writes_to_the_screen(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(ax, 0xb800)?;
    code.mov(ds, ax)?;
    code.mov(word_ptr(0), 0x0741)?;
    code.xor(ax, ax)?;
    code.mov(ds, ax)?;
    halt_with_42(code)
}

/// Prints a letter with the BIOS.
fn calls_the_bios(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(ax, 0x0e41)?;
    code.int(0x10)?;
    halt_with_42(code)
}

/// Prints the text after it, up to a zero, on the debug console.
fn prints_text(code: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut next, mut done, mut text) = (code.create_label(), code.create_label(), code.create_label());
    // The assembler has no addresses of labels as numbers. The code is 19 bytes long.
    code.mov(si, 0x1013)?;
    code.set_label(&mut next)?;
    code.lodsb()?;
    code.test(al, al)?;
    code.je(done)?;
    code.out(0xe9, al)?;
    code.jmp(next)?;
    code.set_label(&mut done)?;
    halt_with_42(code)?;
    code.set_label(&mut text)?;
    code.db(b"Hello, world!\n\0")
}

/// Copies a HLT out of the image, and jumps to it.
fn ends_in_a_copy(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(byte_ptr(0x3000), 0xf4)?;
    code.mov(ax, 42)?;
    code.mov(word_ptr(0x400), ax)?;
    code.jmp(0x3000u64)
}

/// Stores where nothing is.
fn stores_nowhere(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(dword_ptr(0xd000_0000u64), eax)?;
    halt_with_42_in_eax(code)
}

/// Prints on a port without a device.
fn prints_on_a_wrong_port(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(al, 0x41)?;
    code.out(0xe8, al)?;
    code.out(0xe8, al)?;
    halt_with_42(code)
}

/// Prints bytes of memory that is zero.
fn prints_zeroes(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(si, 0x3000)?;
    code.lodsb()?;
    code.out(0xe9, al)?;
    halt_with_42(code)?;
    code.db(b"Hello, world!\n\0")
}

/// Makes a hypercall that does not exist.
fn calls_an_unknown_number(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(eax, 99)?;
    code.mov(edx, 0x500)?;
    code.out(dx, eax)?;
    halt_with_42_in_eax(code)
}

/// Switches QEMU off.
fn switches_qemu_off(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(dx, 0x604)?;
    code.mov(ax, 0x2000)?;
    code.out(dx, ax)?;
    halt_with_42(code)
}

type Payload = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// The guests with a doubt: name, bits, address, code, status without verification, and the doubt.
const DOUBTFUL: [(&str, u32, u64, Payload, i32, &str); 9] = [
    ("screen", 16, 0x1000, writes_to_the_screen, 0, "it wrote \"A\" to the text screen at 0xb8000"),
    (
        "bios",
        16,
        0,
        calls_the_bios,
        112,
        "it called int 0x10, which has no handler, because this machine has no BIOS",
    ),
    (
        "text",
        16,
        0,
        prints_text,
        0,
        "its code expects the text \"Hello, world!\" at 0x1013, but the text is at 0x13: load it at 0x1000 (FILE@0x1000)",
    ),
    (
        "copy",
        16,
        0x1000,
        ends_in_a_copy,
        0,
        "it ended in real mode at 0000:3001, outside its image (0x1000 to 0x100d)",
    ),
    ("zeroes", 16, 0x1000, prints_zeroes, 0, "it printed only bytes that are 0 or 0xff (1)"),
    ("hypercall", 32, 0x1000, calls_an_unknown_number, 0, "its hypercall 99 failed with -38 (ENOSYS"),
    ("qemu", 16, 0x1000, switches_qemu_off, 0, "it wrote to port 0x604, which switches QEMU off"),
    ("nowhere", 32, 0x1000, stores_nowhere, 0, "it stored to 0xd0000000, where there is no memory or device"),
    (
        "port",
        16,
        0x1000,
        prints_on_a_wrong_port,
        0,
        "it wrote to port 0xe8, which has no device (and 1 more such store)",
    ),
];

fn doubts() {
    let files = Files::new();
    for (name, bits, address, payload, status, doubt) in DOUBTFUL {
        let guest = format!("{}@{address:#x}:{bits}", files.write(name, &assemble(bits, address, payload)));
        let first = |arguments: &[&str]| {
            let ran = ran(&[&[guest.as_str(), "--quiet"], arguments].concat());
            (ran.status, ran.stderr)
        };
        let (found, line) = first(&[]);
        assert_eq!((found, line.contains(doubt)), (status, true), "{name}: {line}");
        let (found, line) = first(&["--verify"]);
        assert_eq!((found, line.contains(doubt)), (status.max(111), true), "{name}: {line}");
        assert!(!line.contains("; verified"), "{name}: {line}");
    }
}

fn nothing_seen() {
    let files = Files::new();
    let halts = files.write("halts", &assemble(16, 0, |code| code.hlt()));
    let computes = assemble(16, 0, |code| {
        code.mov(ax, 7)?;
        code.mov(word_ptr(0x2000), ax)?;
        code.hlt()
    });
    for guest in [halts, files.write("computes", &computes)] {
        for option in ["--quiet", "--no-profile"] {
            let ran = ran(&[&guest, option]);
            assert_eq!(ran.status, 0, "{}", ran.stderr);
            let line = ran.stderr.lines().next().unwrap_or_default();
            assert!(line.contains("halted; it had no visible effect: no output, no result"), "{line}");
        }
    }
}

/// Writes to the ports of a PC's legacy devices, and leaves its result.
fn quiets_devices(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(al, 0xff)?;
    code.out(0x21, al)?;
    code.out(0xa1, al)?;
    code.out(0x80, al)?;
    halt_with_42(code)
}

/// Uses the addresses of the text screen as plain memory.
fn uses_screen_memory(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(dword_ptr(0xb8000u64), 0x0000_0001)?;
    code.mov(dword_ptr(0xb8010u64), 0x1234_5600)?;
    halt_with_42_in_eax(code)
}

/// Installs a handler for a software interrupt, and calls it.
fn handles_its_interrupt(code: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut main, mut handler) = (code.create_label(), code.create_label());
    code.jmp(main)?;
    code.set_label(&mut handler)?;
    halt_with_42(code)?;
    code.set_label(&mut main)?;
    // The handler follows a short jump of two bytes.
    code.mov(word_ptr(0x21 * 4), 0x1002)?;
    code.int(0x21)
}

/// Holds a name that it never prints, and computes with a number that equals its offset.
fn holds_a_name(code: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut main = code.create_label();
    code.jmp(main)?;
    code.db(b"guest16 by Ana\0")?;
    code.set_label(&mut main)?;
    code.mov(ax, 21)?;
    code.mov(cx, 2)?;
    code.mul(cx)?;
    code.mov(word_ptr(0x400), ax)?;
    code.hlt()
}

/// Fills the memory of the text screen, and more, with a letter.
fn fills_memory(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(edi, 0xb0000)?;
    code.mov(ecx, 0x10000)?;
    code.mov(al, 0x61)?;
    code.rep().stosb()?;
    halt_with_42_in_eax(code)
}

/// Ends with code 0 on the exit port, without output.
fn exits_with_0(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.xor(al, al)?;
    code.out(0xf4, al)
}

fn honest() {
    let files = Files::new();
    /// Name, bits, address, code, options, and a part of the first line.
    type Honest<'a> = (&'a str, u32, u64, Payload, &'a [&'a str], &'a str);
    let honest: [Honest<'_>; 8] = [
        (
            "quiet",
            16,
            0x1000,
            quiets_devices,
            &["--verify"],
            "halted; verified: AX = 42, [0x400] = 42 (after",
        ),
        (
            "memory",
            32,
            0x1000,
            uses_screen_memory,
            &["--verify"],
            "halted; verified: EAX = 42, [0x400] = 42 (after",
        ),
        ("name", 16, 0x1000, holds_a_name, &["--verify"], "halted; verified: AX = 42, [0x400] = 42 (after"),
        ("fill", 32, 0x1000, fills_memory, &["--verify"], "halted; verified: EAX = 42, [0x400] = 42 (after"),
        ("text", 16, 0x1000, prints_text, &["--verify"], "halted; verified: AX = 42, [0x400] = 42 (after"),
        ("result", 16, 0, halt_with_42, &["--verify"], "halted; verified: AX = 42, [0x400] = 42 (after"),
        (
            "handler",
            16,
            0x1000,
            handles_its_interrupt,
            &["--verify"],
            "halted; verified: AX = 42, [0x400] = 42 (after",
        ),
        ("exit", 16, 0, exits_with_0, &[], "exited with code 0 (after"),
    ];
    for (name, bits, address, payload, options, line) in honest {
        let guest = format!("{}@{address:#x}:{bits}", files.write(name, &assemble(bits, address, payload)));
        let ran = ran(&[&[guest.as_str(), "--quiet"], options].concat());
        assert_eq!((ran.status, ran.stderr.contains(line)), (0, true), "{name}: {}", ran.stderr);
    }
}

fn grade() {
    let files = Files::new();
    let text = files.write("text", &assemble(16, 0x1000, prints_text));
    for (image, points) in [(text.clone(), "  0/30 "), (format!("{text}@0x1000"), " 30/30 ")] {
        let ran = ran(&["grade", "--guest16", &image]);
        assert!(ran.text().starts_with(points), "{}", ran.text());
    }
}

/// vCPU 0 halts, and the others jump to a HLT outside the image.
fn others_end_outside(code: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut other = code.create_label();
    code.mov(byte_ptr(0x3000u64), 0xf4)?;
    code.test(edi, edi)?;
    code.jne(other)?;
    halt_with_42_in_eax(code)?;
    code.set_label(&mut other)?;
    code.jmp(0x3000u64)
}

fn second_vcpu() {
    let code = assemble(32, 0x1000, others_end_outside);
    let image = Image::flat(code, Mode::Protected, Gpa(0x1000)).expect("an image");
    let (report, _) = run_machine(Machine::builder(image).cpus(2).verify(true));
    assert!(report.verdict.is_some_and(|verdict| verdict.passed()), "{report:?}");
    assert!(matches!(report.doubts[..], [Doubt::EndedOutside { .. }]), "{:?}", report.doubts);
    assert_eq!(report.verified(), Some(false));
}

fn second_run() {
    let code = assemble(32, 0x1000, |code| {
        stores_nowhere(code)?;
        code.out(0xe9, al)?;
        code.hlt()
    });
    let image = Image::flat(code, Mode::Protected, Gpa(0x1000)).expect("an image");
    let (output, _captured) = vmm::Output::captured();
    let builder = Machine::builder(image).processor(processor()).output(output);
    let mut machine = builder.build().expect("the machine is built");
    let mut doubts = || machine.run().expect("the host runs the machine").doubts;
    assert!(matches!(doubts()[..], [Doubt::LostStores(_, 1)]));
    assert_eq!(doubts(), []);
}
