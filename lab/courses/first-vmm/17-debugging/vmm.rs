// Chapter 17: debugging. Usage: ./vmm IMAGE [TEXT]
//
// The VMM loads the flat file IMAGE at 0x1000 and runs it in long mode. The guest prints bytes to port 0xE9 and ends
// with HLT. It reads TEXT byte by byte: bit 0 of port 0x10 says that a byte is there, and port 0x11 gives the next one,
// 0 at the end.
//
// This program is complete, but it has two mistakes. Find them.
#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::io::OwnedFd;

const RAM_SIZE: usize = 0x200000;
const ENTRY: usize = 0x1000;
const STACK: usize = 0x100000;
const PML4: usize = 0x1f0000;
const PDPT: usize = 0x1f1000;
const PD: usize = 0x1f2000;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
//{
const LARGE: u64 = 0x80;
//= #[allow(dead_code)]
//= const LARGE: u64 = 0x80;
//}
const STATUS: u16 = 0x10;
const DATA: u16 = 0x11;
const PRINT: u16 = 0xe9;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Machine {
    ram: Memory,
    _vm: OwnedFd,
    vcpu: OwnedFd,
    run: *mut kvm_run,
    text: VecDeque<u8>,
}

impl Machine {
    fn new(text: &str) -> Result<Self> {
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
        Ok(Self { ram, _vm: vm, vcpu, run, text: text.bytes().collect() })
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
            //{
            self.ram.write_u64(PD + i * 8, (i as u64) << 21 | LARGE | WRITABLE | PRESENT);
            //= self.ram.write_u64(PD + i * 8, (i as u64) << 21 | WRITABLE | PRESENT);
            //}
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

    // The value of a read from a port.
    fn port_read(&mut self, port: u16) -> u8 {
        match port {
            STATUS => 1,
            DATA => self.text.pop_front().unwrap_or(0),
            _ => 0,
        }
    }

    fn io(&mut self) -> Result<()> {
        // SAFETY: the reason of the exit says that `io` is valid.
        let io = unsafe { self.state().exit.io };
        let start = self.run.cast::<u8>().wrapping_add(io.data_offset as usize);
        let length = usize::from(io.size) * io.count as usize;
        // SAFETY: KVM has `length` bytes there, in the mapping of the vCPU, and nothing else uses them until KVM_RUN.
        let shared = unsafe { std::slice::from_raw_parts_mut(start, length) };
        let mut data = shared.to_vec();
        if io.direction == KVM_EXIT_IO_IN {
            for byte in &mut data {
                *byte = self.port_read(io.port);
            }
            //{
            shared.copy_from_slice(&data);
            //}
        } else if io.port == PRINT {
            io::stdout().write_all(&data)?;
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

fn start() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let (image, text) = match &arguments[..] {
        [_, image] => (image, ""),
        [_, image, text] => (image, text.as_str()),
        _ => return Err("usage: ./vmm IMAGE [TEXT]".into()),
    };
    let mut machine = Machine::new(text)?;
    machine.load(image)?;
    machine.set_page_tables();
    machine.set_registers()?;
    machine.run()
}

fn main() {
    if let Err(error) = start() {
        eprintln!("vmm: {error}");
        std::process::exit(1);
    }
}
