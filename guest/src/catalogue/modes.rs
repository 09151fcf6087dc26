//! Guests of each mode: how they are entered, what they print, how they end.

use super::{BASE, PROTECTED, REAL, TEST, USER};
use crate::model::{End, Exits, Guest, Map, Mode, Part};

pub(super) const GUESTS: &[Guest] = &[
    guest!(
        "real16-42",
        "real16/forty_two.asm",
        Guest { about: "16-bit assembly: 42 in AX and at 0x400, then hlt", ..REAL }
    ),
    guest!(
        "real16-hello",
        "real16/hello.asm",
        Guest {
            about: "16-bit assembly: \"Hello, world!\" on port 0xE9, a byte an exit",
            output: "Hello, world!\n",
            exits: Exits::Exactly(15),
            ..REAL
        }
    ),
    guest!(
        "real16-in",
        "real16/port_in.asm",
        Guest {
            about: "16-bit assembly: reads a port that answers and one that nobody has",
            exits: Exits::Exactly(3),
            ..REAL
        }
    ),
    guest!(
        "real16-outsb",
        "real16/string_out.asm",
        Guest {
            about: "16-bit assembly: \"Hello, world!\" with one `rep outsb`",
            output: "Hello, world!\n",
            exits: Exits::Elements(15),
            ..REAL
        }
    ),
    guest!(
        "real16-insb",
        "real16/string_in.asm",
        Guest {
            about: "16-bit assembly: 16 bytes from a port with one `rep insb`",
            exits: Exits::Elements(17),
            ..REAL
        }
    ),
    guest!(
        "prot32-hello",
        "prot32/hello.c",
        Guest {
            about: "32-bit C in protected mode: \"Hello, world!\" on port 0xE9",
            output: "Hello, world!\n",
            exits: Exits::Exactly(15),
            ..PROTECTED
        }
    ),
    guest!(
        "long64-hello",
        "long64/hello.rs",
        Guest {
            about: "64-bit Rust in long mode: \"Hello, world!\" on port 0xE9",
            output: "Hello, world!\n",
            exits: Exits::Exactly(15),
            ..BASE
        }
    ),
    guest!(
        "modes",
        "real16/modes.asm",
        Guest {
            about: "assembly: walks from real to protected to long mode, and reports from each",
            cpuid: true,
            output: "real mode\nprotected mode\nlong mode\n",
            exits: Exits::Exactly(36),
            ..REAL
        }
    ),
    guest!(
        "hello-kvm",
        "long64/hello_kvm.asm",
        Guest {
            about: "64-bit assembly at 1 MiB: \"Hello, KVM!\" on the serial port",
            load_at: 0x10_0000,
            map: Map::Plain,
            output: "Hello, KVM!",
            end: End::Halts,
            exits: Exits::Exactly(12),
            ..BASE
        }
    ),
    guest!(
        "user64-hello",
        "long64/hello.rs",
        Guest {
            about: "64-bit Rust in ring 3: \"Hello, world!\" on port 0xE9, and its end by port 0xF4",
            output: "Hello, world!\n",
            exits: Exits::Exactly(15),
            ..USER
        }
    ),
    guest!(
        "prot32-endless",
        "prot32/endless.asm",
        Guest {
            about: "jumps to itself with interrupts off",
            mode: Mode::Protected,
            end: End::Never,
            exits: Exits::Exactly(0),
            ..TEST
        }
    ),
    guest!(
        "real16-wrong-result",
        "real16/wrong_result.asm",
        Guest { about: "leaves 41", mode: Mode::Real, end: End::WrongResult, ..TEST }
    ),
    guest!(
        "long64-exit-code",
        "long64/exit_code.asm",
        Guest { about: "ends with code 7 on the exit port", end: End::ExitCode(7), ..TEST }
    ),
    guest!(
        "user64-hlt",
        "user64/hlt.asm",
        Guest {
            about: "ring 3: hlt, which is for ring 0, and no interrupt table",
            end: End::TripleFault,
            part: Part::Test,
            ..USER
        }
    ),
    guest!(
        "user64-ports",
        "user64/ports.asm",
        Guest {
            about: "ring 3: the first and the last port in each width, all allowed",
            exits: Exits::Exactly(7),
            part: Part::Test,
            ..USER
        }
    ),
    guest!(
        "long64-triple-fault",
        "long64/triple_fault.asm",
        Guest { about: "an undefined instruction, and no interrupt table", end: End::TripleFault, ..TEST }
    ),
    guest!(
        "prot32-triple-fault",
        "prot32/triple_fault.asm",
        Guest {
            about: "an undefined instruction, and no interrupt table",
            mode: Mode::Protected,
            end: End::TripleFault,
            ..TEST
        }
    ),
    guest!(
        "real16-endless",
        "real16/endless.asm",
        Guest {
            about: "jumps to itself with interrupts off",
            mode: Mode::Real,
            end: End::Never,
            exits: Exits::Exactly(0),
            ..TEST
        }
    ),
    guest!(
        "long64-endless",
        "long64/endless.asm",
        Guest {
            about: "jumps to itself with interrupts off",
            end: End::Never,
            exits: Exits::Exactly(0),
            ..TEST
        }
    ),
];
