//! The MMIO transport, version 2 (virtio 1.2, section 4.2): a page of registers, and the state machine of
//! device initialisation behind them (section 3.1.1).
//!
//! Registers are aligned and 4 bytes wide. An access of another form writes nothing and reads 0; if the guest reads the
//! registers from memory, it reads the bytes there. Writes that the specification does not allow at this point are
//! ignored: features after FEATURES_OK, the settings of a queue that is ready, and a status that clears bits. Only a
//! write of 0 to the status clears bits, and it resets the device.

use crate::device::bus::{Device, DeviceName};
use crate::device::virtio::Backend;
use crate::device::virtio::interrupt::{CONFIG_CHANGE, Interrupt};
use crate::device::virtio::queue::{QueueError, Queues, Virtqueue};
use crate::device::virtio::registers::{EVENT_IDX, INDIRECT_DESC, VERSION_1, register, status};
use crate::device::virtio::thread::DeviceThread;
use crate::error::Error;
use crate::exit::Stop;
use crate::host::{EventFd, event, signal};
use crate::memory::{Gpa, GuestMemory};
use crate::shutdown::{Deadline, StopHandle};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use virtio_queue::{Queue, QueueT};

/// The size of a device's range on the MMIO bus, in bytes.
pub const SIZE: u64 = SIZE_U32 as u64;
/// [`SIZE`] as a `u32`, as the ACPI tables need it.
pub const SIZE_U32: u32 = 0x1000;
/// The offset of the configuration space.
const CONFIG: u64 = 0x100;

/// The magic value, "virt".
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// The version of the transport. Version 1 is the legacy one.
const TRANSPORT: u32 = 2;
/// The vendor of the device. Drivers do not depend on it.
const VENDOR: u32 = u32::from_le_bytes(*b"vmm ");

/// The settings of a queue, as the driver has written them. They are not checked before DRIVER_OK.
#[derive(Clone, Copy, Debug)]
struct Setup {
    max: u16,
    size: u32,
    ready: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
}

impl Setup {
    fn new(max: u16) -> Self {
        Self { max, size: max.into(), ready: false, descriptors: 0, driver: 0, device: 0 }
    }

    /// Builds the queue.
    ///
    /// # Errors
    /// The settings are invalid.
    fn build(&self, memory: &GuestMemory, event_idx: bool) -> Result<Queue, QueueError> {
        let mut queue = Queue::new(self.max)?;
        queue.try_set_size(u16::try_from(self.size).map_err(|_| virtio_queue::Error::InvalidSize)?)?;
        queue.try_set_desc_table_address(Gpa(self.descriptors))?;
        queue.try_set_avail_ring_address(Gpa(self.driver))?;
        queue.try_set_used_ring_address(Gpa(self.device))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // `is_valid` logs what it refuses, so a guest could fill the host's log. Check the addresses here first.
        let entries = u64::from(queue.size());
        let tables = [
            (self.descriptors, 16_u64.saturating_mul(entries)),
            (self.driver, 2_u64.saturating_mul(entries).saturating_add(6)),
            (self.device, 8_u64.saturating_mul(entries).saturating_add(6)),
        ];
        let in_memory = tables.iter().all(|(start, len)| memory.contains(Gpa(*start), *len));
        match in_memory && queue.is_valid(memory.slots()) {
            true => Ok(queue),
            false => Err(QueueError::Chain("the queue is not in guest memory")),
        }
    }
}

/// A virtio device with its registers.
pub struct Mmio {
    id: u32,
    name: &'static str,
    offered: u64,
    config: Vec<u8>,
    /// Changes with each change of the configuration space.
    config_generation: u32,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    notifiers: Vec<Arc<EventFd>>,
    worker: DeviceThread,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<Setup>,
}

impl fmt::Debug for Mmio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mmio").field("device", &self.name).field("status", &self.status()).finish()
    }
}

impl Mmio {
    /// Creates the device of `backend`, whose queues are in `memory`. Its thread starts when a driver is ready.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub fn new(backend: impl Backend + 'static, memory: GuestMemory) -> Result<Self, Error> {
        let name = backend.name();
        let queues: Vec<Setup> = backend.queue_sizes().iter().copied().map(Setup::new).collect();
        let notifiers = queues.iter().map(|_| event().map(Arc::new)).collect::<Result<Vec<_>, _>>();
        let notifiers = notifiers.map_err(Error::host("eventfd"))?;
        let interrupt = Arc::new(Interrupt::new(name)?);
        Ok(Self {
            id: backend.id(),
            name,
            offered: backend.features() | VERSION_1 | EVENT_IDX | INDIRECT_DESC,
            config: backend.config(),
            config_generation: 0,
            memory,
            interrupt: interrupt.clone(),
            notifiers: notifiers.clone(),
            worker: DeviceThread::new(Box::new(backend), notifiers, interrupt),
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues,
        })
    }

    /// The index of each queue, and its notification event: the kernel can signal it (KVM_IOEVENTFD) when the driver
    /// writes the index to QueueNotify (offset 0x50, 4 bytes).
    pub fn notifiers(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        (0..).zip(self.notifiers.iter().map(Arc::as_ref))
    }

    /// The event that is signalled for each interrupt. The interrupt is edge-triggered (KVM_IRQFD).
    pub fn interrupt(&self) -> &EventFd {
        self.interrupt.event()
    }

    /// The interrupt and the status, which the device's thread shares.
    #[cfg(test)]
    pub(crate) fn shared_interrupt(&self) -> Arc<Interrupt> {
        self.interrupt.clone()
    }

    /// Begins a run. After `deadline` the device leaves its current request incomplete, and is kicked out of a blocked
    /// write. If the host fails, the device ends the run through `stop_handle`. A second call has no effect.
    pub fn begin_run(&mut self, deadline: Deadline, stop_handle: Arc<StopHandle>) {
        self.interrupt.begin_run(deadline, stop_handle);
    }

    /// Ends the device's thread, and closes the back end, which writes cached data to its storage. The device completes
    /// the request that it works on, and ignores the rest of its queues. After the deadline of the run it leaves the request
    /// incomplete, and writes no more cached data. Call this after the vCPUs have ended. A second call does nothing. Dropping
    /// the device has the same effect.
    ///
    /// # Errors
    /// The host failed: the end of the run is this one, instead of a success.
    pub fn stop(&mut self) -> Result<(), Stop> {
        self.worker.stop()
    }

    /// Copies the registers to `base` in `memory`, a read-only memory slot, and keeps the copy up to date. The guest
    /// then reads registers without an exit. Its stores still exit to the device.
    pub(crate) fn show(&self, memory: GuestMemory, base: Gpa) {
        let mirror = self.interrupt.mirror();
        mirror.attach(memory, base);
        for offset in (0..CONFIG).step_by(4) {
            mirror.store(offset, self.read_register(offset));
        }
        mirror.store_bytes(CONFIG, &self.config);
    }

    /// Changes the configuration space, which keeps its size, and notifies the driver if it is ready (section 2.5).
    pub(crate) fn set_config(&mut self, config: Vec<u8>) {
        // The generation changes first: a driver that reads meanwhile reads again, or is notified afterwards.
        self.config_generation = self.config_generation.wrapping_add(1);
        self.interrupt.mirror().store(register::CONFIG_GENERATION, self.config_generation);
        self.interrupt.mirror().store_bytes(CONFIG, &config);
        self.config = config;
        if self.status() & status::DRIVER_OK != 0 {
            self.interrupt.raise(CONFIG_CHANGE);
        }
    }

    /// Updates the copies of the registers that a write of the driver may have changed. [`Interrupt`] updates its own.
    fn update_mirror(&self) {
        for offset in [register::DEVICE_FEATURES, register::QUEUE_NUM_MAX, register::QUEUE_READY] {
            self.interrupt.mirror().store(offset, self.read_register(offset));
        }
    }

    fn status(&self) -> u32 {
        self.interrupt.device_status()
    }

    fn set_status(&mut self, value: u32) -> ControlFlow<Stop> {
        use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};
        if value == 0 {
            self.reset();
            return ControlFlow::Continue(());
        }
        let value = value & (ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED);
        let before = self.status() & !status::DEVICE_NEEDS_RESET;
        if value & before != before {
            log::debug!("{}: ignored: the driver clears status bits without a reset", self.name);
            return ControlFlow::Continue(());
        }
        let new = value & !before;
        self.interrupt.set_device_status(new & (ACKNOWLEDGE | DRIVER | FAILED));
        let has = |status: u32, bits| status & bits == bits;
        if has(new, FEATURES_OK) && has(self.status(), ACKNOWLEDGE | DRIVER) && self.accepts_features() {
            self.interrupt.set_device_status(FEATURES_OK);
        }
        if has(new, DRIVER_OK) && has(self.status(), FEATURES_OK) && !has(self.status(), FAILED) {
            self.interrupt.set_device_status(DRIVER_OK);
            return self.activate();
        }
        ControlFlow::Continue(())
    }

    fn accepts_features(&self) -> bool {
        self.driver_features & !self.offered == 0 && self.driver_features & VERSION_1 != 0
    }

    /// Handles DRIVER_OK: builds the queues and passes them to the device's thread. If a queue is invalid, the device
    /// needs a reset.
    fn activate(&mut self) -> ControlFlow<Stop> {
        let [event_idx, indirect] = [EVENT_IDX, INDIRECT_DESC].map(|bit| self.driver_features & bit != 0);
        let build = |(setup, notifier): (&Setup, &Arc<EventFd>)| -> Result<Option<Virtqueue>, QueueError> {
            if !setup.ready {
                return Ok(None);
            }
            let queue = setup.build(&self.memory, event_idx)?;
            let (memory, interrupt) = (self.memory.clone(), self.interrupt.clone());
            let queue = Virtqueue::new(queue, memory, interrupt, notifier.clone());
            Ok(Some(queue.allow_indirect(indirect)))
        };
        match self.queues.iter().zip(&self.notifiers).map(build).collect::<Result<_, _>>() {
            Err(broken) => self.interrupt.needs_reset(broken.kind(), &broken),
            Ok(queues) => {
                if let Err(error) = self.worker.activate(Queues::new(queues), self.driver_features) {
                    return ControlFlow::Break(Stop::host(error));
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Resets the device to its state after power-on (section 2.4).
    fn reset(&mut self) {
        self.worker.reset();
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.queues.iter_mut().for_each(|queue| *queue = Setup::new(queue.max));
        self.update_mirror();
    }

    /// The selected queue.
    fn queue(&self) -> Option<&Setup> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn read_register(&self, offset: u64) -> u32 {
        use register::*;
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => TRANSPORT,
            DEVICE_ID => self.id,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(self.offered, self.device_features_sel),
            QUEUE_NUM_MAX => self.queue().map_or(0, |queue| queue.max.into()),
            QUEUE_READY => self.queue().is_some_and(|queue| queue.ready).into(),
            INTERRUPT_STATUS => self.interrupt.status(),
            STATUS => self.status(),
            CONFIG_GENERATION => self.config_generation,
            // The device has no shared memory region: the length of every region is all ones.
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) -> ControlFlow<Stop> {
        use register::*;
        match offset {
            DEVICE_FEATURES_SEL => self.device_features_sel = value,
            DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            DRIVER_FEATURES => self.take_features(value),
            QUEUE_SEL => self.queue_sel = value,
            QUEUE_NUM | QUEUE_READY | QUEUE_DESC_LOW..=QUEUE_DEVICE_HIGH => self.set_up_queue(offset, value),
            // The kernel handles most of these writes (KVM_IOEVENTFD).
            QUEUE_NOTIFY => {
                if let Some(notifier) =
                    usize::try_from(value).ok().and_then(|index| self.notifiers.get(index))
                {
                    signal(notifier);
                }
            }
            INTERRUPT_ACK => self.interrupt.acknowledge(value),
            STATUS => return self.set_status(value),
            _ => {}
        }
        if offset != QUEUE_NOTIFY && offset != INTERRUPT_ACK {
            self.update_mirror();
        }
        ControlFlow::Continue(())
    }

    /// Handles a write to DriverFeatures, which is valid between DRIVER and FEATURES_OK.
    fn take_features(&mut self, value: u32) {
        if self.status() & (status::DRIVER | status::FEATURES_OK) != status::DRIVER {
            log::debug!("{}: ignored: the driver writes features at the wrong time", self.name);
            return;
        }
        set_half(&mut self.driver_features, self.driver_features_sel, value);
    }

    /// Handles a write to a register of the selected queue, which is valid between FEATURES_OK and DRIVER_OK.
    fn set_up_queue(&mut self, offset: u64, value: u32) {
        use register::*;
        let mask = status::FEATURES_OK | status::DRIVER_OK;
        let is_allowed = self.status() & mask == status::FEATURES_OK;
        let selected = usize::try_from(self.queue_sel).ok();
        let Some(queue) = selected.and_then(|index| self.queues.get_mut(index)).filter(|_| is_allowed) else {
            log::debug!("{}: ignored: the driver sets up a queue at the wrong time", self.name);
            return;
        };
        match offset {
            QUEUE_READY => queue.ready = value & 1 != 0,
            // A queue that is ready cannot be changed.
            _ if queue.ready => {}
            QUEUE_NUM => queue.size = value,
            QUEUE_DESC_LOW => set_half(&mut queue.descriptors, 0, value),
            QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, 1, value),
            QUEUE_DRIVER_LOW => set_half(&mut queue.driver, 0, value),
            QUEUE_DRIVER_HIGH => set_half(&mut queue.driver, 1, value),
            QUEUE_DEVICE_LOW => set_half(&mut queue.device, 0, value),
            QUEUE_DEVICE_HIGH => set_half(&mut queue.device, 1, value),
            _ => {}
        }
    }
}

/// The low (`which` 0) or high (1) half of `value`. 0 for every other `which`.
fn half(value: u64, which: u32) -> u32 {
    match which {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, which: u32, to: u32) {
    match which {
        0 => *value = *value >> 32 << 32 | u64::from(to),
        1 => *value = u64::from(to) << 32 | *value & u64::from(u32::MAX),
        _ => {}
    }
}

/// True if an access is aligned and as wide as a register.
fn is_register(offset: u64, size: u8) -> bool {
    offset < CONFIG && size == 4 && offset.is_multiple_of(4)
}

impl Device for Mmio {
    fn read(&mut self, offset: u64, size: u8) -> ControlFlow<Stop, u64> {
        if is_register(offset, size) {
            return ControlFlow::Continue(self.read_register(offset).into());
        }
        let mut value = [0; 8];
        if let Some(start) = offset.checked_sub(CONFIG).and_then(|start| usize::try_from(start).ok()) {
            let bytes = self.config.get(start..).unwrap_or_default();
            value.iter_mut().zip(bytes).take(size.into()).for_each(|(to, from)| *to = *from);
        }
        ControlFlow::Continue(u64::from_le_bytes(value))
    }

    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        if is_register(offset, size) {
            return self.write_register(offset, data as u32);
        }
        // The configuration spaces of these devices are read-only.
        ControlFlow::Continue(())
    }

    fn name(&self, offset: u64) -> DeviceName {
        use register::*;
        let register = match offset {
            MAGIC_VALUE..DEVICE_FEATURES => "identity",
            DEVICE_FEATURES..QUEUE_SEL => "features",
            QUEUE_SEL..QUEUE_NOTIFY | QUEUE_DESC_LOW..SHM_SEL => "queue",
            QUEUE_NOTIFY => "notify",
            INTERRUPT_STATUS => "interrupt status",
            INTERRUPT_ACK => "interrupt ack",
            STATUS => "status",
            CONFIG_GENERATION..SIZE => "config",
            _ => "reserved",
        };
        DeviceName::register(self.name, register)
    }
}

#[cfg(test)]
mod tests;
