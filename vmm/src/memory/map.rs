//! The memory maps: the only place with guest physical addresses.
//!
//! | | SO2 map | plain map | PC map, for Linux |
//! |---|---|---|---|
//! | RAM | [0, 1 MiB) | [0, size) | [0, size). The hole [3 GiB, 4 GiB) moves the RAM after 3 GiB up |
//! | SIMVIRTIO window | 0x10_0000: trapped or shared RAM, depending on the transport | none | none |
//! | GDT, page tables, task state | [`TABLES`], outside RAM and window | [`TABLES`] | in RAM ([`pc`]) |
//!
//! The addresses of the SO2 map that a driver needs are in [`simvirtio::abi`].

use super::Gpa;
use crate::error::Error;
use crate::host::format_size;
use simvirtio::abi;

pub use guest::Map;

/// The size of a page in bytes. All slots are multiples of it.
pub const PAGE: u64 = 0x1000;
/// The address of KVM's three pages of task state on Intel hosts (KVM_SET_TSS_ADDR). The SO2 assignment gives this
/// value.
pub const TSS: u64 = 0xfffb_d000;
/// The same for a machine with a ROM, which may reach down to 0xff00_0000.
pub const ROM_TSS: u64 = 0xfeff_d000;
/// The address of KVM's page table for real mode, in such a machine (KVM_SET_IDENTITY_MAP_ADDR).
pub const ROM_IDENTITY_MAP: u64 = ROM_TSS - PAGE;
/// The address of the tables: GDT, page tables and task state. It is after KVM's task state, and below 4 GiB so that
/// the identity map covers it. The GDT takes the first page.
pub const TABLES: Gpa = Gpa(0xfffc_0000);
/// The address of the page tables, six pages.
pub const PAGE_TABLES: Gpa = Gpa(TABLES.0 + PAGE);
/// The address of the task state of a guest in ring 3, three pages.
pub const TASK_STATE: Gpa = Gpa(PAGE_TABLES.0 + 6 * PAGE);
/// The size of all tables, in bytes.
pub const TABLES_SIZE: u64 = 10 * PAGE;
/// The default size of RAM in the plain map, in bytes.
pub const PLAIN_RAM: u64 = 250 << 20;
/// The maximum size of RAM in the plain map, in bytes. The rest of the first 4 GiB is for devices and tables.
pub const MAX_RAM: u64 = 3 << 30;

/// The maximum number of vCPUs. Their stacks take the upper half of the memory of the SO2 map.
pub const MAX_CPUS: u32 = 32;

// The places do not overlap.
const _: () = {
    assert!(abi::WINDOW >= abi::RAM_SIZE && abi::DOORBELL == abi::WINDOW + abi::WINDOW_SIZE);
    assert!(MAX_RAM <= TSS && TSS + 3 * PAGE <= TABLES.0 && TABLES.0 + TABLES_SIZE <= 1 << 32);
};

/// The addresses of the PC map, in which Linux runs. The E820 map and the ACPI tables are made from them.
pub mod pc {
    use super::{Gpa, MAX_RAM, PAGE};

    /// The GDT at the kernel's entry.
    pub const GDT: Gpa = Gpa(0x500);
    /// The page tables at the kernel's entry: an identity map of the first 4 GiB.
    pub const PAGE_TABLES: Gpa = Gpa(0x2000);
    /// The kernel's `boot_params`.
    pub const BOOT_PARAMS: Gpa = Gpa(0x1_0000);
    /// The kernel's command line.
    pub const COMMAND_LINE: Gpa = Gpa(0x2_0000);
    /// The end of the first range of RAM that is reported to the kernel. The rest up to 1 MiB is reserved for firmware.
    pub const LOW_RAM_END: u64 = 0x9_fc00;
    /// The ACPI tables, in the area for firmware below 1 MiB. The first table is the RSDP.
    pub const ACPI: Gpa = Gpa(0xe_0000);
    /// The maximum size of the ACPI tables of one kind, in bytes.
    pub const ACPI_SIZE: u64 = 0x8000;
    /// The ACPI tables of a machine with fixed hardware, to which the RSDP points after the kernel has used the PIT.
    pub const FULL_ACPI: Gpa = Gpa(0xe_8000);
    /// The MP table. Kernels search for it from this address, and in the last KiB of the first range of RAM.
    pub const MP: Gpa = Gpa(0xf_0000);
    /// The maximum size of the MP table, in bytes.
    pub const MP_SIZE: u64 = 0x400;
    /// The start of the second range of RAM. The kernel is at this address or above.
    pub const HIGH_RAM: u64 = 0x10_0000;
    /// The start of the hole for devices.
    pub const HOLE: u64 = MAX_RAM;
    /// The end of the hole for devices, where RAM continues.
    pub const HOLE_END: u64 = 1 << 32;
    /// The registers of the first virtio device. Each device has a page.
    pub const VIRTIO: u32 = 0xd000_0000;
    /// The I/O interrupt controller (I/O APIC).
    pub const IOAPIC: u32 = 0xfec0_0000;
    /// The local interrupt controller (local APIC) of each vCPU.
    pub const LOCAL_APIC: u32 = 0xfee0_0000;
    /// KVM's page for its identity map on Intel hosts (KVM_SET_IDENTITY_MAP_ADDR).
    pub const IDENTITY_MAP: u64 = TSS - PAGE;
    /// KVM's three pages of task state on Intel hosts (KVM_SET_TSS_ADDR), at the end of the hole.
    pub const TSS: u64 = 0xffff_d000;
    /// The maximum size of RAM, in bytes: half of the address space of a processor with 40 physical address bits.
    pub const MAX_PC_RAM: u64 = 1 << 39;

    /// The ranges of RAM of a machine with `ram` bytes, each as its start and its size in bytes.
    pub fn ram(ram: u64) -> Vec<(Gpa, u64)> {
        match ram.checked_sub(HOLE) {
            None | Some(0) => vec![(Gpa(0), ram)],
            Some(rest) => vec![(Gpa(0), HOLE), (Gpa(HOLE_END), rest)],
        }
    }

    /// The ranges that the kernel may use: those of [`ram`] without the area for firmware below 1 MiB.
    pub fn usable(ram: u64) -> Vec<(Gpa, u64)> {
        let below = (Gpa(0), LOW_RAM_END);
        let above = self::ram(ram).into_iter().map(|(start, size)| match start {
            Gpa(0) => (Gpa(HIGH_RAM), size.saturating_sub(HIGH_RAM)),
            start => (start, size),
        });
        std::iter::once(below).chain(above).collect()
    }
}

// The places of the PC map do not overlap.
const _: () = {
    assert!(pc::GDT.0 + 24 <= pc::PAGE_TABLES.0 && pc::PAGE_TABLES.0 + 6 * PAGE <= pc::BOOT_PARAMS.0);
    assert!(pc::BOOT_PARAMS.0 + PAGE <= pc::COMMAND_LINE.0 && pc::LOW_RAM_END <= pc::ACPI.0);
    assert!(pc::ACPI.0 + pc::ACPI_SIZE <= pc::FULL_ACPI.0 && pc::FULL_ACPI.0 + pc::ACPI_SIZE <= pc::MP.0);
    assert!(pc::MP.0 + pc::MP_SIZE <= pc::HIGH_RAM);
    assert!(pc::HOLE <= pc::VIRTIO as u64);
    assert!(pc::VIRTIO < pc::IOAPIC && pc::IOAPIC < pc::LOCAL_APIC);
    assert!((pc::LOCAL_APIC as u64) < pc::IDENTITY_MAP && pc::TSS + 3 * PAGE <= pc::HOLE_END);
};

/// The error for a size of RAM that is not allowed. `rule` says which sizes are.
fn bad_ram_size(rule: &str, bytes: u64) -> Error {
    Error::Config(format!("--mem must be {rule}, not {}", format_size(bytes)))
}

/// The size of RAM of the PC map in bytes: `asked` if it is allowed, or 256 MiB.
///
/// # Errors
/// The size is not allowed. The message says which sizes are.
pub fn pc_ram_size(asked: Option<u64>) -> Result<u64, Error> {
    const MIN_RAM: u64 = 8 << 20;
    match asked.unwrap_or(256 << 20) {
        bytes @ ..MIN_RAM => Err(bad_ram_size("at least 8M", bytes)),
        bytes if bytes > pc::MAX_PC_RAM => Err(bad_ram_size("at most 512G", bytes)),
        bytes if !bytes.is_multiple_of(PAGE) => Err(bad_ram_size("a multiple of 4K", bytes)),
        bytes => Ok(bytes),
    }
}

/// The size of RAM of `map` in bytes: `asked` if it is allowed, or the default of the map.
///
/// # Errors
/// The size is not allowed. The message says which sizes are.
pub fn ram_size(map: Map, asked: Option<u64>) -> Result<u64, Error> {
    let bytes = match (map, asked) {
        (Map::So2, None) => abi::RAM_SIZE,
        (Map::Plain, None) => PLAIN_RAM,
        (_, Some(bytes)) => bytes,
    };
    if bytes < abi::RAM_SIZE {
        return Err(bad_ram_size("at least 1M", bytes));
    }
    if bytes > MAX_RAM {
        return Err(bad_ram_size("at most 3G", bytes));
    }
    if !bytes.is_multiple_of(PAGE) {
        return Err(bad_ram_size("a multiple of 4K", bytes));
    }
    if map == Map::So2 && bytes != abi::RAM_SIZE {
        return Err(Error::Config(format!(
            "--mem must be 1M for a guest with SIMVIRTIO, not {}, because SIMVIRTIO's window is at 1 MiB: \
             leave out --mem, or the options that need SIMVIRTIO",
            format_size(bytes)
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hole_moves_the_ram_after_it_up() {
        const GIB: u64 = 1 << 30;
        assert_eq!(pc::ram(3 * GIB), [(Gpa(0), 3 * GIB)]);
        assert_eq!(pc::ram(5 * GIB), [(Gpa(0), 3 * GIB), (Gpa(4 * GIB), 2 * GIB)]);
        assert_eq!(pc::ram(3 * GIB + PAGE), [(Gpa(0), 3 * GIB), (Gpa(4 * GIB), PAGE)]);
        let low = (Gpa(0), 0x9_fc00);
        assert_eq!(pc::usable(GIB), [low, (Gpa(1 << 20), GIB - (1 << 20))]);
        assert_eq!(pc::usable(4 * GIB), [low, (Gpa(1 << 20), 3 * GIB - (1 << 20)), (Gpa(4 * GIB), GIB)]);
        assert_eq!(pc_ram_size(None).unwrap(), 256 << 20);
        for bytes in [0, 1 << 20, (256 << 20) + 1, pc::MAX_PC_RAM + PAGE, u64::MAX] {
            assert!(pc_ram_size(Some(bytes)).is_err(), "{bytes}");
        }
    }

    #[test]
    fn ram_sizes_are_checked() {
        assert_eq!(ram_size(Map::So2, None).unwrap(), 1 << 20);
        assert_eq!(ram_size(Map::Plain, None).unwrap(), 250 << 20);
        assert_eq!(ram_size(Map::Plain, Some(MAX_RAM)).unwrap(), MAX_RAM);
        for bytes in [0, 1, 4095, (1 << 20) - 1, (1 << 20) + 1, MAX_RAM + PAGE, 1 << 63] {
            assert!(ram_size(Map::Plain, Some(bytes)).is_err(), "{bytes}");
        }
        assert!(ram_size(Map::So2, Some(2 << 20)).is_err());
    }
}
