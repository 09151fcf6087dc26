//! Guests with a SIMVIRTIO driver. The first ones are examples; the others are for tests.

use super::{BASE, TEST, USER};
use crate::model::{End, Exits, Guest};

pub(super) const GUESTS: &[Guest] = &[
    guest!(
        "user64-simvirtio",
        "long64/simvirtio.rs",
        Guest {
            about: "drives SIMVIRTIO in ring 3, sends \"Ana are mere\" (64-bit Rust)",
            output: "Ana are mere",
            exits: Exits::Exactly(40),
            polling_exits: Some(Exits::Exactly(1)),
            ..USER
        }
    ),
    guest!(
        "simvirtio",
        "long64/simvirtio.rs",
        Guest {
            about: "drives SIMVIRTIO, sends \"Ana are mere\" (64-bit Rust)",
            output: "Ana are mere",
            exits: Exits::Exactly(40),
            polling_exits: Some(Exits::Exactly(1)),
            ..BASE
        }
    ),
    guest!(
        "simvirtio-c",
        "long64/simvirtio.c",
        Guest {
            about: "drives SIMVIRTIO by simvirtio.h, with the assignment's names (64-bit C)",
            output: "Ana are mere",
            exits: Exits::Exactly(53),
            polling_exits: Some(Exits::Exactly(1)),
            ..BASE
        }
    ),
    guest!(
        "simvirtio-skeleton",
        "long64/simvirtio.c",
        Guest {
            about: "writes the magic to port 0xE9, then runs as simvirtio-c does (64-bit C)",
            output: "Ana are mere",
            exits: Exits::Exactly(54),
            polling_exits: Some(Exits::Exactly(2)),
            defines: &["ANNOUNCE_MAGIC"],
            ..BASE
        }
    ),
    guest!(
        "simvirtio-struct",
        "long64/simvirtio.c",
        Guest {
            about: "runs as simvirtio-c does, with the layout of the struct device_t (64-bit C)",
            output: "Ana are mere",
            exits: Exits::Exactly(53),
            polling_exits: Some(Exits::Exactly(1)),
            defines: &["SIMVIRTIO_STRUCT"],
            struct_layout: true,
            ..BASE
        }
    ),
    guest!(
        "simvirtio-upper",
        "long64/simvirtio_upper.rs",
        Guest {
            about: "returns its input in upper case (64-bit Rust)",
            input: "Ana are mere,\nsi pere",
            output: "ANA ARE MERE,\nSI PERE",
            exits: Exits::Exactly(104),
            polling_exits: Some(Exits::Exactly(1)),
            ..BASE
        }
    ),
    guest!(
        "simvirtio-upper-c",
        "long64/simvirtio_upper.c",
        Guest {
            about: "returns its input in upper case, by simvirtio.h (64-bit C)",
            input: "Ana are mere,\nsi pere",
            output: "ANA ARE MERE,\nSI PERE",
            exits: Exits::Exactly(147),
            polling_exits: Some(Exits::Exactly(1)),
            ..BASE
        }
    ),
    guest!(
        "simvirtio-echo",
        "long64/echo.asm",
        Guest {
            about: "returns its input in batches of up to a whole queue (64-bit assembly)",
            input: "Ana are mere,\nsi pere",
            output: "Ana are mere,\nsi pere",
            exits: Exits::Exactly(15),
            polling_exits: Some(Exits::Exactly(1)),
            ..BASE
        }
    ),
    guest!(
        "simvirtio-doorbell",
        "long64/doorbell.asm",
        Guest {
            about: "rings the doorbell: no exit with --transport doorbell (64-bit assembly)",
            output: "Ana are mere",
            exits: Exits::Exactly(15),
            polling_exits: Some(Exits::Exactly(5)),
            ..BASE
        }
    ),
    guest!(
        "simvirtio-twice",
        "long64/simvirtio_twice.rs",
        Guest {
            about: "resets the device in the middle of a message (64-bit Rust)",
            output: "Ana are mere, RC\n",
            exits: Exits::Exactly(64),
            polling_exits: Some(Exits::Exactly(1)),
            ..BASE
        }
    ),
    guest!(
        "simvirtio-reserved",
        "long64/reserved.asm",
        Guest {
            about: "reads back a reserved byte of the window, which differs by transport",
            output: "Ana are mere",
            exits: Exits::Exactly(50),
            polling_exits: Some(Exits::Exactly(2)),
            ..TEST
        }
    ),
    guest!(
        "simvirtio-no-wrap",
        "hostile/no_wrap.asm",
        Guest {
            about: "never wraps its index: correct only if the queue exceeds its message",
            output: "Ana are mere",
            exits: Exits::Exactly(21),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
    guest!(
        "simvirtio-config-first",
        "long64/config_first.asm",
        Guest {
            about: "breaks the protocol: sends 'C' before 'R'",
            end: End::ProtocolError,
            polling_exits: Some(Exits::Unspecified),
            ..TEST
        }
    ),
    guest!(
        "simvirtio-broken-wait",
        "long64/broken_wait.asm",
        Guest {
            about: "breaks the protocol, then waits forever",
            end: End::ProtocolError,
            polling_exits: Some(Exits::Exactly(0)),
            ..TEST
        }
    ),
    guest!(
        "simvirtio-queue-2",
        image_of("simvirtio"),
        Guest {
            about: "runs the guest simvirtio with queues of 2 bytes, which hold one byte each",
            queue_len: Some(2),
            output: "Ana are mere",
            exits: Exits::Exactly(40),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
];
