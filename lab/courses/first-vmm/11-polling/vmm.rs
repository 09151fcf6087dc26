//! Chapter 11: a SIMVIRTIO device in a thread, which looks at the window itself. The guest makes no exit for it.
//!
//! `./vmm IMAGE`

#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::io::OwnedFd;
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, slice, thread};

// The exit statuses of this program. 1 means that the host failed, and 2 a wrong command line.
const HALTED: i32 = 0;
const TRIPLE_FAULT: i32 = 3;
const UNEXPECTED_EXIT: i32 = 4;

// A write to this port ends the guest, with the status that it writes.
const EXIT_PORT: u16 = 0xf4;

// The addresses of SIMVIRTIO. The window begins where the first memory slot ends.
const DEVICE_TABLE: usize = 0x1000a;
const TX_BUFFER: usize = 0x11000;
const WINDOW: u64 = 0x100000;
/// The length of a queue in bytes. It holds one byte less.
const QUEUE: u32 = 16;
/// The time between two looks of the device. It is long here, so that the driver is always the faster one.
const NAP: Duration = Duration::from_millis(5);

const MAGIC: u32 = 0x7472_6976;
// The states of the device, and what the driver says.
const DEVICE_RESET: u8 = 0;
const DEVICE_CONFIG: u8 = 2;
const DEVICE_READY: u8 = 4;
const DEVICE_BROKEN: u8 = 0x40;
const DRIVER_ACK: u8 = 0;
const DRIVER_OK: u8 = 4;

// The offsets of the fields in the window.
const MAX_QUEUE_LEN: usize = 4;
const DEVICE_STATUS: usize = 6;
const DRIVER_STATUS: usize = 7;
const TX_HEAD: usize = 0x10;
const TX_TAIL: usize = 0x14;

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
    Ok(Machine { kvm, vm, vcpu, memory, run })
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
}

/// Prints to standard output.
fn print(bytes: &[u8]) {
    let mut output = io::stdout();
    if let Err(error) = output.write_all(bytes).and_then(|()| output.flush()) {
        fail("standard output", error);
    }
}

/// The device. Two threads use its window at the same time, so all accesses are atomic.
struct SimVirtio {
    memory: Memory,
    window: Memory,
    is_reset: bool,
}

impl SimVirtio {
    /// Makes the window and the device.
    fn new(machine: &Machine) -> io::Result<Self> {
        //{
        //= // TODO 1: this window is memory of the program, and the guest cannot reach it. Make it memory of the guest: one
        //= // page at WINDOW, in slot 1 of machine.vm (add_memory). Then an access makes no exit.
        //= let _ = WINDOW;
        //= let window = Memory::new(PAGE)?;
        let window = add_memory(&machine.vm, 1, WINDOW, PAGE)?;
        //}
        window.write(0, &MAGIC.to_le_bytes());
        window.write(MAX_QUEUE_LEN, &(QUEUE as u16).to_le_bytes());
        Ok(Self { memory: machine.memory, window, is_reset: false })
    }

    fn status(&self) -> u8 {
        self.window.u8_at(DEVICE_STATUS).load(Ordering::Acquire)
    }

    fn driver_status(&self) -> u8 {
        self.window.u8_at(DRIVER_STATUS).load(Ordering::Acquire)
    }

    fn set_status(&self, status: u8) {
        self.window.u8_at(DEVICE_STATUS).store(status, Ordering::Release);
    }

    /// Chapter 10: adds the device to the table in the guest's memory.
    fn add_to_table(&self) {
        self.memory.write(DEVICE_TABLE + 8, &WINDOW.to_le_bytes());
        self.memory.write(DEVICE_TABLE, &1u16.to_le_bytes());
    }

    /// Chapter 10: takes one byte that the driver has sent.
    fn take(&mut self, byte: u8) {
        match byte {
            _ if self.status() == DEVICE_READY => print(&[byte]),
            b'R' => {
                self.set_status(DEVICE_RESET);
                self.is_reset = true;
            }
            b'C' if self.status() == DEVICE_CONFIG => {}
            b'C' if self.is_reset && self.driver_status() == DRIVER_ACK => {
                self.add_to_table();
                self.set_status(DEVICE_CONFIG);
            }
            _ => self.set_status(DEVICE_BROKEN),
        }
    }

    /// Looks at the window once.
    fn serve(&mut self) {
        let mut tail = self.window.u32_at(TX_TAIL).load(Ordering::Relaxed);
        //{
        //= // TODO 2: load the number at TX_HEAD into `head`, with Ordering::Acquire. So all that the driver stored before its
        //= // head, the byte itself and driver_status, is seen after it.
        //= let _ = TX_HEAD;
        //= let head = tail;
        let head = self.window.u32_at(TX_HEAD).load(Ordering::Acquire);
        //}
        if head >= QUEUE || tail >= QUEUE {
            self.set_status(DEVICE_BROKEN);
        }
        if self.status() == DEVICE_CONFIG && self.driver_status() == DRIVER_OK {
            self.set_status(DEVICE_READY);
        }
        while self.status() != DEVICE_BROKEN && tail != head {
            let byte = self.memory.u8_at(TX_BUFFER + tail as usize).load(Ordering::Relaxed);
            self.take(byte);
            tail = (tail + 1) % QUEUE;
            //{
            //= // TODO 3: store `tail` at TX_TAIL, with Ordering::Release: what the byte has changed comes before it.
            self.window.u32_at(TX_TAIL).store(tail, Ordering::Release);
            //}
        }
    }

    /// The thread of the device. Returns the device when the guest has ended.
    fn poll(mut self, has_ended: &AtomicBool) -> Self {
        //{
        //= // TODO 4: call self.serve() again and again until has_ended.load(Ordering::Acquire) is true. Sleep after each look
        //= // (thread::sleep(NAP)), so that the thread does not need a whole processor.
        //= let _ = (has_ended, NAP, Self::serve);
        //= self.is_reset = false;
        while !has_ended.load(Ordering::Acquire) {
            self.serve();
            thread::sleep(NAP);
        }
        //}
        self
    }
}

impl Machine {
    /// Chapter 8: runs the guest until it ends. Returns the exit status of this program.
    fn run_guest(&mut self) -> io::Result<i32> {
        loop {
            match call(&self.vcpu, KVM_RUN, 0) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            };
            match self.exit().exit_reason {
                KVM_EXIT_HLT => return Ok(HALTED),
                KVM_EXIT_IO => {
                    // SAFETY: the last exit was KVM_EXIT_IO.
                    let io = unsafe { self.exit().exit.io };
                    match io.port {
                        EXIT_PORT if io.direction == KVM_EXIT_IO_OUT => return Ok(self.port_data()[0].into()),
                        DEBUG_PORT if io.direction == KVM_EXIT_IO_OUT => print(self.port_data()),
                        _ => {}
                    }
                }
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
    let device = SimVirtio::new(&machine)?;
    let has_ended = AtomicBool::new(false);
    thread::scope(|threads| {
        let poller = threads.spawn(|| device.poll(&has_ended));
        let status = machine.run_guest();
        has_ended.store(true, Ordering::Release);
        //{
        //= // TODO 5: the guest may end right after its last store. Wait for the thread (poller.join() gives back the device),
        //= // and then look at the window once more.
        //= drop(poller);
        if let Ok(mut device) = poller.join() {
            device.serve();
        }
        //}
        status
    })
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
