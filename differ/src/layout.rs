//! The memory of a program, the same on both sides: tables, code, data, stack.
//!
//! | page | contents |
//! |---|---|
//! | 0x0 | the interrupt vectors of real mode |
//! | 0x1 | GDT; LDT |
//! | 0x2 | IDT |
//! | 0x3 | a HLT for each vector |
//! | 0x4-0x6 | task state, with an I/O bitmap |
//! | 0x7 | the stack of ring 0 |
//! | 0x8-0xf | page tables |
//! | 0x10-0x11 | code, filled with HLT |
//! | 0x12 | code that is not executable |
//! | 0x14-0x15 | data |
//! | 0x16 | not mapped |
//! | 0x17 | read-only data |
//! | 0x18 | data of ring 0 |
//! | 0x19 | data |
//! | 0x1a-0x1b | stack |
//! | 0x1c | the page at the ends of 4 GiB and of the lower canonical addresses |
//! | 0x1d-0x1f | memory-mapped I/O |

use crate::program::Config;
use softcpu::{Segment, State, Table, cr0, cr4, efer, seg};

pub const PAGE: u64 = 4096;
pub const GDT: u64 = 0x1000;
pub const LDT: u64 = 0x1800;
pub const IDT: u64 = 0x2000;
pub const HANDLERS: u64 = 0x3000;
pub const TASK: u64 = 0x4000;
pub const KERNEL_STACK_TOP: u64 = 0x7f00;
pub const TABLES: u64 = 0x8000;
pub const CODE: u64 = 0x1_0000;
pub const CODE_END: u64 = 0x1_2000;
pub const DATA: u64 = 0x1_4000;
pub const UNMAPPED: u64 = 0x1_6000;
pub const READ_ONLY: u64 = 0x1_7000;
pub const RING_0: u64 = 0x1_8000;
pub const OTHER_DATA: u64 = 0x1_9000;
pub const STACK: u64 = 0x1_a000;
pub const LAST_PAGE: u64 = 0x1_c000;
/// The end of memory. Above is memory-mapped I/O.
pub const MEMORY: u64 = 0x1_d000;
/// The end of the linear addresses that are mapped.
pub const MAPPED: u64 = 0x2_0000;

/// The selectors. The GDT of long mode has a 64-bit ring-0 code segment at 0x08.
pub const RING_0_CODE: u16 = 0x08;
pub const RING_0_DATA: u16 = 0x10;
pub const RING_3_CODE: u16 = 0x1b;
pub const RING_3_DATA: u16 = 0x23;
pub const TASK_SELECTOR: u16 = 0x28;
/// The segments of 16-bit protected mode: their selectors, and the parts of memory where they begin.
pub const SEGMENTS: [(usize, u16, u64); 6] = [
    (seg::CS, 0x38, CODE),
    (seg::DS, 0x40, DATA),
    (seg::ES, 0x48, OTHER_DATA),
    (seg::FS, 0x50, DATA + PAGE),
    (seg::GS, 0x58, LAST_PAGE),
    (seg::SS, 0x60, STACK),
];
/// The first stack of 16-bit protected mode, in a segment that begins at 0: hosts that emulate ring 0 deliver exceptions only
/// there.
pub const LOW_STACK: u64 = 0x7000;
/// The bytes between two handlers.
const HANDLER_SIZE: u64 = 4;

/// True for an address in the descriptor tables or the page tables.
pub fn is_table(address: u64) -> bool {
    (GDT..HANDLERS).contains(&address) || (TASK..CODE).contains(&address)
}

/// The vector in whose handler a processor is, behind the HLT.
pub fn vector(state: &State) -> Option<u8> {
    let is_flat = state.is_64() || state.segments[seg::CS].base == 0;
    if is_flat { vector_of(state.rip) } else { None }
}

/// The vector whose handler ends at this address, with RIP behind its HLT.
fn vector_of(rip: u64) -> Option<u8> {
    let offset = rip.checked_sub(HANDLERS + 1)?;
    (offset % HANDLER_SIZE == 0).then_some(offset / HANDLER_SIZE).and_then(|vector| vector.try_into().ok())
}

/// A segment that covers all of memory.
fn flat(selector: u16, kind: u8, long: bool) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        kind,
        code_or_data: true,
        dpl: (selector & 3) as u8,
        present: true,
        available: false,
        long,
        big: !long,
        pages: true,
        unusable: false,
    }
}

/// A segment of 64 KiB.
fn small(selector: u16, base: u64, kind: u8) -> Segment {
    Segment { base, limit: 0xffff, big: false, pages: false, ..flat(selector, kind, false) }
}

/// The task register.
fn task(long: bool) -> Segment {
    let limit = if long { 0x68 + 8192 } else { 0x67 };
    Segment {
        limit,
        kind: 0b1011,
        code_or_data: false,
        big: false,
        pages: false,
        dpl: 0,
        base: TASK,
        ..flat(TASK_SELECTOR, 0, false)
    }
}

/// The descriptor of a segment.
pub fn descriptor(segment: &Segment) -> u64 {
    let limit = u64::from(if segment.pages { segment.limit >> 12 } else { segment.limit });
    let bit = |set: bool, at: u32| u64::from(set) << at;
    (limit & 0xffff)
        | (segment.base & 0x00ff_ffff) << 16
        | u64::from(segment.kind & 15) << 40
        | bit(segment.code_or_data, 44)
        | u64::from(segment.dpl & 3) << 45
        | bit(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | bit(segment.available, 52)
        | bit(segment.long, 53)
        | bit(segment.big, 54)
        | bit(segment.pages, 55)
        | (segment.base >> 24 & 0xff) << 56
}

/// The registers at the start of a program, before random values.
pub fn state(config: Config) -> State {
    let mut state = State { rip: CODE, rflags: 2, ..State::default() };
    state.gdtr = Table { base: GDT, limit: 0xff };
    state.cr0 = cr0::ET | cr0::NE | cr0::MP;
    if config == Config::Real {
        state.gpr[4] = STACK + PAGE;
        state.idtr = Table { base: 0, limit: 0x3ff };
        state.segments = [small(0, 0, 0b0011); 6];
        state.segments[seg::CS].kind = 0b1011;
        return state;
    }
    let long = config.is_64();
    state.cr0 |= cr0::PE;
    state.idtr = Table { base: IDT, limit: if long { 0xfff } else { 0x7ff } };
    state.tr = task(long);
    let (code, data) = match config {
        Config::User => (RING_3_CODE, RING_3_DATA),
        _ => (RING_0_CODE, RING_0_DATA),
    };
    state.segments = [flat(data, 0b0011, false); 6];
    state.segments[seg::CS] = flat(code, 0b1011, long);
    if config == Config::Protected16 {
        for (index, selector, base) in SEGMENTS {
            let kind = if index == seg::CS { 0b1011 } else { 0b0011 };
            state.segments[index] = small(selector, base, kind);
        }
        state.segments[seg::SS].base = 0;
    }
    state.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
    if long {
        state.cr0 |= cr0::PG | cr0::WP | cr0::AM;
        state.cr3 = TABLES;
        state.cr4 |= cr4::PAE;
        state.efer = efer::LME | efer::LMA | efer::NXE;
    }
    state
}

/// The bytes of memory at the start of a program, before random values.
pub fn image(config: Config) -> Vec<u64> {
    let mut image = Image(vec![0; (MEMORY / 8) as usize]);
    image.handlers(config);
    image.gdt(config);
    image.task(config);
    if matches!(config, Config::Long | Config::User) {
        image.page_tables();
    }
    (CODE / 8..CODE_END / 8 + PAGE / 8).for_each(|word| image.0[word as usize] = 0xf4f4_f4f4_f4f4_f4f4);
    image.0
}

struct Image(Vec<u64>);

impl Image {
    fn set(&mut self, address: u64, value: u64) {
        if let Some(word) = self.0.get_mut((address / 8) as usize) {
            *word = value;
        }
    }

    /// The handlers, and the table that leads to them.
    fn handlers(&mut self, config: Config) {
        for vector in 0..256u64 {
            let handler = HANDLERS + vector * HANDLER_SIZE;
            let code = u64::from(RING_0_CODE);
            // Programs may raise breakpoints and overflows in ring 3.
            let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
            let gate = handler & 0xffff | code << 16 | (0x8e | dpl << 5) << 40 | (handler >> 16) << 48;
            // Real mode, which other programs may enter: segment 0.
            self.0[(vector / 2) as usize] |= handler << (32 * (vector & 1));
            match config {
                Config::Real => {}
                Config::Protected | Config::Protected16 => self.set(IDT + vector * 8, gate),
                Config::Long | Config::User => self.set(IDT + vector * 16, gate),
            }
        }
        // HLT; JMP to itself; NOP.
        (HANDLERS / 8..HANDLERS / 8 + 128).for_each(|word| self.0[word as usize] = 0x90fd_ebf4_90fd_ebf4);
    }

    fn gdt(&mut self, config: Config) {
        let long = config.is_64() || config == Config::Real;
        let segments = [
            flat(RING_0_CODE, 0b1011, long),
            flat(RING_0_DATA, 0b0011, false),
            flat(RING_3_CODE, 0b1011, long),
            flat(RING_3_DATA, 0b0011, false),
            task(long),
        ];
        for segment in segments {
            self.set(GDT + u64::from(segment.selector & !7), descriptor(&segment));
        }
        if config == Config::Protected16 {
            self.set(GDT + u64::from(RING_0_CODE), descriptor(&small(RING_0_CODE, 0, 0b1011)));
            for (index, selector, base) in SEGMENTS {
                let kind = if index == seg::CS { 0b1011 } else { 0b0011 };
                let base = if index == seg::SS { 0 } else { base };
                self.set(GDT + u64::from(selector), descriptor(&small(selector, base, kind)));
            }
        }
    }

    fn task(&mut self, config: Config) {
        if config.is_protected() {
            self.set(TASK, KERNEL_STACK_TOP << 32);
            self.set(TASK + 8, RING_0_DATA.into());
            return;
        }
        // RSP0 is at offset 4, and the offset of the bitmap at 0x66.
        self.set(TASK, KERNEL_STACK_TOP << 32);
        self.set(TASK + 0x60, 0x68 << 48);
        self.set(TASK + 0x68 + 8192, 0xff);
    }

    /// Page tables that map memory to itself, and its last page also to the end of 4 GiB and of the lower canonical
    /// addresses.
    fn page_tables(&mut self) {
        // Present, writable, user, accessed.
        const BITS: u64 = 0x27;
        let table = |number: u64| TABLES + number * PAGE;
        self.set(table(0), table(1) | BITS);
        self.set(table(0) + 8 * 255, table(4) | BITS);
        self.set(table(1), table(2) | BITS);
        self.set(table(1) + 8 * 3, table(5) | BITS);
        self.set(table(2), table(3) | BITS);
        self.set(table(4) + 8 * 511, table(5) | BITS);
        self.set(table(5) + 8 * 511, table(6) | BITS);
        // Dirty.
        self.set(table(6) + 8 * 511, LAST_PAGE | BITS | 0x40);
        for page in (0..MAPPED).step_by(PAGE as usize) {
            let bits = match page {
                UNMAPPED => 0x66,
                READ_ONLY => 0x65,
                RING_0 => 0x63,
                _ if page < CODE => 0x63,
                _ => 0x67,
            };
            let never = if page >= CODE_END { 1 << 63 } else { 0 };
            self.set(table(3) + page / PAGE * 8, page | bits | never);
        }
    }
}
