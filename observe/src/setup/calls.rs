//! The arguments and results of calls in words.

use super::capabilities;
use super::values::{cpuid, half, leaves, list, long, msr, range, size};
use crate::engine::{Call, Target};
use crate::layout;
use vmm::x86::{Regs, summary};

/// The number of MSRs that a call shows.
const MSRS: usize = 6;

/// The result of KVM_GET_API_VERSION (section 4.1).
const API_VERSION: i32 = 12;

/// Describes the arguments and the result of a call, whose request has this name without `KVM_`. Empty if the name says
/// it all.
pub(super) fn describe(call: &Call, name: &str) -> String {
    // A structure that could not be read has no words.
    in_words(call, name).unwrap_or_default()
}

fn in_words(call: &Call, name: &str) -> Option<String> {
    let data = call.data.as_slice();
    let Call { argument, result, .. } = *call;
    let ok = result >= 0;
    Some(match name {
        "CHECK_EXTENSION" if ok => format!("{} {result}", capabilities::name(argument)),
        "CHECK_EXTENSION" => capabilities::name(argument),
        "GET_API_VERSION" if ok && result != API_VERSION => {
            format!("{result}, but it is {API_VERSION} since 2007")
        }
        "GET_API_VERSION" | "GET_TSC_KHZ" if ok => format!("{result}"),
        "GET_VCPU_MMAP_SIZE" if ok => size(u64::from(result.unsigned_abs())),
        "CREATE_VM" if argument != 0 => format!("type {argument}"),
        "CREATE_VCPU" => format!("vCPU {argument}"),
        "SET_USER_MEMORY_REGION" | "SET_USER_MEMORY_REGION2" => region(data)?,
        "SET_TSS_ADDR" => format!("{argument:#x}"),
        "SET_IDENTITY_MAP_ADDR" => format!("{:#x}", long(data, 0)?),
        "ENABLE_CAP" => capability(data)?,
        "SET_SREGS" | "SET_SREGS2" => summary(&layout::sregs(data)?),
        "SET_REGS" => registers(&layout::regs(data)?),
        "SET_CPUID2" => {
            half(data, 0)?;
            cpuid(&leaves(data))
        }
        "GET_SUPPORTED_CPUID" | "GET_EMULATED_CPUID" | "GET_CPUID2" if ok => {
            format!("{} leaves", half(data, 0)?)
        }
        "SET_CPUID" => format!("{} leaves", half(data, 0)?),
        "SET_MSRS" => msrs(data, result)?,
        "SET_MP_STATE" => mp_state(half(data, 0)?),
        "SET_TSC_KHZ" => format!("{argument} kHz"),
        "SET_GSI_ROUTING" => format!("{} routes", half(data, 0)?),
        "IRQFD" => format!("GSI {}", half(data, 4)?),
        "IOEVENTFD" => doorbell(data)?,
        "REGISTER_COALESCED_MMIO" | "UNREGISTER_COALESCED_MMIO" => {
            let kind = if half(data, 12)? & 1 != 0 { "ports" } else { "addresses" };
            format!("{kind} {}", range(long(data, 0)?, half(data, 8)?.into()))
        }
        "IRQ_LINE" | "IRQ_LINE_STATUS" => format!("IRQ {} = {}", half(data, 0)?, half(data, 4)?),
        "INTERRUPT" => format!("vector {:#x}", half(data, 0)?),
        "CREATE_DEVICE" => format!("type {}", half(data, 0)?),
        "SET_XCRS" => format!("XCR0 {:#x}", long(data, 16)?),
        _ => return None,
    })
}

/// A memory slot.
fn region(data: &[u8]) -> Option<String> {
    let (number, flags, start) = (half(data, 0)?, half(data, 4)?, long(data, 8)?);
    let (bytes, address) = (long(data, 16)?, long(data, 24)?);
    if bytes == 0 {
        return Some(format!("slot {}: deleted", slot(number)));
    }
    let flags = match region_flags(flags) {
        flags if flags.is_empty() => flags,
        flags => format!(", {flags}"),
    };
    Some(format!("slot {}: {} ({}) from {address:#x}{flags}", slot(number), range(start, bytes), size(bytes)))
}

/// The number of a slot. The upper half is the address space, which is 1 for system management mode.
pub(super) fn slot(number: u32) -> String {
    match number >> 16 {
        0 => number.to_string(),
        space => format!("{} of address space {space}", number & 0xffff),
    }
}

/// The flags of a slot in words.
pub(super) fn region_flags(flags: u32) -> String {
    let names = [(0, "dirty log"), (1, "read-only"), (2, "guest_memfd")];
    let known = names.into_iter().filter(|(bit, _)| flags >> bit & 1 != 0).map(|(_, name)| name.to_string());
    let unknown = flags & !7;
    let unknown = (unknown != 0).then(|| format!("unknown flags {unknown:#x}"));
    known.chain(unknown).collect::<Vec<_>>().join(", ")
}

fn capability(data: &[u8]) -> Option<String> {
    let name = capabilities::name(half(data, 0)?.into());
    Some(match long(data, 8)? {
        0 => name,
        argument => format!("{name}, {argument:#x}"),
    })
}

/// The instruction pointer, the stack and the flags.
pub(super) fn registers(regs: &Regs) -> String {
    let Regs { rip, rsp, rflags, .. } = regs;
    let note = if rflags & 2 == 0 { " (bit 1 is 0, and KVM sets it)" } else { "" };
    format!("rip {rip:#x}, rsp {rsp:#x}, rflags {rflags:#x}{note}")
}

/// MSRs with their values, and the first one that KVM refused: then the result is less than their number.
fn msrs(data: &[u8], result: i32) -> Option<String> {
    let count = half(data, 0)?;
    let entries: Vec<_> = data.get(8..)?.chunks_exact(16).take(count as usize).collect();
    let text = |entry: &&[u8]| Some(format!("{} = {:#x}", msr(half(entry, 0)?), long(entry, 8)?));
    let all = list(entries.iter().map(|entry| text(entry).unwrap_or_default()), MSRS);
    let taken = u32::try_from(result).ok().filter(|taken| *taken < count);
    let Some(taken) = taken else { return Some(all) };
    let refused = entries.get(taken as usize).and_then(|entry| half(entry, 0)).map(msr).unwrap_or_default();
    Some(format!("{all}; only the first {taken} of {count}: KVM refused {refused}"))
}

fn mp_state(state: u32) -> String {
    let names = ["runnable", "uninitialized", "INIT received", "halted", "SIPI received"];
    names.get(state as usize).map_or_else(|| format!("state {state}"), |name| (*name).into())
}

/// An ioeventfd.
fn doorbell(data: &[u8]) -> Option<String> {
    let (address, width, flags) = (long(data, 8)?, half(data, 16)?, half(data, 24)?);
    let kind = if flags & 2 != 0 { "port" } else { "address" };
    let removed = if flags & 4 != 0 { ", removed" } else { "" };
    let value = match flags & 1 != 0 {
        true => format!(", value {:#x}", long(data, 0)?),
        false => String::new(),
    };
    let width = if width == 0 { String::new() } else { format!(", {width} bytes") };
    Some(format!("{kind} {address:#x}{width}{value}{removed}"))
}

/// True for calls that only ask, so that several in a row are one line.
pub(super) fn is_question(name: &str) -> bool {
    name.starts_with("GET_")
        || matches!(name, "CHECK_EXTENSION" | "HAS_DEVICE_ATTR" | "X86_GET_MCE_CAP_SUPPORTED")
}

/// The VM of a call.
pub(super) fn vm_of(target: Target) -> Option<u32> {
    match target {
        Target::System => None,
        Target::Vm(vm) => Some(vm),
        Target::Vcpu(vcpu) => Some(vcpu.vm),
    }
}
