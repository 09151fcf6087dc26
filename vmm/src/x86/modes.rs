//! The state in which a vCPU enters a guest: real, protected or long mode, the latter in ring 0 or ring 3. Pure
//! functions from KVM's reset state to register values and tables.
//!
//! Control registers: Intel SDM volume 3, section 2.5. [`segments`] and [`page_tables`] make the tables.

mod page_tables;
mod segments;
mod start;

#[cfg(doc)]
use crate::memory::TASK_STATE;
use crate::memory::{Gpa, PAGE};
use crate::x86::registers::{DescriptorTable, Regs, Sregs};
use segments::{
    LINUX_DATA, TASK_SEGMENT, USER_CODE_SEGMENT, USER_DATA_SEGMENT, code_segment, data_segment, gdt_limit,
    linux_code,
};
use simvirtio::abi;

pub use guest::Mode;
pub(crate) use page_tables::{PDE_LARGE, PTE_PRESENT, PTE_USER, PTE_WRITABLE};
pub use page_tables::{identity_map, user_identity_map};
pub use segments::{gdt, linux_gdt, task_state};
pub use start::Start;

/// CR0: protection enable.
pub const CR0_PE: u64 = 1 << 0;
/// CR0: monitor coprocessor.
pub const CR0_MP: u64 = 1 << 1;
/// CR0: extension type, always one.
pub const CR0_ET: u64 = 1 << 4;
/// CR0: numeric errors as exceptions.
pub const CR0_NE: u64 = 1 << 5;
/// CR0: write protection also applies in ring 0.
pub const CR0_WP: u64 = 1 << 16;
/// CR0: alignment mask.
pub const CR0_AM: u64 = 1 << 18;
/// CR0: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4: 4 MiB pages in 32-bit page tables.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4: physical address extension, which long mode needs.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4: 57-bit linear addresses.
pub const CR4_LA57: u64 = 1 << 12;
/// RFLAGS: always one.
const RFLAGS_ONE: u64 = 1 << 1;
/// RFLAGS: ring 3 may use ports.
const RFLAGS_IOPL_3: u64 = 3 << 12;
/// EFER: long mode enable.
pub const EFER_LME: u64 = 1 << 8;
/// EFER: long mode active.
pub const EFER_LMA: u64 = 1 << 10;

/// Size of the stack of each vCPU in a machine with several, in bytes.
pub const STACK_SIZE: u64 = 0x4000;
/// Size of a real-mode segment, in bytes.
const REAL_SEGMENT: u64 = 0x1_0000;
// The stack segment of any vCPU in real mode has a selector of 16 bits.
const _: () = assert!((abi::RAM_SIZE - REAL_SEGMENT) >> 4 <= 0xffff);

/// A vCPU's position among the vCPUs of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuIndex {
    /// The vCPU's index, from 0.
    pub index: u32,
    /// The number of vCPUs.
    pub of: u32,
    /// The vCPU's number, which CPUID also shows.
    pub id: u32,
}

impl VcpuIndex {
    /// The only vCPU of a machine.
    pub const ALONE: Self = Self { index: 0, of: 1, id: 0 };

    /// Guest physical address of the top of the vCPU's stack, which grows down.
    fn stack(self) -> u64 {
        abi::RAM_SIZE.saturating_sub(u64::from(self.index).saturating_mul(STACK_SIZE))
    }
}

/// The special registers that enter `mode`, from the processor's reset state. Protected and long mode expect the GDT at
/// `tables` and the page tables a page above it. Ring 3 also expects its task state at [`TASK_STATE`].
///
/// In real mode the first vCPU keeps the stack of the reset state, below 0x1_0000. Each further vCPU gets a stack
/// segment that ends at the top of its stack.
pub fn sregs(mode: Mode, reset: Sregs, tables: Gpa, place: VcpuIndex) -> Sregs {
    let mut sregs = reset;
    if mode == Mode::Real {
        sregs.cs.selector = 0;
        sregs.cs.base = 0;
        if place.index > 0 {
            sregs.ss.base = place.stack().saturating_sub(REAL_SEGMENT);
            sregs.ss.selector = (sregs.ss.base >> 4) as u16;
        }
        return sregs;
    }
    let (code, data) = match mode {
        Mode::User => (USER_CODE_SEGMENT, USER_DATA_SEGMENT),
        _ => (code_segment(mode), data_segment()),
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    if mode == Mode::User {
        sregs.tr = TASK_SEGMENT;
    }
    sregs.gdt = DescriptorTable { base: tables.0, limit: gdt_limit(mode) };
    // The IDT is empty: a fault before the guest loads an IDT is a triple fault.
    sregs.idt = DescriptorTable::default();
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE;
    if matches!(mode, Mode::Long | Mode::User) {
        sregs.cr0 |= CR0_WP | CR0_AM | CR0_PG;
        sregs.cr3 = tables.0 + PAGE;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    sregs
}

/// The general registers that enter `mode` at `entry`. All are zero, except:
///
/// * RDI is the vCPU's number, and RSI the number of vCPUs.
/// * RSP is the top of the vCPU's stack. In real mode it is 0: the stack grows down from the end of the stack segment,
///   which is 0x1_0000 for the first vCPU.
/// * RFLAGS has bit 1 set, which is always one. In ring 3 IOPL is 3: some hosts check IOPL, and others the bitmap of
///   the task state, so both must allow all ports.
pub fn regs(mode: Mode, entry: Gpa, place: VcpuIndex) -> Regs {
    let rsp = if mode == Mode::Real { 0 } else { place.stack() };
    let (rdi, rsi) = (place.id.into(), place.of.into());
    let rflags = if mode == Mode::User { RFLAGS_ONE | RFLAGS_IOPL_3 } else { RFLAGS_ONE };
    Regs { rip: entry.0, rsp, rflags, rdi, rsi, ..Default::default() }
}

/// The special registers at the entry point of a Linux kernel: long mode, with the GDT and the page tables at these
/// addresses, or protected mode without paging (Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol" and "32-bit Boot
/// Protocol").
pub fn linux_sregs(reset: Sregs, mode: Mode, gdt: Gpa, page_tables: Gpa) -> Sregs {
    let mut sregs = reset;
    sregs.cs = linux_code(mode);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) =
        (LINUX_DATA, LINUX_DATA, LINUX_DATA, LINUX_DATA, LINUX_DATA);
    sregs.gdt = DescriptorTable { base: gdt.0, limit: 4 * 8 - 1 };
    sregs.idt = DescriptorTable::default();
    sregs.cr0 = CR0_PE | CR0_ET;
    if mode == Mode::Long {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = page_tables.0;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    sregs
}

/// The general registers at the entry of a Linux kernel: RSI holds the address of its `boot_params`.
pub fn linux_regs(entry: Gpa, boot_params: Gpa) -> Regs {
    Regs { rip: entry.0, rsi: boot_params.0, rflags: RFLAGS_ONE, ..Default::default() }
}

/// The bytes of a table's words, as they are stored in memory.
pub(crate) fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests;
