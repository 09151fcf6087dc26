//! Guests that break the SIMVIRTIO protocol or use its limits, and guests that crash.

use super::TEST;
use crate::model::{End, Exits, Guest};

/// The output of `hostile-full-queue`: a queue of 4096 bytes holds 4095.
const TWO_QUEUES: &str = match str::from_utf8(&[b'x'; 2 * 4095]) {
    Ok(text) => text,
    Err(_) => panic!("ASCII is UTF-8"),
};

/// The output of `hostile-racing-print`: 62 bytes through the device, and eight by a hypercall.
const SEVENTY: &str = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

pub(super) const GUESTS: &[Guest] = &[
    guest!(
        "hostile-data-early",
        "hostile/data_early.asm",
        Guest {
            about: "sends data before DRIVER_OK",
            end: End::ProtocolError,
            exits: Exits::Exactly(7),
            polling_exits: Some(Exits::Unspecified),
            ..TEST
        }
    ),
    guest!(
        "hostile-second-reset",
        "hostile/second_reset.asm",
        Guest {
            about: "sends 'R' twice, which is allowed",
            output: "x",
            exits: Exits::Exactly(13),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
    guest!(
        "hostile-second-config",
        "hostile/second_config.asm",
        Guest {
            about: "sends 'C' twice, which is allowed, and expects one table entry",
            output: "x",
            exits: Exits::Exactly(13),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
    guest!(
        "hostile-wild-head",
        "hostile/wild_head.asm",
        Guest {
            about: "publishes a head that is outside the queue",
            end: End::ProtocolError,
            exits: Exits::Exactly(4),
            polling_exits: Some(Exits::Unspecified),
            ..TEST
        }
    ),
    guest!(
        "hostile-selector",
        "hostile/selector.asm",
        Guest {
            about: "selects queue 7",
            end: End::ProtocolError,
            exits: Exits::Exactly(4),
            polling_exits: Some(Exits::Unspecified),
            ..TEST
        }
    ),
    guest!(
        "hostile-narrow-head",
        "hostile/narrow_head.asm",
        Guest {
            about: "stores one byte to the head",
            end: End::ProtocolError,
            exits: Exits::Exactly(1),
            polling_exits: Some(Exits::Unspecified),
            ..TEST
        }
    ),
    guest!(
        "hostile-word-head",
        "hostile/word_head.asm",
        Guest {
            about: "stores the upper half of the head",
            end: End::ProtocolError,
            exits: Exits::Exactly(1),
            polling_exits: Some(Exits::Unspecified),
            ..TEST
        }
    ),
    guest!(
        "hostile-wide-head",
        "hostile/wide_head.asm",
        Guest {
            about: "stores head and tail with one access",
            end: End::ProtocolError,
            exits: Exits::Exactly(1),
            polling_exits: Some(Exits::Unspecified),
            ..TEST
        }
    ),
    guest!(
        "hostile-straddling-head",
        "hostile/straddling_head.asm",
        Guest {
            about: "stores across the beginning of the head",
            end: End::ProtocolError,
            exits: Exits::Exactly(1),
            polling_exits: Some(Exits::Unspecified),
            ..TEST
        }
    ),
    guest!(
        "hostile-decreasing-head",
        "hostile/decreasing_head.asm",
        Guest {
            about: "moves the head back, which reads as an almost full queue",
            output: "x",
            exits: Exits::Exactly(12),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
    guest!(
        "hostile-racing-head",
        "hostile/racing_head.asm",
        Guest {
            about: "moves the head back and forth a thousand times",
            exits: Exits::Exactly(1001),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
    guest!(
        "hostile-read-only",
        "hostile/read_only.asm",
        Guest {
            about: "overwrites the device's fields and waits until they are restored",
            output: "x",
            exits: Exits::Exactly(20),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
    guest!(
        "hostile-widths",
        "hostile/widths.asm",
        Guest {
            about: "accesses the config table in every width, which is allowed",
            exits: Exits::Exactly(6),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
    guest!(
        "hostile-full-queue",
        "hostile/full_queue.asm",
        Guest {
            about: "fills a queue of 4096 bytes completely with one store, twice",
            queue_len: Some(4096),
            output: TWO_QUEUES,
            exits: Exits::Exactly(14),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
    guest!(
        "hostile-over-table",
        "hostile/over_table.asm",
        Guest {
            about: "covers the device table with its image",
            load_at: 0x1_0000,
            end: End::ProtocolError,
            exits: Exits::Exactly(4),
            polling_exits: Some(Exits::Unspecified),
            ..TEST
        }
    ),
    guest!(
        "hostile-over-buffers",
        "hostile/over_buffers.asm",
        Guest {
            about: "covers the TX buffer with its image, and overwrites that by sending",
            load_at: 0x1_1000,
            output: "x",
            exits: Exits::Exactly(10),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
    guest!(
        "hostile-status",
        "hostile/status.asm",
        Guest {
            about: "writes a driver status that the protocol does not define",
            end: End::ProtocolError,
            exits: Exits::Exactly(4),
            polling_exits: Some(Exits::Unspecified),
            ..TEST
        }
    ),
    guest!(
        "hostile-no-ack",
        "hostile/no_ack.asm",
        Guest {
            about: "sends 'C' without DRIVER_ACK",
            end: End::ProtocolError,
            exits: Exits::Exactly(5),
            polling_exits: Some(Exits::Unspecified),
            ..TEST
        }
    ),
    guest!(
        "hostile-table",
        "hostile/table.asm",
        Guest {
            about: "overwrites the device table",
            end: End::ProtocolError,
            exits: Exits::Exactly(4),
            polling_exits: Some(Exits::Unspecified),
            ..TEST
        }
    ),
    guest!(
        "hostile-halt-early",
        "hostile/halt_early.asm",
        Guest {
            about: "halts in the middle of the handshake",
            exits: Exits::Exactly(2),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
    guest!(
        "hostile-racing-print",
        "hostile/racing_print.asm",
        Guest {
            about: "prints the RX queue on one vCPU while the device writes to it for another",
            cpus: 2,
            input: "xxxxxxxx",
            output: SEVENTY,
            exits: Exits::Exactly(15),
            polling_exits: Some(Exits::Exactly(3)),
            ..TEST
        }
    ),
    guest!(
        "hostile-jump-outside",
        "hostile/jump_outside.asm",
        Guest {
            about: "jumps to an address without memory",
            end: End::Dies,
            exits: Exits::Unspecified,
            ..TEST
        }
    ),
    guest!(
        "hostile-return",
        "hostile/return.asm",
        Guest { about: "returns from its entry point", end: End::Dies, exits: Exits::Unspecified, ..TEST }
    ),
    guest!(
        "hostile-gdt",
        "hostile/gdt.asm",
        Guest {
            about: "clears its GDT and loads a segment from it",
            end: End::Dies,
            exits: Exits::Unspecified,
            ..TEST
        }
    ),
    guest!(
        "hostile-page-tables",
        "hostile/page_tables.asm",
        Guest { about: "clears its page tables", end: End::Dies, exits: Exits::Unspecified, ..TEST }
    ),
];
