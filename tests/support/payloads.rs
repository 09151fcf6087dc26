//! Machine code that several tests run. The comment of each constant is its assembly.

/// hlt
pub const HALT: &[u8] = &[0xf4];

/// jmp $
pub const LOOP: &[u8] = &[0xeb, 0xfe];

/// ud2
pub const UNDEFINED: &[u8] = &[0x0f, 0x0b];

/// Prints a newline and loops: mov al, 10; out 0xe9, al; jmp $
pub const PRINT_LINE_AND_LOOP: &[u8] = &[0xb0, 10, 0xe6, 0xe9, 0xeb, 0xfe];

/// Prints newlines without end: again: mov al, 10; out 0xe9, al; jmp again
pub const PRINT_LINES: &[u8] = &[0xb0, 10, 0xe6, 0xe9, 0xeb, 0xfa];

/// Reads port 0x42 without end: again: in al, 0x42; jmp again
pub const READ_PORT: &[u8] = &[0xe4, 0x42, 0xeb, 0xfc];

/// vCPU 0 halts and the others loop: test edi, edi; jnz $; hlt
pub const FIRST_HALTS: &[u8] = &[0x85, 0xff, 0x75, 0xfe, 0xf4];

/// Reads each of the million addresses from 0xd0000000, in protected mode: mov eax, 0xd0000000; again: mov bl, [eax];
/// inc eax; cmp eax, 0xd00f4240; jne again; hlt
pub const READ_A_MILLION_ADDRESSES: &[u8] =
    &[0xb8, 0, 0, 0, 0xd0, 0x8a, 0x18, 0x40, 0x3d, 0x40, 0x42, 0x0f, 0xd0, 0x75, 0xf6, 0xf4];
