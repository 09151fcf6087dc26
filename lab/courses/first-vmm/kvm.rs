//! The interface of KVM for Rust programs without crates: numbers, structures and three calls.
//!
//! Names and layouts are those of `<linux/kvm.h>`, so that the kernel's documentation applies (Documentation/virt/kvm/api.rst).
//! Include this file with `#[path = "../kvm.rs"] mod kvm;`.
#![allow(dead_code, non_camel_case_types, non_upper_case_globals)]

use std::ffi::c_void;
use std::io;
use std::mem::size_of;
use std::os::raw::{c_int, c_long, c_ulong};
use std::os::unix::io::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicU8};

// ------------------------------------------------------------------------------------------------ system calls

extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn mmap(
        address: *mut c_void,
        size: usize,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        offset: c_long,
    ) -> *mut c_void;
    fn eventfd(value: u32, flags: c_int) -> c_int;
}

const PROT_READ: c_int = 1;
const PROT_WRITE: c_int = 2;
const MAP_SHARED: c_int = 1;
const MAP_PRIVATE: c_int = 2;
const MAP_ANONYMOUS: c_int = 0x20;

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Calls KVM with a number as the argument, such as `call(&kvm, KVM_CREATE_VM, 0)`.
pub fn call(fd: &impl AsRawFd, request: c_ulong, argument: c_ulong) -> io::Result<c_int> {
    assert!(size_in(request) == 0, "request {request:#x} takes a structure: use call_with");
    // SAFETY: the request takes no pointer.
    checked(unsafe { ioctl(fd.as_raw_fd(), request, argument) })
}

/// Calls KVM with a structure as the argument, such as `call_with(&vcpu, KVM_GET_REGS, &mut regs)`.
///
/// The structure must be the one of the request: its size is checked. KVM trusts the addresses in it. So the memory of a
/// `kvm_userspace_memory_region` must stay mapped as long as the VM exists, which [`Memory`] does.
pub fn call_with<T: Plain>(fd: &impl AsRawFd, request: c_ulong, argument: &mut T) -> io::Result<c_int> {
    const LISTS: [c_ulong; 5] =
        [KVM_GET_SUPPORTED_CPUID, KVM_SET_CPUID2, KVM_GET_MSRS, KVM_SET_MSRS, KVM_SET_SIGNAL_MASK];
    let (size, wanted) = (size_of::<T>(), size_in(request));
    assert!(
        size == wanted || LISTS.contains(&request) && size >= wanted,
        "request {request:#x} takes {wanted} bytes, not {size}"
    );
    // SAFETY: the structure is as large as the request says, and all values are valid for it.
    checked(unsafe { ioctl(fd.as_raw_fd(), request, argument as *mut T) })
}

/// Makes a descriptor of the result of KVM_CREATE_VM or KVM_CREATE_VCPU. It is closed when it goes out of scope.
pub fn descriptor(result: c_int) -> OwnedFd {
    assert!(result >= 0, "a descriptor is not negative");
    // SAFETY: KVM has just made this descriptor, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(result) }
}

/// Makes an eventfd: a counter of 64 bits that a thread can wait for by reading.
pub fn event() -> io::Result<OwnedFd> {
    // SAFETY: eventfd takes no pointer.
    checked(unsafe { eventfd(0, 0) }).map(descriptor)
}

/// Maps the first `size` bytes of the descriptor of a vCPU. A `kvm_run` is at the start. The mapping is never removed.
pub fn map_vcpu(vcpu: &impl AsRawFd, size: usize) -> io::Result<*mut kvm_run> {
    map(size, MAP_SHARED, vcpu.as_raw_fd()).map(<*mut u8>::cast)
}

fn map(size: usize, flags: c_int, fd: c_int) -> io::Result<*mut u8> {
    // SAFETY: the kernel chooses an address that is free.
    let address = unsafe { mmap(ptr::null_mut(), size, PROT_READ | PROT_WRITE, flags, fd, 0) };
    if address as isize == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(address.cast())
}

// ------------------------------------------------------------------------------------------------ guest memory

/// Memory for a guest: zeroed pages. They are never given back, so a guest can use them until the program ends.
#[derive(Clone, Copy)]
pub struct Memory {
    start: *mut u8,
    size: usize,
}

// SAFETY: all accesses are copies or atomic, and the pages stay mapped.
unsafe impl Send for Memory {}
unsafe impl Sync for Memory {}

impl Memory {
    /// Allocates `size` bytes, page by page.
    pub fn new(size: usize) -> io::Result<Self> {
        map(size, MAP_PRIVATE | MAP_ANONYMOUS, -1).map(|start| Self { start, size })
    }

    /// The address in this program, for `userspace_addr`.
    pub fn address(&self) -> u64 {
        self.start as u64
    }

    /// The size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    fn place(&self, offset: usize, size: usize) -> *mut u8 {
        let end = offset.checked_add(size);
        assert!(
            matches!(end, Some(end) if end <= self.size),
            "{offset:#x}+{size:#x} is outside of the memory of {:#x} bytes",
            self.size
        );
        // SAFETY: the offset is inside of the mapping.
        unsafe { self.start.add(offset) }
    }

    /// Copies bytes to an offset.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let place = self.place(offset, bytes.len());
        // SAFETY: `place` has checked the range, and the slice is not guest memory.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) }
    }

    /// Copies `size` bytes from an offset.
    pub fn read(&self, offset: usize, size: usize) -> Vec<u8> {
        let (place, mut bytes) = (self.place(offset, size), vec![0; size]);
        // SAFETY: `place` has checked the range, and the vector is not guest memory.
        unsafe { ptr::copy_nonoverlapping(place, bytes.as_mut_ptr(), size) };
        bytes
    }

    /// Writes a number of 64 bits, such as an entry of a page table.
    pub fn write_u64(&self, offset: usize, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }

    /// A byte that the guest and another thread may change at any time.
    pub fn u8_at(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: `place` has checked the range. All bytes are valid, and the pages are never unmapped.
        unsafe { &*self.place(offset, 1).cast() }
    }

    /// A number of 32 bits that the guest and another thread may change at any time. The offset is a multiple of 4.
    pub fn u32_at(&self, offset: usize) -> &AtomicU32 {
        assert!(offset % 4 == 0, "{offset:#x} is not a multiple of 4");
        // SAFETY: as for `u8_at`, and the address is aligned, because pages are.
        unsafe { &*self.place(offset, 4).cast() }
    }

    /// A number of 64 bits that the guest and another thread may change at any time. The offset is a multiple of 8.
    pub fn u64_at(&self, offset: usize) -> &AtomicU64 {
        assert!(offset % 8 == 0, "{offset:#x} is not a multiple of 8");
        // SAFETY: as for `u32_at`.
        unsafe { &*self.place(offset, 8).cast() }
    }
}

// ------------------------------------------------------------------------------------------------ numbers

const fn number(direction: c_ulong, index: c_ulong, size: usize) -> c_ulong {
    direction << 30 | (size as c_ulong) << 16 | 0xae << 8 | index
}
const fn size_in(request: c_ulong) -> usize {
    (request >> 16 & 0x3fff) as usize
}
const fn io(index: c_ulong) -> c_ulong {
    number(0, index, 0)
}
const fn iow<T>(index: c_ulong) -> c_ulong {
    number(1, index, size_of::<T>())
}
const fn ior<T>(index: c_ulong) -> c_ulong {
    number(2, index, size_of::<T>())
}
const fn iowr<T>(index: c_ulong) -> c_ulong {
    number(3, index, size_of::<T>())
}

/// The version of the interface since 2007.
pub const KVM_API_VERSION: c_int = 12;

// Calls on /dev/kvm.
pub const KVM_GET_API_VERSION: c_ulong = io(0x00);
pub const KVM_CREATE_VM: c_ulong = io(0x01);
pub const KVM_CHECK_EXTENSION: c_ulong = io(0x03);
pub const KVM_GET_VCPU_MMAP_SIZE: c_ulong = io(0x04);
pub const KVM_GET_SUPPORTED_CPUID: c_ulong = iowr::<kvm_cpuid2_header>(0x05);

// Calls on a VM.
pub const KVM_CREATE_VCPU: c_ulong = io(0x41);
pub const KVM_GET_DIRTY_LOG: c_ulong = iow::<kvm_dirty_log>(0x42);
pub const KVM_SET_USER_MEMORY_REGION: c_ulong = iow::<kvm_userspace_memory_region>(0x46);
pub const KVM_SET_TSS_ADDR: c_ulong = io(0x47);
pub const KVM_SET_IDENTITY_MAP_ADDR: c_ulong = iow::<u64>(0x48);
pub const KVM_CREATE_IRQCHIP: c_ulong = io(0x60);
pub const KVM_IRQ_LINE: c_ulong = iow::<kvm_irq_level>(0x61);
pub const KVM_REGISTER_COALESCED_MMIO: c_ulong = iow::<kvm_coalesced_mmio_zone>(0x67);
pub const KVM_UNREGISTER_COALESCED_MMIO: c_ulong = iow::<kvm_coalesced_mmio_zone>(0x68);
pub const KVM_IRQFD: c_ulong = iow::<kvm_irqfd>(0x76);
pub const KVM_CREATE_PIT2: c_ulong = iow::<kvm_pit_config>(0x77);
pub const KVM_IOEVENTFD: c_ulong = iow::<kvm_ioeventfd>(0x79);
pub const KVM_ENABLE_CAP: c_ulong = iow::<kvm_enable_cap>(0xa3);
pub const KVM_X86_SET_MSR_FILTER: c_ulong = iow::<kvm_msr_filter>(0xc6);
pub const KVM_GET_STATS_FD: c_ulong = io(0xce);

// Calls on a vCPU.
pub const KVM_RUN: c_ulong = io(0x80);
pub const KVM_GET_REGS: c_ulong = ior::<kvm_regs>(0x81);
pub const KVM_SET_REGS: c_ulong = iow::<kvm_regs>(0x82);
pub const KVM_GET_SREGS: c_ulong = ior::<kvm_sregs>(0x83);
pub const KVM_SET_SREGS: c_ulong = iow::<kvm_sregs>(0x84);
pub const KVM_TRANSLATE: c_ulong = iowr::<kvm_translation>(0x85);
pub const KVM_INTERRUPT: c_ulong = iow::<kvm_interrupt>(0x86);
pub const KVM_GET_MSRS: c_ulong = iowr::<kvm_msrs_header>(0x88);
pub const KVM_SET_MSRS: c_ulong = iow::<kvm_msrs_header>(0x89);
pub const KVM_SET_SIGNAL_MASK: c_ulong = iow::<u32>(0x8b);
pub const KVM_GET_FPU: c_ulong = ior::<kvm_fpu>(0x8c);
pub const KVM_SET_FPU: c_ulong = iow::<kvm_fpu>(0x8d);
pub const KVM_SET_CPUID2: c_ulong = iow::<kvm_cpuid2_header>(0x90);
pub const KVM_SET_GUEST_DEBUG: c_ulong = iow::<kvm_guest_debug>(0x9b);
pub const KVM_GET_MP_STATE: c_ulong = ior::<u32>(0x98);
pub const KVM_SET_MP_STATE: c_ulong = iow::<u32>(0x99);
pub const KVM_GET_VCPU_EVENTS: c_ulong = ior::<kvm_vcpu_events>(0x9f);
pub const KVM_SET_VCPU_EVENTS: c_ulong = iow::<kvm_vcpu_events>(0xa0);
pub const KVM_GET_TSC_KHZ: c_ulong = io(0xa3);

// Extensions, for KVM_CHECK_EXTENSION and KVM_ENABLE_CAP.
pub const KVM_CAP_IRQCHIP: u32 = 0;
pub const KVM_CAP_HLT: u32 = 1;
pub const KVM_CAP_USER_MEMORY: u32 = 3;
pub const KVM_CAP_EXT_CPUID: u32 = 7;
pub const KVM_CAP_NR_VCPUS: u32 = 9;
pub const KVM_CAP_NR_MEMSLOTS: u32 = 10;
pub const KVM_CAP_COALESCED_MMIO: u32 = 15;
pub const KVM_CAP_SET_GUEST_DEBUG: u32 = 23;
pub const KVM_CAP_IRQFD: u32 = 32;
pub const KVM_CAP_PIT2: u32 = 33;
pub const KVM_CAP_IOEVENTFD: u32 = 36;
pub const KVM_CAP_GET_TSC_KHZ: u32 = 61;
pub const KVM_CAP_MAX_VCPUS: u32 = 66;
pub const KVM_CAP_READONLY_MEM: u32 = 81;
pub const KVM_CAP_IMMEDIATE_EXIT: u32 = 136;
pub const KVM_CAP_COALESCED_PIO: u32 = 162;
pub const KVM_CAP_X86_USER_SPACE_MSR: u32 = 188;
pub const KVM_CAP_X86_MSR_FILTER: u32 = 189;
pub const KVM_CAP_BINARY_STATS_FD: u32 = 203;
pub const KVM_CAP_DISABLE_QUIRKS2: u32 = 213;

/// For KVM_CAP_DISABLE_QUIRKS2: KVM does not replace the hypercall instruction of the other processor maker.
pub const KVM_X86_QUIRK_FIX_HYPERCALL_INSN: u64 = 1 << 5;

// Reasons of exits.
pub const KVM_EXIT_UNKNOWN: u32 = 0;
pub const KVM_EXIT_EXCEPTION: u32 = 1;
pub const KVM_EXIT_IO: u32 = 2;
pub const KVM_EXIT_HYPERCALL: u32 = 3;
pub const KVM_EXIT_DEBUG: u32 = 4;
pub const KVM_EXIT_HLT: u32 = 5;
pub const KVM_EXIT_MMIO: u32 = 6;
pub const KVM_EXIT_IRQ_WINDOW_OPEN: u32 = 7;
pub const KVM_EXIT_SHUTDOWN: u32 = 8;
pub const KVM_EXIT_FAIL_ENTRY: u32 = 9;
pub const KVM_EXIT_INTR: u32 = 10;
pub const KVM_EXIT_INTERNAL_ERROR: u32 = 17;
pub const KVM_EXIT_SYSTEM_EVENT: u32 = 24;
pub const KVM_EXIT_X86_RDMSR: u32 = 29;
pub const KVM_EXIT_X86_WRMSR: u32 = 30;

// Values of `direction` in `kvm_run_io`.
pub const KVM_EXIT_IO_IN: u8 = 0;
pub const KVM_EXIT_IO_OUT: u8 = 1;

// Values of `suberror` in `kvm_run_internal`.
pub const KVM_INTERNAL_ERROR_EMULATION: u32 = 1;

// Flags of a memory slot.
pub const KVM_MEM_LOG_DIRTY_PAGES: u32 = 1;
pub const KVM_MEM_READONLY: u32 = 2;

// Flags of an ioeventfd.
pub const KVM_IOEVENTFD_FLAG_DATAMATCH: u32 = 1;
pub const KVM_IOEVENTFD_FLAG_PIO: u32 = 2;
pub const KVM_IOEVENTFD_FLAG_DEASSIGN: u32 = 4;

// MSR filters, and reasons of MSR exits.
pub const KVM_MSR_FILTER_READ: u32 = 1;
pub const KVM_MSR_FILTER_WRITE: u32 = 2;
pub const KVM_MSR_FILTER_DEFAULT_ALLOW: u32 = 0;
pub const KVM_MSR_FILTER_DEFAULT_DENY: u32 = 1;
pub const KVM_MSR_FILTER_MAX_RANGES: usize = 16;
pub const KVM_MSR_EXIT_REASON_INVAL: u32 = 1;
pub const KVM_MSR_EXIT_REASON_UNKNOWN: u32 = 2;
pub const KVM_MSR_EXIT_REASON_FILTER: u32 = 4;

// Guest debugging.
pub const KVM_GUESTDBG_ENABLE: u32 = 1;
pub const KVM_GUESTDBG_SINGLESTEP: u32 = 2;
pub const KVM_GUESTDBG_USE_SW_BP: u32 = 0x10000;
pub const KVM_GUESTDBG_USE_HW_BP: u32 = 0x20000;

// Values of `type_` in `kvm_run_system_event`.
pub const KVM_SYSTEM_EVENT_SHUTDOWN: u32 = 1;
pub const KVM_SYSTEM_EVENT_RESET: u32 = 2;
pub const KVM_SYSTEM_EVENT_CRASH: u32 = 3;

/// The speaker's port 0x61 belongs to the timer, for `kvm_pit_config`.
pub const KVM_PIT_SPEAKER_DUMMY: u32 = 1;

/// The value in an entry of CPUID whose leaf has subleaves.
pub const KVM_CPUID_FLAG_SIGNIFCANT_INDEX: u32 = 1;

// ------------------------------------------------------------------------------------------------ structures

/// A structure of numbers, for which all bytes are valid.
///
/// # Safety
/// The type has no references, no `bool`, no `enum`, and nothing else that excludes a value.
pub unsafe trait Plain: Sized + Copy {}
// SAFETY: these are numbers.
unsafe impl Plain for u32 {}
unsafe impl Plain for u64 {}

macro_rules! plain {
    ($($(#[$doc:meta])* pub $kind:ident $name:ident { $(pub $field:ident: $type:ty,)* })*) => { $(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub $kind $name { $(pub $field: $type,)* }
        // SAFETY: all fields are numbers, addresses, or structures of them.
        unsafe impl Plain for $name {}
        impl Default for $name {
            fn default() -> Self {
                // SAFETY: zero is a valid value of all fields.
                unsafe { std::mem::zeroed() }
            }
        }
    )* };
}

plain! {
    /// A memory slot: guest physical addresses, and the memory of this program that stands for them.
    pub struct kvm_userspace_memory_region {
        pub slot: u32,
        pub flags: u32,
        pub guest_phys_addr: u64,
        pub memory_size: u64,
        pub userspace_addr: u64,
    }

    /// The general registers.
    pub struct kvm_regs {
        pub rax: u64,
        pub rbx: u64,
        pub rcx: u64,
        pub rdx: u64,
        pub rsi: u64,
        pub rdi: u64,
        pub rsp: u64,
        pub rbp: u64,
        pub r8: u64,
        pub r9: u64,
        pub r10: u64,
        pub r11: u64,
        pub r12: u64,
        pub r13: u64,
        pub r14: u64,
        pub r15: u64,
        pub rip: u64,
        pub rflags: u64,
    }

    /// A segment register with its hidden part.
    pub struct kvm_segment {
        pub base: u64,
        pub limit: u32,
        pub selector: u16,
        pub type_: u8,
        pub present: u8,
        pub dpl: u8,
        pub db: u8,
        pub s: u8,
        pub l: u8,
        pub g: u8,
        pub avl: u8,
        pub unusable: u8,
        pub padding: u8,
    }

    /// The register of a descriptor table: GDTR or IDTR.
    pub struct kvm_dtable {
        pub base: u64,
        pub limit: u16,
        pub padding: [u16; 3],
    }

    /// The special registers: segments, control registers and EFER.
    pub struct kvm_sregs {
        pub cs: kvm_segment,
        pub ds: kvm_segment,
        pub es: kvm_segment,
        pub fs: kvm_segment,
        pub gs: kvm_segment,
        pub ss: kvm_segment,
        pub tr: kvm_segment,
        pub ldt: kvm_segment,
        pub gdt: kvm_dtable,
        pub idt: kvm_dtable,
        pub cr0: u64,
        pub cr2: u64,
        pub cr3: u64,
        pub cr4: u64,
        pub cr8: u64,
        pub efer: u64,
        pub apic_base: u64,
        pub interrupt_bitmap: [u64; 4],
    }

    /// The registers of the floating-point unit.
    pub struct kvm_fpu {
        pub fpr: [[u8; 16]; 8],
        pub fcw: u16,
        pub fsw: u16,
        pub ftwx: u8,
        pub pad1: u8,
        pub last_opcode: u16,
        pub last_ip: u64,
        pub last_dp: u64,
        pub xmm: [[u8; 16]; 16],
        pub mxcsr: u32,
        pub pad2: u32,
    }

    /// A linear address, and the guest physical address that it is mapped to.
    pub struct kvm_translation {
        pub linear_address: u64,
        pub physical_address: u64,
        pub valid: u8,
        pub writeable: u8,
        pub usermode: u8,
        pub pad: [u8; 5],
    }

    /// The vector of an interrupt, for a VM without KVM's interrupt controllers.
    pub struct kvm_interrupt {
        pub irq: u32,
    }

    /// The level of an interrupt line of KVM's interrupt controllers.
    pub struct kvm_irq_level {
        pub irq: u32,
        pub level: u32,
    }

    /// The timer of a PC (PIT).
    pub struct kvm_pit_config {
        pub flags: u32,
        pub pad: [u32; 15],
    }

    /// An eventfd whose writes raise an interrupt.
    pub struct kvm_irqfd {
        pub fd: u32,
        pub gsi: u32,
        pub flags: u32,
        pub resamplefd: u32,
        pub pad: [u8; 16],
    }

    /// An eventfd that a guest's write to an address or a port signals.
    pub struct kvm_ioeventfd {
        pub datamatch: u64,
        pub addr: u64,
        pub len: u32,
        pub fd: i32,
        pub flags: u32,
        pub pad: [u8; 36],
    }

    /// A range of addresses or ports (`pio` is 1) whose writes KVM collects in a ring.
    pub struct kvm_coalesced_mmio_zone {
        pub addr: u64,
        pub size: u32,
        pub pio: u32,
    }

    /// A write in the ring of collected writes.
    pub struct kvm_coalesced_mmio {
        pub phys_addr: u64,
        pub len: u32,
        pub pio: u32,
        pub data: [u8; 8],
    }

    /// The head of the ring of collected writes, in the page that KVM_CHECK_EXTENSION(KVM_CAP_COALESCED_MMIO) names.
    /// `kvm_coalesced_mmio` entries follow it.
    pub struct kvm_coalesced_mmio_ring {
        pub first: u32,
        pub last: u32,
    }

    /// An extension to switch on.
    pub struct kvm_enable_cap {
        pub cap: u32,
        pub flags: u32,
        pub args: [u64; 4],
        pub pad: [u8; 64],
    }

    /// A range of MSRs of a filter. `bitmap` is the address of a bit for each MSR: 1 allows it.
    pub struct kvm_msr_filter_range {
        pub flags: u32,
        pub nmsrs: u32,
        pub base: u32,
        pub bitmap: usize,
    }

    /// The MSRs that the guest may read and write without an exit.
    pub struct kvm_msr_filter {
        pub flags: u32,
        pub ranges: [kvm_msr_filter_range; KVM_MSR_FILTER_MAX_RANGES],
    }

    /// A result of the instruction CPUID.
    pub struct kvm_cpuid_entry2 {
        pub function: u32,
        pub index: u32,
        pub flags: u32,
        pub eax: u32,
        pub ebx: u32,
        pub ecx: u32,
        pub edx: u32,
        pub padding: [u32; 3],
    }

    /// The head of a list of CPUID results.
    pub struct kvm_cpuid2_header {
        pub nent: u32,
        pub padding: u32,
    }

    /// A list of up to 256 CPUID results. Set `nent` to 256 before KVM_GET_SUPPORTED_CPUID.
    pub struct kvm_cpuid2 {
        pub nent: u32,
        pub padding: u32,
        pub entries: [kvm_cpuid_entry2; 256],
    }

    /// A model-specific register.
    pub struct kvm_msr_entry {
        pub index: u32,
        pub reserved: u32,
        pub data: u64,
    }

    /// The head of a list of MSRs.
    pub struct kvm_msrs_header {
        pub nmsrs: u32,
        pub pad: u32,
    }

    /// A list of up to 16 MSRs.
    pub struct kvm_msrs {
        pub nmsrs: u32,
        pub pad: u32,
        pub entries: [kvm_msr_entry; 16],
    }

    /// The pages of a slot that were written to. `dirty_bitmap` is the address of a bit for each page.
    pub struct kvm_dirty_log {
        pub slot: u32,
        pub padding: u32,
        pub dirty_bitmap: u64,
    }

    /// Single steps and breakpoints. `debugreg` holds DR0 to DR7.
    pub struct kvm_guest_debug {
        pub control: u32,
        pub pad: u32,
        pub debugreg: [u64; 8],
    }

    /// Exceptions and interrupts that wait for the vCPU.
    pub struct kvm_vcpu_events {
        pub exception_injected: u8,
        pub exception_nr: u8,
        pub exception_has_error_code: u8,
        pub exception_pending: u8,
        pub exception_error_code: u32,
        pub interrupt_injected: u8,
        pub interrupt_nr: u8,
        pub interrupt_soft: u8,
        pub interrupt_shadow: u8,
        pub nmi_injected: u8,
        pub nmi_pending: u8,
        pub nmi_masked: u8,
        pub nmi_pad: u8,
        pub sipi_vector: u32,
        pub flags: u32,
        pub smi: [u8; 4],
        pub triple_fault: u8,
        pub reserved: [u8; 26],
        pub exception_has_payload: u8,
        pub exception_payload: u64,
    }

    /// KVM_EXIT_IO: an access to a port. The data stand `data_offset` bytes after the start of `kvm_run`.
    pub struct kvm_run_io {
        pub direction: u8,
        pub size: u8,
        pub port: u16,
        pub count: u32,
        pub data_offset: u64,
    }

    /// KVM_EXIT_MMIO: an access to an address without memory.
    pub struct kvm_run_mmio {
        pub phys_addr: u64,
        pub data: [u8; 8],
        pub len: u32,
        pub is_write: u8,
    }

    /// KVM_EXIT_HYPERCALL.
    pub struct kvm_run_hypercall {
        pub nr: u64,
        pub args: [u64; 6],
        pub ret: u64,
        pub flags: u64,
    }

    /// KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR. Set `error` to 1 for a #GP in the guest.
    pub struct kvm_run_msr {
        pub error: u8,
        pub pad: [u8; 7],
        pub reason: u32,
        pub index: u32,
        pub data: u64,
    }

    /// KVM_EXIT_FAIL_ENTRY: the processor refused the state of the vCPU.
    pub struct kvm_run_fail_entry {
        pub hardware_entry_failure_reason: u64,
        pub cpu: u32,
    }

    /// KVM_EXIT_INTERNAL_ERROR: KVM cannot go on.
    pub struct kvm_run_internal {
        pub suberror: u32,
        pub ndata: u32,
        pub data: [u64; 16],
    }

    /// KVM_EXIT_SYSTEM_EVENT.
    pub struct kvm_run_system_event {
        pub type_: u32,
        pub ndata: u32,
        pub data: [u64; 16],
    }

    /// KVM_EXIT_UNKNOWN.
    pub struct kvm_run_hw {
        pub hardware_exit_reason: u64,
    }

    /// KVM_EXIT_DEBUG.
    pub struct kvm_run_debug {
        pub exception: u32,
        pub pad: u32,
        pub pc: u64,
        pub dr6: u64,
        pub dr7: u64,
    }

    /// The details of an exit. `exit_reason` says which field is valid.
    pub union kvm_run_exit {
        pub hw: kvm_run_hw,
        pub fail_entry: kvm_run_fail_entry,
        pub io: kvm_run_io,
        pub debug: kvm_run_debug,
        pub mmio: kvm_run_mmio,
        pub hypercall: kvm_run_hypercall,
        pub internal: kvm_run_internal,
        pub system_event: kvm_run_system_event,
        pub msr: kvm_run_msr,
        pub padding: [u8; 256],
    }

    /// The memory that KVM and the VMM share for a vCPU.
    pub struct kvm_run {
        pub request_interrupt_window: u8,
        pub immediate_exit: u8,
        pub padding1: [u8; 6],
        pub exit_reason: u32,
        pub ready_for_interrupt_injection: u8,
        pub if_flag: u8,
        pub flags: u16,
        pub cr8: u64,
        pub apic_base: u64,
        pub exit: kvm_run_exit,
        pub kvm_valid_regs: u64,
        pub kvm_dirty_regs: u64,
        pub s: [u8; 2048],
    }
}
