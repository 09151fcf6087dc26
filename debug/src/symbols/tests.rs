//! Tests over programs that the C compiler of the host makes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;
use std::process::Command;

/// A program whose functions call each other: `_start` calls `outer`, which calls `middle`, into which `small` is inlined.
const PROGRAM: &str = r#"
volatile int sink;
static inline __attribute__((always_inline)) void small(int x) {
    sink = x;
}
__attribute__((noinline)) void middle(int x) {
    small(x + 1);
    sink = 3;
}
__attribute__((noinline)) int outer(int x) {
    middle(x);
    return sink + 1;
}
void _start(void) {
    sink = outer(5);
    for (;;) { }
}
"#;

/// Compiles the program with these options. `None` if the host has no C compiler for them.
fn compiled(options: &[&str]) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("program.c"), folder.path().join("program"));
    std::fs::write(&source, PROGRAM).unwrap();
    let mut compiler = Command::new("cc");
    compiler.current_dir(folder.path()).args([
        "-ffreestanding",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-fno-pic",
    ]);
    compiler.args(["-fcf-protection=none", "-Wl,--build-id=none"]).args(options).arg("program.c").arg("-o");
    let done = compiler.arg(&program).output().unwrap();
    assert!(done.status.success() || options.contains(&"-m32"), "{done:?}");
    done.status.success().then(|| std::fs::read(program).unwrap())
}

fn symbols(options: &[&str]) -> Option<Symbols> {
    Some(Symbols::parse("program", &compiled(options)?).unwrap())
}

/// The address of a function.
fn address(symbols: &Symbols, name: &str) -> u64 {
    let start = symbols.code.first().unwrap().start;
    (start..start + 0x1000)
        .find(|at| symbols.functions.at(*at).is_some_and(|found| found.name == name))
        .unwrap()
}

/// The address to which the first call (E8) in a function returns.
fn return_address(symbols: &Symbols, name: &str) -> u64 {
    let start = address(symbols, name);
    let code = symbols.code_at(start).unwrap();
    start + code.iter().position(|byte| *byte == 0xe8).unwrap() as u64 + 5
}

#[test]
fn an_address_has_its_function_and_its_line() {
    let symbols = symbols(&["-g", "-O0"]).unwrap();
    let at = address(&symbols, "outer");
    let place = symbols.place(at).unwrap();
    assert_eq!(
        place.to_string(),
        "outer+0x0 (program.c:10)".replace("program.c", &place.source().unwrap().file)
    );
    assert_eq!((place.function(), place.source().unwrap().line), ("outer", Some(10)));
    let inside = symbols.place(return_address(&symbols, "outer") - 1).unwrap();
    assert_eq!((inside.function(), inside.source().unwrap().line), ("outer", Some(11)));
    assert_eq!(symbols.place(0x10), None);
}

#[test]
fn an_inlined_function_is_named_with_the_one_that_contains_it() {
    let symbols = symbols(&["-g", "-O2"]).unwrap();
    let start = address(&symbols, "middle");
    let places = (start..start + 16).filter_map(|at| symbols.place(at));
    let inlined = places.into_iter().find(|place| place.calls.len() == 2).unwrap();
    assert_eq!((inlined.calls[0].function.as_str(), inlined.calls[1].function.as_str()), ("small", "middle"));
    assert_eq!(
        (inlined.calls[0].source.as_ref().unwrap().line, inlined.calls[1].source.as_ref().unwrap().line),
        (Some(4), Some(7))
    );
}

#[test]
fn without_debug_information_the_symbol_table_is_enough() {
    let symbols = symbols(&["-O1"]).unwrap();
    let place = symbols.place(address(&symbols, "middle") + 2).unwrap();
    assert_eq!(place.to_string(), "middle+0x2");
    assert!(
        Symbols::parse("program", &compiled(&["-s"]).unwrap())
            .unwrap_err()
            .to_string()
            .contains("has no symbols")
    );
}

/// The stack of `middle`, called by `outer`, called by `_start`, as `-O0` code leaves it.
fn stack_of_middle(symbols: &Symbols, width: usize) -> (crate::Registers, Vec<u8>) {
    let returns = [return_address(symbols, "outer"), return_address(symbols, "_start")];
    let base: u64 = 0x8000;
    let mut bytes = vec![0; 256];
    let mut put = |at: u64, value: u64| {
        let offset = (at - base) as usize;
        bytes[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
    };
    let word = width as u64;
    // middle: [rbp] is the frame of outer, and the address after it is in outer.
    put(0x8020, 0x8060);
    put(0x8020 + word, returns[0]);
    put(0x8060, 0x80a0);
    put(0x8060 + word, returns[1]);
    let registers = crate::Registers {
        rip: address(symbols, "middle") + 8,
        rsp: 0x8000,
        rbp: 0x8020,
        rbx: 0,
        width: word,
    };
    (registers, bytes)
}

#[test]
fn frame_pointers_lead_to_the_callers() {
    for (options, width) in [
        (["-O0", "-fno-asynchronous-unwind-tables", "-m64"], 8),
        (["-O0", "-fno-asynchronous-unwind-tables", "-m32"], 4),
    ] {
        let Some(symbols) = symbols(&options) else { continue };
        assert!(symbols.frames.is_none());
        let (registers, bytes) = stack_of_middle(&symbols, width);
        let stack = crate::Stack { start: 0x8000, bytes: &bytes };
        let found = crate::backtrace(&registers, stack, &symbols);
        assert_eq!(
            found,
            [return_address(&symbols, "outer"), return_address(&symbols, "_start")],
            "{options:?}"
        );
    }
}

#[test]
fn at_the_entry_of_a_function_the_stack_pointer_leads_to_the_caller() {
    let symbols = symbols(&["-O0", "-fno-asynchronous-unwind-tables"]).unwrap();
    let back = return_address(&symbols, "outer");
    let middle = address(&symbols, "middle");
    // The last one is a call of a null pointer.
    for (rip, words) in [(middle, vec![back, 7]), (middle + 1, vec![0x9000, back]), (0, vec![back])] {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let registers = crate::Registers { rip, rsp: 0x8000, rbp: 0x9000, rbx: 0, width: 8 };
        let found = crate::backtrace(&registers, crate::Stack { start: 0x8000, bytes: &bytes }, &symbols);
        assert_eq!(found, [back], "{rip:#x}");
    }
}

#[test]
fn call_frame_information_finds_callers_without_frame_pointers() {
    let symbols = symbols(&["-O2", "-fomit-frame-pointer", "-fasynchronous-unwind-tables"]).unwrap();
    assert!(symbols.frames.is_some());
    let back = return_address(&symbols, "outer");
    let rip = address(&symbols, "middle") + 1;
    let bytes: Vec<u8> = [back, 0, 0, 0].iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
    let registers = crate::Registers { rip, rsp: 0x8000, rbp: 0, rbx: 0, width: 8 };
    let found = crate::backtrace(&registers, crate::Stack { start: 0x8000, bytes: &bytes }, &symbols);
    assert_eq!(found.first(), Some(&back));
}

#[test]
fn a_stack_that_loops_or_holds_garbage_ends_the_backtrace() {
    let symbols = symbols(&["-O0", "-fno-asynchronous-unwind-tables"]).unwrap();
    let (registers, mut bytes) = stack_of_middle(&symbols, 8);
    // The frame of outer points back to itself.
    bytes[0x60..0x68].copy_from_slice(&0x8020u64.to_le_bytes());
    let found = crate::backtrace(&registers, crate::Stack { start: 0x8000, bytes: &bytes }, &symbols);
    assert_eq!(found.len(), 2);
    // An address that no call precedes.
    bytes[0x28..0x30].copy_from_slice(&(return_address(&symbols, "outer") + 1).to_le_bytes());
    let found = crate::backtrace(&registers, crate::Stack { start: 0x8000, bytes: &bytes }, &symbols);
    assert_eq!(found, [0u64; 0]);
}

#[test]
fn code_is_found_where_it_was_loaded() {
    let mut symbols = symbols(&["-O1"]).unwrap();
    let middle = address(&symbols, "middle");
    let code = symbols.code.first().unwrap();
    let (start, bytes) = (code.start, code.bytes.clone());
    let lowest = symbols.code.iter().map(|piece| piece.start).min().unwrap();
    let base: u64 = 0x10_0000;
    let at = base + (start - lowest);
    let read = |address: u64, data: &mut [u8]| match address
        .checked_sub(at)
        .and_then(|from| bytes.get(from as usize..))
    {
        Some(rest) if rest.len() >= data.len() => {
            data.copy_from_slice(&rest[..data.len()]);
            true
        }
        _ => false,
    };
    assert_eq!(symbols.find(&Guest::default(), read), Fit::Other);
    assert_eq!(symbols.find(&Guest { bases: &[base], ..Guest::default() }, read), Fit::Same);
    assert_eq!(symbols.place(middle - start + at).unwrap().to_string(), "middle+0x0");
    assert_eq!(symbols.place(middle).unwrap().to_string(), "middle+0x0");
}

#[test]
fn a_system_map_names_addresses() {
    let map = b"ffffffff81000000 T _text\nffffffff81000100 t helper\nffffffff81000200 D data\nffffffff81000300 T start_kernel\n";
    let symbols = Symbols::parse("System.map", map).unwrap();
    let name = |at| symbols.place(at).map(|place| place.to_string());
    assert_eq!(name(0xffff_ffff_8100_0104).unwrap(), "helper+0x4");
    assert_eq!(name(0xffff_ffff_8100_0300).unwrap(), "start_kernel+0x0");
    assert_eq!(name(0xffff_ffff_8200_0000), None);
    for bad in [&b"hello"[..], b"", b"zz T name\n", b"10 TT name\n", &[0xff; 64]] {
        assert!(Symbols::parse("x", bad).is_err(), "{bad:?}");
    }
}

#[test]
fn names_of_rust_and_cpp_are_demangled() {
    let map =
        b"1000 T _ZN3foo3barEv\n2000 T _ZN4core3fmt5Write9write_fmt17h0123456789abcdefE\n3000 T plain\n";
    let symbols = Symbols::parse("map", map).unwrap();
    let names: Vec<_> = [0x1000, 0x2000, 0x3000]
        .iter()
        .map(|at| symbols.place(*at).unwrap().function().to_string())
        .collect();
    assert_eq!(names, ["foo::bar()", "core::fmt::Write::write_fmt", "plain"]);
}

/// Each prefix of a file, and the file with each of many bytes changed, is an error or gives symbols, and nothing panics.
#[test]
fn broken_files_are_errors_and_never_panics() {
    let whole = compiled(&["-g", "-O2"]).unwrap();
    let poke = |bytes: &[u8]| {
        let Ok(symbols) = Symbols::parse("broken", bytes) else { return };
        for at in (0x40_0000..0x40_2000).step_by(64) {
            let _ = symbols.place(at).map(|place| place.to_string());
            let registers = crate::Registers { rip: at, rsp: 0x8000, rbp: 0x8010, rbx: 1, width: 8 };
            crate::backtrace(&registers, crate::Stack { start: 0x8000, bytes: &[0x40; 64] }, &symbols);
        }
    };
    for len in (0..whole.len()).step_by(97) {
        poke(&whole[..len]);
    }
    for index in (0..whole.len()).step_by(61) {
        let mut bytes = whole.clone();
        bytes[index] ^= 0xff;
        poke(&bytes);
    }
}
