//! Assignment 7 of SO2: a virtual machine monitor on KVM. README.md says which part earns which points.
//!
//!     ./vmm real|long|simvirtio
//!     ./vmm-polling polling        the same source, built with --cfg use_pooling
#![allow(unknown_lints, unexpected_cfgs)]

mod kvm;

use kvm::*;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::io::OwnedFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const MEM_SIZE: usize = 0x100000;
const PAGE_SIZE: usize = 4096;
/// The guest leaves its result here, and in RAX.
const RESULT_ADDRESS: usize = 0x400;
const RESULT: u64 = 42;
const CONSOLE_PORT: u16 = 0xe9;

const USE_POOLING: bool = cfg!(use_pooling);

// Bits of the control registers and of EFER (Intel SDM volume 3, sections 2.5 and 2.2.1).
const CR0_PE: u64 = 1;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

// Bits of an entry of a page table (section 4.5). PDE64_PS makes an entry of the page directory a page of 2 MiB.
const PDE64_PRESENT: u64 = 1;
const PDE64_RW: u64 = 1 << 1;
const PDE64_PS: u64 = 1 << 7;

// SIMVIRTIO. The assignment describes the configuration space twice: these are the offsets of its table, and its struct
// `device_t` has another order.
const MAGIC_VALUE: u32 = 0x7472_6976;
const DEVICE_RESET: u8 = 0;
const DEVICE_CONFIG: u8 = 2;
const DEVICE_READY: u8 = 4;
const DRIVER_ACK: u8 = 0;
const DRIVER_OK: u8 = 4;
const WINDOW_ADDRESS: u64 = 0x100000;
const AT_MAGIC: usize = 0;
const AT_MAX_QUEUE_LEN: usize = 4;
const AT_DEVICE_STATUS: usize = 6;
const AT_DRIVER_STATUS: usize = 7;
const AT_TX_HEAD: usize = 0x10;
const AT_TX_TAIL: usize = 0x14;
const WINDOW_SIZE: usize = 0x20;
/// The device table: a count of 16 bits, and 8 bytes after it up to ten addresses.
const DEVICE_TABLE_ADDRESS: usize = 0x1000a;
const MAX_DEVICES: usize = 10;
const TX_BUFFER_ADDRESS: usize = 0x11000;
/// The number of bytes in the buffer of a queue.
const QUEUE_LEN: u32 = 64;

static GUEST16: &[u8] = include_bytes!("guests/guest_16_bits.bin");
static GUEST64: &[u8] = include_bytes!("guests/guest_64_bits.bin");
static DRIVER64: &[u8] = include_bytes!("guests/simvirtio.bin");

/// An error is a sentence.
type Result<T> = std::result::Result<T, String>;

/// Says which step has failed.
fn need<T>(result: io::Result<T>, step: &str) -> Result<T> {
    result.map_err(|error| format!("{step} failed: {error}"))
}

struct VirtualMachine {
    sys: File,
    fd: OwnedFd,
    mem: Memory,
}

impl VirtualMachine {
    fn create() -> Result<Self> {
        let sys = need(File::options().read(true).write(true).open("/dev/kvm"), "open /dev/kvm")?;
        if need(call(&sys, KVM_GET_API_VERSION, 0), "KVM_GET_API_VERSION")? != KVM_API_VERSION {
            return Err(format!("KVM must have version {KVM_API_VERSION}"));
        }
        //{
        //= // TODO 1.1: Make the VM with KVM_CREATE_VM on sys, by call(). descriptor() makes an OwnedFd of the result. Then
        //= // call KVM_SET_TSS_ADDR with 0xfffbd000 on it: Intel's processors need it.
        //= let fd: OwnedFd = return Err("TODO 1.1 is not done".into());
        let fd = descriptor(need(call(&sys, KVM_CREATE_VM, 0), "KVM_CREATE_VM")?);
        need(call(&fd, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR")?;
        //}
        let mem = need(Memory::new(MEM_SIZE), "mmap")?;
        let vm = Self { sys, fd, mem };
        vm.add_memory(0, 0, &mem)?;
        Ok(vm)
    }

    /// Shows memory to the guest, at a guest physical address. Each piece has a slot of its own.
    fn add_memory(&self, slot: u32, address: u64, memory: &Memory) -> Result<()> {
        //{
        //= // TODO 1.2: Describe the memory in a kvm_userspace_memory_region. Call KVM_SET_USER_MEMORY_REGION on self.fd with
        //= // it, by call_with(). memory.address() is its address in this program.
        //= Err("TODO 1.2 is not done".into())
        let mut region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: address,
            memory_size: memory.size() as u64,
            userspace_addr: memory.address(),
        };
        need(call_with(&self.fd, KVM_SET_USER_MEMORY_REGION, &mut region), "KVM_SET_USER_MEMORY_REGION")?;
        Ok(())
        //}
    }

    /// Writes page tables that map the first 1 GiB to itself, with pages of 2 MiB. Returns the address of the first table.
    fn write_page_tables(&self) -> u64 {
        //{
        //= // TODO 2.1: Choose three pages of self.mem for the tables, at multiples of 4096 from 0x1000 up. Entry 0 of the PML4
        //= // is the address of the PDPT, and entry 0 of the PDPT that of the page directory, both | PDE64_PRESENT | PDE64_RW.
        //= // Entry n of the page directory is n * 2 MiB | PDE64_PRESENT | PDE64_RW | PDE64_PS, for all n below 512. Return the
        //= // address of the PML4. Memory::write_u64 writes an entry.
        //= 0
        const PML4: usize = 0x2000;
        const PDPT: usize = 0x3000;
        const PD: usize = 0x4000;
        self.mem.write_u64(PML4, PDPT as u64 | PDE64_PRESENT | PDE64_RW);
        self.mem.write_u64(PDPT, PD as u64 | PDE64_PRESENT | PDE64_RW);
        for n in 0..512 {
            self.mem.write_u64(PD + n * 8, (n as u64) << 21 | PDE64_PRESENT | PDE64_RW | PDE64_PS);
        }
        PML4 as u64
        //}
    }
}

struct VirtualCpu {
    fd: OwnedFd,
    /// The memory that KVM and this program share. It is valid until the program ends.
    kvm_run: *mut kvm_run,
    /// The number of exits.
    exits: u64,
}

impl VirtualCpu {
    fn create(vm: &VirtualMachine) -> Result<Self> {
        //{
        //= // TODO 1.3: Make the vCPU with KVM_CREATE_VCPU on vm.fd. KVM_GET_VCPU_MMAP_SIZE on vm.sys returns the size of
        //= // kvm_run: map_vcpu() maps it.
        //= let (fd, kvm_run): (OwnedFd, *mut kvm_run) = return Err("TODO 1.3 is not done".into());
        let size = need(call(&vm.sys, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE")?;
        let fd = descriptor(need(call(&vm.fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU")?);
        let kvm_run = need(map_vcpu(&fd, size as usize), "mmap of kvm_run")?;
        //}
        Ok(Self { fd, kvm_run, exits: 0 })
    }

    fn sregs(&self) -> Result<kvm_sregs> {
        let mut sregs = kvm_sregs::default();
        need(call_with(&self.fd, KVM_GET_SREGS, &mut sregs), "KVM_GET_SREGS")?;
        Ok(sregs)
    }

    fn set_sregs(&self, mut sregs: kvm_sregs) -> Result<()> {
        need(call_with(&self.fd, KVM_SET_SREGS, &mut sregs), "KVM_SET_SREGS")?;
        Ok(())
    }

    /// The guest begins at address 0.
    fn set_regs(&self, rsp: u64) -> Result<()> {
        //{
        //= // TODO 1.4: Call KVM_SET_REGS with a kvm_regs: rip is 0, rflags is 2 (bit 1 is always 1), rsp is the parameter.
        //= Err("TODO 1.4 is not done".into())
        let mut regs = kvm_regs { rip: 0, rflags: 2, rsp, ..Default::default() };
        need(call_with(&self.fd, KVM_SET_REGS, &mut regs), "KVM_SET_REGS")?;
        Ok(())
        //}
    }

    fn setup_real_mode(&self) -> Result<()> {
        //{
        //= // TODO 1.5: After reset the first instruction is at cs.base + rip = 0xffff0000 + 0xfff0, where the VM has no memory.
        //= // Get the segment registers with self.sregs(), set cs.base and cs.selector to 0, and call self.set_sregs().
        let mut sregs = self.sregs()?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        self.set_sregs(sregs)?;
        //}
        self.set_regs(0x8000)
    }

    fn setup_long_mode(&self, vm: &VirtualMachine) -> Result<()> {
        let mut sregs = self.sregs()?;
        sregs.cr3 = vm.write_page_tables();
        //{
        //= // TODO 2.2: Set CR4_PAE in cr4, CR0_PE and CR0_PG in cr0 (also MP, ET, NE, WP and AM, as systems do), and EFER_LME
        //= // and EFER_LMA in efer: one of the two alone is an error.
        sregs.cr4 = CR4_PAE;
        sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
        sregs.efer = EFER_LME | EFER_LMA;
        //}
        //{
        //= // TODO 2.3: Make cs a 64-bit code segment: base 0, limit 0xffffffff, selector 8, type_ 11, and present, s, l and g
        //= // 1. Make ds, es, fs, gs and ss data segments: selector 16, type_ 3, present, db, s and g 1. l and db of cs are
        //= // never both 1.
        let code = kvm_segment {
            limit: 0xffff_ffff,
            selector: 8,
            type_: 11,
            present: 1,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        };
        let data = kvm_segment { selector: 16, type_: 3, l: 0, db: 1, ..code };
        sregs.cs = code;
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            *segment = data;
        }
        //}
        self.set_sregs(sregs)?;
        self.set_regs(1 << 20)
    }

    /// Runs the guest until it halts.
    fn run(&mut self, mut device: Option<&mut Device>) -> Result<()> {
        loop {
            //{
            //= // TODO 1.6: Call KVM_RUN on self.fd. It returns at the next exit. Look at exit_reason in self.kvm_run:
            //= // KVM_EXIT_HLT is the end, KVM_EXIT_IO is for self.handle_io(), and KVM_EXIT_MMIO for
            //= // self.handle_mmio(device.as_deref_mut()). Return an error for any other reason.
            //= // TODO 5: Count the exits in self.exits. The HLT is one, too.
            //= return Err("TODO 1.6 is not done".into());
            need(call(&self.fd, KVM_RUN, 0), "KVM_RUN")?;
            self.exits += 1;
            // SAFETY: the mapping is valid, and KVM writes it only in KVM_RUN.
            match unsafe { (*self.kvm_run).exit_reason } {
                KVM_EXIT_HLT => return Ok(()),
                KVM_EXIT_IO => self.handle_io()?,
                KVM_EXIT_MMIO => self.handle_mmio(device.as_deref_mut())?,
                reason => return Err(format!("unexpected exit: reason {reason}")),
            }
            //}
        }
    }

    fn handle_io(&mut self) -> Result<()> {
        // SAFETY: KVM_EXIT_IO makes this field valid.
        let io = unsafe { (*self.kvm_run).exit.io };
        let length = usize::from(io.size) * io.count as usize;
        // SAFETY: KVM has put the data into the mapping, at this offset.
        let data = unsafe {
            std::slice::from_raw_parts(self.kvm_run.cast::<u8>().add(io.data_offset as usize), length)
        };
        //{
        //= // TODO 1.7: If io.direction is KVM_EXIT_IO_OUT and io.port is CONSOLE_PORT, write data to io::stdout().
        if io.direction == KVM_EXIT_IO_OUT && io.port == CONSOLE_PORT {
            need(io::stdout().write_all(data), "write")?;
        }
        //}
        Ok(())
    }

    fn handle_mmio(&mut self, device: Option<&mut Device>) -> Result<()> {
        // SAFETY: KVM_EXIT_MMIO makes this field valid.
        let mmio = unsafe { &mut (*self.kvm_run).exit.mmio };
        let (offset, len) = (mmio.phys_addr.wrapping_sub(WINDOW_ADDRESS), mmio.len as usize);
        let is_inside = offset < WINDOW_SIZE as u64 && len <= WINDOW_SIZE - offset as usize;
        let device = match device {
            Some(device) if is_inside => device,
            _ => return Err(format!("MMIO at {:#x}, where nothing is", mmio.phys_addr)),
        };
        //{
        //= // TODO 3.6: If mmio.is_write is 1, write the first len bytes of mmio.data to device.window, at this offset, and
        //= // call device.serve(). Otherwise copy len bytes of the window to mmio.data: they are the value that the guest reads.
        if mmio.is_write == 1 {
            device.window.write(offset as usize, &mmio.data[..len]);
            device.serve();
        } else {
            mmio.data[..len].copy_from_slice(&device.window.read(offset as usize, len));
        }
        //}
        Ok(())
    }

    /// Checks the result. It has `width` bytes: 2 in real mode, 8 in long mode.
    fn finish(&self, vm: &VirtualMachine, width: usize) -> Result<()> {
        //{
        //= // TODO 1.8: Get the registers with KVM_GET_REGS. If rax and the first `width` bytes at RESULT_ADDRESS are both
        //= // RESULT, print "Finished vmm". Otherwise return an error that says what they are.
        //= // TODO 5: Print "VM exits: N" before.
        //= Err("TODO 1.8 is not done".into())
        println!("VM exits: {}", self.exits);
        let mut regs = kvm_regs::default();
        need(call_with(&self.fd, KVM_GET_REGS, &mut regs), "KVM_GET_REGS")?;
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(&vm.mem.read(RESULT_ADDRESS, width));
        let result = u64::from_le_bytes(bytes);
        if regs.rax != RESULT || result != RESULT {
            return Err(format!("wrong result: RAX is {}, and the value at 0x400 is {result}", regs.rax));
        }
        println!("Finished vmm");
        Ok(())
        //}
    }
}

/// A queue of SIMVIRTIO: a ring buffer. The guest pushes into the TX queue (guests/simvirtio.S), and the VMM pops.
struct SimQueue {
    /// The control words are in the window of the device, and the buffer is in the memory of the guest.
    window: Memory,
    mem: Memory,
}

impl SimQueue {
    /// Takes the oldest element of the queue.
    fn circ_bbuf_pop(&self) -> Option<u8> {
        let (head, tail) = (self.window.u32_at(AT_TX_HEAD), self.window.u32_at(AT_TX_TAIL));
        //{
        //= // TODO 3.1: The queue is empty if head is equal to tail. Otherwise load the element at TX_BUFFER_ADDRESS + tail of
        //= // self.mem, and move tail to the next element; after the last one (QUEUE_LEN - 1) comes element 0. The guest can
        //= // write any number into head and tail: treat a queue in which one of them is not below QUEUE_LEN as empty. In task
        //= // 4 the guest runs while this function does, so load head with Ordering::Acquire, and store tail with
        //= // Ordering::Release.
        //= None
        let (producer, consumer) = (head.load(Ordering::Acquire), tail.load(Ordering::Relaxed));
        if producer == consumer || producer >= QUEUE_LEN || consumer >= QUEUE_LEN {
            return None;
        }
        let element = self.mem.u8_at(TX_BUFFER_ADDRESS + consumer as usize).load(Ordering::Relaxed);
        tail.store((consumer + 1) % QUEUE_LEN, Ordering::Release);
        Some(element)
        //}
    }
}

struct Device {
    /// The page at WINDOW_ADDRESS.
    window: Memory,
    /// The memory of the guest.
    mem: Memory,
    queue: SimQueue,
    /// True after the command R.
    has_reset: bool,
}

impl Device {
    fn create(vm: &VirtualMachine) -> Result<Self> {
        let (window, mem) = (need(Memory::new(PAGE_SIZE), "mmap")?, vm.mem);
        //{
        //= // TODO 3.5: Write MAGIC_VALUE and QUEUE_LEN into the window, at AT_MAGIC (4 bytes) and AT_MAX_QUEUE_LEN (2 bytes).
        window.write(AT_MAGIC, &MAGIC_VALUE.to_le_bytes());
        window.write(AT_MAX_QUEUE_LEN, &(QUEUE_LEN as u16).to_le_bytes());
        //}
        if USE_POOLING {
            //{
            //= // TODO 4.1: Make the window memory of the guest, in slot 1 at WINDOW_ADDRESS: then an access to it is no exit.
            vm.add_memory(1, WINDOW_ADDRESS, &window)?;
            //}
        }
        Ok(Self { window, mem, queue: SimQueue { window, mem }, has_reset: false })
    }

    /// Adds the device to the device table.
    fn add_device(&self) {
        //{
        //= // TODO 3.2: The device table is at DEVICE_TABLE_ADDRESS of self.mem. Add WINDOW_ADDRESS to it, unless it is there
        //= // already. Write the address first, and then the count.
        let count = self.mem.read(DEVICE_TABLE_ADDRESS, 2);
        let count = usize::from(u16::from_le_bytes([count[0], count[1]]));
        let place = |index: usize| DEVICE_TABLE_ADDRESS + 8 + index * 8;
        let has_it = |index| self.mem.read(place(index), 8) == WINDOW_ADDRESS.to_le_bytes();
        if count >= MAX_DEVICES || (0..count).any(has_it) {
            return;
        }
        self.mem.write_u64(place(count), WINDOW_ADDRESS);
        self.mem.write(DEVICE_TABLE_ADDRESS, &(count as u16 + 1).to_le_bytes());
        //}
    }

    /// Handles a byte that the driver has sent: a command before READY, and afterwards a letter of its message.
    fn handle_byte(&mut self, byte: u8) {
        let device_status = self.window.u8_at(AT_DEVICE_STATUS);
        let driver_status = self.window.u8_at(AT_DRIVER_STATUS).load(Ordering::Acquire);
        //{
        //= // TODO 3.3: In READY, print the byte. Before: `R` sets device_status to DEVICE_RESET. `C` after an `R` (use
        //= // self.has_reset), while driver_status is DRIVER_ACK, calls self.add_device() and then sets device_status to
        //= // DEVICE_CONFIG.
        match byte {
            _ if device_status.load(Ordering::Relaxed) == DEVICE_READY => {
                // The end of the program reports a standard output that is closed.
                let _ = io::stdout().write_all(&[byte]);
            }
            b'R' => {
                device_status.store(DEVICE_RESET, Ordering::Release);
                self.has_reset = true;
            }
            b'C' if self.has_reset && driver_status == DRIVER_ACK => {
                self.add_device();
                device_status.store(DEVICE_CONFIG, Ordering::Release);
            }
            _ => {}
        }
        //}
    }

    /// Does what the driver has asked for: it is called after each store to the window, or again and again.
    fn serve(&mut self) {
        //{
        //= // TODO 3.4: If device_status is DEVICE_CONFIG and driver_status is DRIVER_OK, set device_status to DEVICE_READY.
        let device_status = self.window.u8_at(AT_DEVICE_STATUS);
        let driver_status = self.window.u8_at(AT_DRIVER_STATUS);
        if device_status.load(Ordering::Relaxed) == DEVICE_CONFIG
            && driver_status.load(Ordering::Acquire) == DRIVER_OK
        {
            device_status.store(DEVICE_READY, Ordering::Release);
        }
        //}
        while let Some(byte) = self.queue.circ_bbuf_pop() {
            self.handle_byte(byte);
        }
    }

    /// Looks at the window while the guest runs.
    fn poll(&mut self, stop: &AtomicBool) {
        //{
        //= // TODO 4.2: Call self.serve() again and again, until stop is true. Call thread::yield_now() after each time: a host
        //= // with one CPU needs it. Call self.serve() once more at the end, for the last bytes.
        while !stop.load(Ordering::Acquire) {
            self.serve();
            thread::yield_now();
        }
        self.serve();
        //}
    }
}

/// Runs the guest, and beside it the thread that looks at the window.
fn run_polling(vcpu: &mut VirtualCpu, device: &mut Device) -> Result<()> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| device.poll(&stop));
        let ran = vcpu.run(None);
        stop.store(true, Ordering::Release);
        ran
    })
}

fn run(task: &str) -> Result<()> {
    let (is_real, has_device) = (task == "real", task != "real" && task != "long");
    let guest = match task {
        "real" => GUEST16,
        "long" => GUEST64,
        _ => DRIVER64,
    };
    let vm = VirtualMachine::create()?;
    let mut vcpu = VirtualCpu::create(&vm)?;
    vm.mem.write(0, guest);
    if is_real {
        vcpu.setup_real_mode()?;
    } else {
        vcpu.setup_long_mode(&vm)?;
    }
    let mut device = if has_device { Some(Device::create(&vm)?) } else { None };
    match &mut device {
        Some(device) if USE_POOLING => run_polling(&mut vcpu, device)?,
        device => vcpu.run(device.as_mut())?,
    }
    vcpu.finish(&vm, if is_real { 2 } else { 8 })
}

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    let with_device = if USE_POOLING { "polling" } else { "simvirtio" };
    if !["real", "long", with_device].contains(&task.as_str()) {
        eprintln!("usage: vmm real|long|{with_device}");
        return ExitCode::from(2);
    }
    match run(&task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::FAILURE
        }
    }
}
