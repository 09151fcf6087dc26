//! A machine for an image: the SO2 map with its device, or the plain one.

use crate::boot::Image;
use crate::console::input::Input;
use crate::controller::VcpuState;
use crate::device::serial::Serial;
use crate::device::simvirtio::doorbell::{Doorbell, DoorbellPage};
use crate::device::simvirtio::{Simvirtio, Transport, TrappedMemory, Window};
use crate::error::{Error, ImageError};
use crate::kvm::vm::create_vm;
use crate::kvm::{events, msr_filter, slots};
use crate::machine::builder::Builder;
use crate::machine::{Background, Machine};
use crate::memory::{self, Gpa, GuestMemory, Map, PAGE_TABLES, TABLES, TABLES_SIZE, TASK_STATE};
use crate::x86::modes::{self, Mode};
use simvirtio::abi;
use std::sync::{Arc, Mutex};

impl Builder {
    /// The memory map that all of this comes to.
    fn map(&self, image: &Image) -> Result<Map, Error> {
        let plain = self.memory.is_some_and(|bytes| bytes > abi::RAM_SIZE)
            || image.end() > abi::RAM_SIZE
            || image.entry().0 >= abi::RAM_SIZE;
        let window = self.transport.is_some() || self.queue_len.is_some();
        match (plain, window) {
            (true, true) => Err(Error::Config(
                "SIMVIRTIO's window is at 1 MiB, so a guest that uses it has 1 MiB of memory and lies below that: \
                 leave --mem out and link or load the guest lower (such as at 0x1000), or run it without SIMVIRTIO"
                    .into(),
            )),
            (true, false) => Ok(Map::Plain),
            (false, _) => Ok(Map::So2),
        }
    }

    /// See [`Builder::build`].
    pub(super) fn build_bare(mut self, image: Image) -> Result<Machine, Error> {
        if self.irqchip && (self.cpus > 1 || self.first_vcpu != 0) {
            // With the kernel's interrupt controllers all but the first wait for a start-up interrupt.
            return Err(Error::Config("a machine with an in-kernel irqchip has one vCPU, number 0".into()));
        }
        let map = self.map(&image)?;
        let ram = memory::ram_size(map, self.memory)?;
        let mode = image.mode();
        if self.verify {
            check_result_word(&image)?;
        }
        // All that needs no KVM comes first, so that a mistake in it is told on any host.
        let transport = self.transport.unwrap_or_default();
        let mut slots = vec![(Gpa(0), ram)];
        if mode != Mode::Real {
            slots.push((TABLES, TABLES_SIZE));
        }
        if map == Map::So2 && transport.shares_memory() {
            slots.push((Gpa(abi::WINDOW), abi::WINDOW_SIZE));
        }
        let memory = GuestMemory::new(&slots)?;
        if let Err(error) = memory.merge_pages(Gpa(0)) {
            log::warn!("the kernel does not merge equal pages (MADV_MERGEABLE: {error}); going on without");
        }
        image.load(&memory, ram)?;
        warn_of_overlaps(&image, map);
        if mode != Mode::Real {
            write_tables(&memory, mode)?;
        }
        let coalesced = map == Map::So2 && transport == Transport::Coalesced;
        if coalesced && self.cpus > 1 {
            return Err(Error::Config(
                "the kernel queues coalesced stores for the whole machine, and one vCPU hands them on: leave out \
                 --cpus, or choose another --transport"
                    .into(),
            ));
        }
        let background = match map {
            Map::Plain => None,
            Map::So2 => Some(self.attach_simvirtio(transport, &memory)?),
        };
        let filtered = self.filtered_msrs();
        self.attach_ports(Arc::new(Mutex::new(Serial::new(self.output.clone()))))?;
        self.output.set_limit(self.output_limit);

        let (kvm, vm) = create_vm(memory::TSS)?;
        slots::register(&vm, &memory)?;
        if self.irqchip {
            vm.create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        }
        msr_filter::enable(&vm, &filtered)?;
        if let Some(Background::SharedWindow(_, Some(doorbell))) = &background {
            events::connect_doorbell(&vm, doorbell.bell())?;
        }
        if coalesced {
            events::coalesce_tx_head(&vm)?;
        }
        log::debug!(
            "{map:?} map, {ram:#x} bytes of RAM; {mode} mode at {:#x}; image {:x?}; {} vCPUs",
            image.entry().0,
            image.ranges(),
            self.cpus
        );
        let vcpus = self.create_vcpus(&kvm, &vm, &memory, |vcpu, place| {
            if coalesced {
                vcpu.hand_on_coalesced();
            }
            vcpu.set_mode(image.mode(), image.entry(), TABLES, place)
        })?;
        let controllers = vcpus.iter().map(|vcpu| self.controllers.for_vcpu(vcpu.id())).collect();
        Ok(Machine {
            clock: self.clock(&vcpus),
            vcpus,
            _vm: vm,
            memory,
            mode,
            background,
            ram,
            image: image.ranges(),
            devices: self.devices,
            controllers,
            msrs: self.msrs,
            kev: self.kev,
            timeout: self.timeout,
            trace: self.trace,
            verify: self.verify,
            kernel_counters: self.kernel_counters,
            output: self.output,
        })
    }

    fn attach_simvirtio(&mut self, transport: Transport, memory: &GuestMemory) -> Result<Background, Error> {
        let queue_len = self.queue_len.unwrap_or(abi::DEFAULT_QUEUE_LEN);
        let output = self.output.clone();
        let input = std::mem::replace(&mut self.input, Input::bytes(b""));
        let page = Arc::new(Mutex::new(DoorbellPage));
        self.devices.mmio.attach(abi::DOORBELL, abi::DOORBELL_SIZE, page)?;
        if transport.shares_memory() {
            let simvirtio = Simvirtio::power_on(queue_len, memory.clone(), output, input)?;
            let simvirtio = if self.loopback { simvirtio.looped_back() } else { simvirtio };
            let rings = transport == Transport::Doorbell;
            let doorbell = rings.then(Doorbell::new).transpose()?.map(Arc::new);
            return Ok(Background::SharedWindow(Box::new(simvirtio), doorbell));
        }
        let simvirtio = Simvirtio::power_on(queue_len, TrappedMemory::new(memory.clone()), output, input)?;
        let simvirtio = if self.loopback { simvirtio.looped_back() } else { simvirtio };
        let window = Arc::new(Mutex::new(Window::new(simvirtio)));
        self.devices.mmio.attach(abi::WINDOW, abi::WINDOW_SIZE, window.clone())?;
        Ok(Background::TrappedWindow(transport, window))
    }
}

/// Refuses an image whose own bytes would be taken for a result.
fn check_result_word(image: &Image) -> Result<(), Error> {
    if image.covers(abi::RESULT, abi::RESULT + 8) { Err(ImageError::CoversResult.into()) } else { Ok(()) }
}

/// Says where an image and the SO2 map are at odds, which a guest may intend.
fn warn_of_overlaps(image: &Image, map: Map) {
    if image.overlaps(abi::RESULT, abi::RESULT + 8) {
        log::warn!(
            "the image covers 0x400, where a guest of the assignment leaves its result: it would overwrite itself"
        );
    }
    if map == Map::So2 && image.overlaps(abi::DEVICE_TABLE, abi::HEAP) {
        log::warn!(
            "the image covers some of {:#x} to {:#x}, where SIMVIRTIO has its device table and buffers",
            abi::DEVICE_TABLE,
            abi::HEAP - 1
        );
    }
}

/// The GDT, in long mode the page tables after it, and in ring 3 the task state after those.
fn write_tables(memory: &GuestMemory, mode: Mode) -> Result<(), Error> {
    memory.write(TABLES, &modes::bytes(&modes::gdt(mode)))?;
    match mode {
        Mode::Real | Mode::Protected => Ok(()),
        Mode::Long => memory.write(PAGE_TABLES, &modes::bytes(&modes::identity_map(PAGE_TABLES))),
        Mode::User => {
            memory.write(PAGE_TABLES, &modes::bytes(&modes::user_identity_map(PAGE_TABLES)))?;
            memory.write(TASK_STATE, &modes::task_state())
        }
    }
}
