//! Chapter 2: a program that opens KVM and makes a virtual machine.
//!
//! `./vmm [DEVICE]`: DEVICE is /dev/kvm if it is left out.

#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::os::unix::io::OwnedFd;
use std::process::exit;

/// Ends the program with status 1 and a message, such as "vmm: /dev/kvm: Permission denied".
fn fail(subject: &str, reason: impl Display) -> ! {
    eprintln!("vmm: {subject}: {reason}");
    exit(1);
}

/// Opens the device.
fn open_kvm(device: &str) -> File {
    //{
    //= // TODO: open the device for reading and writing: OpenOptions::new().read(true).write(true).open(device).
    //= // TODO: if that returns an error, call fail(device, error).
    //= let _ = (OpenOptions::new(), device);
    //= todo!()
    let result = OpenOptions::new().read(true).write(true).open(device);
    result.unwrap_or_else(|error| fail(device, error))
    //}
}

/// Checks that the device speaks the version of the interface that this program knows, and prints the version.
fn check_version(kvm: &File, device: &str) {
    //{
    //= let _ = (kvm, device);
    //= // TODO: call KVM_GET_API_VERSION: call(kvm, KVM_GET_API_VERSION, 0). If it returns an error, the device is not KVM:
    //= // call fail(device, error).
    let version = call(kvm, KVM_GET_API_VERSION, 0).unwrap_or_else(|error| fail(device, error));
    //= // TODO: if the version is not KVM_API_VERSION, call fail with a message.
    if version != KVM_API_VERSION {
        fail(device, format!("version {version} of KVM's interface, not {KVM_API_VERSION}"));
    }
    //= // TODO: print "KVM API version 12" to stdout, with the number that KVM has returned.
    println!("KVM API version {version}");
    //}
}

/// Checks that KVM takes memory of this program, and prints the number of memory slots.
fn check_extensions(kvm: &File) {
    //{
    //= let _ = kvm;
    //= // TODO: call KVM_CHECK_EXTENSION with KVM_CAP_USER_MEMORY.into(). If the result is 0, call fail with a message.
    let extension = |cap: u32| call(kvm, KVM_CHECK_EXTENSION, cap.into()).unwrap_or(0);
    if extension(KVM_CAP_USER_MEMORY) <= 0 {
        fail("KVM", "the extension KVM_CAP_USER_MEMORY is missing");
    }
    //= // TODO: call KVM_CHECK_EXTENSION with KVM_CAP_NR_MEMSLOTS.into(), and print the result as "memory slots: 509".
    println!("memory slots: {}", extension(KVM_CAP_NR_MEMSLOTS));
    //}
}

/// Makes a virtual machine.
fn create_vm(kvm: &File) -> OwnedFd {
    //{
    //= let _ = kvm;
    //= // TODO: call KVM_CREATE_VM with the argument 0. If it returns an error, call fail("KVM_CREATE_VM", error).
    //= // TODO: make an OwnedFd of the result with descriptor(result), and return it.
    //= todo!()
    let result = call(kvm, KVM_CREATE_VM, 0).unwrap_or_else(|error| fail("KVM_CREATE_VM", error));
    descriptor(result)
    //}
}

fn main() {
    let device = std::env::args().nth(1).unwrap_or("/dev/kvm".to_string());
    let kvm = open_kvm(&device);
    check_version(&kvm, &device);
    check_extensions(&kvm);
    create_vm(&kvm);
}
