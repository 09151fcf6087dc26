//! The keys of exercises, one after the other: weights, random texts, features, times, Linux kernels, and VMMs that are observed.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::ExitCode;
use support::kernels::{POWER_OFF, PRINT_COMMAND_LINE, RESET, kernel};
use support::{Files, Ran, assert_error, each_on_both, kvm_test, plain_test, ran};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        kvm_test("a_linux_kernel_boots_with_its_command_line", linux),
        kvm_test("a_vmm_is_observed", observed),
        kvm_test("a_vmm_runs_a_guest_of_the_exercise", image_for_vmm),
        kvm_test("a_vmm_finds_the_files_beside_it", beside_vmm),
        kvm_test("a_vmm_that_fails_says_why", failed_vmm),
        kvm_test("a_vmm_that_hangs_says_where", hanging_vmm),
        kvm_test("features_of_kvm_can_be_forbidden", kvm_features),
        plain_test("files_outside_the_folder_are_refused", outside),
        plain_test("a_helper_is_for_the_courses", helper),
    ];
    tests.extend(each_on_both(&[
        ("a_weight_multiplies_the_points", weight),
        ("a_random_text_reaches_the_guest", random_text),
        ("details_are_shown_after_the_deadline", deadline),
        ("features_of_guests_can_be_forbidden", features),
        ("the_first_exit_that_is_too_many_is_named", surplus),
        ("a_time_is_compared_with_that_of_a_reference", time),
        ("an_input_does_not_overwrite_the_code", input),
        ("the_size_of_a_submission_does_not_change_its_machine", size),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// The settings of a flat binary in real mode.
const REAL: &str = "mode = \"real\"\naddress = 0x1000\ntimeout = 5\n";
/// Prints the text at 0x500: mov si, 0x500; next: lodsb; test al, al; jz end; out 0xe9, al; jmp next; end: hlt.
const PRINT_INPUT: [u8; 13] = [0xbe, 0, 5, 0xac, 0x84, 0xc0, 0x74, 4, 0xe6, 0xe9, 0xeb, 0xf7, 0xf4];

/// Grades a file for a task of 10 points.
fn graded(files: &Files, run: &str, code: &[u8], task: &str) -> Ran {
    let text = format!(
        "version = 1\nname = \"x\"\n[run]\n{run}[[task]]\nname = \"t\"\npoints = 10\nfile = \"a.bin\"\n{task}"
    );
    let submission = files.write("a.bin", code);
    ran(&["grade", &files.write("a.toml", text.as_bytes()), &submission, "--seed", "1"])
}

/// Grades a file. The text of the grade has all of these parts.
fn shows(run: &str, code: &[u8], task: &str, parts: &[&str]) {
    let graded = graded(&Files::new(), run, code, task);
    for part in parts {
        assert!(graded.text().contains(part), "{task}\n{part}\n{}{}", graded.text(), graded.stderr);
    }
}

fn weight() {
    let task = "weight = 0.5\ninput = \"a\"\ninput_at = 0x500\n[[task.check]]\npoints = 3\noutput = \"b\"\n\
                [[task.check]]\npoints = 2\nexits = \"=0\"\n";
    let parts = ["2.5/5   t\n", "; costs 1.5 points\n", "; costs 1 point\n", "\n2.5/5\n"];
    shows(REAL, &PRINT_INPUT, task, &parts);
}

fn random_text() {
    let task = "random = { word = { letters = [5, 12] } }\ninput = \"<{word}>\"\ninput_at = 0x500\n\
                [[task.check]]\noutput = \"<{word}>\"\nmatches = \"^<[a-z]{5,12}>$\"\n";
    shows(REAL, &PRINT_INPUT, task, &["\n 10/10\n"]);
}

fn deadline() {
    let files = Files::new();
    let text = |deadline: &str| {
        let text = format!(
            "version = 1\nname = \"x\"\ndeadline = \"{deadline}\"\n[run]\n{REAL}[[task]]\nname = \"t\"\npoints = 10\nfile = \"a.bin\"\n\
             [[task.check]]\nname = \"one\"\nexpect = \"ax=1\"\nvisibility = \"after-deadline\"\n"
        );
        let submission = files.write("a.bin", &[0xf4]);
        ran(&["grade", &files.write("a.toml", text.as_bytes()), &submission, "--seed", "1"]).text()
    };
    let details = "one: ax must be 1, and is 0";
    assert!(text("2020-01-01T00:00:00Z").contains(details), "{}", text("2020-01-01T00:00:00Z"));
    let before = text("9999-01-01T00:00:00Z");
    assert!(before.contains("- one (hidden)") && !before.contains(details), "{before}");
}

fn features() {
    let task = "input = \"a\"\ninput_at = 0x500\n[[task.check]]\nforbid = [\"port-io\", \"protected-mode\", \"hypercall\", \"mmio\"]\n";
    shows(REAL, &PRINT_INPUT, task, &["- port-io may not be used, and was used; costs all", "  0/10\n"]);
    let task = task.replace("\"port-io\", ", "");
    shows(
        REAL,
        &PRINT_INPUT,
        &task,
        &["+ protected-mode was not used; hypercall was not used; mmio was not used", " 10/10\n"],
    );
}

fn surplus() {
    let task = "input = \"ab\"\ninput_at = 0x500\n[[task.check]]\nexits = [\"<=2\", \"port 0xe9/1<=1\", \"port 0xe9/2=0\"]\n";
    let parts = [
        "exits must be at most 2, and there were 3; the first one too many is exit 3 of the run: HLT",
        "exits (port 0xe9/1) must be at most 1, and there were 2; the first one too many is exit 2 of the run: PIO out 0xe9",
    ];
    shows(REAL, &PRINT_INPUT, task, &parts);
}

fn time() {
    let files = Files::new();
    // mov cx, 20000; again: loop again; hlt
    let reference = [0xb9, 0x20, 0x4e, 0xe2, 0xfe, 0xf4];
    fs::write(files.0.path().join("reference.bin"), reference).unwrap();
    // mov dx, 8; outer: mov cx, 20000; again: loop again; dec dx; jnz outer; hlt
    let slow = [0xba, 8, 0, 0xb9, 0x20, 0x4e, 0xe2, 0xfe, 0x4a, 0x75, 0xf8, 0xf4];
    let task = "[[task.check]]\ntime = { reference = \"reference.bin\", at_most = 3 }\n";
    let right = graded(&files, REAL, &reference, task);
    assert_eq!(right.status, 0, "{}{}", right.text(), right.stderr);
    let wrong = graded(&files, REAL, &slow, task);
    assert_eq!(wrong.status, 111, "{}{}", wrong.text(), wrong.stderr);
    let part = "- the time must be at most 3 times that of the reference, and is ";
    assert!(wrong.text().contains(part), "{}", wrong.text());
    // jmp $
    let endless = graded(&files, &REAL.replace("timeout = 5", "timeout = 0.2"), &[0xeb, 0xfe], task);
    assert!(endless.text().contains("was not measured"), "{}", endless.text());
    fs::write(files.0.path().join("reference.bin"), [0xeb, 0xfe]).unwrap();
    let none = graded(&files, &REAL.replace("timeout = 5", "timeout = 0.2"), &reference, task);
    let what = "the reference reference.bin does not end by itself";
    assert!(none.status == 115 && none.stderr.contains(what), "{}", none.stderr);
}

fn input() {
    let task = "input = \"abc\"\ninput_at = 0x1800\n[[task.check]]\nexits = \"=1\"\n";
    let long = [&[0xf4][..], &[0; 0xfff]].concat();
    shows(
        REAL,
        &long,
        task,
        &["- the file lies at 0x1000 to 0x1fff, and its input is at 0x1800 to 0x1803: make it smaller"],
    );
    shows(REAL, &long[..0x800], task, &[" 10/10\n"]);
}

/// Leaves the word at 0x200000 in EAX, which is not memory for a small guest.
fn size() {
    let task = "[[task.check]]\nexpect = \"rax=7\"\nexits = \"simvirtio=0\"\n";
    let run = "mode = \"long\"\naddress = 0x1000\ntimeout = 5\n";
    // mov eax, 7; hlt
    let mut code = vec![0xb8, 7, 0, 0, 0, 0xf4];
    shows(run, &code, task, &[" 10/10\n"]);
    code.resize(0xf_f000, 0x90);
    shows(run, &code, task, &[" 10/10\n"]);
    code.resize(0x10_0000, 0x90);
    shows(run, &code, task, &["  0/10\n"]);
    let more = run.replace("timeout", "memory = \"4M\"\ntimeout");
    shows(&more, &code, "[[task.check]]\nexpect = \"rax=7\"\n", &[" 10/10\n"]);
}

fn linux() {
    let files = Files::new();
    let image = |parts: &[&[u8]]| fs::read(kernel(&files, parts)).unwrap();
    let run = "kind = \"linux\"\ncmdline = \"hello\"\ntimeout = 20\n";
    let task = "[[task.check]]\noutput = \"hello\"\nexpect = \"end=power-off\"\n";
    shows(
        run,
        &image(&[PRINT_COMMAND_LINE, POWER_OFF]),
        task,
        &["+ the output is \"hello\" (5 bytes)", " 10/10\n"],
    );
    shows(
        run,
        &image(&[RESET]),
        task,
        &["the end of the run must be power-off, and is: rebooted", "  0/10\n"],
    );
    shows(run, b"text", task, &["is not a Linux kernel", "  0/10\n"]);
}

/// This program is a VMM.
fn own_program() -> Vec<u8> {
    fs::read(env!("CARGO_BIN_EXE_vmm")).unwrap()
}

/// Grades this program, with these arguments.
fn grade_vmm(files: &Files, args: &str, task: &str) -> Ran {
    use std::os::unix::fs::PermissionsExt;
    let program = files.write("a.bin", &own_program());
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let run = format!("kind = \"vmm\"\ntimeout = 20\nargs = {args}\n");
    let text = format!(
        "version = 1\nname = \"x\"\n[run]\n{run}[[task]]\nname = \"t\"\npoints = 10\nfile = \"a.bin\"\n{task}"
    );
    ran(&["grade", &files.write("a.toml", text.as_bytes()), &program, "--seed", "1"])
}

fn observed() {
    let files = Files::new();
    let task = "[[task.check]]\noutput = \"Hello, world!\\n\"\nexits = [\"port 0xe9/1>=13\", \"HLT=1\"]\n\
                expect = [\"eax=42\", \"u16@0x400=42\", \"end=0\"]\nforbid = [\"irqchip\", \"ioeventfd\"]\n";
    let right = grade_vmm(&files, "[\"run\", \"prot32-hello\"]", task);
    assert_eq!(right.status, 0, "{}{}", right.text(), right.stderr);
    let task = "random = { a = [3, 4] }\ninput = \"input\"\n[[task.check]]\nexits = [\"<=3\", \"mmio<=1\"]\nexpect = [\"eax=43\", \"end=3\"]\n\
                output = \"Hello\"\n";
    let wrong = grade_vmm(&files, "[\"run\", \"prot32-hello\"]", task).text();
    for part in [
        "eax must be 43 (0x2b), and is 42 (0x2a)",
        "exits must be at most 3, and there were 15; the first one too many is exit 4 of the run: PIO out 0xe9",
        "the end of the run must be the exit code 3, and is: exited with status 0",
        "differs at line 1, column 6 (offset 5): ",
    ] {
        assert!(wrong.contains(part), "{part}\n{wrong}");
    }
}

/// A program finds the files beside it: its current folder is that of the submission.
fn beside_vmm() {
    use std::os::unix::fs::PermissionsExt;
    let files = Files::new();
    let folder = files.0.path().join("submission");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.bin"), own_program()).unwrap();
    fs::set_permissions(folder.join("a.bin"), fs::Permissions::from_mode(0o755)).unwrap();
    // mov al, 'x'; out 0xe9, al; hlt
    fs::write(folder.join("guest.bin"), [0xb0, b'x', 0xe6, 0xe9, 0xf4]).unwrap();
    let text = "version = 1\nname = \"x\"\n[run]\nkind = \"vmm\"\ntimeout = 20\nargs = [\"run\", \"guest.bin\"]\n[[task]]\nname = \"t\"\n\
                points = 10\nfile = \"a.bin\"\n[[task.check]]\noutput = \"x\"\n";
    let exercise = files.write("a.toml", text.as_bytes());
    let right = ran(&["grade", &exercise, folder.to_str().unwrap()]);
    assert_eq!(right.status, 0, "{}{}", right.text(), right.stderr);
    // A folder of submissions is none itself.
    let class = files.0.path().join("class");
    for name in ["ana", "ben"] {
        fs::create_dir_all(class.join(name)).unwrap();
        fs::write(class.join(name).join("a.bin"), b"x").unwrap();
    }
    assert_error(
        &ran(&["grade", &exercise, class.to_str().unwrap()]),
        110,
        "is a folder of 2 submissions: grade ",
    );
}

/// A VMM runs a guest of the exercise, whose text is random, and its calls to KVM are checked.
fn image_for_vmm() {
    // mov si, text; each: lodsb; test al, al; jz end; out 0xe9, al; jmp each; end: hlt; text:
    const PRINTS: [u8; 13] = [0xbe, 0x0d, 0, 0xac, 0x84, 0xc0, 0x74, 4, 0xe6, 0xe9, 0xeb, 0xf7, 0xf4];
    let files = Files::new();
    files.write("hidden.bin", &PRINTS);
    let exercise = |task: &str| {
        let text = format!(
            "version = 1\nname = \"x\"\n[run]\nkind = \"vmm\"\ntimeout = 20\n[[task]]\nname = \"t\"\npoints = 10\nfile = \"a.bin\"\n\
             random = {{ word = {{ letters = [5, 12] }} }}\nimage = \"hidden.bin\"\n{task}"
        );
        files.write("a.toml", text.as_bytes())
    };
    let program = files.write("a.bin", &own_program());
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let image = "image_text = \"{word}\"\nargs = [\"run\", \"{image}\"]\n";
    let right = format!(
        "{image}[[task.check]]\noutput = \"{{word}}\"\nexits = \"port 0xe9>=5\"\n[[task.check]]\nname = \"memory from 0\"\n\
         setup = ['slot 0: 0x0 to ', '^vCPU 0 first entered in real mode']\n"
    );
    let ran_right = ran(&["grade", &exercise(&right), &program]);
    let text = ran_right.text();
    assert!(
        ran_right.status == 0 && text.contains("have the line \"KVM_SET_USER_MEMORY_REGION: slot 0"),
        "{text}{}",
        ran_right.stderr
    );
    let left = fs::read_dir(std::env::temp_dir()).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name().into_string().unwrap_or_default();
        // The number of this process's child is not known, so only a file that holds this guest counts.
        name.starts_with("vmm-image-")
            && fs::read(entry.as_ref().unwrap().path()).is_ok_and(|bytes| bytes.starts_with(&PRINTS))
    });
    assert_eq!(left.count(), 0, "a temporary image is left");
    let wrong = format!(
        "{image}[[task.check]]\nname = \"an interrupt controller\"\npoints = 4\nsetup = 'KVM_CREATE_IRQCHIP'\n"
    );
    let text = ran(&["grade", &exercise(&wrong), &program]).text();
    let part = "- an interrupt controller: the calls to KVM must have a line that matches \"KVM_CREATE_IRQCHIP\", and have none";
    assert!(text.contains("6/10") && text.contains(part), "{text}");
    for (task, why) in [
        (
            "args = [\"run\"]\n[[task.check]]\noutput = \"\"\n",
            "the program does not get the image: write args = [\"{image}\"]",
        ),
        (&*format!("{image}[[task.check]]\nsetup = '('\n"), "this is not a regular expression"),
        (
            "kind = \"image\"\n[[task.check]]\noutput = \"\"\n",
            "image has no meaning for kind = \"image\": leave it out",
        ),
        (
            "image_text = \"{x}\"\nargs = [\"{image}\"]\n[[task.check]]\noutput = \"\"\n",
            "is not a number: the random values",
        ),
    ] {
        assert_error(&ran(&["exercise", "check", &exercise(task)]), 116, why);
    }
}

fn failed_vmm() {
    let files = Files::new();
    let task = "[[task.check]]\nexits = \"=0\"\n";
    let wrong = grade_vmm(&files, "[\"run\", \"no-such-guest\"]", task).text();
    let part = "- the program must end by itself, with status 0, and exited with status 110; it made no VM (KVM_CREATE_VM); stderr: \
                vmm: error: no built-in guest";
    assert!(wrong.contains(part), "{wrong}");
    let endless = grade_vmm(&files, "[\"run\", \"real16-hello\", \"--sleep\"]", task).text();
    assert!(endless.contains("  0/10\n"), "{endless}");
    // Its student does not know the folder in which it is graded.
    let folder = files.0.path().to_str().unwrap();
    // A file without the right to be executed.
    let program = files.write("b.bin", &own_program());
    let not_a_program = ran(&["grade", &files.write("c.toml", format!("version = 1\nname = \"x\"\n[run]\nkind = \"vmm\"\n[[task]]\nname = \"t\"\npoints = 10\nfile = \"b.bin\"\n{task}").as_bytes()), &program]);
    assert!(not_a_program.text().contains("  0/10\n"), "{}{}", not_a_program.text(), not_a_program.stderr);
    let evidence = not_a_program.text();
    assert!(evidence.contains("b.bin") && !evidence.contains(folder), "{evidence}");
    let soft = ran(&["grade", &format!("{}/a.toml", files.0.path().display()), &program, "--vcpu", "soft"]);
    assert!(soft.status == 115 && soft.stderr.contains("runs on KVM: leave --vcpu out"), "{}", soft.stderr);
}

/// The place where a program stood at the end of its time.
fn hanging_vmm() {
    let files = Files::new();
    let grade = |program: &str, args: &str| {
        let program =
            support::missing(program).map_or_else(|| format!("/bin/{program}"), |why| panic!("{why}"));
        let copy = files.write("a.bin", &fs::read(fs::canonicalize(program).unwrap()).unwrap());
        fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let run = format!("kind = \"vmm\"\ntimeout = 2\nargs = {args}\n");
        let task = "[[task]]\nname = \"t\"\npoints = 10\nfile = \"a.bin\"\n[[task.check]]\nexits = \"=0\"\n";
        let text = format!("version = 1\nname = \"x\"\n[run]\n{run}{task}");
        ran(&["grade", &files.write("a.toml", text.as_bytes()), &copy, "--seed", "1"]).text()
    };
    let sleeping = grade("sleep", "[\"60\"]");
    let part = "did not end within 2 s; at the end it was in the system call clock_nanosleep";
    assert!(sleeping.contains(part), "{sleeping}");
    let vmm = |guest: &str| {
        let program = files.write("a.bin", &own_program());
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let text = format!(
            "version = 1\nname = \"x\"\n[run]\nkind = \"vmm\"\ntimeout = 3\nargs = [\"run\", {guest:?}, \"--timeout\", \"0\"]\n\
             [[task]]\nname = \"t\"\npoints = 10\nfile = \"a.bin\"\n[[task.check]]\nexits = \"=0\"\n"
        );
        ran(&["grade", &files.write("a.toml", text.as_bytes()), &program, "--seed", "1"]).text()
    };
    let endless = vmm("long64-endless");
    assert!(endless.contains("did not end within 3 s; at the end it had vCPU 0 in its guest"), "{endless}");
}

fn kvm_features() {
    let files = Files::new();
    let args = "[\"run\", \"simvirtio\", \"--transport\", \"doorbell\"]";
    let task = "[[task.check]]\nforbid = [\"irqchip\", \"ioeventfd\"]\n";
    let used = grade_vmm(&files, args, task).text();
    assert!(used.contains("- ioeventfd may not be used, and was used"), "{used}");
    assert!(grade_vmm(&files, args, &task.replace(", \"ioeventfd\"", "")).text().contains(" 10/10\n"));
}

fn outside() {
    let files = Files::new();
    let folder = files.0.path().join("exercise");
    fs::create_dir(&folder).unwrap();
    fs::write(files.0.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
    for (name, message) in [
        ("../secret", "it must be in the folder of the exercise"),
        ("/etc/passwd", "it must be in the folder of the exercise"),
        ("link", "a link leads to another folder"),
    ] {
        let path = folder.join("a.toml");
        let text = format!(
            "version = 1\nname = \"x\"\n[[task]]\nname = \"t\"\npoints = 1\nfile = \"a\"\n[[task.check]]\noutput_file = \"{name}\"\n"
        );
        fs::write(&path, text).unwrap();
        let checked = ran(&["exercise", "check", path.to_str().unwrap()]);
        assert_error(&checked, 116, message);
        assert!(checked.stderr.contains("a.toml:8:15: cannot read "), "{}", checked.stderr);
    }
}

fn helper() {
    let files = Files::new();
    let text = "version = 1\nname = \"x\"\n[[task]]\nname = \"t\"\npoints = 1\nfile = \"a\"\nhelper = \"so2-real\"\n[[task.check]]\nstep = \"entry\"\n";
    let checked = ran(&["exercise", "check", &files.write("a.toml", text.as_bytes())]);
    assert_error(&checked, 116, "a.toml:3:3: helper is for the built-in courses");
}
