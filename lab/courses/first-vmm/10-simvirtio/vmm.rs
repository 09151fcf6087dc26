//! Chapter 10: a SIMVIRTIO device, which acts at each exit for its window.
//!
//! `./vmm IMAGE`

#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::mem::size_of;
use std::os::unix::io::OwnedFd;
use std::process::exit;
use std::{env, slice};

// The exit statuses of this program. 1 means that the host failed, and 2 a wrong command line.
const HALTED: i32 = 0;
const TRIPLE_FAULT: i32 = 3;
const UNEXPECTED_EXIT: i32 = 4;

// The addresses of SIMVIRTIO. The window begins where the memory of the guest ends, so each access to it is an exit.
const DEVICE_TABLE: usize = 0x1000a;
const TX_BUFFER: usize = 0x11000;
const WINDOW: u64 = 0x100000;
/// The length of a queue in bytes. It holds one byte less.
const QUEUE: u32 = 16;

const MAGIC: u32 = 0x7472_6976;
// The states of the device, and what the driver says.
const DEVICE_RESET: u8 = 0;
const DEVICE_CONFIG: u8 = 2;
const DEVICE_READY: u8 = 4;
const DEVICE_BROKEN: u8 = 0x40;
const DRIVER_ACK: u8 = 0;
const DRIVER_OK: u8 = 4;

/// The window. The fields have no gaps, and stand at the offsets that the protocol gives them.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Window {
    magic: u32,
    max_queue_len: u16,
    device_status: u8,
    driver_status: u8,
    queue_selector: u8,
    q0_ctl: u8,
    q1_ctl: u8,
    reserved: [u8; 5],
    tx_head: u32,
    tx_tail: u32,
    rx_head: u32,
    rx_tail: u32,
}

const WINDOW_SIZE: usize = size_of::<Window>();

impl Window {
    /// The bytes of the window.
    fn bytes(&mut self) -> &mut [u8; WINDOW_SIZE] {
        // SAFETY: all fields are numbers, so all bytes are valid, and there are no gaps between them.
        unsafe { &mut *(self as *mut Self).cast() }
    }
}

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
    window: Window,
    /// The device has taken an R, so that it may take a C.
    is_reset: bool,
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
    Ok(Machine { kvm, vm, vcpu, memory, run, window: Window::default(), is_reset: false })
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

/// Returns true if the driver may store there: to four bytes from driver_status on, and to tx_head and rx_tail.
fn may_store(offset: usize, length: usize) -> bool {
    (offset >= 7 && offset + length <= 11) || (length == 4 && (offset == 0x10 || offset == 0x1c))
}

impl Machine {
    /// Fills the fields that the driver reads first.
    fn create_device(&mut self) {
        //{
        //= // TODO 1: self.window has the magic and the length of a queue.
        //= let _ = (MAGIC, QUEUE, self.window.magic);
        self.window.magic = MAGIC;
        self.window.max_queue_len = QUEUE as u16;
        //}
    }

    /// Adds the device to the table in the guest's memory: 16 bits with the number of devices, and from 8 bytes after it
    /// 64 bits with the address of each one.
    fn add_to_table(&self) {
        self.memory.write(DEVICE_TABLE + 8, &WINDOW.to_le_bytes());
        self.memory.write(DEVICE_TABLE, &1u16.to_le_bytes());
    }

    /// Takes one byte that the driver has sent.
    fn take(&mut self, byte: u8) {
        //{
        //= // TODO 2: in the state DEVICE_READY each byte is text: print it. In other states:
        //= //   b'R'  the state is DEVICE_RESET, and self.is_reset is true;
        //= //   b'C'  in the state DEVICE_CONFIG: nothing changes. Otherwise, if self.is_reset is true and the driver has
        //= //         stored DRIVER_ACK: add_to_table, and then the state is DEVICE_CONFIG.
        //= // Everything else is a mistake of the driver: the state is DEVICE_BROKEN.
        //= let _ = (byte, self.is_reset, Self::add_to_table);
        //= let _ = (DEVICE_RESET, DEVICE_CONFIG, DEVICE_READY, DEVICE_BROKEN, DRIVER_ACK, DRIVER_OK);
        let (state, driver) = (self.window.device_status, self.window.driver_status);
        match byte {
            _ if state == DEVICE_READY => print(&[byte]),
            b'R' => {
                self.window.device_status = DEVICE_RESET;
                self.is_reset = true;
            }
            b'C' if state == DEVICE_CONFIG => {}
            b'C' if self.is_reset && driver == DRIVER_ACK => {
                self.add_to_table();
                self.window.device_status = DEVICE_CONFIG;
            }
            _ => self.window.device_status = DEVICE_BROKEN,
        }
        //}
    }

    /// Looks at the window after the driver has stored to it.
    fn serve(&mut self) {
        //{
        //= // TODO 3: a device in the state DEVICE_BROKEN does nothing. A tx_head that is not below QUEUE breaks it.
        //= // In the state DEVICE_CONFIG, DRIVER_OK makes the device DEVICE_READY.
        //= // Then take the bytes of the queue TX: while tx_tail is not tx_head, take the byte at TX_BUFFER + tx_tail
        //= // (self.memory.read) and move tx_tail. After the last slot comes slot 0.
        //= let _ = (TX_BUFFER, Self::take);
        if self.window.tx_head >= QUEUE {
            self.window.device_status = DEVICE_BROKEN;
        }
        if self.window.device_status == DEVICE_CONFIG && self.window.driver_status == DRIVER_OK {
            self.window.device_status = DEVICE_READY;
        }
        while self.window.device_status != DEVICE_BROKEN && self.window.tx_tail != self.window.tx_head {
            let byte = self.memory.read(TX_BUFFER + self.window.tx_tail as usize, 1)[0];
            self.take(byte);
            self.window.tx_tail = (self.window.tx_tail + 1) % QUEUE;
        }
        //}
    }

    /// Handles an access to an address without memory.
    fn access_address(&mut self) {
        let mmio = *self.mmio();
        let (offset, length) = (mmio.phys_addr.wrapping_sub(WINDOW), mmio.len as usize);
        if offset >= WINDOW_SIZE as u64 || length > WINDOW_SIZE - offset as usize {
            self.mmio().data.fill(0xff);
            return;
        }
        let offset = offset as usize;
        //{
        //= // TODO 4: a load copies `length` bytes of self.window.bytes() from `offset` on to self.mmio().data. A store
        //= // (mmio.is_write is not 0), if it is one that the driver may make (may_store), copies them to the window; then the
        //= // device looks at it (serve).
        //= let _ = (offset, may_store, Window::bytes);
        //= self.serve();
        if mmio.is_write == 0 {
            let bytes = *self.window.bytes();
            self.mmio().data[..length].copy_from_slice(&bytes[offset..offset + length]);
        } else if may_store(offset, length) {
            self.window.bytes()[offset..offset + length].copy_from_slice(&mmio.data[..length]);
            self.serve();
        }
        //}
    }

    /// Chapter 9: handles an access to a port. The console is the only device.
    fn access_port(&mut self) {
        // SAFETY: the last exit was KVM_EXIT_IO.
        let io = unsafe { self.exit().exit.io };
        if io.direction == KVM_EXIT_IO_IN {
            self.port_data().fill(0xff);
        } else if io.port == DEBUG_PORT {
            print(self.port_data());
        }
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
    machine.create_device();
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
