//! The memory maps, the single source of all addresses.
//!
//! | | SO2 map | plain map | PC map, of Linux |
//! |---|---|---|---|
//! | RAM | [0, 1 MiB) | [0, size) | [0, size), less the hole [3 GiB, 4 GiB), which moves the rest up |
//! | SIMVIRTIO window | 0x10_0000: trapped, or shared RAM when polling | none | none |
//! | GDT, page tables, task state | [`TABLES`], outside both | the same | in RAM ([`pc`]) |
//!
//! The addresses of the SO2 map that a driver needs are in [`simvirtio::abi`].

use super::Gpa;
use crate::error::Error;
use simvirtio::abi;

pub use guest::Map;

/// Size of a page, and the unit of all slots, in bytes.
pub const PAGE: u64 = 0x1000;
/// Where KVM may put its three pages of task state on Intel hosts (KVM_SET_TSS_ADDR): the assignment's value.
pub const TSS: u64 = 0xfffb_d000;
/// Where the GDT and the page tables are: after KVM's task state, below 4 GiB so that the identity map
/// reaches them.
pub const TABLES: Gpa = Gpa(0xfffc_0000);
/// Where the page tables are: six pages after the GDT's.
pub const PAGE_TABLES: Gpa = Gpa(TABLES.0 + PAGE);
/// Where the task state of a guest in ring 3 is: three pages after the page tables.
pub const TASK_STATE: Gpa = Gpa(PAGE_TABLES.0 + 6 * PAGE);
/// Size of all of these, in bytes.
pub const TABLES_SIZE: u64 = 10 * PAGE;
/// RAM of the plain map unless the user says otherwise, in bytes.
pub const PLAIN_RAM: u64 = 250 << 20;
/// RAM of the plain map ends below here, in bytes: the rest of the first 4 GiB is for devices and tables.
pub const MAX_RAM: u64 = 3 << 30;

/// The most vCPUs that a machine has: their stacks take the upper half of the assignment's memory.
pub const MAX_CPUS: u32 = 32;

// No two places overlap.
const _: () = {
    assert!(abi::WINDOW >= abi::RAM_SIZE && abi::DOORBELL == abi::WINDOW + abi::WINDOW_SIZE);
    assert!(MAX_RAM <= TSS && TSS + 3 * PAGE <= TABLES.0 && TABLES.0 + TABLES_SIZE <= 1 << 32);
};

/// Where things are in the PC map, in which Linux runs. E820 and the ACPI tables are made from these.
pub mod pc {
    use super::{Gpa, MAX_RAM, PAGE};

    /// The GDT that the kernel is entered with.
    pub const GDT: Gpa = Gpa(0x500);
    /// The page tables that the kernel is entered with: the first 4 GiB one to one.
    pub const PAGE_TABLES: Gpa = Gpa(0x2000);
    /// The kernel's `boot_params`.
    pub const BOOT_PARAMS: Gpa = Gpa(0x1_0000);
    /// The kernel's command line.
    pub const COMMAND_LINE: Gpa = Gpa(0x2_0000);
    /// Where the first stretch of RAM ends that the kernel is told of: the rest up to 1 MiB was for firmware.
    pub const LOW_RAM_END: u64 = 0x9_fc00;
    /// The ACPI tables, in the part of the first MiB that is for firmware; the first is the RSDP.
    pub const ACPI: Gpa = Gpa(0xe_0000);
    /// Size of that part, in bytes.
    pub const ACPI_SIZE: u64 = 0x2_0000;
    /// The rest of RAM begins here, and the kernel is here or above.
    pub const HIGH_RAM: u64 = 0x10_0000;
    /// The hole for devices below 4 GiB, and where RAM goes on after it.
    pub const HOLE: u64 = MAX_RAM;
    /// See [`HOLE`].
    pub const HOLE_END: u64 = 1 << 32;
    /// The first virtio device; each has a page.
    pub const VIRTIO: u32 = 0xd000_0000;
    /// The I/O interrupt controller.
    pub const IOAPIC: u32 = 0xfec0_0000;
    /// The local interrupt controllers.
    pub const LOCAL_APIC: u32 = 0xfee0_0000;
    /// KVM's page for the identity map of Intel hosts (KVM_SET_IDENTITY_MAP_ADDR).
    pub const IDENTITY_MAP: u64 = TSS - PAGE;
    /// KVM's task state of Intel hosts, at the end of the hole.
    pub const TSS: u64 = 0xffff_d000;
    /// The most RAM, in bytes: what a processor of 40 address bits reaches, half of it.
    pub const MOST_RAM: u64 = 1 << 39;

    /// The stretches of RAM of a machine with `ram` bytes, as start and size.
    pub fn ram(ram: u64) -> Vec<(Gpa, u64)> {
        match ram.checked_sub(HOLE) {
            None | Some(0) => vec![(Gpa(0), ram)],
            Some(rest) => vec![(Gpa(0), HOLE), (Gpa(HOLE_END), rest)],
        }
    }

    /// The stretches that the kernel may use: the same, less what is left to firmware below 1 MiB.
    pub fn usable(ram: u64) -> Vec<(Gpa, u64)> {
        let below = (Gpa(0), LOW_RAM_END);
        let above = self::ram(ram).into_iter().map(|(start, size)| match start {
            Gpa(0) => (Gpa(HIGH_RAM), size.saturating_sub(HIGH_RAM)),
            start => (start, size),
        });
        std::iter::once(below).chain(above).collect()
    }
}

// No two places of the PC map overlap.
const _: () = {
    assert!(pc::GDT.0 + 24 <= pc::PAGE_TABLES.0 && pc::PAGE_TABLES.0 + 6 * PAGE <= pc::BOOT_PARAMS.0);
    assert!(pc::BOOT_PARAMS.0 + PAGE <= pc::COMMAND_LINE.0 && pc::LOW_RAM_END <= pc::ACPI.0);
    assert!(pc::ACPI.0 + pc::ACPI_SIZE <= pc::HIGH_RAM && pc::HOLE <= pc::VIRTIO as u64);
    assert!(pc::VIRTIO < pc::IOAPIC && pc::IOAPIC < pc::LOCAL_APIC);
    assert!((pc::LOCAL_APIC as u64) < pc::IDENTITY_MAP && pc::TSS + 3 * PAGE <= pc::HOLE_END);
};

/// The size of RAM of the PC map, checked: 256 MiB unless the user says otherwise.
///
/// # Errors
/// There is no such size; the sentence says which there are.
pub fn pc_ram_size(asked: Option<u64>) -> Result<u64, Error> {
    const LEAST: u64 = 8 << 20;
    let bytes = asked.unwrap_or(256 << 20);
    let refuse = |what: &str| {
        Err(Error::Config(format!("a Linux machine with {bytes:#x} bytes of memory cannot be: {what}")))
    };
    match bytes {
        ..LEAST => refuse("choose a --mem of at least 8M"),
        _ if bytes > pc::MOST_RAM => refuse("choose a --mem of at most 512G"),
        _ if !bytes.is_multiple_of(PAGE) => refuse("choose a --mem that is a multiple of 4K"),
        _ => Ok(bytes),
    }
}

/// The size of RAM for a map, checked.
///
/// # Errors
/// The map has no such size; the sentence says what it has.
pub fn ram_size(map: Map, asked: Option<u64>) -> Result<u64, Error> {
    let bytes = match (map, asked) {
        (Map::So2, None) => abi::RAM_SIZE,
        (Map::Plain, None) => PLAIN_RAM,
        (_, Some(bytes)) => bytes,
    };
    let refuse = |why: &str| Err(Error::Config(format!("a guest with {bytes:#x} bytes of memory {why}")));
    if bytes < abi::RAM_SIZE {
        return refuse("cannot be: choose a --mem of at least 1M");
    }
    if bytes > MAX_RAM {
        return refuse("cannot be: choose a --mem of at most 3G");
    }
    if !bytes.is_multiple_of(PAGE) {
        return refuse("cannot be: choose a --mem that is a multiple of 4K");
    }
    if map == Map::So2 && bytes != abi::RAM_SIZE {
        return refuse(
            "has no SIMVIRTIO device, whose window is at 1 MiB: leave out --mem, or what asks for SIMVIRTIO",
        );
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hole_moves_the_rest_of_ram_up() {
        const GIB: u64 = 1 << 30;
        assert_eq!(pc::ram(3 * GIB), [(Gpa(0), 3 * GIB)]);
        assert_eq!(pc::ram(5 * GIB), [(Gpa(0), 3 * GIB), (Gpa(4 * GIB), 2 * GIB)]);
        assert_eq!(pc::ram(3 * GIB + PAGE), [(Gpa(0), 3 * GIB), (Gpa(4 * GIB), PAGE)]);
        let low = (Gpa(0), 0x9_fc00);
        assert_eq!(pc::usable(GIB), [low, (Gpa(1 << 20), GIB - (1 << 20))]);
        assert_eq!(pc::usable(4 * GIB), [low, (Gpa(1 << 20), 3 * GIB - (1 << 20)), (Gpa(4 * GIB), GIB)]);
        assert_eq!(pc_ram_size(None).unwrap(), 256 << 20);
        for bytes in [0, 1 << 20, (256 << 20) + 1, pc::MOST_RAM + PAGE, u64::MAX] {
            assert!(pc_ram_size(Some(bytes)).is_err(), "{bytes}");
        }
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(ram_size(Map::So2, None).unwrap(), 1 << 20);
        assert_eq!(ram_size(Map::Plain, None).unwrap(), 250 << 20);
        assert_eq!(ram_size(Map::Plain, Some(MAX_RAM)).unwrap(), MAX_RAM);
        for bytes in [0, 1, 4095, (1 << 20) - 1, (1 << 20) + 1, MAX_RAM + PAGE, 1 << 63] {
            assert!(ram_size(Map::Plain, Some(bytes)).is_err(), "{bytes}");
        }
        assert!(ram_size(Map::So2, Some(2 << 20)).is_err());
    }
}
