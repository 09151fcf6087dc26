//! The commands of `monitor`.

use crate::registers::{View, Width};
use crate::target::Target;
use std::fmt::Write;
use vmm::host::parse_number;
use vmm::machine::debug::{Facilities, MAX_BREAKPOINTS, Method, Planted, Why};
use vmm::x86::{Probe, ProbeError, linear_rip, summary};

/// The most lines of a list.
const MAX_LINES: usize = 64;
/// The most pages that a list of mappings looks at.
const MAX_PAGES: u32 = 200_000;

const HELP: &str = "\
monitor info             the guest, its processor and this debugger
monitor regs             the registers of all vCPUs
monitor translate ADDR   the physical address of a linear address
monitor map              the mapped linear addresses, and the memory
monitor devices          the addresses and ports of the devices
monitor exits            the last exits of the guest
monitor arch [16|32|64|auto]
                         the processor that gdb sees; then give
                         `unset tdesc filename`, so that gdb reads it again
monitor mmio [on|off]    accesses to the addresses of devices
monitor help             this text
";

/// Runs a command, and returns what it prints.
pub(crate) fn run(target: &mut Target<'_>, command: &str) -> String {
    let mut words = command.split_ascii_whitespace();
    let (name, argument) = (words.next().unwrap_or("help"), words.next());
    match name {
        "help" => HELP.into(),
        "info" => info(target),
        "regs" => regs(target),
        "translate" => translate(target, argument),
        "map" => map(target),
        "devices" => devices(target),
        "exits" => exits(target),
        "mmio" => mmio(target, argument),
        "arch" => architecture(target, argument),
        _ => "there is no such command; monitor help shows the commands\n".into(),
    }
}

/// A vCPU in a line: its mode, and if it is not running, its activity.
pub(crate) fn vcpu_line(target: &Target<'_>, index: usize) -> String {
    let line = target.with(index, |vcpu| {
        let activity = vcpu.activity();
        let sregs = vcpu.sregs().ok()?;
        let idle = if activity.is_idle() { format!(", {activity}") } else { String::new() };
        Some(format!("vCPU {index}: {}{idle}", summary(&sregs)))
    });
    line.flatten().unwrap_or_else(|| format!("vCPU {index}: its registers cannot be read"))
}

fn info(target: &mut Target<'_>) -> String {
    let (vcpu, why) = target.stopped();
    let mut text = format!("stopped: {} (vCPU {vcpu})\n", reason(why));
    for index in 0..target.guest().vcpus() {
        text += &vcpu_line(target, index);
        text.push('\n');
    }
    text += &target.settings.info;
    let facilities = target.settings.facilities;
    text += match facilities.unlimited {
        true => "breakpoints: any number, exact\nwatchpoints: reads, writes and accesses, exact\n",
        false => "",
    };
    if !facilities.unlimited {
        text += &breakpoints(facilities);
        text += match (facilities.watchpoints, facilities.steps) {
            (true, _) => "watchpoints: in debug registers; with more than 4 points, the guest is stepped\n",
            (false, true) => "watchpoints: writes; the guest is stepped, and memory is compared\n",
            (false, false) => "watchpoints: none; --vcpu soft has them\n",
        };
        if !facilities.steps {
            text += "steps: none; --vcpu soft has them\n";
        }
    }
    if let Some(method) = target.guest().method().filter(|_| !facilities.unlimited) {
        let _ = writeln!(text, "the last run {}", way(method));
    }
    let _ = writeln!(text, "limit of breakpoints: {MAX_BREAKPOINTS}");
    text
}

/// The ways in which a host finds breakpoints, in words.
fn breakpoints(facilities: Facilities) -> String {
    let in_memory = match facilities {
        Facilities { steps: false, .. } => None,
        Facilities { software: true, .. } => Some("int3 in memory"),
        Facilities { output: true, .. } => Some("out in memory, in ring 0; elsewhere the guest is stepped"),
        _ => None,
    };
    match (facilities.breakpoints, in_memory, facilities.steps) {
        (true, Some(way), _) => format!("breakpoints: 4 in debug registers, and any number of {way}\n"),
        (true, None, _) => "breakpoints: 4 in debug registers; with more, the guest is stepped\n".into(),
        (false, Some(way), _) => format!("breakpoints: {way}\n"),
        (false, None, true) => "breakpoints: the guest is stepped, and addresses are compared\n".into(),
        (false, None, false) => "breakpoints: none; --vcpu soft has them\n".into(),
    }
}

/// The way in which the breakpoints of a run were found, in words.
fn way(method: Method) -> &'static str {
    match method {
        Method::Points => "used debug registers",
        Method::Patches(Planted::Int3) => "used int3 in memory",
        Method::Patches(Planted::Out) => "used out in memory",
        Method::Compare => "was stepped",
    }
}

/// The reason for a stop, in words.
fn reason(why: Why) -> String {
    match why {
        Why::Start => "before the first instruction".into(),
        Why::Asked => "the debugger asked".into(),
        Why::Stepped => "after a step".into(),
        Why::Breakpoint => "at a breakpoint".into(),
        Why::Watchpoint(address, _) => format!("after an access to {address:#x}"),
        Why::Software => "at an int3 of the guest".into(),
        Why::Died(exit) => format!("the guest died of this exit: {exit}"),
    }
}

fn regs(target: &mut Target<'_>) -> String {
    let mut text = String::new();
    for index in 0..target.guest().vcpus() {
        text += &vcpu_line(target, index);
        text.push('\n');
        let Some(View { regs, sregs, .. }) = target.with(index, View::of).flatten() else { continue };
        let general = [
            ("rax", regs.rax),
            ("rbx", regs.rbx),
            ("rcx", regs.rcx),
            ("rdx", regs.rdx),
            ("rsi", regs.rsi),
            ("rdi", regs.rdi),
            ("rbp", regs.rbp),
            ("rsp", regs.rsp),
            ("r8", regs.r8),
            ("r9", regs.r9),
            ("r10", regs.r10),
            ("r11", regs.r11),
            ("r12", regs.r12),
            ("r13", regs.r13),
            ("r14", regs.r14),
            ("r15", regs.r15),
            ("rip", regs.rip),
            ("rflags", regs.rflags),
            ("cr0", sregs.cr0),
            ("cr2", sregs.cr2),
            ("cr3", sregs.cr3),
            ("cr4", sregs.cr4),
            ("efer", sregs.efer),
            ("linear", linear_rip(&regs, &sregs)),
        ];
        for (place, (name, value)) in (1u8..).zip(general) {
            let end = if place.is_multiple_of(4) { '\n' } else { ' ' };
            let _ = write!(text, "  {name:<6} {value:016x}{end}");
        }
        let segments = [
            ("cs", sregs.cs),
            ("ss", sregs.ss),
            ("ds", sregs.ds),
            ("es", sregs.es),
            ("fs", sregs.fs),
            ("gs", sregs.gs),
        ];
        for (name, segment) in segments.into_iter().chain([("tr", sregs.tr), ("ldt", sregs.ldt)]) {
            let (selector, base, limit) = (segment.selector, segment.base, segment.limit);
            let _ = writeln!(
                text,
                "  {name:<6} {selector:04x}  base {base:x}  limit {limit:x}  dpl {}",
                segment.dpl
            );
        }
        for (name, table) in [("gdt", sregs.gdt), ("idt", sregs.idt)] {
            let _ = writeln!(text, "  {name:<6} base {:x}  limit {:x}", table.base, table.limit);
        }
    }
    text
}

/// The guest's memory, as the vCPU of the last stop sees it.
fn probe(target: &Target<'_>) -> Option<Probe> {
    target.with(target.stopped().0, |vcpu| vcpu.probe().ok()).flatten()
}

fn translate(target: &mut Target<'_>, argument: Option<&str>) -> String {
    let Some(address) = argument.and_then(|text| parse_number(text).ok()) else {
        return "give a linear address, such as 0x1000\n".into();
    };
    let Some(probe) = probe(target) else { return "the registers cannot be read\n".into() };
    match probe.translate_linear(address) {
        Err(error) => format!("{error}\n"),
        Ok(place) => {
            let page = place.page.map_or("no paging".into(), |size| {
                let access = if place.writable { "writable" } else { "read-only" };
                format!("a page of {}, {access}", vmm::host::format_size(size))
            });
            let is_memory = probe.read_range(address, &mut [0]);
            let memory = if is_memory { "" } else { "; no memory is there" };
            format!("{address:#x} is at {:#x} ({page}{memory})\n", place.gpa.0)
        }
    }
}

fn map(target: &mut Target<'_>) -> String {
    let mut text = String::from("memory:\n");
    for (first, last) in target.guest().memory().ranges() {
        let _ = writeln!(text, "  {:#x}-{:#x}", first.0, last.0);
    }
    text += "linear addresses:\n";
    match probe(target) {
        Some(probe) => text += &mappings(&probe),
        None => text += "  the registers cannot be read\n",
    }
    text
}

/// A range of linear addresses that are mapped to successive physical addresses.
#[derive(Clone, Copy)]
struct Mapped {
    first: u64,
    last: u64,
    gpa: u64,
    writable: bool,
}

/// The mapped linear addresses, in lines.
fn mappings(probe: &Probe) -> String {
    let mut text = String::new();
    let mut lines = 0usize;
    let mut open: Option<Mapped> = None;
    let mut close = |open: &mut Option<Mapped>| {
        if let Some(Mapped { first, last, gpa, writable }) = open.take() {
            let access = if writable { "" } else { " read-only" };
            let _ = writeln!(text, "  {first:#x}-{last:#x} at {gpa:#x}{access}");
            lines = lines.saturating_add(1);
        }
        lines < MAX_LINES
    };
    let mut at = 0u64;
    let mut is_complete = false;
    for _ in 0..MAX_PAGES {
        let size = match probe.translate_linear(at) {
            Ok(place) => {
                let Some(size) = place.page else {
                    return "  there is no paging: physical addresses\n".into();
                };
                let start = at & !size.wrapping_sub(1);
                let (gpa, last) =
                    (place.gpa.0.wrapping_sub(at & size.wrapping_sub(1)), start | size.wrapping_sub(1));
                match &mut open {
                    Some(open)
                        if open.writable == place.writable
                            && open.last.wrapping_add(1) == start
                            && gpa.wrapping_sub(open.gpa) == start.wrapping_sub(open.first) =>
                    {
                        open.last = last;
                    }
                    _ => {
                        if !close(&mut open) {
                            break;
                        }
                        open = Some(Mapped { first: start, last, gpa, writable: place.writable });
                    }
                }
                size
            }
            Err(error) => {
                if !close(&mut open) {
                    break;
                }
                hole(&error)
            }
        };
        let next = (at & !size.wrapping_sub(1)).wrapping_add(size);
        if next <= at {
            is_complete = true;
            break;
        }
        at = next;
    }
    close(&mut open);
    if !is_complete {
        text += "  ... and more\n";
    }
    text
}

/// The size of the range that is not mapped.
fn hole(error: &ProbeError) -> u64 {
    match error {
        ProbeError::NotMapped { table, .. } | ProbeError::NoTable { table, .. } => match *table {
            "PML5" => 1 << 48,
            "PML4" => 1 << 39,
            "PDPT" => 1 << 30,
            "PD" => 1 << 21,
            _ => 4096,
        },
        // Between the two halves of the address space.
        ProbeError::NotCanonical { .. } => 1 << 47,
        _ => 4096,
    }
}

fn devices(target: &mut Target<'_>) -> String {
    let devices = target.guest().devices();
    let mut text = String::new();
    for (title, bus) in [("ports", &devices.ports), ("addresses", &devices.mmio), ("MSRs", &devices.msrs)] {
        for (place, (first, last, name)) in (0u8..).zip(bus.ranges()) {
            if place == 0 {
                let _ = writeln!(text, "{title}:");
            }
            let _ = match first == last {
                true => writeln!(text, "  {first:#x}  {name}"),
                false => writeln!(text, "  {first:#x}-{last:#x}  {name}"),
            };
        }
    }
    text
}

fn exits(target: &mut Target<'_>) -> String {
    let (exits, count) = target.guest().exits();
    let mut text = format!("{count} exits; the last ones, oldest first:\n");
    for seen in exits {
        let _ = writeln!(text, "  vCPU {} at {:#x}: {}", seen.vcpu, seen.rip, seen.exit);
    }
    text
}

fn mmio(target: &mut Target<'_>, argument: Option<&str>) -> String {
    match argument {
        Some("on") => target.mmio = true,
        Some("off") => target.mmio = false,
        _ => {}
    }
    match target.mmio {
        true => "on: gdb reads and writes the registers of devices, which has the same effect as if the guest did it\n",
        false => "off: gdb cannot access the registers of devices; monitor mmio on allows it\n",
    }
    .into()
}

fn architecture(target: &mut Target<'_>, argument: Option<&str>) -> String {
    let width = match argument {
        Some("16") => Some(Width::Bits16),
        Some("32") => Some(Width::Bits32),
        Some("64") => Some(Width::Bits64),
        Some("auto") => None,
        _ => {
            let now = target.settings.width.map_or("auto", Width::architecture);
            return format!("now: {now}; give 16, 32, 64, or auto for that of the guest's code\n");
        }
    };
    target.settings.width = width;
    "give `unset tdesc filename`, so that gdb reads it\n".into()
}
