//! Chapter 3: memory for the guest.
//!
//! `./vmm SIZE ADDRESS`: slot 0 has SIZE bytes at the guest physical address 0, slot 1 has 64 KiB at ADDRESS.

#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::io::OwnedFd;
use std::process::exit;

const PAGE: usize = 0x1000;
const SECOND_SIZE: usize = 0x10000;

fn fail(subject: &str, reason: impl Display) -> ! {
    eprintln!("vmm: {subject}: {reason}");
    exit(1);
}

/// Opens KVM, checks its version, and makes a VM.
fn create_vm() -> OwnedFd {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let kvm = kvm.unwrap_or_else(|error| fail("/dev/kvm", error));
    if !matches!(call(&kvm, KVM_GET_API_VERSION, 0), Ok(KVM_API_VERSION)) {
        fail("/dev/kvm", format!("this is not KVM with version {KVM_API_VERSION}"));
    }
    descriptor(call(&kvm, KVM_CREATE_VM, 0).unwrap_or_else(|error| fail("KVM_CREATE_VM", error)))
}

/// Allocates pages that only this program uses. They are zeroed. `Memory::new` calls mmap.
fn allocate(size: usize) -> Memory {
    Memory::new(size).unwrap_or_else(|error| fail("mmap", error))
}

/// Puts memory at a guest physical address.
fn set_slot(vm: &OwnedFd, slot: u32, address: u64, memory: Memory) -> io::Result<()> {
    //{
    //= let _ = (vm, slot, address, memory);
    //= // TODO: fill a kvm_userspace_memory_region: slot, guest_phys_addr, memory_size (memory.size() as u64), and
    //= // userspace_addr (memory.address()). The rest is ..Default::default().
    //= // TODO: call KVM_SET_USER_MEMORY_REGION on the VM: call_with(vm, request, &mut region). Return its error, or Ok(()).
    //= todo!()
    let mut region = kvm_userspace_memory_region {
        slot,
        guest_phys_addr: address,
        memory_size: memory.size() as u64,
        userspace_addr: memory.address(),
        ..Default::default()
    };
    call_with(vm, KVM_SET_USER_MEMORY_REGION, &mut region).map(|_| ())
    //}
}

/// Reads a number, such as 4096 or 0x1000.
fn number(text: Option<String>) -> usize {
    let text = text.unwrap_or_default();
    let result = match text.strip_prefix("0x") {
        Some(digits) => usize::from_str_radix(digits, 16),
        None => text.parse(),
    };
    result.unwrap_or_else(|_| fail("usage", "vmm SIZE ADDRESS"))
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let size = number(arguments.next());
    let address = number(arguments.next()) as u64;
    let vm = create_vm();

    set_slot(&vm, 0, 0, allocate(size)).unwrap_or_else(|error| fail("slot 0", error));
    //{
    //= // TODO: allocate SECOND_SIZE bytes, and make them slot 1 at address. If that fails, call fail("slot 1", error).
    //= let _ = (address, SECOND_SIZE);
    set_slot(&vm, 1, address, allocate(SECOND_SIZE)).unwrap_or_else(|error| fail("slot 1", error));
    //}

    // Two slots must not cover the same guest physical address.
    //{
    //= // TODO: try to put a new page (PAGE bytes) as slot 2 at the last page of slot 0. KVM refuses it: the kind() of the error
    //= // is io::ErrorKind::AlreadyExists. Then print "slot 2: refused" to stdout. Otherwise call fail with a message.
    //= let _ = PAGE;
    match set_slot(&vm, 2, (size - PAGE) as u64, allocate(PAGE)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => println!("slot 2: refused"),
        _ => fail("slot 2", "it was not refused as it should be"),
    }
    //}
}
