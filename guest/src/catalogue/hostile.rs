//! Guests that break the SIMVIRTIO protocol or go to its edges, and guests that destroy themselves.

use super::TEST;
use crate::model::{End, Exits, Guest};

/// The text that fills a queue of 4096 bytes twice.
const TWO_QUEUES: &str = match str::from_utf8(&[b'x'; 2 * 4095]) {
    Ok(text) => text,
    Err(_) => panic!("ASCII is UTF-8"),
};

pub(super) const GUESTS: &[Guest] = &[
    guest!(
        "hostile-data-early",
        "hostile/data_early.asm",
        Guest {
            about: "pushes data before DRIVER_OK",
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
            about: "pushes 'R' twice, which is allowed",
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
            about: "pushes 'C' twice, which is allowed, and looks for one table entry",
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
            about: "publishes a head that is no index",
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
            about: "stores half of the head",
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
            about: "stores head and tail as one",
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
            about: "a store that begins before the head and ends in it",
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
            about: "a head that goes back, which is a queue almost full",
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
            about: "a head that jumps to and fro a thousand times",
            exits: Exits::Exactly(1001),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
    guest!(
        "hostile-read-only",
        "hostile/read_only.asm",
        Guest {
            about: "overwrites all that is the device's, and waits until it is right again",
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
            about: "reads and writes the config table in every width, which is allowed",
            exits: Exits::Exactly(6),
            polling_exits: Some(Exits::Exactly(1)),
            ..TEST
        }
    ),
    guest!(
        "hostile-full-queue",
        "hostile/full_queue.asm",
        Guest {
            about: "fills a queue of 4096 bytes to the brim with one store, twice",
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
            about: "an image that lies over the device table",
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
            about: "an image that lies over the TX buffer, which overwrites it",
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
            about: "writes a driver status that there is not",
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
            about: "pushes 'C' without DRIVER_ACK",
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
        "hostile-jump-outside",
        "hostile/jump_outside.asm",
        Guest {
            about: "jumps to where there is no memory",
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
            about: "clears its own GDT and loads a segment from it",
            end: End::Dies,
            exits: Exits::Unspecified,
            ..TEST
        }
    ),
    guest!(
        "hostile-page-tables",
        "hostile/page_tables.asm",
        Guest { about: "clears its own page tables", end: End::Dies, exits: Exits::Unspecified, ..TEST }
    ),
];
