// Chapter 18: measuring. Usage: ./vmm IMAGE [TEXT]
//
// The VMM loads the flat file IMAGE at 0x1000 and runs it in long mode. TEXT is at 0x8000, with a zero byte at its end.
// The guest prints bytes to port 0xE9 and ends with HLT. It can also print a block of its memory: a 32-bit write to port
// 0x30 is the address of the block, and one to port 0x34 is its length, and prints it.
#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
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
const LARGE: u64 = 0x80;
const TEXT: usize = 0x8000;
const BLOCK_ADDRESS: u16 = 0x30;
const BLOCK_LENGTH: u16 = 0x34;
const PRINT: u16 = 0xe9;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Machine {
    ram: Memory,
    _vm: OwnedFd,
    vcpu: OwnedFd,
    run: *mut kvm_run,
    block_address: u32,
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
        Ok(Self { ram, _vm: vm, vcpu, run, block_address: 0 })
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

    // Prints a block of the guest's memory.
    fn print_block(&self, address: u32, length: u32) -> Result<()> {
        let (address, length) = (address as usize, length as usize);
        if length > RAM_SIZE || address > RAM_SIZE - length {
            return Err(
                format!("the block at {address:#x} with {length} bytes is outside of the memory").into()
            );
        }
        io::stdout().write_all(&self.ram.read(address, length))?;
        Ok(())
    }

    fn port_write(&mut self, port: u16, bytes: &[u8]) -> Result<()> {
        match (port, bytes) {
            (PRINT, [byte]) => io::stdout().write_all(&[*byte])?,
            //{
            (BLOCK_ADDRESS, &[a, b, c, d]) => self.block_address = u32::from_le_bytes([a, b, c, d]),
            (BLOCK_LENGTH, &[a, b, c, d]) => {
                self.print_block(self.block_address, u32::from_le_bytes([a, b, c, d]))?
            }
            //= // TODO 1: A 4-byte write to BLOCK_ADDRESS is the address of a block: keep it in self.block_address. A 4-byte
            //= // write to BLOCK_LENGTH is its length: call self.print_block. u32::from_le_bytes makes a number of 4 bytes.
            //= (BLOCK_ADDRESS | BLOCK_LENGTH, _) => {
            //=     let _ = (Self::print_block, self.block_address);
            //= }
            //}
            _ => {}
        }
        Ok(())
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

fn start() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let (image, text) = match &arguments[..] {
        [_, image] => (image, ""),
        [_, image, text] => (image, text.as_str()),
        _ => return Err("usage: ./vmm IMAGE [TEXT]".into()),
    };
    let mut machine = Machine::new()?;
    machine.load(image)?;
    if text.len() >= 4096 {
        return Err("TEXT must be shorter than 4096 bytes".into());
    }
    machine.ram.write(TEXT, text.as_bytes());
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
