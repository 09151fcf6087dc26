//! Chapter 7: a guest in long mode, with page tables.
//!
//! `./vmm IMAGE` loads the file at 0x1000, and runs it there as 64-bit code.

#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::io::OwnedFd;
use std::process::exit;

const MEMORY_SIZE: usize = 0x400000;
const ENTRY: usize = 0x1000;
const DEBUG_PORT: u16 = 0xe9;

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 0x80000000;
const CR4_PAE: u64 = 0x20;
const EFER_LME: u64 = 0x100;
const EFER_LMA: u64 = 0x400;
const TYPE_CODE: u8 = 11;
const TYPE_DATA: u8 = 3;

// The page tables stand behind the code. Each has 512 entries of 8 bytes.
const PML4: u64 = 0x10000;
const PDPT: u64 = 0x11000;
const PD_LOW: u64 = 0x12000;
const PD_HIGH: u64 = 0x13000;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const LARGE_PAGE: u64 = 0x80;
const LARGE_PAGE_SIZE: u64 = 0x200000;

fn fail(subject: &str, reason: impl Display) -> ! {
    eprintln!("vmm: {subject}: {reason}");
    exit(1);
}

struct Vm {
    kvm: File,
    fd: OwnedFd,
    memory: Memory,
}

struct Vcpu {
    fd: OwnedFd,
    run: *mut kvm_run,
}

/// Makes a VM with MEMORY_SIZE bytes at the guest physical address 0.
fn create_vm() -> io::Result<Vm> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let fd = descriptor(call(&kvm, KVM_CREATE_VM, 0)?);
    let memory = Memory::new(MEMORY_SIZE)?;
    let mut region = kvm_userspace_memory_region {
        memory_size: MEMORY_SIZE as u64,
        userspace_addr: memory.address(),
        ..Default::default()
    };
    call_with(&fd, KVM_SET_USER_MEMORY_REGION, &mut region)?;
    Ok(Vm { kvm, fd, memory })
}

fn create_vcpu(vm: &Vm) -> io::Result<Vcpu> {
    let fd = descriptor(call(&vm.fd, KVM_CREATE_VCPU, 0)?);
    let size = call(&vm.kvm, KVM_GET_VCPU_MMAP_SIZE, 0)?;
    let run = map_vcpu(&fd, size as usize)?;
    Ok(Vcpu { fd, run })
}

/// Copies the file into the memory of the guest, from ENTRY on.
fn load(vm: &Vm, name: &str) -> io::Result<()> {
    let image = fs::read(name)?;
    let size = image.len().min(MEMORY_SIZE - ENTRY);
    vm.memory.write(ENTRY, &image[..size]);
    Ok(())
}

/// Writes an entry of the table at this guest physical address.
fn set_entry(vm: &Vm, table: u64, index: u64, entry: u64) {
    vm.memory.write_u64((table + index * 8) as usize, entry);
}

/// Maps the memory at the virtual address 0, and its second half at 1 GiB, too.
fn make_page_tables(vm: &Vm) {
    //{
    //= let _ = (vm, set_entry, PDPT, PD_LOW, PD_HIGH, PRESENT, WRITABLE, LARGE_PAGE, LARGE_PAGE_SIZE);
    //= // TODO: PML4[0] leads to PDPT. An entry is an address, PRESENT and WRITABLE: set_entry(vm, PML4, 0, PDPT | ...).
    set_entry(vm, PML4, 0, PDPT | PRESENT | WRITABLE);
    //= // TODO: PDPT[0] leads to PD_LOW, and PDPT[1] to PD_HIGH.
    set_entry(vm, PDPT, 0, PD_LOW | PRESENT | WRITABLE);
    set_entry(vm, PDPT, 1, PD_HIGH | PRESENT | WRITABLE);
    //= // TODO: PD_LOW[0] is a large page (LARGE_PAGE) at the physical address 0, and PD_LOW[1] one at LARGE_PAGE_SIZE.
    set_entry(vm, PD_LOW, 0, LARGE_PAGE | PRESENT | WRITABLE);
    set_entry(vm, PD_LOW, 1, LARGE_PAGE_SIZE | LARGE_PAGE | PRESENT | WRITABLE);
    //= // TODO: PD_HIGH[0] is a large page at the physical address LARGE_PAGE_SIZE.
    set_entry(vm, PD_HIGH, 0, LARGE_PAGE_SIZE | LARGE_PAGE | PRESENT | WRITABLE);
    //}
}

/// A segment of 64-bit mode. Its base and its limit do not count.
fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment { selector, type_, present: 1, s: 1, g: 1, limit: 0xffffffff, ..Default::default() }
}

/// Lets the vCPU start in long mode.
fn set_long_mode(vcpu: &Vcpu) -> io::Result<()> {
    let mut sregs = kvm_sregs::default();
    call_with(&vcpu.fd, KVM_GET_SREGS, &mut sregs)?;
    sregs.cs = segment(8, TYPE_CODE);
    let data = segment(16, TYPE_DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    //{
    //= let _ = (PML4, CR4_PAE, EFER_LME, EFER_LMA, CR0_PE, CR0_PG);
    //= // TODO: set the field l of sregs.cs to 1: it holds 64-bit code.
    sregs.cs.l = 1;
    //= // TODO: set sregs.cr3 to the address of the first table, PML4.
    sregs.cr3 = PML4;
    //= // TODO: set the bit CR4_PAE in sregs.cr4, EFER_LME and EFER_LMA in sregs.efer, CR0_PE and CR0_PG in sregs.cr0.
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LME | EFER_LMA;
    sregs.cr0 |= CR0_PE | CR0_PG;
    //}
    call_with(&vcpu.fd, KVM_SET_SREGS, &mut sregs)?;
    Ok(())
}

fn set_registers(vcpu: &Vcpu) -> io::Result<()> {
    let mut regs = kvm_regs { rip: ENTRY as u64, rflags: 2, rsp: MEMORY_SIZE as u64, ..Default::default() };
    call_with(&vcpu.fd, KVM_SET_REGS, &mut regs)?;
    Ok(())
}

/// Prints what the guest writes to the debug port. Other ports have no device.
fn access_port(run: *const kvm_run) -> io::Result<()> {
    // SAFETY: the vCPU has stopped with KVM_EXIT_IO, so this field is valid.
    let io = unsafe { (*run).exit.io };
    if io.direction != KVM_EXIT_IO_OUT || io.port != DEBUG_PORT {
        fail("port", format!("{:#x} has no device", io.port));
    }
    let length = usize::from(io.size) * io.count as usize;
    // SAFETY: KVM has put that many bytes there.
    let data = unsafe { std::slice::from_raw_parts(run.cast::<u8>().add(io.data_offset as usize), length) };
    io::stdout().write_all(data)
}

/// Runs the guest until it halts.
fn run(vcpu: &Vcpu) -> io::Result<()> {
    loop {
        call(&vcpu.fd, KVM_RUN, 0)?;
        // SAFETY: the mapping is never removed, and KVM_RUN does not run now.
        match unsafe { (*vcpu.run).exit_reason } {
            KVM_EXIT_IO => access_port(vcpu.run)?,
            KVM_EXIT_HLT => return Ok(()),
            reason => fail("unexpected exit", format!("reason {reason}")),
        }
    }
}

/// Makes the machine, and runs the guest in it.
fn run_guest(image: &str) -> io::Result<()> {
    let vm = create_vm()?;
    let vcpu = create_vcpu(&vm)?;
    load(&vm, image)?;
    make_page_tables(&vm);
    set_long_mode(&vcpu)?;
    set_registers(&vcpu)?;
    run(&vcpu)
}

fn main() {
    let image = std::env::args().nth(1).unwrap_or_else(|| fail("usage", "vmm IMAGE"));
    run_guest(&image).unwrap_or_else(|error| fail(&image, error));
}
