//! KeV's project 2 on Linux and KVM: a virtual machine monitor whose guests communicate by VM exits. README.md says which part
//! earns which points.
//!
//!     ./vmm kev-port|kev-ports|kev-strings|kev-mmio|kev-cpuid|kev-msr|kev-msr-fault

mod kvm;

use kvm::*;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::io::OwnedFd;
use std::process::ExitCode;

const MEM_SIZE: usize = 0x100000;
/// The guest is here, and begins at its first byte.
const GUEST_ADDRESS: usize = 0x1000;
/// The guest leaves its result here, and in RAX.
const RESULT_ADDRESS: usize = 0x400;
const RESULT: u64 = 42;

// The devices of the project.
const CONSOLE_PORT: u16 = 0xe9;
const FIFO_PORT: u16 = 0xbb;
const CONSTANT_PORT: u16 = 3;
const CONSTANT: u32 = 0x600d_cafe;
const FIFO_MSR: u32 = 0xabc;
const PRINTER_ADDRESS: u64 = 0xcafe_0000;

// The registers of the printer, each of 8 bytes.
const AT_TEXT: usize = 0;
const AT_LENGTH: usize = 8;
const AT_RESULT: usize = 16;
const PRINTER_SIZE: usize = 24;
/// The answer of the printer to a text outside of the guest's memory.
const EFAULT: u64 = 14;

static GUESTS: [(&str, &[u8]); 7] = [
    ("kev-port", include_bytes!("guests/kev-port.bin")),
    ("kev-ports", include_bytes!("guests/kev-ports.bin")),
    ("kev-strings", include_bytes!("guests/kev-strings.bin")),
    ("kev-mmio", include_bytes!("guests/kev-mmio.bin")),
    ("kev-cpuid", include_bytes!("guests/kev-cpuid.bin")),
    ("kev-msr", include_bytes!("guests/kev-msr.bin")),
    ("kev-msr-fault", include_bytes!("guests/kev-msr-fault.bin")),
];

/// An error is a sentence.
type Result<T> = std::result::Result<T, String>;

/// Says which step has failed.
fn need<T>(result: io::Result<T>, step: &str) -> Result<T> {
    result.map_err(|error| format!("{step} failed: {error}"))
}

/// A queue: what was pushed first is popped first.
#[derive(Default)]
struct Fifo(VecDeque<u64>);

impl Fifo {
    /// Adds an element. It is lost if the queue is full.
    fn push(&mut self, element: u64) {
        if self.0.len() < 65536 {
            self.0.push_back(element);
        }
    }

    /// Takes the oldest element. An empty queue gives all ones.
    fn pop(&mut self) -> u64 {
        self.0.pop_front().unwrap_or(u64::MAX)
    }
}

struct Vmm {
    sys: File,
    vm: OwnedFd,
    vcpu: OwnedFd,
    mem: Memory,
    /// The memory that KVM and this program share. It is valid until the program ends.
    kvm_run: *mut kvm_run,
    /// The queues at FIFO_PORT: for 1, 2 and 4 bytes.
    fifos: [Fifo; 3],
    /// The queue behind FIFO_MSR.
    msr_fifo: Fifo,
    printer: [u8; PRINTER_SIZE],
}

impl Vmm {
    fn create() -> Result<Self> {
        let sys = need(File::options().read(true).write(true).open("/dev/kvm"), "open /dev/kvm")?;
        if need(call(&sys, KVM_GET_API_VERSION, 0), "KVM_GET_API_VERSION")? != KVM_API_VERSION {
            return Err(format!("KVM must have version {KVM_API_VERSION}"));
        }
        let vm = descriptor(need(call(&sys, KVM_CREATE_VM, 0), "KVM_CREATE_VM")?);
        need(call(&vm, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR")?;
        let mem = need(Memory::new(MEM_SIZE), "mmap")?;
        let mut region = kvm_userspace_memory_region {
            memory_size: MEM_SIZE as u64,
            userspace_addr: mem.address(),
            ..Default::default()
        };
        need(call_with(&vm, KVM_SET_USER_MEMORY_REGION, &mut region), "KVM_SET_USER_MEMORY_REGION")?;
        let size = need(call(&sys, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE")?;
        let vcpu = descriptor(need(call(&vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU")?);
        let kvm_run = need(map_vcpu(&vcpu, size as usize), "mmap of kvm_run")?;
        let (fifos, msr_fifo, printer) = Default::default();
        Ok(Self { sys, vm, vcpu, mem, kvm_run, fifos, msr_fifo, printer })
    }

    /// Long mode. The page tables map the first 4 GiB to themselves. The GDT is for the handlers of exceptions.
    fn setup_long_mode(&self) -> Result<()> {
        const GDT: usize = 0x7000;
        const PML4: usize = 0x8000;
        const PDPT: usize = 0x9000;
        const PD: usize = 0xa000;
        let gdt = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
        for (n, entry) in gdt.iter().enumerate() {
            self.mem.write_u64(GDT + n * 8, *entry);
        }
        self.mem.write_u64(PML4, PDPT as u64 | 3);
        for n in 0..4 {
            self.mem.write_u64(PDPT + n * 8, (PD + n * 4096) as u64 | 3);
        }
        for n in 0..4 * 512 {
            self.mem.write_u64(PD + n * 8, (n as u64) << 21 | 0x83);
        }
        let mut sregs = kvm_sregs::default();
        need(call_with(&self.vcpu, KVM_GET_SREGS, &mut sregs), "KVM_GET_SREGS")?;
        sregs.cr3 = PML4 as u64;
        sregs.cr4 = 1 << 5;
        sregs.cr0 = 0x8000_0001;
        sregs.efer = 0x500;
        sregs.gdt = kvm_dtable { base: GDT as u64, limit: 23, padding: [0; 3] };
        let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
        let data = kvm_segment { selector: 16, type_: 3, db: 1, ..flat };
        sregs.cs = kvm_segment { selector: 8, type_: 11, l: 1, ..flat };
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            *segment = data;
        }
        need(call_with(&self.vcpu, KVM_SET_SREGS, &mut sregs), "KVM_SET_SREGS")?;
        let (rip, rsp) = (GUEST_ADDRESS as u64, MEM_SIZE as u64);
        let mut regs = kvm_regs { rip, rflags: 2, rsp, ..Default::default() };
        need(call_with(&self.vcpu, KVM_SET_REGS, &mut regs), "KVM_SET_REGS")?;
        Ok(())
    }

    /// Decides what the instruction CPUID returns.
    fn set_cpuid(&self) -> Result<()> {
        //{
        //= // TODO 5: Make a kvm_cpuid2 with nent 256. KVM_GET_SUPPORTED_CPUID on self.sys fills it with what the host can do. In
        //= // the entry whose function is 1, the upper 8 bits of ebx are the number of the processor: replace the host's by 0,
        //= // the number of the vCPU. Set bit 31 of ecx: it says that there is a hypervisor. Then call KVM_SET_CPUID2 on
        //= // self.vcpu.
        let mut cpuid = Box::new(kvm_cpuid2 { nent: 256, ..Default::default() });
        need(call_with(&self.sys, KVM_GET_SUPPORTED_CPUID, &mut *cpuid), "KVM_GET_SUPPORTED_CPUID")?;
        for entry in cpuid.entries.iter_mut().filter(|entry| entry.function == 1) {
            entry.ebx &= 0x00ff_ffff;
            entry.ecx |= 1 << 31;
        }
        need(call_with(&self.vcpu, KVM_SET_CPUID2, &mut *cpuid), "KVM_SET_CPUID2")?;
        //}
        Ok(())
    }

    /// Asks KVM for an exit at each access to the MSRs FIFO_MSR and FIFO_MSR + 1.
    fn filter_msrs(&self) -> Result<()> {
        //{
        //= // TODO 6.1: Enable KVM_CAP_X86_USER_SPACE_MSR (KVM_ENABLE_CAP on self.vm) with args[0] = KVM_MSR_EXIT_REASON_FILTER:
        //= // an access that a filter denies is then an exit, and no exception. Then call KVM_X86_SET_MSR_FILTER on self.vm. The
        //= // filter has KVM_MSR_FILTER_DEFAULT_ALLOW in its flags. Its first range is for KVM_MSR_FILTER_READ |
        //= // KVM_MSR_FILTER_WRITE, and has 2 MSRs from FIFO_MSR on. Its bitmap, whose address is a usize, has a bit for each:
        //= // 0 denies. KVM reads 8 bytes of the bitmap.
        let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
        cap.args[0] = KVM_MSR_EXIT_REASON_FILTER.into();
        need(call_with(&self.vm, KVM_ENABLE_CAP, &mut cap), "KVM_CAP_X86_USER_SPACE_MSR")?;
        let bitmap: u64 = 0;
        let mut filter = kvm_msr_filter { flags: KVM_MSR_FILTER_DEFAULT_ALLOW, ..Default::default() };
        filter.ranges[0] = kvm_msr_filter_range {
            flags: KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
            nmsrs: 2,
            base: FIFO_MSR,
            bitmap: &bitmap as *const u64 as usize,
        };
        need(call_with(&self.vm, KVM_X86_SET_MSR_FILTER, &mut filter), "KVM_X86_SET_MSR_FILTER")?;
        //}
        Ok(())
    }

    /// Runs the guest until it halts.
    fn run(&mut self) -> Result<()> {
        loop {
            need(call(&self.vcpu, KVM_RUN, 0), "KVM_RUN")?;
            // SAFETY: the mapping is valid, and KVM writes it only in KVM_RUN.
            match unsafe { (*self.kvm_run).exit_reason } {
                KVM_EXIT_HLT => return Ok(()),
                KVM_EXIT_IO => self.handle_io()?,
                KVM_EXIT_MMIO => self.handle_mmio()?,
                KVM_EXIT_X86_RDMSR => self.handle_msr(false),
                KVM_EXIT_X86_WRMSR => self.handle_msr(true),
                reason => return Err(format!("unexpected exit: reason {reason}")),
            }
        }
    }

    fn handle_io(&mut self) -> Result<()> {
        // SAFETY: KVM_EXIT_IO makes this field valid.
        let io = unsafe { (*self.kvm_run).exit.io };
        let (is_out, size) = (io.direction == KVM_EXIT_IO_OUT, usize::from(io.size));
        // SAFETY: KVM has put the data into the mapping, at this offset. The devices do not touch the mapping.
        let data = unsafe {
            let start = self.kvm_run.cast::<u8>().add(io.data_offset as usize);
            std::slice::from_raw_parts_mut(start, size * io.count as usize)
        };
        //{
        //= // TODO 3: A string instruction, such as rep insb, can have several elements in one exit. Call self.handle_port() for
        //= // each of them: they stand in data one after the other, and each has `size` bytes.
        //= self.handle_port(io.port, is_out, &mut data[..size])
        for element in data.chunks_mut(size) {
            self.handle_port(io.port, is_out, element)?;
        }
        Ok(())
        //}
    }

    /// Handles an access of 1, 2 or 4 bytes to a port. `data` has the bytes that the guest writes, or gets those that it reads.
    fn handle_port(&mut self, port: u16, is_out: bool, data: &mut [u8]) -> Result<()> {
        let size = data.len();
        let fifo = &mut self.fifos[size / 2];
        if !is_out {
            data.fill(0xff);
        }
        //{
        //= // TODO 1: If the guest writes to CONSOLE_PORT, print the bytes with write_all on io::stdout().
        if port == CONSOLE_PORT && is_out {
            need(io::stdout().write_all(data), "write")?;
        }
        //}
        //{
        //= // TODO 2: FIFO_PORT is a queue: a write pushes its bytes into fifo as one element, and a read pops one. u64's
        //= // from_le_bytes and to_le_bytes convert 8 bytes. CONSTANT_PORT can only be read: copy the first bytes of CONSTANT.
        match (port, is_out) {
            (FIFO_PORT, true) => {
                let mut bytes = [0; 8];
                bytes[..size].copy_from_slice(data);
                fifo.push(u64::from_le_bytes(bytes));
            }
            (FIFO_PORT, false) => data.copy_from_slice(&fifo.pop().to_le_bytes()[..size]),
            (CONSTANT_PORT, false) => data.copy_from_slice(&CONSTANT.to_le_bytes()[..size]),
            _ => {}
        }
        //}
        Ok(())
    }

    /// A register of the printer.
    fn printer_register(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.printer[offset..offset + 8]);
        u64::from_le_bytes(bytes)
    }

    /// Prints the text of the printer. Returns its length, or -EFAULT if it is not in the memory of the guest.
    fn print_text(&self) -> Result<u64> {
        let (text, length) = (self.printer_register(AT_TEXT), self.printer_register(AT_LENGTH));
        //{
        //= // TODO 4.1: text is the address of the text in the memory of the guest. The guest can write any numbers: check that
        //= // the text begins and ends in the MEM_SIZE bytes of self.mem. Beware of an overflow in text + length. Memory::read
        //= // reads the text.
        //= Ok(EFAULT.wrapping_neg())
        if length > MEM_SIZE as u64 || text > MEM_SIZE as u64 - length {
            return Ok(EFAULT.wrapping_neg());
        }
        need(io::stdout().write_all(&self.mem.read(text as usize, length as usize)), "write")?;
        Ok(length)
        //}
    }

    fn handle_mmio(&mut self) -> Result<()> {
        // SAFETY: KVM_EXIT_MMIO makes this field valid.
        let mut mmio = unsafe { (*self.kvm_run).exit.mmio };
        let (offset, len) = (mmio.phys_addr.wrapping_sub(PRINTER_ADDRESS), mmio.len as usize);
        if offset >= PRINTER_SIZE as u64 || len > PRINTER_SIZE - offset as usize {
            return Err(format!("MMIO at {:#x}, where nothing is", mmio.phys_addr));
        }
        let bytes = offset as usize..offset as usize + len;
        //{
        //= // TODO 4.2: If mmio.is_write is 1, copy the first len bytes of mmio.data into self.printer, at `bytes`. If they reach
        //= // the register at AT_RESULT, call self.print_text(), and put what it returns into the register. If mmio.is_write is
        //= // 0, copy these bytes of the printer to mmio.data: they are the value that the guest reads.
        if mmio.is_write == 1 {
            self.printer[bytes.clone()].copy_from_slice(&mmio.data[..len]);
            if bytes.end > AT_RESULT {
                let result = self.print_text()?;
                self.printer[AT_RESULT..].copy_from_slice(&result.to_le_bytes());
            }
        } else {
            mmio.data[..len].copy_from_slice(&self.printer[bytes]);
        }
        //}
        // SAFETY: as above.
        unsafe { (*self.kvm_run).exit.mmio = mmio };
        Ok(())
    }

    /// Handles RDMSR or WRMSR. KVM sets msr.error to 0.
    fn handle_msr(&mut self, is_write: bool) {
        // SAFETY: KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR make this field valid.
        let msr = unsafe { &mut (*self.kvm_run).exit.msr };
        //{
        //= // TODO 6.2: If msr.index is FIFO_MSR, push msr.data, which the guest writes, into self.msr_fifo, or set it to what
        //= // pop() returns, for the guest to read.
        if msr.index == FIFO_MSR {
            if is_write {
                self.msr_fifo.push(msr.data);
            } else {
                msr.data = self.msr_fifo.pop();
            }
            return;
        }
        //}
        //{
        //= // TODO 7: All other MSRs do not exist. Set msr.error to 1: then KVM raises the exception #GP in the guest.
        msr.error = 1;
        //}
    }

    /// Checks the result.
    fn finish(&self) -> Result<()> {
        let mut regs = kvm_regs::default();
        need(call_with(&self.vcpu, KVM_GET_REGS, &mut regs), "KVM_GET_REGS")?;
        let result = self.mem.read(RESULT_ADDRESS, 8);
        if regs.rax != RESULT || result != RESULT.to_le_bytes() {
            return Err(format!(
                "the guest has found a mistake: RAX is {}, and the bytes at 0x400 are {result:?}",
                regs.rax
            ));
        }
        eprintln!("the guest has halted with 42");
        Ok(())
    }
}

fn run(guest: &[u8]) -> Result<()> {
    let mut vmm = Vmm::create()?;
    vmm.mem.write(GUEST_ADDRESS, guest);
    vmm.setup_long_mode()?;
    vmm.set_cpuid()?;
    vmm.filter_msrs()?;
    vmm.run()?;
    vmm.finish()
}

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    let guest = match GUESTS.iter().find(|(name, _)| *name == task) {
        Some((_, guest)) => guest,
        None => {
            eprintln!("usage: vmm GUEST");
            for (name, _) in &GUESTS {
                eprintln!("  {name}");
            }
            return ExitCode::from(2);
        }
    };
    match run(guest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::FAILURE
        }
    }
}
