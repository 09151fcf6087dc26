//! The list itself.

use crate::{End, Exits, Guest, Map, Mode, Part};

macro_rules! image {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".bin"))
    };
}

/// What most guests have in common.
const BASE: Guest = Guest {
    name: "",
    about: "",
    image: &[],
    load_at: 0x1000,
    mode: Mode::Long,
    map: Map::So2,
    cpuid: false,
    cpus: 1,
    kev: false,
    msrs: &[],
    queue_len: None,
    input: "",
    output: "",
    end: End::FortyTwo,
    exits: Exits::Exactly(1),
    polling_exits: None,
    part: Part::Example,
};

const REAL: Guest = Guest { mode: Mode::Real, ..BASE };
const PROTECTED: Guest = Guest { mode: Mode::Protected, ..BASE };
/// What fills a queue of 4096 bytes twice.
const TWO_QUEUES: &str = match str::from_utf8(&[b'x'; 2 * 4095]) {
    Ok(text) => text,
    Err(_) => "",
};
/// What four vCPUs print that print 25 lines each.
const HUNDRED_LINES: &str = match str::from_utf8(LINES.as_flattened()) {
    Ok(text) => text,
    Err(_) => "",
};
const LINES: &[[u8; 21]] = &[*b"a line that is whole\n"; 100];
const USER: Guest = Guest { mode: Mode::User, ..BASE };
const KEV: Guest = Guest { kev: true, ..BASE };
const TEST: Guest = Guest { part: Part::Test, ..BASE };

/// What `vmm compare` runs, in long mode or in ring 3, at 0x1000. It is no guest to run by itself: its parameters have to
/// be in memory (`docs/compare.md`).
pub const COMPARE: &[u8] = image!("compare");

/// All embedded guests.
pub const GUESTS: &[Guest] = &[
    Guest {
        name: "real16-42",
        about: "16-bit assembly: 42 in AX and at 0x400, then hlt",
        image: image!("real16-42"),
        ..REAL
    },
    Guest {
        name: "real16-hello",
        about: "16-bit assembly: \"Hello, world!\" on port 0xE9, a byte an exit",
        image: image!("real16-hello"),
        output: "Hello, world!\n",
        exits: Exits::Exactly(15),
        ..REAL
    },
    Guest {
        name: "real16-in",
        about: "16-bit assembly: reads a port that answers and one that nobody has",
        image: image!("real16-in"),
        exits: Exits::Exactly(3),
        ..REAL
    },
    Guest {
        name: "real16-outsb",
        about: "16-bit assembly: \"Hello, world!\" with one `rep outsb`",
        image: image!("real16-outsb"),
        output: "Hello, world!\n",
        exits: Exits::Elements(15),
        ..REAL
    },
    Guest {
        name: "real16-insb",
        about: "16-bit assembly: 16 bytes from a port with one `rep insb`",
        image: image!("real16-insb"),
        exits: Exits::Elements(17),
        ..REAL
    },
    Guest {
        name: "prot32-hello",
        about: "32-bit C in protected mode: \"Hello, world!\" on port 0xE9",
        image: image!("prot32-hello"),
        output: "Hello, world!\n",
        exits: Exits::Exactly(15),
        ..PROTECTED
    },
    Guest {
        name: "long64-hello",
        about: "64-bit Rust in long mode: \"Hello, world!\" on port 0xE9",
        image: image!("long64-hello"),
        output: "Hello, world!\n",
        exits: Exits::Exactly(15),
        ..BASE
    },
    Guest {
        name: "modes",
        about: "assembly: walks from real to protected to long mode, and reports from each",
        image: image!("modes"),
        cpuid: true,
        output: "real mode\nprotected mode\nlong mode\n",
        exits: Exits::Exactly(36),
        ..REAL
    },
    Guest {
        name: "hello-kvm",
        about: "64-bit assembly at 1 MiB: \"Hello, KVM!\" on the serial port",
        image: image!("hello-kvm"),
        load_at: 0x10_0000,
        map: Map::Plain,
        output: "Hello, KVM!",
        end: End::Halts,
        exits: Exits::Exactly(12),
        ..BASE
    },
    Guest {
        name: "user64-hello",
        about: "64-bit Rust in ring 3: \"Hello, world!\" on port 0xE9, and its end by port 0xF4",
        image: image!("user64-hello"),
        output: "Hello, world!\n",
        exits: Exits::Exactly(15),
        ..USER
    },
    Guest {
        name: "user64-simvirtio",
        about: "64-bit Rust in ring 3: the SIMVIRTIO driver, sends \"Ana are mere\"",
        image: image!("user64-simvirtio"),
        output: "Ana are mere",
        exits: Exits::Exactly(40),
        polling_exits: Some(Exits::Exactly(1)),
        ..USER
    },
    Guest {
        name: "simvirtio",
        about: "64-bit Rust: the SIMVIRTIO driver, sends \"Ana are mere\"",
        image: image!("simvirtio"),
        output: "Ana are mere",
        exits: Exits::Exactly(40),
        polling_exits: Some(Exits::Exactly(1)),
        ..BASE
    },
    Guest {
        name: "simvirtio-c",
        about: "64-bit C: the same driver over simvirtio.h, with the assignment's names",
        image: image!("simvirtio-c"),
        output: "Ana are mere",
        exits: Exits::Exactly(53),
        polling_exits: Some(Exits::Exactly(1)),
        ..BASE
    },
    Guest {
        name: "simvirtio-skeleton",
        about: "64-bit C: the same, but writes the magic to port 0xE9 first",
        image: image!("simvirtio-skeleton"),
        output: "Ana are mere",
        exits: Exits::Exactly(54),
        polling_exits: Some(Exits::Exactly(2)),
        ..BASE
    },
    Guest {
        name: "simvirtio-upper",
        about: "64-bit Rust: answers its input in upper case",
        image: image!("simvirtio-upper"),
        input: "Ana are mere,\nsi pere",
        output: "ANA ARE MERE,\nSI PERE",
        exits: Exits::Exactly(104),
        polling_exits: Some(Exits::Exactly(1)),
        ..BASE
    },
    Guest {
        name: "simvirtio-upper-c",
        about: "64-bit C: the same over simvirtio.h",
        image: image!("simvirtio-upper-c"),
        input: "Ana are mere,\nsi pere",
        output: "ANA ARE MERE,\nSI PERE",
        exits: Exits::Exactly(147),
        polling_exits: Some(Exits::Exactly(1)),
        ..BASE
    },
    Guest {
        name: "simvirtio-echo",
        about: "64-bit assembly: sends its input back in batches, whatever the queue holds",
        image: image!("simvirtio-echo"),
        input: "Ana are mere,\nsi pere",
        output: "Ana are mere,\nsi pere",
        exits: Exits::Exactly(15),
        polling_exits: Some(Exits::Exactly(1)),
        ..BASE
    },
    Guest {
        name: "simvirtio-doorbell",
        about: "64-bit assembly: rings the doorbell; by --transport doorbell that is no exit",
        image: image!("simvirtio-doorbell"),
        output: "Ana are mere",
        exits: Exits::Exactly(15),
        polling_exits: Some(Exits::Exactly(5)),
        ..BASE
    },
    Guest {
        name: "kev-hypercall",
        about: "prints with one hypercall",
        image: image!("kev-hypercall"),
        output: "Hello guest os!\n",
        exits: Exits::Exactly(2),
        ..KEV
    },
    Guest {
        name: "kev-hypercall32",
        about: "the same from protected mode",
        image: image!("kev-hypercall32"),
        mode: Mode::Protected,
        output: "Hello guest os!\n",
        exits: Exits::Exactly(2),
        ..KEV
    },
    Guest {
        name: "kev-hypercall16",
        about: "the same from real mode, through a segment",
        image: image!("kev-hypercall16"),
        mode: Mode::Real,
        output: "Hello guest os!\n",
        exits: Exits::Exactly(2),
        ..KEV
    },
    Guest {
        name: "kev-port",
        about: "prints with a port write for each byte",
        image: image!("kev-port"),
        output: "Hello guest os!\n",
        exits: Exits::Exactly(17),
        ..KEV
    },
    Guest {
        name: "kev-mmio",
        about: "prints through the MMIO printer",
        image: image!("kev-mmio"),
        output: "Hello guest os!\nHello mmio!",
        exits: Exits::Exactly(9),
        ..KEV
    },
    Guest {
        name: "kev-halt",
        about: "ends its vCPU with the code 0xcafe",
        image: image!("kev-halt"),
        end: End::ExitCode(0xcafe),
        ..KEV
    },
    Guest {
        name: "kev-ports",
        about: "port I/O in every form: by constant and by dx, byte, word and dword",
        image: image!("kev-ports"),
        exits: Exits::Exactly(17),
        ..KEV
    },
    Guest {
        name: "kev-strings",
        about: "string I/O in every form: ins and outs, with rep, up and down",
        image: image!("kev-strings"),
        exits: Exits::Elements(119),
        ..KEV
    },
    Guest {
        name: "kev-cpuid",
        about: "reads CPUID 256 times: vendor, this vCPU's number, signature",
        image: image!("kev-cpuid"),
        cpuid: true,
        exits: Exits::Exactly(26),
        ..KEV
    },
    Guest {
        name: "kev-msr",
        about: "a FIFO behind MSR 0xabc",
        image: image!("kev-msr"),
        exits: Exits::Exactly(5),
        ..KEV
    },
    Guest {
        name: "kev-msr-fault",
        about: "an MSR that nobody has: handles its own #GP",
        image: image!("kev-msr-fault"),
        exits: Exits::Exactly(3),
        ..KEV
    },
    Guest {
        name: "kev-msr-rules",
        about: "MSRs that are ignored, denied and logged",
        image: image!("kev-msr-rules"),
        msrs: &[(0x174, "ignore"), (0x175, "deny"), (0x176, "log")],
        exits: Exits::Exactly(7),
        ..KEV
    },
    Guest {
        name: "kev-vmcall",
        about: "vmcall and vmmcall, which never hang",
        image: image!("kev-vmcall"),
        exits: Exits::Exactly(3),
        ..KEV
    },
    Guest {
        name: "smp-counter",
        about: "4 vCPUs add to one counter, with lock",
        image: image!("smp-counter"),
        cpus: 4,
        exits: Exits::Exactly(9),
        ..BASE
    },
    Guest {
        name: "smp-print",
        about: "4 vCPUs print the same line, all at once",
        image: image!("smp-print"),
        cpus: 4,
        output: HUNDRED_LINES,
        exits: Exits::Exactly(104),
        ..BASE
    },
    Guest {
        name: "simvirtio-twice",
        about: "64-bit Rust: resets the device in the middle of a message",
        image: image!("simvirtio-twice"),
        output: "Ana are mere, RC\n",
        exits: Exits::Exactly(64),
        polling_exits: Some(Exits::Exactly(1)),
        ..BASE
    },
    Guest {
        name: "simvirtio-reserved",
        about: "relies on the reserved part of the window, which differs by transport",
        image: image!("simvirtio-reserved"),
        output: "Ana are mere",
        exits: Exits::Exactly(50),
        polling_exits: Some(Exits::Exactly(2)),
        ..TEST
    },
    Guest {
        name: "simvirtio-no-wrap",
        about: "never wraps its index: right by luck, with a queue that is long enough",
        image: image!("simvirtio-no-wrap"),
        output: "Ana are mere",
        exits: Exits::Exactly(21),
        polling_exits: Some(Exits::Exactly(1)),
        ..TEST
    },
    Guest {
        name: "simvirtio-config-first",
        about: "breaks the protocol: 'C' before 'R'",
        image: image!("simvirtio-config-first"),
        end: End::ProtocolError,
        polling_exits: Some(Exits::Unspecified),
        ..TEST
    },
    Guest {
        name: "simvirtio-broken-wait",
        about: "breaks the protocol, then waits for ever",
        image: image!("simvirtio-broken-wait"),
        end: End::ProtocolError,
        polling_exits: Some(Exits::Exactly(0)),
        ..TEST
    },
    Guest {
        name: "hostile-data-early",
        about: "pushes data before DRIVER_OK",
        image: image!("hostile-data-early"),
        output: "",
        end: End::ProtocolError,
        exits: Exits::Exactly(7),
        polling_exits: Some(Exits::Unspecified),
        ..TEST
    },
    Guest {
        name: "hostile-second-reset",
        about: "pushes 'R' twice, which is allowed",
        image: image!("hostile-second-reset"),
        output: "x",
        end: End::FortyTwo,
        exits: Exits::Exactly(13),
        polling_exits: Some(Exits::Exactly(1)),
        ..TEST
    },
    Guest {
        name: "hostile-second-config",
        about: "pushes 'C' twice, which is allowed, and looks for one table entry",
        image: image!("hostile-second-config"),
        output: "x",
        end: End::FortyTwo,
        exits: Exits::Exactly(13),
        polling_exits: Some(Exits::Exactly(1)),
        ..TEST
    },
    Guest {
        name: "hostile-wild-head",
        about: "publishes a head that is no index",
        image: image!("hostile-wild-head"),
        output: "",
        end: End::ProtocolError,
        exits: Exits::Exactly(4),
        polling_exits: Some(Exits::Unspecified),
        ..TEST
    },
    Guest {
        name: "hostile-selector",
        about: "selects queue 7",
        image: image!("hostile-selector"),
        output: "",
        end: End::ProtocolError,
        exits: Exits::Exactly(4),
        polling_exits: Some(Exits::Unspecified),
        ..TEST
    },
    Guest {
        name: "hostile-narrow-head",
        about: "stores one byte to the head",
        image: image!("hostile-narrow-head"),
        output: "",
        end: End::ProtocolError,
        exits: Exits::Exactly(1),
        polling_exits: Some(Exits::Unspecified),
        ..TEST
    },
    Guest {
        name: "hostile-word-head",
        about: "stores half of the head",
        image: image!("hostile-word-head"),
        end: End::ProtocolError,
        exits: Exits::Exactly(1),
        polling_exits: Some(Exits::Unspecified),
        ..TEST
    },
    Guest {
        name: "hostile-wide-head",
        about: "stores head and tail as one",
        image: image!("hostile-wide-head"),
        end: End::ProtocolError,
        exits: Exits::Exactly(1),
        polling_exits: Some(Exits::Unspecified),
        ..TEST
    },
    Guest {
        name: "hostile-straddling-head",
        about: "a store that begins before the head and ends in it",
        image: image!("hostile-straddling-head"),
        end: End::ProtocolError,
        exits: Exits::Exactly(1),
        polling_exits: Some(Exits::Unspecified),
        ..TEST
    },
    Guest {
        name: "hostile-decreasing-head",
        about: "a head that goes back, which is a queue almost full",
        image: image!("hostile-decreasing-head"),
        output: "x",
        end: End::FortyTwo,
        exits: Exits::Exactly(12),
        polling_exits: Some(Exits::Exactly(1)),
        ..TEST
    },
    Guest {
        name: "hostile-racing-head",
        about: "a head that jumps to and fro a thousand times",
        image: image!("hostile-racing-head"),
        end: End::FortyTwo,
        exits: Exits::Exactly(1001),
        polling_exits: Some(Exits::Exactly(1)),
        ..TEST
    },
    Guest {
        name: "hostile-read-only",
        about: "overwrites all that is the device's, and waits until it is right again",
        image: image!("hostile-read-only"),
        output: "x",
        end: End::FortyTwo,
        exits: Exits::Exactly(20),
        polling_exits: Some(Exits::Exactly(1)),
        ..TEST
    },
    Guest {
        name: "hostile-widths",
        about: "reads and writes the config table in every width, which is allowed",
        image: image!("hostile-widths"),
        end: End::FortyTwo,
        exits: Exits::Exactly(6),
        polling_exits: Some(Exits::Exactly(1)),
        ..TEST
    },
    Guest {
        name: "hostile-full-queue",
        about: "fills a queue of 4096 bytes to the brim with one store, twice",
        image: image!("hostile-full-queue"),
        queue_len: Some(4096),
        output: TWO_QUEUES,
        end: End::FortyTwo,
        exits: Exits::Exactly(14),
        polling_exits: Some(Exits::Exactly(1)),
        ..TEST
    },
    Guest {
        name: "simvirtio-queue-2",
        about: "the SIMVIRTIO guest over queues of 2 bytes, which hold one each",
        image: image!("simvirtio"),
        queue_len: Some(2),
        output: "Ana are mere",
        end: End::FortyTwo,
        exits: Exits::Exactly(40),
        polling_exits: Some(Exits::Exactly(1)),
        ..TEST
    },
    Guest {
        name: "hostile-over-table",
        about: "an image that lies over the device table",
        image: image!("hostile-over-table"),
        load_at: 0x1_0000,
        end: End::ProtocolError,
        exits: Exits::Exactly(4),
        polling_exits: Some(Exits::Unspecified),
        ..TEST
    },
    Guest {
        name: "hostile-over-buffers",
        about: "an image that lies over the TX buffer, which overwrites it",
        image: image!("hostile-over-buffers"),
        load_at: 0x1_1000,
        output: "x",
        end: End::FortyTwo,
        exits: Exits::Exactly(10),
        polling_exits: Some(Exits::Exactly(1)),
        ..TEST
    },
    Guest {
        name: "hostile-status",
        about: "writes a driver status that there is not",
        image: image!("hostile-status"),
        output: "",
        end: End::ProtocolError,
        exits: Exits::Exactly(4),
        polling_exits: Some(Exits::Unspecified),
        ..TEST
    },
    Guest {
        name: "hostile-no-ack",
        about: "pushes 'C' without DRIVER_ACK",
        image: image!("hostile-no-ack"),
        output: "",
        end: End::ProtocolError,
        exits: Exits::Exactly(5),
        polling_exits: Some(Exits::Unspecified),
        ..TEST
    },
    Guest {
        name: "hostile-table",
        about: "overwrites the device table",
        image: image!("hostile-table"),
        output: "",
        end: End::ProtocolError,
        exits: Exits::Exactly(4),
        polling_exits: Some(Exits::Unspecified),
        ..TEST
    },
    Guest {
        name: "hostile-halt-early",
        about: "halts in the middle of the handshake",
        image: image!("hostile-halt-early"),
        output: "",
        end: End::FortyTwo,
        exits: Exits::Exactly(2),
        polling_exits: Some(Exits::Exactly(1)),
        ..TEST
    },
    Guest {
        name: "smp-stop",
        about: "one vCPU never ends, another asks the machine to end",
        image: image!("smp-stop"),
        cpus: 2,
        end: End::ExitCode(7),
        ..TEST
    },
    Guest {
        name: "hostile-hypercall",
        about: "hypercalls with wild addresses, lengths and numbers",
        image: image!("hostile-hypercall"),
        exits: Exits::Exactly(10),
        ..TEST
    },
    Guest {
        name: "hostile-mmio",
        about: "the MMIO printer with wild addresses and every width",
        image: image!("hostile-mmio"),
        kev: true,
        exits: Exits::Exactly(17),
        ..TEST
    },
    Guest {
        name: "hostile-ins",
        about: "64 Ki elements with one rep insb, and 1 Ki with one rep outsb",
        image: image!("hostile-ins"),
        kev: true,
        exits: Exits::Elements(66561),
        ..TEST
    },
    Guest {
        name: "hostile-jump-outside",
        about: "jumps to where there is no memory",
        image: image!("hostile-jump-outside"),
        end: End::Dies,
        exits: Exits::Unspecified,
        ..TEST
    },
    Guest {
        name: "hostile-return",
        about: "returns from its entry point",
        image: image!("hostile-return"),
        end: End::Dies,
        exits: Exits::Unspecified,
        ..TEST
    },
    Guest {
        name: "hostile-gdt",
        about: "clears its own GDT and loads a segment from it",
        image: image!("hostile-gdt"),
        end: End::Dies,
        exits: Exits::Unspecified,
        ..TEST
    },
    Guest {
        name: "hostile-page-tables",
        about: "clears its own page tables",
        image: image!("hostile-page-tables"),
        end: End::Dies,
        exits: Exits::Unspecified,
        ..TEST
    },
    Guest {
        name: "prot32-endless",
        about: "jumps to itself with interrupts off",
        image: image!("prot32-endless"),
        mode: Mode::Protected,
        end: End::Never,
        exits: Exits::Exactly(0),
        ..TEST
    },
    Guest {
        name: "real16-wrong-result",
        about: "leaves 41",
        image: image!("real16-wrong-result"),
        mode: Mode::Real,
        end: End::WrongResult,
        ..TEST
    },
    Guest {
        name: "long64-exit-code",
        about: "ends with code 7 on the exit port",
        image: image!("long64-exit-code"),
        end: End::ExitCode(7),
        ..TEST
    },
    Guest {
        name: "user64-hlt",
        about: "ring 3: hlt, which is for ring 0, and no interrupt table",
        image: image!("user64-hlt"),
        end: End::TripleFault,
        part: Part::Test,
        ..USER
    },
    Guest {
        name: "user64-ports",
        about: "ring 3: the first and the last port in each width, all allowed",
        image: image!("user64-ports"),
        exits: Exits::Exactly(7),
        part: Part::Test,
        ..USER
    },
    Guest {
        name: "long64-triple-fault",
        about: "an undefined instruction, and no interrupt table",
        image: image!("long64-triple-fault"),
        end: End::TripleFault,
        ..TEST
    },
    Guest {
        name: "prot32-triple-fault",
        about: "an undefined instruction, and no interrupt table",
        image: image!("prot32-triple-fault"),
        mode: Mode::Protected,
        end: End::TripleFault,
        ..TEST
    },
    Guest {
        name: "real16-endless",
        about: "jumps to itself with interrupts off",
        image: image!("real16-endless"),
        mode: Mode::Real,
        end: End::Never,
        exits: Exits::Exactly(0),
        ..TEST
    },
    Guest {
        name: "long64-endless",
        about: "jumps to itself with interrupts off",
        image: image!("long64-endless"),
        end: End::Never,
        exits: Exits::Exactly(0),
        ..TEST
    },
];
