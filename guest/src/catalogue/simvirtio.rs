//! SIMVIRTIO drivers, good ones first.

use super::{BASE, TEST, USER};
use crate::model::{End, Exits, Guest};

pub(super) const GUESTS: &[Guest] = &[
    guest!(
        "user64-simvirtio",
        "long64/simvirtio.rs",
        Guest {
            about: "64-bit Rust in ring 3: the SIMVIRTIO driver, sends \"Ana are mere\"",
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
            about: "64-bit Rust: the SIMVIRTIO driver, sends \"Ana are mere\"",
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
            about: "64-bit C: the same driver over simvirtio.h, with the assignment's names",
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
            about: "64-bit C: the same, but writes the magic to port 0xE9 first",
            output: "Ana are mere",
            exits: Exits::Exactly(54),
            polling_exits: Some(Exits::Exactly(2)),
            defines: &["ANNOUNCE_MAGIC"],
            ..BASE
        }
    ),
    guest!(
        "simvirtio-upper",
        "long64/simvirtio_upper.rs",
        Guest {
            about: "64-bit Rust: answers its input in upper case",
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
            about: "64-bit C: the same over simvirtio.h",
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
            about: "64-bit assembly: sends its input back in batches, whatever the queue holds",
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
            about: "64-bit assembly: rings the doorbell; by --transport doorbell that is no exit",
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
            about: "64-bit Rust: resets the device in the middle of a message",
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
            about: "relies on the reserved part of the window, which differs by transport",
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
            about: "never wraps its index: right by luck, with a queue that is long enough",
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
            about: "breaks the protocol: 'C' before 'R'",
            end: End::ProtocolError,
            polling_exits: Some(Exits::Unspecified),
            ..TEST
        }
    ),
    guest!(
        "simvirtio-broken-wait",
        "long64/broken_wait.asm",
        Guest {
            about: "breaks the protocol, then waits for ever",
            end: End::ProtocolError,
            polling_exits: Some(Exits::Exactly(0)),
            ..TEST
        }
    ),
    guest!(
        "simvirtio-queue-2",
        image_of("simvirtio"),
        Guest {
            about: "the SIMVIRTIO guest over queues of 2 bytes, which hold one each",
            queue_len: Some(2),
            output: "Ana are mere",
            exits: Exits::Exactly(40),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
];
