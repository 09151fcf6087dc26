//! Chapter 9: devices at ports and at addresses.
//!
//! `./vmm IMAGE`
//!
//! | place | device |
//! |---|---|
//! | port 0x30 | the sum: a write adds its value, and a read gives the low bytes of the sum |
//! | port 0x31 | the sequence: each element that is read is the next number: 0, 1, 2 and so on |
//! | port 0xe9 | the console: prints all bytes that are written |
//! | 0x200000 | the register: 8 bytes of memory, for loads and stores of 1, 2, 4 and 8 bytes at any offset |

#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::io::OwnedFd;
use std::process::exit;
use std::{env, slice};

// The exit statuses of this program. 1 means that the host failed, and 2 a wrong command line.
const HALTED: i32 = 0;
const TRIPLE_FAULT: i32 = 3;
const UNEXPECTED_EXIT: i32 = 4;

// The devices: two ports, and a range of addresses.
const SUM: u16 = 0x30;
const SEQUENCE: u16 = 0x31;
const REGISTER: u64 = 0x200000;
const REGISTER_SIZE: usize = 8;

// The memory of the guest: the image from 0x1000 on, the stack below 0xf0000, and the page tables from there on.
const MEMORY_SIZE: usize = 0x100000;
const ENTRY: usize = 0x1000;
const TABLES: usize = 0xf0000;
const PAGE: usize = 0x1000;
const DEBUG_PORT: u16 = 0xe9;

fn fail(subject: &str, reason: impl Display) -> ! {
    eprintln!("vmm: {subject}: {reason}");
    exit(1);
}

/// The machine: descriptors, the memory of the guest, and what KVM and this program share for the vCPU.
// Not all chapters use all descriptors, but they stay open as long as the machine.
#[allow(dead_code)]
struct Machine {
    kvm: File,
    vm: OwnedFd,
    vcpu: OwnedFd,
    memory: Memory,
    run: *mut kvm_run,
    /// The state of the devices.
    sum: u32,
    next_number: u32,
    register: [u8; REGISTER_SIZE],
}

/// Chapter 3: gives the guest `size` bytes of memory at a guest physical address.
fn add_memory(vm: &OwnedFd, slot: u32, address: u64, size: usize) -> io::Result<Memory> {
    let memory = Memory::new(size)?;
    let mut region = kvm_userspace_memory_region {
        slot,
        guest_phys_addr: address,
        memory_size: size as u64,
        userspace_addr: memory.address(),
        ..Default::default()
    };
    call_with(vm, KVM_SET_USER_MEMORY_REGION, &mut region)?;
    Ok(memory)
}

/// Chapters 2 to 4: the VM, its memory and its vCPU.
fn create_machine() -> io::Result<Machine> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let vm = descriptor(call(&kvm, KVM_CREATE_VM, 0)?);
    let memory = add_memory(&vm, 0, 0, MEMORY_SIZE)?;
    let vcpu = descriptor(call(&vm, KVM_CREATE_VCPU, 0)?);
    let size = call(&kvm, KVM_GET_VCPU_MMAP_SIZE, 0)?;
    let run = map_vcpu(&vcpu, size as usize)?;
    Ok(Machine { kvm, vm, vcpu, memory, run, sum: 0, next_number: 0, register: [0; REGISTER_SIZE] })
}

/// Chapter 7: a segment of 64-bit mode. Type 11 is code, and 3 is data.
fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment { selector, type_, present: 1, s: 1, g: 1, limit: 0xffffffff, ..Default::default() }
}

impl Machine {
    /// Chapter 5: copies the file into the memory of the guest, from ENTRY on.
    fn load(&self, name: &str) -> io::Result<()> {
        let image = fs::read(name)?;
        if image.is_empty() || image.len() > TABLES - ENTRY {
            fail(name, "it is empty or too large");
        }
        self.memory.write(ENTRY, &image);
        Ok(())
    }

    /// Chapter 7: page tables that map the first 4 GiB to themselves, in pages of 2 MiB.
    fn make_page_tables(&self) {
        let set = |index, entry| self.memory.write_u64(TABLES + index * 8, entry);
        set(0, (TABLES + PAGE) as u64 | 3);
        for i in 0..4 {
            set(512 + i, (TABLES + (2 + i) * PAGE) as u64 | 3);
        }
        for i in 0..4 * 512 {
            set(2 * 512 + i, (i as u64) << 21 | 0x83);
        }
    }

    /// Chapter 7: lets the vCPU start in long mode at ENTRY.
    fn set_long_mode(&self) -> io::Result<()> {
        let mut sregs = kvm_sregs::default();
        call_with(&self.vcpu, KVM_GET_SREGS, &mut sregs)?;
        sregs.cs = kvm_segment { l: 1, ..segment(8, 11) };
        let data = segment(16, 3);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.cr3 = TABLES as u64;
        sregs.cr4 |= 0x20; // PAE
        sregs.efer |= 0x500; // LME, LMA
        sregs.cr0 |= 0x80000001; // PG, PE
        call_with(&self.vcpu, KVM_SET_SREGS, &mut sregs)?;
        let mut regs = kvm_regs { rip: ENTRY as u64, rsp: TABLES as u64, rflags: 2, ..Default::default() };
        call_with(&self.vcpu, KVM_SET_REGS, &mut regs)?;
        Ok(())
    }

    /// The last exit, as KVM describes it. `exit_reason` tells which field of `exit` is valid.
    fn exit(&self) -> &kvm_run {
        // SAFETY: the mapping is never removed, and KVM does not use it while the vCPU has stopped.
        unsafe { &*self.run }
    }

    /// The data of KVM_EXIT_IO: `count` elements of `size` bytes.
    fn port_data(&mut self) -> &mut [u8] {
        // SAFETY: as in `exit`. The last exit was KVM_EXIT_IO, so KVM has made room for these bytes.
        unsafe {
            let io = (*self.run).exit.io;
            let start = self.run.cast::<u8>().add(io.data_offset as usize);
            slice::from_raw_parts_mut(start, usize::from(io.size) * io.count as usize)
        }
    }

    /// The details of KVM_EXIT_MMIO.
    fn mmio(&mut self) -> &mut kvm_run_mmio {
        // SAFETY: as in `exit`. The field has numbers only.
        unsafe { &mut (*self.run).exit.mmio }
    }
}

/// Prints to standard output.
fn print(bytes: &[u8]) {
    let mut output = io::stdout();
    if let Err(error) = output.write_all(bytes).and_then(|()| output.flush()) {
        fail("standard output", error);
    }
}

impl Machine {
    /// Returns what one element of a read at this port gives.
    fn read_port(&mut self, port: u16) -> u32 {
        //{
        //= // TODO 1: SUM gives self.sum. SEQUENCE gives self.next_number, and then counts.
        //= let _ = (SUM, SEQUENCE, self.sum, self.next_number);
        if port == SUM {
            return self.sum;
        }
        if port == SEQUENCE {
            self.next_number = self.next_number.wrapping_add(1);
            return self.next_number.wrapping_sub(1);
        }
        //}
        eprintln!("vmm: no device for a read at port {port:#x}");
        0xffffffff
    }

    /// Handles one element of a write at this port: a value of `size` bytes.
    fn write_port(&mut self, port: u16, value: u32, size: usize) {
        match port {
            //{
            //= // TODO 2: SUM adds the value (wrapping_add). DEBUG_PORT prints all bytes of the value, and not only the first.
            //= DEBUG_PORT => print(&value.to_le_bytes()[..1]),
            SUM => self.sum = self.sum.wrapping_add(value),
            DEBUG_PORT => print(&value.to_le_bytes()[..size]),
            //}
            _ => eprintln!("vmm: no device for a write of {size} bytes at port {port:#x}"),
        }
    }

    /// Handles an access to a port.
    fn access_port(&mut self) {
        // SAFETY: the last exit was KVM_EXIT_IO.
        let io = unsafe { self.exit().exit.io };
        //{
        //= // TODO 3: this handles one byte. An exit has io.count elements of io.size bytes (1, 2 or 4), one after the other in
        //= // self.port_data(). Hand each element to write_port, or fill it from read_port. Bytes of the value that an
        //= // element does not have must be 0.
        //= if io.direction == KVM_EXIT_IO_OUT {
        //=     let value = self.port_data()[0];
        //=     self.write_port(io.port, value.into(), 1);
        //= } else {
        //=     self.port_data()[0] = self.read_port(io.port) as u8;
        //= }
        let size = usize::from(io.size);
        for start in (0..io.count as usize).map(|element| element * size) {
            if io.direction == KVM_EXIT_IO_OUT {
                let mut value = [0; 4];
                value[..size].copy_from_slice(&self.port_data()[start..start + size]);
                self.write_port(io.port, u32::from_le_bytes(value), size);
            } else {
                let value = self.read_port(io.port).to_le_bytes();
                self.port_data()[start..start + size].copy_from_slice(&value[..size]);
            }
        }
        //}
    }

    /// Handles an access to an address without memory.
    fn access_address(&mut self) {
        let (address, length) = (self.mmio().phys_addr, self.mmio().len as usize);
        let offset = address.wrapping_sub(REGISTER);
        if offset >= REGISTER_SIZE as u64 || length > REGISTER_SIZE - offset as usize {
            eprintln!("vmm: no device for {length} bytes at {address:#x}");
            self.mmio().data.fill(0xff);
            return;
        }
        //{
        //= // TODO 4: a store (self.mmio().is_write is not 0) copies `length` bytes from the start of self.mmio().data to
        //= // self.register at `offset`. A load copies them from there.
        //= let _ = self.register;
        let range = offset as usize..offset as usize + length;
        if self.mmio().is_write != 0 {
            let data = self.mmio().data;
            self.register[range].copy_from_slice(&data[..length]);
        } else {
            let register = self.register;
            self.mmio().data[..length].copy_from_slice(&register[range]);
        }
        //}
    }

    /// Chapter 8: runs the guest until it ends. Returns the exit status of this program.
    fn run_guest(&mut self) -> io::Result<i32> {
        loop {
            match call(&self.vcpu, KVM_RUN, 0) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            };
            match self.exit().exit_reason {
                KVM_EXIT_HLT => return Ok(HALTED),
                KVM_EXIT_IO => self.access_port(),
                KVM_EXIT_MMIO => self.access_address(),
                KVM_EXIT_SHUTDOWN => {
                    eprintln!("vmm: the guest died of a triple fault");
                    return Ok(TRIPLE_FAULT);
                }
                reason => {
                    eprintln!("vmm: unexpected exit: reason {reason}");
                    return Ok(UNEXPECTED_EXIT);
                }
            }
        }
    }
}

fn run_image(image: &str) -> io::Result<i32> {
    let mut machine = create_machine()?;
    machine.load(image)?;
    machine.make_page_tables();
    machine.set_long_mode()?;
    machine.run_guest()
}

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    if words.len() != 1 {
        eprintln!("usage: vmm IMAGE");
        exit(2);
    }
    let image = &words[0];
    let status = run_image(image).unwrap_or_else(|error| fail(image, error));
    exit(status);
}
