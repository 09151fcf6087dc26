//! The device side of the rings of a split queue (virtio 1.2, sections 2.7.6 to 2.7.10).
//!
//! The driver's ring (`struct virtq_avail`) lists the chains for the device. The device's ring (`struct virtq_used`) lists
//! the chains that the device has used. All fields are little-endian.
//!
//! | offset | driver's ring, written by the driver | device's ring, written by the device |
//! |---|---|---|
//! | 0 | flags, 2 bytes: 1 if it wants no interrupt | flags, 2 bytes: 1 if it wants no notification |
//! | 2 | index of the next entry, 2 bytes, never reduced to the size | the same |
//! | 4 | entries: the head of a chain, 2 bytes | entries: head and written bytes, 4 bytes each |
//! | after the entries | `used_event`, 2 bytes | `avail_event`, 2 bytes |
//!
//! With VIRTIO_F_EVENT_IDX, `used_event` and `avail_event` replace the flags: each side says at which index of the other
//! one it wants to hear.
//!
//! The driver may change both rings at any time. The device reads a field once, keeps its own indices in private memory, and
//! never reads back what it has written.

use crate::memory::{Gpa, GuestMemory};
use std::fmt;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring;

/// Flag of the driver's ring: the driver wants no interrupt.
const NO_INTERRUPT: u16 = virtio_ring::VRING_AVAIL_F_NO_INTERRUPT as u16;
/// Flag of the device's ring: the device wants no notification.
const NO_NOTIFY: u16 = virtio_ring::VRING_USED_F_NO_NOTIFY as u16;
/// The offset of the index in both rings, in bytes.
const INDEX: u64 = 2;
/// The offset of the first entry in both rings, in bytes.
const ENTRIES: u64 = 4;

/// One of the three areas of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The table of descriptors.
    Descriptors,
    /// The driver's ring.
    Driver,
    /// The device's ring.
    Device,
}

impl Area {
    /// The alignment, in bytes (section 2.7).
    fn alignment(self) -> u64 {
        match self {
            Self::Descriptors => 16,
            Self::Driver => 2,
            Self::Device => 4,
        }
    }

    /// The size of an entry, in bytes.
    fn entry(self) -> u64 {
        match self {
            Self::Descriptors => 16,
            Self::Driver => 2,
            Self::Device => 8,
        }
    }

    /// The offset of the entry `index` in bytes. For the number of entries, that of the event index after them.
    fn offset(self, index: u16) -> u64 {
        let header = if self == Self::Descriptors { 0 } else { ENTRIES };
        self.entry().saturating_mul(index.into()).saturating_add(header)
    }

    /// The size of the area of a queue with `size` entries, in bytes.
    fn len(self, size: u16) -> u64 {
        let event_index = if self == Self::Descriptors { 0 } else { 2 };
        self.offset(size).saturating_add(event_index)
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "the table of descriptors",
            Self::Driver => "the driver's ring",
            Self::Device => "the device's ring",
        })
    }
}

/// A mistake of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The size of the queue is invalid.
    #[error("the size of a queue is {size}, but must be a power of two up to {max}")]
    Size {
        /// The size, in entries.
        size: u32,
        /// The maximum of this queue.
        max: u16,
    },
    /// The address of an area is not aligned.
    #[error("{area} is at {start:#x}, which is not a multiple of {}", area.alignment())]
    Alignment {
        /// The area.
        area: Area,
        /// Its address.
        start: u64,
    },
    /// A part of an area is not in guest memory.
    #[error("{area} at {start:#x} is not in guest memory")]
    Outside {
        /// The area.
        area: Area,
        /// Its address.
        start: u64,
    },
    /// The driver's ring has more new entries than the queue has.
    #[error("the index of the driver's ring is {waiting} entries ahead, but the queue has {size}")]
    TooFarAhead {
        /// The number of new entries.
        waiting: u16,
        /// The size of the queue, in entries.
        size: u16,
    },
}

/// The size and the addresses of a queue, as the driver has set them. They are not checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// The size, in entries.
    pub size: u32,
    /// GPA of the table of descriptors.
    pub descriptors: u64,
    /// GPA of the driver's ring.
    pub driver: u64,
    /// GPA of the device's ring.
    pub device: u64,
}

/// The rings of a queue, in guest memory.
#[derive(Debug)]
pub struct Ring {
    memory: GuestMemory,
    /// A power of two.
    size: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    event_idx: bool,
    /// The index of the next entry in the driver's ring. Like all indices it goes from 65535 to 0.
    next_available: u16,
    /// The index of the next entry in the device's ring.
    next_used: u16,
}

impl Ring {
    /// Checks `layout`. The queue has at most `max` entries. `event_idx` is true if the driver has accepted
    /// VIRTIO_F_EVENT_IDX.
    ///
    /// # Errors
    /// The size is invalid, or an area is not aligned or not in `memory`.
    pub fn new(memory: GuestMemory, layout: &Layout, max: u16, event_idx: bool) -> Result<Self, RingError> {
        let Layout { size, descriptors, driver, device } = *layout;
        let valid = u16::try_from(size).ok().filter(|size| size.is_power_of_two() && *size <= max);
        let entries = valid.ok_or(RingError::Size { size, max })?;
        for (area, start) in
            [(Area::Descriptors, descriptors), (Area::Driver, driver), (Area::Device, device)]
        {
            if !start.is_multiple_of(area.alignment()) {
                return Err(RingError::Alignment { area, start });
            }
            if !memory.contains(Gpa(start), area.len(entries)) {
                return Err(RingError::Outside { area, start });
            }
        }
        let (next_available, next_used) = (0, 0);
        Ok(Self { memory, size: entries, descriptors, driver, device, event_idx, next_available, next_used })
    }

    /// The memory of the rings and buffers.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The size of the queue, in entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// GPA of the table of descriptors.
    pub fn descriptors(&self) -> u64 {
        self.descriptors
    }

    /// The index of the next entry in the device's ring.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// Takes the next chain from the driver's ring. Returns the number of its first descriptor, which is not checked, or
    /// `None` if there is no chain.
    ///
    /// # Errors
    /// The driver's index is further ahead than the size of the queue (section 2.7.6).
    pub fn take(&mut self) -> Result<Option<u16>, RingError> {
        // The load has acquire order: the entry and its descriptors are read after the index.
        let waiting = self.load(Area::Driver, INDEX)?.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(RingError::TooFarAhead { waiting, size: self.size });
        }
        if waiting == 0 {
            return Ok(None);
        }
        let head = self.load(Area::Driver, Area::Driver.offset(self.slot(self.next_available)))?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(head))
    }

    /// Puts back the chain that was taken last. The next [`take`](Self::take) reads its entry again.
    pub fn put_back(&mut self) {
        self.next_available = self.next_available.wrapping_sub(1);
    }

    /// Returns the chain that begins at `head` to the driver (section 2.7.8). `written` is the number of bytes in its buffers.
    ///
    /// # Errors
    /// The entry is not in guest memory.
    pub fn add_used(&mut self, head: u16, written: u32) -> Result<(), RingError> {
        // struct virtq_used_elem: le32 id, le32 len.
        let entry = u64::from(head) | u64::from(written) << 32;
        let at = self.field(Area::Device, Area::Device.offset(self.slot(self.next_used)));
        self.memory.write(at, &entry.to_le_bytes()).map_err(|_| self.outside(Area::Device))?;
        self.next_used = self.next_used.wrapping_add(1);
        // The store has release order: the driver sees the entry before the index.
        self.store(INDEX, self.next_used)
    }

    /// Asks the driver for a notification of the next chain (section 2.7.10). Returns true if a chain has come meanwhile: the
    /// driver may not notify the device of this one.
    ///
    /// # Errors
    /// A field is not in guest memory.
    pub fn enable_notification(&mut self) -> Result<bool, RingError> {
        match self.event_idx {
            true => self.store(Area::Device.offset(self.size), self.next_available)?,
            false => self.store(0, 0)?,
        }
        // The driver stores its index and then loads our field. Of the two sides, at least one must see the other's store.
        fence(Ordering::SeqCst);
        Ok(self.load(Area::Driver, INDEX)? != self.next_available)
    }

    /// Asks the driver for no notifications. With VIRTIO_F_EVENT_IDX this is the state after each notification.
    ///
    /// # Errors
    /// The flags are not in guest memory.
    pub fn disable_notification(&mut self) -> Result<(), RingError> {
        if self.event_idx { Ok(()) } else { self.store(0, NO_NOTIFY) }
    }

    /// True if the driver wants an interrupt for the chains that were returned since [`next_used`](Self::next_used) was
    /// `before` (section 2.7.7). Always false if there is none.
    ///
    /// # Errors
    /// A field is not in guest memory.
    pub fn needs_interrupt(&self, before: u16) -> Result<bool, RingError> {
        if self.next_used == before {
            return Ok(false);
        }
        // The driver stores its field and then loads our index, as in `enable_notification`.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return Ok(self.load(Area::Driver, 0)? & NO_INTERRUPT == 0);
        }
        let event = self.load(Area::Driver, Area::Driver.offset(self.size))?;
        Ok(has_passed(event, before, self.next_used))
    }

    /// The entry of the index `index`.
    fn slot(&self, index: u16) -> u16 {
        // The size is a power of two.
        index & self.size.saturating_sub(1)
    }

    /// The address of a field. The area was checked, so it does not wrap around.
    fn field(&self, area: Area, offset: u64) -> Gpa {
        Gpa(self.start(area).saturating_add(offset))
    }

    fn start(&self, area: Area) -> u64 {
        match area {
            Area::Descriptors => self.descriptors,
            Area::Driver => self.driver,
            Area::Device => self.device,
        }
    }

    fn load(&self, area: Area, offset: u64) -> Result<u16, RingError> {
        self.memory.load_u16(self.field(area, offset)).ok_or_else(|| self.outside(area))
    }

    /// Stores a field of the device's ring.
    fn store(&self, offset: u64, value: u16) -> Result<(), RingError> {
        let is_stored = self.memory.store_u16(self.field(Area::Device, offset), value);
        if is_stored { Ok(()) } else { Err(self.outside(Area::Device)) }
    }

    fn outside(&self, area: Area) -> RingError {
        RingError::Outside { area, start: self.start(area) }
    }
}

/// True if an index that went from `before` to `now` has passed the entry `event`, at which the other side wants to hear
/// (section 2.7.7.2).
fn has_passed(event: u16, before: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

#[cfg(test)]
mod tests;
