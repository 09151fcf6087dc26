// Chapter 19: security. Usage: ./vmm IMAGE
//
// The VMM loads the flat file IMAGE at 0x1000 and runs it in long mode. The guest prints bytes to port 0xE9 and ends
// with HLT. It has a device that copies memory: a 32-bit write to port 0x40 is the address of a request of 24 bytes.
//
// A guest is hostile. If it asks for something that is not allowed, the VMM says so on stderr, and ends with status 1.
#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::io::OwnedFd;
use std::thread;
use std::time::Duration;

const RAM_SIZE: usize = 0x200000;
const ENTRY: usize = 0x1000;
const STACK: usize = 0x100000;
const PML4: usize = 0x1f0000;
const PDPT: usize = 0x1f1000;
const PD: usize = 0x1f2000;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const LARGE: u64 = 0x80;
const COPY: u16 = 0x40;
const PRINT: u16 = 0xe9;
// The most bytes that a guest may print, and the most time that it may run.
const OUTPUT_LIMIT: usize = 0x400;
const TIME_LIMIT: Duration = Duration::from_secs(2);
// The parts of a request, which has 24 bytes: source and destination (8 bytes each), length and is_done (4 bytes each).
const REQUEST: usize = 24;
const IS_DONE: usize = 20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Machine {
    ram: Memory,
    _vm: OwnedFd,
    vcpu: OwnedFd,
    run: *mut kvm_run,
    printed: usize,
}

impl Machine {
    fn new() -> Result<Self> {
        let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
        let vm = descriptor(call(&kvm, KVM_CREATE_VM, 0)?);
        let ram = Memory::new(RAM_SIZE)?;
        let mut slot = kvm_userspace_memory_region {
            memory_size: RAM_SIZE as u64,
            userspace_addr: ram.address(),
            ..Default::default()
        };
        call_with(&vm, KVM_SET_USER_MEMORY_REGION, &mut slot)?;
        let vcpu = descriptor(call(&vm, KVM_CREATE_VCPU, 0)?);
        let size = call(&kvm, KVM_GET_VCPU_MMAP_SIZE, 0)? as usize;
        let run = map_vcpu(&vcpu, size)?;
        Ok(Self { ram, _vm: vm, vcpu, run, printed: 0 })
    }

    // The memory that KVM and this program share for the vCPU.
    fn state(&mut self) -> &mut kvm_run {
        // SAFETY: the mapping is never removed, and KVM changes it only during KVM_RUN.
        unsafe { &mut *self.run }
    }

    fn load(&self, path: &str) -> Result<()> {
        let image = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
        if image.is_empty() || image.len() > STACK - 0x1000 - ENTRY {
            return Err(format!("{path} must have 1 to {} bytes", STACK - 0x1000 - ENTRY).into());
        }
        self.ram.write(ENTRY, &image);
        Ok(())
    }

    // One table of each level: the first GiB is mapped one to one, with pages of 2 MiB.
    fn set_page_tables(&self) {
        self.ram.write_u64(PML4, PDPT as u64 | WRITABLE | PRESENT);
        self.ram.write_u64(PDPT, PD as u64 | WRITABLE | PRESENT);
        for i in 0..512 {
            self.ram.write_u64(PD + i * 8, (i as u64) << 21 | LARGE | WRITABLE | PRESENT);
        }
    }

    fn set_registers(&self) -> Result<()> {
        let mut sregs = kvm_sregs::default();
        call_with(&self.vcpu, KVM_GET_SREGS, &mut sregs)?;
        let all = kvm_segment { limit: !0, present: 1, s: 1, g: 1, ..Default::default() };
        sregs.cs = kvm_segment { selector: 8, type_: 11, l: 1, ..all };
        let data = kvm_segment { selector: 16, type_: 3, db: 1, ..all };
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            *segment = data;
        }
        sregs.cr3 = PML4 as u64;
        sregs.cr4 = 1 << 5;
        sregs.cr0 = 0x80000011;
        sregs.efer = 1 << 8 | 1 << 10;
        call_with(&self.vcpu, KVM_SET_SREGS, &mut sregs)?;
        let mut regs = kvm_regs { rip: ENTRY as u64, rsp: STACK as u64, rflags: 2, ..Default::default() };
        call_with(&self.vcpu, KVM_SET_REGS, &mut regs)?;
        Ok(())
    }

    // Copies memory of the guest, and reports that in the request. The request lies in the guest's memory, so it can change
    // at any time.
    fn copy(&mut self, address: u32) -> Result<()> {
        let address = address as usize;
        //{
        if !is_inside(address as u64, REQUEST as u64) {
            return Err("a request is outside of its memory".into());
        }
        let request = self.ram.read(address, REQUEST);
        let (source, destination, length) =
            (number(&request[..8]), number(&request[8..16]), number(&request[16..20]));
        if !is_inside(source, length) || !is_inside(destination, length) {
            return Err("a request for memory that it does not have".into());
        }
        let bytes = self.ram.read(source as usize, length as usize);
        self.ram.write(destination as usize, &bytes);
        //= // TODO 2: This code trusts the guest. The request, its source and its destination may be outside of the memory:
        //= // return an error then, because Memory panics. And the request may change while it is performed, because the
        //= // destination may be the request itself: copy its REQUEST bytes first, check the copy, and use nothing but the
        //= // copy.
        //= let mut i = 0;
        //= while i < number(&self.ram.read(address + 16, 4)) as usize {
        //=     let byte = self.ram.read(number(&self.ram.read(address, 8)) as usize + i, 1);
        //=     self.ram.write(number(&self.ram.read(address + 8, 8)) as usize + i, &byte);
        //=     i += 1;
        //= }
        //= let _ = (is_inside, REQUEST);
        //}
        self.ram.write(address + IS_DONE, &1_u32.to_le_bytes());
        Ok(())
    }

    fn print(&mut self, byte: u8) -> Result<()> {
        //{
        if self.printed == OUTPUT_LIMIT {
            return Err("it has printed too much".into());
        }
        self.printed += 1;
        //= // TODO 3: After OUTPUT_LIMIT bytes, return an error instead of printing more: self.printed counts them.
        //= let _ = (OUTPUT_LIMIT, self.printed);
        //}
        io::stdout().write_all(&[byte])?;
        Ok(())
    }

    fn port_write(&mut self, port: u16, bytes: &[u8]) -> Result<()> {
        match (port, bytes) {
            (PRINT, [byte]) => self.print(*byte),
            (COPY, &[a, b, c, d]) => self.copy(u32::from_le_bytes([a, b, c, d])),
            _ => Ok(()),
        }
    }

    fn io(&mut self) -> Result<()> {
        // SAFETY: the reason of the exit says that `io` is valid.
        let io = unsafe { self.state().exit.io };
        let start = self.run.cast::<u8>().wrapping_add(io.data_offset as usize);
        let length = usize::from(io.size) * io.count as usize;
        // SAFETY: KVM has `length` bytes there, in the mapping of the vCPU, and nothing else uses them until KVM_RUN.
        let data = unsafe { std::slice::from_raw_parts_mut(start, length) };
        if io.direction == KVM_EXIT_IO_IN {
            data.fill(0);
            return Ok(());
        }
        for bytes in data.chunks(io.size.into()) {
            self.port_write(io.port, bytes)?;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        loop {
            call(&self.vcpu, KVM_RUN, 0)?;
            let reason = self.state().exit_reason;
            match reason {
                KVM_EXIT_IO => self.io()?,
                KVM_EXIT_HLT => return Ok(()),
                _ => {
                    eprintln!("vmm: unexpected exit, reason {reason}");
                    std::process::exit(2);
                }
            }
        }
    }
}

// The number in these bytes, the lowest first.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

// Says if a range is inside of the guest's memory.
fn is_inside(address: u64, size: u64) -> bool {
    //{
    size <= RAM_SIZE as u64 && address <= RAM_SIZE as u64 - size
    //= // TODO 1: This sum can overflow: then a range that is far outside seems to be inside.
    //= address.wrapping_add(size) <= RAM_SIZE as u64
    //}
}

// Ends a guest that runs too long.
fn start_clock() {
    //{
    thread::spawn(|| {
        thread::sleep(TIME_LIMIT);
        refuse("it has run too long");
    });
    //= // TODO 4: Start a thread that sleeps for TIME_LIMIT and then calls refuse().
    //= let _ = (thread::sleep, TIME_LIMIT);
    //}
}

fn refuse(why: &str) -> ! {
    eprintln!("vmm: the guest was ended: {why}");
    std::process::exit(1);
}

fn start() -> Result<Machine> {
    let path = std::env::args().nth(1).ok_or("usage: ./vmm IMAGE")?;
    let machine = Machine::new()?;
    machine.load(&path)?;
    machine.set_page_tables();
    machine.set_registers()?;
    Ok(machine)
}

fn main() {
    match start() {
        Err(error) => {
            eprintln!("vmm: {error}");
            std::process::exit(1);
        }
        Ok(mut machine) => {
            start_clock();
            if let Err(why) = machine.run() {
                refuse(&why.to_string());
            }
        }
    }
}
