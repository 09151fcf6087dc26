//! The command line: help, usage, guests, files and exit statuses.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::ExitCode;
use support::{
    Files, assert_error, elf, machine_test, missing, on_terminal, plain_test, ran, run, shell, test_unless,
    vmm,
};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        plain_test("every_help_text_has_an_example", help),
        plain_test("wrong_usage_is_status_110", usage),
        plain_test("a_missing_guest_is_named_with_a_similar_one", similar_names),
        machine_test("an_address_that_looks_hexadecimal_is_mentioned", decimal_address),
        plain_test("guests_lists_every_built_in_guest", guests),
        machine_test("an_image_may_cover_the_buffers_of_simvirtio", over_the_buffers),
        machine_test("the_option_transport_selects_the_transport", transports),
        machine_test("each_kind_of_end_has_its_exit_status", statuses),
        machine_test("a_flat_binary_runs_in_the_requested_mode", files),
        machine_test("an_elf_file_runs_at_its_own_addresses", elf_files),
        machine_test("files_are_verified_only_on_request", verify),
        machine_test("a_file_with_the_name_of_a_built_in_guest_is_mentioned", shadowed),
        machine_test("input_comes_from_stdin_or_a_file", input),
        machine_test("control_characters_in_names_are_escaped", forged_names),
        plain_test("a_missing_file_is_named_with_a_similar_one", similar_files),
        test_unless(|| missing("script"), "a_terminal_shows_the_progress_of_a_report", slow_report),
        test_unless(|| missing("script"), "a_terminal_shows_how_long_a_guest_is_silent", silent_guest),
        test_unless(|| missing("script"), "a_terminal_shows_the_progress_of_a_grade", slow_grade),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn help() {
    let help = ran(&["--help"]);
    assert_eq!(help.status, 0);
    for text in ["vmm run simvirtio", "Exit status:\n  0 ", "guests", "grade", "vmm report run.json"] {
        assert!(help.text().contains(text), "{text}");
    }
    for subcommand in [
        &["run"][..],
        &["boot"],
        &["guests"],
        &["grade"],
        &["report"],
        &["compare"],
        &["doctor"],
        &["bench"],
        &["bench", "scale"],
    ] {
        let text = ran(&[subcommand, &["--help"]].concat()).text();
        let example = format!("Examples:\n  vmm {}", subcommand.join(" "));
        assert!(text.contains(&example), "{text}");
    }
    assert_eq!(ran(&["help", "run"]).text(), ran(&["run", "--help"]).text());
    assert!(ran(&["run", "--help"]).text().contains("--transport"));
    assert!(ran(&["--version"]).text().starts_with("vmm "));
    // The short form has one line, as scripts need it.
    assert_eq!(ran(&["-V"]).text().lines().count(), 1);
    let long = ran(&["--version"]);
    for line in ["commit ", "build ", "features ", "processors ", "transport "] {
        assert!(long.text().lines().any(|text| text.starts_with(line)), "{line}: {}", long.text());
    }
    let nothing = ran(&[]);
    assert_eq!((nothing.status, nothing.text().as_str()), (110, ""));
}

fn similar_files() {
    let files = Files::new();
    let run_json = files.write("run.json", b"{}");
    let wrong = run_json.replace("run.json", "rnu.json");
    let binary = files.write("sum.bin", &[0xf4]);
    let misspelt = binary.replace("sum.bin", "smu.bin");
    let there = format!("; the most similar name there is {run_json}");
    assert_error(&ran(&["report", &wrong]), 116, &there);
    assert_error(&ran(&["run", "real16-42", "--symbols", &wrong]), 110, &there);
    assert_error(&ran(&["exercise", "check", &wrong]), 110, &there);
    assert_error(&ran(&["grade", "so2", "--guest16", &misspelt]), 110, &format!("is {binary}"));
    assert_error(&ran(&[&misspelt]), 110, &format!("the most similar name is {binary}; "));
    assert_error(&ran(&["boot", &misspelt]), 116, &format!("is {binary}"));
    // Another kind of error, and a folder without a similar name.
    assert!(!ran(&["report", &run_json]).stderr.contains("similar"));
    assert!(!ran(&["report", &run_json.replace("run.json", "xyz")]).stderr.contains("similar"));
}

/// The times in the lines of progress with this text.
fn progress(shown: &str, text: &str) -> Vec<u32> {
    let times = shown
        .split('\r')
        .filter_map(|line| line.strip_prefix(&format!("vmm: {text} ("))?.strip_suffix(" s)\u{1b}[K"));
    times.map(|seconds| seconds.parse().unwrap()).collect()
}

fn slow_report() {
    let vmm = env!("CARGO_BIN_EXE_vmm");
    let shown = on_terminal(&format!("(sleep 4; echo x) | '{vmm}' report -"));
    let times = progress(&shown, "reading standard input");
    assert!(times.first() == Some(&2) && times.is_sorted(), "{shown:?}");
    assert!(shown.contains("\r\u{1b}[Kvmm: ") && shown.matches('\n').count() == 1, "{shown:?}");
    // A quick one, and one whose errors go elsewhere, show none.
    for line in
        [format!("echo x | '{vmm}' report -"), format!("(sleep 3; echo x) | '{vmm}' report - 2>&1 | cat")]
    {
        let shown = on_terminal(&line);
        assert!(shown.contains("error") && !shown.contains("reading"), "{shown:?}");
    }
    let dumb = on_terminal(&format!("(sleep 3; echo x) | TERM=dumb '{vmm}' report -"));
    assert!(dumb.contains("error") && !dumb.contains("reading"), "{dumb:?}");
}

fn silent_guest() {
    let run = |options: &str| {
        let vmm = env!("CARGO_BIN_EXE_vmm");
        on_terminal(&format!("'{vmm}' run real16-endless --vcpu soft --timeout 4 {options}"))
    };
    let shown = run("");
    let times = progress(&shown, "real16-endless runs, and has printed nothing");
    assert!(times.first() == Some(&2) && times.is_sorted(), "{shown:?}");
    assert!(shown.contains("\r\u{1b}[Kvmm: real16-endless: timeout"), "{shown:?}");
    assert!(!run("-q").contains("printed nothing"));
}

fn slow_grade() {
    let files = Files::new();
    let endless = files.write("endless.bin", &[0xeb, 0xfe]);
    let vmm = env!("CARGO_BIN_EXE_vmm");
    let shown = on_terminal(&format!("'{vmm}' grade so2 --guest16 {endless} --vcpu soft --timeout 4"));
    assert!(progress(&shown, &format!("grading, {endless} runs")).first() == Some(&2), "{shown:?}");
}

fn similar_names() {
    let similar = |name: &str, found: &str| {
        assert_error(
            &ran(&[name]),
            110,
            &format!("has the name {name}: the most similar name is {found}; `vmm guests`"),
        );
    };
    similar("simvrtio", "simvirtio");
    similar("real16-helo", "real16-hello");
    let files = Files::new();
    let binary = files.write("first.bin", &[0xf4]);
    similar(binary.strip_suffix(".bin").unwrap(), &binary);
    assert_error(&ran(&["zzzzzz"]), 110, "has the name zzzzzz: `vmm guests`");
}

fn decimal_address() {
    let files = Files::new();
    let halt = files.write("halt", &[0xf4]);
    let warning =
        "vmm: warn: the address 1000 is decimal, which is 0x3e8: write 0x1000 for a hexadecimal address";
    assert!(ran(&[&format!("{halt}@1000")]).stderr.contains(warning));
    assert!(ran(&[&format!("{halt}@1000:32")]).stderr.contains(warning));
    for address in ["0x1000", "4096", "0", "1001"] {
        let stderr = ran(&[&format!("{halt}@{address}")]).stderr;
        assert!(!stderr.contains("is decimal"), "{stderr}");
    }
}

fn usage() {
    for arguments in [
        &["run"][..],
        &["run", "a", "b"],
        &["--no-such-option", "simvirtio"],
        &["simvirtio", "--transport", "pigeon"],
        &["simvirtio", "--timeout", "-1"],
        &["simvirtio", "--timeout", "soon"],
        &["simvirtio", "--mem", "lots"],
        &["grade", "simvirtio"],
    ] {
        let ran = ran(arguments);
        assert_eq!(ran.status, 110, "{arguments:?}: {}", ran.stderr);
        assert!(
            ran.stderr.starts_with("vmm: error: ") && ran.text().is_empty(),
            "{arguments:?}: {}",
            ran.stderr
        );
    }
    assert_error(&ran(&["Cargo.toml@0x1000:lnog"]), 110, "\"@0x1000:lnog\" after the file Cargo.toml is not");
    for (words, subcommand) in
        [(&["rum", "x"][..], "run"), (&["reprt"], "report"), (&["gard", "so2", "./x"], "grade")]
    {
        let message = format!(
            "there is no subcommand, guest or file {}: the most similar subcommand is {subcommand};",
            words[0]
        );
        assert_error(&ran(words), 110, &message);
    }
    assert_error(&ran(&["no-such-guest"]), 110, "no built-in guest and no file has the name no-such-guest");
    assert_error(&ran(&["simvirtio", "--mode", "long"]), 110, "leave out --mode and --load-at");
    assert_error(&ran(&["simvirtio", "--mem", "2M"]), 110, "leave --mem out");
    for len in ["1", "4097", "65536"] {
        let message = format!("--queue-len must be 2 to 4096, not {len}");
        assert_error(&ran(&["simvirtio", "--queue-len", len]), 110, &message);
    }
    assert_error(&ran(&["hello-kvm", "--transport", "exit"]), 110, "window is at 1 MiB");
    for mem in ["0", "1", "4095", "0xfffff", "0x100001", "4G", "9223372036854775808"] {
        assert_error(&ran(&["real16-42", "--mem", mem]), 110, "--mem must be ");
    }
    let files = Files::new();
    let flat = files.write("flat", &[0xf4]);
    assert_error(&ran(&[&format!("{flat}@1:16"), "--mode", "real"]), 110, "given twice");
    assert_error(&ran(&[&format!("{flat}@1:16"), "--load-at", "1"]), 110, "given twice");
}

/// The device table and the buffers are RAM, so a guest without a driver may use these addresses.
fn over_the_buffers() {
    let files = Files::new();
    let over = ran(&[&files.write("over", &elf(0x1_0008, &[0x90, 0x90, 0xf4]))]);
    assert_eq!(over.status, 0, "{}", over.stderr);
    assert!(
        over.stderr.starts_with("vmm: warn: the image covers some of 0x1000a to 0x12fff"),
        "{}",
        over.stderr
    );
}

fn guests() {
    let list = ran(&["guests"]);
    assert_eq!(list.status, 0);
    for guest in guest::GUESTS {
        assert!(list.text().lines().any(|line| line.trim_start().starts_with(guest.name)), "{}", guest.name);
    }
}

fn transports() {
    let by_exit = ran(&["simvirtio", "--transport", "exit"]);
    let by_polling = ran(&["simvirtio", "--transport", "polling"]);
    assert_eq!((by_exit.status, by_polling.status), (0, 0));
    assert_eq!(by_exit.stdout, by_polling.stdout);
    assert!(by_exit.stderr.contains("vmm: 40 exits"), "{}", by_exit.stderr);
    assert!(by_exit.stderr.contains("simvirtio TX head"), "{}", by_exit.stderr);
    assert!(by_polling.stderr.contains("vmm: 1 exit: 1 HLT"), "{}", by_polling.stderr);
    let default = if cfg!(feature = "polling") { "by polling" } else { "by exits" };
    assert!(ran(&["simvirtio"]).stderr.contains(default));
}

fn statuses() {
    for (guest, status, text) in [
        ("real16-42", 0, "halted; verified: AX = 42"),
        ("long64-exit-code", 7, "exited with code 7"),
        ("real16-wrong-result", 111, "wrong result: AX = 41"),
        ("long64-triple-fault", 112, "triple fault"),
        ("prot32-triple-fault", 112, "triple fault"),
        ("simvirtio-config-first", 113, "SIMVIRTIO protocol error: in state Initial the device expected 'R'"),
        ("simvirtio-broken-wait", 113, "SIMVIRTIO protocol error"),
        ("real16-endless", 114, "timeout"),
        ("long64-endless", 114, "timeout"),
    ] {
        for transport in ["exit", "polling"] {
            let timeout = if status == 114 { "0.1" } else { "20" };
            let ran = ran(&[guest, "--timeout", timeout, "--transport", transport]);
            assert_eq!(ran.status, status, "{guest}: {}", ran.stderr);
            assert!(ran.stderr.contains(text), "{guest}: {}", ran.stderr);
        }
    }
}

fn files() {
    let files = Files::new();
    // Without options, a flat binary runs at 0 in real mode: mov al, '!'; out 0xe9, al; hlt.
    let plain = files.write("plain", &[0xb0, b'!', 0xe6, 0xe9, 0xf4]);
    assert_eq!(ran(&[&plain]).text(), "!");
    assert_eq!(ran(&["run", &plain]).text(), "!");
    for guest in ["real16-hello:16", "prot32-hello:32", "long64-hello:64"] {
        let (name, mode) = guest.split_once(':').unwrap();
        let file = files.guest(name);
        let short = ran(&[&format!("{file}:{mode}"), "--verify"]);
        assert_eq!((short.status, short.text().as_str()), (0, "Hello, world!\n"), "{}", short.stderr);
        let (path, address) = file.split_once('@').unwrap();
        let long = ran(&["--mode", mode, "--load-at", address, path, "--verify"]);
        assert_eq!((long.status, long.text().as_str()), (0, "Hello, world!\n"), "{}", long.stderr);
    }
    // Without options, a guest at 1 MiB or above runs in long mode, with 250 MiB of memory.
    assert_eq!(ran(&[&files.guest("hello-kvm")]).text(), "Hello, KVM!");
    // Files see the host's CPUID, so a guest can switch to long mode itself.
    assert_eq!(ran(&[&files.guest("modes"), "--verify"]).status, 0);
}

fn elf_files() {
    let files = Files::new();
    let image = guest::find("long64-hello").unwrap().image;
    let ran_elf = ran(&[&files.write("elf", &elf(0x1000, image)), "--verify"]);
    assert_eq!((ran_elf.status, ran_elf.text().as_str()), (0, "Hello, world!\n"), "{}", ran_elf.stderr);
    let high = guest::find("hello-kvm").unwrap().image;
    // The same in ring 3: mov eax, 42; mov [0x400], rax; lea rsi, [rel zero]; mov edx, 0xf4; outsb; zero: db 0
    let user = &[
        0xb8, 42, 0, 0, 0, 0x48, 0x89, 0x04, 0x25, 0, 4, 0, 0, 0x48, 0x8d, 0x35, 6, 0, 0, 0, 0xba, 0xf4, 0,
        0, 0, 0x6e, 0,
    ];
    let (file, flat) = (files.write("user", &elf(0x1000, user)), files.write("flat", user));
    for mode in ["user64", "user", "ring3"] {
        for arguments in [&[&file, "--mode", mode][..], &[&format!("{flat}@0x1000:{mode}")]] {
            let ran = run(vmm(arguments).args(["--verify"]));
            assert_eq!(ran.status, 0, "{}", ran.stderr);
            assert!(ran.stderr.contains("exited with code 0; verified: RAX = 42"), "{}", ran.stderr);
        }
    }
    // The same code ends in the same way in ring 0. HLT ends the guest only in ring 0.
    assert_eq!(ran(&[&file, "--mode", "long", "--verify"]).status, 0);
    let halts = files.write("halts", &elf(0x1000, &[0xf4]));
    assert_eq!((ran(&[&halts]).status, ran(&[&halts, "--mode", "user64"]).status), (0, 112));
    let ran_high = ran(&[&files.write("high", &elf(0x10_0000, high))]);
    assert_eq!((ran_high.status, ran_high.text().as_str()), (0, "Hello, KVM!"), "{}", ran_high.stderr);
}

fn verify() {
    let files = Files::new();
    let wrong = files.guest("real16-wrong-result");
    assert_eq!(ran(&[&wrong]).status, 0);
    assert_eq!(ran(&[&wrong, "--verify"]).status, 111);
}

fn shadowed() {
    let files = Files::new();
    // out 0xf4, al with 7 in it: mov al, 7; out 0xf4, al
    files.write("real16-hello", &[0xb0, 7, 0xe6, 0xf4]);
    let in_folder = |guest: &str| run(vmm(&[guest]).current_dir(files.0.path()));
    let built_in = in_folder("real16-hello");
    assert_eq!((built_in.status, built_in.text().as_str()), (0, "Hello, world!\n"), "{}", built_in.stderr);
    let note = "give ./real16-hello to run the file";
    assert!(built_in.stderr.lines().next().unwrap().contains(note), "{}", built_in.stderr);
    assert_eq!(in_folder("./real16-hello").status, 7);
    // A folder of this name is not a guest.
    std::fs::create_dir(files.0.path().join("real16-42")).unwrap();
    assert!(!in_folder("real16-42").stderr.contains("built-in"), "no note");
}

fn input() {
    let files = Files::new();
    let text = files.write("text", b"from a file");
    for transport in ["exit", "polling"] {
        let piped = shell("echo from a pipe | \"$0\" simvirtio-upper --transport \"$1\"", &[transport]);
        assert_eq!((piped.status, piped.text().as_str()), (0, "FROM A PIPE\n"), "{}", piped.stderr);
        let read = ran(&["simvirtio-upper-c", "--transport", transport, "--input", &text]);
        assert_eq!((read.status, read.text().as_str()), (0, "FROM A FILE"), "{}", read.stderr);
        let closed = shell("\"$0\" simvirtio-upper --transport \"$1\" <&-", &[transport]);
        assert_eq!((closed.status, closed.text().as_str()), (0, ""), "{}", closed.stderr);
        let folder = shell("\"$0\" simvirtio-upper --transport \"$1\" </", &[transport]);
        assert_eq!(folder.status, 115, "{}", folder.stderr);
        assert!(folder.stderr.contains("input could not be read"), "{}", folder.stderr);
        let gone = shell("yes | \"$0\" simvirtio-upper --transport \"$1\" | head -n 3; wait", &[transport]);
        assert_eq!(gone.text(), "Y\nY\nY\n", "{}", gone.stderr);
        assert!(gone.stderr.contains("output could not be written"), "{}", gone.stderr);
    }
    // The input of a guest that does not read it is not touched.
    for transport in ["exit", "polling"] {
        let folder = shell("\"$0\" simvirtio --transport \"$1\" </", &[transport]);
        assert_eq!((folder.status, folder.text().as_str()), (0, "Ana are mere"), "{}", folder.stderr);
        let rest = shell("(\"$0\" simvirtio --transport \"$1\"; cat) <\"$2\"", &[transport, &text]);
        assert_eq!(rest.text(), "Ana are merefrom a file", "{}", rest.stderr);
    }
    assert_error(&ran(&["simvirtio-upper", "--input", "/no/such/file"]), 110, "for --input");
    // A machine without SIMVIRTIO has no input.
    let unused = ran(&["hello-kvm", "--input", &text]);
    assert_eq!(unused.status, 0, "{}", unused.stderr);
    assert!(
        unused.stderr.starts_with(&format!("vmm: warn: --input {text} was not read")),
        "{}",
        unused.stderr
    );
}

fn forged_names() {
    let files = Files::new();
    let name = "x\nvmm: x: halted; verified: AX = 42\x1b[2J";
    let guest = files.write(name, guest::find("real16-wrong-result").unwrap().image);
    let mistaken = format!("{guest}@nowhere");
    let forged = ran(&["simvirtio", "x\nvmm: x: halted; verified: RAX = 42\x1b]0;x"]);
    assert_eq!(forged.status, 110);
    for ran in [
        forged,
        ran(&[&guest]),
        ran(&[&format!("{guest}.missing")]),
        ran(&[&mistaken]),
        ran(&["grade", "--guest16", &guest]),
    ] {
        let all = ran.text() + &ran.stderr;
        assert!(!all.contains('\x1b') && !all.lines().any(|line| line.starts_with("vmm: x:")), "{all}");
        assert!(all.contains("x\\nvmm"), "{all}");
    }
}
