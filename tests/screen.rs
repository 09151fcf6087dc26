//! The screen, the keyboard and the clock of a classic PC: `--machine pc`.
#![allow(clippy::unwrap_used)]

#[path = "support/png.rs"]
mod png;
#[path = "support/session.rs"]
mod session;
mod support;

use png::Image;
use session::{Session, no_terminals};
use std::fs;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::thread;
use support::assembler::*;
use support::kernels::interactive;
use support::{Files, Ran, assert_error, kvm_test, on_both, plain_test, ran, wait};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = Vec::new();
    tests.extend(on_both("the_screen_is_printed_as_text", text));
    tests.extend(on_both("the_screen_is_written_as_text_or_as_an_image", files));
    tests.extend(on_both("the_screen_follows_text_of_the_guest", text_and_screen));
    tests.extend(on_both("a_bare_machine_points_to_the_pc", bare));
    tests.extend(on_both("no_access_to_the_screen_ends_the_run", hostile));
    tests.extend(on_both("the_exit_port_of_qemu_doubles_the_code", qemu));
    tests.push(plain_test("a_machine_without_a_screen_refuses_a_file_for_it", refused));
    tests.extend(on_both("typed_keys_are_scan_codes", scan_codes));
    tests.extend(on_both("a_flood_of_keys_arrives_complete", flood));
    tests.push(kvm_test("keys_interrupt_and_so_does_the_clock", interrupts));
    if let Some(reason) = no_terminals() {
        println!("skipped the tests with a terminal: {reason}");
    } else {
        tests.push(kvm_test("a_terminal_shows_the_screen_and_its_keys_are_typed", terminal));
        tests.push(kvm_test("a_killed_run_gives_the_terminal_back", interrupted));
    }
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

type Step = Result<(), IcedError>;

/// Stores a text with an attribute from a cell on.
fn put(code: &mut CodeAssembler, cell: u16, text: &[u8], attribute: u8) -> Step {
    code.mov(ax, 0xb800)?;
    code.mov(es, ax)?;
    for (byte, place) in text.iter().zip((2 * cell..).step_by(2)) {
        let value = u16::from_le_bytes([*byte, attribute]);
        code.mov(word_ptr(u64::from(place)).es(), u32::from(value))?;
    }
    Ok(())
}

/// Writes a register of the CRT controller with one word.
fn crtc(code: &mut CodeAssembler, index: u8, value: u8) -> Step {
    code.mov(dx, 0x3d4)?;
    code.mov(ax, u32::from(u16::from_le_bytes([index, value])))?;
    code.out(dx, ax)
}

/// Halts for good.
fn halt(code: &mut CodeAssembler) -> Step {
    code.cli()?;
    code.hlt()
}

/// Writes the guest to a file. Returns its name with the address.
fn guest(files: &Files, write: impl FnOnce(&mut CodeAssembler) -> Step) -> String {
    format!("{}@0x1000", files.write("guest", &assemble(16, 0x1000, write)))
}

/// Runs a guest on a classic PC.
fn on_pc(arguments: &[&str], write: impl FnOnce(&mut CodeAssembler) -> Step) -> Ran {
    let files = Files::new();
    let guest = guest(&files, write);
    ran(&[&["run", &guest, "--machine", "pc", "--timeout", "30", "-q"], arguments].concat())
}

/// Draws two lines, with control characters and a frame.
fn draw(code: &mut CodeAssembler) -> Step {
    put(code, 1, b"Hello \x1b[31m\x07", 0x1e)?;
    put(code, 160, b"\xc9\xcd\xbb", 0x4f)?;
    crtc(code, 0x0f, 163)
}

const DRAWN: &str = " Hello ←[31m•\n\n╔═╗\n";

fn text() {
    let ran = on_pc(&[], |code| {
        draw(code)?;
        halt(code)
    });
    assert_eq!((ran.status, ran.text().as_str()), (0, DRAWN), "{}", ran.stderr);
    assert!(ran.stderr.contains("guest: halted (after") && !ran.stderr.contains("but"), "{}", ran.stderr);
    // The screen begins at its second line, and goes past the end of its memory.
    let scrolled = on_pc(&[], |code| {
        draw(code)?;
        put(code, 0x3fff, b"x", 0x07)?;
        crtc(code, 0x0c, 0x3f)?;
        crtc(code, 0x0d, 0xff)?;
        halt(code)
    });
    assert_eq!(scrolled.text(), "x Hello ←[31m•\n\n ╔═╗\n", "{}", scrolled.stderr);
    // A screen that is not used is not printed.
    assert_eq!(on_pc(&[], halt).text(), "");
}

fn files() {
    let files = Files::new();
    let file = |name: &str| files.0.path().join(name).to_str().unwrap().to_string();
    let (png, txt) = (file("screen.PNG"), file("screen"));
    for path in [&png, &txt] {
        let ran = on_pc(&["--screen", path], |code| {
            draw(code)?;
            halt(code)
        });
        assert_eq!((ran.status, ran.text().as_str()), (0, ""), "{}", ran.stderr);
    }
    assert_eq!(fs::read_to_string(&txt).unwrap(), DRAWN);
    let image = Image::decode(&fs::read(&png).unwrap());
    assert_eq!((image.width, image.height), (640, 400));
    // The corners of cells: blank on black, blank on blue, and white on red where the frame is.
    assert_eq!(image.colours(0, 0), [[0, 0, 0]].into());
    assert_eq!(image.colours(0, 1), [[0, 0, 0xaa], [0xff, 0xff, 0x55]].into());
    assert_eq!(image.colours(2, 1), [[0xaa, 0, 0], [0xff; 3]].into());
    // The cursor is in the light grey of its cell.
    assert_eq!(image.colours(2, 3), [[0, 0, 0], [0xaa; 3]].into());
    // Nothing is written without a screen.
    let ran = on_pc(&["--screen", &txt], halt);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("is not written: the guest has not put text on its screen"),
        "{}",
        ran.stderr
    );
    assert_eq!(fs::read_to_string(&txt).unwrap(), DRAWN);
}

fn text_and_screen() {
    let print = |code: &mut CodeAssembler, text: &[u8]| -> Step {
        for (byte, port) in text.iter().zip([0xe9, 0x402].into_iter().cycle()) {
            code.mov(dx, port)?;
            code.mov(al, u32::from(*byte))?;
            code.out(dx, al)?;
        }
        Ok(())
    };
    for (text, expected) in [("log\n", "log\n--- screen ---\n"), ("log", "log\n--- screen ---\n")] {
        let ran = on_pc(&[], |code| {
            print(code, text.as_bytes())?;
            draw(code)?;
            halt(code)
        });
        assert_eq!((ran.status, ran.text()), (0, format!("{expected}{DRAWN}")), "{}", ran.stderr);
    }
}

fn bare() {
    let files = Files::new();
    let guest = guest(&files, |code| {
        put(code, 0, b"A", 0x07)?;
        halt(code)
    });
    let doubt =
        "wrote \"A\" to the text screen at 0xb8000, which this machine does not have: give --machine pc";
    let on_bare = ran(&["run", &guest, "-q"]);
    assert!(on_bare.status == 0 && on_bare.stderr.contains(doubt), "{}", on_bare.stderr);
    let on_pc = ran(&["run", &guest, "-q", "--machine", "pc"]);
    assert_eq!((on_pc.status, on_pc.text().as_str()), (0, "A\n"), "{}", on_pc.stderr);
    assert!(!on_pc.stderr.contains("but"), "{}", on_pc.stderr);
}

/// Writes and reads all ports of the screen at every width, with many values, then shows a text.
fn hostile() {
    let ran = on_pc(&[], |code| {
        let (mut values, mut ports) = (code.create_label(), code.create_label());
        code.mov(ebx, 0x0102_0408)?;
        code.mov(cx, 40)?;
        code.set_label(&mut values)?;
        code.mov(dx, 0x3b0)?;
        code.set_label(&mut ports)?;
        code.mov(eax, ebx)?;
        code.out(dx, al)?;
        code.out(dx, ax)?;
        code.out(dx, eax)?;
        code.in_(al, dx)?;
        code.in_(ax, dx)?;
        code.in_(eax, dx)?;
        code.inc(dx)?;
        code.cmp(dx, 0x3e0)?;
        code.jb(ports)?;
        code.imul_3(ebx, ebx, 1_103_515_245)?;
        code.add(ebx, 12345)?;
        code.loop_(values)?;
        // Back to text, on a colour screen, from the first cell.
        code.mov(dx, 0x3c2)?;
        code.mov(al, 0x67)?;
        code.out(dx, al)?;
        code.mov(dx, 0x3ce)?;
        code.mov(ax, 0x0006)?;
        code.out(dx, ax)?;
        crtc(code, 0x0c, 0)?;
        crtc(code, 0x0d, 0)?;
        put(code, 1999, b"end", 0x07)?;
        halt(code)
    });
    assert_eq!((ran.status, ran.text()), (0, "\n".repeat(24) + &" ".repeat(79) + "e\n"), "{}", ran.stderr);
}

fn qemu() {
    let exits = |code: &mut CodeAssembler| -> Step {
        code.mov(al, 0x10)?;
        code.out(0xf4, al)
    };
    assert_eq!(on_pc(&["--debug-exit", "qemu"], exits).status, 33);
    assert_eq!(on_pc(&[], exits).status, 16);
}

fn refused() {
    let files = Files::new();
    let guest = guest(&files, halt);
    let screen = files.0.path().join("screen.png");
    let screen = screen.to_str().unwrap();
    let soft = ["--vcpu", "soft"];
    let bare = ran(&[&["run", &guest, "--screen", screen], &soft[..]].concat());
    assert_error(&bare, 110, "needs a machine with a text screen: give --machine pc");
    let input = guest.strip_suffix("@0x1000").unwrap();
    let replaced = ran(&[&["run", &guest, "--machine", "pc", "--screen", input], &soft[..]].concat());
    assert_error(&replaced, 110, "is also an input");
    for (option, value) in [("--trace", screen.to_string()), ("--profile", format!("json={screen}"))] {
        let arguments = ["run", &guest, "--machine", "pc", "--screen", screen, option, &value];
        let same = ran(&[&arguments[..], &soft].concat());
        assert_error(&same, 110, &format!("--screen and {option} write the same file, {screen}"));
    }
    assert!(!std::path::Path::new(screen).exists(), "nothing is written");
    let nowhere =
        ran(&[&["run", &guest, "--machine", "pc", "--screen", "/nowhere/s.txt"], &soft[..]].concat());
    assert_error(&nowhere, 110, "/nowhere/s.txt");
}

/// Prints each byte of the keyboard on port 0xE9, until the scan code of Escape.
fn prints_keys(code: &mut CodeAssembler) -> Step {
    let mut next = code.create_label();
    code.set_label(&mut next)?;
    code.in_(al, 0x64)?;
    code.test(al, 1)?;
    code.jz(next)?;
    code.in_(al, 0x60)?;
    code.out(0xe9, al)?;
    code.cmp(al, 0x01)?;
    code.jne(next)?;
    halt(code)
}

/// Runs a guest on a classic PC, with this input in a pipe.
fn typed(write: impl FnOnce(&mut CodeAssembler) -> Step, input: &[u8]) -> (i32, Vec<u8>) {
    let files = Files::new();
    let guest = guest(&files, write);
    let mut child = interactive(&["run", &guest, "--machine", "pc", "--timeout", "50"]);
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let mut seen = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut seen).unwrap();
    writer.join().unwrap().unwrap();
    (wait(&mut child), seen)
}

fn scan_codes() {
    let (status, seen) = typed(prints_keys, b"aB\x03\x1b[A\x1bx\n\x1b");
    let expected = [
        0x1e, 0x9e, 0x2a, 0x30, 0xb0, 0xaa, 0x1d, 0x2e, 0xae, 0x9d, 0xe0, 0x48, 0xe0, 0xc8, 0x38, 0x2d, 0xad,
        0xb8, 0x1c, 0x9c, 0x01,
    ];
    assert_eq!((status, seen.as_slice()), (0, &expected[..]));
}

fn flood() {
    let keys = b"abcdefghij".repeat(400);
    let (status, seen) = typed(prints_keys, &[&keys[..], b"\x1b"].concat());
    let codes: Vec<u8> = [0x1e, 0x30, 0x2e, 0x20, 0x12, 0x21, 0x22, 0x23, 0x17, 0x24]
        .iter()
        .flat_map(|code| [*code, code | 0x80])
        .collect();
    assert_eq!((status, seen), (0, [codes.repeat(400), vec![0x01]].concat()));
}

/// Programs the interrupt controllers. IRQ 1 and IRQ 8 pass, with the vectors 0x21 and 0x28.
fn program_controllers(code: &mut CodeAssembler) -> Step {
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 0x04),
        (0x21, 0x01),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 0x02),
        (0xa1, 0x01),
        (0xa1, 0xfe),
        (0x21, 0xf9),
    ] {
        code.mov(al, value)?;
        code.out(port, al)?;
    }
    Ok(())
}

/// The handler of the keyboard: prints the first three scan codes, which BL counts.
fn prints_a_key(code: &mut CodeAssembler) -> Step {
    let mut done = code.create_label();
    code.in_(al, 0x60)?;
    code.cmp(bl, 3)?;
    code.je(done)?;
    code.out(0xe9, al)?;
    code.inc(bl)?;
    code.set_label(&mut done)?;
    code.mov(al, 0x20)?;
    code.out(0x20, al)?;
    code.iret()
}

/// The handler of the clock: counts the first three events in BH.
fn counts_a_tick(code: &mut CodeAssembler) -> Step {
    let mut done = code.create_label();
    code.mov(al, 0x0c)?;
    code.out(0x70, al)?;
    code.in_(al, 0x71)?;
    code.test(al, 0x80)?;
    code.jz(done)?;
    code.cmp(bh, 3)?;
    code.je(done)?;
    code.inc(bh)?;
    code.set_label(&mut done)?;
    code.mov(al, 0x20)?;
    code.out(0xa0, al)?;
    code.out(0x20, al)?;
    code.iret()
}

/// Prints the scan codes of three bytes and the events of three ticks of the clock, all by interrupt.
fn interrupts() {
    let (status, seen) = typed(
        |code| {
            let (mut wait, mut after_key, mut after_tick) =
                (code.create_label(), code.create_label(), code.create_label());
            code.xor(ax, ax)?;
            code.mov(ds, ax)?;
            program_controllers(code)?;
            // A call over a handler pushes its address.
            code.call(after_key)?;
            prints_a_key(code)?;
            code.set_label(&mut after_key)?;
            code.pop(word_ptr(4 * 0x21))?;
            code.call(after_tick)?;
            counts_a_tick(code)?;
            code.set_label(&mut after_tick)?;
            code.pop(word_ptr(4 * 0x28))?;
            for vector in [0x21u64, 0x28] {
                code.mov(word_ptr(4 * vector + 2), 0)?;
            }
            code.xor(bx, bx)?;
            // 8192 Hz, and the periodic interrupt.
            for value in [0x230au32, 0x420b] {
                code.mov(ax, value)?;
                code.out(0x70, ax)?;
            }
            code.sti()?;
            code.set_label(&mut wait)?;
            code.hlt()?;
            code.cmp(bx, 0x0303)?;
            code.jne(wait)?;
            halt(code)
        },
        b"ab",
    );
    assert_eq!((status, seen.as_slice()), (0, &[0x1e, 0x9e, 0x30][..]));
}

/// Shows each byte of the keyboard as a character after a title, until the scan code of Escape.
fn shows_keys(code: &mut CodeAssembler) -> Step {
    draw(code)?;
    code.mov(di, 2 * 80)?;
    let mut next = code.create_label();
    code.set_label(&mut next)?;
    code.in_(al, 0x64)?;
    code.test(al, 1)?;
    code.jz(next)?;
    code.in_(al, 0x60)?;
    code.mov(ah, 0x0a)?;
    code.mov(word_ptr(di).es(), ax)?;
    code.add(di, 2)?;
    code.cmp(al, 0x01)?;
    code.jne(next)?;
    halt(code)
}

fn terminal() {
    let files = Files::new();
    let mut session = Session::start(&guest(&files, shows_keys));
    session.expect("\x1b[0;97;41m╔═╗");
    // The control characters of the guest are pictures.
    session.expect("\x1b[0;93;44mHello ←[31m•");
    session.type_keys(b"1");
    // The scan codes 2 and 0x82, in the second row of the panel, which begins in row 16.
    session.expect("\x1b[17;1H\x1b[0;92;40m☻é");
    session.type_keys(b"\x1b");
    let text = session.finish();
    // The panel is closed, with the three rows of its last picture up to the last one with text, before the summary and the status.
    let (panel, after) = text.split_once("\x1b[r\x1b[18;1H\x1b[0m\x1b[?25h").unwrap();
    assert!(panel.contains("\x1b[1;14r") && panel.contains("☺"), "{text:?}");
    assert!(after.contains("halted") && after.contains("status 0"), "{text:?}");
    assert!(!after.contains("-icanon") && after.contains("icanon"), "{text:?}");
}

fn interrupted() {
    let files = Files::new();
    let mut session = Session::start(&guest(&files, shows_keys));
    session.expect("╔═╗");
    // Ctrl-A x ends the machine.
    session.type_keys(b"\x01x");
    let text = session.finish();
    let (_, after) = text.split_once("\x1b[r\x1b[18;1H\x1b[0m\x1b[?25h").unwrap();
    assert!(after.contains("status 117") && !after.contains("-icanon"), "{text:?}");
}
