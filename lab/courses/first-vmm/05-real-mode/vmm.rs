//! Chapter 5: a guest in real mode.
//!
//! `./vmm IMAGE` loads the file at 0x1000, and runs it there.

#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::io::OwnedFd;
use std::process::exit;

const MEMORY_SIZE: usize = 0x100000;
const ENTRY: usize = 0x1000;
const DEBUG_PORT: u16 = 0xe9;

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
    //{
    //= let _ = (vm, image);
    //= // TODO: copy the image into the memory with vm.memory.write(ENTRY, bytes). There is room for MEMORY_SIZE - ENTRY bytes.
    let size = image.len().min(MEMORY_SIZE - ENTRY);
    vm.memory.write(ENTRY, &image[..size]);
    //}
    Ok(())
}

/// Lets the vCPU start at ENTRY in real mode.
fn set_real_mode(vcpu: &Vcpu) -> io::Result<()> {
    let mut sregs = kvm_sregs::default();
    call_with(&vcpu.fd, KVM_GET_SREGS, &mut sregs)?;
    //{
    //= // TODO: set the base and the selector of sregs.cs to 0.
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    //}
    call_with(&vcpu.fd, KVM_SET_SREGS, &mut sregs)?;
    //{
    //= // TODO: fill a kvm_regs, and set it with KVM_SET_REGS: rip is ENTRY as u64, rflags is 2, rsp is ENTRY as u64, and the
    //= // rest is ..Default::default().
    let mut regs = kvm_regs { rip: ENTRY as u64, rflags: 2, rsp: ENTRY as u64, ..Default::default() };
    call_with(&vcpu.fd, KVM_SET_REGS, &mut regs)?;
    //}
    Ok(())
}

/// Prints what the guest writes to the debug port. Other ports have no device.
fn access_port(run: *const kvm_run) -> io::Result<()> {
    //{
    //= let _ = (run, DEBUG_PORT);
    //= // TODO: unsafe { (*run).exit.io } describes the access. If its direction is not KVM_EXIT_IO_OUT, or its port is not
    //= // DEBUG_PORT, call fail with a message.
    // SAFETY: the vCPU has stopped with KVM_EXIT_IO, so this field is valid.
    let io = unsafe { (*run).exit.io };
    if io.direction != KVM_EXIT_IO_OUT || io.port != DEBUG_PORT {
        fail("port", format!("{:#x} has no device", io.port));
    }
    //= // TODO: the data stand io.data_offset bytes after the start of run: io.count elements of io.size bytes. Make a slice of
    //= // all of them with std::slice::from_raw_parts(run.cast::<u8>().add(offset), length), and write it to stdout.
    //= io::stdout().flush()
    let length = usize::from(io.size) * io.count as usize;
    // SAFETY: KVM has put that many bytes there.
    let data = unsafe { std::slice::from_raw_parts(run.cast::<u8>().add(io.data_offset as usize), length) };
    io::stdout().write_all(data)
    //}
}

/// Runs the guest until it halts.
fn run(vcpu: &Vcpu) -> io::Result<()> {
    //{
    //= // TODO: call KVM_RUN again and again. After each call, look at unsafe { (*vcpu.run).exit_reason }:
    //= // - KVM_EXIT_IO: call access_port(vcpu.run);
    //= // - KVM_EXIT_HLT: return Ok(());
    //= // - anything else: call fail with the reason.
    //= let _ = access_port(vcpu.run);
    //= todo!()
    loop {
        call(&vcpu.fd, KVM_RUN, 0)?;
        // SAFETY: the mapping is never removed, and KVM_RUN does not run now.
        match unsafe { (*vcpu.run).exit_reason } {
            KVM_EXIT_IO => access_port(vcpu.run)?,
            KVM_EXIT_HLT => return Ok(()),
            reason => fail("unexpected exit", format!("reason {reason}")),
        }
    }
    //}
}

/// Makes the machine, and runs the guest in it.
fn run_guest(image: &str) -> io::Result<()> {
    let vm = create_vm()?;
    let vcpu = create_vcpu(&vm)?;
    load(&vm, image)?;
    set_real_mode(&vcpu)?;
    run(&vcpu)
}

fn main() {
    let image = std::env::args().nth(1).unwrap_or_else(|| fail("usage", "vmm IMAGE"));
    run_guest(&image).unwrap_or_else(|error| fail(&image, error));
}
