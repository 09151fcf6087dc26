//! Names of the places in a guest's code: the function and the line where it died, and its callers.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::Trial;
use std::process::{Command, ExitCode, Stdio};
use support::{Files, Ran, assert_error, kvm_test, on_both, plain_test, ran, run};

/// A guest that dies in a function that another one calls. `_start` has no caller.
const CRASH: &str = r#"
volatile int *const nowhere = (int *)0x4000000000;
volatile int sink;
__attribute__((noinline)) void crash(int value) {
    *nowhere = value;
    sink = 1;
}
__attribute__((noinline)) int compute(int value) {
    crash(value + 1);
    return sink;
}
void _start(void) {
    sink = compute(41);
    for (;;) __asm__ volatile("hlt");
}
"#;

/// A guest that calls an address that is not mapped.
const WRONG_CALL: &str = r#"
volatile int sink;
void (*volatile handler)(int) = (void (*)(int))0x4000000000;
__attribute__((noinline)) void dispatch(int value) {
    handler(value);
    sink = 2;
}
void _start(void) {
    dispatch(1);
    for (;;) __asm__ volatile("hlt");
}
"#;

/// A guest whose functions make a known number of exits. `first` ends with its `out`, and `second` begins with an `in`.
const EXITS: &str = r#"
__asm__(".text\n"
    ".globl first\n.type first, @function\nfirst: out %al, $0xe9\n.size first, . - first\n"
    ".globl second\n.type second, @function\nsecond: in $0x60, %al\nret\n.size second, . - second\n");
void first(void);
volatile int *const device = (int *)0x10000000;
__attribute__((noinline)) void store(int value) {
    *device = value;
}
__attribute__((noinline)) int load(void) {
    return *device;
}
static inline __attribute__((always_inline)) void mark(void) {
    __asm__ volatile("outb %%al, $0x80" ::: "memory");
}
__attribute__((noinline)) void twice(void) {
    mark();
    mark();
}
void _start(void) {
    for (int i = 0; i < 5; i++)
        first();
    store(1);
    store(load() + load());
    twice();
    for (;;) __asm__ volatile("hlt");
}
"#;

/// The functions of that guest, with their exits.
const FUNCTIONS: [(&str, u64); 6] =
    [("first", 5), ("second", 5), ("load", 2), ("store", 2), ("twice", 2), ("_start", 1)];

fn main() -> ExitCode {
    support::watchdog();
    let mut tests: Vec<Trial> = Vec::new();
    tests.extend(on_both("a_death_has_its_function_line_and_callers", functions_and_lines));
    tests.extend(on_both("callers_are_found_without_frame_pointers", without_frame_pointers));
    tests.extend(on_both("a_call_of_a_wrong_address_names_the_caller", wrong_call));
    tests.extend(on_both("a_flat_binary_takes_its_names_from_another_file", flat_binary));
    tests.extend(on_both("symbols_of_another_build_are_not_used", another_build));
    tests.extend(on_both("a_guest_without_symbols_has_no_names", stripped));
    tests.push(plain_test("a_file_without_symbols_is_refused", refused));
    tests.extend(on_both("exits_are_counted_by_function_and_by_line", by_function));
    tests.extend(on_both("a_trace_and_a_profile_keep_the_names", kept_names));
    tests.extend(on_both("a_report_names_a_file_without_names", named_later));
    tests.extend(on_both("compressed_debug_sections_are_read", compressed));
    tests.push(plain_test("a_report_by_function_needs_addresses", without_addresses));
    tests.push(kvm_test("observed_exits_are_counted_by_function", observed_exits));
    tests.push(kvm_test("the_death_of_an_observed_guest_has_its_function", observed));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// Compiles a guest. Returns the path of the program.
fn guest(files: &Files, name: &str, source: &str, options: &[&str]) -> String {
    let source = files.write(&format!("{name}.c"), source.as_bytes());
    let program = files.0.path().join(format!("{name}.elf")).to_str().unwrap().to_string();
    let mut gcc = Command::new("gcc");
    gcc.args(["-ffreestanding", "-nostdlib", "-static", "-no-pie", "-fno-pic", "-fno-stack-protector"]);
    gcc.args([
        "-fcf-protection=none",
        "-mgeneral-regs-only",
        "-Wl,-Ttext-segment=0x10000",
        "-Wl,--build-id=none",
    ]);
    let built = run(gcc.args(options).arg(&source).arg("-o").arg(&program).stdout(Stdio::piped()));
    assert_eq!(built.status, 0, "{}", built.stderr);
    program
}

/// Runs a guest with 16 MiB, so that its addresses are in the plain map. It must die.
fn died(arguments: &[&str]) -> Ran {
    let died = ran(&[arguments, &["--mem", "16M"]].concat());
    assert_eq!(died.status, 112, "{}", died.stderr);
    died
}

/// The lines of the summary from that of the function on, up to the last exits.
fn places(ran: &Ran) -> Vec<String> {
    let lines = ran.stderr.lines().skip_while(|line| !line.starts_with("  function "));
    lines
        .take_while(|line| line.starts_with("  ") && !line.starts_with("  last exits"))
        .map(Into::into)
        .collect()
}

/// A line in the source that contains a text, from 1.
fn line_of(source: &str, text: &str) -> usize {
    source.lines().position(|line| line.contains(text)).unwrap() + 1
}

fn functions_and_lines() {
    let files = Files::new();
    let program = guest(
        &files,
        "crash",
        CRASH,
        &["-O1", "-g", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"],
    );
    let places = places(&died(&[&program]));
    let source = files.0.path().join("crash.c").to_str().unwrap().to_string();
    let (in_crash, in_compute, in_start) =
        (line_of(CRASH, "*nowhere ="), line_of(CRASH, "crash(value + 1)"), line_of(CRASH, "compute(41)"));
    assert!(places[0].starts_with("  function     crash+0x"), "{places:#?}");
    assert!(places[0].ends_with(&format!(" ({source}:{in_crash})")), "{places:#?}");
    assert_eq!(places[1], format!("  source       {in_crash} |     *nowhere = value;"));
    assert!(places[2].starts_with("  called from  compute+0x"), "{places:#?}");
    assert!(places[2].ends_with(&format!(" ({source}:{in_compute})")), "{places:#?}");
    assert!(places[3].starts_with("               _start+0x"), "{places:#?}");
    assert!(places[3].ends_with(&format!(" ({source}:{in_start})")), "{places:#?}");
    assert_eq!(places.len(), 4, "{places:#?}");
}

fn without_frame_pointers() {
    let files = Files::new();
    let options =
        ["-O1", "-fomit-frame-pointer", "-fasynchronous-unwind-tables", "-fno-optimize-sibling-calls"];
    let places = places(&died(&[&guest(&files, "crash", CRASH, &options)]));
    let names: Vec<_> = places.iter().map(|line| line[15..].split('+').next().unwrap()).collect();
    assert_eq!(names, ["crash", "compute", "_start"], "{places:#?}");
}

fn wrong_call() {
    let files = Files::new();
    let options = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"];
    let places = places(&died(&[&guest(&files, "wrong", WRONG_CALL, &options)]));
    assert!(
        places[0].starts_with("  function     none: 0x4000000000 is outside the functions of"),
        "{places:#?}"
    );
    assert!(places[1].starts_with("  called from  dispatch+0x"), "{places:#?}");
}

fn flat_binary() {
    let files = Files::new();
    let program = guest(&files, "crash", CRASH, &["-O1", "-fno-optimize-sibling-calls"]);
    let flat = files.0.path().join("crash.bin").to_str().unwrap().to_string();
    let mut objcopy = Command::new("objcopy");
    assert_eq!(run(objcopy.args(["-O", "binary", "--only-section=.text", &program, &flat])).status, 0);
    // The first function is not the entry, so the guest is entered where crash begins.
    let at = format!("{flat}@0x11000:64");
    let named = places(&died(&[&at, "--symbols", &program]));
    assert!(named[0].starts_with("  function     crash+0x"), "{named:#?}");
    assert!(places(&died(&[&at])).is_empty());
}

fn another_build() {
    let files = Files::new();
    let program = guest(&files, "crash", CRASH, &["-O1"]);
    let other = guest(&files, "null", WRONG_CALL, &["-O1"]);
    let died = died(&[&program, "--symbols", &other]);
    assert!(places(&died).is_empty(), "{}", died.stderr);
    assert!(
        died.stderr.contains("are not used, because the guest's code is not the code in it"),
        "{}",
        died.stderr
    );
}

fn stripped() {
    let files = Files::new();
    let died = died(&[&guest(&files, "crash", CRASH, &["-O1", "-s"])]);
    assert!(places(&died).is_empty() && !died.stderr.contains("symbols"), "{}", died.stderr);
}

fn refused() {
    let files = Files::new();
    let flat = files.write("flat", &[0xf4]);
    let with = |file: &str| ran(&[&flat, "--symbols", file]);
    assert_error(&with("/nowhere"), 110, "cannot read the symbol file /nowhere: No such file");
    assert_error(&with("/"), 116, "is not a regular file");
    assert_error(&with("/dev/zero"), 116, "is not a regular file");
    assert_error(&with(&files.write("text", b"hello")), 116, "is neither an ELF file nor a System.map");
    assert_error(&with(&files.write("cut", b"\x7fELF\x02\x01")), 116, "is not a sound ELF file");
    assert_error(&with(&guest(&files, "crash", CRASH, &["-s"])), 116, "has no symbols: link without -s");
}

/// The guest of known exits.
fn exits(files: &Files, options: &[&str]) -> String {
    guest(files, "exits", EXITS, &[&["-O1", "-fno-optimize-sibling-calls"], options].concat())
}

/// Runs the guest of known exits.
fn halted(arguments: &[&str]) -> Ran {
    let halted = ran(&[arguments, &["--mem", "16M"]].concat());
    assert_eq!(halted.status, 0, "{}", halted.stderr);
    halted
}

/// The functions in a report about a file as JSON, each with its exits.
fn functions(arguments: &[&str]) -> Vec<(String, u64)> {
    let json: serde_json::Value = serde_json::from_str(&report(arguments, "json")).unwrap();
    let rows = json["functions"].as_array().unwrap().iter();
    rows.map(|row| (row["function"].as_str().unwrap().into(), row["exits"].as_u64().unwrap())).collect()
}

fn sorted(mut functions: Vec<(String, u64)>) -> Vec<(String, u64)> {
    functions.sort();
    functions
}

fn expected() -> Vec<(String, u64)> {
    sorted(FUNCTIONS.iter().map(|(name, exits)| ((*name).into(), *exits)).collect())
}

/// The functions or lines in the summary of a run, each with its exits.
fn table(ran: &Ran) -> Vec<(String, u64)> {
    let rows = ran.stderr.lines().skip_while(|line| !line.contains("and its sites")).skip(1);
    let rows = rows.take_while(|line| line.starts_with(' '));
    let row = |line: &str| {
        let (numbers, name) = line.split_at_checked(38)?;
        let exits = numbers.split_whitespace().next()?.parse().ok()?;
        // The sites are indented.
        (!name.starts_with("   ")).then(|| (name.trim().to_string(), exits))
    };
    rows.filter_map(row).collect()
}

/// A report in a format, as text.
fn report(arguments: &[&str], format: &str) -> String {
    let report = ran(&[&["report", "--format", format], arguments].concat());
    assert_eq!(report.status, 0, "{}", report.stderr);
    String::from_utf8(report.stdout).unwrap()
}

fn by_function() {
    let files = Files::new();
    let program = exits(&files, &["-g"]);
    let ran = halted(&[&program, "--by", "function"]);
    assert_eq!(sorted(table(&ran)), expected(), "{}", ran.stderr);
    assert!(ran.stderr.contains("  MMIO write 0x10000000"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("not sure"), "{}", ran.stderr);
    // The two calls of the inlined function are two lines of their caller.
    let ran = halted(&[&program, "--by", "line"]);
    let lines = table(&ran).into_iter().filter(|(line, _)| line.starts_with("twice ("));
    // Rows with equal counts are in the order of their times.
    let mut lines: Vec<_> =
        lines.map(|(line, exits)| (line.rsplit_once(':').unwrap().1.to_string(), exits)).collect();
    lines.sort();
    let line = line_of(EXITS, "    mark();");
    assert_eq!(lines, [(format!("{line})"), 1), (format!("{})", line + 1), 1)], "{}", ran.stderr);
    // Without symbols the addresses have no names.
    let stripped = exits(&files, &["-s"]);
    let ran = halted(&[&stripped, "--by", "function"]);
    assert!(
        ran.stderr.contains("the addresses have no names: give the file with the symbols"),
        "{}",
        ran.stderr
    );
    assert!(table(&ran).iter().all(|(name, _)| name.starts_with("0x11")), "{}", ran.stderr);
}

fn kept_names() {
    let files = Files::new();
    let program = exits(&files, &["-g"]);
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_string();
    let (trace, profile) = (path("exits.trace"), path("exits.json"));
    halted(&[&program, "--by", "function", "--trace", &trace, "--profile", &format!("json={profile}")]);
    std::fs::remove_file(&program).unwrap();
    assert_eq!(sorted(functions(&[&trace])), expected());
    assert_eq!(sorted(functions(&[&profile, "--by", "function"])), expected());
    let line = line_of(EXITS, "*device = value");
    let csv = report(&[&trace], "csv");
    assert!(csv.starts_with("when_ns,delta_ns,vcpu,reason,place,width,value,rip,function,line,"), "{csv}");
    let stores =
        csv.lines().filter(|row| row.contains(",store+0x") && row.contains(&format!("exits.c:{line},")));
    assert_eq!(stores.count(), 2, "{csv}");
    for file in [&trace, &profile] {
        let page = report(&[file], "html");
        assert!(page.contains("By function of the guest") && page.contains(">twice</td>"), "{file}");
        let text = report(&[file, "--by", "line"], "csv");
        assert!(text.contains(&format!("exits.c:{line},")), "{text}");
    }
}

fn named_later() {
    let files = Files::new();
    let program = exits(&files, &["-g"]);
    let stripped = files.0.path().join("stripped").to_str().unwrap().to_string();
    assert_eq!(run(Command::new("strip").args([&program, "-o", &stripped])).status, 0);
    let trace = files.0.path().join("exits.trace").to_str().unwrap().to_string();
    halted(&[&stripped, "--trace", &trace]);
    let csv = report(&[&trace], "csv");
    assert!(!csv.contains("function"), "{csv}");
    assert_eq!(sorted(functions(&[&trace, "--symbols", &program])), expected());
    assert!(functions(&[&trace, "--by", "function"]).iter().all(|(name, _)| name.starts_with("0x11")));
    // With a wrong distance no address has a name.
    let wrong = ran(&["report", &trace, "--symbols", &format!("{program}@0x100000")]);
    assert!(
        wrong.stderr.contains("no address in") && wrong.stderr.contains("is in a function of"),
        "{}",
        wrong.stderr
    );
}

fn compressed() {
    let files = Files::new();
    let program = guest(&files, "crash", CRASH, &["-O1", "-g", "-gz=zlib", "-fno-optimize-sibling-calls"]);
    let places = places(&died(&[&program]));
    let line = line_of(CRASH, "*nowhere =");
    assert!(places[0].ends_with(&format!("crash.c:{line})")), "{places:#?}");
    // zstd is not read. The message has the command that unpacks the sections.
    let objcopy = |option: &str| {
        let ended = run(Command::new("objcopy").args([option, &program]).stdout(Stdio::piped()));
        ended.status == 0
    };
    // Old versions of objcopy do not know zstd.
    if objcopy("--decompress-debug-sections") && objcopy("--compress-debug-sections=zstd") {
        let packed = died(&[&program]);
        let told = "is compressed with zstd, which is not read, so there are functions, but no lines: unpack it with `objcopy --decompress-debug-sections FILE`";
        assert_eq!(packed.stderr.matches(told).count(), 1, "{}", packed.stderr);
        assert!(packed.stderr.contains("function     crash+0x"), "{}", packed.stderr);
        assert!(!packed.stderr.contains("crash.c:"), "{}", packed.stderr);
        assert!(objcopy("--decompress-debug-sections"));
        assert!(died(&[&program]).stderr.contains(&format!("crash.c:{line})")));
    }
}

fn without_addresses() {
    let files = Files::new();
    let program = exits(&files, &[]);
    let profile = files.0.path().join("exits.json").to_str().unwrap().to_string();
    halted(&[&program, "--vcpu", "soft", "--profile", &format!("json={profile}")]);
    for option in [&["--by", "function"][..], &["--symbols", &program]] {
        let report = ran(&[&["report", &profile], option].concat());
        assert_error(&report, 110, "has no addresses of the guest's code for --");
    }
}

fn observed() {
    let files = Files::new();
    let program = guest(&files, "crash", CRASH, &["-O1", "-g", "-fno-optimize-sibling-calls"]);
    let vmm = env!("CARGO_BIN_EXE_vmm");
    let with = |symbols: &str| {
        ran(&["observe", "--symbols", symbols, "--", vmm, "run", "-q", &program, "--mem", "16M"]).stderr
    };
    let named = with(&program);
    let line = line_of(CRASH, "*nowhere =");
    // On AMD, the place where a guest died is lost.
    let is_lost = named.contains("at an unknown address");
    assert!(is_lost || named.contains("  function     crash+0x"), "{named}");
    assert!(is_lost || named.contains(&format!("crash.c:{line})")), "{named}");
    let other = with(&guest(&files, "wrong", WRONG_CALL, &["-O1"]));
    assert!(!other.contains("  function     ") && other.contains("is not the code in it"), "{other}");
}

fn observed_exits() {
    let files = Files::new();
    let program = exits(&files, &["-g"]);
    let vmm = env!("CARGO_BIN_EXE_vmm");
    let trace = files.0.path().join("exits.trace").to_str().unwrap().to_string();
    let command = ["--", vmm, "run", "-q", "--no-profile", &program, "--mem", "16M"];
    let options = ["observe", "--by", "function", "--symbols", &program, "--trace", &trace];
    let ran_it = ran(&[&options[..], &command].concat());
    assert_eq!(ran_it.status, 0, "{}", ran_it.stderr);
    assert_eq!(sorted(table(&ran_it)), expected(), "{}", ran_it.stderr);
    assert_eq!(sorted(functions(&[&trace])), expected());
    let refused = ran(&[&["observe", "--engine", "preload", "--by", "line"], &command[..]].concat());
    assert_error(&refused, 110, "--by needs RIP at each exit, which --engine preload does not record");
}
