//! Guests for each CPU mode: entry, port I/O, and the different ends of a run.

use super::{BASE, PROTECTED, REAL, TEST, USER};
use crate::model::{End, Exits, Guest, Map, Mode, Part};

pub(super) const GUESTS: &[Guest] = &[
    guest!(
        "real16-42",
        "real16/forty_two.asm",
        Guest { about: "leaves 42 in AX and at 0x400, then halts (16-bit assembly)", ..REAL }
    ),
    guest!(
        "real16-hello",
        "real16/hello.asm",
        Guest {
            about: "prints \"Hello, world!\" on port 0xE9, one exit per byte (16-bit assembly)",
            output: "Hello, world!\n",
            exits: Exits::Exactly(15),
            ..REAL
        }
    ),
    guest!(
        "real16-in",
        "real16/port_in.asm",
        Guest {
            about: "reads a port with a device and a port without one (16-bit assembly)",
            exits: Exits::Exactly(3),
            ..REAL
        }
    ),
    guest!(
        "real16-outsb",
        "real16/string_out.asm",
        Guest {
            about: "prints \"Hello, world!\" with one `rep outsb` (16-bit assembly)",
            output: "Hello, world!\n",
            exits: Exits::Elements(15),
            ..REAL
        }
    ),
    guest!(
        "real16-insb",
        "real16/string_in.asm",
        Guest {
            about: "reads 16 bytes from a port with one `rep insb` (16-bit assembly)",
            exits: Exits::Elements(17),
            ..REAL
        }
    ),
    guest!(
        "prot32-hello",
        "prot32/hello.c",
        Guest {
            about: "prints \"Hello, world!\" on port 0xE9 in protected mode (32-bit C)",
            output: "Hello, world!\n",
            exits: Exits::Exactly(15),
            ..PROTECTED
        }
    ),
    guest!(
        "long64-hello",
        "long64/hello.rs",
        Guest {
            about: "prints \"Hello, world!\" on port 0xE9 in long mode (64-bit Rust)",
            output: "Hello, world!\n",
            exits: Exits::Exactly(15),
            ..BASE
        }
    ),
    guest!(
        "modes",
        "real16/modes.asm",
        Guest {
            about: "switches from real to protected to long mode, prints in each (assembly)",
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
            about: "prints \"Hello, KVM!\" on the serial port, loaded at 1 MiB (64-bit assembly)",
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
            about: "prints \"Hello, world!\" in ring 3 and ends by port 0xF4 (64-bit Rust)",
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
        Guest { about: "leaves 41 instead of 42", mode: Mode::Real, end: End::WrongResult, ..TEST }
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
            about: "executes hlt in ring 3, which raises #GP, without an IDT",
            end: End::TripleFault,
            part: Part::Test,
            ..USER
        }
    ),
    guest!(
        "user64-ports",
        "user64/ports.asm",
        Guest {
            about: "accesses the first and last port in each width in ring 3: all are allowed",
            loses_stores: true,
            exits: Exits::Exactly(7),
            part: Part::Test,
            ..USER
        }
    ),
    guest!(
        "long64-triple-fault",
        "long64/triple_fault.asm",
        Guest { about: "executes an undefined instruction without an IDT", end: End::TripleFault, ..TEST }
    ),
    guest!(
        "prot32-triple-fault",
        "prot32/triple_fault.asm",
        Guest {
            about: "executes an undefined instruction without an IDT",
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
