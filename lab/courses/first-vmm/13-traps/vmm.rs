//! Chapter 13: what a guest can ask its VMM: CPUID, model-specific registers (MSRs) and hypercalls.
//!
//! `./vmm IMAGE VENDOR`
//!
//! | place | meaning |
//! |---|---|
//! | CPUID leaf 0x40000000 | EBX, ECX and EDX have VENDOR, a text of 12 bytes |
//! | MSR 0xabc | the sum: WRMSR adds a number of 64 bits, and RDMSR gives the sum |
//! | MSR 0xabd | RDMSR gives 0x1122334455667788; WRMSR raises #GP in the guest |
//! | port 0x500, 4 bytes | a hypercall. The number is the value (EAX), RDI and RSI are arguments, RAX has the result |
//! | hypercall 0 | halt. The program ends with the status RDI (its low 7 bits) |
//! | hypercall 1 | print the RSI bytes at the address RDI. The result is RSI, or -14 (EFAULT) if they are not all in memory |
//! | others | the result is -38 (ENOSYS) |

#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::io::OwnedFd;
use std::process::exit;
use std::{env, slice};

// The exit statuses of this program. 1 means that the host failed, and 2 a wrong command line.
const HALTED: i32 = 0;
const TRIPLE_FAULT: i32 = 3;
const UNEXPECTED_EXIT: i32 = 4;

const SUM_MSR: u32 = 0xabc;
const CONSTANT_MSR: u32 = 0xabd;
const CONSTANT: u64 = 0x1122_3344_5566_7788;
const HYPERCALL_PORT: u16 = 0x500;
const HALT: u32 = 0;
const PRINT: u32 = 1;
const VENDOR_LEAF: u32 = 0x4000_0000;
const EFAULT: i64 = 14;
const ENOSYS: i64 = 38;

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
    /// The sum of the values that the guest has written to the MSR.
    sum: u64,
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
    Ok(Machine { kvm, vm, vcpu, memory, run, sum: 0 })
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

    /// The details of KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR.
    fn msr(&mut self) -> &mut kvm_run_msr {
        // SAFETY: as in `exit`. The field has numbers only.
        unsafe { &mut (*self.run).exit.msr }
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
    /// Sets what CPUID shows. KVM answers the instruction itself, without an exit, so this comes before the guest runs.
    fn set_cpuid(&self, vendor: &[u8; 12]) -> io::Result<()> {
        let mut list = kvm_cpuid2 { nent: 255, ..Default::default() };
        call_with(&self.kvm, KVM_GET_SUPPORTED_CPUID, &mut list)?;
        //{
        //= // TODO 1: `list` has what KVM and the processor support: the first `nent` of its entries. In the leaf whose
        //= // `function` is 1, set bit 31 of ECX: the processor is a virtual one. Find the leaf VENDOR_LEAF, or append one to
        //= // the list. Its EAX is VENDOR_LEAF, and EBX, ECX and EDX have 4 bytes of `vendor` each (u32::from_le_bytes).
        //= let _ = (vendor, VENDOR_LEAF);
        let leaves = list.nent as usize;
        for leaf in list.entries[..leaves].iter_mut().filter(|leaf| leaf.function == 1) {
            leaf.ecx |= 1 << 31;
        }
        let place = list.entries[..leaves].iter().position(|leaf| leaf.function == VENDOR_LEAF);
        if place.is_none() {
            list.nent += 1;
        }
        let word =
            |at: usize| u32::from_le_bytes([vendor[at], vendor[at + 1], vendor[at + 2], vendor[at + 3]]);
        list.entries[place.unwrap_or(leaves)] = kvm_cpuid_entry2 {
            function: VENDOR_LEAF,
            eax: VENDOR_LEAF,
            ebx: word(0),
            ecx: word(4),
            edx: word(8),
            ..Default::default()
        };
        //}
        call_with(&self.vcpu, KVM_SET_CPUID2, &mut list)?;
        Ok(())
    }

    /// Lets accesses to the two MSRs leave the guest. KVM handles all others itself.
    fn filter_msrs(&self) -> io::Result<()> {
        //{
        //= // TODO 2: two calls on the VM. KVM_ENABLE_CAP switches on KVM_CAP_X86_USER_SPACE_MSR; args[0] is
        //= // KVM_MSR_EXIT_REASON_FILTER. KVM_X86_SET_MSR_FILTER takes a kvm_msr_filter: its default is to allow, and
        //= // ranges[0] has the two MSRs from SUM_MSR on, for reads and writes, with a bitmap of zeros: nothing is allowed.
        let mut exits = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
        exits.args[0] = KVM_MSR_EXIT_REASON_FILTER.into();
        call_with(&self.vm, KVM_ENABLE_CAP, &mut exits)?;

        let nothing_allowed = [0u8; 8];
        let mut filter = kvm_msr_filter { flags: KVM_MSR_FILTER_DEFAULT_ALLOW, ..Default::default() };
        filter.ranges[0] = kvm_msr_filter_range {
            flags: KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
            base: SUM_MSR,
            nmsrs: 2,
            bitmap: nothing_allowed.as_ptr() as usize,
        };
        call_with(&self.vm, KVM_X86_SET_MSR_FILTER, &mut filter)?;
        //}
        Ok(())
    }

    /// Handles RDMSR and WRMSR. If `error` is 1, KVM raises #GP in the guest.
    fn access_msr(&mut self, is_write: bool) {
        let msr = *self.msr();
        self.msr().error = 1;
        //{
        //= // TODO 3: msr.index is the MSR. msr.data has the value of a write, and self.msr().data takes that of a read.
        //= // SUM_MSR adds (wrapping_add) and gives the sum; CONSTANT_MSR can only be read. Clear self.msr().error for all
        //= // that is allowed.
        //= let _ = (is_write, msr, self.sum, SUM_MSR, CONSTANT_MSR, CONSTANT);
        match (msr.index, is_write) {
            (SUM_MSR, true) => self.sum = self.sum.wrapping_add(msr.data),
            (SUM_MSR, false) => self.msr().data = self.sum,
            (CONSTANT_MSR, false) => self.msr().data = CONSTANT,
            _ => return,
        }
        self.msr().error = 0;
        //}
    }

    /// Prints a text of the guest. Returns its length, or -14 if it is not all in memory.
    fn print(&self, address: u64, length: u64) -> i64 {
        //{
        //= // TODO 4: the guest chooses both numbers. Check them without an overflow: address + length can be small again.
        //= let _ = EFAULT;
        //= address.wrapping_add(length) as i64
        let size = MEMORY_SIZE as u64;
        if address > size || length > size - address {
            return -EFAULT;
        }
        print(&self.memory.read(address as usize, length as usize));
        length as i64
        //}
    }

    /// Handles a hypercall. Returns `None` if the guest goes on, and otherwise the exit status of this program.
    fn hypercall(&self, number: u32) -> io::Result<Option<i32>> {
        let mut regs = kvm_regs::default();
        call_with(&self.vcpu, KVM_GET_REGS, &mut regs)?;
        //{
        //= // TODO 5: HALT returns the low 7 bits of regs.rdi. PRINT prints; its result, or -ENOSYS for another number, goes to
        //= // regs.rax, and KVM_SET_REGS gives the registers back to the guest.
        //= let _ = (number, HALT, PRINT, ENOSYS, Self::print);
        if number == HALT {
            return Ok(Some((regs.rdi & 0x7f) as i32));
        }
        let result = if number == PRINT { self.print(regs.rdi, regs.rsi) } else { -ENOSYS };
        regs.rax = result as u64;
        call_with(&self.vcpu, KVM_SET_REGS, &mut regs)?;
        //}
        Ok(None)
    }

    /// Chapter 9: handles an access to a port. Returns `None` if the guest goes on.
    fn access_port(&mut self) -> io::Result<Option<i32>> {
        // SAFETY: the last exit was KVM_EXIT_IO.
        let io = unsafe { self.exit().exit.io };
        if io.direction == KVM_EXIT_IO_IN {
            self.port_data().fill(0xff);
        } else if io.port == DEBUG_PORT {
            print(self.port_data());
        } else if io.port == HYPERCALL_PORT {
            if let &mut [a, b, c, d] = self.port_data() {
                return self.hypercall(u32::from_le_bytes([a, b, c, d]));
            }
        }
        Ok(None)
    }

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
                    if let Some(status) = self.access_port()? {
                        return Ok(status);
                    }
                }
                KVM_EXIT_X86_RDMSR => self.access_msr(false),
                KVM_EXIT_X86_WRMSR => self.access_msr(true),
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

fn run_image(image: &str, vendor: &[u8; 12]) -> io::Result<i32> {
    let mut machine = create_machine()?;
    machine.load(image)?;
    machine.make_page_tables();
    machine.set_long_mode()?;
    machine.set_cpuid(vendor)?;
    machine.filter_msrs()?;
    machine.run_guest()
}

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    match &words[..] {
        [image, vendor] if vendor.len() == 12 => {
            let mut bytes = [0; 12];
            bytes.copy_from_slice(vendor.as_bytes());
            exit(run_image(image, &bytes).unwrap_or_else(|error| fail(image, error)));
        }
        _ => {
            eprintln!("usage: vmm IMAGE VENDOR, and VENDOR has 12 bytes");
            exit(2);
        }
    }
}
