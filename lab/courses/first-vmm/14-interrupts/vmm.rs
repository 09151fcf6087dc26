// Chapter 14: interrupts. Usage: ./vmm IMAGE
//
// The VMM loads the flat file IMAGE at 0x1000 and runs it in real mode. The guest prints bytes to port 0xE9.
// A byte that the guest writes to port 0x10, the bell, is a vector: the bell asks for an interrupt with this vector.
#[path = "../kvm.rs"]
mod kvm;

use kvm::*;
use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::io::OwnedFd;

const RAM_SIZE: usize = 0x100000;
const ENTRY: usize = 0x1000;
const PRINT: u16 = 0xe9;
const BELL: u16 = 0x10;
const MOST_PENDING: usize = 16;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Machine {
    ram: Memory,
    _vm: OwnedFd,
    vcpu: OwnedFd,
    run: *mut kvm_run,
    // The vectors that wait for their interrupt, the oldest first.
    pending: VecDeque<u8>,
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
        Ok(Self { ram, _vm: vm, vcpu, run, pending: VecDeque::new() })
    }

    // The memory that KVM and this program share for the vCPU.
    fn state(&mut self) -> &mut kvm_run {
        // SAFETY: the mapping is never removed, and KVM changes it only during KVM_RUN.
        unsafe { &mut *self.run }
    }

    fn load(&self, path: &str) -> Result<()> {
        let image = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
        if image.is_empty() || image.len() > RAM_SIZE - ENTRY {
            return Err(format!("{path} must have 1 to {} bytes", RAM_SIZE - ENTRY).into());
        }
        self.ram.write(ENTRY, &image);
        Ok(())
    }

    fn set_registers(&self) -> Result<()> {
        let mut sregs = kvm_sregs::default();
        call_with(&self.vcpu, KVM_GET_SREGS, &mut sregs)?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        call_with(&self.vcpu, KVM_SET_SREGS, &mut sregs)?;
        let mut regs = kvm_regs { rip: ENTRY as u64, rsp: 0xf000, rflags: 2, ..Default::default() };
        call_with(&self.vcpu, KVM_SET_REGS, &mut regs)?;
        Ok(())
    }

    // The bell: keeps a request for an interrupt until it can be delivered.
    fn ring(&mut self, vector: u8) -> Result<()> {
        if self.pending.len() == MOST_PENDING {
            return Err(format!("more than {MOST_PENDING} interrupts wait").into());
        }
        self.pending.push_back(vector);
        Ok(())
    }

    // Called before each KVM_RUN: injects the oldest interrupt that waits, if the guest takes one now.
    fn deliver(&mut self) -> Result<()> {
        //{
        if self.state().ready_for_interrupt_injection != 0 && self.state().if_flag != 0 {
            if let Some(vector) = self.pending.pop_front() {
                let mut interrupt = kvm_interrupt { irq: vector.into() };
                call_with(&self.vcpu, KVM_INTERRUPT, &mut interrupt)?;
            }
        }
        self.state().request_interrupt_window = (!self.pending.is_empty()).into();
        //= // TODO 1: If a vector waits, and ready_for_interrupt_injection and if_flag of self.state() are not 0, remove the
        //= // first vector, and give it to the guest: call_with(&self.vcpu, KVM_INTERRUPT, &mut kvm_interrupt { irq: ... }).
        //= // TODO 2: Set self.state().request_interrupt_window to 1 if vectors still wait, and otherwise to 0.
        //}
        Ok(())
    }

    // Says if a guest that has executed HLT is at its end: no interrupt can wake it.
    fn is_end(&mut self) -> bool {
        //{
        self.pending.is_empty() || self.state().if_flag == 0
        //= // TODO 3: A vector that waits wakes the guest, if the guest's interrupt flag (self.state().if_flag) is 1.
        //= true
        //}
    }

    fn port_write(&mut self, port: u16, value: u8) -> Result<()> {
        match port {
            PRINT => io::stdout().write_all(&[value])?,
            BELL => self.ring(value)?,
            _ => {}
        }
        Ok(())
    }

    fn io(&mut self) -> Result<()> {
        // SAFETY: the reason of the exit says that `io` is valid.
        let io = unsafe { self.state().exit.io };
        if io.direction == KVM_EXIT_IO_OUT && io.size == 1 {
            for i in 0..io.count as usize {
                // SAFETY: KVM has put `count` bytes there, in the mapping of the vCPU.
                let value = unsafe { *self.run.cast::<u8>().add(io.data_offset as usize + i) };
                self.port_write(io.port, value)?;
            }
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        loop {
            self.deliver()?;
            call(&self.vcpu, KVM_RUN, 0)?;
            let reason = self.state().exit_reason;
            match reason {
                KVM_EXIT_IO => self.io()?,
                //{
                KVM_EXIT_IRQ_WINDOW_OPEN => {}
                //= // TODO 4: KVM_EXIT_IRQ_WINDOW_OPEN means that the guest takes an interrupt now. There is nothing to do
                //= // for it but to go on: deliver() is called before the next KVM_RUN.
                //}
                KVM_EXIT_HLT if self.is_end() => return Ok(()),
                KVM_EXIT_HLT => {}
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
