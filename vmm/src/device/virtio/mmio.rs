//! The MMIO transport, version 2 (virtio 1.2, section 4.2): a page of registers, and the state machine of
//! device initialisation behind them (section 3.1.1).
//!
//! Registers are aligned and 4 bytes wide: any other access writes nothing, and reads 0 or, where the registers are shown
//! in memory, what is there. What the driver
//! writes where it may not (features after FEATURES_OK, a queue that is ready) is ignored, as is a status
//! that takes bits back; only a write of 0 does that, and resets the device.

use crate::device::bus::{Device, DeviceName};
use crate::device::virtio::Backend;
use crate::device::virtio::interrupt::Interrupt;
use crate::device::virtio::queue::{QueueError, Queues, Virtqueue};
use crate::device::virtio::registers::{EVENT_IDX, INDIRECT_DESC, VERSION_1, register, status};
use crate::device::virtio::thread::DeviceThread;
use crate::error::Error;
use crate::exit::Stop;
use crate::host::{event, signal};
use crate::memory::{Gpa, GuestMemory};
use crate::shutdown::Deadline;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

/// Size of a device's place on the MMIO bus, in bytes.
pub const SIZE: u64 = 0x1000;
/// Where the configuration space starts in it.
const CONFIG: u64 = 0x100;

/// "virt".
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// Version of the transport; 1 is the legacy one.
const TRANSPORT: u32 = 2;
/// Who made the device: nothing that a driver may depend on.
const VENDOR: u32 = u32::from_le_bytes(*b"vmm ");

/// What the driver has said of a queue: not looked at before it says that it is done.
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

    /// The queue, if it can be one.
    fn build(&self, memory: &GuestMemory, event_idx: bool) -> Result<Queue, QueueError> {
        let mut queue = Queue::new(self.max)?;
        queue.try_set_size(u16::try_from(self.size).map_err(|_| virtio_queue::Error::InvalidSize)?)?;
        queue.try_set_desc_table_address(Gpa(self.descriptors))?;
        queue.try_set_avail_ring_address(Gpa(self.driver))?;
        queue.try_set_used_ring_address(Gpa(self.device))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // Looked at here first: `is_valid` logs what it refuses, and a guest could fill the host's log.
        let entries = u64::from(queue.size());
        let tables = [
            (self.descriptors, 16_u64.saturating_mul(entries)),
            (self.driver, 2_u64.saturating_mul(entries).saturating_add(6)),
            (self.device, 8_u64.saturating_mul(entries).saturating_add(6)),
        ];
        let in_memory = tables.iter().all(|(start, len)| memory.contains(Gpa(*start), *len));
        match in_memory && queue.is_valid(memory.slots()) {
            true => Ok(queue),
            false => Err(QueueError::Chain("a queue is not in memory")),
        }
    }
}

/// A virtio device behind its registers.
pub struct Mmio {
    id: u32,
    name: &'static str,
    offered: u64,
    config: Vec<u8>,
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
    /// The device that `backend` makes, over the guest's memory. Its thread starts when a driver is ready.
    ///
    /// # Errors
    /// The host has no descriptor left.
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

    /// The index of each queue, and what brings the device to it: a write to QueueNotify (offset 0x50, 4
    /// bytes) of that index, which the kernel can take by itself (KVM_IOEVENTFD).
    pub fn notifiers(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        (0..).zip(self.notifiers.iter().map(Arc::as_ref))
    }

    /// What is written to for each interrupt: an edge (KVM_IRQFD).
    pub fn interrupt(&self) -> &EventFd {
        self.interrupt.event()
    }

    /// Says when whoever waits for the device stops being patient: it is then kicked out of a write that
    /// nobody reads.
    pub fn set_deadline(&mut self, deadline: Deadline) {
        self.worker.set_deadline(deadline);
    }

    /// Ends the device's thread and makes what was written last. The request in the device's hands is
    /// finished; what is still in its queues is not looked at. Once the vCPUs have ended; a second call does
    /// nothing, and dropping the device does the same.
    pub fn stop(&mut self) {
        self.worker.stop();
    }

    /// From now on the guest reads the registers at `base` in `memory`, which it cannot write; its stores still come
    /// to the device.
    pub(crate) fn show(&self, memory: GuestMemory, base: Gpa) {
        let mirror = self.interrupt.mirror();
        mirror.set(memory, base);
        for offset in (0..CONFIG).step_by(4) {
            mirror.show(offset, self.read_register(offset));
        }
        mirror.show_bytes(CONFIG, &self.config);
    }

    /// Shows the registers that what the driver has written may have changed; `interrupt` shows its own.
    fn show_changes(&self) {
        for offset in [register::DEVICE_FEATURES, register::QUEUE_NUM_MAX, register::QUEUE_READY] {
            self.interrupt.mirror().show(offset, self.read_register(offset));
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
            log::debug!("{}: the driver takes status bits back, which only a reset does", self.name);
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

    /// The driver is ready: the queues go to the device's thread, if all of them can be believed.
    fn activate(&mut self) -> ControlFlow<Stop> {
        let event_idx = self.driver_features & EVENT_IDX != 0;
        let build = |(setup, notifier): (&Setup, &Arc<EventFd>)| -> Result<Option<Virtqueue>, QueueError> {
            if !setup.ready {
                return Ok(None);
            }
            let queue = setup.build(&self.memory, event_idx)?;
            let (memory, interrupt) = (self.memory.clone(), self.interrupt.clone());
            Ok(Some(Virtqueue::new(queue, memory, interrupt, notifier.clone())))
        };
        match self.queues.iter().zip(&self.notifiers).map(build).collect::<Result<_, _>>() {
            Err(broken) => self.interrupt.needs_reset(&broken),
            Ok(queues) => {
                if let Err(error) = self.worker.activate(Queues::new(queues), self.driver_features) {
                    return ControlFlow::Break(Stop::failed(error));
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// As after power-on (section 2.4).
    fn reset(&mut self) {
        self.worker.reset();
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.queues.iter_mut().for_each(|queue| *queue = Setup::new(queue.max));
        self.show_changes();
    }

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
            // No shared memory region is there: the length of any is all ones.
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
            // Mostly the kernel takes this one.
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
            self.show_changes();
        }
        ControlFlow::Continue(())
    }

    /// DriverFeatures, which count once the driver has said that it is one, until it is done with them.
    fn take_features(&mut self, value: u32) {
        if self.status() & (status::DRIVER | status::FEATURES_OK) != status::DRIVER {
            log::debug!("{}: features at the wrong time, ignored", self.name);
            return;
        }
        set_half(&mut self.driver_features, self.driver_features_sel, value);
    }

    /// The registers of the queue that is selected, between FEATURES_OK and DRIVER_OK.
    fn set_up_queue(&mut self, offset: u64, value: u32) {
        use register::*;
        let time = status::FEATURES_OK | status::DRIVER_OK;
        let is_time = self.status() & time == status::FEATURES_OK;
        let selected = usize::try_from(self.queue_sel).ok();
        let Some(queue) = selected.and_then(|index| self.queues.get_mut(index)).filter(|_| is_time) else {
            log::debug!("{}: a queue is set up at the wrong time, ignored", self.name);
            return;
        };
        match offset {
            QUEUE_READY => queue.ready = value & 1 != 0,
            // A queue that is ready stays as it is.
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

/// The low (0) or high (1) half of `value`; there are no further ones.
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

/// Whether an access is one of a register.
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
        // Nothing in a configuration space can be written.
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
