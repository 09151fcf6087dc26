//! Guest memory: the two memory maps, the slots that make them, and the checked way in.
//!
//! | | SO2 map | plain map | PC map, of Linux |
//! |---|---|---|---|
//! | RAM | [0, 1 MiB) | [0, size) | [0, size), less the hole [3 GiB, 4 GiB), which moves the rest up |
//! | SIMVIRTIO window | 0x10_0000: trapped, or shared RAM when polling | none | none |
//! | GDT and page tables | [`TABLES`], outside both | the same | in RAM ([`pc`]) |
//!
//! The addresses of the SO2 map that a driver needs are in [`simvirtio::abi`].
#![allow(unsafe_code)]

use crate::error::Error;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use simvirtio::abi;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

pub use guest::Map;
/// A guest physical address.
pub use vm_memory::GuestAddress as Gpa;

/// Size of a page, and the unit of all slots, in bytes.
pub const PAGE: u64 = 0x1000;
/// Where KVM may put its three pages of task state on Intel hosts (KVM_SET_TSS_ADDR): the assignment's value.
pub const TSS: u64 = 0xfffb_d000;
/// Where the GDT and the page tables are: after KVM's task state, below 4 GiB so that the identity map
/// reaches them.
pub const TABLES: Gpa = Gpa(0xfffc_0000);
/// Size of the GDT's page and the six pages of page tables, in bytes.
pub const TABLES_SIZE: u64 = 7 * PAGE;
/// RAM of the plain map unless the user says otherwise, in bytes.
pub const PLAIN_RAM: u64 = 250 << 20;
/// RAM of the plain map ends below here, in bytes: the rest of the first 4 GiB is for devices and tables.
pub const MAX_RAM: u64 = 3 << 30;

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
    pub const VIRTIO: u64 = 0xd000_0000;
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
    assert!(pc::ACPI.0 + pc::ACPI_SIZE <= pc::HIGH_RAM && pc::HOLE <= pc::VIRTIO);
    assert!(pc::VIRTIO < pc::IOAPIC as u64 && pc::IOAPIC < pc::LOCAL_APIC);
    assert!((pc::LOCAL_APIC as u64) < pc::IDENTITY_MAP && pc::TSS + 3 * PAGE <= pc::HOLE_END);
};

/// Guest memory. Clones share it.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    slots: GuestMemoryMmap,
    /// What the slots lie in, unmapped with the last clone.
    _mappings: Arc<Vec<Mapping>>,
}

/// Size and alignment of a large page, in bytes. Where a guest's large page is one of the host's as well, the host
/// needs one fault for it instead of 512.
const LARGE_PAGE: usize = 2 << 20;

/// Anonymous memory of the host's, zeroed. A large one begins at a large page.
#[derive(Debug)]
struct Mapping {
    /// All that was mapped.
    whole: *mut libc::c_void,
    length: usize,
    /// Where its use begins.
    start: *mut u8,
}

// SAFETY: the addresses are only those of memory, which any thread may use.
unsafe impl Send for Mapping {}
// SAFETY: see above; nothing is changed through a shared one.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(size: usize) -> io::Result<Self> {
        let slack = if size >= LARGE_PAGE { LARGE_PAGE } else { 0 };
        let length = size.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let whole = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if whole == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = whole.cast::<u8>();
        let gap = if slack == 0 { 0 } else { start.align_offset(LARGE_PAGE).min(slack) };
        // SAFETY: the gap is at most the slack, so this is within the mapping.
        Ok(Self { whole, length, start: unsafe { start.add(gap) } })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and whoever drops this uses it no more.
        unsafe { libc::munmap(self.whole, self.length) };
    }
}

impl GuestMemory {
    /// No memory at all.
    pub fn none() -> Self {
        Self { slots: GuestMemoryMmap::new(), _mappings: Arc::default() }
    }

    /// Maps zeroed memory for each of the slots, given as start and size in bytes.
    ///
    /// # Errors
    /// The host has not enough address space, or the slots overlap.
    pub fn new(slots: &[(Gpa, u64)]) -> Result<Self, Error> {
        let mut regions = Vec::with_capacity(slots.len());
        let mut mappings = Vec::with_capacity(slots.len());
        for &(start, bytes) in slots {
            let refused = |reason: String| Error::Memory { bytes, reason };
            let size = usize::try_from(bytes).map_err(|error| refused(error.to_string()))?;
            let mapping = Mapping::new(size).map_err(|error| refused(error.to_string()))?;
            // SAFETY: that much is mapped from there on, and stays so as long as a clone of this lives.
            let slot = unsafe {
                MmapRegion::<()>::build_raw(
                    mapping.start,
                    size,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                )
            };
            mappings.push(mapping);
            let region = GuestRegionMmap::new(slot.map_err(|error| refused(error.to_string()))?, start);
            regions.push(region.ok_or_else(|| refused("it would end past the address space".into()))?);
        }
        regions.sort_by_key(|region| region.start_addr());
        let slots = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| Error::Memory { bytes: 0, reason: error.to_string() })?;
        Ok(Self { slots, _mappings: Arc::new(mappings) })
    }

    /// The slots, for the crates that load kernels and read rings.
    pub(crate) fn slots(&self) -> &GuestMemoryMmap {
        &self.slots
    }

    /// Asks for large pages behind all slots (MADV_HUGEPAGE). Only advice, which a kernel without them refuses.
    pub(crate) fn prefer_large_pages(&self) {
        for region in self.slots.iter().filter(|region| region.size() >= LARGE_PAGE) {
            // SAFETY: the range is exactly the region's own mapping, which lives as long as `self`; the advice
            // does not change what it holds.
            if unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE) } != 0 {
                log::debug!("no large pages: {}", io::Error::last_os_error());
            }
        }
    }

    /// Lets the kernel merge equal pages of the slot at `start` with those of other guests
    /// (MADV_MERGEABLE). Only advice: a kernel without KSM refuses it.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn merge_pages(&self, start: Gpa) -> io::Result<()> {
        let Some(region) = self.slots.find_region(start) else { return Ok(()) };
        // SAFETY: the range is exactly the region's own mapping, which lives as long as `self`; the advice
        // does not change what it holds.
        let answer = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_MERGEABLE) };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Gives the memory to the VM, a slot each (KVM_SET_USER_MEMORY_REGION).
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn register(&self, vm: &VmFd) -> Result<(), Error> {
        for (slot, region) in (0..).zip(self.slots.iter()) {
            let description = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped, and the machine drops the VM before this memory.
            unsafe { vm.set_user_memory_region(description) }
                .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Copies `data` to `start`.
    ///
    /// # Errors
    /// Not all of the range is memory.
    pub fn write(&self, start: Gpa, data: &[u8]) -> Result<(), Error> {
        self.slots.write_slice(data, start).map_err(|_| Error::Memory {
            bytes: data.len() as u64,
            reason: format!("the range from {:#x} is not all memory", start.0),
        })
    }

    /// Fills `data` from `start`. Returns `false`, and leaves `data` undefined, where not all of the range
    /// is memory.
    pub fn read(&self, start: Gpa, data: &mut [u8]) -> bool {
        self.slots.read_slice(data, start).is_ok()
    }
}

impl simvirtio::Memory for GuestMemory {
    fn load_u8(&self, gpa: u64) -> u8 {
        self.slots.load(Gpa(gpa), Ordering::Acquire).unwrap_or(u8::MAX)
    }
    fn store_u8(&self, gpa: u64, value: u8) {
        // A store where nothing is: an open bus swallows it.
        let _ = self.slots.store(value, Gpa(gpa), Ordering::Release);
    }
    fn load_u32(&self, gpa: u64) -> u32 {
        self.slots.load(Gpa(gpa), Ordering::Acquire).map_or(u32::MAX, u32::from_le)
    }
    fn store_u32(&self, gpa: u64, value: u32) {
        let _ = self.slots.store(value.to_le(), Gpa(gpa), Ordering::Release);
    }
}

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
    use simvirtio::Memory;

    #[test]
    fn ranges_are_checked_to_the_byte() {
        let memory = GuestMemory::new(&[(Gpa(0x10_0000), PAGE), (Gpa(0), 2 * PAGE)]).unwrap();
        assert!(memory.write(Gpa(2 * PAGE - 2), &[1, 2]).is_ok());
        assert!(memory.write(Gpa(u64::MAX), &[1, 2]).is_err());
        assert!(memory.write(Gpa(2 * PAGE - 1), &[1, 2]).is_err());
        assert!(!memory.read(Gpa(2 * PAGE), &mut [0]));
        assert!(memory.read(Gpa(0x10_0fff), &mut [0]));
    }

    #[test]
    fn where_nothing_is_the_bus_is_open() {
        let memory = GuestMemory::new(&[(Gpa(0), PAGE)]).unwrap();
        memory.store_u8(PAGE, 1);
        memory.store_u32(PAGE, 1);
        assert_eq!((memory.load_u8(PAGE), memory.load_u32(PAGE)), (0xff, 0xffff_ffff));
    }

    #[test]
    fn overlapping_slots_are_refused() {
        assert!(GuestMemory::new(&[(Gpa(0), 2 * PAGE), (Gpa(PAGE), PAGE)]).is_err());
        assert!(GuestMemory::new(&[(Gpa(u64::MAX - 10), PAGE)]).is_err());
        assert!(GuestMemory::new(&[(Gpa(0), 1 << 60)]).is_err());
    }

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
    fn large_memory_begins_at_a_large_page() {
        let memory = GuestMemory::new(&[(Gpa(0), 4 << 20), (Gpa(1 << 32), 3 << 20)]).unwrap();
        memory.prefer_large_pages();
        for region in memory.slots().iter() {
            assert_eq!(region.as_ptr() as usize % LARGE_PAGE, 0);
        }
        assert!(memory.write(Gpa((1 << 32) + (3 << 20) - 1), &[7]).is_ok());
        let clone = memory.clone();
        drop(memory);
        let mut byte = [0];
        assert!(clone.read(Gpa((1 << 32) + (3 << 20) - 1), &mut byte) && byte == [7]);
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
