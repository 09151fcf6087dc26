//! Chapter 4: virtual processors, and the memory that each of them shares with KVM.
//!
//! `./vmm COUNT` makes COUNT vCPUs.

#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::io::OwnedFd;
use std::process::exit;

fn fail(subject: &str, reason: impl Display) -> ! {
    eprintln!("vmm: {subject}: {reason}");
    exit(1);
}

fn open_kvm() -> File {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let kvm = kvm.unwrap_or_else(|error| fail("/dev/kvm", error));
    if !matches!(call(&kvm, KVM_GET_API_VERSION, 0), Ok(KVM_API_VERSION)) {
        fail("/dev/kvm", format!("this is not KVM with version {KVM_API_VERSION}"));
    }
    kvm
}

fn create_vm(kvm: &File) -> OwnedFd {
    descriptor(call(kvm, KVM_CREATE_VM, 0).unwrap_or_else(|error| fail("KVM_CREATE_VM", error)))
}

/// A vCPU: its descriptor, and the memory that it shares with KVM.
struct Vcpu {
    fd: OwnedFd,
    run: *mut kvm_run,
}

/// Makes the vCPU with this number, and maps its `kvm_run`.
fn create_vcpu(kvm: &File, vm: &OwnedFd, number: u32) -> io::Result<Vcpu> {
    //{
    //= let _ = (kvm, vm, number);
    //= // TODO: call KVM_CREATE_VCPU on the VM with number.into(), and make an OwnedFd of the result with descriptor(result).
    let fd = descriptor(call(vm, KVM_CREATE_VCPU, number.into())?);
    //= // TODO: ask /dev/kvm for the size of the shared memory: KVM_GET_VCPU_MMAP_SIZE.
    let size = call(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)?;
    //= // TODO: map that many bytes: map_vcpu(&fd, size as usize). It calls mmap with MAP_SHARED. Return Ok(Vcpu { fd, run }).
    //= todo!()
    let run = map_vcpu(&fd, size as usize)?;
    Ok(Vcpu { fd, run })
    //}
}

/// Prints where the vCPU would execute its first instruction.
fn print_start(vcpu: &Vcpu, number: u32) -> io::Result<()> {
    let mut regs = kvm_regs::default();
    let mut sregs = kvm_sregs::default();
    //{
    //= let _ = (vcpu, &mut regs, &mut sregs);
    //= // TODO: read the registers with call_with and KVM_GET_REGS, and with call_with and KVM_GET_SREGS.
    call_with(&vcpu.fd, KVM_GET_REGS, &mut regs)?;
    call_with(&vcpu.fd, KVM_GET_SREGS, &mut sregs)?;
    //}
    println!("vCPU {number} starts at {:#x}", sregs.cs.base + regs.rip);
    Ok(())
}

/// Enters the vCPU, and leaves it at once: the guest executes nothing.
fn enter_and_leave(vcpu: &Vcpu, number: u32) {
    //{
    //= let _ = (vcpu, number);
    //= // TODO: set the field immediate_exit of the shared memory to 1: unsafe { (*vcpu.run).immediate_exit = 1 }.
    // SAFETY: the mapping is never removed, and KVM_RUN does not run now.
    unsafe { (*vcpu.run).immediate_exit = 1 };
    //= // TODO: call KVM_RUN. The kind() of its error is io::ErrorKind::Interrupted. Then print "vCPU 0 left at once" with the
    //= // vCPU's number. Otherwise call fail with a message.
    match call(&vcpu.fd, KVM_RUN, 0) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => println!("vCPU {number} left at once"),
        _ => fail("KVM_RUN", format!("vCPU {number} did not leave at once")),
    }
    //}
}

fn main() {
    let count = std::env::args().nth(1).map_or(Ok(1), |text| text.parse());
    let count: u32 = count.unwrap_or_else(|_| fail("usage", "vmm COUNT"));
    let kvm = open_kvm();
    let vm = create_vm(&kvm);

    for number in 0..count {
        let vcpu = create_vcpu(&kvm, &vm, number).unwrap_or_else(|error| fail("vCPU", error));
        print_start(&vcpu, number).unwrap_or_else(|error| fail("registers", error));
        enter_and_leave(&vcpu, number);
    }
}
