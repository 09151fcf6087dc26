//! Kernels of a few instructions, for `vmm boot`.

use super::{Files, Ran, elf, ran, vmm};
use std::process::{Child, Stdio};

/// Switches the machine off: mov dx, 0x600; mov al, 0x34; out dx, al; jmp $
pub const POWER_OFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe];
/// Resets it by the keyboard controller: mov al, 0xfe; out 0x64, al
pub const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64];
/// Prints the command line: mov esi, [rsi+0x228]; mov dx, 0x3f8; then lodsb, and out dx, al until it is 0
pub const PRINT_COMMAND_LINE: &[u8] = &[
    0x8b, 0xb6, 0x28, 0x02, 0x00, 0x00, 0x66, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb,
    0xf8,
];
/// Prints what is typed, up to a q: waits for bit 0 of the line status, in al, dx; out dx, al; cmp al, 'q'
pub const ECHO: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0x3c, b'q',
    0x75, 0xed,
];
pub const FOR_EVER: &[u8] = &[0xeb, 0xfe];

/// mov dx, 0x3f8, then mov al, BYTE; out dx, al for each.
pub fn print(text: &str) -> Vec<u8> {
    let bytes = text.bytes().flat_map(|byte| [0xb0, byte, 0xee]);
    [0x66, 0xba, 0xf8, 0x03].into_iter().chain(bytes).collect()
}

/// A kernel that does this, at 1 MiB.
pub fn kernel(files: &Files, parts: &[&[u8]]) -> String {
    files.write("kernel", &elf(0x10_0000, &parts.concat()))
}

/// The kernel, booted with these arguments.
pub fn boot(parts: &[&[u8]], arguments: &[&str]) -> Ran {
    let files = Files::new();
    let kernel = kernel(&files, parts);
    let timeout: &[&str] = if arguments.contains(&"--timeout") { &[] } else { &["--timeout", "30"] };
    ran(&[&["boot", &kernel], timeout, arguments].concat())
}

pub fn assert_ended(ran: &Ran, status: i32, says: &str) {
    assert_eq!(ran.status, status, "{}", ran.stderr);
    let first = ran.stderr.lines().next().unwrap_or_default();
    assert!(first.contains(says), "{says}: {}", ran.stderr);
}

/// The program with a pipe to its stdin and one from its stdout.
pub fn interactive(arguments: &[&str]) -> Child {
    vmm(arguments).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}
