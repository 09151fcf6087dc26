//! The summary after a run: how it ended, and the table of exits.

use report::profile::SavedProcessor;
use report::view::{By, duration, exit_table, function_table, plural};
use report::{Measured, SavedName};
use simvirtio::device::State;
use std::fmt::{self, Write};
use vmm::boot::list_ranges;
use vmm::controller::{Location, OpenBus};
use vmm::device::{Layout, SimvirtioReport, Transport};
use vmm::exit::{Reason, Stop};
use vmm::machine::{BootReport, Explanation, Processor};
use vmm::profile::Profile;
use vmm::{KvmCounters, Report};

/// The longest excerpt of a text, in characters.
const EXCERPT: usize = 60;

/// Returns the first line of the summary: how the run of the guest with this name ended.
pub fn first_line(name: &str, report: &Report) -> String {
    let milliseconds = report.elapsed.as_secs_f64() * 1e3;
    let processor = match report.processor {
        Processor::Kvm => "",
        Processor::Soft => " on the software processor",
    };
    format!("vmm: {name}: {} (after {milliseconds:.2} ms{processor})\n", ending(report))
}

/// Returns the other lines of the summary. `places` are those with the names of places in the guest's code. With `by` the
/// table of exits is by function or line, with `names`.
pub fn details(report: &Report, places: &str, names: &[SavedName], by: Option<By>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_details(&mut text, report, places, names, by);
    text
}

/// Describes how the run ended, without a newline.
pub fn ending(report: &Report) -> String {
    let mut text = report.stop.to_string();
    if let Some(location) = report.location {
        let (subject, prefix) = match report.stopped_by {
            Some(id) => (format!("vCPU {id}"), format!("vCPU {id} ")),
            None => ("the guest".into(), String::new()),
        };
        let _ = match report.stop {
            Stop::TripleFault | Stop::EmulationFailure(_) => write!(text, ", {prefix}{location}"),
            // The vCPU may be past the instruction that caused the end.
            Stop::RealModeFault { .. } => Ok(()),
            _ if report.waits_for_interrupt => {
                write!(text, "; {subject} then waited for an interrupt (hlt) {location}")
            }
            _ => write!(text, "; {subject} was then {location}"),
        };
    }
    let may_be_lost = matches!(
        report.stop,
        Stop::TripleFault
            | Stop::RealModeFault { .. }
            | Stop::EmulationFailure(_)
            | Stop::Timeout(_)
            | Stop::WallTimeout(_)
            | Stop::ProtocolError(_)
            | Stop::OutputLimit(_)
    );
    if may_be_lost && report.left_its_image() {
        let _ = write!(text, ", outside its image ({})", list_ranges(&report.image));
    }
    if let Some(boot) = &report.boot {
        write_console(&mut text, boot, &report.stop);
    }
    write_cause(&mut text, report);
    if let Some(verdict) = report.verdict {
        let _ = match (verdict.passed(), report.doubts.is_empty()) {
            (true, true) => write!(text, "; verified: {verdict}"),
            (true, false) => write!(text, "; not verified, although {verdict}"),
            (false, _) => write!(text, "; wrong result: {verdict}, and both should be 42"),
        };
    }
    write_layout(&mut text, report);
    for doubt in &report.doubts {
        let _ = write!(text, "; {doubt}");
    }
    if let Some(modes) = report.other_mode {
        let _ = write!(text, "; probably the code is for another mode: give {modes} (FILE@ADDR:MODE)");
    }
    text
}

/// Writes the advice for a driver that uses the other layout of SIMVIRTIO's config table.
fn write_layout(to: &mut String, report: &Report) {
    if report.verified() != Some(true)
        && !report.left_its_image()
        && let Some(layout) = report.foreign_layout()
    {
        *to += match layout {
            Layout::Struct => {
                "; its driver uses the layout of the assignment's struct device_t, and this device has that of its table: give \
                 --layout struct, or use guest/include/simvirtio.h"
            }
            Layout::Table => {
                "; its driver uses the layout of the assignment's table, and this device has that of its struct device_t: leave \
                 --layout struct out"
            }
        };
    }
}

/// Writes the text with which the console of a kernel tells about its end: a panic, or nothing.
fn write_console(to: &mut String, boot: &BootReport, stop: &Stop) {
    // Writing to a String cannot fail.
    if let Some(reason) = boot.panic.as_ref().filter(|_| !matches!(stop, Stop::Panicked(_))) {
        let _ = write!(to, "; its kernel panicked: {}", vmm::host::printable_text(reason));
    }
    if let Some(silence) = boot.silence.filter(|_| needs_console(stop)) {
        let _ = write!(to, "; {silence}");
    }
}

/// True if the console of a kernel would tell more about the end. A kernel that powers off has done what it should.
fn needs_console(stop: &Stop) -> bool {
    matches!(
        stop,
        Stop::Rebooted | Stop::Halted | Stop::TripleFault | Stop::Timeout(_) | Stop::WallTimeout(_)
    )
}

/// Writes the cause of the end, if it is known.
fn write_cause(to: &mut String, report: &Report) {
    let is_limit = matches!(
        report.stop,
        Stop::Timeout(_) | Stop::WallTimeout(_) | Stop::ProtocolError(_) | Stop::OutputLimit(_)
    );
    let is_death = matches!(report.stop, Stop::TripleFault | Stop::EmulationFailure(_));
    let is_explained =
        is_death || is_limit || matches!(report.stop, Stop::FailedEntry(_) | Stop::RealModeFault { .. });
    let runs_on_soft = report.explanation.as_ref().is_some_and(Explanation::runs_on_soft);
    // Writing to a String cannot fail.
    let _ = match (report.cause(), report.suspicion()) {
        (Some(cause), _) if is_death => write!(to, ": {cause}"),
        (_, Some(suspicion)) if is_explained => write!(to, ": probably {suspicion}"),
        (Some(cause), _) if is_limit => write!(to, ": {cause}"),
        _ if runs_on_soft => {
            write!(to, ": KVM on this host cannot do it, and the software processor can: try --vcpu soft")
        }
        _ => Ok(()),
    };
}

fn write_details(
    to: &mut String,
    report: &Report,
    places: &str,
    names: &[SavedName],
    by: Option<By>,
) -> fmt::Result {
    if let Some(explanation) = &report.explanation {
        write!(to, "{explanation}{places}")?;
        let last: Vec<_> = report.last_exits.iter().map(|traced| traced.exit.to_string()).collect();
        if !last.is_empty() {
            writeln!(to, "  last exits   {}", last.join(", "))?;
        }
    }
    write_vcpus(to, report)?;
    if report.missed_simvirtio {
        write!(
            to,
            "vmm: this machine has no SIMVIRTIO device, although the guest looks for it at 1 MiB: the guest has {} of memory, \
             more than 1 MiB",
            binary_size(report.ram)
        )?;
        if report.image.iter().any(|range| range.end > simvirtio::abi::RAM_SIZE) {
            write!(
                to,
                ", because its image lies at {}: link it lower (-Wl,-Ttext-segment=0x1000)",
                list_ranges(&report.image)
            )?;
        }
        writeln!(to)?;
    }
    if let Some(simvirtio) = &report.simvirtio {
        write_simvirtio(to, simvirtio, matches!(report.stop, Stop::Halted | Stop::Exited(0)))?;
    }
    write_open_bus(to, &report.open_bus)?;
    if let Some(boot) = &report.boot {
        write_timeline(to, boot, report.profile.as_ref().map(Profile::phases))?;
    }
    match Measured::of("", "", report) {
        Some(measured) => write_exits(to, &Measured { names, ..measured }, by),
        None => Ok(()),
    }
}

/// Returns the lines about the exits: their numbers, the table, and the times.
#[cfg(has_kvm)]
pub fn exits(measured: &Measured, by: Option<By>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_exits(&mut text, measured, by);
    text
}

fn write_exits(to: &mut String, measured: &Measured, by: Option<By>) -> fmt::Result {
    write_reasons(to, measured.profile)?;
    let (sums, processor) = (measured.sums(), measured.processor);
    match by {
        None => to.write_str(&exit_table(&sums, processor))?,
        Some(by) => {
            let table = function_table(&measured.addresses(), measured.names, by, &sums, processor);
            to.write_str(&table)?;
            if measured.names.is_empty() && !table.is_empty() {
                writeln!(
                    to,
                    "vmm: the addresses have no names: give the file with the symbols (--symbols FILE)"
                )?;
            }
        }
    }
    write_times(to, measured)
}

/// A size in bytes as MiB, or in hexadecimal if it is not a whole number of MiB.
fn binary_size(bytes: u64) -> String {
    match bytes.is_multiple_of(1 << 20) {
        true => format!("{} MiB", bytes >> 20),
        false => format!("{bytes:#x} bytes"),
    }
}

/// Writes the time in KVM and in the VMM, and KVM's own count of the exits.
fn write_times(to: &mut String, measured: &Measured) -> fmt::Result {
    let (profile, timing) = (measured.profile, measured.timing);
    let exits = profile.total();
    if exits.elements == 0 {
        return Ok(());
    }
    let (in_kvm, in_vmm) = profile.total_times();
    let place = match measured.processor {
        SavedProcessor::Kvm => "KVM_RUN",
        SavedProcessor::Soft => "the software processor",
    };
    write!(
        to,
        "vmm: {} in {place}, {} in the VMM, {} for the profile",
        duration(in_kvm.sum()),
        duration(in_vmm.sum()),
        duration(timing.cost)
    )?;
    match measured.processor {
        SavedProcessor::Kvm => write!(to, " ({}", timing.clock)?,
        SavedProcessor::Soft => write!(to, " (CLOCK_MONOTONIC")?,
    }
    match timing.steps {
        0 => writeln!(to, ")")?,
        steps => writeln!(to, ", which went backwards {})", plural(steps, "time"))?,
    }
    if measured.processor == SavedProcessor::Soft {
        return Ok(());
    }
    let Some(kernel) = measured.kernel.and_then(KvmCounters::exits) else {
        return writeln!(
            to,
            "vmm: not compared with KVM's own count, which is not available (KVM_GET_STATS_FD)"
        );
    };
    write!(to, "vmm: {} by KVM's own count", plural(kernel, "exit"))?;
    match (kernel.checked_sub(exits.exits), exits.exits.saturating_sub(kernel)) {
        (Some(0), _) => writeln!(to),
        (Some(more), _) => writeln!(to, ", {more} more: KVM handled them itself"),
        (None, fewer) => writeln!(to, ", {fewer} fewer: KVM reports several accesses of one exit one by one"),
    }
}

/// Writes the marks of a boot, each with its time, and with the exits since the previous mark if they were counted.
fn write_timeline(to: &mut String, boot: &BootReport, exits: Option<&[u64]>) -> fmt::Result {
    let column = |text: String| exits.map(|_| format!(" {text:>8}")).unwrap_or_default();
    writeln!(to, "vmm: boot timeline, from the start of the program:")?;
    writeln!(to, "{:>13}{}", "ms", column("exits".into()))?;
    for (phase, mark) in boot.marks.iter().enumerate() {
        let milliseconds = mark.at.as_secs_f64() * 1e3;
        let exits = exits.and_then(|exits| exits.get(phase)).copied().unwrap_or(0);
        writeln!(to, "{milliseconds:>13.2}{}  {}", column(exits.to_string()), mark.event)?;
    }
    match boot.lost_marks {
        0 => Ok(()),
        lost => writeln!(to, "{:>13}{}  and {}", "", column(String::new()), plural(lost, "more boot mark")),
    }
}

/// Writes a line for each vCPU, if there are several.
fn write_vcpus(to: &mut String, report: &Report) -> fmt::Result {
    for vcpu in &report.vcpus {
        if vcpu.location == Some(Location::NotStarted) && matches!(vcpu.stop, Stop::Halted) {
            writeln!(to, "vmm: vCPU {}: not started by the guest", vcpu.id)?;
            continue;
        }
        match vcpu.stop {
            Stop::Interrupted if !matches!(report.stop, Stop::Interrupted) => {
                write!(to, "vmm: vCPU {}: stopped with the others", vcpu.id)?;
            }
            _ => write!(to, "vmm: vCPU {}: {}", vcpu.id, vcpu.stop)?,
        }
        if let Some(location) = vcpu.location {
            write!(to, "; it was then {location}")?;
        }
        if let Some(profile) = &vcpu.profile {
            let exits = plural(profile.total().exits, "exit");
            match busiest(profile).as_str() {
                "" => write!(to, "; {exits}")?,
                sites => write!(to, "; {exits}: {sites}")?,
            }
        }
        writeln!(to)?;
    }
    Ok(())
}

/// Lists the places with the most exits, in a few words. Accesses of different widths to one place are listed together.
pub fn busiest(profile: &Profile) -> String {
    const LISTED: usize = 3;
    let mut places: Vec<((Reason, Option<u64>), u64)> = Vec::new();
    for (site, count) in profile.sites() {
        let key = (site.reason, site.place.map(|(place, _)| place));
        match places.iter_mut().find(|(known, _)| *known == key) {
            Some((_, total)) => *total = total.saturating_add(count.exits),
            None => places.push((key, count.exits)),
        }
    }
    vmm::host::sort_by_key(&mut places, |(_, count)| std::cmp::Reverse(*count));
    let listed: Vec<_> = places
        .iter()
        .take(LISTED)
        .map(|((reason, place), count)| match place {
            Some(place) => format!("{count} {reason} {place:#x}"),
            None => format!("{count} {reason}"),
        })
        .collect();
    listed.join(", ") + if places.len() > LISTED { ", ..." } else { "" }
}

/// Writes a line about the SIMVIRTIO device, if its driver did anything.
fn write_simvirtio(to: &mut String, device: &SimvirtioReport, halted: bool) -> fmt::Result {
    let history = device.history;
    if history == Default::default() && device.driver_status == 0 && device.state == State::Initial {
        return Ok(());
    }
    let transport: String = match device.transport {
        Transport::Exit => "by exits".into(),
        Transport::Coalesced => "by coalesced exits".into(),
        Transport::Doorbell => format!("by doorbell (rung {})", times(device.rings)),
        Transport::Polling => "by polling".into(),
    };
    write!(
        to,
        "vmm: simvirtio {transport}: state {}, {} received",
        device.state,
        plural(history.received, "byte")
    )?;
    if history.delivered > 0 {
        write!(to, ", {} delivered", plural(history.delivered, "byte"))?;
    }
    write!(to, " ({}, ", plural(history.resets, "reset"))?;
    write!(to, "{}, ", plural(history.configs, "config"))?;
    write!(to, "{})", plural(history.readies, "handshake"))?;
    if history.ignored_stores > 0 {
        write!(to, ", ignored {} to read-only fields", plural(history.ignored_stores, "store"))?;
    }
    if !halted {
        write!(to, "; driver_status is {:#04x}", device.driver_status)?;
    }
    // A device that the driver left before it was ready.
    match device.state {
        State::Initial if history.resets == 0 => write!(to, "; it waits for 'R' in the TX queue")?,
        State::Reset => write!(to, "; it waits for 'C' in the TX queue")?,
        State::Config => write!(to, "; it waits for DRIVER_OK (0x04) in driver_status")?,
        State::Initial | State::Ready | State::Broken => {}
    }
    writeln!(to)
}

/// "once", "2 times".
fn times(count: u64) -> String {
    if count == 1 { "once".into() } else { format!("{count} times") }
}

/// Writes a line with the accesses that no device claimed.
fn write_open_bus(to: &mut String, open_bus: &OpenBus) -> fmt::Result {
    // Accesses of different widths to one place are listed together.
    let mut places: Vec<((Reason, u64), u64)> = Vec::new();
    for (site, count) in open_bus.seen() {
        let Some((address, _)) = site.place else { continue };
        let key = (site.reason, address);
        match places.iter_mut().find(|(known, _)| *known == key) {
            Some((_, total)) => *total = total.saturating_add(count),
            None => places.push((key, count)),
        }
    }
    let sites: Vec<_> = places
        .into_iter()
        .map(|((reason, address), count)| format!("{reason} {address:#x} ({})", times(count)))
        .collect();
    let listed: u64 = open_bus.seen().map(|(_, count)| count).sum();
    if sites.is_empty() {
        return Ok(());
    }
    write!(to, "vmm: unclaimed accesses: {}", sites.join(", "))?;
    match open_bus.total().saturating_sub(listed) {
        0 => writeln!(to),
        more => writeln!(to, ", and {more} more elsewhere"),
    }
}

/// Writes the number of exits, in all and for each reason.
fn write_reasons(to: &mut String, profile: &Profile) -> fmt::Result {
    write!(to, "vmm: {}", plural(profile.total().exits, "exit"))?;
    let reasons: Vec<_> =
        profile.reasons().iter().map(|(reason, count)| format!("{} {reason}", count.exits)).collect();
    match reasons.as_slice() {
        [] => writeln!(to),
        _ => writeln!(to, ": {}", reasons.join(", ")),
    }
}

/// Returns the beginning of a text, in quotes.
pub fn excerpt(text: &str) -> String {
    let beginning: String = text.chars().take(EXCERPT).collect();
    if beginning.len() < text.len() { format!("{beginning:?}...") } else { format!("{beginning:?}") }
}
