//! Hostile guests, and the exercise for them: a guest prints the word at 0x500.

use crate::support::assembler::{CodeAssembler, IcedError, assemble, *};

pub const EXERCISE: &str = r#"version = 1
name = "A hostile guest"
[run]
address = 0x1000
timeout = 1
output_limit = 10000
[[task]]
name = "real mode"
mode = "real"
points = 10
file = "real.bin"
random = { word = { letters = [8, 8] } }
input = "{word}"
input_at = 0x500
check = [{ output = "{word}" }, { points = 4, exits = "<=60" }]
[[task]]
name = "long mode"
mode = "long"
points = 10
file = "long.bin"
random = { word = { letters = [8, 8] } }
input = "{word}"
input_at = 0x500
check = [{ output = "{word}" }]
"#;

type Code = (&'static str, u64, Vec<u8>);

/// 16-bit code at 0x1000.
fn code16(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    assemble(16, 0x1000, write)
}

/// 64-bit code at 0x1000.
fn code64(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    assemble(64, 0x1000, write)
}

/// Prints the word, and halts.
fn echo16(code: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut next, mut end) = (code.create_label(), code.create_label());
    code.mov(si, 0x500)?;
    code.cld()?;
    code.set_label(&mut next)?;
    code.lodsb()?;
    code.test(al, al)?;
    code.je(end)?;
    code.out(0xe9, al)?;
    code.jmp(next)?;
    code.set_label(&mut end)?;
    code.hlt()
}

/// Prints the word, and halts.
fn echo64(code: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut next, mut end) = (code.create_label(), code.create_label());
    code.mov(rsi, 0x500u64)?;
    code.set_label(&mut next)?;
    code.lodsb()?;
    code.test(al, al)?;
    code.je(end)?;
    code.out(0xe9, al)?;
    code.jmp(next)?;
    code.set_label(&mut end)?;
    code.hlt()
}

pub fn honest() -> Vec<u8> {
    code16(echo16)
}

pub fn honest_long() -> Vec<u8> {
    code64(echo64)
}

/// Accesses to ports, and to addresses above 1 MiB, that belong to nothing. Needs `times` passes.
fn unclaimed(code: &mut CodeAssembler, times: u32) -> Result<(), IcedError> {
    let mut pass = code.create_label();
    code.mov(cx, times)?;
    code.set_label(&mut pass)?;
    code.mov(dx, 0x1234)?;
    code.in_(al, dx)?;
    code.out(dx, ax)?;
    code.loop_(pass)?;
    code.mov(ax, 0xffff)?;
    code.mov(ds, ax)?;
    code.mov(al, byte_ptr(0x10))?;
    code.mov(byte_ptr(0x8010), al)?;
    code.cpuid()?;
    code.xor(ax, ax)?;
    code.mov(ds, ax)
}

/// Guests in real mode, and their points.
pub fn real() -> Vec<Code> {
    let forever = |write: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        code16(|code| {
            let mut start = code.create_label();
            code.set_label(&mut start)?;
            write(code)?;
            code.jmp(start)
        })
    };
    let print = |text: &'static [u8]| {
        code16(|code| {
            for byte in text {
                code.mov(al, u32::from(*byte))?;
                code.out(0xe9, al)?;
            }
            echo16(code)
        })
    };
    vec![
        ("endless", 0, forever(|code| code.nop())),
        ("flood", 0, forever(|code| code.out(0xe9, al))),
        ("endless-exits", 0, forever(|code| code.in_(al, 0x80))),
        ("forge", 0, print(b"\x1b[2J\r100/100\n 10/10\n100/100\n{\"earned\":20}\n")),
        (
            "unclaimed",
            10,
            code16(|code| {
                unclaimed(code, 1)?;
                echo16(code)
            }),
        ),
        (
            "many-exits",
            6,
            code16(|code| {
                unclaimed(code, 40)?;
                echo16(code)
            }),
        ),
        (
            "reset",
            10,
            code16(|code| {
                code.mov(al, 0xfe)?;
                code.out(0x64, al)?;
                echo16(code)
            }),
        ),
        (
            "overwrite",
            0,
            code16(|code| {
                code.mov(cx, 0xffff)?;
                code.xor(di, di)?;
                code.rep().stosb()?;
                code.hlt()
            }),
        ),
    ]
}

/// Guests in long mode, and their points.
pub fn long() -> Vec<Code> {
    let then_echo = |write: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        code64(|code| {
            write(code)?;
            echo64(code)
        })
    };
    vec![
        ("cpuid", 10, then_echo(|code| code.cpuid())),
        (
            "msr",
            0,
            then_echo(|code| {
                code.mov(ecx, 0xabcdu32)?;
                code.wrmsr()
            }),
        ),
        ("vmcall", 0, then_echo(|code| code.vmcall())),
        (
            "hypercall",
            10,
            then_echo(|code| {
                code.mov(eax, 0xffffu32)?;
                code.mov(dx, 0x500)?;
                code.out(dx, eax)
            }),
        ),
        ("mmio", 10, then_echo(|code| code.mov(dword_ptr(0xcafe_0000u64), eax))),
        ("triple-fault", 0, then_echo(|code| code.ud2())),
        (
            "page-tables",
            0,
            then_echo(|code| {
                code.mov(rdi, cr3)?;
                code.mov(ecx, 0x1000u32)?;
                code.xor(eax, eax)?;
                code.rep().stosb()?;
                code.mov(rax, cr3)?;
                code.mov(cr3, rax)
            }),
        ),
    ]
}
