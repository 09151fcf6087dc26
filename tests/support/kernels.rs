//! Kernels of a few instructions, for `vmm boot`. A kernel is a concatenation of the pieces below.

use super::{Files, Ran, elf, ran, vmm};
use std::process::{Child, Stdio};

/// Powers the machine off: mov dx, 0x600; mov al, 0x34; out dx, al; jmp $
pub const POWER_OFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe];
/// Resets the machine with the keyboard controller: mov al, 0xfe; out 0x64, al
pub const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64];
/// Prints the command line: mov esi, [rsi+0x228]; mov dx, 0x3f8; next: lodsb; test al, al; jz end; out dx, al; jmp next;
/// end:
pub const PRINT_COMMAND_LINE: &[u8] = &[
    0x8b, 0xb6, 0x28, 0x02, 0x00, 0x00, 0x66, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb,
    0xf8,
];
/// Prints its input until a q: next: mov dx, 0x3fd; wait: in al, dx; test al, 1; jz wait; mov dx, 0x3f8; in al, dx;
/// out dx, al; cmp al, 'q'; jne next
pub const ECHO: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0x3c, b'q',
    0x75, 0xed,
];

/// Waits a moment: mov ecx, 400000; again: dec ecx; jnz again
pub const PAUSE: &[u8] = &[0xb9, 0x80, 0x1a, 0x06, 0x00, 0xff, 0xc9, 0x75, 0xfc];

/// Prints a text: mov dx, 0x3f8, then mov al, BYTE; out dx, al for each byte
pub fn print(text: &str) -> Vec<u8> {
    let bytes = text.bytes().flat_map(|byte| [0xb0, byte, 0xee]);
    [0x66, 0xba, 0xf8, 0x03].into_iter().chain(bytes).collect()
}

/// Prints a text, then its last byte without end: again: out dx, al; jmp again
pub fn print_for_ever(text: &str) -> Vec<u8> {
    [&print(text)[..], &[0xee, 0xeb, 0xfd]].concat()
}

/// Writes a kernel with this code at 1 MiB, and returns its path.
pub fn kernel(files: &Files, parts: &[&[u8]]) -> String {
    files.write("kernel", &elf(0x10_0000, &parts.concat()))
}

/// Boots a kernel with these arguments. Without `--timeout`, the time limit is 30 seconds.
pub fn boot(parts: &[&[u8]], arguments: &[&str]) -> Ran {
    let files = Files::new();
    let kernel = kernel(&files, parts);
    let timeout: &[&str] = if arguments.contains(&"--timeout") { &[] } else { &["--timeout", "30"] };
    ran(&[&["boot", &kernel], timeout, arguments].concat())
}

/// Checks the exit status, and that the first line on stderr contains `text`.
pub fn assert_ended(ran: &Ran, status: i32, text: &str) {
    assert_eq!(ran.status, status, "{}", ran.stderr);
    let first = ran.stderr.lines().next().unwrap_or_default();
    assert!(first.contains(text), "{text}: {}", ran.stderr);
}

/// Starts the `vmm` program with pipes as its stdin and its stdout.
pub fn interactive(arguments: &[&str]) -> Child {
    vmm(arguments).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}
