//! Building a machine for an image: the SO2 memory map with its SIMVIRTIO device, or the plain map.

use crate::boot::{Firmware, Image};
use crate::console::input::Input;
use crate::device::Layout;
use crate::device::serial::Serial;
use crate::device::simvirtio::doorbell::{Doorbell, DoorbellPage};
use crate::device::simvirtio::{Simvirtio, Transport, TrappedMemory, Window};
use crate::error::{Error, ImageError};
use crate::kvm::irqchip::Irqchip;
use crate::kvm::vm::{System, Vm};
use crate::machine::assembly::Parts;
use crate::machine::background::{Background, SharedWindow};
use crate::machine::builder::Builder;
use crate::machine::processors::Processors;
use crate::machine::restore::Restore;
use crate::machine::{Machine, MachineKind, Processor, trap_vectors};
use crate::memory::{
    self, Gpa, GuestMemory, Map, PAGE_TABLES, SharedMemory, TABLES, TABLES_SIZE, TASK_STATE,
};
use crate::x86::modes::{self, Mode, VcpuIndex};
use simvirtio::abi;
use std::sync::{Arc, Mutex};

/// The number of instructions that a software processor executes at a time. It takes less than a millisecond.
pub(super) const SLICE: u64 = 10_000;
/// The same with polling: a driver that waits for the device waits that long.
const POLLING_SLICE: u64 = 500;

/// The host of the processors.
pub(super) enum Host {
    /// KVM, and the virtual machine.
    Kvm(System, Vm),
    /// This program.
    Soft {
        /// The reason why it is not KVM, if it would be by default.
        kvm_error: Option<Error>,
    },
}

/// The parts of a bare machine that its vCPUs need.
struct BarePlaces<'a> {
    memory: &'a GuestMemory,
    background: &'a Background,
    image: &'a Image,
    map: Map,
}

impl Builder {
    /// Builds a machine for `image`: see [`Builder::build`].
    pub(super) fn build_bare(mut self, image: Image) -> Result<Machine, Error> {
        // Everything that needs no KVM comes first, so that a mistake in it is reported on every host.
        let map = self.map(&image)?;
        let ram = memory::ram_size(map, self.memory)?;
        let transport = self.transport.unwrap_or(self.default_transport);
        let coalesced = map == Map::So2 && transport == Transport::Coalesced;
        self.check_cpus(coalesced)?;
        self.check_protocol(&image)?;
        let image = prepared(image, ram, self.verify, &Firmware::NONE)?;
        warn_of_overlaps(&image, map);
        let tables = tables(&image);
        let host = self.choose_host(image.rom_range().is_some())?;
        let memory = guest_memory(ram, map, transport, &image, &tables)?;
        let background = match map {
            Map::Plain => Background::Nothing,
            Map::So2 => self.attach_simvirtio(transport, &memory, &host)?,
        };
        self.attach_ports(Arc::new(Mutex::new(Serial::new(self.output.clone()))))?;
        log::debug!(
            "{map:?} map, {ram:#x} bytes of RAM; {} mode at {:#x}; image at {}; vCPUs: {}",
            image.mode(),
            image.entry().0,
            image.places(),
            self.cpus
        );
        let places = BarePlaces { memory: &memory, background: &background, image: &image, map };
        let (processors, kvm_error, irqchip) = self.bare_processors(host, &places, transport)?;
        let mode = image.mode();
        let ranges = image.ranges();
        let restore = Some(Restore::new(image, tables, irqchip));
        let kind = Some(MachineKind::Bare);
        let image = ranges;
        Ok(self.assemble(Parts {
            processors,
            kvm_error,
            memory,
            mode,
            background,
            screen: None,
            kind,
            ram,
            image,
            restore,
        }))
    }

    /// Creates the vCPUs. Returns the reason why they are not those of KVM, if they would be by default, and the state of the
    /// interrupt controllers.
    fn bare_processors(
        &self,
        host: Host,
        places: &BarePlaces<'_>,
        transport: Transport,
    ) -> Result<(Processors, Option<Error>, Option<Irqchip>), Error> {
        let BarePlaces { memory, background, image, map } = *places;
        let coalesced = map == Map::So2 && transport == Transport::Coalesced;
        match host {
            Host::Kvm(system, vm) => {
                self.set_up(&vm, memory, background, coalesced)?;
                let vcpus = self.create_vcpus(&system, &vm, memory, |vcpu, index| {
                    if coalesced {
                        vcpu.hand_on_coalesced();
                    }
                    vcpu.set_start(image.start(), TABLES, index)?;
                    if self.irqchip { vcpu.remember_lapic() } else { Ok(()) }
                })?;
                let irqchip = self.irqchip.then(|| vm.irqchip()).transpose()?;
                Ok((Processors::Kvm { vcpus, vm }, None, irqchip))
            }
            Host::Soft { kvm_error } => {
                let shares = map == Map::So2 && transport.shares_memory();
                let rings = shares && transport == Transport::Doorbell;
                let slice = if shares && !rings { POLLING_SLICE } else { SLICE };
                let vcpus = self.create_soft_vcpus(memory, slice, |vcpu, index| {
                    if rings {
                        vcpu.connect_doorbell();
                    }
                    vcpu.set_start(image.start(), TABLES, index);
                })?;
                Ok((Processors::Soft(vcpus), kvm_error, None))
            }
        }
    }

    /// Checks that the number of vCPUs suits the protocol by which the image is entered.
    fn check_protocol(&self, image: &Image) -> Result<(), Error> {
        match image.protocol() {
            Some(protocol) if self.cpus > 1 => Err(Error::Config(format!(
                "a {protocol} kernel starts on one vCPU and starts the others itself, for which a bare machine has no interrupt \
                 controller: give --machine pc, or --cpus 1, or start it without the protocol (FILE:32 or FILE:64)"
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that the number of vCPUs suits the other options.
    fn check_cpus(&self, coalesced: bool) -> Result<(), Error> {
        if self.irqchip && (self.cpus > 1 || self.first_vcpu != 0) {
            // With in-kernel interrupt controllers, all vCPUs but number 0 wait for a start-up interrupt.
            return Err(Error::Config("a machine with an in-kernel irqchip has one vCPU, number 0".into()));
        }
        if coalesced && self.cpus > 1 {
            return Err(Error::Config(
                "--transport coalesced needs one vCPU, because the kernel queues the stores of the whole machine and one \
                 vCPU handles them: give --cpus 1, or choose another --transport"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Chooses the kind of processor, and creates the VM if it is KVM.
    ///
    /// # Errors
    /// KVM cannot be used and was requested, or fails in another way. Or: the software processor lacks a part.
    pub(super) fn choose_host(&self, has_rom: bool) -> Result<Host, Error> {
        let kvm_error = match self.processor {
            Some(Processor::Soft) => None,
            asked => match create_vm(has_rom) {
                Ok(host) => return Ok(host),
                Err(error) if asked.is_none() && error.is_kvm_missing() && !self.irqchip => Some(error),
                Err(error) => return Err(error),
            },
        };
        if self.irqchip {
            return Err(Error::Config(
                "the software processor has no interrupt controllers: leave out the irqchip, or use KVM"
                    .into(),
            ));
        }
        Ok(Host::Soft { kvm_error })
    }

    /// True if an option for SIMVIRTIO is given.
    pub(super) fn wants_window(&self) -> bool {
        self.transport.is_some() || self.queue_len.is_some() || self.layout != Layout::default()
    }

    /// Chooses the memory map.
    fn map(&self, image: &Image) -> Result<Map, Error> {
        let plain = image.protocol().is_some()
            || self.memory.is_some_and(|bytes| bytes > abi::RAM_SIZE)
            || image.end() > abi::RAM_SIZE
            || image.entry().0 >= abi::RAM_SIZE;
        match (plain, self.wants_window()) {
            (true, true) => Err(Error::Config(format!(
                "SIMVIRTIO's window is at 1 MiB, so a guest that uses it has 1 MiB of memory and lies below that, and this \
                 one lies at {}: leave --mem out and link or load the guest lower (FILE@0x1000; gcc -static -nostdlib \
                 -no-pie -Wl,-Ttext-segment=0x1000; ld -T linker/long64.ld), or run it without SIMVIRTIO",
                image.places()
            ))),
            (true, false) => Ok(Map::Plain),
            (false, _) => Ok(Map::So2),
        }
    }

    /// Sets up the VM over `memory`.
    fn set_up(
        &self,
        vm: &Vm,
        memory: &GuestMemory,
        background: &Background,
        coalesced: bool,
    ) -> Result<(), Error> {
        vm.add_memory(memory)?;
        if self.irqchip {
            vm.create_irqchip()?;
        }
        vm.filter_msrs(&self.filtered_msrs())?;
        if let Background::SharedWindow(SharedWindow { doorbell: Some(doorbell), .. }) = background {
            vm.connect_doorbell(doorbell.bell())?;
        }
        if coalesced { vm.coalesce_tx_head() } else { Ok(()) }
    }

    /// Attaches the SIMVIRTIO device.
    fn attach_simvirtio(
        &mut self,
        transport: Transport,
        memory: &GuestMemory,
        host: &Host,
    ) -> Result<Background, Error> {
        let layout = self.layout;
        let queue_len = self.queue_len.unwrap_or(layout.usual_queue());
        let output = self.output.clone();
        let input = std::mem::replace(&mut self.input, Input::bytes(b""));
        let page = Arc::new(Mutex::new(DoorbellPage));
        self.devices.mmio.attach(abi::DOORBELL, abi::DOORBELL_SIZE, page)?;
        if transport.shares_memory() {
            let shared = SharedMemory::new(memory)
                .ok_or_else(|| Error::Config("SIMVIRTIO needs the SO2 memory map".into()))?;
            let simvirtio = Simvirtio::power_on(layout, queue_len, shared, output, input)?;
            let simvirtio = if self.loopback { simvirtio.looped_back() } else { simvirtio };
            let rings = transport == Transport::Doorbell && matches!(host, Host::Kvm(..));
            let doorbell = rings.then(Doorbell::new).transpose()?.map(Arc::new);
            let device = Some(Box::new(simvirtio));
            return Ok(Background::SharedWindow(SharedWindow { device, transport, doorbell }));
        }
        let trapped = TrappedMemory::new(memory.clone());
        let simvirtio = Simvirtio::power_on(layout, queue_len, trapped, output, input)?;
        let simvirtio = if self.loopback { simvirtio.looped_back() } else { simvirtio };
        let window = Arc::new(Mutex::new(Window::new(simvirtio)));
        self.devices.mmio.attach(abi::WINDOW, abi::WINDOW_SIZE, window.clone())?;
        Ok(Background::TrappedWindow(transport, window))
    }
}

/// Creates a VM. With a ROM, the pages of KVM's own are below the largest one.
fn create_vm(has_rom: bool) -> Result<Host, Error> {
    let (system, vm) = System::create_vm(if has_rom { memory::ROM_TSS } else { memory::TSS })?;
    if has_rom {
        vm.set_identity_map(memory::ROM_IDENTITY_MAP)?;
        if !vm.has_read_only_slots() {
            return Err(Error::MissingCapability("ReadonlyMem".into()));
        }
    }
    Ok(Host::Kvm(system, vm))
}

/// Checks that `image` fits into `ram` bytes, can start in its mode, and does not cover the result if that is verified.
/// Returns it with everything that a boot loader gives to its kernel.
///
/// # Errors
/// The image fails a check, or what belongs to it does not fit.
pub(super) fn prepared(image: Image, ram: u64, verify: bool, firmware: &Firmware) -> Result<Image, Error> {
    image.check(ram)?;
    // The image's own bytes would be taken for a result.
    if verify && image.covers(abi::RESULT, abi::RESULT + 8) {
        return Err(ImageError::CoversResult.into());
    }
    Ok(image.handed_over(ram, firmware)?)
}

/// Sets the registers with which each vCPU starts `image`.
///
/// # Errors
/// The kernel refused.
pub(super) fn set_registers(processors: &mut Processors, image: &Image) -> Result<(), Error> {
    let of = u32::try_from(processors.len()).unwrap_or(u32::MAX);
    for (index, vcpu) in (0..).zip(processors.iter_mut()) {
        let index = VcpuIndex { index, of, id: vcpu.id() };
        vcpu.set_start(image.start(), TABLES, index)?;
    }
    Ok(())
}

/// The memory of a machine with the plain map, with the image and the tables in it.
pub(super) fn plain_memory(ram: u64, image: &Image, tables: &[(Gpa, Vec<u8>)]) -> Result<GuestMemory, Error> {
    guest_memory(ram, Map::Plain, Transport::default(), image, tables)
}

/// The guest's memory, with the image and the tables in it.
fn guest_memory(
    ram: u64,
    map: Map,
    transport: Transport,
    image: &Image,
    tables: &[(Gpa, Vec<u8>)],
) -> Result<GuestMemory, Error> {
    let mut slots = vec![(Gpa(0), ram)];
    if image.mode() != Mode::Real {
        slots.push((TABLES, TABLES_SIZE));
    }
    if map == Map::So2 && transport.shares_memory() {
        slots.push((Gpa(abi::WINDOW), abi::WINDOW_SIZE));
    }
    let rom = image.rom_range();
    slots.extend(rom);
    let memory = GuestMemory::new(&slots)?.with_rom(rom.map(|(start, _)| start));
    if let Err(error) = memory.merge_pages(Gpa(0)) {
        log::warn!("the kernel does not merge equal pages (MADV_MERGEABLE: {error}); going on without");
    }
    image.load(&memory, ram)?;
    tables.iter().try_for_each(|(start, bytes)| memory.write(*start, bytes))?;
    Ok(memory)
}

/// The tables that the guest of an image needs: the GDT, in long mode the page tables, in ring 3 the task state; in real
/// mode the vectors.
pub(super) fn tables(image: &Image) -> Vec<(Gpa, Vec<u8>)> {
    let mode = image.mode();
    let gdt = || (TABLES, modes::bytes(&modes::gdt(mode)));
    match mode {
        // Firmware has its own.
        Mode::Real if image.loads_itself() => Vec::new(),
        Mode::Real => trap_vectors::memory(image),
        Mode::Protected => vec![gdt()],
        Mode::Long => vec![gdt(), (PAGE_TABLES, modes::bytes(&modes::identity_map(PAGE_TABLES)))],
        Mode::User => vec![
            gdt(),
            (PAGE_TABLES, modes::bytes(&modes::user_identity_map(PAGE_TABLES))),
            (TASK_STATE, modes::task_state()),
        ],
    }
}

/// Warns if the image covers places of the SO2 map. A guest may do that on purpose.
fn warn_of_overlaps(image: &Image, map: Map) {
    if image.overlaps(abi::RESULT, abi::RESULT + 8) {
        log::warn!(
            "the image covers 0x400, where a guest of the assignment leaves its result: the result would overwrite the image"
        );
    }
    let is_plain = image.flat_file().is_some() && image.boot_disk().is_none() && image.rom_range().is_none();
    if image.mode() == Mode::Real && is_plain && image.covers(0x1_0000, u64::MAX) {
        log::warn!(
            "the image goes on above 0xffff, where the instruction pointer of real mode begins again at 0: code there needs a far \
             jump or call, or give a segment (FILE@SEG:OFF)"
        );
    }
    // An image with a segment of its own is no guest of the assignment.
    if map == Map::So2 && image.start().segment == 0 && image.overlaps(abi::DEVICE_TABLE, abi::HEAP) {
        log::warn!(
            "the image covers some of {:#x} to {:#x}, where SIMVIRTIO has its device table and buffers",
            abi::DEVICE_TABLE,
            abi::HEAP - 1
        );
    }
}
