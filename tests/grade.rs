//! `vmm grade so2`: right images get all points, and a wrong image loses only the points of its own task.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::ExitCode;
use support::assembler::{
    CodeAssembler, IcedError, al, assemble, byte_ptr, dword_ptr, eax, ecx, halt_with_42_in_eax, rax, rcx,
};
use support::{Files, assert_error, each_on_both, elf, plain_test, ran, shell};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        plain_test("an_image_that_cannot_be_read_gives_no_grade", unreadable_images),
        plain_test("nothing_to_grade_is_a_usage_error", nothing),
    ];
    tests.extend(each_on_both(&[
        ("the_built_in_guests_get_100_points", grade),
        ("right_images_of_a_student_get_all_points", right_students),
        ("a_wrong_image_loses_only_the_points_of_its_task", wrong_students),
        ("an_image_that_disappears_gives_no_grade", disappearing_image),
        ("a_task_without_an_image_is_not_graded", some_images),
        ("a_driver_that_ignores_the_queue_length_loses_a_part", queue_length),
        ("a_driver_with_a_shorter_queue_is_told_so", short_queue),
        ("an_image_for_another_mode_is_told_so", wrong_mode),
        ("an_endless_driver_costs_one_time_limit", endless_driver),
        ("a_failed_check_begins_with_what_is_missing", reasons),
        ("without_a_time_limit_an_endless_guest_still_ends", without_a_time_limit),
        ("a_time_limit_that_no_guest_can_meet_gives_no_grade", short_limit),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// Runs the grade. Returns the points of its tasks, the exit status and the text. The last line has their sums.
fn points(arguments: &[&str]) -> (Vec<u32>, i32, String) {
    let ran = ran(&[&["grade", "--timeout", "5"], arguments].concat());
    let text = ran.text();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with(['+', '-']));
    let number = |text: &str| text.trim().parse::<u32>().expect("points");
    let mut lines: Vec<(u32, u32)> = lines
        .map(|line| {
            let (earned, of) = line.split_once('/').expect("points of points");
            (number(earned), number(of.split(' ').next().unwrap()))
        })
        .collect();
    let sums = lines.pop().expect("a last line");
    let (earned, all): (Vec<_>, Vec<_>) = lines.into_iter().unzip();
    assert_eq!(sums, (earned.iter().sum(), all.iter().sum()), "{text}");
    assert_eq!(ran.status, if sums.0 == sums.1 { 0 } else { 111 }, "{text}");
    (earned, ran.status, text)
}

fn grade() {
    let (tasks, status, text) = points(&["--reference"]);
    assert_eq!((&tasks[..], status), (&[30, 20, 30, 10, 10][..], 0), "{text}");
    for evidence in [
        "40 exits with transport exit (39 at the device), 1 with polling",
        "exactly the exits that `vmm guests` lists",
    ] {
        assert!(text.contains(evidence), "{text}");
    }
    assert_eq!(text.matches("(built-in guest): halted").count(), 8, "{text}");
}

/// Only the tasks that were handed in are graded, and no built-in guest earns points.
fn some_images() {
    let files = Files::new();
    let image = files.guest("real16-42");
    let grade = ran(&["grade", "--guest16", &image]);
    let file = image.split('@').next().unwrap();
    assert!(grade.text().contains(&format!("+ {file}: halted")), "{}", grade.text());
    assert!(grade.text().ends_with("\n 30/30\n") && !grade.text().contains("built-in"), "{}", grade.text());
    let notice = "vmm: not graded, because there is no image: a 32-bit or 64-bit guest (--guest64), \
                  SIMVIRTIO and polling (--simvirtio)\n";
    assert_eq!((grade.status, grade.stderr.as_str()), (0, notice));
    let grade = ran(&["grade", "--guest16", &image, "--guest64", "/dev/null", "--simvirtio", "/dev/null"]);
    assert!(!grade.stderr.contains("not graded"), "{}", grade.stderr);
}

/// Nothing was handed in, so there are no points.
fn nothing() {
    for course in [&["grade"][..], &["grade", "so2"], &["grade", "kev"]] {
        let grade = ran(course);
        assert_error(&grade, 110, "there is nothing to grade: give --gu");
        assert!(grade.stderr.contains("or --reference to grade the built-in guests"), "{}", grade.stderr);
    }
    for image in ["--guest16=x", "--guest64=x", "--simvirtio=x", "--guest=kev-msr=x"] {
        let both = ran(&["grade", "--reference", image]);
        assert!(both.status == 110 && both.stderr.contains("cannot be used with"), "{}", both.stderr);
    }
}

/// A failed check begins with the file and what is missing, and names no option that the grade lacks.
fn reasons() {
    let files = Files::new();
    let no_driver = files.write("no-driver", &prints_only("x"));
    let long = files.write("long.elf", &elf(0x1000, &[0xf4]));
    let high = files.write("high.elf", &elf(0x40_0000, &[0xf4]));
    let object = files.write("cut.elf", b"\x7fELF\x02\x01");
    let empty = files.write("empty", b"");
    for (option, image, reason) in [
        (
            "--simvirtio",
            &no_driver,
            "must end in state Ready, with a message that contains \"Ana are mere\" (halted; ",
        ),
        (
            "--guest64",
            &format!("{}:long", files.write("endless", &[0xeb, 0xfe])),
            "must halt, and leave 42 as its result (timeout: ",
        ),
        ("--guest64", &format!("{no_driver}:long"), "must print \"Hello, world!\" (halted; "),
        (
            "--guest16",
            &long,
            "needs to start in real mode, not in long mode: give a flat binary (nasm -f bin)",
        ),
        ("--guest16", &object, "the ELF file cannot be read"),
        ("--guest64", &empty, "the image is empty"),
        (
            "--simvirtio",
            &high,
            "lies at 0x400000 to 0x400000, and a SIMVIRTIO guest must lie below 0x100000: link it",
        ),
    ] {
        let (_, status, text) = points(&[option, image]);
        let file = image.split(":long").next().unwrap();
        let line = text.lines().find(|line| line.trim_start().starts_with("- ")).unwrap();
        let rest = line.trim_start().strip_prefix("- ").unwrap().strip_prefix(file).expect("the file's name");
        assert!(rest.trim_start_matches([':', ' ']).starts_with(reason), "{text}");
        assert!(status == 111 && !text.contains("--mem"), "{text}");
    }
}

fn right_students() {
    let files = Files::new();
    let (g16, g64) = (files.guest("real16-hello"), files.guest("long64-hello"));
    for driver in ["simvirtio-c", "simvirtio-skeleton", "simvirtio"] {
        let driver = files.guest(driver);
        let (tasks, _, text) = points(&["--guest16", &g16, "--guest64", &g64, "--simvirtio", &driver]);
        assert_eq!(tasks, [30, 20, 30, 10], "{text}");
    }
    let (tasks, _, text) = points(&["--simvirtio", &files.guest("simvirtio-struct"), "--layout", "struct"]);
    assert_eq!(tasks, [30, 10], "{text}");
    let (tasks, _, text) = points(&["--simvirtio", &files.guest("simvirtio-struct")]);
    assert!(tasks == [0, 0] && text.contains("struct device_t"), "{text}");
    let g32 = format!("{}:protected", files.guest("prot32-hello"));
    let executable = files.write("elf", &elf(0x1000, guest::find("simvirtio-c").unwrap().image));
    let (tasks, _, text) = points(&["--guest64", &g32, "--simvirtio", &executable]);
    assert_eq!(tasks, [20, 30, 10], "{text}");
}

fn wrong_students() {
    let files = Files::new();
    let nothing = files.write("nothing", b"");
    let no_driver = files.write("no-driver", &prints_only("Ana are mere"));
    let (real, long) = (files.guest("real16-hello"), files.guest("long64-hello"));
    let silent = files.write("silent", &[0xb8, 42, 0, 0, 0, 0x89, 0x04, 0x25, 0, 4, 0, 0, 0xf4]);
    let right = ["--guest16", &real, "--guest64", &long, "--simvirtio", &files.guest("simvirtio")];
    for (option, images, expected) in [
        (
            "--guest16",
            vec![
                files.guest("real16-wrong-result"),
                files.guest("real16-endless"),
                format!("{long}:long"),
                nothing.clone(),
            ],
            [0, 20, 30, 10],
        ),
        (
            "--guest64",
            vec![files.guest("long64-triple-fault"), format!("{real}:real"), silent.clone(), nothing.clone()],
            [30, 0, 30, 10],
        ),
        (
            "--simvirtio",
            vec![
                files.guest("simvirtio-config-first"),
                no_driver,
                files.guest("long64-hello"),
                silent,
                nothing,
            ],
            [30, 20, 0, 0],
        ),
        ("--simvirtio", vec![files.guest("simvirtio-reserved")], [30, 20, 30, 0]),
    ] {
        for image in images {
            let mut arguments = right;
            let at = arguments.iter().position(|argument| *argument == option).unwrap();
            arguments[at + 1] = &image;
            let (tasks, status, text) = points(&arguments);
            assert_eq!((&tasks[..], status), (&expected[..], 111), "{option} {image}:\n{text}");
        }
    }
}

/// The message arrives through queues of the usual length only.
fn queue_length() {
    let files = Files::new();
    let (tasks, _, text) = points(&["--simvirtio", &files.guest("simvirtio-no-wrap")]);
    assert_eq!(tasks, [25, 5], "{text}");
    let remark = "the driver must read max_queue_len; costs 5 points";
    assert_eq!(text.matches(remark).count(), 2, "{text}");
}

/// A driver with queues of 8 bytes, which it does not read: R, C, and a message of 12 bytes.
fn short_queue() {
    let files = Files::new();
    let driver = files.write("short", &assemble(64, 0x1000, sends_through_8_bytes));
    let (tasks, _, text) = points(&["--simvirtio", &format!("{driver}@0x1000")]);
    assert_eq!(tasks, [0, 0], "{text}");
    let cause = "TX head went from 7 back to 0, but the queue has 256 bytes, so it seems that the driver does not read \
                 max_queue_len";
    assert_eq!(text.matches(cause).count(), 2, "{text}");
    assert!(text.contains(": with polling, it must end in state Ready"), "{text}");
}

/// Does the handshake, and sends the message.
fn sends_through_8_bytes(code: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut push, mut not_full, mut wait) = (code.create_label(), code.create_label(), code.create_label());
    let wait_for = |code: &mut CodeAssembler, status: u32| {
        let mut again = code.create_label();
        code.set_label(&mut again)?;
        code.cmp(byte_ptr(0x10_0006), status)?;
        code.jne(again)
    };
    code.xor(ecx, ecx)?;
    code.mov(al, u32::from(b'R'))?;
    code.call(push)?;
    code.mov(byte_ptr(0x10_0007), 0)?;
    code.mov(al, u32::from(b'C'))?;
    code.call(push)?;
    wait_for(code, 2)?;
    code.mov(byte_ptr(0x10_0007), 4)?;
    wait_for(code, 4)?;
    for byte in b"Ana are mere" {
        code.mov(al, u32::from(*byte))?;
        code.call(push)?;
    }
    halt_with_42_in_eax(code)?;
    code.set_label(&mut push)?;
    code.mov(byte_ptr(rcx + 0x1_1000), al)?;
    code.inc(ecx)?;
    code.cmp(ecx, 8)?;
    code.jne(not_full)?;
    code.xor(ecx, ecx)?;
    code.set_label(&mut not_full)?;
    code.mov(dword_ptr(0x10_0010), ecx)?;
    code.set_label(&mut wait)?;
    code.cmp(dword_ptr(0x10_0014), ecx)?;
    code.jne(wait)?;
    code.ret()
}

/// A 64-bit image for the real-mode task runs there, and leaves something else.
fn wrong_mode() {
    let files = Files::new();
    let wide = files.write(
        "wide",
        &assemble(64, 0x1000, |code| {
            code.mov(eax, 42)?;
            code.mov(rcx, rax)?;
            code.mov(dword_ptr(0x400), eax)?;
            code.hlt()
        }),
    );
    let (_, _, text) = points(&["--guest16", &format!("{wide}@0x1000")]);
    assert!(
        text.contains("; probably the code is for another mode: give :32 or :64 (FILE@ADDR:MODE)\n"),
        "{text}"
    );
}

/// The other runs of a driver that does not end are left out, and say so.
fn endless_driver() {
    let files = Files::new();
    let grade = ran(&["grade", "--timeout", "2", "--simvirtio", &files.guest("long64-endless")]);
    assert_eq!(grade.text().matches("the guest did not end within 2 s").count(), 1, "{}", grade.text());
    assert!(
        grade.text().contains("not run, because it does not end with transport exit"),
        "{}",
        grade.text()
    );
    assert!(grade.text().ends_with("\n  0/40\n"), "{}", grade.text());
}

/// These errors are found before the first task runs, and without KVM.
fn unreadable_images() {
    let files = Files::new();
    let missing = files.0.path().join("missing").to_str().unwrap().to_string();
    let folder = files.0.path().to_str().unwrap();
    let flat = files.write("flat", &[0xf4]);
    for option in ["--guest16", "--guest64", "--simvirtio"] {
        assert_error(&ran(&["grade", option, &missing]), 110, "cannot read ");
        assert_error(&ran(&["grade", option, &format!("{missing}@0x1000:64")]), 110, "cannot read ");
        assert_error(&ran(&["grade", option, folder]), 110, "is not a regular file");
        assert_error(&ran(&["grade", option, ""]), 110, "the guest's name is empty");
        assert_error(&ran(&["grade", option, &format!("{flat}:lnog")]), 110, "is not an address or mode");
    }
}

/// The image is removed after the check of the command line, while the first tasks run.
fn disappearing_image() {
    let files = Files::new();
    let endless = files.guest("long64-endless");
    let driver = files.guest("simvirtio");
    let (file, _) = driver.split_once('@').unwrap();
    let line = "\"$0\" grade --timeout 3 --guest64 \"$1\" --simvirtio \"$2\" & sleep 1; rm \"$3\"; wait $!";
    assert_error(&shell(line, &[&endless, &driver, file]), 110, "cannot read ");
}

fn short_limit() {
    let ran = ran(&["grade", "--reference", "--timeout", "0.000000001"]);
    assert_error(&ran, 110, "error: --timeout is too short for this host: the built-in guest ");
    let ran = support::ran(&["grade", "--reference", "--wall-timeout", "0.000000001"]);
    assert_error(&ran, 110, "error: --wall-timeout is too short for this host: the built-in guest ");
}

/// The wall-clock limit does not need a time limit. A unit test checks its default, which is too long to wait for.
fn without_a_time_limit() {
    let files = Files::new();
    let endless = files.guest("real16-endless");
    let ran = ran(&["grade", "--timeout", "0", "--wall-timeout", "5", "--guest16", &endless]);
    assert!(ran.status == 111 && ran.text().contains("  0/30  a 16-bit"), "{}", ran.text());
}

/// Returns a 64-bit image that prints `text` on port 0xE9, leaves 42 and halts.
fn prints_only(text: &str) -> Vec<u8> {
    let mut image: Vec<u8> = text.bytes().flat_map(|byte| [0xb0, byte, 0xe6, 0xe9]).collect();
    image.extend([0xb8, 42, 0, 0, 0, 0x89, 0x04, 0x25, 0, 4, 0, 0, 0xf4]);
    image
}
