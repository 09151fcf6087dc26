//! Chapter 6: a guest in protected mode.
//!
//! `./vmm IMAGE` loads the file at 0x1000, and runs it there as 32-bit code.

#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::io::OwnedFd;
use std::process::exit;

const MEMORY_SIZE: usize = 0x200000;
const ENTRY: usize = 0x1000;
const DEBUG_PORT: u16 = 0xe9;

const CR0_PE: u64 = 1;
const TYPE_CODE: u8 = 11;
const TYPE_DATA: u8 = 3;

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

/// A segment from 0 to 4 GiB. The type says if it holds code or data.
fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        selector,
        type_,
        //{
        //= // TODO: set present and s to 1. Set db to 1 for 32-bit code. The base is 0.
        //= // TODO: set limit to 0xffffffff, and g to 1, because the limit counts pages.
        present: 1,
        s: 1,
        db: 1,
        base: 0,
        limit: 0xffffffff,
        g: 1,
        //}
        ..Default::default()
    }
}

/// Lets the vCPU start in protected mode.
fn set_protected_mode(vcpu: &Vcpu) -> io::Result<()> {
    let mut sregs = kvm_sregs::default();
    call_with(&vcpu.fd, KVM_GET_SREGS, &mut sregs)?;
    //{
    //= let _ = (flat_segment(8, TYPE_CODE), TYPE_DATA, CR0_PE);
    //= // TODO: set sregs.cs to a flat segment with the selector 8 and TYPE_CODE.
    sregs.cs = flat_segment(8, TYPE_CODE);
    //= // TODO: set ds, es, fs, gs and ss to a flat segment with the selector 16 and TYPE_DATA.
    let data = flat_segment(16, TYPE_DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    //= // TODO: set the bit CR0_PE in sregs.cr0. Keep the other bits.
    sregs.cr0 |= CR0_PE;
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
    set_protected_mode(&vcpu)?;
    set_registers(&vcpu)?;
    run(&vcpu)
}

fn main() {
    let image = std::env::args().nth(1).unwrap_or_else(|| fail("usage", "vmm IMAGE"));
    run_guest(&image).unwrap_or_else(|error| fail(&image, error));
}
