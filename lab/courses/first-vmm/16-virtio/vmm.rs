// Chapter 16: a virtio device. Usage: ./vmm IMAGE
//
// The VMM loads the flat file IMAGE at 0x1000 and runs it in long mode. The guest prints bytes to port 0xE9 and ends
// with HLT. At 0x10000000 it finds a virtio device over MMIO, version 2: an entropy device (4) with one queue. It fills
// buffers with random bytes.
#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::io::OwnedFd;
use std::sync::atomic::{fence, Ordering};

const RAM_SIZE: usize = 0x200000;
const ENTRY: usize = 0x1000;
const STACK: usize = 0x100000;
const PML4: usize = 0x1f0000;
const PDPT: usize = 0x1f1000;
const PD: usize = 0x1f2000;
const PRINT: u16 = 0xe9;
const DEVICE: u64 = 0x10000000;
const DEVICE_SIZE: u64 = 0x1000;

// The registers of virtio over MMIO: section 4.2.2 of virtio 1.2.
const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
// Bits of the status.
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 0x40;
// The longest queue, and the only feature of this device.
const LONGEST_QUEUE: u32 = 64;
const VIRTIO_F_VERSION_1: u64 = 1 << 32;
// Flags of a descriptor: section 2.7.5.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

// A mistake of the driver: the device then sets NEEDS_RESET.
struct Broken;

#[derive(Default)]
struct Registers {
    status: u32,
    interrupt_status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    driver_features: u64,
    // The queue: its length, and the addresses of its three parts.
    length: u32,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    // The number of chains that the device has taken from the available ring, modulo 65536.
    taken: u16,
}

struct Device {
    ram: Memory,
    random: File,
    registers: Registers,
}

fn set_half(value: &mut u64, is_high: bool, half: u32) {
    if is_high {
        *value = *value & 0xffffffff | u64::from(half) << 32;
    } else {
        *value = *value >> 32 << 32 | u64::from(half);
    }
}

// A descriptor: section 2.7.5 of virtio 1.2.
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Device {
    // The offset of a range in the memory of the guest. An error, if the range is not inside of it.
    fn guest(&self, address: u64, size: u64) -> std::result::Result<usize, Broken> {
        let ram = RAM_SIZE as u64;
        if size <= ram && address <= ram - size {
            Ok(address as usize)
        } else {
            Err(Broken)
        }
    }

    fn u16_at(&self, address: u64) -> std::result::Result<u16, Broken> {
        let bytes = self.ram.read(self.guest(address, 2)?, 2);
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn descriptor(&self, number: u16) -> std::result::Result<Descriptor, Broken> {
        let address = self.registers.descriptors.wrapping_add(16 * u64::from(number));
        let bytes = self.ram.read(self.guest(address, 16)?, 16);
        Ok(Descriptor {
            address: u64::from_le_bytes(bytes[..8].try_into().map_err(|_| Broken)?),
            length: u32::from_le_bytes(bytes[8..12].try_into().map_err(|_| Broken)?),
            flags: u16::from_le_bytes([bytes[12], bytes[13]]),
            next: u16::from_le_bytes([bytes[14], bytes[15]]),
        })
    }

    // Fills a buffer of the guest with random bytes.
    fn fill(&mut self, address: u64, length: u32) -> std::result::Result<(), Broken> {
        let offset = self.guest(address, length.into())?;
        let mut bytes = vec![0; length as usize];
        self.random.read_exact(&mut bytes).map_err(|_| Broken)?;
        self.ram.write(offset, &bytes);
        Ok(())
    }

    fn read_register(&self, offset: u64) -> u32 {
        let registers = &self.registers;
        match offset {
            //{
            MAGIC => 0x74726976,
            VERSION => 2,
            DEVICE_ID => 4,
            DEVICE_FEATURES => match registers.device_features_sel {
                0 => VIRTIO_F_VERSION_1 as u32,
                1 => (VIRTIO_F_VERSION_1 >> 32) as u32,
                _ => 0,
            },
            QUEUE_NUM_MAX if registers.queue_sel == 0 => LONGEST_QUEUE,
            //= // TODO 1: MAGIC is 0x74726976 ("virt"), VERSION is 2, DEVICE_ID is 4.
            //= // TODO 2: DEVICE_FEATURES shows 32 bits of the features: those from 0 on if registers.device_features_sel is 0,
            //= // those from 32 on if it is 1, and otherwise 0. The device has one feature, VIRTIO_F_VERSION_1.
            //= // TODO 3: QUEUE_NUM_MAX is LONGEST_QUEUE for queue 0 (registers.queue_sel), and 0 for others: they do not exist.
            //= MAGIC | VERSION | DEVICE_ID | DEVICE_FEATURES | QUEUE_NUM_MAX => 0,
            //}
            QUEUE_READY if registers.queue_sel == 0 => registers.ready.into(),
            INTERRUPT_STATUS => registers.interrupt_status,
            STATUS => registers.status,
            _ => 0,
        }
    }

    // The driver writes the status.
    fn set_status(&mut self, status: u32) {
        let registers = &mut self.registers;
        //{
        if status == 0 {
            *registers = Registers::default();
            return;
        }
        let is_refused = status & FEATURES_OK != 0 && registers.driver_features != VIRTIO_F_VERSION_1;
        let status = if is_refused { status & !FEATURES_OK } else { status };
        registers.status = status | registers.status & NEEDS_RESET;
        //= // TODO 4: The status 0 is a reset: all registers are Registers::default() then.
        //= // TODO 5: The device refuses FEATURES_OK, by leaving out this bit, if registers.driver_features is not exactly
        //= // VIRTIO_F_VERSION_1.
        //= let _ = (FEATURES_OK, VIRTIO_F_VERSION_1);
        //= registers.status = status;
        //}
    }

    // Fills the buffers of a chain with random bytes, and returns their number.
    fn fill_chain(&mut self, head: u16) -> std::result::Result<u32, Broken> {
        //{
        let length = self.registers.length;
        let mut number = head;
        let mut total: u32 = 0;
        for _ in 0..length {
            if u32::from(number) >= length {
                return Err(Broken);
            }
            let descriptor = self.descriptor(number)?;
            if descriptor.flags & WRITE != 0 {
                self.fill(descriptor.address, descriptor.length)?;
                total = total.wrapping_add(descriptor.length);
            }
            if descriptor.flags & NEXT == 0 {
                return Ok(total);
            }
            number = descriptor.next;
        }
        Err(Broken)
        //= // TODO 6: Start with self.descriptor(head). If it has the flag WRITE, fill its buffer with self.fill(), and add its
        //= // length to the result; leave other buffers alone. If it has the flag NEXT, go on with the descriptor `next`.
        //= // Return Err(Broken) if a number is not below self.registers.length, or if the chain has more than that many
        //= // descriptors: then it is a circle. `?` hands the errors of the functions on.
        //= let _ = (head, Self::descriptor, Self::fill, WRITE, NEXT);
        //= Err(Broken)
        //}
    }

    // Performs all chains that are new in the available ring.
    fn take_chains(&mut self) -> std::result::Result<(), Broken> {
        //{
        let (available, used) = (self.registers.available, self.registers.used);
        let length = u64::from(self.registers.length);
        while self.registers.taken != self.u16_at(available.wrapping_add(2))? {
            let place = u64::from(self.registers.taken) % length;
            let head = self.u16_at(available.wrapping_add(4 + 2 * place))?;
            let filled = self.fill_chain(head)?;
            let index = self.u16_at(used.wrapping_add(2))?;
            let element = self.guest(used.wrapping_add(4 + 8 * (u64::from(index) % length)), 8)?;
            self.ram.write(element, &u32::from(head).to_le_bytes());
            self.ram.write(element + 4, &filled.to_le_bytes());
            // The element is in memory before the index that announces it.
            fence(Ordering::Release);
            self.ram.write(self.guest(used.wrapping_add(2), 2)?, &index.wrapping_add(1).to_le_bytes());
            self.registers.taken = self.registers.taken.wrapping_add(1);
            self.registers.interrupt_status |= 1;
        }
        //= // TODO 7: The available ring is at self.registers.available, and the used ring at self.registers.used: each has its
        //= // flags (2 bytes), its index (2 bytes), and then its elements. While self.registers.taken differs from the index
        //= // of the available ring, which self.u16_at() reads:
        //= //   - take the head from the element taken % length (2 bytes), and call self.fill_chain
        //= //   - write head and length (4 bytes each) to the element index % length of the used ring (8 bytes), and then the
        //= //     index + 1 to the used ring: self.guest() gives the offset for self.ram.write()
        //= //   - add 1 to self.registers.taken, and set bit 0 of self.registers.interrupt_status.
        //= let _ = (Self::fill_chain, Self::u16_at, Self::guest, fence, Ordering::Release);
        //}
        Ok(())
    }

    // The driver has notified the queue.
    fn process_queue(&mut self) {
        let registers = &self.registers;
        if registers.status & DRIVER_OK == 0 || registers.status & NEEDS_RESET != 0 || !registers.ready {
            return;
        }
        if self.take_chains().is_err() {
            self.registers.status |= NEEDS_RESET;
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let registers = &mut self.registers;
        match offset {
            DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            DRIVER_FEATURES if registers.driver_features_sel < 2 => {
                set_half(&mut registers.driver_features, registers.driver_features_sel == 1, value);
            }
            DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            QUEUE_SEL => registers.queue_sel = value,
            QUEUE_NOTIFY if value == 0 => self.process_queue(),
            INTERRUPT_ACK => registers.interrupt_status &= !value,
            STATUS => self.set_status(value),
            _ if registers.queue_sel == 0 => self.write_queue_register(offset, value),
            _ => {}
        }
    }

    // The registers of a queue, which the driver must not change while the queue is ready.
    fn write_queue_register(&mut self, offset: u64, value: u32) {
        let registers = &mut self.registers;
        if offset == QUEUE_READY {
            registers.ready = value & 1 != 0 && registers.length != 0;
        }
        if registers.ready {
            return;
        }
        let is_high = offset & 4 != 0;
        match offset & !4 {
            QUEUE_NUM if !is_high && value.is_power_of_two() && value <= LONGEST_QUEUE => {
                registers.length = value
            }
            QUEUE_DESC => set_half(&mut registers.descriptors, is_high, value),
            QUEUE_DRIVER => set_half(&mut registers.available, is_high, value),
            QUEUE_DEVICE => set_half(&mut registers.used, is_high, value),
            _ => {}
        }
    }
}

struct Machine {
    ram: Memory,
    _vm: OwnedFd,
    vcpu: OwnedFd,
    run: *mut kvm_run,
    device: Device,
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
        let device = Device { ram, random: File::open("/dev/urandom")?, registers: Registers::default() };
        Ok(Self { ram, _vm: vm, vcpu, run, device })
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

    // Long mode, as in chapter 7. The first GiB is mapped one to one, with the device in it.
    fn set_registers(&self) -> Result<()> {
        self.ram.write_u64(PML4, PDPT as u64 | 3);
        self.ram.write_u64(PDPT, PD as u64 | 3);
        for i in 0..512 {
            self.ram.write_u64(PD + i * 8, (i as u64) << 21 | 0x83);
        }
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

    // An access to an address without memory. The registers of the device have 32 bits.
    fn mmio(&mut self) {
        // SAFETY: the reason of the exit says that `mmio` is valid.
        let mmio = unsafe { self.state().exit.mmio };
        let offset = mmio.phys_addr.wrapping_sub(DEVICE);
        let is_register = offset < DEVICE_SIZE && mmio.len == 4;
        let [a, b, c, d, ..] = mmio.data;
        if mmio.is_write != 0 {
            if is_register {
                self.device.write_register(offset, u32::from_le_bytes([a, b, c, d]));
            }
            return;
        }
        let value = if is_register { self.device.read_register(offset) } else { 0 };
        let mut data = [0; 8];
        data[..4].copy_from_slice(&value.to_le_bytes());
        self.state().exit.mmio.data = data;
    }

    fn io(&mut self) -> Result<()> {
        // SAFETY: the reason of the exit says that `io` is valid.
        let io = unsafe { self.state().exit.io };
        if io.direction == KVM_EXIT_IO_OUT && io.port == PRINT && io.size == 1 {
            let start = self.run.cast::<u8>().wrapping_add(io.data_offset as usize);
            // SAFETY: KVM has put `count` bytes there, in the mapping of the vCPU.
            io::stdout().write_all(unsafe { std::slice::from_raw_parts(start, io.count as usize) })?;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        loop {
            call(&self.vcpu, KVM_RUN, 0)?;
            let reason = self.state().exit_reason;
            match reason {
                KVM_EXIT_IO => self.io()?,
                KVM_EXIT_MMIO => self.mmio(),
                KVM_EXIT_HLT => return Ok(()),
                _ => return Err(format!("unexpected exit, reason {reason}").into()),
            }
        }
    }
}

fn start() -> Result<()> {
    let path = std::env::args().nth(1).ok_or("usage: ./vmm IMAGE")?;
    let mut machine = Machine::new()?;
    machine.load(&path)?;
    machine.set_registers()?;
    machine.run()
}

fn main() {
    if let Err(error) = start() {
        eprintln!("vmm: {error}");
        std::process::exit(1);
    }
}
