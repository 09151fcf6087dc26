//! Chapter 8: a loop that has an answer for each exit.
//!
//! `./vmm [--step] IMAGE`

#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::raw::c_int;
use std::os::unix::io::OwnedFd;
use std::process::exit;
use std::{env, ptr, slice};

// The exit statuses of this program. 1 means that the host failed, and 2 a wrong command line.
const HALTED: i32 = 0;
const TRIPLE_FAULT: i32 = 3;
const ENTRY_FAILED: i32 = 4;
const KVM_FAILED: i32 = 5;
const UNKNOWN_EXIT: i32 = 6;

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
    /// Handles an access to a port.
    fn access_port(&mut self) {
        // SAFETY: the last exit was KVM_EXIT_IO.
        let io = unsafe { self.exit().exit.io };
        if io.direction == KVM_EXIT_IO_OUT && io.port == DEBUG_PORT {
            print(self.port_data());
            return;
        }
        //{
        //= // TODO 1: no other port has a device. A read must give the guest bytes of 0xff: fill self.port_data() with them.
        //= // A write has no effect. Say on stderr which port it was. Then the guest goes on.
        if io.direction == KVM_EXIT_IO_IN {
            self.port_data().fill(0xff);
        }
        eprintln!("vmm: no device at port {:#x}", io.port);
        //}
    }

    /// Handles an access to an address without memory.
    fn access_address(&mut self) {
        //{
        //= // TODO 2: the same for self.mmio(): a read (is_write is 0) must find bytes of 0xff in its `data`. The address is
        //= // its `phys_addr`.
        //= let _ = self.mmio();
        let mmio = self.mmio();
        if mmio.is_write == 0 {
            mmio.data.fill(0xff);
        }
        eprintln!("vmm: no memory and no device at {:#x}", mmio.phys_addr);
        //}
    }

    /// Runs the guest until it ends. Returns the exit status of this program.
    fn run_guest(&mut self) -> io::Result<i32> {
        loop {
            let result = call(&self.vcpu, KVM_RUN, 0);
            //{
            //= // TODO 3: a signal can come at any time. KVM_RUN then fails with ErrorKind::Interrupted, and the guest has to go
            //= // on.
            //= let _ = ErrorKind::Interrupted;
            if matches!(&result, Err(error) if error.kind() == ErrorKind::Interrupted) {
                continue;
            }
            //}
            result?;
            //{
            //= // TODO 4: handle KVM_EXIT_IO (access_port) and KVM_EXIT_MMIO (access_address), after which the guest goes on;
            //= // KVM_EXIT_SHUTDOWN (return TRIPLE_FAULT), KVM_EXIT_FAIL_ENTRY (return ENTRY_FAILED) and
            //= // KVM_EXIT_INTERNAL_ERROR (return KVM_FAILED), each with its own message on stderr. Each other exit is
            //= // UNKNOWN_EXIT, and the message has its number. A field of self.exit().exit, such as `internal`, is read in
            //= // `unsafe`.
            //= let _ = (TRIPLE_FAULT, ENTRY_FAILED, KVM_FAILED, UNKNOWN_EXIT);
            //= match self.exit().exit_reason {
            //=     KVM_EXIT_IO => self.access_port(),
            //=     KVM_EXIT_HLT => {}
            //=     _ => self.access_address(),
            //= }
            //= return Ok(HALTED);
            match self.exit().exit_reason {
                KVM_EXIT_HLT => return Ok(HALTED),
                KVM_EXIT_IO => self.access_port(),
                KVM_EXIT_MMIO => self.access_address(),
                KVM_EXIT_SHUTDOWN => {
                    eprintln!("vmm: the guest died of a triple fault");
                    return Ok(TRIPLE_FAULT);
                }
                KVM_EXIT_FAIL_ENTRY => {
                    // SAFETY: the exit reason says that this field is valid.
                    let reason = unsafe { self.exit().exit.fail_entry.hardware_entry_failure_reason };
                    eprintln!("vmm: the processor does not enter the guest: reason {reason:#x}");
                    return Ok(ENTRY_FAILED);
                }
                KVM_EXIT_INTERNAL_ERROR => {
                    // SAFETY: the exit reason says that this field is valid.
                    let suberror = unsafe { self.exit().exit.internal.suberror };
                    eprintln!("vmm: KVM cannot go on: suberror {suberror}");
                    return Ok(KVM_FAILED);
                }
                reason => {
                    eprintln!("vmm: unknown exit: reason {reason}");
                    return Ok(UNKNOWN_EXIT);
                }
            }
            //}
        }
    }

    /// Makes an exit after each instruction, which this VMM does not know: KVM_EXIT_DEBUG. Chapter 17 uses it.
    fn step(&self) -> io::Result<()> {
        let mut debug =
            kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, ..Default::default() };
        call_with(&self.vcpu, KVM_SET_GUEST_DEBUG, &mut debug)?;
        Ok(())
    }
}

extern "C" {
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn setitimer(which: c_int, value: *const [i64; 4], old: *mut [i64; 4]) -> c_int;
}

extern "C" fn ignore(_: c_int) {}

/// Makes KVM_RUN return every 10 ms: SIGALRM comes, and its handler does nothing.
fn start_signals() -> io::Result<()> {
    const SIGALRM: c_int = 14;
    const ITIMER_REAL: c_int = 0;
    // The time between two signals and that before the first one, each as seconds and microseconds.
    let every = [0, 10_000, 0, 10_000];
    // SAFETY: the handler does nothing, and the timer's value has the layout of `struct itimerval`.
    let failed = unsafe {
        signal(SIGALRM, ignore) == usize::MAX || setitimer(ITIMER_REAL, &every, ptr::null_mut()) < 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn run_image(image: &str, steps: bool) -> io::Result<i32> {
    let mut machine = create_machine()?;
    machine.load(image)?;
    machine.make_page_tables();
    machine.set_long_mode()?;
    if steps {
        machine.step()?;
    }
    start_signals()?;
    machine.run_guest()
}

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let (image, steps) = match &words[..] {
        [image] => (image, false),
        [option, image] if option == "--step" => (image, true),
        _ => {
            eprintln!("usage: vmm [--step] IMAGE");
            exit(2);
        }
    };
    let status = run_image(image, steps).unwrap_or_else(|error| fail(image, error));
    exit(status);
}
