// Chapter 15: booting Linux. Usage: ./vmm KERNEL COMMAND-LINE [INITRD]
//
// KERNEL is a bzImage. The VMM loads it at 1 MiB and enters it in long mode at its 64-bit entry. The guest's serial port,
// COM1, is the standard output. The guest ends with a reset: a byte 0xFE to port 0x64, or a triple fault.
#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::io::OwnedFd;

const MIB: usize = 0x100000;
const RAM_SIZE: usize = 256 * MIB;
// Addresses of the guest. Those below 1 MiB are free for the boot loader.
const GDT: usize = 0x500;
const BOOT_PARAMS: usize = 0x7000;
const PML4: usize = 0x9000;
const PDPT: usize = 0xa000;
const PD: usize = 0xb000;
const STACK: usize = 0x10000;
const COMMAND_LINE: usize = 0x20000;
const LOW_END: usize = 0x9fc00;
const KERNEL: usize = MIB;
// The segments of the boot protocol.
const BOOT_CS: usize = 0x10;
const BOOT_DS: usize = 0x18;
const COM1: u16 = 0x3f8;
const COM1_IRQ: u32 = 4;
const CLOCK: u16 = 0x71;
const KEYBOARD: u16 = 0x64;
const RESET: u8 = 0xfe;
// The setup header: its place in the file and in boot_params, its length, and fields of it.
const HEADER: usize = 0x1f1;
const HEADER_END: usize = 0x26c;
const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const XLF_KERNEL_64: u16 = 1;
// The memory map in boot_params: the number of entries, and the entries of 20 bytes.
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

// The number at an offset of a file. The caller has checked the length.
fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

// Checks the header of a kernel. The error says why this VMM cannot load it.
fn check_header(file: &[u8]) -> std::result::Result<(), &'static str> {
    if file.len() < HEADER_END {
        return Err("the file is too short for a bzImage");
    }
    //{
    if &file[MAGIC..MAGIC + 4] != b"HdrS" {
        return Err("this is not a bzImage: HdrS is missing at 0x202");
    }
    if u16_at(file, VERSION) < 0x20c || u16_at(file, XLOADFLAGS) & XLF_KERNEL_64 == 0 {
        return Err("the kernel has no 64-bit entry");
    }
    //= // TODO 1: Return an error if the four bytes at MAGIC are not b"HdrS", if the u16 at VERSION is below 0x20c, and if
    //= // XLF_KERNEL_64 is not in the u16 at XLOADFLAGS.
    //= let _ = (MAGIC, VERSION, XLOADFLAGS, XLF_KERNEL_64);
    //}
    Ok(())
}

// The serial port COM1, a 16550 without input. It interrupts when it can take the next byte, if the guest wants that.
#[derive(Default)]
struct Com1 {
    interrupts: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    wants_byte: bool,
}

impl Com1 {
    fn level(&self) -> bool {
        self.wants_byte && self.interrupts & 2 != 0
    }

    fn write(&mut self, number: u16, value: u8) -> io::Result<()> {
        match number {
            0 | 1 if self.line_control & 0x80 != 0 => self.divisor[usize::from(number)] = value,
            0 => {
                io::stdout().write_all(&[value])?;
                self.wants_byte = true;
            }
            1 => {
                self.interrupts = value & 15;
                self.wants_byte = true;
            }
            3 => self.line_control = value,
            4 => self.modem_control = value,
            7 => self.scratch = value,
            _ => {}
        }
        Ok(())
    }

    fn read(&mut self, number: u16) -> u8 {
        match number {
            0 | 1 if self.line_control & 0x80 != 0 => self.divisor[usize::from(number)],
            1 => self.interrupts,
            2 if self.level() => {
                self.wants_byte = false;
                2
            }
            2 => 1,
            3 => self.line_control,
            4 => self.modem_control,
            // The line status register.
            //{
            5 => 0x60,
            //= // TODO 6: Bit 5 says that the port takes a byte, and bit 6 that all bytes have been sent. Both are always 1.
            //= 5 => 0,
            //}
            6 => 0xb0,
            7 => self.scratch,
            _ => 0,
        }
    }
}

struct Machine {
    ram: Memory,
    kvm: File,
    vm: OwnedFd,
    vcpu: OwnedFd,
    run: *mut kvm_run,
    com1: Com1,
}

impl Machine {
    fn new() -> Result<Self> {
        let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
        let vm = descriptor(call(&kvm, KVM_CREATE_VM, 0)?);
        call(&vm, KVM_SET_TSS_ADDR, 0xfffbd000)?;
        let ram = Memory::new(RAM_SIZE)?;
        let mut slot = kvm_userspace_memory_region {
            memory_size: RAM_SIZE as u64,
            userspace_addr: ram.address(),
            ..Default::default()
        };
        call_with(&vm, KVM_SET_USER_MEMORY_REGION, &mut slot)?;
        // The interrupt controllers and the timer of a PC, inside KVM.
        call(&vm, KVM_CREATE_IRQCHIP, 0)?;
        let mut pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        call_with(&vm, KVM_CREATE_PIT2, &mut pit)?;
        let vcpu = descriptor(call(&vm, KVM_CREATE_VCPU, 0)?);
        let size = call(&kvm, KVM_GET_VCPU_MMAP_SIZE, 0)? as usize;
        let run = map_vcpu(&vcpu, size)?;
        Ok(Self { ram, kvm, vm, vcpu, run, com1: Com1::default() })
    }

    // The memory that KVM and this program share for the vCPU.
    fn state(&mut self) -> &mut kvm_run {
        // SAFETY: the mapping is never removed, and KVM changes it only during KVM_RUN.
        unsafe { &mut *self.run }
    }

    // The guest may use what the processor and KVM have.
    fn set_cpuid(&self) -> Result<()> {
        let mut cpuid = Box::new(kvm_cpuid2 { nent: 256, ..Default::default() });
        call_with(&self.kvm, KVM_GET_SUPPORTED_CPUID, &mut *cpuid)?;
        for entry in &mut cpuid.entries {
            if entry.function == 1 {
                entry.ecx |= 1 << 31; // there is a hypervisor: Linux then asks for KVM's clock
            }
        }
        call_with(&self.vcpu, KVM_SET_CPUID2, &mut *cpuid)?;
        Ok(())
    }

    // Long mode with 1 GiB of memory mapped one to one, as in chapter 7, and the segments of the boot protocol.
    fn set_long_mode(&self, sregs: &mut kvm_sregs) {
        self.ram.write_u64(GDT + BOOT_CS, 0x00af9a000000ffff);
        self.ram.write_u64(GDT + BOOT_DS, 0x00cf92000000ffff);
        sregs.gdt.base = GDT as u64;
        sregs.gdt.limit = 4 * 8 - 1;
        self.ram.write_u64(PML4, PDPT as u64 | 3);
        self.ram.write_u64(PDPT, PD as u64 | 3);
        for i in 0..512 {
            self.ram.write_u64(PD + i * 8, (i as u64) << 21 | 0x83);
        }
        sregs.cr3 = PML4 as u64;
        sregs.cr4 = 1 << 5; // PAE
        sregs.cr0 = 0x80000011; // PG, ET, PE
        sregs.efer = 1 << 8 | 1 << 10; // LME, LMA
        let all = kvm_segment { limit: !0, present: 1, s: 1, g: 1, ..Default::default() };
        sregs.cs = kvm_segment { selector: BOOT_CS as u16, type_: 11, l: 1, ..all };
        let data = kvm_segment { selector: BOOT_DS as u16, type_: 3, db: 1, ..all };
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            *segment = data;
        }
    }

    // Copies the kernel to 1 MiB. It follows the boot sector and the setup sectors.
    fn load_kernel(&self, file: &[u8]) -> Result<()> {
        //{
        let sectors = match file[SETUP_SECTS] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let kernel = file.get((sectors + 1) * 512..).ok_or("the kernel is cut off")?;
        if kernel.len() > RAM_SIZE - KERNEL {
            return Err("the kernel is larger than the memory".into());
        }
        self.ram.write(KERNEL, kernel);
        //= // TODO 2: The kernel starts in the file after file[SETUP_SECTS] + 1 sectors of 512 bytes; 0 there means 4. Return
        //= // an error if the file ends before. Write the rest of the file to self.ram at KERNEL.
        //= let _ = (file, SETUP_SECTS);
        //}
        Ok(())
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.ram.write(offset, &value.to_le_bytes());
    }

    fn add_memory(&self, start: usize, end: usize) {
        let number = self.ram.read(BOOT_PARAMS + E820_ENTRIES, 1)[0];
        let entry = BOOT_PARAMS + E820_TABLE + usize::from(number) * 20;
        self.ram.write_u64(entry, start as u64);
        self.ram.write_u64(entry + 8, (end - start) as u64);
        self.write_u32(entry + 16, 1);
        self.ram.write(BOOT_PARAMS + E820_ENTRIES, &[number + 1]);
    }

    // Tells the kernel about its machine. The initrd has `size` bytes, at the end of the memory.
    fn fill_boot_params(&self, header: &[u8], command_line: &str, initrd: usize, size: usize) {
        self.ram.write(COMMAND_LINE, command_line.as_bytes());
        //{
        self.ram.write(BOOT_PARAMS + HEADER, header);
        self.ram.write(BOOT_PARAMS + TYPE_OF_LOADER, &[0xff]);
        self.write_u32(BOOT_PARAMS + CMD_LINE_PTR, COMMAND_LINE as u32);
        self.write_u32(BOOT_PARAMS + RAMDISK_IMAGE, if size > 0 { initrd as u32 } else { 0 });
        self.write_u32(BOOT_PARAMS + RAMDISK_SIZE, size as u32);
        self.add_memory(0, LOW_END);
        self.add_memory(KERNEL, RAM_SIZE);
        //= // TODO 3: Write the header to BOOT_PARAMS + HEADER. In this copy, set TYPE_OF_LOADER to 0xff (a loader without a
        //= // number of its own), CMD_LINE_PTR to COMMAND_LINE, RAMDISK_IMAGE to initrd, and RAMDISK_SIZE to size (both 0 if
        //= // size is 0).
        //= // TODO 4: Describe the memory with two calls of add_memory: from 0 to LOW_END, and from 1 MiB to RAM_SIZE. The gap
        //= // is where a PC has its screen and its firmware.
        //= let _ = (header, initrd, size, Self::add_memory, TYPE_OF_LOADER, CMD_LINE_PTR, RAMDISK_IMAGE, RAMDISK_SIZE, LOW_END);
        //}
    }

    fn set_registers(&self) -> Result<()> {
        let mut sregs = kvm_sregs::default();
        call_with(&self.vcpu, KVM_GET_SREGS, &mut sregs)?;
        self.set_long_mode(&mut sregs);
        call_with(&self.vcpu, KVM_SET_SREGS, &mut sregs)?;
        let mut regs = kvm_regs { rsp: STACK as u64, rflags: 2, ..Default::default() };
        //{
        regs.rip = KERNEL as u64 + 0x200;
        regs.rsi = BOOT_PARAMS as u64;
        //= // TODO 5: The 64-bit entry is 0x200 after the start of the kernel, and RSI has the address of the boot_params.
        //= regs.rip = KERNEL as u64;
        //}
        call_with(&self.vcpu, KVM_SET_REGS, &mut regs)?;
        Ok(())
    }

    fn com1_access(&mut self, port: u16, is_read: bool, byte: &mut u8) -> Result<()> {
        if is_read {
            *byte = self.com1.read(port - COM1);
        } else {
            self.com1.write(port - COM1, *byte)?;
        }
        let mut level = kvm_irq_level { irq: COM1_IRQ, level: self.com1.level().into() };
        call_with(&self.vm, KVM_IRQ_LINE, &mut level)?;
        Ok(())
    }

    // An access to a port. A port without a device reads as ones. The clock of a PC is missing, too: Linux would wait for a
    // bit of it to become 0, so it reads as zeroes. Returns true if the guest resets the machine.
    fn io(&mut self) -> Result<bool> {
        // SAFETY: the reason of the exit says that `io` is valid.
        let io = unsafe { self.state().exit.io };
        let length = usize::from(io.size) * io.count as usize;
        // SAFETY: KVM has `length` bytes there, in the mapping of the vCPU, and nothing else uses them until KVM_RUN.
        let data = unsafe {
            std::slice::from_raw_parts_mut(self.run.cast::<u8>().add(io.data_offset as usize), length)
        };
        let is_read = io.direction == KVM_EXIT_IO_IN;
        if is_read {
            data.fill(if io.port == CLOCK { 0 } else { 0xff });
        }
        if io.size == 1 {
            for byte in data {
                match io.port {
                    COM1..=0x3ff => self.com1_access(io.port, is_read, byte)?,
                    KEYBOARD if !is_read && *byte == RESET => return Ok(true),
                    _ => {}
                }
            }
        }
        Ok(false)
    }

    fn run(&mut self) -> Result<()> {
        loop {
            call(&self.vcpu, KVM_RUN, 0)?;
            let reason = self.state().exit_reason;
            match reason {
                KVM_EXIT_IO => {
                    if self.io()? {
                        return Ok(());
                    }
                }
                KVM_EXIT_MMIO => {
                    // SAFETY: the reason of the exit says that `mmio` is valid.
                    let mmio = unsafe { &mut self.state().exit.mmio };
                    if mmio.is_write == 0 {
                        mmio.data = [0xff; 8];
                    }
                }
                KVM_EXIT_SHUTDOWN => {
                    eprintln!("vmm: the guest was reset by a triple fault");
                    std::process::exit(3);
                }
                _ => {
                    eprintln!("vmm: unexpected exit, reason {reason}");
                    std::process::exit(2);
                }
            }
        }
    }
}

fn read(path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| format!("{path}: {error}").into())
}

fn start() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let (kernel, command_line, initrd) = match &arguments[..] {
        [_, kernel, line] => (kernel, line, Vec::new()),
        [_, kernel, line, initrd] => (kernel, line, read(initrd)?),
        _ => return Err("usage: ./vmm KERNEL COMMAND-LINE [INITRD]".into()),
    };
    let file = read(kernel)?;
    check_header(&file).map_err(|why| format!("{kernel}: {why}"))?;
    if command_line.len() > u32_at(&file, CMDLINE_SIZE) as usize
        || command_line.len() >= LOW_END - COMMAND_LINE
    {
        return Err(format!("{kernel}: the command line is longer than this kernel takes").into());
    }
    if initrd.len() > RAM_SIZE / 2 {
        return Err("the initrd is larger than half of the memory".into());
    }
    let mut machine = Machine::new()?;
    machine.load_kernel(&file).map_err(|why| format!("{kernel}: {why}"))?;
    let place = (RAM_SIZE - initrd.len()) & !0xfff;
    machine.ram.write(place, &initrd);
    machine.fill_boot_params(&file[HEADER..HEADER_END], command_line, place, initrd.len());
    if machine.ram.read(KERNEL + 0x200, 2) == [0, 0] {
        eprintln!("vmm: there is no code at the 64-bit entry, 0x100200");
        std::process::exit(2);
    }
    machine.set_cpuid()?;
    machine.set_registers()?;
    machine.run()
}

fn main() {
    if let Err(error) = start() {
        eprintln!("vmm: {error}");
        std::process::exit(1);
    }
}
