//! A model of the registers of a virtio device (virtio 1.2, sections 2.1, 3.1.1 and 4.2.2). It knows which values the
//! device must show after each write of the driver.

const VERSION_1: u64 = 1 << 32;
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;
/// InterruptStatus: the configuration has changed.
const CONFIG_CHANGE: u32 = 2;

/// The settings of a queue.
#[derive(Clone, Copy)]
struct Queue {
    max: u16,
    size: u32,
    ready: bool,
    /// The addresses of the descriptors, the driver's ring and the device's ring.
    places: [u64; 3],
}

impl Queue {
    fn new(max: u16) -> Self {
        Self { max, size: max.into(), ready: false, places: [0; 3] }
    }

    /// True if the queue follows the rules of section 2.7 and is in memory of `ram` bytes.
    fn is_valid(&self, ram: u64) -> bool {
        let entries = u64::from(self.size);
        let sizes = [16 * entries, 6 + 2 * entries, 6 + 8 * entries];
        let aligned = self.places.iter().zip([16, 2, 4]).all(|(place, to)| place % to == 0);
        let inside = self
            .places
            .iter()
            .zip(sizes)
            .all(|(place, size)| place.checked_add(size).is_some_and(|end| end <= ram));
        self.size.is_power_of_two() && self.size <= self.max.into() && aligned && inside
    }
}

/// The model.
pub struct Model {
    offered: u64,
    ram: u64,
    status: u32,
    /// True if a queue was invalid at DRIVER_OK.
    is_broken: bool,
    /// The bits of InterruptStatus that must be set.
    interrupt: u32,
    features_select: [u32; 2],
    accepted: u64,
    select: u32,
    queues: Vec<Queue>,
}

impl Model {
    /// Creates the model of a device after power-on, with these features and queue sizes, and with `ram` bytes of memory.
    pub fn new(offered: u64, sizes: &[u16], ram: u64) -> Self {
        let queues = sizes.iter().copied().map(Queue::new).collect();
        Self {
            offered,
            ram,
            status: 0,
            is_broken: false,
            interrupt: 0,
            features_select: [0; 2],
            accepted: 0,
            select: 0,
            queues,
        }
    }

    /// Follows a write of the driver.
    pub fn write(&mut self, offset: u64, size: u8, data: u64) {
        if size != 4 || offset % 4 != 0 || offset >= 0x100 {
            return;
        }
        let value = data as u32;
        match offset {
            0x14 => self.features_select[0] = value,
            0x24 => self.features_select[1] = value,
            0x20 if self.status & (DRIVER | FEATURES_OK) == DRIVER => {
                set_half(&mut self.accepted, self.features_select[1], value);
            }
            0x30 => self.select = value,
            0x38 | 0x44 | 0x80 | 0x84 | 0x90 | 0x94 | 0xa0 | 0xa4 => self.set_up(offset, value),
            0x64 => self.interrupt &= !value,
            0x70 => self.set_status(value),
            _ => {}
        }
    }

    fn set_up(&mut self, offset: u64, value: u32) {
        if self.status & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.select as usize) else { return };
        match offset {
            0x44 => queue.ready = value & 1 == 1,
            _ if queue.ready => {}
            0x38 => queue.size = value,
            _ => {
                let place = &mut queue.places[((offset - 0x80) >> 4) as usize];
                set_half(place, (offset >> 2 & 1) as u32, value);
            }
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            let sizes: Vec<_> = self.queues.iter().map(|queue| queue.max).collect();
            *self = Self::new(self.offered, &sizes, self.ram);
            return;
        }
        let value = value & (ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED);
        if value & self.status != self.status {
            return;
        }
        let new = value & !self.status;
        self.status |= new & (ACKNOWLEDGE | DRIVER | FAILED);
        let may_accept = self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0;
        if new & FEATURES_OK != 0 && self.status & 3 == 3 && may_accept {
            self.status |= FEATURES_OK;
        }
        if new & DRIVER_OK != 0 && self.status & (FEATURES_OK | FAILED) == FEATURES_OK {
            self.status |= DRIVER_OK;
            if self.queues.iter().any(|queue| queue.ready && !queue.is_valid(self.ram)) {
                self.is_broken = true;
                self.interrupt |= CONFIG_CHANGE;
            }
        }
    }

    /// Compares the registers of the device with the model. `read` reads 4 bytes at an offset.
    pub fn check(&self, mut read: impl FnMut(u64) -> u64) {
        let queue = self.queues.get(self.select as usize);
        let offered = match self.features_select[0] {
            0 => self.offered & 0xffff_ffff,
            1 => self.offered >> 32,
            _ => 0,
        };
        for (offset, value) in [
            (0x00, 0x7472_6976),
            (0x04, 2),
            (0x10, offered),
            (0x34, queue.map_or(0, |queue| queue.max.into())),
            (0x44, queue.is_some_and(|queue| queue.ready).into()),
        ] {
            assert_eq!(read(offset), value, "the register {offset:#x}");
        }
        let (interrupt, status) = (read(0x60) as u32, read(0x70) as u32);
        assert_eq!(status & !NEEDS_RESET, self.status, "the status");
        assert_eq!(interrupt & self.interrupt, self.interrupt, "an interrupt is lost");
        assert_eq!(interrupt & !3, 0, "an interrupt that does not exist");
        assert!(
            !self.is_broken || status & NEEDS_RESET != 0,
            "a queue is invalid, and the device accepts it"
        );
        // Without its thread the device does nothing on its own.
        if self.status & DRIVER_OK == 0 || self.is_broken {
            assert_eq!((interrupt, status & NEEDS_RESET != 0), (self.interrupt, self.is_broken));
        }
    }
}

fn set_half(value: &mut u64, half: u32, to: u32) {
    match half {
        0 => *value = *value & !0xffff_ffff | u64::from(to),
        1 => *value = *value & 0xffff_ffff | u64::from(to) << 32,
        _ => {}
    }
}
