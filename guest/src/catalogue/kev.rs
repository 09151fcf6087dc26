//! Guests for the devices and hypercalls of KeV's second project, for CPUID and MSRs, and for several vCPUs.

use super::{BASE, KEV, TEST};
use crate::model::{End, Exits, Guest, Mode, MsrRule};

const LINES: &[[u8; 21]] = &[*b"a line that is whole\n"; 100];
/// The output of `smp-print`: four vCPUs print 25 lines each.
const HUNDRED_LINES: &str = match str::from_utf8(LINES.as_flattened()) {
    Ok(text) => text,
    Err(_) => panic!("ASCII is UTF-8"),
};

pub(super) const GUESTS: &[Guest] = &[
    guest!(
        "kev-hypercall",
        "kev/hypercall.asm",
        Guest {
            about: "prints with one hypercall",
            output: "Hello guest os!\n",
            exits: Exits::Exactly(2),
            ..KEV
        }
    ),
    guest!(
        "kev-hypercall32",
        "kev/hypercall32.asm",
        Guest {
            about: "prints with one hypercall in protected mode",
            mode: Mode::Protected,
            output: "Hello guest os!\n",
            exits: Exits::Exactly(2),
            ..KEV
        }
    ),
    guest!(
        "kev-hypercall16",
        "kev/hypercall16.asm",
        Guest {
            about: "prints with one hypercall in real mode, from an offset in DS",
            mode: Mode::Real,
            output: "Hello guest os!\n",
            exits: Exits::Exactly(2),
            ..KEV
        }
    ),
    guest!(
        "kev-port",
        "kev/port.asm",
        Guest {
            about: "prints with one port write per byte",
            output: "Hello guest os!\n",
            exits: Exits::Exactly(17),
            ..KEV
        }
    ),
    guest!(
        "kev-mmio",
        "kev/mmio.asm",
        Guest {
            about: "prints through the MMIO printer",
            output: "Hello guest os!\nHello mmio!",
            exits: Exits::Exactly(9),
            ..KEV
        }
    ),
    guest!(
        "kev-halt",
        "kev/halt.asm",
        Guest { about: "ends its vCPU with the code 0xcafe", end: End::ExitCode(0xcafe), ..KEV }
    ),
    guest!(
        "kev-ports",
        "kev/ports.asm",
        Guest {
            about: "does port I/O in every form: constant port and dx, byte, word and dword",
            exits: Exits::Exactly(17),
            ..KEV
        }
    ),
    guest!(
        "kev-strings",
        "kev/strings.asm",
        Guest {
            about: "does string I/O in every form: ins and outs, with rep, up and down",
            exits: Exits::Elements(119),
            ..KEV
        }
    ),
    guest!(
        "kev-cpuid",
        "kev/cpuid.asm",
        Guest {
            about: "reads CPUID 256 times: vendor, vCPU number, signature",
            cpuid: true,
            exits: Exits::Exactly(26),
            ..KEV
        }
    ),
    guest!(
        "kev-msr",
        "kev/msr.asm",
        Guest { about: "uses the FIFO behind MSR 0xabc", exits: Exits::Exactly(5), ..KEV }
    ),
    guest!(
        "kev-msr-fault",
        "kev/msr_fault.asm",
        Guest {
            about: "accesses an MSR that does not exist, and handles the #GP",
            exits: Exits::Exactly(3),
            ..KEV
        }
    ),
    guest!(
        "kev-msr-rules",
        "kev/msr_rules.asm",
        Guest {
            about: "accesses MSRs whose rules are ignore, deny and log",
            msrs: &[(0x174, MsrRule::Ignore), (0x175, MsrRule::Deny), (0x176, MsrRule::Log)],
            exits: Exits::Exactly(7),
            ..KEV
        }
    ),
    guest!(
        "kev-vmcall",
        "kev/vmcall.asm",
        Guest { about: "executes vmcall and vmmcall, which never hang", exits: Exits::Exactly(3), ..KEV }
    ),
    guest!(
        "smp-counter",
        "kev/counter.asm",
        Guest {
            about: "adds to one counter on 4 vCPUs, with lock",
            cpus: 4,
            exits: Exits::Exactly(9),
            ..BASE
        }
    ),
    guest!(
        "smp-print",
        "kev/print.asm",
        Guest {
            about: "prints the same line on 4 vCPUs at the same time",
            cpus: 4,
            output: HUNDRED_LINES,
            exits: Exits::Exactly(104),
            ..BASE
        }
    ),
    guest!(
        "smp-stop",
        "kev/stop.asm",
        Guest {
            about: "ends the machine from one vCPU while another never ends",
            cpus: 2,
            end: End::ExitCode(7),
            ..TEST
        }
    ),
    guest!(
        "hostile-hypercall",
        "kev/hostile_hypercall.asm",
        Guest {
            about: "makes hypercalls with wild addresses, lengths and numbers",
            loses_stores: true,
            exits: Exits::Exactly(10),
            ..TEST
        }
    ),
    guest!(
        "hostile-mmio",
        "kev/hostile_mmio.asm",
        Guest {
            about: "drives the MMIO printer with wild addresses and every width",
            kev: true,
            exits: Exits::Exactly(17),
            ..TEST
        }
    ),
    guest!(
        "hostile-ins",
        "kev/hostile_ins.asm",
        Guest {
            about: "moves 64 Ki elements with one rep insb, and 1 Ki with one rep outsb",
            kev: true,
            exits: Exits::Elements(66561),
            ..TEST
        }
    ),
];
