//! Samples of a guest: `--sample`, its files and its table.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::Trial;
use std::fs;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::{Files, Ran, kvm_test, machine_test, on_both, plain_test, ran, run, vmm};

/// A guest that never ends. It is in `hot` most of the time, which `work` calls.
const HOT: &str = r#"
volatile unsigned long sink;
__attribute__((noinline)) void hot(void) { for (int i = 0; i < 3000; i++) sink += i; }
__attribute__((noinline)) void warm(void) { for (int i = 0; i < 300; i++) sink ^= i; }
__attribute__((noinline)) void work(void) { hot(); warm(); sink++; }
void _start(void) { for (;;) { work(); sink++; } }
"#;

/// A guest whose functions make a known number of exits. `first` ends with its `out`, so that RIP may be in `second`.
const EXITS: &str = r#"
__asm__(".text\n"
    ".globl first\n.type first, @function\nfirst: out %al, $0xe9\n.size first, . - first\n"
    ".globl second\n.type second, @function\nsecond: in $0x60, %al\nret\n.size second, . - second\n");
void first(void);
volatile int *const device = (int *)0x10000000;
__attribute__((noinline)) void store(int value) { *device = value; }
__attribute__((noinline)) void stores(void) { store(1); store(2); store(3); }
static inline __attribute__((always_inline)) void mark(void) { __asm__ volatile("outb %%al, $0x80" ::: "memory"); }
__attribute__((noinline)) void twice(void) { mark(); mark(); }
void _start(void) {
    for (int i = 0; i < 5; i++)
        first();
    stores();
    twice();
    for (;;) __asm__ volatile("hlt");
}
"#;

/// The stacks of its exits.
const STACKS: [(&str, u64); 5] = [
    ("_start;[exit] HLT", 1),
    ("_start;first;[exit] PIO out 0xe9 (debug console)", 5),
    ("_start;second;[exit] PIO in 0x60", 5),
    ("_start;stores;store;[exit] MMIO write 0x10000000", 3),
    ("_start;twice;mark;[exit] PIO out 0x80", 2),
];

fn main() -> ExitCode {
    support::watchdog();
    let mut tests: Vec<Trial> = Vec::new();
    tests.extend(on_both("the_hot_function_has_the_most_samples", hot));
    tests.extend(on_both("a_guest_without_symbols_has_the_addresses_of_its_callers", stripped));
    tests.extend(on_both("each_exit_has_its_stack", exits));
    tests.extend(on_both("samples_do_not_change_the_exits", same_exits));
    tests.extend(on_both("samples_need_no_thread", no_threads));
    tests.extend(on_both("each_vcpu_has_its_stacks", several));
    tests.extend(on_both("a_broken_stack_ends_the_walk", broken_stacks));
    tests.extend(on_both("code_of_16_bits_has_linear_addresses", real_mode));
    tests.extend(on_both("samples_of_the_vmm_name_the_exit", in_vmm));
    tests.extend(on_both("names_that_a_guest_chooses_do_no_harm", hostile_names));
    tests.push(kvm_test("native_code_is_not_kvm", native));
    tests.push(machine_test("a_short_run_has_no_samples", short));
    tests.push(machine_test("all_files_are_written", all_files));
    tests.push(machine_test("a_full_disk_is_status_115", full_disk));
    tests.push(plain_test("mistakes_are_found_before_the_run", refused));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// Compiles a guest. Returns the path of the program.
fn guest(files: &Files, name: &str, source: &str, options: &[&str]) -> String {
    let source = files.write(&format!("{name}.c"), source.as_bytes());
    let program = path(files, &format!("{name}.elf"));
    let mut gcc = Command::new("gcc");
    gcc.args([
        "-O1",
        "-ffreestanding",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-fno-pic",
        "-fno-stack-protector",
    ]);
    gcc.args(["-fcf-protection=none", "-mgeneral-regs-only", "-fno-optimize-sibling-calls"]);
    gcc.args(["-Wl,-Ttext-segment=0x10000", "-Wl,--build-id=none"]);
    let built = run(gcc.args(options).arg(&source).arg("-o").arg(&program).stdout(Stdio::piped()));
    assert_eq!(built.status, 0, "{}", built.stderr);
    program
}

fn path(files: &Files, name: &str) -> String {
    files.0.path().join(name).to_str().unwrap().into()
}

/// Runs a guest that never ends for a while, with samples. Returns the run, and the stacks with their counts.
fn sampled(files: &Files, arguments: &[&str]) -> (Ran, Vec<(String, u64)>) {
    let folded = path(files, "out.folded");
    let ran = ran(&[arguments, &["--timeout", "0.7", "--sample-file", &folded]].concat());
    assert_eq!(ran.status, 114, "{}", ran.stderr);
    let stacks = stacks(&folded);
    // A machine that is busy takes fewer samples than it should.
    assert!(total(&stacks, |_| true) >= 10, "{stacks:?} {}", ran.stderr);
    (ran, stacks)
}

fn stacks(folded: &str) -> Vec<(String, u64)> {
    let text = fs::read_to_string(folded).unwrap();
    let line = |line: &str| {
        let (stack, count) = line.rsplit_once(' ').unwrap();
        (stack.to_string(), count.parse().unwrap())
    };
    text.lines().map(line).collect()
}

/// The samples whose stacks meet a condition. The parts of KVM and the VMM are left out of the stacks.
fn total(stacks: &[(String, u64)], condition: impl Fn(&str) -> bool) -> u64 {
    let of_guest = |stack: &str| stack.split(";[").next().unwrap().to_string();
    stacks.iter().filter(|(stack, _)| condition(&of_guest(stack))).map(|(_, count)| count).sum()
}

fn hot() {
    let files = Files::new();
    for options in [
        &["-g"][..],
        &["-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer", "-fno-asynchronous-unwind-tables"],
    ] {
        let (ran, stacks) =
            sampled(&files, &[&guest(&files, "hot", HOT, options), "--mem", "16M", "--sample"]);
        let all = total(&stacks, |_| true);
        let hot = total(&stacks, |stack| stack == "_start;work;hot");
        assert!(hot > all / 2, "{stacks:?}");
        assert!(total(&stacks, |stack| stack.starts_with("_start;work")) > all * 9 / 10, "{stacks:?}");
        let first = ran.stderr.lines().skip_while(|line| !line.contains("  self  total  function")).nth(1);
        assert!(first.is_some_and(|line| line.ends_with("  hot")), "{}", ran.stderr);
        assert!(ran.stderr.contains(" samples, at most 1000 a second; taking them took "), "{}", ran.stderr);
        assert!(ran.stderr.contains("vmm: the samples are "), "{}", ran.stderr);
    }
}

/// Without symbols, frame pointers lead to the callers.
fn stripped() {
    let files = Files::new();
    let options =
        ["-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer", "-fno-asynchronous-unwind-tables", "-s"];
    let (_, stacks) = sampled(&files, &[&guest(&files, "hot", HOT, &options), "--mem", "16M", "--sample"]);
    let all = total(&stacks, |_| true);
    // In the first and last instructions of a function a frame is missing.
    let deep = total(&stacks, |stack| {
        stack.matches(';').count() == 2 && stack.split(';').all(|address| address.starts_with("0x110"))
    });
    assert!(deep > all / 2, "{stacks:?}");
}

fn exits() {
    let files = Files::new();
    let program = guest(&files, "exits", EXITS, &["-g"]);
    let folded = path(&files, "exits.folded");
    let ran = ran(&[&program, "--mem", "16M", "--sample=exits", "--sample-file", &folded]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let mut expected: Vec<_> = STACKS.iter().map(|(stack, count)| ((*stack).to_string(), *count)).collect();
    let mut found = stacks(&folded);
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("vmm: 16 exits: ") && ran.stderr.contains("vmm: 16 exits with their stacks;")
    );
}

/// The lines about the exits, without times.
fn exit_lines(ran: &Ran) -> Vec<String> {
    let of_exits = |line: &&str| line.contains(" exits: ") || line.contains("PIO out");
    let untimed = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        if line.starts_with("vmm") { line.to_string() } else { [&words[..2], &words[4..]].concat().join(" ") }
    };
    ran.stderr.lines().filter(of_exits).map(untimed).collect()
}

fn same_exits() {
    let files = Files::new();
    let program = guest(&files, "exits", EXITS, &[]);
    let run = |options: &[&str]| {
        let ran = ran(&[&[program.as_str(), "--mem", "16M"], options].concat());
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        exit_lines(&ran)
    };
    let plain = run(&[]);
    assert!(plain.len() >= 3, "{plain:?}");
    assert_eq!(run(&["--sample=10000"]), plain);
    assert_eq!(run(&["--sample=exits"]), plain);
}

fn no_threads() {
    let files = Files::new();
    let program = guest(&files, "hot", HOT, &[]);
    let threads = |options: &[&str]| {
        let mut child = vmm(&[&[program.as_str(), "--mem", "16M", "--timeout", "20"], options].concat());
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        support::wait_for_handlers(&child);
        thread::sleep(Duration::from_millis(300));
        let count = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().count();
        child.kill().unwrap();
        child.wait().unwrap();
        count
    };
    assert_eq!(threads(&[]), threads(&["--sample"]));
}

fn several() {
    let files = Files::new();
    let program = guest(&files, "hot", HOT, &[]);
    let (_, stacks) = sampled(&files, &[&program, "--mem", "16M", "--cpus", "2", "--sample"]);
    let of = |vcpu: &str| total(&stacks, |stack| stack.starts_with(&format!("{vcpu};_start")));
    assert!(of("vCPU 0") > 0 && of("vCPU 1") > 0, "{stacks:?}");
}

/// Guests whose RBP and RSP are set to these values, and which then wait for ever.
fn broken_stacks() {
    let files = Files::new();
    for (rbp, rsp) in [
        (0x8000u64, 0x8000u64),
        (0, u64::MAX),
        (u64::MAX - 7, u64::MAX - 15),
        (0x7fff_ffff_fff8, 0x8000_0000_0000),
        (0xf_fff8, 0xf_fff0),
    ] {
        let mut code = vec![0x48, 0xbd];
        code.extend(rbp.to_le_bytes());
        code.extend([0x48, 0xbc]);
        code.extend(rsp.to_le_bytes());
        // The word at 0x8000 is 0x8000: a frame that points to itself. Then `jmp $`.
        code.extend([0x48, 0xc7, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, 0x00, 0x80, 0x00, 0x00, 0xeb, 0xfe]);
        let flat = format!("{}@0x1000:64", files.write("broken", &code));
        let (_, stacks) = sampled(&files, &[&flat, "--sample=5000"]);
        // One address, which is that of the loop, or of an instruction before it.
        let alone =
            |stack: &str| (0x1000..=0x1020).any(|rip| stack.split(";[").next() == Some(&format!("{rip:#x}")));
        assert!(stacks.iter().all(|(stack, _)| alone(stack)), "{stacks:?}");
        assert!(total(&stacks, |stack| stack.starts_with("0x1020")) > 0, "{stacks:?}");
    }
}

fn real_mode() {
    let files = Files::new();
    // CS is 0x2000, and IP is 0.
    let flat = format!("{}@0x2000:0x0", files.write("real", &[0xeb, 0xfe]));
    let (_, stacks) = sampled(&files, &[&flat, "--sample"]);
    assert!(stacks.iter().all(|(stack, _)| stack.split(";[").next() == Some("0x20000")), "{stacks:?}");
}

fn in_vmm() {
    let files = Files::new();
    // mov al, 'x'; out 0xe9, al; jmp back to the out
    let flat = format!("{}@0x1000:64", files.write("out", &[0xb0, b'x', 0xe6, 0xe9, 0xeb, 0xfc]));
    let (_, stacks) = sampled(&files, &[&flat, "--sample=10000"]);
    let named = stacks.iter().any(|(stack, _)| stack.ends_with(";[VMM] PIO out 0xe9 (debug console)"));
    assert!(named, "{stacks:?}");
}

fn hostile_names() {
    let files = Files::new();
    let program = guest(&files, "hostile", HOT, &[]);
    let rename = "hot=<script>\"x';[VMM] 5";
    assert_eq!(run(Command::new("objcopy").args(["--redefine-sym", rename, &program])).status, 0);
    let (picture, profile, page) = (path(&files, "a.svg"), path(&files, "a.json"), path(&files, "a.html"));
    let more = ["--sample-file", &picture, "--profile", &format!("json={profile}")];
    let (_, stacks) = sampled(&files, &[&[program.as_str(), "--mem", "16M", "--sample"], &more[..]].concat());
    assert!(stacks.iter().any(|(stack, _)| stack.contains("<script>\"x':[VMM] 5")), "{stacks:?}");
    let written = ran(&["report", &profile, "-o", &page]);
    assert_eq!(written.status, 0, "{}", written.stderr);
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<section id=\"flame\">") && page.contains("<svg class=\"flame\""));
    for text in [fs::read_to_string(picture).unwrap(), page] {
        assert!(text.contains("&lt;script&gt;&quot;x") && !text.contains("<script>\"x"));
    }
}

/// Code in ring 3 runs on the processor itself on every host.
fn native() {
    let files = Files::new();
    let program = guest(&files, "hot", HOT, &[]);
    let (ran, stacks) = sampled(&files, &[&program, "--mem", "16M", "--mode", "user64", "--sample"]);
    let in_kvm: u64 =
        stacks.iter().filter(|(stack, _)| stack.ends_with(";[KVM]")).map(|(_, count)| count).sum();
    assert!(in_kvm < total(&stacks, |_| true) / 2, "{stacks:?}");
    assert!(ran.stderr.contains("% guest"), "{}", ran.stderr);
}

fn short() {
    let files = Files::new();
    let folded = path(&files, "short.folded");
    let ran = ran(&["real16-hello", "--sample=1", "--sample-file", &folded]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("vmm: no samples: the run was too short\n"), "{}", ran.stderr);
    assert_eq!(fs::read(&folded).unwrap(), b"");
}

fn all_files() {
    let files = Files::new();
    let program = guest(&files, "exits", EXITS, &["-g"]);
    let [svg, firefox, pprof] = ["a.svg", "a.json", "raw"].map(|name| path(&files, name));
    let pprof_file = format!("pprof={pprof}");
    let mut arguments = vec![program.as_str(), "--mem", "16M", "--sample=exits"];
    for file in [&svg, &firefox, &pprof_file] {
        arguments.extend(["--sample-file", file]);
    }
    let quiet = ran(&[&arguments[..], &["-q"]].concat());
    assert_eq!((quiet.status, quiet.stderr.lines().count()), (0, 1), "{}", quiet.stderr);
    let ran = ran(&arguments);
    assert!(ran.stderr.contains(&format!("vmm: wrote the samples: {svg}\n")), "{}", ran.stderr);
    assert!(fs::read_to_string(&svg).unwrap().ends_with("</svg>\n"));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&firefox).unwrap()).unwrap();
    let weights = json["threads"][0]["samples"]["weight"].as_array().unwrap();
    assert_eq!(weights.iter().map(|weight| weight.as_u64().unwrap()).sum::<u64>(), 16);
    assert!(fs::read(&pprof).unwrap().windows(7).any(|bytes| bytes == b"exits.c"));
}

fn assert_fails(ran: &Ran, status: i32, text: &str) {
    assert_eq!(ran.status, status, "{}", ran.stderr);
    assert!(ran.stderr.contains(text), "{}", ran.stderr);
}

fn full_disk() {
    let full = ran(&["real16-hello", "--sample=1", "--sample-file", "svg=/dev/full"]);
    assert_fails(&full, 115, "vmm: error: cannot write /dev/full: No space left on device");
    assert_fails(&full, 115, "the samples are not saved, and an existing file is unchanged\n");
}

fn refused() {
    let start = Instant::now();
    let files = Files::new();
    for rate in ["0", "10001", "-1", "often", "1e3"] {
        let refused = ran(&["real16-hello", &format!("--sample={rate}")]);
        assert_fails(&refused, 110, "give 1 to 10000 samples a second, or exits");
    }
    let with = |file: &str| ran(&["real16-hello", "--sample", "--sample-file", file]);
    assert_fails(&with("graph.png"), 110, "the extension names no format");
    assert_fails(&with("/nowhere/graph.svg"), 110, "create the directory");
    assert_fails(&with("svg=-"), 110, "-");
    assert_fails(&ran(&["real16-hello", "--sample-file", "a.svg"]), 110, "--sample");
    assert_fails(&ran(&["real16-hello", "--sample", "--gdb"]), 110, "cannot be used with");
    assert_fails(&ran(&["real16-hello", "--sample", "--step"]), 110, "cannot be used with");
    let svg = path(&files, "a.svg");
    let twice = ran(&["real16-hello", "--sample", "--sample-file", &svg, "--sample-file", &svg]);
    assert_fails(&twice, 110, "--sample-file writes the same file twice");
    let profile = path(&files, "a.json");
    let same = ran(&[
        "real16-hello",
        "--sample",
        "--sample-file",
        &profile,
        "--profile",
        &format!("json={profile}"),
    ]);
    assert_fails(&same, 110, "--sample-file and --profile write the same file");
    assert!(!fs::exists(&svg).unwrap() && !fs::exists(&profile).unwrap());
    assert!(start.elapsed() < Duration::from_secs(60));
}
