//! The state in which a vCPU enters a guest: real, protected or long mode, the last also in ring 3, as pure
//! functions from KVM's reset state to register values and tables.
//!
//! Segment descriptors: Intel SDM volume 3, section 3.4.5. Control registers: section 2.5. Page tables with
//! 2 MiB pages: section 4.5.4. Task state of 64 bits, its descriptor, and the I/O permission bitmap: sections 8.7 and
//! 8.2.3, and volume 1, section 19.5.2.

use crate::memory::{Gpa, PAGE, TABLES, TABLES_SIZE, TASK_STATE};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use simvirtio::abi;

pub use guest::Mode;

/// CR0: protection enable.
pub const CR0_PE: u64 = 1 << 0;
/// CR0: monitor coprocessor.
pub const CR0_MP: u64 = 1 << 1;
/// CR0: extension type, always one.
pub const CR0_ET: u64 = 1 << 4;
/// CR0: numeric errors as exceptions.
pub const CR0_NE: u64 = 1 << 5;
/// CR0: write protection holds in ring 0 too.
pub const CR0_WP: u64 = 1 << 16;
/// CR0: alignment mask.
pub const CR0_AM: u64 = 1 << 18;
/// CR0: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension, which long mode needs.
pub const CR4_PAE: u64 = 1 << 5;
/// RFLAGS: always one.
const RFLAGS_ONE: u64 = 1 << 1;
/// RFLAGS: ring 3 may use ports.
const RFLAGS_IOPL_3: u64 = 3 << 12;
/// EFER: long mode enable.
pub const EFER_LME: u64 = 1 << 8;
/// EFER: long mode active.
pub const EFER_LMA: u64 = 1 << 10;

/// Page table entry: present.
pub(crate) const PTE_PRESENT: u64 = 1 << 0;
/// Page table entry: writable.
pub(crate) const PTE_WRITABLE: u64 = 1 << 1;
/// Page table entry: ring 3 may use the page.
pub(crate) const PTE_USER: u64 = 1 << 2;
/// Page directory entry: maps a 2 MiB page.
pub(crate) const PDE_LARGE: u64 = 1 << 7;
/// Gibibytes that the identity map covers: all 32-bit addresses, so that devices below 4 GiB are in it.
const MAPPED_GIB: u64 = 4;

/// GDT index of the code segment: selector 0x08.
const CODE: u16 = 1;
/// GDT index of the data segment: selector 0x10.
const DATA: u16 = 2;
/// GDT index of ring 3's code segment: selector 0x1B, with the ring in its low bits.
const USER_CODE: u16 = 3;
/// GDT index of ring 3's data segment: selector 0x23.
const USER_DATA: u16 = 4;
/// GDT index of the task state, which takes two entries: selector 0x28.
const TASK: u16 = 5;

/// Size of the 64-bit task state without its bitmap, in bytes; and so where the bitmap begins.
const TASK_FIELDS: u16 = 0x68;
/// Offset of the field that says where the bitmap begins, in bytes.
const TASK_BITMAP_BASE: usize = 0x66;
/// Size of the task state with a bitmap for all ports, and the byte of ones that the manual asks for after it.
pub const TASK_STATE_SIZE: usize = TASK_FIELDS as usize + 0x1_0000 / 8 + 1;
// The memory map leaves enough room for it.
const _: () = assert!(TASK_STATE.0 + TASK_STATE_SIZE as u64 <= TABLES.0 + TABLES_SIZE);

/// A flat segment of 4 GiB. `kind` is the descriptor's type field, with the accessed bit set as the CPU
/// itself would set it.
const fn flat_segment(index: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index << 3,
        type_: kind,
        present: 1,
        dpl: 0,
        db: !long as u8,
        s: 1,
        l: long as u8,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Execute, read, accessed.
const fn code_segment(mode: Mode) -> kvm_segment {
    flat_segment(CODE, 0b1011, matches!(mode, Mode::Long | Mode::User))
}

/// Read, write, accessed.
const fn data_segment() -> kvm_segment {
    flat_segment(DATA, 0b0011, false)
}

/// A segment as ring 3 has it, at another place of the GDT.
const fn for_ring_3(segment: kvm_segment, index: u16) -> kvm_segment {
    kvm_segment { selector: index << 3 | 3, dpl: 3, ..segment }
}

const USER_CODE_SEGMENT: kvm_segment = for_ring_3(code_segment(Mode::User), USER_CODE);
const USER_DATA_SEGMENT: kvm_segment = for_ring_3(data_segment(), USER_DATA);

/// The task state: busy, as that of a running CPU is.
const TASK_SEGMENT: kvm_segment = kvm_segment {
    base: TASK_STATE.0,
    limit: TASK_STATE_SIZE as u32 - 1,
    selector: TASK << 3,
    type_: 0b1011,
    present: 1,
    dpl: 0,
    db: 0,
    s: 0,
    l: 0,
    g: 0,
    avl: 0,
    unusable: 0,
    padding: 0,
};

/// The descriptor of a segment as it stands in memory.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let flags = u64::from(segment.g) << 3 | u64::from(segment.db) << 2 | u64::from(segment.l) << 1;
    let access = u64::from(segment.present) << 7
        | u64::from(segment.dpl) << 5
        | u64::from(segment.s) << 4
        | u64::from(segment.type_);
    (limit & 0xffff)
        | (segment.base & 0x00ff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | (flags | u64::from(segment.avl)) << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// The GDT of protected or long mode: null, code (0x08), data (0x10). For ring 3 also its own code (0x1B) and
/// data (0x23), and the task state (0x28).
pub fn gdt(mode: Mode) -> Vec<u64> {
    let mut gdt = vec![0, descriptor(&code_segment(mode)), descriptor(&data_segment())];
    if mode == Mode::User {
        gdt.extend([&USER_CODE_SEGMENT, &USER_DATA_SEGMENT, &TASK_SEGMENT].map(descriptor));
        gdt.push(TASK_SEGMENT.base >> 32);
    }
    gdt
}

/// The task state of ring 3, whose bitmap allows all ports. It has no stacks: there is no IDT to need one.
pub fn task_state() -> Vec<u8> {
    let mut state = vec![0; TASK_STATE_SIZE];
    if let Some(base) = state.get_mut(TASK_BITMAP_BASE..usize::from(TASK_FIELDS)) {
        base.copy_from_slice(&TASK_FIELDS.to_le_bytes());
    }
    if let Some(last) = state.last_mut() {
        *last = 0xff;
    }
    state
}

/// The GDT that a Linux kernel is entered with: null, null, code (`__BOOT_CS`, 0x10), data (`__BOOT_DS`, 0x18).
pub fn linux_gdt() -> [u64; 4] {
    [0, 0, descriptor(&LINUX_CODE), descriptor(&LINUX_DATA)]
}

/// Words of a table as they stand in memory.
pub(crate) fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Page tables at `base` that map the first 4 GiB one to one with 2 MiB pages: a PML4, a page directory
/// pointer table and four page directories, a page each, in this order. In little-endian words.
pub fn identity_map(base: Gpa) -> Vec<u64> {
    mapped(base, 0)
}

/// The same, for ring 3 to use.
pub fn user_identity_map(base: Gpa) -> Vec<u64> {
    mapped(base, PTE_USER)
}

/// The identity map with some more bits in each entry.
fn mapped(base: Gpa, bits: u64) -> Vec<u64> {
    const ENTRIES: u64 = 512;
    let bits = bits | PTE_PRESENT | PTE_WRITABLE;
    let pointer_table = base.0 + PAGE;
    let directories = base.0 + 2 * PAGE;
    let table = |first: u64, entries: u64, entry: &dyn Fn(u64) -> u64| {
        (0..ENTRIES).map(|i| if i < entries { entry(first + i) } else { 0 }).collect::<Vec<_>>()
    };
    let pml4 = table(0, 1, &|_| pointer_table | bits);
    let pdpt = table(0, MAPPED_GIB, &|i| (directories + i * PAGE) | bits);
    let pds = (0..MAPPED_GIB).flat_map(|gib| table(gib * ENTRIES, ENTRIES, &|i| i << 21 | PDE_LARGE | bits));
    pml4.into_iter().chain(pdpt).chain(pds).collect()
}

const LINUX_CODE: kvm_segment = kvm_segment { selector: 0x10, ..code_segment(Mode::Long) };
const LINUX_DATA: kvm_segment = kvm_segment { selector: 0x18, ..data_segment() };

/// The special registers that enter a Linux kernel by its 64-bit entry point: long mode, over a GDT and page tables
/// at these addresses (Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").
pub fn linux_sregs(reset: kvm_sregs, gdt: Gpa, page_tables: Gpa) -> kvm_sregs {
    let mut sregs = reset;
    sregs.cs = LINUX_CODE;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) =
        (LINUX_DATA, LINUX_DATA, LINUX_DATA, LINUX_DATA, LINUX_DATA);
    sregs.gdt = kvm_dtable { base: gdt.0, limit: 4 * 8 - 1, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = page_tables.0;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    sregs
}

/// The general registers that enter a Linux kernel: RSI leads to its `boot_params`.
pub fn linux_regs(entry: Gpa, boot_params: Gpa) -> kvm_regs {
    kvm_regs { rip: entry.0, rsi: boot_params.0, rflags: 2, ..Default::default() }
}

/// A vCPU's place among those of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuIndex {
    /// Its index, from 0 on.
    pub index: u32,
    /// How many there are.
    pub of: u32,
    /// Its number, which CPUID shows as well.
    pub id: u32,
}

impl VcpuIndex {
    /// The only one.
    pub const ALONE: Self = Self { index: 0, of: 1, id: 0 };

    /// Where its stack begins to grow down, a guest physical address.
    fn stack(self) -> u64 {
        abi::RAM_SIZE.saturating_sub(u64::from(self.index).saturating_mul(STACK_SIZE))
    }
}

/// Size of the stack of one of several vCPUs, in bytes.
pub const STACK_SIZE: u64 = 0x4000;

/// The special registers that enter `mode`, from the CPU's reset state. Protected and long mode expect the
/// GDT at `tables` and, a page above it, the page tables; ring 3 its task state at [`TASK_STATE`].
///
/// In real mode the first vCPU has its stack where the CPU's reset leaves it, below 0x1_0000, and each
/// further one a stack segment whose end is where its stack begins.
pub fn sregs(mode: Mode, reset: kvm_sregs, tables: Gpa, place: VcpuIndex) -> kvm_sregs {
    let mut sregs = reset;
    if mode == Mode::Real {
        sregs.cs.selector = 0;
        sregs.cs.base = 0;
        if place.index > 0 {
            sregs.ss.base = place.stack().saturating_sub(0x1_0000);
            sregs.ss.selector = u16::try_from(sregs.ss.base >> 4).unwrap_or(0);
        }
        return sregs;
    }
    let (code, data) = match mode {
        Mode::User => (USER_CODE_SEGMENT, USER_DATA_SEGMENT),
        _ => (code_segment(mode), data_segment()),
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    let mut entries = DATA + 1;
    if mode == Mode::User {
        sregs.tr = TASK_SEGMENT;
        // The task state's own entry is a double one.
        entries = TASK + 2;
    }
    sregs.gdt = kvm_dtable { base: tables.0, limit: entries * 8 - 1, ..Default::default() };
    // No interrupt table: a fault before the guest has made one is a triple fault.
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE;
    if matches!(mode, Mode::Long | Mode::User) {
        sregs.cr0 |= CR0_WP | CR0_AM | CR0_PG;
        sregs.cr3 = tables.0 + PAGE;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    sregs
}

/// The general registers that enter `mode` at `entry`: all zero but for RFLAGS, whose bit 1 is always one,
/// and the stack pointer. In real mode the stack's segment is zero, so SP = 0 makes it grow down from
/// 0x1_0000 (of a further vCPU: of its segment). In ring 3 IOPL is 3: some hosts look at that and others at the bitmap
/// of the task state, so it takes both to allow all ports everywhere. RDI is the vCPU's number, and RSI is how
/// many there are.
pub fn regs(mode: Mode, entry: Gpa, place: VcpuIndex) -> kvm_regs {
    let rsp = if mode == Mode::Real { 0 } else { place.stack() };
    let (rdi, rsi) = (place.id.into(), place.of.into());
    let rflags = if mode == Mode::User { RFLAGS_ONE | RFLAGS_IOPL_3 } else { RFLAGS_ONE };
    kvm_regs { rip: entry.0, rsp, rflags, rdi, rsi, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: Gpa = Gpa(0x2000);

    #[test]
    fn the_gdt_holds_the_well_known_descriptors() {
        assert_eq!(gdt(Mode::Long), [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
        assert_eq!(gdt(Mode::Protected), [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
    }

    #[test]
    fn a_descriptor_spreads_base_and_limit_as_the_manual_says() {
        let segment = kvm_segment { base: 0x1234_5678, limit: 0x000a_bcde, g: 0, dpl: 3, ..data_segment() };
        assert_eq!(descriptor(&segment), 0x124a_f334_5678_bcde);
    }

    #[test]
    fn the_identity_map_is_that_of_the_textbook() {
        let map = identity_map(TABLES);
        assert_eq!(map.len(), 6 * 512);
        assert_eq!((map[0], map[1]), (0x3003, 0));
        assert_eq!(map[512..517], [0x4003, 0x5003, 0x6003, 0x7003, 0]);
        assert_eq!(map[1024], 0x83, "the first page directory entry: present, writable, large");
        assert_eq!(map[1025], 0x20_0083);
    }

    #[test]
    fn every_page_of_the_first_four_gib_maps_to_itself() {
        let map = identity_map(TABLES);
        for (page, entry) in (0u64..).zip(&map[1024..]) {
            assert_eq!(entry & !0xfff, page << 21);
        }
        assert_eq!(map[1024..].len() as u64 * (2 << 20), 4 << 30);
    }

    #[test]
    fn real_mode_changes_cs_only() {
        let reset = kvm_sregs { cr0: 0x6000_0010, ..Default::default() };
        let reset =
            kvm_sregs { cs: kvm_segment { selector: 0xf000, base: 0xffff_0000, ..reset.cs }, ..reset };
        let sregs = sregs(Mode::Real, reset, TABLES, VcpuIndex::ALONE);
        assert_eq!((sregs.cs.selector, sregs.cs.base), (0, 0));
        assert_eq!(kvm_sregs { cs: reset.cs, ..sregs }, reset);
        let regs = regs(Mode::Real, Gpa(0x1000), VcpuIndex::ALONE);
        assert_eq!((regs.rip, regs.rsp, regs.rflags, regs.rax), (0x1000, 0, 2, 0));
    }

    #[test]
    fn protected_mode_has_flat_32_bit_segments_and_no_paging() {
        let sregs = sregs(Mode::Protected, kvm_sregs::default(), TABLES, VcpuIndex::ALONE);
        assert_eq!((sregs.cs.selector, sregs.cs.db, sregs.cs.l, sregs.cs.limit), (8, 1, 0, 0xffff_ffff));
        assert_eq!((sregs.ss.selector, sregs.gdt.base, sregs.gdt.limit), (0x10, 0x2000, 23));
        assert_eq!((sregs.cr0 & CR0_PE, sregs.cr0 & CR0_PG, sregs.efer), (CR0_PE, 0, 0));
        assert_eq!(regs(Mode::Protected, Gpa(0), VcpuIndex::ALONE).rsp, 1 << 20);
    }

    #[test]
    fn long_mode_has_paging_and_a_64_bit_code_segment() {
        let sregs = sregs(Mode::Long, kvm_sregs::default(), TABLES, VcpuIndex::ALONE);
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.ds.db), (1, 0, 1));
        assert_eq!((sregs.cr3, sregs.cr4, sregs.efer), (0x3000, 1 << 5, 0x500));
        assert_eq!(sregs.cr0 & (CR0_PE | CR0_PG), 0x8000_0001);
        assert_eq!(regs(Mode::Long, Gpa(0x10_0000), VcpuIndex::ALONE).rsp, 1 << 20);
    }

    #[test]
    fn ring_3_has_segments_of_its_own_and_all_ports() {
        let reset = kvm_sregs { tr: kvm_segment { type_: 3, ..Default::default() }, ..Default::default() };
        let user = sregs(Mode::User, reset, TABLES, VcpuIndex::ALONE);
        assert_eq!((user.cs.selector, user.cs.dpl, user.cs.l), (0x1b, 3, 1));
        for data in [user.ds, user.es, user.fs, user.gs, user.ss] {
            assert_eq!((data.selector, data.dpl, data.type_), (0x23, 3, 3));
        }
        assert_eq!((user.tr.selector, user.tr.type_, user.tr.s, user.tr.present), (0x28, 0xb, 0, 1));
        assert_eq!((user.tr.base, user.tr.limit), (TASK_STATE.0, 0x68 + 8192));
        assert_eq!((user.gdt.base, user.gdt.limit), (0x2000, 7 * 8 - 1));
        let long = sregs(Mode::Long, reset, TABLES, VcpuIndex::ALONE);
        assert_eq!((user.cr0, user.cr3, user.cr4, user.efer), (long.cr0, long.cr3, long.cr4, long.efer));
        assert_eq!(long.tr, reset.tr);
        let [user, long] = [Mode::User, Mode::Long].map(|mode| regs(mode, Gpa(0x1000), VcpuIndex::ALONE));
        assert_eq!((user.rflags, long.rflags), (0x3002, 2));
        assert_eq!(kvm_regs { rflags: 2, ..user }, long);
    }

    #[test]
    fn the_gdt_of_ring_3_goes_on_after_that_of_long_mode() {
        let user = gdt(Mode::User);
        assert_eq!(user[..3], gdt(Mode::Long));
        assert_eq!(user[3..5], [0x00af_fb00_0000_ffff, 0x00cf_f300_0000_ffff]);
        // Base 0xfffc_7000, limit 0x2068, present, a busy task state of 64 bits.
        assert_eq!(user[5..], [0xff00_8bfc_7000_2068, 0]);
    }

    #[test]
    fn the_task_state_allows_every_port() {
        let state = task_state();
        assert_eq!(state.len(), 0x68 + 8192 + 1);
        assert_eq!(state[0x66..0x68], [0x68, 0]);
        assert!(state[0x68..0x68 + 8192].iter().all(|byte| *byte == 0));
        assert_eq!(state.last(), Some(&0xff), "the manual wants ones after the last port's bits");
    }

    #[test]
    fn the_map_of_ring_3_differs_in_one_bit() {
        let (plain, user) = (identity_map(TABLES), user_identity_map(TABLES));
        for (plain, user) in plain.into_iter().zip(user) {
            assert_eq!(user, if plain == 0 { 0 } else { plain | PTE_USER });
        }
    }

    #[test]
    fn each_of_several_vcpus_has_a_stack_and_knows_its_place() {
        let third = VcpuIndex { index: 2, of: 4, id: 0xbc };
        let long = regs(Mode::Long, Gpa(0x1000), third);
        assert_eq!((long.rsp, long.rdi, long.rsi), (0xf_8000, 0xbc, 4));
        let real = sregs(Mode::Real, kvm_sregs::default(), TABLES, third);
        assert_eq!((real.ss.selector, real.ss.base), (0xe800, 0xe_8000));
        assert_eq!(regs(Mode::Real, Gpa(0), third).rsp, 0, "from the segment's end, 0xf_8000");
    }
}
