//! Chapter 12: counts the exits of a guest, and measures what they take.
//!
//! `./vmm IMAGE`
//!
//! The guest's own output goes to stderr here: the report is what counts.

#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::raw::c_int;
use std::os::unix::io::OwnedFd;
use std::process::exit;
use std::time::{Duration, Instant};
use std::{env, ptr, slice};

// The exit statuses of this program. 1 means that the host failed, and 2 a wrong command line.
const HALTED: i32 = 0;
const TRIPLE_FAULT: i32 = 3;
const UNEXPECTED_EXIT: i32 = 4;

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

/// The number of reasons for exits that are counted. The reasons of KVM are small numbers.
const REASONS: usize = 64;

/// The counts and times.
struct Report {
    /// Exits by reason.
    counts: [u64; REASONS],
    /// The time in KVM_RUN.
    in_kvm: Duration,
    /// The time in this program between two calls of KVM_RUN.
    in_vmm: Duration,
}

impl Report {
    /// Prints how many exits there were, of which reasons, and the mean times.
    fn print(&self) {
        //{
        //= // TODO 4: `exits` is the sum of `counts`.
        //= let exits: u64 = 0;
        let exits: u64 = self.counts.iter().sum();
        //}
        let count = |reason: u32| self.counts[reason as usize];
        println!("exits: {exits}");
        println!("IO: {}", count(KVM_EXIT_IO));
        println!("MMIO: {}", count(KVM_EXIT_MMIO));
        println!("HLT: {}", count(KVM_EXIT_HLT));
        if exits == 0 {
            return;
        }
        println!("in KVM_RUN: {} ns per exit", self.in_kvm.as_nanos() / u128::from(exits));
        println!("in the VMM: {} ns per exit", self.in_vmm.as_nanos() / u128::from(exits));
    }
}

/// Returns the time of a clock that never goes back.
fn now(origin: Instant) -> Duration {
    //{
    //= // TODO 1: origin.elapsed() is the time since `origin`. It is clock_gettime with CLOCK_MONOTONIC.
    //= let _ = origin;
    //= Duration::ZERO
    origin.elapsed()
    //}
}

impl Machine {
    /// Chapter 9: the debug port is the only device.
    fn access_port(&mut self) {
        // SAFETY: the last exit was KVM_EXIT_IO.
        let io = unsafe { self.exit().exit.io };
        if io.direction == KVM_EXIT_IO_IN {
            self.port_data().fill(0xff);
        } else if io.port == DEBUG_PORT {
            let _ = io::stderr().write_all(self.port_data());
        }
    }

    /// Handles the exit. Returns `None` if the guest goes on, and otherwise the exit status of this program.
    fn handle_exit(&mut self) -> Option<i32> {
        match self.exit().exit_reason {
            KVM_EXIT_HLT => return Some(HALTED),
            KVM_EXIT_IO => self.access_port(),
            KVM_EXIT_MMIO => self.mmio().data.fill(0xff),
            KVM_EXIT_SHUTDOWN => {
                eprintln!("vmm: the guest died of a triple fault");
                return Some(TRIPLE_FAULT);
            }
            reason => {
                eprintln!("vmm: unexpected exit: reason {reason}");
                return Some(UNEXPECTED_EXIT);
            }
        }
        None
    }

    /// Runs the guest until it ends. Returns the exit status of this program.
    fn run_guest(&mut self, report: &mut Report) -> io::Result<i32> {
        let origin = Instant::now();
        //{
        //= // TODO 2: below, count the exits in report.counts, by self.exit().exit_reason. A return of KVM_RUN with an
        //= // error, such as ErrorKind::Interrupted, does not count.
        //= // TODO 3: below, add the time in KVM_RUN to report.in_kvm, with that of calls which were interrupted. Add the
        //= // time from a return of KVM_RUN to the next call, or to the end, to report.in_vmm.
        //= let _ = (now(origin), &report);
        let mut entered = now(origin);
        //}
        loop {
            match call(&self.vcpu, KVM_RUN, 0) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            };
            //{
            //= // TODO 2 and 3: an exit has happened just now.
            let left = now(origin);
            report.in_kvm += left - entered;
            if let Some(count) = report.counts.get_mut(self.exit().exit_reason as usize) {
                *count += 1;
            }
            //}
            let status = self.handle_exit();
            //{
            //= // TODO 3: the exit is handled.
            entered = now(origin);
            report.in_vmm += entered - left;
            //}
            if let Some(status) = status {
                return Ok(status);
            }
        }
    }
}

extern "C" {
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn setitimer(which: c_int, value: *const [i64; 4], old: *mut [i64; 4]) -> c_int;
}

extern "C" fn ignore(_: c_int) {}

/// Chapter 8: makes KVM_RUN return every 5 ms: SIGALRM comes, and its handler does nothing.
fn start_signals() -> io::Result<()> {
    const SIGALRM: c_int = 14;
    const ITIMER_REAL: c_int = 0;
    // The time between two signals and that before the first one, each as seconds and microseconds.
    let every = [0, 5_000, 0, 5_000];
    // SAFETY: the handler does nothing, and the timer's value has the layout of `struct itimerval`.
    let failed = unsafe {
        signal(SIGALRM, ignore) == usize::MAX || setitimer(ITIMER_REAL, &every, ptr::null_mut()) < 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn run_image(image: &str) -> io::Result<i32> {
    let mut machine = create_machine()?;
    machine.load(image)?;
    machine.make_page_tables();
    machine.set_long_mode()?;
    start_signals()?;
    let mut report = Report { counts: [0; REASONS], in_kvm: Duration::ZERO, in_vmm: Duration::ZERO };
    let status = machine.run_guest(&mut report)?;
    report.print();
    Ok(status)
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
